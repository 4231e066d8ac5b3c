"""The interval of a mean, by hand."""

import numpy as np
import pytest

from hpe_core.learning.interval import half_interval


def test_half_the_interval_is_that_of_the_normal_approximation():
    assert half_interval(np.array([1.0, 3.0])) == pytest.approx(1.96)  # deviation sqrt(2), over sqrt(2)
    assert half_interval(np.array([2.0, 2.0, 2.0])) == 0
    values = np.array([0.0, 0.0, 4.0, 4.0])
    assert half_interval(values) == pytest.approx(1.96 * np.sqrt(16 / 3) / 2)
    assert half_interval(np.array([1.0])) is None, "a single value has none"
