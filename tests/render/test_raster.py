"""Laws of the rasteriser."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.render.raster import FAR, Frame, color_map


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_rasteriser_against_a_pixel_by_pixel_search(seed: int, both: bool) -> None:
    rng = np.random.default_rng(seed)
    side, count = 23, 12
    xy = rng.uniform(-8, 31, (count * 3, 2)).astype(np.float32)
    z = rng.uniform(500, 900, count * 3).astype(np.float32)
    tri = np.arange(count * 3).reshape(count, 3)
    frame = Frame.empty(side)
    values = np.concatenate([xy, z[:, None]], 1)
    frame.draw(xy, z, tri, values, "both" if both else "front")
    alone = color_map(xy, z, tri, values, np.zeros_like(frame.color), "both" if both else "front")
    np.testing.assert_array_equal(alone, frame.color)
    expected, margin = np.full((side, side), np.inf), np.full((side, side), np.inf)
    px, py = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    for a, b, c in tri:
        basis = np.array([xy[b] - xy[a], xy[c] - xy[a]], np.float64).T
        area = np.linalg.det(basis)
        if abs(area) < 1e-3 or (area > 0 and not both):
            continue
        u, v = np.linalg.inv(basis) @ np.stack([px.ravel() - xy[a, 0], py.ravel() - xy[a, 1]])
        inside = np.minimum(np.minimum(u, v), 1 - u - v).reshape(side, side)
        # 1 / z is linear on the screen
        depth = 1 / (1 / z[a] + u * (1 / z[b] - 1 / z[a]) + v * (1 / z[c] - 1 / z[a])).reshape(side, side)
        expected = np.where(inside >= 0, np.minimum(expected, depth), expected)
        margin = np.minimum(margin, np.abs(inside) * abs(area) ** 0.5)
    clear = margin > 0.05  # a pixel centre on an edge may go either way
    drawn = frame.depth < FAR / 2
    np.testing.assert_array_equal(drawn[clear], np.isfinite(expected)[clear])
    hit = clear & drawn
    np.testing.assert_allclose(frame.depth[hit], expected[hit], rtol=2e-3)
    np.testing.assert_allclose(frame.color[..., 2][hit], expected[hit], rtol=2e-3)  # values are mixed in perspective


def test_values_at_a_pixel_are_those_of_its_centre() -> None:
    xy = np.array([[2.0, 3.0], [4.0, 60.0], [61.0, 5.0]], np.float32)
    frame = Frame.empty(64)
    frame.draw(xy, np.full(3, 700.0, np.float32), np.array([[0, 1, 2]]), np.concatenate([xy, np.ones((3, 1))], 1))
    rows, cols = np.nonzero(frame.depth < FAR / 2)
    assert len(rows) > 1000
    np.testing.assert_allclose(frame.color[rows, cols, 0], cols + 0.5, atol=0.01)
    np.testing.assert_allclose(frame.color[rows, cols, 1], rows + 0.5, atol=0.01)
