"""What spreads are worth, against formulas read directly: intervals, and the errors of the surest faces."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from hpe_core.geometry.rotation import euler_error
from hpe_core.learning.calibration import LEVELS
from workflows.scoring.seen import Predictions
from workflows.scoring.sureness import sureness

Angles = NDArray[np.float64]


def said(truth: Angles, off: Angles, spreads: Angles, test: str = "heads") -> Predictions:
    """Predictions that are so far off, with these spreads."""
    nothing: dict[str, Angles] = {}
    angles = {test: truth + off}
    return Predictions({}, {}, {test: truth}, angles, angles, nothing, nothing, {}, {}, {test: spreads})


def drawn(count: int, seed: int) -> tuple[Angles, Angles, Angles]:
    """Poses of heads in front, and errors that know little of their spreads."""
    rng = np.random.default_rng(seed)
    spreads = rng.uniform(1, 5, (count, 3))
    return rng.uniform(-60, 60, (count, 3)), rng.normal(0, 2, (count, 3)) + 0.5 * spreads, spreads


def test_intervals_and_risk_are_what_their_names_say():
    """Raw: normal intervals of the spread. Risk: the surest share errs by its own mean."""
    truth, off, spreads = drawn(40, 1)
    found = sureness(said(*drawn(30, 2)), said(truth, off, spreads))
    errors = euler_error(truth + off, truth)
    for row in found.intervals:
        reach = float(stats.norm.ppf(0.5 + row.level / 2))
        np.testing.assert_allclose(row.raw, (errors <= reach * spreads).mean(0), atol=1e-9)
        widths = np.array(found.calibration.widths[LEVELS.index(row.level)])
        np.testing.assert_allclose(row.calibrated, (errors <= widths * spreads).mean(0), atol=1e-9)
    # A chance of all three angles within ten degrees, were they normal with the calibrated spreads.
    within = stats.norm.cdf(10 / (np.array(found.calibration.one_sd) * spreads))
    surest = np.argsort(-(2 * within - 1).prod(1))
    expected = [errors.mean(1)[surest[: 2 * part]].mean() for part in range(1, 21)]
    assert found.risk["heads"] == pytest.approx(expected)


def test_heads_from_behind_have_no_say():
    """Neither in the calibration nor in what it is tried on."""
    validated, tested = drawn(30, 3), drawn(40, 4)

    def with_some_behind(truth: Angles, off: Angles, spreads: Angles) -> Predictions:
        far = np.array([[0.0, 150.0, 0.0], [5.0, -170.0, 3.0]])
        return said(np.vstack([truth, far]), np.vstack([off, [[80.0] * 3] * 2]), np.vstack([spreads, [[0.1] * 3] * 2]))

    plain = sureness(said(*validated), said(*tested))
    assert sureness(with_some_behind(*validated), with_some_behind(*tested)) == plain
    assert plain.calibration.faces == 30 and replace(plain, risk={}) != plain
