"""The interval of a mean, by hand and by draws."""

import numpy as np
import pytest
from scipy import stats

from hpe_core.learning.interval import half_interval


def test_half_the_interval_is_students():
    values = np.random.default_rng(0).normal(3, 2, 11)
    low, high = stats.t.interval(0.95, 10, values.mean(), stats.sem(values))
    assert half_interval(values) == pytest.approx((high - low) / 2)
    assert half_interval(values, [str(place) for place in range(11)]) == pytest.approx(half_interval(values))
    assert half_interval(np.array([2.0, 2.0, 2.0])) == 0
    assert half_interval(np.array([1.0])) is None, "a single value has none"


def test_more_faces_of_the_same_people_make_nothing_surer():
    values = np.random.default_rng(1).normal(0, 1, 9)
    people = [*"abcdefghi"]
    often = half_interval(np.repeat(values, 50), np.repeat(people, 50).tolist())
    assert often == pytest.approx(half_interval(values, people))
    assert half_interval(np.repeat(values, 50), ["a"] * 450) is None, "one person tells nothing of others"


def test_no_gain_is_called_one_by_one_of_twenty_sets():
    """20 people of 250 faces, who differ by half a degree; faces by three. If faces counted: every second."""
    rng, wrong = np.random.default_rng(2), 0
    people = np.repeat(np.arange(20), 250).astype(str).tolist()
    for _ in range(300):
        values = np.repeat(rng.normal(0, 0.5, 20), 250) + rng.normal(0, 3, 5000)
        wrong += abs(values.mean()) > (half_interval(values, people) or 0)
    assert 3 <= wrong <= 30
