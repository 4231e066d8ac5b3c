"""A person's chart by cells: where the skin lies, which way it looks, and how far it is from the middle of the head."""

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
    anatomy,
    average_adult,
    chart_column,
    chart_row,
    dot,
    wrapped,
)
from hpe_core.render.person.skin import fill
from hpe_core.render.raster import FAR, Frame

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Surface:
    """A person's chart by cells of CELL x CELL texels: points and outward normals (CELL_ROWS, CELL_COLS, 3), and how
    far the skin is from the axis (or, above the brows, from the middle of the skull)."""

    points: Float
    normals: Float
    radius: Float

    def cell(self, points: Float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        x, y, z = points[..., 0], points[..., 1], points[..., 2] - AXIS_Z
        col = chart_column(np.arctan2(x, -z)) / CELL
        row = chart_row(y, np.hypot(x, z)) / CELL
        return np.clip(row, 0, CELL_ROWS - 1).astype(np.intp), np.clip(col, 0, CELL_COLS - 1).astype(np.intp)

    def outside(self, points: Float, margin: Float | float) -> Float:
        """Points (..., 3), those too near to the head moved out to `margin` mm over it."""
        from_middle, far, skin = self._from_middle(points)
        return (points + from_middle * (np.maximum((skin + margin) / far, 1) - 1)[..., None]).astype(np.float32)

    def over(self, points: Float) -> tuple[Float, Float]:
        """Outward directions (N, 3) at points (N, 3), and their height over the skin, mm."""
        from_middle, far, skin = self._from_middle(points)
        return from_middle / far[..., None], far - skin

    def _from_middle(self, points: Float) -> tuple[Float, Float, Float]:
        """The way to points (..., 3) from the head's middle, how far that is, and how far the skin is there, mm."""
        row, col = self.cell(points)
        from_middle = points - np.array([0.0, BROW_Y, AXIS_Z], np.float32)
        from_middle[..., 1] = np.minimum(from_middle[..., 1], 0)
        far = np.sqrt(dot(from_middle, from_middle)) + np.float32(1e-6)
        return from_middle, far, np.minimum(self.radius[row, col], 125.0)


def surface_of(points: Float, normals: Float) -> Surface:
    """The chart of these points and their normals, (V, 3) both."""
    values = np.concatenate([points, normals], 1)
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
