"""Laws of the canonical crop, on pictures of pure noise: the hardest for any resampling."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpe_core.geometry.crop import (
    MIN_INSIDE,
    Box,
    Image,
    canonical_crop,
    fault_of,
    network_box,
    offset_grid,
    window,
)
from hpe_core.spec.data import CropSpec

SIZE, MARGIN = 24, 6
SHAPES = st.sampled_from(["square", "stretch"])
NOISE = np.random.default_rng(0).integers(0, 256, (237, 331, 3), dtype=np.uint8)


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Centres in and around the noise picture; sides from a third of the network input to seven times it."""
    center = draw(floats(-20, 350)), draw(floats(-20, 260))
    return Box.around(center, draw(floats(8, 170)), draw(floats(8, 170)))


def spec(shape: str, margin: int = MARGIN) -> CropSpec:
    return CropSpec(size=SIZE, margin_px=margin, shape=shape)


def greatest_difference(first: Image, second: Image) -> int:
    return int(np.abs(first.astype(np.int16) - second.astype(np.int16)).max())


@settings(max_examples=150, deadline=None)
@given(boxes(), SHAPES, st.integers(-MARGIN, MARGIN), st.integers(-MARGIN, MARGIN))
def test_window_is_the_crop_of_the_moved_box(box, shape, dx, dy):
    crop = canonical_crop(NOISE, box, spec(shape))
    moved = canonical_crop(NOISE, box.moved(dx * crop.scale_x, dy * crop.scale_y), spec(shape))
    assert greatest_difference(window(crop.pixels, SIZE, dx, dy), window(moved.pixels, SIZE)) <= 1


@settings(max_examples=150, deadline=None)
@given(boxes(), SHAPES)
@example(Box(-4.0, 62.5, 4.0, 117.5), "stretch")  # where cv2.blur on uint8 puts a white pixel on a black one
@example(Box(64.38395969180671, -60.0, 72.38395969180671, 60.0), "square")  # whole but for rounding
def test_mirrored_picture_gives_the_mirrored_crop(box, shape):
    there = canonical_crop(NOISE, box, spec(shape)).pixels
    flipped = np.ascontiguousarray(NOISE[:, ::-1])
    width = NOISE.shape[1]
    back = canonical_crop(flipped, Box(width - box.x2, box.y1, width - box.x1, box.y2), spec(shape)).pixels
    assert greatest_difference(there, back[:, ::-1]) <= 1


@settings(max_examples=100, deadline=None)
@given(boxes(), SHAPES, st.integers(1, 10))
def test_margin_only_adds_pixels(box, shape, margin):
    wide = canonical_crop(NOISE, box, spec(shape, margin)).pixels
    tight = canonical_crop(NOISE, box, spec(shape, 0)).pixels
    assert greatest_difference(window(wide, SIZE), tight) <= 1


@settings(max_examples=40, deadline=None)
@given(boxes(), SHAPES)
def test_crop_is_bilinear_sampling_of_the_averaged_picture(box, shape):
    """Against a second implementation: running means by cumulative sums, then bilinear by hand, black outside."""
    crop = canonical_crop(NOISE, box, spec(shape))
    u = np.arange(SIZE + 2 * MARGIN) - MARGIN + 0.5
    columns = sampling_matrix(NOISE.shape[1], crop.box.x1 + u * crop.scale_x, max(1, int(crop.scale_x + 1e-6)))
    rows = sampling_matrix(NOISE.shape[0], crop.box.y1 + u * crop.scale_y, max(1, int(crop.scale_y + 1e-6)))
    expected = np.einsum("ih,hwc,jw->ijc", rows, NOISE.astype(np.float64), columns, optimize=True)
    assert np.abs(expected - crop.pixels).max() <= 1.1


def sampling_matrix(length: int, positions: NDArray[np.floating], mean: int) -> NDArray[np.float64]:
    """(len(positions), length): the weight of every pixel in the sample at an image coordinate."""
    centers = np.arange(length) + 0.5
    out = np.zeros((len(positions), length))
    for i, position in enumerate(positions):
        # Means of `mean` pixels sit on a lattice of pitch 1; sampling is linear between the two nearest.
        offset = 0.5 * (mean % 2)
        low = np.floor(position - offset) + offset
        for middle, weight in ((low, 1 - (position - low)), (low + 1, position - low)):
            out[i] += weight * (np.abs(centers - middle) < mean / 2) / mean
    return out


@given(boxes())
@settings(max_examples=50, deadline=None)
def test_outside_the_picture_is_black(box):
    white = np.full((60, 80, 3), 255, np.uint8)
    crop = canonical_crop(white, box, spec("square"))
    u = np.arange(SIZE + 2 * MARGIN) - MARGIN + 0.5
    x, y = crop.box.x1 + u * crop.scale_x, crop.box.y1 + u * crop.scale_y
    reach = max(1.0, crop.scale_x)
    inside = np.outer((y > reach) & (y < 60 - reach), (x > reach) & (x < 80 - reach))
    outside = np.add.outer((y < -reach) | (y > 60 + reach), (x < -reach) | (x > 80 + reach))
    assert (crop.pixels[inside] == 255).all()
    assert (crop.pixels[outside] == 0).all()


def test_unit_scale_copies_pixels():
    crop = canonical_crop(NOISE, Box(50, 40, 50 + SIZE, 40 + SIZE), spec("square"))
    assert np.array_equal(crop.pixels, NOISE[40 - 6 : 40 + 30, 50 - 6 : 50 + 30])


def test_far_more_pixels_than_a_short_can_count():
    wide = np.zeros((40, 40_000, 3), np.uint8)
    wide[:, 39_000:] = 200
    assert (canonical_crop(wide, Box(39_500, 8, 39_524, 32), spec("square")).pixels == 200).all()


@pytest.mark.parametrize("side", [24, 48, 380, 390, 900])
def test_an_even_picture_stays_even_at_every_scale(side):
    """At 16 x 16 pixels a sum still fits into 16 bits, at 17 x 17 it does not."""
    even = np.full((1000, 1000, 3), (255, 137, 1), np.uint8)
    crop = canonical_crop(even, Box.around((500, 500), side, side), spec("square", 0))
    assert (crop.pixels == even[:SIZE, :SIZE]).all()


@pytest.mark.parametrize("box", [Box(5, 5, 5, 50), Box(5, 5, 50, 5), Box(50, 5, 5, 50), Box(0, 0, float("nan"), 9)])
def test_box_without_area_is_refused(box):
    with pytest.raises(ValueError, match="no area"):
        canonical_crop(NOISE, box, spec("square"))


@given(boxes(), st.integers(5, 90), st.integers(5, 90))
@example(Box(30, 5, 40, 15), 80, 20)
@example(Box(5, 30, 15, 40), 20, 80)
def test_a_box_is_refused_where_its_picture_shows_too_small_a_share_of_it(box, width, height):
    shown = [
        max(0, min(high, side) - max(low, 0)) / (high - low)
        for low, high, side in ((box.x1, box.x2, width), (box.y1, box.y2, height))
    ]
    if abs(np.prod(shown) - MIN_INSIDE) > 1e-9:
        assert (fault_of(box, width, height) is None) == (np.prod(shown) > MIN_INSIDE)


@given(boxes(), floats(0.5, 3))
def test_network_box_keeps_the_center(box, factor):
    for shape in ("square", "stretch"):
        grown = network_box(box, CropSpec(size=SIZE, shape=shape, box_scale=factor))
        assert grown.center == pytest.approx(box.center)
        assert max(grown.width, grown.height) == pytest.approx(factor * max(box.width, box.height))
    assert grown.width / grown.height == pytest.approx(box.width / box.height)


@given(boxes(), SHAPES, floats(0.5, 2))
def test_landmarks_follow_the_pixels(box, shape, factor):
    """The corners of what the window shows, in tighter and in wider boxes."""
    made = CropSpec(size=SIZE, margin_px=MARGIN, shape=shape, box_scale=factor)
    crop, shown = canonical_crop(NOISE, box, made), network_box(box, made)
    corners = np.array([[shown.x1, shown.y1], [shown.x2, shown.y2]])
    assert crop.to_crop(corners) == pytest.approx(np.array([[0, 0], [SIZE, SIZE]]), abs=1e-3)


@given(boxes(), SHAPES, floats(0.5, 2), floats(0.2, 0.8), floats(0.2, 0.8))
def test_a_point_is_where_its_pixels_went(box, shape, factor, across, down):
    """A white spot is painted at a point of the picture that the crop shows."""
    made = CropSpec(size=SIZE, margin_px=MARGIN, shape=shape, box_scale=factor)
    shown = network_box(box, made)
    point = np.array([shown.x1 + across * shown.width, shown.y1 + down * shown.height])
    radius = max(2.0, 0.1 * min(shown.width, shown.height))
    height, width = NOISE.shape[:2]
    assume(
        min(shown.width, shown.height) > 16
        and (radius < point).all()
        and (point < [width - radius, height - radius]).all()
    )
    y, x = np.mgrid[:height, :width] + 0.5
    spot = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (radius / 2) ** 2)
    crop = canonical_crop(np.repeat((255 * spot).round().astype(np.uint8)[..., None], 3, 2), box, made)
    seen = crop.pixels[..., 0].astype(np.float64)
    rows, columns = np.mgrid[: len(seen), : len(seen)] + 0.5 - MARGIN
    found = np.array([(seen * columns).sum(), (seen * rows).sum()]) / seen.sum()
    assert found == pytest.approx(crop.to_crop(point[None])[0], abs=0.35)


@given(st.integers(0, 20), st.integers(1, 8))
def test_offset_grid(radius, step):
    grid = offset_grid(radius, step)
    assert len(grid) == (2 * (radius // step) + 1) ** 2 == len(set(grid))
    assert all(abs(v) <= radius and v % step == 0 for pair in grid for v in pair)
    assert (0, 0) in grid and {(-dx, -dy) for dx, dy in grid} == set(grid)


def test_offset_grid_of_the_paper_and_bad_ones():
    assert len(offset_grid(15, 5)) == 49
    for radius, step in ((-1, 1), (3, 0)):
        with pytest.raises(ValueError):
            offset_grid(radius, step)


def test_window_beyond_the_margin_is_refused():
    with pytest.raises(ValueError, match="margin"):
        window(np.zeros((1, 36, 36, 3), np.uint8), SIZE, 7, 0)
