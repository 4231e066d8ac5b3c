"""A person ready to be posed: points, atlas, strands and what is worn. It is built once and serves all its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hpe_core.render.person.anatomy import (
    AXIS_Z,
    BROW_Y,
    CELL,
    CELL_COLS,
    CELL_ROWS,
    CHART_COLS,
    CHART_ROWS,
    EYES,
    SKIN,
    anatomy,
    average_adult,
    normals_of,
    smoothstep,
    wrapped,
)
from hpe_core.render.person.hair import Strands, Surface, grow
from hpe_core.render.person.skin import canvas, fill, hair_depth, neckline, paint
from hpe_core.render.person.style import HeadStyle
from hpe_core.render.person.wear import Solid, dress, lenses
from hpe_core.render.raster import FAR, Frame

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Figure:
    """points, normals (V, 3): the bare head, from which the landmarks are read. coat (V,): mm that hair and cloth stand
    off it.
    atlas: see `skin.paint`."""

    points: Float
    coat: Float
    normals: Float
    atlas: Float
    strands: list[Strands]
    solid: Solid | None
    lenses: Solid | None


@lru_cache(maxsize=4)
def build_figure(style: HeadStyle) -> Figure:
    """The person, worked out: a few hundredths of a second."""
    shared = anatomy()
    points = shared.shaped(dict(style.shapes))
    surface = surface_of(points)
    rows = np.clip(shared.uv[:, 1], 0, CHART_ROWS - 1).astype(int)
    cols = np.clip(shared.uv[:, 0], 0, CHART_COLS - 1).astype(int)
    standing = {"bald": 0.0, "shaved": 0.6, "crop": 2.5, "afro": 0.75 * style.hair_length, "curly": 8.0}
    height = standing.get(style.cut, 0.55 * style.hair_volume)
    if style.hat != "none":
        height = min(height, 4.0)
    coat = height * smoothstep(2, 30, hair_depth(style)[rows, cols])
    cloth = smoothstep(-1, 5, shared.uv[:, 1] - neckline(style, canvas().turn[rows, cols]))
    coat = np.maximum(coat, 5.0 * cloth) * (shared.part == SKIN)
    solid, atlas, strands = dress(style, points, surface), paint(style), grow(style, surface)
    return Figure(points, coat.astype(np.float32), normals_of(points), atlas, strands, solid, lenses(style, points))


def surface_of(points: Float) -> Surface:
    """The chart of these points (V, 3)."""
    values = np.concatenate([points, normals_of(points)], 1)
    chart = wrapped((_cells() @ values).reshape(CELL_ROWS, CELL_COLS, 6))
    x, y, z = chart[..., 0], np.minimum(chart[..., 1] - np.float32(BROW_Y), 0), chart[..., 2] - np.float32(AXIS_Z)
    return Surface(chart[..., :3], chart[..., 3:], np.sqrt(x * x + y * y + z * z))


@lru_cache(maxsize=1)
def _cells() -> csr_matrix:
    """(cells of the chart, V) how the corners of the average adult's triangle there are mixed; where it has no skin,
    those of the nearest that has."""
    shared, side = anatomy(), max(CELL_ROWS, CELL_COLS)
    corners = shared.skin.ravel()
    points = shared.shaped(average_adult())[corners]
    values = np.zeros((len(corners), 3), np.float32)  # the triangle, and the shares of its second and third corner
    values[:, 0] = np.arange(len(corners)) // 3
    values[1::3, 1], values[2::3, 2] = 1, 1
    frame, radius = Frame.empty(side), np.hypot(points[:, 0], points[:, 2] - AXIS_Z)
    own = np.arange(len(corners)).reshape(-1, 3)
    frame.draw(shared.uv[corners] / CELL, 1000 - radius, own, values, "both")
    chart = fill(frame.color, frame.depth < FAR / 2)[:CELL_ROWS].reshape(-1, 3)
    shares = np.stack([1 - chart[:, 1] - chart[:, 2], chart[:, 1], chart[:, 2]], 1)
    found = shared.skin[np.rint(chart[:, 0]).astype(np.intp)]
    return csr_matrix(
        (shares.ravel(), found.ravel(), np.arange(0, found.size + 1, 3)), (len(found), len(shared.points))
    )


@lru_cache(maxsize=1)
def eye_rows() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The vertices of the right eye and of the left."""
    shared = anatomy()
    eyes = np.flatnonzero(shared.part == EYES)
    x = shared.points[eyes, 0]
    return eyes[x < 0], eyes[x > 0]
