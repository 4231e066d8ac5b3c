"""The anatomy that all persons share: MakeHuman's head, its shapes, the 68 landmarks and the chart of its skin.

`anatomy.npz` is made by `make_anatomy.py`; anatomy.LICENSE.md says whose it is (CC0 1.0).

Head frame, millimetres: x image right (the subject's left), y down, z into the head; the origin lies at the
eyes' height, 67.5 mm behind them. A head at pose (0, 0, 0) looks straight ahead as 300W-LP and
AFLW2000 mean it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.render.raster import Frame

Float = NDArray[np.float32]
Int = NDArray[np.int64]

# Of anatomy.npz: whoever hashes the code hashes the data.
SHA256 = "e437e79ca8da3329858ca594dfe7284c2ceb36fc693158bb6f84b008cfd27ec0"
SKIN, MOUTH, EYES, TEETH, TONGUE, LASHES = range(6)
NECK_PIVOT = np.array([0.0, 112.0, 28.0])  # where the head turns on the body
# Of the 68 landmarks those that AFLW has, too: corners of brows, eyes and mouth, nose and chin stay on their spot.
SIXTEEN = np.array([8, 17, 19, 21, 22, 24, 26, 30, 31, 35, 36, 39, 42, 45, 48, 54])
FEWEST_POINTS = 8  # of the sixteen; fewer fix no depth
MAX_RESIDUAL = 0.15  # of the head's size in the picture; more is no fit
EYES_AT = np.array([0.0, 0.0, -67.5])  # the middle between the eyes, mm
# MakeHuman's head, un-tilted, looks lower than a head of pose 0 in AFLW2000 and 300W-LP: this many degrees of
# pitch turn it to their zero. Measured by `python -m hpe_core.render.zero FOLDER`, whose docstring says how.
ZERO_PITCH = 3.9

# The chart: columns turn about a vertical axis, rows go down from the crown; a texel is about a millimetre.
CHART_ROWS, CHART_COLS, TURN_COLS = 384, 512, 464  # TURN_COLS go once round; the rest lies twice
AXIS_Z, BROW_Y, CROWN_ROW = 5.0, -20.0, 134.0
CELL = 2  # texels a side: a person's shape, and where hair grows, are charted by cells
CELL_ROWS, CELL_COLS = CHART_ROWS // CELL, CHART_COLS // CELL
PATCH = 64  # rows and columns of the squares below the chart: the eye, mouth, teeth, tongue and lashes
ATLAS_ROWS = CHART_ROWS + PATCH


def smoothstep(low: float, high: float, x: NDArray[np.floating]) -> NDArray[np.floating]:
    """0 below low, 1 above high (or the reverse if low > high)."""
    t = np.asarray((x - low) / (high - low))
    np.clip(t, 0, 1, out=t)
    rest = np.subtract(3, 2 * t)
    t *= t
    t *= rest
    return t


@dataclass(frozen=True, eq=False)
class Anatomy:
    """points (V, 3) mm: MakeHuman's neutral head. triangles (T, 3), outward. part (V,). uv (V, 2) texels of the
    atlas, column and row. landmarks, weights (68, 3): three vertices each, and how they are mixed. shapes: name ->
    (rows, moves (rows, 3) mm)."""

    points: Float
    triangles: Int
    part: NDArray[np.uint8]
    uv: Float
    landmarks: Int
    weights: Float
    shapes: Mapping[str, tuple[Int, Float]]
    origin: Int  # (V,) the vertex of the file; some lie twice, at both edges of the chart
    mirror: Int  # (V,) the vertex on the other side
    flat_shapes: dict[str, tuple[Int | slice, Float]] = field(default_factory=dict)  # those that were asked for

    def shaped(self, weights: Mapping[str, float]) -> Float:
        """(V, 3) mm: the head with these shapes, its eyes where those of all heads are."""
        out = self.points.copy()
        self.add(out, weights)
        out += np.asarray(self.eye_middle - out[self.part == EYES].mean(0), np.float32)
        return out

    def add(self, points: Float, weights: Mapping[str, float]) -> None:
        """Move points (V, 3) by these shapes, in place."""
        flat = points.reshape(-1)  # NumPy gathers from a line several times as fast as from rows of three
        for name, weight in weights.items():
            if weight:
                places, moves = self._moves(name)
                flat[places] += np.float32(weight) * moves

    def _moves(self, name: str) -> tuple[Int | slice, Float]:
        """A shape's places in a flat array of points, and what it adds to them."""
        if name not in self.flat_shapes:
            rows, moves = self.shapes[name]
            whole = np.array_equal(rows, np.arange(len(self.points)))
            places = slice(None) if whole else (rows[:, None] * 3 + np.arange(3)).ravel()
            self.flat_shapes[name] = places, moves.ravel()
        return self.flat_shapes[name]

    def landmarks_of(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """The landmarks (68, D) of per-vertex values (V, D)."""
        return np.einsum("lk,lkd->ld", self.weights, points[self.landmarks])

    @cached_property
    def eye_middle(self) -> Float:
        return self.points[self.part == EYES].mean(0)

    @cached_property
    def skin(self) -> NDArray[np.int32]:
        """The triangles whose corners are all skin."""
        return self.triangles[(self.part[self.triangles] == SKIN).all(1)].astype(np.int32)

    @cached_property
    def chart(self) -> Float:
        """(CHART_ROWS, CHART_COLS, 3): the point of the average adult's skin at each texel; else zero."""
        points = self.shaped(average_adult())
        frame = Frame.empty(max(CHART_ROWS, CHART_COLS))
        frame.draw(self.uv, 1000 - np.hypot(points[:, 0], points[:, 2] - AXIS_Z), self.skin, points, "both")
        return frame.color[:CHART_ROWS, :CHART_COLS]


ANCESTRIES = ("african", "asian", "caucasian")
SEXES = ("female", "male")
SHARES = (0.25, 0.27, 0.48)  # of the ancestries
# What MakeHuman's mean lacks beside photographs: noses and chins stand out further, lips lie further back and lower
# (docs/champion.md).
MEANS = {
    "nose/nose-scale-depth-incr": 0.2,
    "mouth/mouth-trans-backward": 0.2,
    "mouth/mouth-trans-down": 0.35,
    "chin/chin-prominent-incr": 0.2,
}


def average_adult(shares: Sequence[float] = SHARES) -> dict[str, float]:
    """Shapes of an adult between the sexes and ancestries, a fifth of the way to old age: the head of the chart."""
    return {
        f"macrodetails/{ancestry}-{sex}-{age}": share / 2 * part
        for ancestry, share in zip(ANCESTRIES, shares, strict=True)
        for sex in SEXES
        for age, part in (("young", 0.8), ("old", 0.2))
    }


def milder(shares: Sequence[float]) -> list[float]:
    """Ancestries as they move the shape: MakeHuman's corners are caricatures, the tips of their noses lie 6 to 9 mm
    apart."""
    african, asian, caucasian = shares
    return [african / 2, asian / 2, caucasian / 2 + 0.5]


@lru_cache(maxsize=1)
def anatomy() -> Anatomy:
    """The file, read once a process."""
    with np.load(Path(__file__).with_name("anatomy.npz")) as data:
        points = data["points"].astype(np.float64) / 50
        triangles, part = data["triangles"].astype(np.int64), data["part"]
        landmarks, weights = data["landmarks"].astype(np.int64), data["weights"]
        names, ends = [str(name) for name in data["names"]], np.cumsum(data["counts"].astype(np.int64))
        rows, moves = data["rows"].astype(np.int64), data["moves"].astype(np.float64) / 50
    tilt = euler_to_matrix([ZERO_PITCH, 0.0, 0.0])
    points = (points - points[part == EYES].mean(0)) @ tilt.T + EYES_AT
    moves = moves @ tilt.T
    # Triangles across the back of the chart get copies of their corners on the other edge.
    angle = np.arctan2(points[:, 0], AXIS_Z - points[:, 2])
    corners = angle[triangles]
    torn = (np.ptp(corners, axis=1) > np.pi)[:, None] & (corners < 0)
    twins = np.unique(triangles[torn])
    twin_of = np.full(len(points), -1)
    twin_of[twins] = len(points) + np.arange(len(twins))
    triangles = np.where(torn, twin_of[triangles], triangles)
    points, part = np.concatenate([points, points[twins]]), np.concatenate([part, part[twins]])
    angle = np.concatenate([angle, angle[twins] + 2 * np.pi])
    shapes = {}
    for name, start, end in zip(names, [0, *ends[:-1]], ends, strict=True):
        at, by = rows[start:end], moves[start:end]
        also = twin_of[at] >= 0
        at, by = np.concatenate([at, twin_of[at[also]]]), np.concatenate([by, by[also]])
        shapes[name] = (at, by.astype(np.float32))
    uv = _chart_of(points, angle, part)
    origin = np.concatenate([np.arange(len(twin_of)), twins])
    mirror = _mirror_of(points[: len(twin_of)], part)[origin]
    return Anatomy(points.astype(np.float32), triangles, part, uv, landmarks, weights, shapes, origin, mirror)


def _mirror_of(points: NDArray[np.float64], part: NDArray[np.uint8]) -> Int:
    from scipy.spatial import cKDTree

    places = np.column_stack([points, 50.0 * part[: len(points)]])
    return np.asarray(cKDTree(places).query(places * [-1, 1, 1, 1])[1], np.int64)


def chart_row(y: NDArray[np.floating], radius: NDArray[np.floating]) -> NDArray[np.floating]:
    """The chart's row of skin at height y and distance `radius` from the axis; the torso is pressed together."""
    above = CROWN_ROW * np.arctan2(BROW_Y - y, radius) / (np.pi / 2)
    below = np.where(y < 120, y, 120 + 0.32 * (y - 120)) - BROW_Y
    return np.where(y < BROW_Y, CROWN_ROW - above, CROWN_ROW + below)


def chart_column(turn: NDArray[np.floating]) -> NDArray[np.floating]:
    """The chart's column of skin at this angle (radians) round from the nose."""
    return CHART_COLS / 2 + turn * (TURN_COLS / (2 * np.pi))


def wrapped(chart: Float) -> Float:
    """A chart, of this size or a whole part of it, whose first and last columns are what they lie on."""
    texels = CHART_COLS // chart.shape[1]
    out, turn, edge = chart.copy(), TURN_COLS // texels, (CHART_COLS - TURN_COLS) // 2 // texels
    out[:, :edge], out[:, -edge:] = chart[:, turn : turn + edge], chart[:, edge : 2 * edge]
    return out


def _chart_of(points: NDArray[np.float64], angle: NDArray[np.float64], part: NDArray[np.uint8]) -> Float:
    x, y, z = points.T
    uv = np.stack([chart_column(angle), chart_row(y, np.hypot(x, z - AXIS_Z))], 1)
    for number, of in enumerate((EYES, MOUTH, TEETH, TONGUE, LASHES)):
        uv[part == of] = [(number + 0.5) * PATCH, CHART_ROWS + PATCH / 2]
    for side in (-1, 1):
        ball = (part == EYES) & (np.sign(x) == side)
        out = points[ball] - (points[ball].min(0) + points[ball].max(0)) / 2
        across = np.hypot(out[:, 0], out[:, 1])
        turn = np.arctan2(across, -out[:, 2]) / np.maximum(across, 1e-6)
        most = np.minimum(turn, (np.pi / 2) / np.maximum(across, 1e-6))
        uv[ball] += (PATCH / 2 - 1) / (np.pi / 2) * most[:, None] * out[:, :2]
    return uv.astype(np.float32)


def landmark_targets() -> NDArray[np.float64]:
    """(68, 3) mm in the head frame: the iBUG landmarks of the mean of who is drawn."""
    shared = anatomy()
    return shared.landmarks_of(shared.shaped(average_adult(milder(SHARES)) | MEANS)).astype(np.float64)


def solve_pose(landmarks_L2: ArrayLike, visible_L: ArrayLike | None = None) -> NDArray[np.float64] | None:
    """(68, 2) landmarks -> (3, 3) R_cam: a scaled orthographic fit of a mean head; None where that does not fit.

    Sixteen points are used, those that AFLW's 21 landmarks have, too: corners of brows, eyes and mouth, nose and chin
    stay on their spot of the head, as jaw and lids do not. Hidden ones and NaN count not.
    """
    points = np.asarray(landmarks_L2, dtype=np.float64)[SIXTEEN]
    seen = np.isfinite(points).all(axis=1)
    if visible_L is not None:
        seen &= np.asarray(visible_L)[SIXTEEN] != 0  # NaN: nobody knows
    if seen.sum() < FEWEST_POINTS:
        return None
    head = landmark_targets()[SIXTEEN][seen]
    head, points = head - head.mean(axis=0), points[seen] - points[seen].mean(axis=0)
    affine = np.linalg.lstsq(head, points, rcond=None)[0].T
    u, stretch, vt = np.linalg.svd(affine, full_matrices=False)
    rows = u @ vt
    left = points - stretch.mean() * head @ rows.T
    if stretch.mean() <= 0 or np.sqrt((left**2).sum(1).mean()) > MAX_RESIDUAL * stretch.mean() * np.ptp(head):
        return None
    return np.vstack([rows, np.cross(rows[0], rows[1])])


# ---- what every figure's points go through


@lru_cache(maxsize=1)
def _around() -> tuple[NDArray[np.int64], csr_matrix, csr_matrix]:
    """Corners (3, T) in the file's own vertices; (V, T) sums the triangles round a vertex; (V, V) the mean of
    neighbours."""
    shared = anatomy()
    origin = shared.origin[shared.triangles]
    count, total = len(shared.points), len(origin)
    ones, rows = np.ones(3 * total, np.float32), origin.T.ravel()
    around = csr_matrix((ones, (rows, np.tile(np.arange(total), 3))), (count, total))
    a, b = origin.ravel(), np.roll(origin, 1, 1).ravel()
    near = csr_matrix((np.ones(2 * len(a), np.float32), (np.r_[a, b], np.r_[b, a])), (count, count))
    near = near + csr_matrix((np.full(count, 3, np.float32), (np.arange(count), np.arange(count))), (count, count))
    near = csr_matrix(near.multiply(1 / near.sum(1)))
    return np.ascontiguousarray(origin.T), around[shared.origin], near[shared.origin].astype(np.float32)


def normals_of(points: Float) -> Float:
    """(V, 3) outward unit normals of the shared mesh at these points (V, 3)."""
    (a, b, c), around, _ = _around()
    corners = [(plane.take(a), plane.take(b), plane.take(c)) for plane in np.ascontiguousarray(points.T)]
    (ux, vx), (uy, vy), (uz, vz) = [(second - first, third - first) for first, second, third in corners]
    out = np.empty_like(points)
    for k, flat in enumerate((uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx)):
        out[:, k] = around @ flat
    return unit(out)


def dot(a: Float, b: Float) -> Float:
    """(...) of two (..., 3). Here and below, column by column: NumPy is slow along an axis of three."""
    out = a[..., 0] * b[..., 0]
    out += a[..., 1] * b[..., 1]
    out += a[..., 2] * b[..., 2]
    return out


def unit(vectors: Float) -> Float:
    """(N, 3) vectors at length one."""
    length, out = np.sqrt(dot(vectors, vectors)) + np.float32(1e-9), np.empty_like(vectors)
    for k in range(3):
        np.divide(vectors[:, k], length, out=out[:, k])
    return out


def spread(values: NDArray[np.float32], times: int = 1) -> Float:
    """Per-vertex values, each replaced by a mean of it and its neighbours."""
    near = _around()[2]
    for _ in range(times):
        values = near @ values
    return values


@lru_cache(maxsize=1)
def _marked() -> csr_matrix:
    """(68, V) the mean round each landmark, over about a centimetre: at the rim of a lid the skin's own normal says
    little."""
    shared, near = anatomy(), _around()[2]
    rows = np.repeat(np.arange(68), 3)
    at = csr_matrix((shared.weights.ravel(), (rows, shared.landmarks.ravel())), (68, len(shared.points)))
    return at @ near @ near @ near @ near


def landmark_normals(normals: Float) -> Float:
    """(68, 3) unit normals of the skin round the landmarks, from those of all points (V, 3)."""
    return unit(_marked() @ normals)


def body_share(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """(N,) how far points follow the body and not the head: none above a plane from the chin to the nape."""
    return smoothstep(62, 165, points[:, 1] + 0.45 * points[:, 2])
