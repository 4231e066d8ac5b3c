"""Laws of looking again: no face is lost to the size of a picture or to the way it lies, and none is doubled."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpe_core.datasets.registry import open_source
from hpe_core.detection.detector import Detection, FaceDetector
from hpe_core.detection.look import find_faces, merged, needs_tiles, tiles_of, turned_image
from hpe_core.geometry.crop import Box, overlap
from hpe_core.spec.data import DatasetSpec, DetectorSpec

SIDE = 64  # the detector's input in tests without a detector


def spots(image: np.ndarray) -> list[Detection]:
    """Stands in for a detector: red spots at least 2 pixels large in its input, with the green as their score.

    Blue at the bottom of a spot says that it stands upright; others are seen with a lower score, as YuNet sees them.
    """
    factor = min(1.0, SIDE / max(image.shape[:2]))
    count, _, found, _ = cv2.connectedComponentsWithStats((image[..., 0] > 128).astype(np.uint8))
    faces = []
    for x, y, w, h, _ in found[1:count].tolist():
        upright = image[y + h - 1, x + w // 2, 2] > 128
        if min(w, h) * factor >= 2:
            faces.append(Detection(Box(x, y, x + w, y + h), 0.9 if upright else 0.7))
    return sorted(faces, key=lambda face: -face.score)


def with_spots(width: int, height: int, boxes: list[tuple[int, int, int]], quarters: int = 0) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for x, y, side in boxes:
        spot = np.full((side, side, 3), (255, 0, 0), np.uint8)
        spot[-1] = (255, 0, 255)
        image[y : y + side, x : x + side] = turned_image(spot, quarters)
    return image


def corners(faces: list[Detection]) -> list[tuple[float, ...]]:
    return sorted((face.box.x1, face.box.y1, face.box.x2, face.box.y2) for face in faces)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(16, 200))
def test_tiles_cover_every_pixel_and_lie_in_the_picture(width, height, side):
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in tiles_of(width, height, side):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height and max(right - left, bottom - top) <= side
        covered[top:bottom, left:right] = True
    assert covered.all()


@given(st.integers(0, 870), st.integers(0, 170), st.integers(6, 30))
@example(892, 90, 8)
@example(400, 192, 8)
@example(0, 0, 8)
def test_a_small_face_of_a_panorama_is_found_once_wherever_it_is(x, y, side):
    image = with_spots(900, 200, [(x, y, side)])
    assert needs_tiles(image, SIDE) and (side * SIDE / 900 >= 2) == bool(spots(image))
    assert corners(find_faces(spots, image, SIDE)) == [(x, y, x + side, y + side)]


def test_small_and_large_faces_are_each_found_once_and_no_tile_is_looked_at_if_none_is_wanted():
    image = with_spots(900, 200, [(100, 20, 160), (400, 90, 8), (430, 90, 8), (700, 10, 60)])
    found = find_faces(spots, image, SIDE)
    assert corners(found) == [(100, 20, 260, 180), (400, 90, 408, 98), (430, 90, 438, 98), (700, 10, 760, 70)]
    assert corners(find_faces(spots, image, SIDE, tiles=False)) == [(100, 20, 260, 180), (700, 10, 760, 70)]
    small = image[:, :300]
    assert not needs_tiles(small, SIDE) and find_faces(spots, small, SIDE) == spots(small)


@pytest.mark.parametrize("quarters", range(4))
def test_a_small_face_of_a_panorama_is_found_also_where_it_lies(quarters):
    image = with_spots(900, 200, [(400, 90, 8)], quarters)
    (found,) = find_faces(spots, image, SIDE, turns=4)
    assert corners([found]) == [(400, 90, 408, 98)] and found.quarters == -quarters % 4 and found.score == 0.9


@pytest.mark.parametrize("quarters", range(4))
def test_a_face_that_lies_is_found_where_it_is_and_which_way(quarters):
    """A head that was turned clockwise by three quarters stands upright after one more."""
    image = with_spots(120, 80, [(10, 20, 30), (70, 5, 20)], quarters)
    found = find_faces(spots, image, SIDE, turns=4)
    assert corners(found) == [(10, 20, 40, 50), (70, 5, 90, 25)]
    assert {face.quarters for face in found} == {-quarters % 4} and {face.score for face in found} == {0.9}


@given(st.integers(0, 7), st.integers(1, 90), st.integers(1, 90))
def test_a_box_turns_with_its_picture(quarters, width, height):
    box = Box(0.25 * width, 0.1 * height, 0.5 * width, 0.9 * height)
    turned = box.turned(quarters, width, height)
    sides = (height, width) if quarters % 2 else (width, height)
    assert 0 <= turned.x1 < turned.x2 <= sides[0] and 0 <= turned.y1 < turned.y2 <= sides[1]
    assert overlap(turned.turned(-quarters, *sides), box) == pytest.approx(1)


def test_of_several_detections_of_a_face_the_surest_stays():
    one, same, part, other = Box(0, 0, 100, 100), Box(5, 5, 104, 104), Box(10, 10, 40, 40), Box(200, 0, 300, 100)
    faces = [Detection(part, 0.8), Detection(same, 0.7), Detection(other, 0.65), Detection(one, 0.9)]
    assert [face.box for face in merged(faces)] == [one, other]


places = st.tuples(st.integers(-300, 300), st.integers(-300, 300), st.integers(1, 90), st.integers(1, 90))


@given(st.lists(places, min_size=2, max_size=6))
@example([(0, 0, 20, 20), (100, 100, 20, 20)])
def test_faces_that_do_not_meet_are_all_kept(drawn):
    apart: list[Box] = []
    for x, y, width, height in drawn:
        box = Box(x, y, x + width, y + height)
        if all(overlap(box, other) == 0 for other in apart):
            apart.append(box)
    kept = merged([Detection(box, 1 / (1 + i)) for i, box in enumerate(apart)])
    assert [face.box for face in kept] == apart


@pytest.fixture(scope="module")
def photos(real_data):
    source = open_source(DatasetSpec("aflw2000", root=str(real_data / "aflw2000")))
    return [source.load(ref) for ref in sorted(source.refs())[::20]]


def test_photographs_that_lie_are_told_apart_from_those_that_stand(photos, yunet):
    """The law that the score decides by: YuNet is surest of a face that stands upright."""
    find = FaceDetector(DetectorSpec(str(yunet)))
    for _, image in photos:
        (face,) = find(image)
        for quarters in range(4):
            lying = find_faces(find, turned_image(image, -quarters), 640, turns=4)
            best = max(lying, key=lambda one: one.score)
            height, width = image.shape[:2]
            assert best.quarters == quarters and overlap(best.box.turned(quarters, width, height), face.box) > 0.9


def test_a_face_of_a_real_panorama_is_found(photos, yunet):
    _, image = photos[0]
    find = FaceDetector(DetectorSpec(str(yunet)))
    wide = np.full((900, 7000, 3), 128, np.uint8)
    small = cv2.resize(image, (120, 120), interpolation=cv2.INTER_AREA)
    for x, y in ((0, 0), (1200, 300), (3500, 700), (6880, 780)):
        wide[y : y + 120, x : x + 120] = small
    assert find(wide) == [] and len(find_faces(find, wide, 640)) == 4
