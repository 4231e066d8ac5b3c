"""The person: a parametric head, its clothes and its paint, as a handful of vertex grids and one atlas.

Everything is a grid of vertices (rows x columns): the head-neck-torso is one loft of rings from the crown to
the chest, and ears, long hair, bun, cap brim and glasses are small grids of their own. A grid gives its
normals by finite differences and its texture by stretching, so nothing needs an adjacency structure.

Head frame, millimetres: x image right (the subject's left), y down, z into the head; origin in the middle of
the skull at the height of the eyes, so the nose tip lies near (0, 44, -118). Shapes, colours and landmarks
are written once in GENERIC coordinates (one average head); a person is a smooth warp of it, and the generic
coordinates ride along as the texture's coordinates.

The module is long because a person is: parameters and their lots, geometry, paint, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]  # float32 nearly everywhere; the type does not insist
Points = list[tuple[float, float, float]]
RGB = tuple[float, float, float]
Hair = Literal["bald", "receding", "buzz", "short", "full", "afro", "bob", "long", "bun", "cap", "scarf"]
Glasses = Literal["none", "clear", "sun"]

TEX_ROW, TEX_COL = 4, 4  # texels between neighbouring rows and columns of the head grid
PATCH = 96  # width in texels of the atlas column that holds the small parts

# Rings of the loft: front point (y, z), back point (y, z), half width, z of the widest place, front
# exponent of the superellipse, rows down to the next ring. Anthropometric means, rounded; the face's relief
# comes on top.
# fmt: off
RINGS = np.array([
    # yf    zf    yb   zb    w   zc   nf  rows
    [-118, 10, -118, 10, 0, 10, 2.0, 2],
    [-115, -24, -114, 46, 38, 14, 2.0, 2],
    [-107, -52, -103, 68, 57, 15, 2.1, 3],
    [-91, -76, -84, 87, 69, 17, 2.2, 4],
    [-66, -91, -58, 99, 75, 18, 2.25, 4],
    [-42, -96, -35, 102, 76, 17, 2.3, 4],
    [-20, -97, -18, 101, 74, 14, 2.35, 6],
    [0, -92, -4, 96, 71, 10, 2.35, 5],
    [19, -90, 12, 90, 69.5, 5, 2.25, 8],
    [44, -91, 27, 82, 66.5, 3, 2.1, 6],
    [57, -93, 35, 77, 63, 1, 2.0, 6],
    [73, -94, 44, 72, 58, 0, 1.85, 3],
    [80, -94, 48, 70, 56, 0, 1.75, 4],
    [91, -93, 54, 67, 53, 0, 1.65, 3],
    [104, -93, 61, 65, 49.5, 0, 1.52, 3],
    [114, -86, 68, 64, 46, 2, 1.5, 2],
    [118, -70, 76, 63, 45, 8, 1.65, 2],
    [120, -50, 86, 63, 45, 14, 1.9, 2],
    [127, -35, 98, 63, 46, 17, 2.0, 2],
    [145, -28, 122, 66, 48, 20, 2.0, 2],
    [164, -28, 142, 74, 60, 22, 2.0, 2],
    [180, -35, 158, 86, 105, 25, 2.2, 2],
    [194, -46, 178, 95, 155, 25, 2.4, 1],
    [218, -60, 215, 100, 190, 25, 2.5, 1],
    [300, -80, 300, 104, 206, 25, 2.6, 1],
    [560, -88, 560, 104, 212, 25, 2.6, 0],
])

# iBUG-68 in generic (x, y, z), the subject's right half only (x <= 0 is image left); z only guides the search
# for the nearest surface point.
_JAW: Points = [(-70, 0, -20), (-69, 18, -20), (-66, 37, -21), (-62, 55, -23), (-56, 71, -28), (-47, 88, -42),
        (-34, 101, -60), (-18, 111, -76), (0, 114.5, -83)]
_BROW: Points = [(-51, -15, -75), (-44, -20, -83), (-35, -22, -91), (-24, -21, -96), (-14, -17, -97)]
_NOSE: Points = [(0, -3, -92), (0, 13, -99), (0, 28, -108), (0, 43, -120)]
_NOSTRIL: Points = [(-14, 53, -98), (-7, 55, -101), (0, 57, -97)]
_EYE: Points = [(-46.5, 1, -73), (-37, -4.5, -80), (-26.5, -4.5, -82), (-17, 1.5, -82), (-26.5, 5, -82),
        (-37, 5, -80)]
_MOUTH_OUT: Points = [(-25, 73, -86), (-15, 67, -94), (-6, 64, -98), (0, 65.5, -98)]
_MOUTH_LOW: Points = [(-15, 80, -93), (-7, 83.5, -96), (0, 84.5, -96)]
_MOUTH_IN: Points = [(-21, 73, -88), (-8, 72.2, -94), (0, 72.2, -95)]
_MOUTH_IN_LOW: Points = [(-8, 73.8, -94), (0, 73.8, -95)]
# fmt: on


def _flip(points: Points) -> Points:
    return [(-x, y, z) for x, y, z in reversed(points)]


def landmark_targets() -> NDArray[np.float64]:
    """(68, 3) mm in the head frame: the iBUG landmarks of the average head."""
    eye_left = [(-x, y, z) for x, y, z in (_EYE[3], _EYE[2], _EYE[1], _EYE[0], _EYE[5], _EYE[4])]
    outer = _MOUTH_OUT + _flip(_MOUTH_OUT[:3]) + _flip(_MOUTH_LOW[:2]) + [_MOUTH_LOW[2]] + _MOUTH_LOW[1::-1]
    inner = _MOUTH_IN + _flip(_MOUTH_IN[:2]) + _flip(_MOUTH_IN_LOW[:1]) + _MOUTH_IN_LOW[::-1]
    points = (
        _JAW
        + _flip(_JAW[:8])
        + _BROW
        + _flip(_BROW)
        + _NOSE
        + _NOSTRIL
        + _flip(_NOSTRIL[:2])
        + _EYE
        + eye_left
        + outer
        + inner
    )
    return np.array(points, np.float64)


@dataclass(frozen=True)
class HeadStyle:
    """Everything that is the person; scene, pose and expression are not. Shape numbers are 0 for the average
    head and of order 1 at the edge of the usual; colours are sRGB in 0..1; lengths are millimetres."""

    noise_seed: int = 0
    symmetric: bool = True
    width: float = 0.0
    height: float = 0.0
    depth: float = 0.0
    jaw: float = 0.0
    chin: float = 0.0
    lower_face: float = 0.0
    fat: float = 0.0
    cheekbone: float = 0.0
    brow_ridge: float = 0.0
    nose_length: float = 0.0
    nose_width: float = 0.0
    nose_hook: float = 0.0
    lips: float = 0.0
    eye_spacing: float = 0.0
    eye_open: float = 0.0
    ear_size: float = 0.0
    ear_flare: float = 0.0
    neck: float = 0.0
    skin: RGB = (0.80, 0.60, 0.48)
    lip: RGB = (0.66, 0.36, 0.34)
    iris: RGB = (0.30, 0.22, 0.14)
    hair_color: RGB = (0.16, 0.11, 0.08)
    brow_thickness: float = 0.0
    brow_density: float = 0.85
    blotches: float = 0.0
    freckles: float = 0.0
    age: float = 0.2
    hair: Hair = "short"
    hair_volume: float = 10.0
    hair_length: float = 150.0
    hairline: float = 0.0
    fringe: float = 0.0
    curl: float = 0.0
    beard: float = 0.0
    beard_length: float = 0.0
    moustache: float = 0.0
    glasses: Glasses = "none"
    frame: RGB = (0.08, 0.07, 0.07)
    frame_size: float = 0.0
    frame_round: float = 3.0
    cloth: RGB = (0.25, 0.30, 0.42)
    cloth2: RGB = (0.85, 0.85, 0.85)
    collar: float = 0.3
    stripes: float = 0.0


@lru_cache(maxsize=256)
def draw_style(seed: int, person: int) -> HeadStyle:
    """The person number `person` of the data set `seed`: same numbers, same person, in any process."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, person]))

    def normal(sd: float = 0.5, limit: float = 1.1) -> float:
        return float(np.clip(rng.normal(0.0, sd), -limit, limit))

    def pick(rows: list[tuple[float, RGB]]) -> NDArray[np.float64]:
        weight = np.array([w for w, _ in rows])
        return np.array(rows[int(rng.choice(len(rows), p=weight / weight.sum()))][1])

    tone = rng.uniform(0, 1)
    ladder = np.array(
        [
            [0.93, 0.76, 0.67],
            [0.88, 0.68, 0.56],
            [0.78, 0.57, 0.43],
            [0.62, 0.43, 0.31],
            [0.45, 0.30, 0.22],
            [0.30, 0.20, 0.155],
        ]
    )
    skin = np.array([np.interp(tone * 5, range(6), ladder[:, k]) for k in range(3)])
    skin = np.clip(skin + rng.normal(0, 0.02, 3), 0.1, 0.96)
    female = bool(rng.random() < 0.5)
    age = float(rng.uniform(0, 1))
    dark = [(5.0, (0.07, 0.06, 0.06)), (3.0, (0.16, 0.10, 0.07))]
    fair = [(2.0, (0.30, 0.19, 0.11)), (1.6, (0.55, 0.40, 0.22)), (0.5, (0.42, 0.18, 0.08))]
    hair_color = pick(dark + (fair if tone < 0.45 else []) + [(0.1, (0.35, 0.12, 0.25))])
    if age > 0.6 and rng.random() < 0.6:
        hair_color = hair_color + (np.array([0.66, 0.66, 0.67]) - hair_color) * rng.uniform(0.3, 1.0)
    styles: list[Hair]
    if female:
        styles = ["short", "full", "afro", "bob", "long", "bun", "cap", "scarf", "buzz"]
        odds = np.array([0.06, 0.10, 0.05, 0.20, 0.32, 0.14, 0.04, 0.06, 0.03])
    else:
        styles = ["bald", "receding", "buzz", "short", "full", "afro", "long", "bun", "cap"]
        odds = np.array([0.10, 0.10 + 0.1 * age, 0.16, 0.36, 0.10, 0.04, 0.03, 0.02, 0.08])
    hair = styles[int(rng.choice(len(styles), p=odds / odds.sum()))]
    volume = {
        "bald": 0.0,
        "receding": rng.uniform(2, 7),
        "buzz": 1.5,
        "short": rng.uniform(5, 13),
        "full": rng.uniform(13, 22),
        "afro": rng.uniform(26, 46),
        "bob": rng.uniform(8, 16),
        "long": rng.uniform(6, 14),
        "bun": rng.uniform(3, 6),
        "cap": 6.0,
        "scarf": 9.0,
    }[hair]
    bearded = not female and bool(rng.random() < 0.45)
    beard = float(rng.uniform(0.25, 0.95)) if bearded else 0.0
    cloth = rng.uniform(0.06, 0.92) * (1 - rng.uniform(0, 0.6) * rng.random(3))
    return HeadStyle(
        noise_seed=int(rng.integers(2**31)),
        symmetric=False,
        width=normal(),
        height=normal(),
        depth=normal(),
        jaw=normal() + (-0.25 if female else 0.25),
        chin=normal(),
        lower_face=normal(),
        fat=normal(0.6),
        cheekbone=normal(),
        brow_ridge=normal() + (-0.3 if female else 0.3),
        nose_length=normal(),
        nose_width=normal() + 0.5 * (tone > 0.6),
        nose_hook=normal(),
        lips=normal() + 0.5 * (tone > 0.6),
        eye_spacing=normal(),
        eye_open=normal(),
        ear_size=normal() + 0.4 * (age - 0.5),
        ear_flare=normal(),
        neck=normal() + (-0.4 if female else 0.4),
        skin=_rgb(skin),
        lip=_rgb(
            skin * np.array([0.90, 0.62, 0.64])
            if not female or rng.random() < 0.5
            else np.array([0.62, 0.16, 0.20]) + rng.normal(0, 0.06, 3)
        ),
        iris=_rgb(
            pick(
                [
                    (4.0, (0.24, 0.15, 0.09)),
                    *([(2.0, (0.32, 0.42, 0.52)), (1.0, (0.33, 0.38, 0.24))] if tone < 0.5 else []),
                ]
            )
        ),
        hair_color=_rgb(hair_color),
        brow_thickness=normal() + (-0.4 if female else 0.3),
        brow_density=float(rng.uniform(0.45, 0.95)),
        blotches=float(rng.uniform(0.3, 1.0)),
        freckles=float(rng.random() ** 4) if tone < 0.5 else 0.0,
        age=age,
        hair=hair,
        hair_volume=float(volume),
        hair_length=float(rng.uniform(75, 120) if hair == "bob" else rng.uniform(130, 230)),
        hairline=normal(),
        fringe=float(rng.uniform(0.4, 1.0)) if rng.random() < 0.22 else 0.0,
        curl=float(rng.random() ** 2),
        beard=beard,
        beard_length=float(rng.uniform(2, 16)) if beard > 0.7 else 0.8,
        moustache=float(rng.uniform(0.4, 1.0)) if bearded and rng.random() < 0.8 else 0.0,
        glasses=("none", "clear", "sun")[int(rng.choice(3, p=[0.74, 0.20, 0.06]))],
        frame=_rgb(
            pick(
                [
                    (3.0, (0.06, 0.06, 0.07)),
                    (1.0, (0.30, 0.18, 0.10)),
                    (1.0, (0.55, 0.52, 0.48)),
                    (0.5, (0.5, 0.08, 0.10)),
                ]
            )
        ),
        frame_size=normal(),
        frame_round=float(rng.uniform(2.0, 5.0)),
        cloth=_rgb(cloth),
        cloth2=_rgb(rng.uniform(0.05, 0.95) * (1 - 0.45 * rng.random(3))),
        collar=float(rng.uniform(0, 1)),
        stripes=float(rng.random() < 0.18),
    )


def _rgb(value: NDArray[np.float64]) -> RGB:
    r, g, b = np.clip(value, 0.02, 0.98).tolist()
    return (r, g, b)


def smoothstep(low: float, high: float, value: NDArray) -> NDArray:
    """0 below low, 1 above high, C1 in between; low > high falls instead of rising."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _interp(value: NDArray, at: list[float], to: list[float]) -> NDArray:
    """np.interp that keeps float32: a texture is 150,000 texels and doubles cost twice the time."""
    return np.interp(value, at, to).astype(value.dtype)


def _bump(p: NDArray, cx: float, cy: float, sx: float, sy: float) -> NDArray:
    """Gaussian at (+-cx, cy) of the xy plane: the face is symmetric until a person says otherwise."""
    return np.exp(-(((np.abs(p[..., 0]) - cx) / sx) ** 2) - ((p[..., 1] - cy) / sy) ** 2)


def grid_normals(grid: Float, periodic: bool) -> Float:
    """Unit outward normals of (R, C, 3); rows run down and columns to the right as seen from outside."""
    pad = grid[:, [-2]] if periodic else grid[:, [0]]
    end = grid[:, [1]] if periodic else grid[:, [-1]]
    wide = np.concatenate([pad, grid, end], 1)
    across = wide[:, 2:] - wide[:, :-2]
    tall = np.concatenate([grid[:1], grid, grid[-1:]], 0)
    down = tall[2:] - tall[:-2]
    n = np.stack(
        [
            down[..., 1] * across[..., 2] - down[..., 2] * across[..., 1],
            down[..., 2] * across[..., 0] - down[..., 0] * across[..., 2],
            down[..., 0] * across[..., 1] - down[..., 1] * across[..., 0],
        ],
        -1,
    )
    for pole, beside in ((0, 1), (-1, -2)):
        if np.abs(across[pole]).max() < 1e-3:  # a row that is one point has no direction across
            n[pole] = n[beside].mean(0)
    return n / np.maximum(np.sqrt((n * n).sum(-1, keepdims=True)), 1e-6)


@dataclass(frozen=True, eq=False)
class Generic:
    """The average head. grid, normal: (R, C, 3). texel: (H, W, 3) generic coordinates of every texel of the
    head's texture. azimuth: (H, W) degrees, 0 in front. landmark: (68, 2) (row, column) on the grid,
    fractional. lip_row: the mouth opens below this row. across (W,), along (H,): place of each texel column
    and row, 0..1 in millimetres of surface, so that noise is as fine on the cheek as on the nose."""

    grid: Float
    normal: Float
    texel: Float
    azimuth: Float
    landmark: Float
    lip_row: int
    across: Float
    along: Float


def _relief(p: NDArray, s: HeadStyle) -> NDArray:
    """Displacement along z (negative is out of the face) of generic points p (..., 3) -> (...)."""
    y, ax = p[..., 1], np.abs(p[..., 0])
    out = -(2.5 + 2.5 * s.brow_ridge) * _bump(p, 22, -17, 19, 7)
    out += 10.5 * _bump(p, 30, -1, 15, 10) + 6.0 * _bump(p, 15, -3, 6, 8)  # sockets, their inner corners
    out -= 6.5 * _bump(p, 31.5, 1, 11.5, 8.5)  # eyeball under the lids
    out += 1.3 * _bump(p, 31, -8.5, 15, 2.2) + 1.0 * _bump(p, 30, 10, 13, 3)  # lid crease, bag
    out -= (5.0 + 3.0 * s.cheekbone) * _bump(p, 44, 24, 15, 12)
    out += (3.5 - 5.0 * s.fat) * _bump(p, 45, 57, 14, 17)
    out -= 4.0 * _bump(p, 0, 72, 25, 18)  # the teeth behind the lips
    lips = 1.0 + 0.5 * s.lips
    out -= (
        lips
        * (3.4 * np.exp(-(((y - 68.3) / 3.4) ** 2)) + 3.8 * np.exp(-(((y - 79) / 4.0) ** 2)))
        * np.exp(-((ax / 18) ** 4))
    )
    out += 4.0 * np.exp(-(((y - 73) / 1.8) ** 2) - (ax / 24) ** 4)
    out += 1.4 * _bump(p, 0, 61, 3, 4) - 1.0 * _bump(p, 4.5, 61, 2.5, 5)
    fold = ax - np.interp(y, [44, 56, 72, 84], [17, 22, 29, 31])
    out += (1.4 + 2.0 * s.age) * np.exp(-((fold / 2.6) ** 2)) * np.exp(-(((y - 62) / 13) ** 4))
    out -= 1.5 * _bump(p, 36, 60, 7, 10) * (1 + s.fat)
    out -= (4.0 + 4.0 * s.chin) * _bump(p, 0, 104, 15, 8.5)
    out += 4.5 * _bump(p, 0, 91, 18, 5)
    out += (1.2 * s.age) * _bump(p, 0, -48, 40, 1.8) + (1.2 * s.age) * _bump(p, 0, -58, 38, 1.8)
    # nose: ridge height and half width by height, then the wings, the tip and the base
    ky = [-16, -8, 0, 10, 22, 32, 39, 44, 48, 51.5, 54.5, 58]
    ridge = np.interp(y, ky, [0, 0, 2.0, 6.5, 12, 17, 20.5, 22, 20.5, 14.5, 6.5, 0])
    half = np.interp(y, ky, [9, 7, 5.5, 5.5, 6.5, 7.8, 10, 11.5, 12, 11.5, 10, 9]) * (1 + 0.16 * s.nose_width)
    nose = (1 + 0.18 * s.nose_length) * ridge * np.exp(-((ax / half) ** 2.0))
    nose += s.nose_hook * 2.5 * np.exp(-(((y - 18) / 9) ** 2) - (ax / 8) ** 2)
    nose += 3.0 * np.exp(-(((y - 44) / 7.0) ** 2) - (ax / 8.5) ** 2)  # the tip is a ball
    out += 2.5 * _bump(p, 0, -5, 9, 5)
    wing = 13 + 2.2 * s.nose_width
    nose += 11.5 * np.exp(-(((ax - wing) / 5.0) ** 2) - ((y - 47.5) / 5.2) ** 2)
    nose -= 3.0 * np.exp(-(((ax - 7) / 3.0) ** 2) - ((y - 52.5) / 2.6) ** 2)  # nostril
    out -= nose
    return out * smoothstep(25, -25, p[..., 2])


@lru_cache(maxsize=1)
def generic() -> Generic:
    """Built at first use, once a process."""
    knots, counts = RINGS[:, :7], RINGS[:-1, 7].astype(int)
    padded = np.concatenate([knots[:1], knots, knots[-1:]])
    rings = []
    for i, n in enumerate(counts):
        p0, p1, p2, p3 = padded[i : i + 4]
        for t in np.arange(n) / n:  # Catmull-Rom with gentle tangents: the table is unevenly spaced
            m1, m2 = 0.4 * (p2 - p0), 0.4 * (p3 - p1)
            rings.append(
                (2 * t**3 - 3 * t**2 + 1) * p1
                + (t**3 - 2 * t**2 + t) * m1
                + (-2 * t**3 + 3 * t**2) * p2
                + (t**3 - t**2) * m2
            )
    ring = np.array([*rings, knots[-1]])
    for _ in range(2):  # the knots' spacing leaves ripples that a highlight would show
        ring[3:-4] = (ring[2:-5] + 2 * ring[3:-4] + ring[4:-3]) / 4
    smooth = ring.copy()
    lip_row = int(np.argmin(np.abs(ring[:, 0] - 73)))
    for row, level in ((lip_row, 72.5), (lip_row + 1, 73.5)):  # the mouth is the strip between these two rows
        ring[row] = [np.interp(level, smooth[20:-20, 0], smooth[20:-20, k]) for k in range(7)]
    # Columns by azimuth: 2 mm apart on the nose, 4 mm on the face, then coarser round the back.
    half = np.concatenate(
        [
            [0, 1.6, 3.2, 4.8, 6.5, 8.3, 10.3, 12.5],
            np.arange(15, 52, 3.1),
            np.arange(54, 104, 6.2),
            np.linspace(108, 180, 7),
        ]
    )
    theta = np.radians(np.concatenate([-half[:0:-1], half]))
    yf, zf, yb, zb, w, zc, nf = (ring[:, k, None] for k in range(7))
    front = np.cos(theta)[None] >= 0
    power = 2.0 / np.where(front, nf, 2.1)
    along = np.abs(np.cos(theta)) ** power
    z = np.where(front, zc + (zf - zc) * along, zc + (zb - zc) * along)
    x = w * np.sign(np.sin(theta)) * np.abs(np.sin(theta)) ** power
    y = yf + (yb - yf) * (z - zf) / np.maximum(zb - zf, 1e-3)
    grid = np.stack([x, y, z], -1)
    grid[:, -1] = grid[:, 0] = (grid[:, 0] + grid[:, -1]) / 2
    flat = grid.astype(np.float32)
    rows, cols = flat.shape[:2]
    h, wd = (rows - 1) * TEX_ROW + 1, (cols - 1) * TEX_COL + 1
    mx, my = np.meshgrid(np.arange(wd) / TEX_COL, np.arange(h) / TEX_ROW)
    texel = cv2.remap(flat, mx.astype(np.float32), my.astype(np.float32), cv2.INTER_LINEAR)
    relief = texel.copy()
    relief[..., 2] += _relief(texel, HeadStyle())
    azimuth = np.degrees(np.arctan2(texel[..., 0], -(texel[..., 2] - 5)))
    landmark: list[tuple[int, int]] = []
    for k, point in enumerate(landmark_targets()):
        weight = np.array([1, 1, 0.6 if k < 17 else 0.15])
        cost = (((relief - point) * weight) ** 2).sum(-1) + (texel[..., 2] > 20) * 1e6
        landmark.append(divmod(int(np.argmin(cost)), wd))
    at = (np.array(landmark) / np.array([TEX_ROW, TEX_COL])).astype(np.float32)
    eye_row = texel[int(np.argmin(np.abs(texel[:, wd // 2, 1])))]
    across = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(eye_row, axis=0), axis=1))])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(texel[:, wd // 2], axis=0), axis=1))])
    return Generic(
        flat,
        grid_normals(flat, True),
        texel,
        azimuth.astype(np.float32),
        at,
        lip_row,
        (across / across[-1]).astype(np.float32),
        (along / along[-1]).astype(np.float32),
    )


@dataclass(frozen=True, eq=False)
class Part:
    """One grid of vertices. grid: (R, C, 3) head frame, mm; uv: (x0, y0, x1, y1) its rectangle of the atlas
    in texels; gloss and sss: strength of the highlight and of the red light that skin lets round the
    corner."""

    grid: Float
    uv: tuple[float, float, float, float]
    periodic: bool = False
    flip: bool = False  # columns run to the left as seen from outside
    two_sided: bool = False
    gloss: float = 0.1
    sss: float = 0.0


@dataclass(frozen=True, eq=False)
class HeadModel:
    """A person at rest. skin: (R, C, 3) the loft without hair; coat: (R, C) mm of hair, beard or cloth on
    top of it; gloss, sss: (R, C). parts: everything else. atlas: (H, W, 3) linear light 0..1, the head's
    texture to the left and the parts' swatches in a column of `PATCH` texels to the right."""

    style: HeadStyle
    skin: Float
    coat: Float
    gloss: Float
    sss: Float
    parts: tuple[Part, ...]
    atlas: Float


def warp(points: NDArray, s: HeadStyle) -> NDArray[np.float64]:
    """Generic points (..., 3) -> the person's (..., 3), mm. Smooth, so that hair and glasses come along."""
    p = np.array(points, np.float64)
    x, y, z = p[..., 0].copy(), p[..., 1].copy(), p[..., 2].copy()
    head = smoothstep(170, 110, y)
    x = x * (1 + head * (0.045 * s.width + 0.07 * s.jaw * smoothstep(25, 90, y) + 0.06 * s.fat * smoothstep(0, 60, y)))
    x = x * (1 + 0.09 * (s.neck + 0.5 * s.fat) * smoothstep(108, 125, y) * smoothstep(190, 150, y))
    x += np.sign(x) * 1.8 * s.eye_spacing * _bump(p, 31, 0, 16, 14) * smoothstep(0, -30, z)
    x += np.sign(x) * 3.0 * s.cheekbone * _bump(p, 64, 24, 20, 18)
    z = z * (1 + 0.045 * s.depth * head)
    y = (
        y
        + 4.5 * s.lower_face * smoothstep(25, 105, y)
        + 2.0 * s.nose_length * np.exp(-(((p[..., 1] - 47) / 11) ** 2)) * smoothstep(30, 8, np.abs(p[..., 0]))
    )
    y = y * (1 + 0.04 * s.height)
    z -= 3.0 * s.fat * np.exp(-(((p[..., 1] - 124) / 10) ** 2)) * smoothstep(30, -20, p[..., 2])
    if not s.symmetric:
        a = np.random.default_rng(s.noise_seed).normal(0, 1, 3)
        face = smoothstep(0, -40, p[..., 2]) * head
        x += face * 1.2 * a[0] * smoothstep(10, 90, p[..., 1])
        y += face * 0.016 * a[1] * p[..., 0] * smoothstep(30, 75, p[..., 1])
        x += face * 1.0 * a[2] * np.exp(-(((p[..., 1] - 42) / 14) ** 2))
    return np.stack([x, y, z], -1)


class _Noise:
    """Smooth random maps; symmetric in the columns when the person is."""

    def __init__(self, seed: int, symmetric: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.symmetric = symmetric

    def map(self, shape: tuple[int, int], rows: int, cols: int) -> Float:
        """About unit normal, (H, W), with rows x cols independent cells."""
        cells = self.rng.standard_normal((rows, cols), dtype=np.float32)
        out = cv2.resize(cells, shape[::-1], interpolation=cv2.INTER_CUBIC)
        return (out + out[:, ::-1]) * np.float32(0.7) if self.symmetric else out

    def skin(self, rows: int, cols: int) -> Float:
        """The same over the head's texture, its cells of equal size on the surface."""
        g = generic()
        cells = self.rng.standard_normal((rows, cols), dtype=np.float32)
        x, y = np.meshgrid(g.across * (cols - 1), g.along * (rows - 1))
        out = cv2.remap(cells, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        return (out + out[:, ::-1]) * np.float32(0.7) if self.symmetric else out


def hair_line(azimuth: NDArray, s: HeadStyle) -> NDArray:
    """Generic height (mm, y down) above which hair grows, by azimuth in degrees."""
    front = -77 - 5 * s.hairline + 46 * s.fringe
    recede = 16.0 if s.hair == "receding" else 0.0
    temple = -58 - 5 * s.hairline + 20 * s.fringe
    a = np.abs(azimuth)
    return _interp(
        a,
        [0, 20, 38, 52, 62, 70, 80, 86, 114, 122, 132, 180],
        [
            front - recede,
            front + 2 - 1.5 * recede,
            temple - 1.6 * recede,
            -34,
            -10,
            14,
            14,
            -16,
            -14,
            24,
            60,
            76,
        ],
    )


def _hair_mask(p: NDArray, azimuth: NDArray, s: HeadStyle, noise: NDArray | float, soft: float) -> NDArray:
    """0..1 at generic points p (..., 3): where the scalp carries hair (or cap, or scarf)."""
    if s.hair == "bald":
        return np.zeros(p.shape[:-1])
    line = hair_line(azimuth, s)
    if s.hair == "cap":
        line = _interp(np.abs(azimuth), [0, 40, 75, 110, 180], [-52, -48, -38, -22, 5])
        return smoothstep(1.0, -1.0, p[..., 1] - line)
    if s.hair == "scarf":
        line = _interp(np.abs(azimuth), [0, 25, 45, 58, 66, 72], [-60, -55, -30, 5, 60, 400])
        return np.maximum(smoothstep(1.0, -1.0, p[..., 1] - line), smoothstep(119, 124, p[..., 1]))
    mask = smoothstep(soft, -soft, p[..., 1] - line + 2.0 * noise)
    if s.hair == "receding":
        top = np.hypot(p[..., 0] / 58, (p[..., 2] - 12) / 88)
        mask = mask * np.maximum(smoothstep(0.80, 1.0, top), smoothstep(-78, -60, p[..., 1]))
    return mask


def _beard_mask(p: NDArray, azimuth: NDArray, s: HeadStyle) -> tuple[NDArray, NDArray]:
    """(beard, moustache), 0..1 each, at generic points."""
    ax, y = np.abs(p[..., 0]), p[..., 1]
    upper = _interp(np.abs(azimuth), [0, 15, 28, 45, 62, 78, 90], [87, 86, 74, 62, 40, 5, 5])
    beard = smoothstep(-3, 4, y - upper) * smoothstep(132, 116, y) * smoothstep(88, 80, np.abs(azimuth))
    # squares of squares: a general power costs twenty multiplications
    beard = (
        beard * (1 - 0.9 * np.exp(-(((ax / 22) ** 2) ** 2) - (((y - 77) / 9) ** 2) ** 2)) * smoothstep(40, 0, p[..., 2])
    )
    mouth = np.exp(-((((y - 61.5 - 0.008 * ax**2) / 4.2) ** 2) ** 2) - (((ax / 26) ** 2) ** 2)) * smoothstep(
        0, -40, p[..., 2]
    )
    return beard, mouth


def _linear(color: RGB | NDArray) -> Float:
    """sRGB 0..1 -> linear light by the square law, whose inverse is one square root per pixel."""
    return (np.asarray(color, np.float32)) ** 2


def _mix(base: NDArray, color: NDArray, weight: NDArray) -> NDArray:
    return base + (color - base) * weight.astype(np.float32)[..., None]


@dataclass(frozen=True, eq=False)
class _Layers:
    """What every face's paint shares, (H, W) each: redness, shade in the hollows, its share that grows with
    age, nostrils, lips, the height over the brow's arch, the brow's half thickness and its ends."""

    front: Float
    red: Float
    shade: Float
    wrinkle: Float
    nostril: Float
    lips: Float
    arch: Float
    thick: Float
    brow: Float
    freckle: Float


@lru_cache(maxsize=1)
def _layers() -> _Layers:
    p = generic().texel.astype(np.float64)
    y, ax = p[..., 1], np.abs(p[..., 0])
    front = smoothstep(20, -30, p[..., 2])
    red = 0.6 * _bump(p, 42, 32, 17, 16) + 0.5 * _bump(p, 0, 45, 14, 10) + 0.25 * _bump(p, 0, 104, 16, 9)
    red = front * (red + 0.5 * _bump(p, 31, -6, 15, 4))
    shade = 0.20 * _bump(p, 16, -3, 7, 8) + 0.13 * _bump(p, 31, -9, 15, 3) + 0.10 * _bump(p, 28, 11, 13, 3.5)
    shade += 0.30 * _bump(p, 0, 58.5, 13, 2.2) + 0.22 * _bump(p, 17.5, 50, 2.5, 5) + 0.18 * _bump(p, 0, 88.5, 15, 3.5)
    fold = ax - np.interp(y, [44, 56, 72, 84], [17, 22, 29, 31])
    crease = np.exp(-((fold / 1.8) ** 2) - ((y - 62) / 13) ** 4)
    shade = front * (shade + 0.06 * crease)
    shade += 0.42 * smoothstep(113, 122, y) * smoothstep(170, 130, y) * smoothstep(60, -10, p[..., 2])
    wrinkle = 0.12 * (_bump(p, 28, 11, 13, 3.5) + crease)
    wrinkle += 0.08 * (_bump(p, 0, -46, 34, 1.2) + _bump(p, 0, -56, 32, 1.2) + _bump(p, 4, -16, 1.2, 6))
    nostril = 0.70 * front * np.exp(-(((ax - 7.0) / 2.9) ** 2) - ((y - 53.2) / 1.9) ** 2)
    bow = 65.0 + 2.0 * np.exp(-((ax / 3.0) ** 2)) + 8.0 * (ax / 25) ** 2.2
    low = 84.5 - 11.0 * (ax / 25) ** 2.4
    lips = smoothstep(-1.2, 1.2, y - bow) * smoothstep(1.5, -1.5, y - low) * (ax < 27) * front
    arch = y - np.interp(ax, [10, 16, 27, 38, 46, 52], [-14, -16.5, -19.5, -21, -18, -13.5])
    thick = np.interp(ax, [10, 18, 40, 53], [2.5, 3.6, 2.8, 0.8])
    ends = smoothstep(10.5, 14, ax) * smoothstep(53, 49, ax) * front
    freckle = _bump(p, 25, 30, 40, 22) * front
    return _Layers(
        *(v.astype(np.float32) for v in (front, red, shade, front * wrinkle, nostril, lips, arch, thick, ends, freckle))
    )


def _paint_head(s: HeadStyle) -> Float:
    """The head grid's texture (H, W, 3), linear light, without eyes and mouth (they move)."""
    g, k = generic(), _layers()
    p, az = g.texel, g.azimuth
    y = p[..., 1]
    noise = _Noise(s.noise_seed, s.symmetric)
    fine, mid, wide = noise.skin(300, 250), noise.skin(70, 60), noise.skin(16, 14)
    strand, strand2 = noise.skin(26, 230), noise.skin(90, 90)
    hair = np.asarray(s.hair_color, np.float32)
    skin = (1 + s.blotches * (0.025 * mid + 0.03 * wide) + 0.012 * fine)[..., None] * np.asarray(s.skin, np.float32)
    skin *= 1 - k.red[..., None] * np.array([0.01, 0.10, 0.09], np.float32)
    if s.freckles > 0.05:
        skin *= 1 - 0.22 * s.freckles * (smoothstep(0.9, 1.8, fine) * k.freckle)[..., None]
    shade = np.clip(k.shade + s.age * k.wrinkle + k.nostril, 0, 0.9)[..., None]
    skin *= 1 - shade * np.array([0.85, 1.0, 1.03], np.float32)
    skin = _mix(skin, np.asarray(s.lip, np.float32) * (1 + 0.05 * fine[..., None]), 0.85 * k.lips)
    brow = np.exp(-(((k.arch / (k.thick * (1 + 0.35 * s.brow_thickness))) ** 2) ** 2)) * k.brow
    skin = _mix(skin, hair * np.float32(0.75), np.clip(brow * s.brow_density * (0.95 + 0.2 * fine), 0, 1))
    if s.beard or s.moustache:
        beard, tache = _beard_mask(p, az, s)
        cover = np.clip(s.beard * beard * (1.0 + 0.15 * fine) + s.moustache * tache, 0, 0.97)
        cover = cover * smoothstep(-0.6, 0.5, cover - 0.25 + 0.12 * fine)
        skin = _mix(skin, hair * (0.9 + 0.25 * fine[..., None]), cover)
    contrast = 0.24 - 0.13 * float(np.mean(s.hair_color))
    if s.hair in ("cap", "scarf"):
        cloth = np.asarray(s.cloth2, np.float32) * (1 + 0.08 * wide[..., None] + 0.03 * fine[..., None])
        if s.hair == "cap":
            under = _hair_mask(p, az, HeadStyle(hair="short", hairline=s.hairline), mid, 5.0)
            skin = _mix(skin, hair * (1 + contrast * strand[..., None]), under)
        skin = _mix(skin, cloth, _hair_mask(p, az, s, 0.0, 1.0))
    elif s.hair != "bald":
        mask = _hair_mask(p, az, s, 0.6 * mid + 0.8 * fine, {"buzz": 7.0, "receding": 6.0}.get(s.hair, 3.5))
        streak = strand * (1 - 0.5 * s.curl) + strand2 * (0.3 + s.curl)
        skin = _mix(
            skin,
            hair * np.clip(1 + contrast * streak[..., None], 0.4, 1.9),
            mask * np.float32(0.72 if s.hair == "buzz" else 1.0),
        )
    # clothes below the collar: round or V, with a band and stripes if the person wears them
    top = int(np.flatnonzero(y.max(1) > 120)[0])  # nothing above this row can be cloth
    y, az, body = y[top:], az[top:], skin[top:]
    neckline = 156 + s.collar * 46 * np.exp(-((az / (16 + 22 * s.collar)) ** 2)) - 10 * smoothstep(60, 150, np.abs(az))
    if s.hair == "scarf":
        neckline = np.full_like(az, 184)
    cloth = np.asarray(s.cloth, np.float32) * (1 + 0.05 * wide[top:, :, None] + 0.03 * mid[top:, :, None])
    if s.stripes:
        cloth = _mix(cloth, np.asarray(s.cloth2, np.float32), smoothstep(0.2, 0.5, np.sin(y * 0.22)))
    elif s.collar > 0.5:
        cloth = _mix(cloth, np.asarray(s.cloth2, np.float32), smoothstep(6, 4, y - neckline))
    skin[top:] = _mix(body, cloth, smoothstep(-0.8, 0.8, y - neckline))
    return _linear(np.clip(skin, 0.015, 0.98))


def _ear(side: int, s: HeadStyle) -> Float:
    """(rings, angles, 3) in generic space: rings from the concha out over the rim and back to the skull."""
    angle = np.radians(np.linspace(0, 360, 19))
    ring = np.array([0.0, 0.28, 0.5, 0.62, 0.76, 0.88, 0.97, 1.0, 0.93, 0.70])
    lift = np.array([0.5, 0.5, 2.0, 5.5, 4.0, 5.5, 8.0, 6.0, 1.0, -14.0])
    # outline by angle: 0 is backwards (+z), 90 down: broad above, a lobe below, straight in front
    back = np.interp(
        np.degrees(angle),
        [0, 40, 75, 100, 135, 180, 225, 265, 300, 330, 360],
        [20, 19, 25, 29, 17, 10.5, 15, 29, 30, 25, 20],
    )
    r, a = np.meshgrid(ring, angle, indexing="ij")
    size = 1.0 + 0.13 * s.ear_size
    dz = r * back[None] * np.cos(a) * size
    dy = r * back[None] * np.sin(a) * size
    flare = np.radians(24 + 12 * s.ear_flare)
    hollow = np.repeat(lift[:, None], len(angle), 1) * (1 - 0.45 * (np.cos(a) < -0.3) * (r > 0.4))
    out = hollow * np.cos(flare) + np.maximum(dz + 8, -2) * np.sin(flare)
    along = dz * np.cos(flare) - 0.2 * dy
    return np.stack([side * (69.5 + out), 17 + dy, 17 + along], -1).astype(np.float32)


def _hair_shell(s: HeadStyle, noise: _Noise) -> Float:
    """Hair that hangs: a curtain from the crown round the back, open at the face, (rows, cols, 3) generic."""
    knots = np.array(
        [  # y, half width, front z, back z, opening angle
            [-118, 6, 4, 24, 10],
            [-113, 40, -26, 52, 22],
            [-100, 60, -50, 76, 34],
            [-78, 72, -64, 92, 46],
            [-50, 79, -66, 103, 58],
            [-20, 80, -50, 106, 68],
            [10, 82, -38, 104, 76],
            [45, 83, -34, 99, 76],
            [85, 84, -34, 94, 74],
            [130, 88, -36, 92, 70],
            [175, 96, -42, 96, 66],
            [230, 104, -56, 100, 64],
        ]
    )
    rows = np.interp(np.linspace(0, 1, 26), [0, 0.42, 1], [-118, -40, s.hair_length])
    w, zf, zb, opening = (np.interp(rows, knots[:, 0], knots[:, k]) for k in range(1, 5))
    u = np.linspace(-1, 1, 35)
    phi = np.radians(180 + u[None] * (180 - opening[:, None]))
    grow = s.hair_volume * smoothstep(-125, -95, rows)[:, None]
    ragged = noise.map((26, 35), 26, 12) * 2.5 * (0.4 + s.curl)
    # Angles from the front: x = sin, z = -cos; columns run to the right as seen from outside.
    c = -np.cos(phi)
    z = np.where(c < 0, 6 + c * (6 - zf[:, None] + 0.4 * grow), 6 + c * (zb[:, None] - 6 + grow))
    x = -np.sin(phi) * (w[:, None] + grow + ragged)
    tuck = smoothstep(0.75, 1.0, np.abs(u))[None] * (7 + 0 * x)
    x = np.sign(x) * np.maximum(np.abs(x) - tuck * smoothstep(-60, -20, rows)[:, None], 0)
    y = np.repeat(rows[:, None], 35, 1) - grow * smoothstep(-60, -118, rows)[:, None] * 0.9
    y = y + (noise.map((26, 35), 3, 35) * 6.0) * smoothstep(0.6, 1.0, np.linspace(0, 1, 26))[:, None]
    return np.stack([x, y, z], -1).astype(np.float32)


def _ball(center: tuple[float, float, float], radius: tuple[float, float, float]) -> Float:
    lat, lon = np.radians(np.linspace(-90, 90, 9)), np.radians(np.linspace(-180, 180, 15))
    la, lo = np.meshgrid(lat, lon, indexing="ij")
    unit = np.stack([np.cos(la) * np.sin(lo), np.sin(la), -np.cos(la) * np.cos(lo)], -1)
    return (unit * np.array(radius) + np.array(center)).astype(np.float32)


def _tube(path: NDArray, radius: float, closed: bool) -> Float:
    """Thin pipe round a polyline (N, 3): (5, N, 3), periodic in its rows as far as anyone can see."""
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    if closed:
        ahead[[0, -1]] = path[1] - path[-2]
    else:
        ahead[0], ahead[-1] = path[1] - path[0], path[-1] - path[-2]
    ahead = ahead / np.linalg.norm(ahead, axis=1, keepdims=True)
    side = np.cross(ahead, np.array([0.13, 0.21, 1.0]))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    third = np.cross(ahead, side)
    a = np.radians(np.array([0, 90, 180, 270, 360]))[:, None, None]
    return (path[None] + radius * (np.cos(a) * side[None] + np.sin(a) * third[None])).astype(np.float32)


def _glasses(s: HeadStyle) -> list[tuple[Float, bool]]:
    """(grid, is_lens) of the frame, symmetric, in generic space."""
    t = np.radians(np.linspace(0, 360, 25))
    rx, ry = 25 + 2.5 * s.frame_size, 18.5 + 4 * s.frame_size
    cx = np.sign(np.cos(t)) * np.abs(np.cos(t)) ** (2 / s.frame_round) * rx
    cy = np.sign(np.sin(t)) * np.abs(np.sin(t)) ** (2 / s.frame_round) * ry
    thick = 1.3 + 0.9 * (s.frame_size + 1) * (s.frame[0] < 0.4)
    out: list[tuple[Float, bool]] = []
    for side in (-1, 1):
        x = side * (32 + cx)
        rim = np.stack([x, 3.5 + cy, -106 + 0.0045 * (np.abs(x) - 8) ** 2], -1)
        out.append((_tube(rim, thick, True), False))
        temple = np.array(
            [[57 + rx - 25, -6, -95], [68, -7, -78], [77, -7, -40], [79, -6, -5], [78, -3, 14], [76, 12, 26]],
            np.float64,
        ) * np.array([side, 1, 1])
        out.append((_tube(temple, thick * 0.9, False), False))
        if s.glasses == "sun":
            lens = np.stack([rim * (1 - k) + rim[:-1].mean(0) * k for k in (0.0, 0.5, 1.0)])
            out.append((lens.astype(np.float32), True))
    bridge = np.stack([np.linspace(-8, 8, 5), np.array([-1, -3, -3.5, -3, -1]), np.full(5, -107.0)], -1)
    out.append((_tube(bridge, thick, False), False))
    return out


def _cap_brim() -> Float:
    u, v = np.meshgrid(np.linspace(-1, 1, 15), np.array([0.0, 0.35, 0.7, 1.0, 1.04]))
    x = u * 68 * (1 - 0.12 * v)
    reach = 66 * v * np.sqrt(np.clip(1 - 0.85 * u**2, 0, 1))
    z = -102 * np.sqrt(np.clip(1 - (u * 0.88) ** 2, 0, 1)) - reach
    return np.stack([x, -54 + 10 * u**2 + 0.22 * reach + 2.0 * (v > 1), z], -1).astype(np.float32)


@lru_cache(maxsize=16)
def build_head(s: HeadStyle) -> HeadModel:
    """Mesh and paint of one person, about 25 ms; kept for the last 16 persons (3 MB each)."""
    g = generic()
    noise = _Noise(s.noise_seed + 1, s.symmetric)
    shape = g.grid.shape[:2]
    relief = g.grid.copy()
    relief[..., 2] += _relief(g.grid, s)
    skin = warp(relief, s).astype(np.float32)
    az = np.degrees(np.arctan2(g.grid[..., 0], -(g.grid[..., 2] - 5)))
    hair = _hair_mask(g.grid, az, s, 0.0, 6.0)
    rough = 1 + 0.16 * (0.3 + s.curl) * noise.map(shape, 26, 22)
    top = smoothstep(10, -90, g.grid[..., 1])
    coat = s.hair_volume * hair * rough * (0.45 + 0.55 * top if s.hair in ("short", "full", "bob") else 1.0)
    if s.hair == "afro":
        coat = s.hair_volume * cv2.GaussianBlur(hair.astype(np.float32), (7, 7), 2) ** 1.5 * rough
    if s.hair == "scarf":
        coat = s.hair_volume * hair * rough * (1 - 0.6 * smoothstep(165, 195, g.grid[..., 1]))
    beard, tache = _beard_mask(g.grid, az, s)
    coat = coat + s.beard_length * s.beard * beard + 1.2 * s.moustache * tache
    coat[:, 0] = coat[:, -1] = (coat[:, 0] + coat[:, -1]) / 2
    worn = smoothstep(-4, 4, g.grid[..., 1] - 160)
    coat = coat + 2.5 * worn
    covered = np.clip(hair + worn + 0.7 * s.beard * beard, 0, 1)
    gloss = 0.30 * (1 - covered) + (0.16 if s.hair not in ("cap", "scarf") else 0.03) * hair * (1 - worn)
    gloss = gloss * (1 - 0.8 * _bump(g.grid, 31.5, 0, 15, 8) * (g.grid[..., 2] < -20))
    gloss = gloss + 0.25 * _bump(g.grid, 0, 79, 18, 4) * (g.grid[..., 2] < -20)

    head = _paint_head(s)
    h, w = head.shape[:2]
    swatch = np.zeros((h, PATCH, 3), np.float32)
    skin_color, hair_color = np.asarray(s.skin, np.float32), np.asarray(s.hair_color, np.float32)
    depth = np.interp(np.arange(64), [0, 18, 26, 36, 45, 58, 63], [0.42, 0.55, 0.85, 1.0, 0.82, 1.0, 0.6])
    swatch[0:64] = _linear(np.clip(skin_color * np.array([1.03, 0.95, 0.93]) * depth[:, None, None], 0, 1))
    strands = noise.map((220, PATCH), 12, 80) * (1 - 0.5 * s.curl) + noise.map((220, PATCH), 60, 40) * (0.25 + s.curl)
    swatch[68:288] = _linear(
        np.clip(hair_color * (1 + (0.24 - 0.13 * float(hair_color.mean())) * strands[..., None]), 0.01, 1)
    )
    swatch[292:304] = _linear(s.frame)
    swatch[306:318] = _linear((0.03, 0.03, 0.035))
    swatch[320:332] = _linear(s.cloth2)

    def rect(y0: float, y1: float) -> tuple[float, float, float, float]:
        return (w + 3.0, y0 + 2.0, w + PATCH - 4.0, y1 - 3.0)

    def placed(grid: Float) -> Float:
        return warp(grid, s).astype(np.float32)

    parts = []
    if s.hair != "scarf":
        parts += [Part(placed(_ear(k, s)), rect(0, 64), True, flip=k < 0, gloss=0.2, sss=1.0) for k in (-1, 1)]
    if s.hair in ("bob", "long"):
        parts.append(Part(placed(_hair_shell(s, noise)), rect(68, 288), two_sided=True, gloss=0.2))
    if s.hair == "bun":
        parts.append(Part(placed(_ball((0, -72, 104), (30, 28, 26))), rect(68, 288), True, gloss=0.2))
    if s.hair == "cap":
        parts.append(Part(placed(_cap_brim()), rect(320, 332), two_sided=True, gloss=0.03))
    if s.glasses != "none":
        for grid, lens in _glasses(s):
            parts.append(
                Part(
                    placed(grid),
                    rect(306, 318) if lens else rect(292, 304),
                    two_sided=True,
                    gloss=0.9 if lens else 0.5,
                )
            )
    return HeadModel(
        s,
        skin,
        coat.astype(np.float32),
        gloss.astype(np.float32),
        (1 - covered).astype(np.float32),
        tuple(parts),
        np.concatenate([head, swatch], 1),
    )
