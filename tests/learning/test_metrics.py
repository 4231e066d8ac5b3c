"""Laws of the errors: merging, circularity, ranges."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hpe_core.geometry.rotation import euler_to_matrix, geodesic_deg, is_rotation, matrix_to_euler
from hpe_core.learning.metrics import PoseSums, aligned_summary, deciding, head_offset, in_front, realigned
from hpe_core.render.scene import WHOLE_CIRCLE, draw_pose


def poses(seed: int, count: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).uniform([-80, -98, -80], [80, 98, 80], (count, 3))


@given(st.integers(0, 100), st.lists(st.integers(0, 60), max_size=4))
def test_sums_do_not_depend_on_how_rows_are_cut(seed, cuts):
    predicted, true = poses(seed), poses(seed + 1)
    whole = PoseSums.of(predicted, true).summary()
    pieces = zip(np.split(predicted, sorted(cuts)), np.split(true, sorted(cuts)), strict=True)
    merged = sum((PoseSums.of(p, t) for p, t in pieces), PoseSums.empty()).summary()
    assert merged.keys() == whole.keys()
    assert all(abs(merged[key] - whole[key]) < 1e-9 for key in whole)


EDGES = (0, 30, 60, 100)


@given(st.integers(0, 50), st.integers(1, 80))
def test_every_figure_is_its_definition_over_the_faces(seed, count):
    """Ranges are those of the label's |yaw|; the rotations are SciPy's, their axes the columns."""
    predicted, true = poses(seed, count), poses(seed + 1, count)
    first, second = (Rotation.from_euler("XYZ", p * [-1, 1, 1], degrees=True) for p in (predicted, true))
    both = [np.abs(each - true) % 360 for each in (predicted, predicted * [1, -1, 1] + 180)]  # its two triples
    each = np.stack([np.where(errors > 180, 360 - errors, errors) for errors in both])
    errors = each[each.sum(2).argmin(0), np.arange(count)]
    cosines = (first.as_matrix() * second.as_matrix()).sum(1).clip(-1, 1)
    by_hand = dict(zip(("pitch", "yaw", "roll"), errors.mean(0), strict=True))
    by_hand |= {"n": count, "mae": errors.mean(), "auc": np.maximum(0, 1 - errors.mean(1) / 20).mean()}
    by_hand["geodesic"] = np.degrees((first.inv() * second).magnitude()).mean()
    by_hand["maev"] = np.degrees(np.arccos(cosines)).mean()
    for low, high in pairwise(EDGES):
        inside = (np.abs(true[:, 1]) >= low) & (np.abs(true[:, 1]) < high)
        if inside.any():
            by_hand[f"yaw {low}-{min(high, 99)}"] = errors[inside].mean()
    scores = PoseSums.of(predicted, true).summary()
    median, p90 = scores.pop("median"), scores.pop("p90")
    assert scores == pytest.approx(by_hand) and median <= p90


@given(st.integers(0, 50))
def test_whoever_answers_the_labels_rotation_errs_nowhere(seed):
    """Heads from everywhere, labelled as they were drawn, answered as a rotation is decoded."""
    rng = np.random.default_rng(seed)
    true = np.array([draw_pose(rng, WHOLE_CIRCLE) for _ in range(40)])
    found = PoseSums.of(matrix_to_euler(euler_to_matrix(true)), true).summary()
    errors = {name: value for name, value in found.items() if name not in ("n", "auc", "median", "p90")}
    assert max(errors.values()) < 1e-4 and found["auc"] > 0.9999


def test_a_range_begins_at_its_lower_edge_and_nothing_lies_beyond_the_last():
    scores = PoseSums.of([[3, 0, 0], [0, 60, 6]], [[0, 30, 0], [0, -60, 0]]).summary()
    assert scores["n"] == 2 and scores["yaw 30-60"] == 11 and scores["yaw 60-99"] == 42
    behind = PoseSums.of([[0, 0, 0], [4, 10, 0]], [[0, -170, 0], [1, 10, 0]]).summary()
    assert behind["geodesic_behind"] == pytest.approx(170) and behind["geodesic"] == pytest.approx(173 / 2)
    assert (deciding(behind), deciding(scores, "")) == ("geodesic", "mae")
    assert behind["mae"] == 1 and behind["n"] == 2 and "yaw 60-99" not in behind, "Euler angles of the front alone"
    assert PoseSums.of([[0, 0, 0]], [[0, -170, 0]]).summary()["mae"] == pytest.approx(170 / 3), (
        "where there is no front"
    )
    half = PoseSums.of([[0, 0, 0]], [[0, 0, 180]]) + PoseSums.empty()
    assert 179.9 < half.summary()["p90"] < 180
    nothing = PoseSums.empty().summary()
    assert nothing["n"] == nothing["mae"] == 0 and np.isnan(nothing["median"])


@given(st.integers(0, 50))
def test_median_and_p90_are_those_of_the_sorted_errors(seed):
    predicted, true = poses(seed, 201), poses(seed + 1, 201)
    scores = PoseSums.of(predicted, true).summary()
    errors = np.sort(geodesic_deg(euler_to_matrix(predicted), euler_to_matrix(true)))
    assert abs(scores["median"] - errors[100]) <= 0.0051 and abs(scores["p90"] - errors[180]) <= 0.0051


@given(st.lists(st.floats(0, 90) | st.just(float("nan")), min_size=1, max_size=12), st.integers(0, 12))
def test_the_landmarks_error_is_the_mean_over_the_faces_whose_landmarks_are_known(errors, cut):
    labels = np.zeros((len(errors), 3))
    pieces = [slice(None, cut), slice(cut, None)]
    sums = [PoseSums.of(labels[rows], labels[rows], np.array(errors)[rows]) for rows in pieces]
    scores = (sums[0] + sums[1]).summary()
    known = np.array(errors)[np.isfinite(errors)]
    assert scores.get("nme") == (pytest.approx(known.mean()) if len(known) else None)


@given(st.lists(st.floats(-180, 180), min_size=1, max_size=9))
def test_the_front_is_the_same_from_both_sides_and_where_there_is_none_everybody_counts(yaws):
    labels = np.zeros((len(yaws), 3))
    labels[:, 1] = yaws
    ahead = [abs(yaw) <= 99 for yaw in yaws]
    for side in (labels, -labels):
        assert in_front(side).tolist() == (ahead if any(ahead) else [True] * len(yaws))


def test_sums_survive_the_way_through_a_vector():
    sums = PoseSums.of(poses(0), poses(1))
    assert PoseSums.from_vector(sums.as_vector()).summary() == sums.summary()


@given(st.integers(0, 50), st.lists(st.floats(-15, 15), min_size=3, max_size=3))
def test_a_constant_offset_of_the_heads_axes_is_found_and_taken_back(seed, offset):
    true = poses(seed) * np.array([0.9, 0.7, 0.9])
    habit = euler_to_matrix(offset)
    predicted = matrix_to_euler(euler_to_matrix(true) @ habit.T)
    np.testing.assert_allclose(head_offset(predicted, true), habit, atol=1e-9)
    again = euler_to_matrix(realigned(predicted, habit))
    assert geodesic_deg(again, euler_to_matrix(true)).max() < 1e-6
    scores = aligned_summary(predicted, true)
    assert scores["aligned_geodesic"] < 1e-6
    assert abs(scores["offset_deg"] - geodesic_deg(habit, np.eye(3))) < 1e-6


@given(st.integers(0, 50))
def test_aligned_figures_are_those_of_the_realigned_faces_each_group_by_its_own_offset(seed):
    """Groups of 40 and 20 faces; the size of the offset is a mean over faces. Labels are compared as they stand."""
    true, habits = poses(seed), np.array([[0, 10, 0], [8, 0, -20]])
    groups = np.array(["b", "a", "a"])[np.arange(60) % 3]
    noise = np.random.default_rng(seed).normal(0, 2, (60, 3))
    spin = euler_to_matrix(habits[(groups == "a").astype(int)])
    predicted = matrix_to_euler(euler_to_matrix(true + noise) @ np.swapaxes(spin, -1, -2))
    sums, size = PoseSums.empty(), 0.0
    for name in "ab":
        rows = groups == name
        offset = head_offset(predicted[rows], true[rows])
        sums += PoseSums.of(realigned(predicted[rows], offset), true[rows])
        size += rows.sum() * float(geodesic_deg(offset, np.eye(3))) / 60
    by_hand = sums.summary()
    assert aligned_summary(predicted, true, groups) == pytest.approx(
        {"aligned_mae": by_hand["mae"], "aligned_geodesic": by_hand["geodesic"], "offset_deg": size}
    )


@given(st.integers(0, 50), st.integers(1, 4))
def test_an_offset_is_a_rotation_and_no_other_near_it_fits_better(seed, count):
    """Also where the best orthogonal matrix is a mirror: faces that have nothing to do with their labels."""
    predicted, true = poses(seed, count), poses(seed + 1, count)
    offset = head_offset(predicted, true)
    assert is_rotation(offset, 1e-9)
    nudges = Rotation.from_rotvec(np.random.default_rng(seed).normal(0, 0.02, (20, 3))).as_matrix()

    def misfit(turned: np.ndarray) -> float:
        return float(np.square(euler_to_matrix(predicted) @ turned - euler_to_matrix(true)).sum())

    assert misfit(offset) <= min(misfit(offset @ nudge) for nudge in nudges) + 1e-9


def test_a_face_seen_from_behind_keeps_its_branch():
    behind = np.array([[10.0, 120.0, -5.0], [10.0, -91.0, 5.0], [10.0, 60.0, 5.0]])
    np.testing.assert_allclose(realigned(behind, np.eye(3)), behind, atol=1e-9)


def test_a_prediction_that_is_no_number_makes_a_mean_that_is_none():
    """So that training can say that it diverged."""
    sums = PoseSums.of([[np.nan, 0, 0], [0, 0, 0]], np.zeros((2, 3))).summary()
    assert np.isnan(sums["mae"]) and np.isnan(sums["geodesic"]) and sums["p90"] > 179
