"""Laws of the errors: merging, circularity, ranges."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.metrics import PoseSums
from hpe_core.rotation import turn


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
