"""Laws of the landmarks: their mirror, and the field's measures of their errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.geometry.landmarks import MIRROR_68, landmark_errors, mirror_landmarks, recall_at_precision
from hpe_core.render.person.anatomy import landmark_targets


def marks(seed: int, faces: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(10, 90, (faces, 68, 2))


@given(st.integers(0, 99), st.floats(10, 500))
def test_mirrored_twice_is_as_before_and_left_becomes_right(seed, width):
    points = np.concatenate([marks(seed), marks(seed + 1)[..., :1]], -1)
    flipped = mirror_landmarks(points, width)
    np.testing.assert_allclose(mirror_landmarks(flipped, width), points, atol=1e-9)
    np.testing.assert_allclose(flipped[:, 36], points[:, 45] * [-1, 1, 1] + [width, 0, 0])
    np.testing.assert_allclose(flipped[:, 8, 1:], points[:, 8, 1:], err_msg="the chin stays the chin")


@given(st.integers(0, 99), st.floats(0.1, 9), st.floats(0, 6.2), st.floats(0.2, 5))
def test_errors_are_percent_of_the_face_whatever_its_size(seed, by, way, scale):
    true = marks(seed)
    moved = true + by * np.array([np.cos(way), np.sin(way)])
    sides = np.ptp(true, axis=1)
    by_box = landmark_errors(moved, true, "box")
    np.testing.assert_allclose(by_box, 100 * by / np.sqrt(sides[:, 0] * sides[:, 1]))
    eyes = np.linalg.norm(true[:, 36] - true[:, 45], axis=1)
    np.testing.assert_allclose(landmark_errors(moved, true, "eyes"), 100 * by / eyes)
    np.testing.assert_allclose(landmark_errors(scale * moved, scale * true, "box"), by_box)


def test_unknown_landmarks_count_nowhere():
    true = marks(3, faces=3)
    moved = true + [3.0, 4.0]
    true[0, 20:] = np.nan
    true[1] = np.nan
    true[2, 36] = np.nan
    by_box, by_eyes = (landmark_errors(moved, true, by) for by in ("box", "eyes"))
    sides = np.ptp(true[0, :20], axis=0)
    assert by_box[0] == pytest.approx(500 / np.sqrt(sides.prod())) and np.isnan(by_box[1])
    assert np.isnan(by_eyes).all(), "no corner of an eye, no distance between them"


def recall_by_hand(scores: np.ndarray, hidden: np.ndarray, precision: float) -> float:
    found = [0.0]
    for threshold in scores:
        called = scores >= threshold
        if (called & hidden).sum() >= precision * called.sum():
            found.append((called & hidden).sum() / hidden.sum())
    return max(found)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=30), st.sampled_from([0.5, 0.8, 1.0]))
def test_recall_at_a_precision_is_its_definition(drawn, precision):
    scores, seen = (np.array(column, float) for column in zip(*drawn, strict=True))
    recall = recall_at_precision(scores, seen, precision)
    if (seen == 1).all():
        assert np.isnan(recall)
    else:
        assert recall == pytest.approx(recall_by_hand(scores, seen == 0, precision))
    unknown = recall_at_precision([*scores, 99], [*seen, np.nan], precision)
    assert unknown == pytest.approx(recall, nan_ok=True), "a point of which nobody knows does not count"


def test_each_landmark_changes_places_with_the_one_across_the_face():
    """On the mean head; a mouth whose corners stay where they were would pass for its own mirror image."""
    head = landmark_targets()
    across = np.linalg.norm(head[:, None] * [-1, 1, 1] - head, axis=-1)
    assert np.array_equal(across.argmin(axis=0), MIRROR_68)
