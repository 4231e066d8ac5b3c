"""Laws of the errors: merging, circularity, ranges."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.geometry.rotation import angle_error, euler_to_matrix, geodesic_deg, matrix_to_euler, turn
from hpe_core.learning.metrics import PoseSums, aligned_summary, axes_error, head_offset, realigned


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


def test_a_half_turn_scores_180():
    scores = PoseSums.of([[0, 0, 0]], [[0, 0, 180]]).summary()
    assert scores["roll"] == 180 and scores["geodesic"] == 180 and abs(scores["mae"] - 60) < 1e-12


def test_plain_reading():
    scores = PoseSums.of([[1, 2, 3], [0, 0, 0]], [[0, 0, 0], [3, 40, -3]]).summary()
    assert scores["pitch"] == 2 and scores["yaw"] == 21 and scores["roll"] == 3 and scores["mae"] == 26 / 3
    assert scores["yaw 0-30"] == 2 and abs(scores["yaw 30-60"] - 46 / 3) < 1e-12 and "yaw 60-99" not in scores


@given(st.integers(0, 50), st.floats(-40, 40))
def test_geodesic_error_does_not_change_when_both_pictures_are_turned(seed, delta):
    predicted, true = poses(seed), poses(seed + 1)
    before = PoseSums.of(predicted, true).summary()["geodesic"]
    after = PoseSums.of(turn(predicted, delta), turn(true, delta)).summary()["geodesic"]
    assert abs(before - after) < 1e-6


@given(st.integers(0, 50))
def test_median_and_p90_are_those_of_the_sorted_errors(seed):
    predicted, true = poses(seed, 201), poses(seed + 1, 201)
    scores = PoseSums.of(predicted, true).summary()
    errors = np.sort(geodesic_deg(euler_to_matrix(predicted), euler_to_matrix(true)))
    assert abs(scores["median"] - errors[100]) <= 0.0051 and abs(scores["p90"] - errors[180]) <= 0.0051


def test_sums_survive_the_way_through_a_vector():
    sums = PoseSums.of(poses(0), poses(1))
    assert PoseSums.from_vector(sums.as_vector()).summary() == sums.summary()


@given(st.integers(0, 50), st.floats(0.1, 170))
def test_a_turn_about_an_axis_moves_the_other_two_by_its_angle(seed, angle):
    """Which is what MAEV averages; so it lies at two thirds of the geodesic error there."""
    head = euler_to_matrix(poses(seed, 5))
    for axis in np.eye(3):
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        spin = c * np.eye(3) + s * cross + (1 - c) * np.outer(axis, axis)
        np.testing.assert_allclose(axes_error(head, head @ spin), 2 / 3 * angle, atol=1e-6)


def test_the_area_under_the_distribution_is_that_of_the_curve():
    predicted, true = poses(3, 500) * 0.2, poses(4, 500) * 0.2
    errors = angle_error(predicted, true).mean(1)
    grid = np.linspace(0, 20, 20_001)
    share = (errors[None, :] <= grid[:, None]).mean(1)
    assert abs(PoseSums.of(predicted, true).summary()["auc"] - np.trapezoid(share, grid) / 20) < 1e-3


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


def test_each_group_gets_an_offset_of_its_own():
    true = poses(5) * 0.5
    habits = euler_to_matrix([[0, 10, 0], [8, 0, 0]])
    groups = np.arange(len(true)) % 2
    predicted = matrix_to_euler(euler_to_matrix(true) @ np.swapaxes(habits[groups], -1, -2))
    assert aligned_summary(predicted, true, groups)["aligned_mae"] < 1e-6
    assert aligned_summary(predicted, true)["aligned_mae"] > 2


def test_alignment_never_makes_a_constant_truth_of_noise():
    """On unrelated predictions the offset helps a little, and the raw error stays what it was."""
    predicted, true = poses(6, 400), poses(7, 400)
    assert (
        aligned_summary(predicted, true)["aligned_geodesic"] > 0.6 * PoseSums.of(predicted, true).summary()["geodesic"]
    )


def test_a_prediction_that_is_no_number_makes_a_mean_that_is_none():
    """So that training can say that it diverged."""
    sums = PoseSums.of([[np.nan, 0, 0], [0, 0, 0]], np.zeros((2, 3))).summary()
    assert np.isnan(sums["mae"]) and np.isnan(sums["geodesic"]) and sums["p90"] > 179
