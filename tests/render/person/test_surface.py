"""A person's chart, and what grows on it."""

import cv2
import numpy as np
import pytest

from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.render.draw import Scene, _aim, _express, _Posed, _shaded
from hpe_core.render.person.anatomy import CELL, CHART_COLS, TURN_COLS, anatomy, normals_of
from hpe_core.render.person.figure import build_figure
from hpe_core.render.person.style import draw_style
from hpe_core.render.person.surface import surface_of
from hpe_core.render.raster import Frame, color_map, fronts

SIDE = 256


def test_a_point_of_the_chart_lies_in_its_own_cell() -> None:
    """Of the neutral head, after which the chart is drawn. Triangles over the crown mix columns; ears and the
    chin fold, and lie over what is below."""
    surface = surface_of(anatomy().points, normals_of(anatomy().points))
    rows, cols = surface.cell(surface.points)
    at = np.indices(rows.shape)
    once = slice((CHART_COLS - TURN_COLS) // 2 // CELL, -((CHART_COLS - TURN_COLS) // 2 // CELL))
    away = np.maximum(np.abs(rows - at[0]), np.abs(cols - at[1]))[25:175, once]
    assert np.mean(away <= 1) > 0.95


def test_a_face_of_the_chart_looks_away_from_the_axis() -> None:
    surface = surface_of(anatomy().points, normals_of(anatomy().points))
    away, height = surface.over(surface.points[25:175].reshape(-1, 3))
    outward = (away * surface.normals[25:175].reshape(-1, 3)).sum(1)
    assert np.mean(outward > 0.3) > 0.9 and np.mean(np.abs(height) < 1) > 0.9


@pytest.mark.parametrize("person", range(6))
def test_strands_that_are_left_out_would_not_show(person: int) -> None:
    """Of the hair behind the head nothing is drawn: all strands give the picture that those in sight give."""
    figure, scene = build_figure(draw_style(7, person)), Scene(pose=(5.0, 40.0, -8.0))
    bare = _express(figure, scene)
    camera = _aim(anatomy().landmarks_of(bare), scene, SIDE // 2)
    posed, head = _Posed(camera, scene), Frame.empty(SIDE)
    (points,) = posed(bare + figure.normals * figure.coat[:, None])
    xy, _ = posed.project(points)
    head.draw(xy, points[:, 2], fronts(xy, anatomy().skin, SIDE), np.ones_like(points))
    left_out = 0
    for strands in figure.strands:
        (at,) = posed(strands.points.reshape(-1, 3))
        shown = strands.shown(posed.project(at)[0], at[:, 2], head.depth)
        left_out += len(strands.points) - len(shown.points)
        pictures = []
        for some in (strands, shown):
            (at,) = posed(some.points.reshape(-1, 3))
            frame, (xy, scale) = Frame(head.color.copy(), head.depth.copy()), posed.project(at)
            edges, depth, colors, ribbons = some.ribbons(xy, at[:, 2], scale, some.color.reshape(-1, 3), frame.depth)
            frame.draw(edges, depth, ribbons, colors, "both")
            pictures.append(frame.color)
        assert np.mean(np.abs(pictures[0] - pictures[1]).max(2) > 0.02) < 2e-4
    assert left_out or not figure.strands


@pytest.mark.parametrize("yaw", [0.0, 55.0, -80.0])
def test_light_at_half_the_size_is_that_of_the_whole_size_and_reaches_the_rim(yaw: float) -> None:
    shared = anatomy()
    points = (shared.points @ euler_to_matrix([10.0, yaw, 5.0]).T + [0, 0, 700]).astype(np.float32)
    xy = (points[:, :2] * 0.9 + SIDE / 2).astype(np.float32)
    light = (0.6 + 0.4 * np.sin(points / 40)).astype(np.float32)
    facing = fronts(xy, shared.skin, SIDE)
    whole = color_map(xy, points[:, 2], facing, light, np.zeros((SIDE, SIDE, 3), np.float32))
    halved = _shaded(xy, points[:, 2], facing, light, SIDE)
    drawn = whole.max(2) > 0
    rim = drawn & (cv2.erode(drawn.astype(np.uint8), np.ones((3, 3))) == 0)
    assert drawn.mean() > 0.2 and rim.sum() > 200
    assert np.abs(halved - whole)[drawn].mean() < 0.01 and np.abs(halved - whole)[rim].mean() < 0.04
