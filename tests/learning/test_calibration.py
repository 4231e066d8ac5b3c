"""Laws of calibrated spreads: they hold on faces like those that they were made from, and rank errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hpe_core.learning.calibration import (
    LEVELS,
    NORMAL,
    ONE_SD,
    POINTS,
    calibrate,
    confidence,
    coverage,
    risk_coverage,
)
from tests.ruler import auroc


def drawn(seed: int, faces: int, kind: str = "normal") -> tuple[np.ndarray, np.ndarray]:
    """(errors, raw spreads) of a head that takes itself for twice as sure as it is, its errors as drawn."""
    rng = np.random.default_rng(seed)
    spreads = rng.uniform(1, 12, (faces, 3))
    unit = {
        "normal": rng.normal(size=(faces, 3)),
        "heavy": rng.standard_t(2, (faces, 3)),
        "even": rng.uniform(-1, 1, (faces, 3)),
    }
    return np.abs(unit[kind]) * 2 * spreads, spreads


@pytest.mark.parametrize("kind", ["normal", "heavy", "even"])
def test_intervals_hold_on_other_faces_of_the_same_kind_whatever_their_errors_are(kind):
    found = calibrate(*drawn(1, 4000, kind))
    errors, spreads = drawn(2, 20_000, kind)
    np.testing.assert_allclose(
        coverage(errors, found.half_widths(spreads)), np.array(LEVELS)[:, None] * [1, 1, 1], atol=0.03
    )
    inside = (errors <= np.array(found.one_sd) * spreads).mean(0)
    np.testing.assert_allclose(inside, ONE_SD, atol=0.03)
    raw = coverage(errors, np.array(NORMAL)[:, None, None] * spreads)
    assert kind != "normal" or (raw < np.array(LEVELS)[:, None] - 0.05).all(), "as it was it promised too much"


def test_a_normal_head_that_is_right_is_left_as_it_is():
    rng = np.random.default_rng(0)
    spreads = rng.uniform(1, 9, (40_000, 3))
    found = calibrate(np.abs(rng.normal(0, spreads)), spreads)
    np.testing.assert_allclose(found.one_sd, 1, atol=0.03)
    np.testing.assert_allclose(found.widths, np.array(NORMAL)[:, None] * [1, 1, 1], rtol=0.03)
    np.testing.assert_allclose(NORMAL, [stats.norm.ppf(0.5 + level / 2) for level in LEVELS], atol=1e-4)


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(0, 99))
def test_at_least_as_many_are_held_as_is_said_also_of_few_faces(faces, seed):
    """Split conformal: of n + 1 like faces at least ceil((n + 1) level) lie within; here of its own."""
    errors, spreads = drawn(seed, faces)
    found = calibrate(errors, spreads)
    held = coverage(errors, found.half_widths(spreads) * (1 + 1e-9))
    wanted = np.minimum(np.ceil((faces + 1) * np.array(LEVELS)), faces) / faces
    assert (held >= wanted[:, None] - 1e-12).all() and found.faces == faces
    assert (np.diff(np.array(found.widths), axis=0) >= 0).all(), "a surer interval is no narrower"


def test_a_head_without_doubt_has_the_quantiles_of_its_errors():
    """A rotation in 6D has no spread but rounding: times its factor that is the quantile, not 0."""
    errors = np.random.default_rng(1).exponential(5, (2000, 3))
    for spreads in (np.zeros((2000, 3)), np.full((2000, 3), 3e-7)):
        found = calibrate(errors, spreads)
        np.testing.assert_allclose(found.standard(spreads)[0], np.quantile(errors, ONE_SD, axis=0), rtol=0.02)
        held = coverage(errors, found.half_widths(spreads))
        np.testing.assert_allclose(held, np.tile(LEVELS, (3, 1)).T, atol=0.01)
        assert (confidence(found.standard(spreads)) < 0.9).all()


def test_no_face_is_no_calibration():
    with pytest.raises(ValueError, match="no validation face"):
        calibrate(np.empty((0, 3)), np.empty((0, 3)))


@given(st.lists(st.floats(0.1, 60), min_size=3, max_size=3))
def test_confidence_is_the_chance_that_no_angle_is_off_by_more_than_ten_degrees(spreads):
    by_hand = np.prod([stats.norm.cdf(10, scale=s) - stats.norm.cdf(-10, scale=s) for s in spreads])
    assert confidence([spreads])[0] == pytest.approx(by_hand, abs=1e-9)


def test_the_surest_faces_err_least_where_confidence_knows_errors():
    errors = np.random.default_rng(3).exponential(5, 400)
    knowing, guessing = risk_coverage(errors, -errors), risk_coverage(errors, np.zeros(400))
    assert len(knowing) == POINTS and knowing[-1] == pytest.approx(errors.mean()) == guessing[-1]
    assert (np.diff(knowing) > 0).all() and knowing[0] == pytest.approx(np.sort(errors)[:20].mean())
    assert (knowing <= guessing + 1e-12).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_auroc_is_the_share_of_pairs_in_order(ordinary, strange):
    pairs = [(b > a) + 0.5 * (b == a) for a in ordinary for b in strange]
    assert auroc(ordinary, strange) == pytest.approx(np.mean(pairs))
