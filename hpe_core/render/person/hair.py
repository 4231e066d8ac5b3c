"""Hair and beards: strands that grow from a person's chart, are combed, fall, and stay outside of the head.

A strand is a ribbon of a few points that always faces the camera. Strands of one clump share length, curl and shade.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.render.light import Light
from hpe_core.render.person.anatomy import (
    AXIS_Z,
    CELL,
    CELL_COLS,
    CELL_ROWS,
    CHART_COLS,
    TURN_COLS,
    dot,
    smoothstep,
    unit,
)
from hpe_core.render.person.skin import beard_of, canvas, hair_depth, linear
from hpe_core.render.person.style import HeadStyle
from hpe_core.render.person.surface import Surface

Float = NDArray[np.float32]
DOWN = np.array([0.0, 1.0, 0.0], np.float32)


@dataclass(frozen=True, eq=False)
class Strands:
    """points (N, K, 3) mm, head frame; out (N, K, 3) the outward direction; width (N, K) mm; color (N, K, 3) linear,
    with the shade of what lies above."""

    points: Float
    out: Float
    width: Float
    color: Float

    def shown(self, xy: Float, z: Float, depth: Float) -> Strands:
        """Those of which a point, projected (N * K, 2) with depths (N * K,), lies in the picture and before `depth`."""
        kept = np.flatnonzero(_in_sight(xy, z, depth).reshape(self.width.shape).any(1))
        return Strands(*(part.take(kept, axis=0) for part in (self.points, self.out, self.width, self.color)))

    def ribbons(
        self, xy: Float, z: Float, scale: Float, lit: Float, depth: Float
    ) -> tuple[Float, Float, Float, NDArray[np.int32]]:
        """Projected points (N * K, 2), depths and pixels per mm (N * K,), colours (N * K, 3) and the depth of what is
        drawn so far -> edges, their depths and colours, triangles. A ribbon is one strip whose corners lie left and
        right in turn; points are put between the given ones, for short triangles are drawn fastest. What lies behind
        the head is left out."""
        n, k = self.width.shape
        half = np.float32(0.5) * self.width * scale.reshape(n, k)
        whole = np.concatenate([x.reshape(n, k, -1) for x in (xy, z, half, lit)], 2)
        reach = np.abs(whole[:, 1:, :2] - whole[:, :-1, :2]).mean()
        while reach > 9 and k < 40:
            whole, reach, k = _between(whole), reach / 2, 2 * k - 1
        seen = _in_sight(whole[..., :2], whole[..., 2], depth)
        shown = seen[:, :-2] | seen[:, 1:-1] | seen[:, 2:]
        kept = np.flatnonzero(shown.any(1))
        whole, shown, n = whole.take(kept, axis=0), shown.take(kept, axis=0), len(kept)
        line, z, half, lit = whole[..., :2], whole[..., 2], whole[..., 3], whole[..., 4:]
        along = _steps(line)
        half = half / (np.hypot(along[..., 0], along[..., 1]) + np.float32(1e-6))
        half[:, ::2] *= -1
        along *= half[..., None]
        edges = np.stack([line[..., 0] - along[..., 1], line[..., 1] + along[..., 0]], -1).reshape(-1, 2)
        lit = lit * np.where(np.arange(k) % 2, np.float32(1.08), np.float32(0.9))[:, None]
        first = (np.arange(n)[:, None] * k + np.arange(k - 2))[shown].astype(np.int32)
        return edges, z.ravel(), lit.reshape(-1, 3), first[:, None] + np.arange(3, dtype=np.int32)

    def shade(self, points: Float, out: Float, light: Light, shadow: Float) -> Float:
        """(N * K, 3) light off the hair: camera-frame points and outward directions, and how much of the lamp comes."""
        n, k = self.width.shape
        line = points.reshape(n, k, 3)
        along = unit(_steps(line).reshape(-1, 3))
        lamp = np.asarray(light.lamp, np.float32)
        half = unit(lamp - unit(points))
        across = np.sqrt(np.clip(1 - (along @ lamp) ** 2, 0, 1))
        facing = np.clip(0.35 + 0.65 * (out @ lamp), 0, 1) * shadow
        gleam = np.clip(1 - dot(along, half) ** 2, 0, 1) ** 30 * facing
        key = np.asarray(light.tint, np.float32) * np.float32(light.power)
        sky = light.radiance(out, 1.5)
        color = self.color.reshape(-1, 3)
        gleam *= ((color[:, 0] + color[:, 1] + color[:, 2]) / np.float32(3)) ** 0.5 * 0.4
        facing *= 0.35 + 0.65 * across
        lit = np.empty_like(color)
        for k in range(3):
            around = sky[:, k]
            plane = color[:, k] * (around * np.float32(0.9) + facing * key[k])
            np.add(plane, gleam * (0.5 * key[k] + 0.3 * around), out=lit[:, k])
        return lit


def _in_sight(xy: Float, z: Float, depth: Float) -> NDArray[np.bool_]:
    """(...) which points, pixels (..., 2) and depths (...), lie in the picture or near it, and not behind `depth`."""
    side, (x, y) = len(depth), (xy[..., axis] for axis in (0, 1))
    column, row = (np.clip(along, 0, side - 1).astype(np.intp) for along in (x, y))
    seen = z < depth.take(row * side + column) + 4
    for along in (x, y):
        seen &= np.abs(along - side / 2) < side / 2 + 12
    return seen


def _steps(line: Float) -> Float:
    """(N, K, D) the way from the point before to the point after."""
    out = np.empty_like(line)
    out[:, 1:-1], out[:, 0], out[:, -1] = line[:, 2:] - line[:, :-2], line[:, 1] - line[:, 0], line[:, -1] - line[:, -2]
    return out


def _between(line: Float) -> Float:
    """(N, K, D) with a point put between every two, on a smooth curve."""
    n, k, d = line.shape
    out = np.empty((n, 2 * k - 1, d), np.float32)
    out[:, ::2] = line
    middle = np.float32(0.5) * (line[:, 1:] + line[:, :-1])
    if k > 3:
        middle[:, 1:-1] += np.float32(1 / 16) * (line[:, 1:-2] + line[:, 2:-1] - line[:, :-3] - line[:, 3:])
    out[:, 1::2] = middle
    return out


def grow(style: HeadStyle, surface: Surface) -> list[Strands]:
    """This person's hair and beard."""
    rng = np.random.default_rng(np.random.SeedSequence([style.noise_seed, 1]))
    return [part for part in (_head_hair(style, surface, rng), _beard(style, surface, rng)) if part is not None]


def _by_cells(chart: Float) -> Float:
    return cv2.resize(chart, (CELL_COLS, CELL_ROWS), interpolation=cv2.INTER_AREA)


def _roots(
    rng: np.random.Generator, weight: Float, count: int, symmetric: bool
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Cells drawn with these odds."""
    total = np.cumsum(weight.ravel(), dtype=np.float64)
    draws = np.searchsorted(total, (np.arange(count) + rng.random(count)) / count * total[-1])
    rows, cols = np.unravel_index(np.minimum(draws, weight.size - 1), weight.shape)
    if symmetric:
        rows, cols = np.concatenate([rows, rows]), np.concatenate([cols, CELL_COLS - 1 - cols])
    return rows, cols


def _clumps(rng: np.random.Generator, rows: NDArray[np.intp], cols: NDArray[np.intp], clump: int, count: int) -> Float:
    """(count, N) standard normal lots that neighbours share, `clump` cells wide, the same on both sides of the head."""
    wide = CELL_COLS // clump + 1
    table = rng.standard_normal((count, (CELL_ROWS // clump + 1) * wide), dtype=np.float32)
    other = np.minimum(cols, CELL_COLS - 1 - cols)
    return table[:, rows // clump * wide + other // clump]


def _singles(rng: np.random.Generator, count: int, symmetric: bool) -> Float:
    """(6, count) standard normal lots of each strand, the same on both sides of a symmetric head."""
    single = rng.standard_normal((6, count), dtype=np.float32)
    return np.concatenate([single[:, : count // 2]] * 2, 1) if symmetric else single


PLANS = {  # strands, points, width in mm, clump in cells, lift from the skin, gravity, stiffness
    "crop": (900, 3, 1.7, 3, 1.0, 0.0, 0.9), "short": (900, 5, 2.5, 4, 0.55, 0.10, 0.7),
    "side": (800, 6, 2.8, 6, 0.6, 0.10, 0.6), "back": (800, 6, 2.8, 6, 0.6, 0.05, 0.6),
    "wavy": (850, 13, 4.6, 6, 0.5, 0.5, 0.5), "curly": (1000, 12, 3.8, 4, 0.9, 0.5, 0.5),
    "afro": (1300, 4, 4.0, 3, 1.2, 0.0, 1.0), "bob": (850, 10, 4.8, 6, 0.4, 0.7, 0.4),
    "long": (850, 13, 5.0, 6, 0.4, 0.7, 0.4), "bun": (650, 8, 3.2, 8, 0.2, 0.0, 0.3),
    "ponytail": (650, 8, 3.2, 8, 0.2, 0.0, 0.3),
}  # fmt: skip


def _head_hair(style: HeadStyle, surface: Surface, rng: np.random.Generator) -> Strands | None:
    if style.cut in ("bald", "shaved") or (style.hat in ("helmet", "hood", "scarf") and style.cut != "long"):
        return None
    count, steps, width, clump, lift, gravity, stiff = PLANS[style.cut]
    deep, turn = _by_cells(hair_depth(style)), _by_cells(canvas().turn)
    texel_row = CELL * np.arange(CELL_ROWS, dtype=np.float32)[:, None]
    area = np.where(texel_row < 114, np.sin(np.clip(texel_row, 4, 134) / 134 * np.pi / 2), 1.0)
    weight = (smoothstep(-1, 6, deep) * area * (texel_row < 226)).astype(np.float32)
    twice = (CHART_COLS - TURN_COLS) // 2 // CELL
    weight[:, :twice], weight[:, -twice:] = 0, 0
    front = smoothstep(40, 4, deep) * smoothstep(62, 50, turn)
    weight *= 1 + 0.8 * front
    if style.cut in ("bun", "ponytail"):
        weight *= (texel_row < 150) | (turn > 100)
    if style.hat != "none":
        weight *= smoothstep(118, 126, texel_row + 0.06 * turn)
    if style.symmetric:
        weight[:, CELL_COLS // 2 :] = 0
        count //= 2
    if weight.sum() <= 0:
        return None
    rows, cols = _roots(rng, weight, count, style.symmetric)
    n = len(rows)
    root, normal = surface.points[rows, cols], surface.normals[rows, cols]
    lots = _clumps(rng, rows, cols, clump, 5)
    single = _singles(rng, n, style.symmetric)
    side = np.where(cols < CELL_COLS / 2, -1.0, 1.0).astype(np.float32)
    layer = np.clip(0.5 + 0.28 * single[0], 0.05, 1).astype(np.float32)
    at_front = front[rows, cols]
    length = style.hair_length * np.exp(0.16 * lots[0] + 0.10 * single[1]) * _cut_length(style, root)
    fringe = (at_front > 0.25) & (style.fringe > 0) & (np.abs(root[:, 0]) < 48)
    length = np.where(fringe, np.clip(-14 - root[:, 1] + 14 * style.fringe, 18, 90) * np.exp(0.10 * lots[0]), length)
    fuller = {"curly": 2.2, "wavy": 1.4, "long": 1.2}.get(style.cut, 1.0)
    volume = fuller * style.hair_volume * (0.35 + 0.65 * smoothstep(0, 26, deep[rows, cols]))
    parting = 0.0 if style.symmetric else style.parting
    knot = np.array([0.0, -34.0 if style.cut == "bun" else -12.0, surface.points[60, 12, 2] + 6.0], np.float32)

    points = np.empty((n, steps, 3), np.float32)
    if style.cut == "afro":  # tufts on the coat that the figure wears
        place = root + normal * (0.62 * style.hair_length * smoothstep(2, 30, deep[rows, cols]))[:, None]
        length = 11 + 0.16 * length
    else:
        place = root + normal * 0.5
    points[:, 0] = place
    tied = style.cut in ("bun", "ponytail")
    if tied:
        length = np.linalg.norm(knot - root, axis=1) * 1.18
    step = (length / (steps - 1)).astype(np.float32)[:, None]
    heading = normal * lift
    jitter = single[2:5].T * np.float32(0.10) + np.clip(lots[1:4].T, -1.6, 1.6) * np.float32(0.12)
    jitter *= {"bun": 0.3, "ponytail": 0.3, "curly": 1.3, "long": 0.6, "bob": 0.6}.get(style.cut, 1.0)
    jitter[:, 0] *= np.where(style.symmetric, side, 1)
    hangs = style.cut in ("long", "wavy", "bob", "curly")
    for k in range(1, steps):
        combed = _comb(style, place, normal, side, parting, knot, fringe)
        away, height = surface.over(place)
        target = 1.0 + volume * layer * min(1.0, 0.4 + k / 4)
        heading = heading * np.float32(stiff) + combed + DOWN * np.float32(gravity) + jitter
        if style.cut != "afro":  # lie on the head, as far as the ears; what is below hangs
            lying = smoothstep(60, 10, place[:, 1]) if hangs else np.ones(n, np.float32)
            rise = (heading * away).sum(1) - np.clip((target - height) / (step[:, 0] + 4), -0.8, 0.8)
            heading = heading - away * (lying * rise * (0.35 if style.cut in ("curly", "crop") else 0.85))[:, None]
        heading = unit(heading.astype(np.float32))
        moved = surface.outside(place + heading * step, np.minimum(target, 0.5 + 2.0 * k)) - place
        far = np.sqrt(dot(moved, moved))[:, None]  # a push out of the shoulders must not throw it
        place = place + moved * np.minimum(1, 1.6 * step / (far + np.float32(1e-6)))
        if style.cut == "afro":
            heading = heading + single[2:5].T * (0.9 * (-1) ** k * np.stack([side, 1 + 0 * side, 1 + 0 * side], 1))
        points[:, k] = place
    if style.curl > 0.05:
        points = _curl(style, points, lots, single, side, length)
    if tied:
        points = np.concatenate([points, _tail(style, knot, rng, 220 if style.cut == "bun" else 160, steps, surface)])
        n, rows = len(points), np.concatenate([rows, np.zeros(len(points) - n, np.intp)])
        single = np.concatenate([single, rng.standard_normal((6, n - single.shape[1]), dtype=np.float32)], 1)
        lots = np.concatenate([lots, single[:5, lots.shape[1] :]], 1)
        layer = np.concatenate([layer, np.clip(0.6 + 0.3 * single[0, len(layer) :], 0.1, 1)])
    return _finish(style, points, layer, lots[4], single[5], width)


def _cut_length(style: HeadStyle, root: Float) -> Float:
    """Share of the length at each root: sides and nape of short hair are shorter."""
    if (style.cut in ("short", "side", "back", "curly") and style.female < 0.5) or style.cut in ("crop", "side"):
        return np.interp(root[:, 1], [-90, -40, -5, 60], [1.0, 0.85, 0.42, 0.22]).astype(np.float32)
    if style.cut == "bob":
        return np.interp(root[:, 1], [-90, 0, 60], [1.15, 0.75, 0.35]).astype(np.float32)
    if style.cut in ("long", "wavy"):
        return np.interp(root[:, 1], [-90, 60], [1.1, 0.75]).astype(np.float32)
    return np.ones(len(root), np.float32)


def _comb(
    style: HeadStyle, place: Float, normal: Float, side: Float, parting: float, knot: Float, fringe: NDArray[np.bool_]
) -> Float:
    """(N, 3) where the comb leads a strand at `place`."""
    out = np.zeros_like(place)
    if style.cut in ("bun", "ponytail"):
        way = knot - place
        return way / (np.sqrt((way**2).sum(1, keepdims=True)) + np.float32(8))
    if style.cut == "afro":
        out += 0.5 * normal
    elif style.cut in ("long", "bob", "wavy", "side", "curly"):
        if style.symmetric:
            left = side
        elif style.cut == "side":
            left = np.full(len(place), np.sign(-parting) or 1.0)
        else:
            left = np.sign(place[:, 0] - 38 * parting)
        top = smoothstep(-10, -60, place[:, 1])
        out[:, 0] = 0.9 * left * top
        out[:, 1] = 0.5 * (1 - top)
        out[:, 2] = 0.35 * top * (style.cut != "side") + 0.25 * (place[:, 2] < -20) * (1 - top)
    elif style.cut == "back":
        out[:, 2], out[:, 1] = 0.9, 0.25 + 0.5 * (place[:, 2] > 60)
    else:  # from the whorl forward and down
        way = place - np.array([0.0, -96.0, 62.0], np.float32)
        out += 0.9 * way / (np.sqrt((way**2).sum(1, keepdims=True)) + np.float32(1e-6))
        out[:, 0] += 0.35 * parting * smoothstep(-20, -70, place[:, 1])
    face = (place[:, 2] < -35) & (place[:, 1] > -58) & ~fringe
    out[face, 0] += 1.3 * np.where(np.abs(place[face, 0]) > 3, np.sign(place[face, 0]), side[face])
    out[face, 2] += 0.5
    if fringe.any():
        out[fringe] = np.array([0.0, 0.55, -0.75], np.float32)
        out[fringe, 0] = 0.25 * parting
    return out.astype(np.float32)


def _curl(style: HeadStyle, points: Float, lots: Float, single: Float, side: Float, length: Float) -> Float:
    """Strands wound round their own line."""
    k = points.shape[1]
    s = np.linspace(0, 1, k, dtype=np.float32)[None]
    wave = {"afro": 22.0, "curly": 30.0, "wavy": 75.0}.get(style.cut, 60.0)
    size = style.curl * {"afro": 6.0, "curly": 9.0, "wavy": 9.0}.get(style.cut, 5.0)
    phase = lots[3][:, None] * 2 + 0.3 * single[4][:, None] + 2 * np.pi * (length[:, None] / wave) * s
    wound = np.stack([np.cos(phase), 0.5 * np.sin(2 * phase), np.sin(phase)], -1)
    sway = wound * (size * np.minimum(2.5 * s, 1))[..., None]
    if style.symmetric:
        sway[..., 0] *= side[:, None]
    return (points + sway).astype(np.float32)


def _tail(style: HeadStyle, knot: Float, rng: np.random.Generator, count: int, steps: int, surface: Surface) -> Float:
    """A bun wound round the knot, or a tail that falls from it."""
    lots = rng.standard_normal((count, 6)).astype(np.float32)
    s = np.linspace(0, 1, steps, dtype=np.float32)[None, :, None]
    if style.cut == "bun":
        a, b = np.linalg.qr(lots.reshape(count, 3, 2))[0].transpose(2, 0, 1)
        size = (17 + 0.9 * style.hair_volume) * (0.75 + 0.25 * rng.random((count, 1, 1)))
        angle = 2.4 * s * np.pi / 2 + lots[:, None, :1]
        ball = size * (np.cos(angle) * a[:, None] + np.sin(angle) * b[:, None])
        return (knot + np.array([0, 0, 0.8 * (17 + 0.9 * style.hair_volume)]) + ball).astype(np.float32)
    length = (110 + 2.2 * style.hair_length) * (1 + 0.12 * lots[:, None, 3:4])
    spread_ = (8 + 16 * np.sin(np.pi * np.minimum(s * 1.1, 1))) * lots[:, None, :3] * 0.55
    s = s + 0 * length
    down, back = np.maximum(s * length - 18, 0) - 10 * np.sin(np.pi * s), 26 * np.sqrt(np.minimum(s * 4, 1)) + 10 * s
    fall = np.concatenate([0 * s, down, back], -1)
    return surface.outside((knot + fall + spread_).astype(np.float32), 6.0)


def _finish(style: HeadStyle, points: Float, layer: Float, clump: Float, single: Float, width: float) -> Strands:
    k = points.shape[1]
    s = np.linspace(0, 1, k, dtype=np.float32)[None]
    out = points - np.array([0.0, -15.0, AXIS_Z + 8.0], np.float32)
    out[..., 1] *= 0.75
    out /= np.sqrt((out**2).sum(-1, keepdims=True)) + np.float32(1e-6)
    base = linear(style.hair_color)
    shade = (0.58 + 0.52 * layer) * np.exp(0.13 * clump.astype(np.float64) + 0.16 * single).astype(np.float32)
    streak = np.clip(single * 0.5 + clump * 0.5, -1, 1.5)[:, None] * np.array([0.04, 0.02, 0.0], np.float32)
    color = base * (1 + streak) * shade[:, None]
    if style.grey:
        white = single > 1.2 - 2 * style.grey
        color = np.where(white[:, None], color * 0.5 + 0.25 * style.grey, color)
    tip = 0.72 + 0.36 * np.sqrt(s)
    widths = 1.3 * width * (1.35 - 0.75 * layer)[:, None] * (1 - 0.85 * s**3) * (0.45 + 0.55 * np.minimum(5 * s, 1))
    return Strands(points, out, widths.astype(np.float32), (color[:, None] * tip[..., None]).astype(np.float32))


def _beard(style: HeadStyle, surface: Surface, rng: np.random.Generator) -> Strands | None:
    if style.beard < 3 or style.mask:
        return None
    lip_hair = _by_cells(canvas().lip_hair)
    weight = _by_cells(beard_of(style)) + 0.8 * style.moustache * lip_hair
    if style.symmetric:
        weight = weight * (np.arange(CELL_COLS) < CELL_COLS / 2)
    rows, cols = _roots(rng, weight.astype(np.float32), 1100, style.symmetric)
    root, normal = surface.points[rows, cols], surface.normals[rows, cols]
    single = _singles(rng, len(rows), style.symmetric)
    lip = lip_hair[rows, cols] > 0.3
    below = style.beard * (0.45 + 0.55 * smoothstep(70, 105, root[:, 1]))
    length = np.where(lip, min(style.beard, 7.0), below) * np.exp(0.2 * single[1])
    heading = 0.5 * normal + DOWN * 0.9 + single[2:5].T * 0.15
    heading[:, 0] += np.where(lip, 0.5 * np.sign(root[:, 0]), 0)
    heading /= np.sqrt((heading**2).sum(1, keepdims=True))
    s = np.linspace(0, 1, 3, dtype=np.float32)
    points = root[:, None] + heading[:, None] * (length[:, None] * s)[..., None] + normal[:, None] * 0.5
    layer = np.clip(0.5 + 0.25 * single[0], 0.1, 1).astype(np.float32)
    return _finish(style, points.astype(np.float32), layer, single[5] * 0.3, 0.6 * single[5], 0.95)
