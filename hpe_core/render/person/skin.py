"""The atlas: what colour a person's skin, brows, scalp, clothes and eyes have. Linear light, on the shared chart.

Masks that all persons share (lips, lids, the hairline, where a beard grows) are made once a process from the average
adult's chart; a person mixes them with noise that is drawn once, too, and shifted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.render.person.anatomy import (
    ATLAS_ROWS,
    CHART_COLS,
    CHART_ROWS,
    PATCH,
    TURN_COLS,
    anatomy,
    average_adult,
    smoothstep,
    wrapped,
)
from hpe_core.render.person.style import RGB, HeadStyle
from hpe_core.render.raster import Frame

Float = NDArray[np.float32]

# The hairline: degrees round from the nose, and the chart's row.
HAIRLINE = np.array(
    [[0, 84], [16, 83], [30, 84], [44, 92], [54, 106], [60, 128], [66, 152], [72, 166], [79, 166], [84, 140],
     [104, 136], [111, 160], [120, 196], [140, 212], [160, 218], [200, 220]]
)  # fmt: skip
FACE = (slice(96, 268), slice(146, 366))  # the rows and columns of the chart that hold the face


def linear(color: RGB) -> Float:
    """sRGB in 0..1 -> linear light."""
    return np.asarray(np.asarray(color, np.float64) ** 2.2, np.float32)


@dataclass(frozen=True, eq=False)
class Canvas:
    """What is known of each texel. x, y: mm on the average adult. turn: degrees round from the nose. hair: rows
    above the hairline (more is deeper in the hair). brow: (along 0..1, mm off its middle) of the nearer brow. lid,
    lips: mm outside of the opening of the eyes and of the red of the lips, negative inside. ear: 1 on the ears. beard:
    where one grows. noises: fields of (CHART_ROWS, CHART_COLS) with unit deviation, coarse to fine.
    forward: how much more the front of the face shines. face: places of the face, on its rows and columns only."""

    x: Float
    y: Float
    turn: Float
    hair: Float
    brow: tuple[Float, Float]
    lid: Float
    upper: Float
    lips: Float
    crease: Float
    ear: Float
    beard: Float
    lip_hair: Float
    noises: tuple[Float, ...]
    forward: Float
    face: dict[str, Float]


@lru_cache(maxsize=1)
def canvas() -> Canvas:
    shared = anatomy()
    chart = wrapped(fill(shared.chart, np.asarray(shared.chart.any(2))))
    x, y, z = (np.ascontiguousarray(chart[..., k]) for k in range(3))
    rows, cols = np.mgrid[:CHART_ROWS, :CHART_COLS].astype(np.float32)
    turn = np.abs((cols + 0.5 - CHART_COLS / 2) * 360 / TURN_COLS).astype(np.float32)
    hair = np.interp(turn, HAIRLINE[:, 0], HAIRLINE[:, 1]).astype(np.float32) - rows
    marks = shared.landmarks_of(shared.uv.astype(np.float64)).astype(np.float32)

    def distance(ring: NDArray[np.intp]) -> Float:
        """Texels outside of a smooth closed curve through landmarks; negative inside."""
        mask = np.zeros((CHART_ROWS, CHART_COLS), np.uint8)
        line = _smooth(marks[ring])
        cv2.fillPoly(mask, [np.round(line * 16).astype(np.int32)], 1, shift=4)
        return cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3) - cv2.distanceTransform(mask, cv2.DIST_L2, 3)

    eyes = np.minimum(distance(np.arange(36, 42)), distance(np.arange(42, 48)))
    middle_row = np.where(cols < CHART_COLS / 2, marks[[36, 39], 1].mean(), marks[[42, 45], 1].mean())
    lips = distance(np.arange(48, 60))
    seam = np.interp(cols[0], marks[[48, 60, 61, 62, 63, 64, 54], 0],
                     (marks[[48, 60, 61, 62, 63, 64, 54], 1] + marks[[48, 60, 67, 66, 65, 64, 54], 1]) / 2)  # fmt: skip
    along, off = _along_brow(rows, cols, marks)
    ears = np.zeros(len(shared.points), np.float32)
    for side in "lr":
        at, by = shared.shapes[f"ears/{side}-ear-scale-incr"]
        ears[at] = smoothstep(0.25, 0.5, np.abs(by).max(1) / np.abs(by).max())
    ear = _rasterised(ears)
    jaw_turn = np.abs((marks[8::-1, 0] - CHART_COLS / 2) * 360 / TURN_COLS)
    jaw_low = np.interp(turn, jaw_turn, marks[8::-1, 1] + 9).astype(np.float32)
    jaw_line = np.interp(turn, [0, 24, 40, 60, 74, 84, 95], [150, 202, 206, 200, 168, 160, 170]).astype(np.float32)
    beard = smoothstep(-4, 18, rows - jaw_line) * smoothstep(92, 80, turn) * smoothstep(5, -7, rows - jaw_low)
    beard *= smoothstep(0.5, 4.0, lips) * smoothstep(196, 206, rows)  # below the nose
    beard = np.maximum(beard, smoothstep(3, 0, np.abs(turn - 76)) * smoothstep(160, 166, rows) * (rows < 215) * 0.9)
    lip_hair = smoothstep(5, 1, np.abs(rows - 209 - 0.06 * turn)) * smoothstep(24, 17, turn) * smoothstep(0.5, 3, lips)
    rng = np.random.default_rng(20261128)
    forward = (0.8 + 0.2 * smoothstep(-60, -110, z)).astype(np.float32)
    return Canvas(x, y, turn, hair, (along, off), eyes, (rows - middle_row).astype(np.float32), lips,
                  np.abs(rows - seam[None]).astype(np.float32), ear, (beard * (1 - ear)).astype(np.float32),
                  lip_hair.astype(np.float32), tuple(_noise(rng, cells) for cells in (10, 32, 90, 260)),
                  forward, _places(x, y, z, eyes, rows - middle_row))  # fmt: skip


def fill(chart: Float, known: NDArray[np.bool_]) -> Float:
    """The chart with every unknown texel like the nearest known one."""
    _, label = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    where = np.zeros(label.max() + 1, np.int64)
    where[label[known]] = np.flatnonzero(known.ravel())
    return chart.reshape(-1, chart.shape[2])[where[label]]


def _rasterised(values: Float) -> Float:
    shared = anatomy()
    points = shared.shaped(average_adult())
    frame = Frame.empty(max(CHART_ROWS, CHART_COLS))
    out = np.hypot(points[:, 0], points[:, 2])
    frame.draw(shared.uv, 1000 - out, shared.skin, np.repeat(values[:, None], 3, 1), "both")
    return np.ascontiguousarray(frame.color[:CHART_ROWS, :CHART_COLS, 0])


def _places(x: Float, y: Float, z: Float, lid: Float, upper: NDArray[np.floating]) -> dict[str, Float]:
    w = FACE
    x, y, z, lid = np.abs(x[w]), y[w], z[w], lid[w]
    front = smoothstep(-30, -60, z)

    def spot(px: float, py: float, wide: float, high: float) -> NDArray[np.floating]:
        return np.exp(-(((x - px) / wide) ** 2) - ((y - py) / high) ** 2) * front

    cheek, nose = spot(42, 42, 17, 17), spot(0, 38, 13, 11)
    forehead = smoothstep(-28, -38, y) * smoothstep(-72, -60, y) * smoothstep(50, 30, x) * front
    folds = np.exp(-(((x - 20 - 0.42 * (y - 40)) / 2.2) ** 2)) * smoothstep(40, 50, y) * smoothstep(82, 70, y) * front
    oily = 0.5 * nose + 0.25 * smoothstep(-22, -28, y) - 0.25 * cheek
    flush = 0.8 * cheek + nose + 0.4 * spot(0, 98, 16, 10)
    found = {"front": front, "cheek": cheek, "nose": nose, "flush": flush, "under": spot(31, 13, 13, 6),
             "socket": smoothstep(9, 1, lid) * smoothstep(3, -3, upper[w]), "forehead": forehead, "folds": folds,
             "feet": spot(57, 2, 7, 12), "oily": oily}  # fmt: skip
    return {name: place.astype(np.float32) for name, place in found.items()}


def _smooth(ring: Float) -> Float:
    """A closed Catmull-Rom curve, six points for each."""
    p = [np.roll(ring, k, 0)[:, None] for k in (1, 0, -1, -2)]
    t = np.linspace(0, 1, 6, endpoint=False)[None, :, None]
    curve = p[1] + 0.5 * t * (
        p[2] - p[0] + t * (2 * p[0] - 5 * p[1] + 4 * p[2] - p[3] + t * (3 * (p[1] - p[2]) + p[3] - p[0]))
    )
    return curve.reshape(-1, 2)


def _along_brow(rows: Float, cols: Float, marks: Float) -> tuple[Float, Float]:
    """(along, off): 0 at the inner end of the nearer brow, 1 at its outer end; texels below its middle line."""
    left = cols < CHART_COLS / 2
    inner = np.where(left, marks[21, 0], marks[22, 0])
    outer = np.where(left, marks[17, 0], marks[26, 0])
    along = (cols - inner) / (outer - inner)
    line = np.interp(cols[0], marks[17:27, 0], marks[17:27, 1])
    return along.astype(np.float32), (rows - line[None] - 1.5).astype(np.float32)


def _noise(rng: np.random.Generator, cells: int) -> Float:
    field = rng.standard_normal((cells * CHART_ROWS // CHART_COLS + 2, cells), dtype=np.float32).astype(np.float64)
    field = cv2.resize(field, (CHART_COLS, CHART_ROWS), interpolation=cv2.INTER_CUBIC)
    return np.asarray(field / field.std(), np.float32)


class Noise:
    """The shared noise as one person has it: shifted by lots, or mirrored onto itself for a symmetric one."""

    def __init__(self, style: HeadStyle) -> None:
        self.rng = np.random.default_rng(style.noise_seed)
        self.symmetric = style.symmetric

    def field(self, level: int) -> Float:
        """0 is coarsest."""
        source = canvas().noises[level]
        dy, dx = int(self.rng.integers(CHART_ROWS)), int(self.rng.integers(CHART_COLS))
        out = np.roll(source, (dy, dx), (0, 1))
        return (out + out[:, ::-1]) * np.float32(0.707) if self.symmetric else out


def paint(style: HeadStyle) -> Float:
    """(ATLAS_ROWS, CHART_COLS, 4): linear colour, and how much the surface shines."""
    c, noise = canvas(), Noise(style)
    planes = np.zeros((4, ATLAS_ROWS, CHART_COLS), np.float32)  # one after the other is faster than side by side
    skin = planes[:, :CHART_ROWS]
    coarse, middle, fine, finest = (noise.field(k) for k in range(4))
    level = 1 + 0.03 * style.blotches * (coarse + middle) + 0.02 * fine + 0.015 * finest
    for plane, part in zip(skin[:3], linear(style.skin), strict=True):
        np.multiply(level, part, out=plane)
    skin[3] = style.shine * c.forward
    _complexion(style, skin, middle, fine, finest)
    _beard(style, skin, fine, finest)
    _scalp(style, skin, fine, finest)
    _brows_lips_lids(style, skin, fine, finest)
    _clothes(style, skin, middle, fine)
    if style.hat in ("scarf", "hood"):
        _blend(skin[:3], linear(style.hat_color) * 0.8, _covered())
    np.clip(planes, 0.002, 3.0, out=planes)
    atlas = cv2.merge(list(planes))
    _patches(style, atlas[CHART_ROWS:])
    return atlas


def _blend(onto: Float, color: NDArray[np.floating], share: NDArray[np.floating]) -> None:
    """Mix a colour, (3,) or (3, H, W), into planes (3, H, W) or more, in place."""
    share = np.asarray(share, np.float32)
    for plane, part in zip(onto, np.asarray(color, np.float32), strict=False):
        plane += (part - plane) * share


def _dim(onto: Float, share: NDArray[np.floating], of: tuple[float, float, float] = (1, 1, 1)) -> None:
    """Take a share of red, green and blue away, in place."""
    share = np.asarray(share, np.float32)
    for plane, part in zip(onto, of, strict=False):
        plane *= 1 - np.float32(part) * share


def _complexion(style: HeadStyle, skin: Float, middle: Float, fine: Float, finest: Float) -> None:
    c, w = canvas(), FACE
    x, y, spots_of = np.abs(c.x[w]), c.y[w], c.face
    face, middle, fine, finest = skin[:, w[0], w[1]], middle[w], fine[w], finest[w]
    cheek, nose = spots_of["cheek"], spots_of["nose"]
    red = style.redness * spots_of["flush"] * (1 + 0.3 * style.blotches * middle)
    strength = 0.30 * float(max(linear(style.skin).mean(), 0.1)) ** 0.3
    _dim(face, red * np.float32(strength), (0.10, 0.62, 0.55))
    _dim(face, spots_of["under"] * np.float32(0.08 + 0.16 * style.age / 80), (0.7, 1.0, 0.95))
    _dim(face, 0.10 * spots_of["socket"], (0.5, 1.0, 1.0))
    if style.shadow:
        tint = np.array([[0.35, 0.25, 0.22], [0.2, 0.2, 0.25], [0.45, 0.3, 0.35]], np.float32)[style.noise_seed % 3]
        _blend(face, linear(style.skin) * tint * 1.3, 0.6 * style.shadow * spots_of["socket"])
    if style.freckles:
        spots = smoothstep(1.7, 2.6, finest + 0.4 * fine) * np.clip(cheek + nose + 0.25, 0, 1) * spots_of["front"]
        _dim(face, 0.30 * style.freckles * spots, (0.6, 0.9, 1.0))
    _dim(face, 0.5 * style.blotches * smoothstep(3.1, 3.5, fine + 0.3 * finest), (0.8, 1.0, 1.0))
    wrinkled = float(np.clip((style.age - 32) / 40, 0, 1))
    if wrinkled:
        waves = np.sin((y + 2.2 * middle + 0.002 * x * x) / 1.65) * spots_of["forehead"]
        feet = np.sin((y + 0.5 * (x - 50) * np.sign(y - 2)) / 1.3 + middle) * spots_of["feet"]
        lines = 0.5 * np.maximum(waves, 0) + 0.5 * np.maximum(feet, 0) + 0.6 * spots_of["folds"]
        _dim(face, 0.35 * wrinkled * lines)
    face[3] *= 1 + spots_of["oily"] + 0.10 * finest
    _dim(skin[:, 100:220], c.ear[100:220] * np.float32(0.04 + 0.16 * style.redness), (0.1, 1.0, 0.9))


def beard_of(style: HeadStyle) -> Float:
    """(CHART_ROWS, CHART_COLS) where this person's beard grows: all over, or on the chin."""
    return canvas().beard * np.float32(1 if style.beard_area > 0.9 else smoothstep(34, 14, canvas().turn))


def _beard(style: HeadStyle, skin: Float, fine: Float, finest: Float) -> None:
    if not (style.stubble or style.beard or style.moustache):
        return
    w = slice(140, 290)
    skin, fine, finest = skin[:, w], fine[w], finest[w]
    beard, lip = canvas().beard[w], canvas().lip_hair[w]
    grey = linear(style.hair_color) * 0.9 + 0.01
    speckle = 0.75 + 0.35 * finest + 0.15 * fine
    under = grey * 0.6 + 0.25 * linear(style.skin) * np.array([0.7, 0.85, 1.0], np.float32)
    _blend(skin[:3], under, np.clip(0.55 * style.stubble * beard * speckle, 0, 0.8))
    _blend(skin[:3], grey, np.clip(0.35 * style.stubble * lip * speckle, 0, 0.8))
    if style.beard:
        _blend(skin[:3], grey * 0.8, np.clip(beard_of(style)[w] * (1 + 0.15 * fine + 0.2 * finest), 0, 0.95))
    if style.moustache:
        _blend(skin[:3], grey * 0.8, np.clip(style.moustache * lip * (1.0 + 0.3 * finest), 0, 0.92))


@lru_cache(maxsize=1)
def hair_depth(style: HeadStyle) -> Float:
    """(CHART_ROWS, CHART_COLS) rows above this person's hairline; negative on bare skin."""
    c = canvas()
    away = style.hairline + style.temples * np.exp(-(((c.turn[0] - 40) / 16) ** 2))
    if style.hairline > 22:  # what is left is a wreath
        away = away + 3.0 * (style.hairline - 22)
    return c.hair - (away * smoothstep(66, 52, c.turn[0])).astype(np.float32) - 60 * c.ear


def _scalp(style: HeadStyle, skin: Float, fine: Float, finest: Float) -> None:
    w = slice(0, 240)
    skin, fine, finest, deep = skin[:, w], fine[w], finest[w], hair_depth(style)[w]
    if style.cut == "bald":
        shade = smoothstep(-4, 14, deep) * (0.10 + 0.08 * finest)
        _blend(skin[:3], linear(style.hair_color), np.clip(shade, 0, 0.4) * np.float32(style.age < 70))
        skin[3] *= 1 + 0.6 * smoothstep(0, 30, canvas().hair[w])
        return
    deep = deep + 2.2 * fine + 2.0 * finest
    thin = {"shaved": 0.72, "crop": 0.93}.get(style.cut, 0.97)
    soft = 9 if style.cut == "shaved" else 4
    share = smoothstep(-soft, soft + 1, deep) * np.float32(thin)
    if thin < 0.95:
        share = np.clip(share * (1 - 0.12 * np.clip(finest, -1, 1.5)), 0, 1)
    level = 0.75 + 0.16 * fine + 0.14 * finest
    if style.cut not in ("shaved", "crop"):
        _dim(skin[:3], 0.22 * smoothstep(-14, 0, deep), (0.8, 1.0, 1.0))
    _blend(skin[:3], linear(style.hair_color)[:, None, None] * level, share)
    skin[3] *= 1 - 0.8 * share


@lru_cache(maxsize=1)
def _lines() -> tuple[NDArray[np.floating], ...]:
    """On the face: how thick a brow is along its way, and its ends; the line between the lips; the lashes' line."""
    c, w, along = canvas(), FACE, canvas().brow[0][FACE]
    half = np.interp(along, [-0.05, 0.15, 0.6, 1.05], [0.9, 1.05, 0.85, 0.25]).astype(np.float32)
    ends = smoothstep(-0.10, 0.08, along) * smoothstep(1.12, 0.92, along)
    crease = 0.55 * smoothstep(1.1, 0.0, c.crease[w]) * (c.lips[w] < 1)
    return half, ends, crease, smoothstep(2.1, 0.4, c.lid[w])


def _brows_lips_lids(style: HeadStyle, skin: Float, fine: Float, finest: Float) -> None:
    c, w = canvas(), FACE
    face, fine, finest = skin[:, w[0], w[1]], fine[w], finest[w]
    half, ends, crease, lashes = _lines()
    thick = np.maximum(4.2 * style.brow_thickness * half, 0.4)
    inside = smoothstep(1.25, 0.45, np.abs(c.brow[1][w] + 0.45 * finest) / thick) * ends
    brow = linear(style.hair_color) * (0.75 if sum(style.hair_color) > 1.1 else 0.95)
    _blend(face[:3], brow, np.clip(style.brow_density * inside * (0.92 + 0.13 * finest + 0.08 * fine), 0, 0.93))
    red = np.clip(smoothstep(0.8, -0.9, c.lips[w]) * (1 - 0.05 * finest), 0, 1)
    _blend(face[:3], linear(style.lip)[:, None, None] * (1 + 0.05 * fine), 0.9 * red)
    _dim(face[:3], crease)
    face[3] += 0.5 * style.shine * red
    line = np.where(c.upper[w] < 0, 0.45 + 0.5 * style.lashes, 0.15 + 0.25 * style.lashes)
    _blend(face[:3], np.array([0.02, 0.014, 0.012]), np.clip(line * lashes, 0, 0.9))


# Rows of the chart where the cloth begins: at the front, the sides and the back.
NECKLINES = {"tee": (292, 272, 262), "vneck": (310, 272, 262), "shirt": (300, 268, 256), "suit": (316, 268, 256),
             "hoodie": (304, 270, 254), "turtle": (302, 264, 246), "bare": (400, 400, 400)}  # fmt: skip


def neckline(style: HeadStyle, turn: NDArray[np.floating]) -> NDArray[np.floating]:
    """The chart's row where the cloth begins, by degrees round from the nose."""
    front, side, back = NECKLINES[style.cloth]
    if style.cloth in ("vneck", "suit", "shirt"):
        return np.interp(turn, [0, 26, 80, 140, 200], [front, (front + 2 * side) / 3, side, back, back])
    return back + (side - back) * smoothstep(150, 75, turn) + (front - side) * smoothstep(72, 8, turn)


def _clothes(style: HeadStyle, skin: Float, middle: Float, fine: Float) -> None:
    if style.cloth == "bare":
        return
    low = slice(240, CHART_ROWS)
    skin, middle, fine, turn, y = skin[:, low], middle[low], fine[low], canvas().turn[low], canvas().y[low]
    rows = np.arange(low.start, low.stop, dtype=np.float32)[:, None]
    below = rows - neckline(style, turn[:1]).astype(np.float32)
    share = smoothstep(-0.8, 0.8, below)
    cloth = np.repeat(0.8 * linear(style.cloth_color), below.size).reshape(3, *below.shape)
    second = linear(style.cloth_second)
    if style.stripes:
        _blend(cloth, second, 0.9 * smoothstep(0.0, 0.5, np.sin(y / (3 + 9 * style.stripes))))
    if style.cloth == "suit":  # shirt and tie in the opening
        _blend(cloth, second, smoothstep(48, 42, turn + 0.35 * below))
        _blend(cloth, linear(style.hat_color), smoothstep(8, 6, turn) * smoothstep(0, 3, below))
    if style.cloth in ("tee", "vneck", "hoodie"):
        _dim(cloth, 0.16 * smoothstep(4.5, 3.5, np.abs(below - 2)) * smoothstep(2.0, 5.5, below))
    cloth *= np.clip(1 + 0.16 * middle + 0.05 * fine, 0.5, 1.4)  # folds
    _dim(skin[:3], 0.35 * smoothstep(-7, 0, below))
    _blend(skin[:3], cloth, share)
    skin[3] *= 1 - share


@lru_cache(maxsize=1)
def _covered() -> Float:
    """(CHART_ROWS, CHART_COLS) what a headscarf or a hood hides: it takes their colour, in case that it shows."""
    rows = np.arange(CHART_ROWS, dtype=np.float32)[:, None]
    oval = (canvas().turn / 64) ** 2 + ((rows - 170) / np.where(rows < 170, 88, 92)) ** 2
    return np.asarray(smoothstep(1.0, 1.08, oval) * (rows < 350), np.float32)


def _patches(style: HeadStyle, strip: Float) -> None:
    """The eye, then what is flat: mouth, teeth, tongue and lashes."""
    v, u = np.mgrid[:PATCH, :PATCH] + 0.5 - PATCH / 2
    r = np.hypot(u, v) / (PATCH / 2 - 1) * 90  # degrees off the axis of the eye
    rng = np.random.default_rng(style.noise_seed)
    veins = cv2.GaussianBlur(rng.standard_normal((PATCH, PATCH), dtype=np.float32), (0, 0), 1.5)
    veins = (veins + veins[:, ::-1]) / 2
    white = 1 - 0.12 * np.clip(veins * 3, 0, 1)
    rim, colors = smoothstep(35, 75, r), ((0.56, 0.2), (0.52, 0.45), (0.49, 0.45))
    eye = np.stack([level * white * (1 - rim * np.float32(darker)) for level, darker in colors])
    iris = linear(style.iris)
    rays = 1 + 0.25 * np.sin(np.arctan2(v, np.abs(u)) * 17) * smoothstep(8, 20, r)
    _blend(eye, iris[:, None, None] * (rays * (0.8 + 0.9 * smoothstep(22, 12, r))), smoothstep(29.5, 27.5, r))
    _blend(eye, iris * 0.2, smoothstep(3.5, 0, np.abs(r - 27.5)) * 0.8)
    _blend(eye, np.full(3, 0.004), smoothstep(11.5, 9.5, r))
    strip[:, :PATCH, :3], strip[:, :PATCH, 3] = eye.transpose(1, 2, 0), 3.0
    for k, (color, gloss) in enumerate((((0.20, 0.05, 0.05), 0.3), ((0.62, 0.57, 0.48), 1.0), ((0.42, 0.16, 0.15), 0.5),
                                        ((0.015, 0.012, 0.01), 0.0)), 1):  # fmt: skip
        strip[:, k * PATCH : (k + 1) * PATCH] = (*color, gloss)
