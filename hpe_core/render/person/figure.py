"""A person ready to be posed: points, atlas, strands and what is worn. It is built once and serves all its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.render.person.anatomy import (
    AXIS_Z,
    BROW_Y,
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
from hpe_core.render.raster import FAR, Frame, color_map

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
    """The chart of these points (V, 3); where it has no skin it is the average adult's."""
    shared = anatomy()
    radius = np.hypot(points[:, 0], points[:, 2] - AXIS_Z)
    charts = []
    for values, usual in zip((points, normals_of(points)), _usual(), strict=True):
        chart = color_map(shared.uv / 2, 1000 - radius, shared.skin, values, usual.copy(), "both")
        whole = cv2.resize(chart, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
        charts.append(wrapped(whole[:CHART_ROWS, :CHART_COLS]))
    place, normal = charts
    x, y, z = place[..., 0], np.minimum(place[..., 1] - np.float32(BROW_Y), 0), place[..., 2] - np.float32(AXIS_Z)
    return Surface(place, normal, np.sqrt(x * x + y * y + z * z))


@lru_cache(maxsize=1)
def _usual() -> tuple[Float, Float]:
    """Points and normals of the average adult on a square that holds the chart at half its size, without gaps."""
    shared, side = anatomy(), max(CHART_ROWS, CHART_COLS) // 2
    points = shared.shaped(average_adult())
    charts = []
    for values in (points, normals_of(points)):
        frame = Frame.empty(side)
        frame.draw(shared.uv / 2, 1000 - np.hypot(points[:, 0], points[:, 2] - AXIS_Z), shared.skin, values, "both")
        charts.append(fill(frame.color, frame.depth < FAR / 2))
    return charts[0], charts[1]


@lru_cache(maxsize=1)
def eye_rows() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The vertices of the right eye and of the left."""
    shared = anatomy()
    eyes = np.flatnonzero(shared.part == EYES)
    x = shared.points[eyes, 0]
    return eyes[x < 0], eyes[x > 0]
