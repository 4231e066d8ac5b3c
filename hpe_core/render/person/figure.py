"""A person ready to be posed: points, atlas, strands and what is worn. It is built once and serves all its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hpe_core.render.person.anatomy import (
    CHART_COLS,
    CHART_ROWS,
    EYES,
    SKIN,
    anatomy,
    normals_of,
    smoothstep,
)
from hpe_core.render.person.hair import Strands, grow
from hpe_core.render.person.skin import canvas, hair_depth, neckline, paint
from hpe_core.render.person.style import HeadStyle
from hpe_core.render.person.surface import surface_of
from hpe_core.render.person.wear import Solid, dress, lenses

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
    normals = normals_of(points)
    surface = surface_of(points, normals)
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
    return Figure(points, coat.astype(np.float32), normals, atlas, strands, solid, lenses(style, points))


@lru_cache(maxsize=1)
def eye_rows() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The vertices of the right eye and of the left."""
    shared = anatomy()
    eyes = np.flatnonzero(shared.part == EYES)
    x = shared.points[eyes, 0]
    return eyes[x < 0], eyes[x > 0]
