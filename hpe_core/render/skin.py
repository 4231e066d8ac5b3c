"""The atlas: what colour a person's skin, brows, scalp, clothes and eyes have. Linear light, texels of the shared chart.

Masks that all persons share (lips, lids, the hairline, where a beard grows) are made once a process from the average
adult's chart; a person mixes them with noise that is drawn once, too, and shifted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.render.anatomy import ATLAS_ROWS, CHART_COLS, CHART_ROWS, CROWN_ROW, PATCH, TURN_COLS, anatomy, average_adult, smoothstep, wrapped
from hpe_core.render.person import RGB, HeadStyle

Float = NDArray[np.float32]

# The hairline: degrees round from the nose, and the chart's row.
HAIRLINE = np.array(
    [[0, 84], [16, 83], [30, 84], [44, 92], [54, 106], [60, 128], [66, 152], [72, 166], [79, 166], [84, 140], [104, 136],
     [111, 160], [120, 196], [140, 212], [160, 218], [200, 220]]
)  # fmt: skip
FACE = (slice(96, 268), slice(146, 366))  # the rows and columns of the chart that hold the face


def linear(color: RGB) -> Float:
    """sRGB in 0..1 -> linear light."""
    return np.asarray(color, np.float32) ** np.float32(2.2)


@dataclass(frozen=True, eq=False)
class Canvas:
    """What is known of each texel. x, y, z: mm on the average adult. turn: degrees round from the nose. hair: rows
    above the hairline (more is deeper in the hair). brow: (along 0..1, mm off its middle) of the nearer brow. lid, lips:
    mm outside of the opening of the eyes and of the red of the lips, negative inside. ear: 1 on the ears. beard: where
    one grows. noises: fields of (CHART_ROWS, CHART_COLS) with unit deviation, coarse to fine."""

    x: Float
    y: Float
    z: Float
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


@lru_cache(maxsize=1)
def canvas() -> Canvas:
    shared = anatomy()
    chart = wrapped(fill(shared.chart, shared.chart.any(2)))
    x, y, z = (np.ascontiguousarray(chart[..., k]) for k in range(3))
    rows, cols = np.mgrid[:CHART_ROWS, :CHART_COLS].astype(np.float32)
    turn = np.abs((cols + 0.5 - CHART_COLS / 2) * 360 / TURN_COLS).astype(np.float32)
    hair = np.interp(turn, HAIRLINE[:, 0], HAIRLINE[:, 1]).astype(np.float32) - rows
    marks = shared.landmarks_of(shared.uv.astype(np.float64)).astype(np.float32)
    lift = 1.0 * (np.arange(68) >= 36)  # signed distances below

    def distance(ring: NDArray[np.intp]) -> Float:
        """Texels outside of a smooth closed curve through landmarks; negative inside."""
        mask = np.zeros((CHART_ROWS, CHART_COLS), np.uint8)
        line = _smooth(marks[ring])
        cv2.fillPoly(mask, [np.round(line * 16).astype(np.int32)], 1, shift=4)
        return cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3) - cv2.distanceTransform(mask, cv2.DIST_L2, 3)

    del lift
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
    jaw_low = np.interp(turn, turn_of(marks[8::-1, 0]), marks[8::-1, 1] + 9).astype(np.float32)
    jaw_line = np.interp(turn, [0, 24, 40, 60, 74, 84, 95], [150, 202, 206, 200, 168, 160, 170]).astype(np.float32)
    beard = smoothstep(0, 12, rows - jaw_line) * smoothstep(92, 80, turn) * smoothstep(5, -7, rows - jaw_low)
    beard *= smoothstep(0.5, 4.0, lips) * smoothstep(196, 206, rows)  # below the nose
    beard = np.maximum(beard, smoothstep(3, 0, np.abs(turn - 76)) * smoothstep(160, 166, rows) * (rows < 215) * 0.9)
    lip_hair = smoothstep(5, 1, np.abs(rows - 209 - 0.06 * turn)) * smoothstep(24, 17, turn) * smoothstep(0.5, 3, lips)
    rng = np.random.default_rng(20261128)
    return Canvas(x, y, z, turn, hair, (along, off), eyes, (rows - middle_row).astype(np.float32), lips,
                  np.abs(rows - seam[None]).astype(np.float32), ear, (beard * (1 - ear)).astype(np.float32),
                  lip_hair.astype(np.float32), tuple(_noise(rng, cells) for cells in (10, 32, 90, 260)))  # fmt: skip


def turn_of(column: NDArray[np.floating]) -> NDArray[np.floating]:
    """Degrees round from the nose, either way."""
    return np.abs((column - CHART_COLS / 2) * 360 / TURN_COLS)


def fill(chart: Float, known: NDArray[np.bool_]) -> Float:
    """The chart with every unknown texel like the nearest known one."""
    _, label = cv2.distanceTransformWithLabels((~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    where = np.zeros(label.max() + 1, np.int64)
    where[label[known]] = np.flatnonzero(known.ravel())
    return chart.reshape(-1, chart.shape[2])[where[label]]


def _rasterised(values: Float) -> Float:
    from hpe_core.render.raster import Frame

    shared = anatomy()
    points = shared.shaped(average_adult())
    frame = Frame.empty(max(CHART_ROWS, CHART_COLS))
    skin = shared.triangles[(shared.part[shared.triangles] == 0).all(1)]
    frame.draw(shared.uv, 1000 - np.hypot(points[:, 0], points[:, 2]), skin, np.repeat(values[:, None], 3, 1), "both")
    return np.ascontiguousarray(frame.color[:CHART_ROWS, :CHART_COLS, 0])


def _smooth(ring: Float, steps: int = 6) -> Float:
    """A closed Catmull-Rom curve."""
    p = [np.roll(ring, k, 0)[:, None] for k in (1, 0, -1, -2)]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = p[1] + 0.5 * t * (p[2] - p[0] + t * (2 * p[0] - 5 * p[1] + 4 * p[2] - p[3] + t * (3 * (p[1] - p[2]) + p[3] - p[0])))
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
    field = rng.standard_normal((cells * CHART_ROWS // CHART_COLS + 2, cells), dtype=np.float32)
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
    atlas = np.zeros((ATLAS_ROWS, CHART_COLS, 4), np.float32)
    skin = atlas[:CHART_ROWS]
    base = linear(style.skin)
    coarse, middle, fine, finest = (noise.field(k) for k in range(4))
    level = 1 + style.blotches * (0.03 * coarse + 0.03 * middle) + 0.02 * fine + 0.015 * finest
    skin[..., :3] = base * level[..., None]
    skin[..., 3] = style.shine * (0.8 + 0.2 * smoothstep(-60, -110, c.z))
    _complexion(style, skin, coarse, middle, fine, finest)
    _beard(style, skin, fine, finest)
    _scalp(style, skin, middle, fine, finest)
    _brows_lips_lids(style, skin, fine, finest)
    _clothes(style, skin, fine)
    if style.hat in ("scarf", "hood"):
        _cover(style, skin)
    _patches(style, atlas[CHART_ROWS:])
    np.clip(atlas[..., :3], 0.002, 0.95, out=atlas[..., :3])
    return atlas


def _blend(onto: Float, color: Float, share: Float) -> None:
    onto += (color - onto) * share[..., None]


def _complexion(style: HeadStyle, skin: Float, coarse: Float, middle: Float, fine: Float, finest: Float) -> None:
    c, w = canvas(), FACE
    x, y, z = np.abs(c.x[w]), c.y[w], c.z[w]
    front = smoothstep(-30, -60, z)
    cheek = np.exp(-(((x - 42) / 17) ** 2) - ((y - 42) / 17) ** 2)
    nose = np.exp(-((x / 13) ** 2) - ((y - 38) / 11) ** 2)
    chin = np.exp(-((x / 16) ** 2) - ((y - 98) / 10) ** 2)
    red = style.redness * (0.8 * cheek + nose + 0.4 * chin) * front * (1 + 0.3 * middle[w] * style.blotches)
    face = skin[w][..., :3]
    strength = 0.30 * np.float32(max(linear(style.skin).mean(), 0.1)) ** 0.3
    face *= 1 - red[..., None] * strength * np.array([0.10, 0.62, 0.55], np.float32)
    under = np.exp(-(((x - 31) / 13) ** 2) - ((y - 13) / 6) ** 2) * front
    face *= 1 - (under * (0.08 + 0.16 * style.age / 80))[..., None] * np.array([0.7, 1.0, 0.95], np.float32)
    socket = smoothstep(9, 1, c.lid[w]) * smoothstep(3, -3, c.upper[w])
    face *= 1 - (socket * 0.10)[..., None] * np.array([0.5, 1.0, 1.0], np.float32)
    if style.shadow:
        tint = np.array([[0.35, 0.25, 0.22], [0.2, 0.2, 0.25], [0.45, 0.3, 0.35]])[style.noise_seed % 3]
        _blend(face, linear(style.skin) * tint.astype(np.float32) * 1.3, 0.6 * style.shadow * socket)
    if style.freckles:
        spots = smoothstep(1.5, 2.2, finest[w] + 0.4 * fine[w]) * np.clip(cheek + nose + 0.25, 0, 1) * front
        face *= 1 - (0.45 * style.freckles * spots)[..., None] * np.array([0.6, 0.9, 1.0], np.float32)
    spots = smoothstep(3.1, 3.5, fine[w] + 0.3 * finest[w])
    face *= 1 - (0.5 * style.blotches * spots)[..., None] * np.array([0.8, 1.0, 1.0], np.float32)
    wrinkled = float(np.clip((style.age - 32) / 40, 0, 1))
    if wrinkled:
        waves = np.sin((y + 2.2 * middle[w] + 0.002 * x * x) / 1.65) * smoothstep(-28, -38, y) * smoothstep(-72, -60, y)
        feet = np.sin((y * 1.0 + 0.5 * (x - 50) * np.sign(y - 2)) / 1.3 + middle[w]) * np.exp(-(((x - 57) / 7) ** 2) - ((y - 2) / 12) ** 2)
        folds = np.exp(-(((x - 20 - 0.42 * (y - 40)) / 2.2) ** 2)) * smoothstep(40, 50, y) * smoothstep(82, 70, y)
        lines = 0.5 * np.maximum(waves, 0) * smoothstep(50, 30, x) + 0.5 * np.maximum(feet, 0) + 0.6 * folds
        face *= 1 - (0.35 * wrinkled * lines * front)[..., None]
    skin[w][..., 3] *= 1 + 0.5 * nose + 0.25 * (y < -25) - 0.25 * cheek + 0.10 * finest[w]
    ears = c.ear * (0.04 + 0.16 * style.redness)
    skin[..., :3] *= 1 - ears[..., None] * np.array([0.1, 1.0, 0.9], np.float32)


def _beard(style: HeadStyle, skin: Float, fine: Float, finest: Float) -> None:
    c = canvas()
    if not (style.stubble or style.beard or style.moustache):
        return
    grey = linear(style.hair_color) * 0.9 + 0.01
    speckle = 0.75 + 0.35 * finest + 0.15 * fine
    shade = np.clip(style.stubble * 0.55 * c.beard * speckle, 0, 0.8)
    _blend(skin[..., :3], grey * 0.6 + 0.25 * linear(style.skin) * np.array([0.7, 0.85, 1.0], np.float32), shade)
    _blend(skin[..., :3], grey, np.clip(0.35 * style.stubble * c.lip_hair * speckle, 0, 0.8))
    if style.beard:
        where = c.beard if style.beard_area > 0.9 else c.beard * smoothstep(30, 18, c.turn)
        _blend(skin[..., :3], grey * 0.8, np.clip(where * 1.25 * (0.85 + 0.2 * fine + 0.25 * finest), 0, 0.95))
    if style.moustache:
        _blend(skin[..., :3], grey * 0.8, np.clip(style.moustache * c.lip_hair * (1.0 + 0.3 * finest), 0, 0.92))


def hair_depth(style: HeadStyle) -> Float:
    """(CHART_ROWS, CHART_COLS) rows above this person's hairline; negative on bare skin."""
    c = canvas()
    away = style.hairline + style.temples * np.exp(-(((c.turn - 40) / 16) ** 2))
    if style.hairline > 22:  # what is left is a wreath
        away = away + 3.0 * (style.hairline - 22)
    return c.hair - (away * smoothstep(66, 52, c.turn)).astype(np.float32) - 60 * c.ear


def _scalp(style: HeadStyle, skin: Float, middle: Float, fine: Float, finest: Float) -> None:
    if style.cut == "bald":
        shade = smoothstep(-4, 14, hair_depth(style)) * (0.10 + 0.08 * finest)
        _blend(skin[..., :3], linear(style.hair_color), np.clip(shade, 0, 0.4) * (style.age < 70))
        skin[..., 3] *= 1 + 0.6 * smoothstep(0, 30, canvas().hair)
        return
    deep = hair_depth(style) + 2.2 * fine + 2.0 * finest
    thin = {"shaved": 0.72, "crop": 0.93}.get(style.cut, 0.97)
    share = smoothstep(-4, 5, deep) * thin * (1 - 0.12 * np.clip(finest, -1, 1.5) * (thin < 0.95))
    shade = linear(style.hair_color) * (0.75 + 0.16 * fine + 0.14 * finest)[..., None]
    _blend(skin[..., :3], shade, np.clip(share, 0, 1))
    skin[..., 3] *= 1 - 0.8 * share
    contact = smoothstep(-14, 0, deep) * (1 - share)
    if style.cut not in ("shaved", "crop"):
        skin[..., :3] *= 1 - (0.22 * contact)[..., None] * np.array([0.8, 1, 1], np.float32)


def _brows_lips_lids(style: HeadStyle, skin: Float, fine: Float, finest: Float) -> None:
    c, w = canvas(), FACE
    face = skin[w][..., :3]
    along, off = c.brow[0][w], c.brow[1][w]
    half = 4.2 * style.brow_thickness * np.interp(along, [-0.05, 0.15, 0.6, 1.05], [0.9, 1.05, 0.85, 0.25])
    inside = smoothstep(1.25, 0.45, np.abs(off + 0.8 * finest[w]) / np.maximum(half, 0.4))
    inside *= smoothstep(-0.10, 0.08, along) * smoothstep(1.12, 0.92, along)
    strands = 0.86 + 0.22 * finest[w] + 0.12 * fine[w]
    brow = linear(style.hair_color) * (0.75 if sum(style.hair_color) > 1.1 else 0.95)
    _blend(face, brow, np.clip(style.brow_density * inside * strands, 0, 0.93))
    red = smoothstep(0.8, -0.9, c.lips[w]) * (1 - 0.05 * finest[w])
    _blend(face, linear(style.lip) * (1 + 0.05 * fine[w])[..., None], np.clip(red, 0, 1) * 0.9)
    face *= 1 - (0.55 * smoothstep(1.1, 0.0, c.crease[w]) * (c.lips[w] < 1))[..., None]
    skin[w][..., 3] += red * 0.5 * style.shine
    upper = c.upper[w] < 0
    line = smoothstep(2.1, 0.4, c.lid[w]) * np.where(upper, 0.35 + 0.5 * style.lashes, 0.12 + 0.2 * style.lashes)
    _blend(face, np.array([0.02, 0.014, 0.012], np.float32), np.clip(line, 0, 0.9))


# Rows of the chart where the cloth begins: at the front, the sides and the back.
NECKLINES = {"tee": (292, 272, 262), "vneck": (310, 272, 262), "shirt": (296, 266, 256), "suit": (312, 266, 256),
             "hoodie": (284, 268, 254), "turtle": (262, 258, 246), "bare": (360, 360, 360)}  # fmt: skip


def neckline(style: HeadStyle, turn: NDArray[np.floating]) -> NDArray[np.floating]:
    """The chart's row where the cloth begins, by degrees round from the nose."""
    front, side, back = NECKLINES[style.cloth]
    sharp = 26 if style.cloth in ("vneck", "suit", "shirt") else 55
    if style.cloth in ("vneck", "suit", "shirt"):
        return np.interp(turn, [0, sharp, 80, 140, 200], [front, (front + 2 * side) / 3, side, back, back])
    return back + (side - back) * smoothstep(150, 75, turn) + (front - side) * smoothstep(72, 8, turn)


def _clothes(style: HeadStyle, skin: Float, fine: Float) -> None:
    c = canvas()
    low = slice(235, CHART_ROWS)
    rows = np.arange(low.start, low.stop, dtype=np.float32)[:, None]
    below = rows - neckline(style, c.turn[low])
    share = smoothstep(-0.8, 0.8, below)
    cloth = np.broadcast_to(linear(style.cloth_color), (*below.shape, 3)).copy()
    second = linear(style.cloth_second)
    if style.stripes:
        band = (np.sin(c.y[low] / (3 + 9 * style.stripes)) > 0.2).astype(np.float32)
        _blend(cloth, second, 0.9 * band)
    if style.cloth == "suit":  # shirt and tie in the opening
        _blend(cloth, second, smoothstep(46, 44, c.turn[low] + 0.35 * below))
        tie = (c.turn[low] < 7.0) & (below > 1)
        _blend(cloth, linear(style.hat_color), tie.astype(np.float32))
    hem = smoothstep(4.5, 3.5, np.abs(below - 2)) * (style.cloth in ("tee", "vneck", "hoodie"))
    cloth *= (1 - 0.16 * hem * smoothstep(2.0, 5.5, below))[..., None]
    cloth *= (1 + 0.03 * fine[low])[..., None]
    _blend(skin[low][..., :3], cloth, share)
    skin[low][..., :3] *= 1 - (0.35 * smoothstep(-7, 0, below) * (1 - share))[..., None]
    skin[low][..., 3] *= 1 - share


def _cover(style: HeadStyle, skin: Float) -> None:
    """What lies under a headscarf or a hood is of its colour, in case that it shows."""
    c = canvas()
    rows = np.arange(CHART_ROWS, dtype=np.float32)[:, None]
    oval = (c.turn / 64) ** 2 + ((rows - 170) / np.where(rows < 170, 88, 92)) ** 2
    _blend(skin[..., :3], linear(style.hat_color) * 0.8, smoothstep(1.0, 1.08, oval) * (rows < 300))


def _patches(style: HeadStyle, strip: Float) -> None:
    """The eye, then what is flat: mouth, teeth, tongue and lashes."""
    v, u = np.mgrid[:PATCH, :PATCH].astype(np.float32) + 0.5 - PATCH / 2
    r = np.hypot(u, v) / (PATCH / 2 - 1) * 90  # degrees off the axis of the eye
    rng = np.random.default_rng(style.noise_seed)
    veins = cv2.GaussianBlur(rng.standard_normal((PATCH, PATCH), dtype=np.float32), (0, 0), 1.5)
    veins = (veins + veins[:, ::-1]) / 2
    eye = np.array([0.56, 0.52, 0.49], np.float32) * (1 - 0.12 * np.clip(veins * 3, 0, 1))[..., None]
    eye = eye * (1 - smoothstep(35, 75, r)[..., None] * np.array([0.2, 0.45, 0.45], np.float32))
    iris = linear(style.iris)
    rays = 1 + 0.25 * np.sin(np.arctan2(v, np.abs(u)) * 17) * smoothstep(8, 20, r)
    _blend(eye, iris * (rays * (0.8 + 0.9 * smoothstep(22, 12, r)))[..., None], smoothstep(27, 25, r))
    _blend(eye, iris * 0.2, smoothstep(3, 0, np.abs(r - 25.5)) * 0.7)
    _blend(eye, np.full(3, 0.004, np.float32), smoothstep(11.5, 9.5, r))
    strip[:, :PATCH, :3], strip[:, :PATCH, 3] = eye, 3.0
    for k, (color, gloss) in enumerate((((0.20, 0.05, 0.05), 0.3), ((0.62, 0.57, 0.48), 1.0), ((0.42, 0.16, 0.15), 0.5),
                                        ((0.015, 0.012, 0.01), 0.0)), 1):  # fmt: skip
        strip[:, k * PATCH : (k + 1) * PATCH] = (*color, gloss)
