"""A person ready to be posed: points, atlas, strands and what is worn. It is built once and serves all its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hpe_core.render.anatomy import AXIS_Z, BROW_Y, CHART_COLS, CHART_ROWS, EYES, SKIN, anatomy, smoothstep, wrapped
from hpe_core.render.geometry import normals_of
from hpe_core.render.hair import Strands, Surface, grow
from hpe_core.render.person import HeadStyle
from hpe_core.render.raster import Frame
from hpe_core.render.skin import canvas, fill, hair_depth, neckline, paint
from hpe_core.render.wear import Lenses, Solid, dress, lenses

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Figure:
    """points (V, 3): the bare head, from which the landmarks are read. coat (V,): mm that hair and cloth stand off it.
    atlas: see `skin.paint`."""

    style: HeadStyle
    points: Float
    coat: Float
    atlas: Float
    strands: Strands | None
    solid: Solid | None
    lenses: Lenses | None


@lru_cache(maxsize=16)
def build_figure(style: HeadStyle) -> Figure:
    """The person, worked out: a few hundredths of a second."""
    shared = anatomy()
    points = shared.shaped(dict(style.shapes))
    surface = surface_of(points)
    rows = np.clip(shared.uv[:, 1], 0, CHART_ROWS - 1).astype(int)
    cols = np.clip(shared.uv[:, 0], 0, CHART_COLS - 1).astype(int)
    standing = {"bald": 0.0, "shaved": 0.6, "crop": 2.5, "afro": 0.75 * style.hair_length, "curly": 8.0}
    height = standing.get(style.cut, 0.55 * style.hair_volume)
    if style.hat in ("cap", "beanie", "helmet", "scarf", "hood", "brim"):
        height = min(height, 4.0)
    coat = height * smoothstep(2, 30, hair_depth(style)[rows, cols])
    cloth = smoothstep(-1, 5, shared.uv[:, 1] - neckline(style, canvas().turn[rows, cols]))
    coat = np.maximum(coat, 5.0 * cloth) * (shared.part == SKIN)
    solid = dress(style, points, surface)
    return Figure(style, points, coat.astype(np.float32), paint(style), grow(style, surface), solid, lenses(style, points))


def surface_of(points: Float) -> Surface:
    """The chart of these points (V, 3)."""
    shared = anatomy()
    skin = shared.triangles[(shared.part[shared.triangles] == SKIN).all(1)]
    radius = np.hypot(points[:, 0], points[:, 2] - AXIS_Z)
    charts = []
    for values in (points, normals_of(points)):
        frame = Frame.empty(max(CHART_ROWS, CHART_COLS))
        frame.draw(shared.uv, 1000 - radius, skin, values, "both")
        charts.append(wrapped(fill(frame.color[:CHART_ROWS, :CHART_COLS], frame.depth[:CHART_ROWS, :CHART_COLS] < 5000)))
    place, normal = charts
    normal /= np.sqrt((normal**2).sum(-1, keepdims=True)) + np.float32(1e-6)
    lift = np.minimum(place[..., 1] - BROW_Y, 0)
    far = np.sqrt(place[..., 0] ** 2 + (place[..., 2] - AXIS_Z) ** 2 + lift**2)
    return Surface(place, normal, far.astype(np.float32))


@lru_cache(maxsize=1)
def eye_rows() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The vertices of the right eye and of the left."""
    shared = anatomy()
    eyes = np.flatnonzero(shared.part == EYES)
    x = shared.points[eyes, 0]
    return eyes[x < 0], eyes[x > 0]
