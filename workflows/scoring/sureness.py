"""What a network's spreads are worth: `hpe_core.learning.calibration` on validation faces, tried on the test sets."""

import numpy as np

from hpe_core.geometry.rotation import angle_error
from hpe_core.learning.calibration import LEVELS, NORMAL, calibrate, confidence, coverage, risk_coverage, triple
from workflows.engine.results import Intervals, Sureness
from workflows.scoring.seen import Predictions


def sureness(validated: Predictions, tested: Predictions) -> Sureness:
    """The same network's answers on validation faces (one set of them) and on test sets."""
    ((name, truth),) = validated.truth.items()
    calibration = calibrate(angle_error(validated.angles[name], truth), validated.spreads[name])
    intervals, risk = list[Intervals](), dict[str, tuple[float, ...]]()
    for test, labels in tested.truth.items():
        errors, spreads = angle_error(tested.angles[test], labels), tested.spreads[test]
        raw = coverage(errors, np.array(NORMAL)[:, None, None] * spreads)
        held = coverage(errors, calibration.half_widths(spreads))
        intervals += [Intervals(test, *row) for row in zip(LEVELS, map(triple, raw), map(triple, held), strict=True)]
        sure = confidence(spreads * calibration.one_sd)
        risk[test] = tuple(risk_coverage(errors.mean(axis=1), sure).tolist())
    return Sureness(calibration, tuple(intervals), risk)
