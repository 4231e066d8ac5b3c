"""Light: a map of the surroundings, what of it reaches each point of the head, and one lamp with shadows.

The map is painted for each picture: a sky and a ground or the walls of a room, the darker side of a street or a room,
windows, soft boxes and bulbs, and behind the head what the picture shows behind it. It is sampled in RINGS directions;
which of these a point of the average head sees is worked out once a process, so an irradiance with all self-shadowing
is one product of matrices. A mirror with some gloss sees the map blurred by that gloss. Functions are
taken of float64: NumPy's of float32 give other bits with AVX-512 than without.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.render.person.anatomy import MOUTH, TEETH, TONGUE, anatomy, average_adult, normals_of, smoothstep, spread
from hpe_core.render.raster import depth_map

Float = NDArray[np.float32]
RGB = tuple[float, float, float]
Direction = tuple[float, float, float]

RINGS = 64  # directions
ROWS, COLS = 16, 32  # cells of a map, all of the same solid angle


@lru_cache(maxsize=1)
def cells() -> Float:
    """(ROWS, COLS, 3) where the cells of a map lie: the first row above, the middle columns toward the camera."""
    down = (np.arange(ROWS)[:, None] + 0.5) / ROWS * 2 - 1
    around = ((np.arange(COLS) + 0.5) / COLS * 2 - 1) * np.pi
    level = np.sqrt(1 - down * down)
    out = np.stack([level * np.sin(around), down + 0 * around, -level * np.cos(around)], -1)
    return out.astype(np.float32)


@lru_cache(maxsize=8)
def _seen_with(gloss: float) -> Float:
    """(cells, cells) what share of each cell a mirror sees round each."""
    at = cells().reshape(-1, 3)
    share = np.exp((np.float32(gloss) * (at @ at.T - 1)).astype(np.float64))
    return np.asarray(share / share.sum(1, keepdims=True), np.float32)


def horizon(above: RGB = (0.9, 0.9, 0.9), level: RGB = (0.7, 0.7, 0.7), below: RGB = (0.4, 0.4, 0.4)) -> Float:
    """(ROWS, COLS, 3) a sky that changes toward the horizon, over a ground."""
    up = -cells()[..., 1:2]
    sky, ground, line = (np.asarray(c, np.float32) for c in (above, below, level))
    return line + np.maximum(up, 0) * (sky - line) + np.clip(up * 3, -1, 0) * (line - ground)


@dataclass(frozen=True, eq=False)
class Light:
    """Everything that lights a scene; directions point to the light, in the camera frame (x right, y down, z away).

    around: (ROWS, COLS, 3) radiance of the surroundings. lamp: direction of the light that casts shadows; its
    irradiance is `power` times `tint`. soft: blur of its shadows' edge, pixels of the shadow map. behind: a factor on
    the brightness of the picture's background.
    """

    around: Float = field(default_factory=horizon)
    lamp: Direction = (-0.3, -0.6, -0.75)
    tint: RGB = (1.0, 1.0, 1.0)
    power: float = 1.0
    soft: float = 1.5
    behind: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lamp", unit(*self.lamp))

    def before(self, background: Float) -> Light:
        """With the picture's background (H, H, 3) behind the head, where it is brighter than what was painted there."""
        small = cv2.resize(background, (8, 8), interpolation=cv2.INTER_AREA)
        x, y, z = (cells()[..., k] for k in range(3))
        seen = cv2.remap(small, 3.5 + 5 * x, 3.5 + 5 * y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        share = smoothstep(0.3, 0.8, z)[..., None]
        return replace(self, around=self.around + share * np.maximum(seen - self.around, 0))

    def radiance(self, directions: Float, gloss: float = 16.0) -> Float:
        """(N, 3) from unit directions (N, 3); `gloss` is the sharpness of the mirror that looks at it."""
        seen = (_seen_with(gloss) @ self.around.reshape(-1, 3)).reshape(ROWS, COLS, 3)
        seen = np.concatenate([seen[:, -1:], seen, seen[:, :1]], 1)
        around = np.arctan2(directions[:, 0].astype(np.float64), -directions[:, 2])
        column = (around * (COLS / (2 * np.pi)) + (COLS / 2 + 0.5)).astype(np.float32)
        row = directions[:, 1] * np.float32(ROWS / 2)
        row += np.float32(ROWS / 2 - 0.5)
        count = len(directions)
        whole = -(-count // COLS), COLS  # OpenCV takes no long column
        found = cv2.remap(
            seen, np.resize(column, whole), np.resize(row, whole), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return found.reshape(-1, 3)[:count]


def unit(x: float, y: float, z: float) -> Direction:
    n = float(np.sqrt(x * x + y * y + z * z)) or 1.0
    return (x / n, y / n, z / n)


def aimed(around: float, height: float) -> Direction:
    """Radians to the right of the camera and above it."""
    return unit(np.sin(around) * np.cos(height), -np.sin(height), -np.cos(around) * np.cos(height))


class _Painter:
    """Paints over a map. Angles are radians, colours linear."""

    map: Float

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def tone(self, level: float, warmth: float) -> RGB:
        c = level * np.array([1 + warmth, 1.0, 1 - warmth]) * np.exp(self.rng.normal(0, 0.02, 3))
        return (float(c[0]), float(c[1]), float(c[2]))

    def mix(self, color: RGB, share: NDArray[np.floating]) -> None:
        self.map += share[..., None].astype(np.float32) * (np.asarray(color, np.float32) - self.map)

    def panel(self, at: Direction, wide: float, high: float, color: RGB) -> None:
        """A window or a soft box: as wide and as high as seen from the head."""
        x, y, z = np.moveaxis(cells().astype(np.float64), 2, 0)
        away = np.arctan2(x, -z) - np.arctan2(at[0], -at[2])
        away = np.abs((away + np.pi) % (2 * np.pi) - np.pi) * np.sqrt(1 - y * y)
        height = np.abs(np.arcsin(np.clip(y, -1, 1)) - np.arcsin(np.clip(at[1], -1, 1)))
        edge = 1.2 / ROWS
        share = smoothstep(edge, -edge, away - wide / 2) * smoothstep(edge, -edge, height - high / 2)
        self.mix(color, share)

    def glow(self, at: Direction, sharpness: float, color: RGB) -> None:
        """A bulb, or the haze round the sun."""
        shape = np.exp(sharpness * (cells().astype(np.float64) @ np.asarray(at) - 1))
        self.map += shape[..., None].astype(np.float32) * np.asarray(color, np.float32)

    def side(self, around: float, color: RGB, tall: float) -> None:
        """Walls or trees over one side of the horizon, up to an elevation whose sine is `tall`."""
        x, y, z = (cells()[..., k] for k in range(3))
        toward = x * np.sin(around) - z * np.cos(around)
        self.mix(color, smoothstep(-0.2, 0.4, toward) * smoothstep(tall + 0.1, tall - 0.1, -y))

    def uneven(self, amount: float) -> None:
        """Things of all sizes stand around."""
        lots = self.rng.standard_normal((6, 8, 3))
        lots = cv2.resize(0.85 * lots[..., :1] + 0.15 * lots, (COLS, ROWS), interpolation=cv2.INTER_CUBIC)
        self.map *= np.exp(amount * lots).astype(np.float32)


KINDS = {"sun": 0.14, "shade": 0.17, "window": 0.19, "room": 0.13, "studio": 0.14, "dark": 0.12, "night": 0.05,
         "flash": 0.06}  # fmt: skip


def draw_light(rng: np.random.Generator, kind: str = "") -> Light:
    """Outdoors in sun or shade, rooms with windows or lamps, a studio, one lamp in the dark, a street at night, a
    flash: one of KINDS, drawn unless it is named."""
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    paint = _Painter(rng)
    warm, tone = rng.normal(0, 0.06), paint.tone

    def toward(low: float, high: float, wide: float) -> Direction:
        """A direction at an elevation between two, not often from behind."""
        return aimed(rng.normal(0, wide / 2.2), rng.uniform(low, high))

    def anywhere(low: float, high: float) -> Direction:
        return aimed(rng.uniform(-np.pi, np.pi), rng.uniform(low, high))

    lamp, tint, behind = toward(0.0, 0.9, 2.6), warm, 1.0
    if kind == "sun":
        sky = rng.uniform(0.25, 0.8)
        paint.map = horizon(tone(sky * 0.8, -0.2), tone(sky, -0.06), tone(sky * rng.uniform(0.3, 0.9), 0.06))
        lamp, power, soft, tint = toward(0.3, 1.2, 2.8), rng.uniform(0.9, 2.4), rng.uniform(0.6, 1.4), 0.05
        paint.glow(lamp, 8.0, tone(0.6 * sky, 0.05))
    elif kind == "shade":
        sky = rng.uniform(0.7, 1.2)
        paint.map = horizon(tone(sky, -0.06), tone(sky * rng.uniform(0.4, 0.9), 0), tone(rng.uniform(0.1, 0.5), 0.05))
        paint.side(rng.uniform(-np.pi, np.pi), tone(sky * rng.uniform(0.02, 0.3), 0.05), rng.uniform(0.2, 1.1))
        power, soft = rng.uniform(0, 0.4), 3.0
    elif kind == "window":
        level = rng.uniform(0.04, 0.35)
        paint.map = horizon(tone(level, 0.08), tone(level * rng.uniform(0.6, 1.2), 0.08), tone(level * 0.7, 0.1))
        lamp, power, soft = toward(0.0, 0.45, 3.2), rng.uniform(0.6, 1.5), rng.uniform(2.0, 4.0)
        paint.panel(lamp, rng.uniform(0.4, 1.4), rng.uniform(0.6, 1.4), tone(rng.uniform(1.5, 4), -0.08))
        if rng.random() < 0.4:
            paint.panel(anywhere(0, 0.4), rng.uniform(0.3, 1), rng.uniform(0.5, 1.2), tone(rng.uniform(1, 3), -0.08))
    elif kind == "room":
        level = rng.uniform(0.25, 0.8)
        paint.map = horizon(tone(level, 0.12), tone(level * rng.uniform(0.4, 0.9), 0.1), tone(level * 0.5, 0.14))
        for _ in range(int(rng.integers(2, 5))):
            paint.glow(anywhere(0.5, 1.3), rng.uniform(10, 40), tone(rng.uniform(1, 4), 0.15))
        lamp, power, soft, tint = toward(0.5, 1.3, 2.6), rng.uniform(0.2, 0.9), rng.uniform(1.5, 3.0), 0.14
    elif kind == "studio":
        level = float(np.exp(rng.uniform(np.log(0.03), np.log(0.5))))
        paint.map = horizon(tone(level, 0), tone(level, 0), tone(level, 0))
        lamp, power, soft = toward(0.1, 0.8, 2.2), rng.uniform(0.7, 1.5), rng.uniform(1.5, 3.0)
        paint.panel(lamp, rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.0), tone(rng.uniform(1.5, 5), 0))
        paint.panel(anywhere(0, 0.8), rng.uniform(0.3, 1.0), rng.uniform(0.4, 1.2), tone(rng.uniform(0.5, 3), 0))
        behind = float(rng.choice([0.15, 1.0, 2.0], p=[0.35, 0.4, 0.25]))
    elif kind == "dark":
        level = float(np.exp(rng.uniform(np.log(0.01), np.log(0.1))))
        tint = rng.normal(0.06, 0.12)
        paint.map = horizon(tone(level, 0), tone(level, tint), tone(0.6 * level, tint))
        lamp, power, soft = toward(-0.1, 1.1, 3.2), rng.uniform(0.8, 1.8), rng.uniform(0.8, 3.0)
        paint.glow(lamp, 12.0, tone(1.0, tint))
        if rng.random() < 0.4:
            paint.glow(anywhere(0, 1), rng.uniform(8, 40), tone(rng.uniform(0.5, 2.5), rng.normal(0, 0.3)))
        behind = float(np.exp(rng.uniform(np.log(0.02), np.log(0.6))))
    elif kind == "night":
        paint.map = horizon(tone(0.06, -0.1), tone(0.15, 0.1), tone(0.06, 0.1))
        for _ in range(int(rng.integers(2, 6))):
            paint.glow(anywhere(-0.1, 0.8), rng.uniform(15, 60), tone(rng.uniform(1, 4), rng.normal(0.15, 0.25)))
        lamp, power, soft, tint = toward(0.0, 0.9, 3.2), rng.uniform(0.3, 1.2), 1.5, rng.normal(0.2, 0.2)
        behind = float(rng.uniform(0.1, 0.7))
    else:  # flash
        level = rng.uniform(0.05, 0.3)
        paint.map = horizon(tone(level, 0.1), tone(level, 0.1), tone(level, 0.1))
        lamp, power, soft, tint = unit(rng.normal(0, 0.06), -0.12, -1), rng.uniform(1.0, 1.6), 0.8, 0.0
        behind = float(rng.uniform(0.1, 0.8))
    paint.uneven(0.25)
    paint.map *= np.float32(np.exp(rng.normal(-0.25, 0.3)))
    if rng.random() < 0.25:  # a rim of light
        x, y, z = anywhere(0.0, 0.8)
        paint.glow((x, y, abs(z)), rng.uniform(10, 30), tone(rng.uniform(1.5, 6), warm))
    return Light(paint.map, lamp, tone(1.0, tint), float(power), float(soft), behind)


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
    return np.ascontiguousarray(spread(out) * (1 - nostrils()[:, None]) * np.float32(4 / RINGS))


@lru_cache(maxsize=1)
def nostrils() -> Float:
    """(V,) how deep in a nostril the points lie, 0..1. The shadow maps are too coarse for them."""
    points = anatomy().shaped(average_adult())
    away = (np.abs(points[:, 0]) - 8.5) / 5, (points[:, 1] - 37.5) / 3.5, (points[:, 2] + 99.0) / 5.5
    return np.asarray(0.85 * smoothstep(1.1, 0.5, np.sqrt(sum(a * a for a in away))), np.float32)


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
        scale = np.array([1 / cell, 1 / cell, 1], np.float32)
        self.view = view * scale[:, None]
        self.shift = np.array([side / 2, side / 2, 5000], np.float32) - middle * scale
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
