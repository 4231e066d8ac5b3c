"""Light: surroundings as a few soft lobes, what of them reaches each point of the head, and one lamp with shadows.

The surroundings are a sum of spherical Gaussians (a window, a lamp, the sky's brighter half) over a sky and a ground.
They are sampled at DIRECTIONS, once a picture; which of these a point of the average head sees is worked out once a
process, so an irradiance with all self-shadowing is one product of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hpe_core.render.anatomy import (
    MOUTH,
    TEETH,
    TONGUE,
    anatomy,
    average_adult,
    normals_of,
    spread,
)
from hpe_core.render.raster import depth_map

Float = NDArray[np.float32]
RGB = tuple[float, float, float]

RINGS = 64  # directions


@dataclass(frozen=True)
class Lobe:
    """radiance * exp(sharpness * (cos - 1)) round a direction of the camera frame."""

    direction: tuple[float, float, float]
    radiance: RGB
    sharpness: float


@dataclass(frozen=True)
class Light:
    """Everything that lights a scene; directions point to the light, in the camera frame (x right, y down, z away).

    above, level, below: radiance of sky, horizon and ground. lamp: direction of the light that casts shadows; its
    irradiance is `power` times `tint`. soft: blur of its shadows' edge, pixels of the shadow map.
    """

    above: RGB = (0.9, 0.9, 0.9)
    level: RGB = (0.7, 0.7, 0.7)
    below: RGB = (0.4, 0.4, 0.4)
    lobes: tuple[Lobe, ...] = ()
    lamp: tuple[float, float, float] = (-0.3, -0.6, -0.75)
    tint: RGB = (1.0, 1.0, 1.0)
    power: float = 1.0
    soft: float = 1.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "lamp", unit(*self.lamp))

    def mirrored(self) -> Light:
        """As a mirror shows it."""
        lobes = tuple(replace(x, direction=(-x.direction[0], *x.direction[1:])) for x in self.lobes)
        return replace(self, lobes=lobes, lamp=(-self.lamp[0], *self.lamp[1:]))

    def radiance(self, directions: Float, gloss: float = 1e9) -> Float:
        """(N, 3), a column after the other, from unit directions (N, 3); `gloss` is the sharpness of the mirror that
        looks at it."""
        up = -directions[:, 1]
        sky, ground = np.maximum(up, 0), np.clip(up * 3, -1, 0)
        above, level, below = (np.asarray(c, np.float32) for c in (self.above, self.level, self.below))
        out = np.empty((3, len(directions)), np.float32)
        for plane, high, middle, low in zip(out, above, level, below, strict=True):
            np.multiply(sky, high - middle, out=plane)
            plane += middle
            plane += ground * (middle - low)
        for lobe in self.lobes:
            k = lobe.sharpness * gloss / (lobe.sharpness + gloss)
            shape = np.exp(np.float32(k) * (directions @ np.asarray(lobe.direction, np.float32) - 1))
            for plane, part in zip(out, np.asarray(lobe.radiance, np.float32), strict=True):
                plane += shape * part * np.float32(k / lobe.sharpness)
        return out.T


def unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    n = float(np.sqrt(x * x + y * y + z * z)) or 1.0
    return (x / n, y / n, z / n)


def draw_light(rng: np.random.Generator) -> Light:
    """Outdoors in sun or shade, rooms with windows or lamps, a studio, a stage, a street at night, a flash."""
    kind = str(rng.choice(["sun", "shade", "window", "room", "studio", "stage", "night", "flash"],
                          p=[0.15, 0.16, 0.18, 0.16, 0.12, 0.09, 0.06, 0.08]))  # fmt: skip
    warm = rng.normal(0, 0.06)

    def tone(level: float, warmth: float) -> RGB:
        c = level * np.array([1 + warmth, 1.0, 1 - warmth]) * np.exp(rng.normal(0, 0.02, 3))
        return (float(c[0]), float(c[1]), float(c[2]))

    def aimed(around: float, height: float) -> tuple[float, float, float]:
        return unit(np.sin(around) * np.cos(height), -np.sin(height), -np.cos(around) * np.cos(height))

    def toward(low: float, high: float, spread: float = 2.6) -> tuple[float, float, float]:
        """A direction at an elevation between two, not often from behind."""
        return aimed(rng.normal(0, spread / 2.2), rng.uniform(low, high))

    def lobes(
        count: int, level: float, sharp: tuple[float, float], low: float, high: float, warmth: float
    ) -> list[Lobe]:
        out = []
        for _ in range(count):
            k = float(np.exp(rng.uniform(np.log(sharp[0]), np.log(sharp[1]))))
            w = warmth + rng.normal(0, 0.08)
            d = aimed(rng.uniform(-np.pi, np.pi), rng.uniform(low, high))
            out.append(Lobe(d, tone(level * rng.uniform(0.4, 1.6), w), k))
        return out

    lamp, power, soft, tint = toward(0.0, 0.9), 0.5, 2.0, warm
    if kind == "sun":
        sky, ground = rng.uniform(0.5, 0.9), rng.uniform(0.2, 0.7)
        light = Light(tone(sky, -0.16), tone(sky * 0.9, -0.06), tone(ground, 0.06))
        lamp, power, soft, tint = toward(0.35, 1.2), rng.uniform(0.9, 2.4), rng.uniform(0.6, 1.4), 0.05
    elif kind == "shade":
        sky = rng.uniform(0.7, 1.2)
        light = Light(tone(sky, -0.06), tone(sky * rng.uniform(0.4, 0.9), 0), tone(rng.uniform(0.15, 0.5), 0.05))
        power, soft = rng.uniform(0, 0.4), 3.0
    elif kind == "window":
        light = Light(tone(0.25, 0.08), tone(rng.uniform(0.15, 0.45), 0.08), tone(0.2, 0.1))
        light = replace(light, lobes=tuple(lobes(int(rng.integers(1, 3)), 4.0, (4, 12), -0.1, 0.5, -0.08)))
        lamp, power, soft = toward(0.0, 0.5, 3.4), rng.uniform(0.5, 1.5), rng.uniform(2.0, 4.0)
    elif kind == "room":
        light = Light(tone(rng.uniform(0.5, 1.0), 0.12), tone(rng.uniform(0.3, 0.6), 0.1), tone(0.3, 0.14))
        light = replace(light, lobes=tuple(lobes(int(rng.integers(2, 5)), 2.5, (10, 40), 0.5, 1.3, 0.15)))
        lamp, power, soft, tint = toward(0.5, 1.3), rng.uniform(0.2, 0.9), rng.uniform(1.5, 3.0), 0.14
    elif kind == "studio":
        light = Light(tone(0.3, 0), tone(rng.uniform(0.2, 0.5), 0), tone(rng.uniform(0.2, 0.6), 0))
        light = replace(light, lobes=tuple(lobes(2, 3.0, (5, 15), 0.1, 0.8, 0.0)))
        lamp, power, soft = toward(0.2, 0.8, 1.8), rng.uniform(0.7, 1.5), rng.uniform(1.5, 3.0)
    elif kind == "stage":
        light = Light(tone(0.08, 0), tone(0.08, 0), tone(0.05, 0))
        light = replace(light, lobes=tuple(lobes(int(rng.integers(1, 4)), 2.5, (8, 40), 0.2, 1.2, rng.normal(0, 0.3))))
        lamp, power, soft, tint = (
            toward(0.2, 1.1, 2.8),
            rng.uniform(1.0, 2.2),
            rng.uniform(0.8, 1.6),
            rng.normal(0.1, 0.15),
        )
    elif kind == "night":
        light = Light(tone(0.12, -0.1), tone(0.2, 0.1), tone(0.1, 0.1))
        light = replace(
            light, lobes=tuple(lobes(int(rng.integers(2, 6)), 3.0, (15, 80), -0.1, 0.8, rng.normal(0.15, 0.25)))
        )
        lamp, power, soft, tint = toward(0.0, 0.9, 3.2), rng.uniform(0.3, 1.2), 1.5, rng.normal(0.2, 0.2)
    else:
        light = Light(tone(0.2, 0.1), tone(0.2, 0.1), tone(0.15, 0.1))
        lamp, power, soft, tint = unit(rng.normal(0, 0.06), -0.12, -1), rng.uniform(1.0, 1.6), 0.8, 0.0
    dark = float(np.exp(rng.normal(-0.25, 0.3)))
    above, level, below = ((r * dark, g * dark, b * dark) for r, g, b in (light.above, light.level, light.below))
    light = replace(light, above=above, level=level, below=below)
    rim = lobes(1, 4.0, (10, 30), 0.0, 0.8, warm) if rng.random() < 0.25 else []
    rim = [replace(x, direction=(x.direction[0], x.direction[1], abs(x.direction[2]))) for x in rim]
    return replace(light, lobes=light.lobes + tuple(rim), lamp=lamp, power=float(power), soft=float(soft),
                   tint=tone(1.0, tint))  # fmt: skip


@lru_cache(maxsize=1)
def directions() -> Float:
    """(RINGS, 3) unit vectors, evenly spread and symmetric about x = 0."""
    half = RINGS // 2
    k = np.arange(RINGS) + 0.5
    y = 1 - 2 * k / RINGS
    turn = np.pi * (1 + 5**0.5) * k
    all_ = np.stack([np.sqrt(1 - y * y) * np.cos(turn), y, np.sqrt(1 - y * y) * np.sin(turn)], 1)
    right = all_[np.argsort(-all_[:, 0], kind="stable")][:half]
    return np.concatenate([right, right * [-1, 1, 1]]).astype(np.float32)


@lru_cache(maxsize=1)
def open_to() -> Float:
    """(V, RINGS) how far the average head's points see the sky in each direction, 0..1, times the solid angle / pi."""
    shared = anatomy()
    points = shared.shaped(average_adult())
    keep = shared.part[shared.triangles].max(1) < 2
    out = np.empty((len(points), RINGS), np.float32)
    normals = normals_of(points)
    for k, direction in enumerate(directions()):
        out[:, k] = Shadow(points, shared.triangles[keep], direction, 160, 4.0).lit(points + 1.2 * normals)
    out = ((out + np.roll(out[shared.mirror], RINGS // 2, 1)) / 2).astype(np.float32)
    ahead = np.clip(-1.6 * directions()[:, 2], 0, 1)  # a mouth that opens
    for part, share in ((TEETH, 0.75), (TONGUE, 0.5), (MOUTH, 0.16)):
        out[shared.part == part] = share * ahead
    return np.ascontiguousarray(spread(out) * np.float32(4 / RINGS))


@lru_cache(maxsize=1)
def open_share() -> Float:
    """(V,) how open the average head's points are, 0..1."""
    total = open_to().sum(1)
    return total / total.max()


def _cross(a: Float, b: Float) -> Float:
    """Of two vectors (3,); np.cross takes fifty times as long for them."""
    (ax, ay, az), (bx, by, bz) = a, b
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], np.float32)


class Shadow:
    """Where a far light comes from `direction` (camera or head frame, as the points are): a depth map seen from there.

    cell: mm a pixel. soft: blur of the edge, pixels.
    """

    def __init__(self, points: Float, triangles: NDArray[np.integer], direction: NDArray[np.floating], side: int = 96,
                 cell: float = 4.2, soft: float = 1.0) -> None:  # fmt: skip
        forward = -np.asarray(direction, np.float32)
        up = np.array([0.02, 1.0, 0.01] if abs(forward[1]) < 0.9 else [0.0, 0.1, 1.0], np.float32)
        across = _cross(forward, up)
        across = (across / np.linalg.norm(across)).astype(np.float32)
        view = np.stack([across, _cross(forward, across), forward])
        self.soft, self.side = soft, side
        middle = (points.cumsum(0)[-1] / np.float32(len(points))) @ view.T
        self.view = view * np.array([[1 / cell], [1 / cell], [1.0]], np.float32)
        self.shift = np.array([side / 2, side / 2, 5000], np.float32) - middle * np.array(
            [1 / cell, 1 / cell, 1], np.float32
        )
        seen = points @ self.view.T
        seen += self.shift
        self.depth = depth_map(seen[:, :2], seen[:, 2], triangles, side)

    def lit(self, points: Float) -> Float:
        """(N,) what share of the light reaches points (N, 3)."""
        look = np.ascontiguousarray((points @ self.view.T).T)
        look += self.shift[:, None]
        near = look[2] - np.float32(6.0)
        total = np.zeros(len(points), np.float32)
        for offset in ((-0.5, -0.2), (0.2, -0.5), (0.5, 0.2), (-0.2, 0.5)):
            at = look[:2] + (np.array(offset) * self.soft).astype(np.float32)[:, None]
            column, row = np.clip(at, 0, self.side - 1, out=at).astype(np.intp)
            row *= self.side
            row += column
            share = self.depth.take(row)
            share -= near
            share *= np.float32(0.25)
            total += np.clip(share, 0, 1, out=share)
        total *= np.float32(0.25)
        return total
