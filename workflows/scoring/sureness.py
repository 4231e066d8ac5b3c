"""What a network's spreads are worth: `hpe_core.learning.calibration` on validation faces, tried on the test sets."""

import numpy as np

from hpe_core.geometry.rotation import euler_error
from hpe_core.learning.calibration import LEVELS, NORMAL, calibrate, confidence, coverage, risk_coverage, triple
from hpe_core.learning.metrics import in_front
from workflows.engine.results import Intervals, Sureness
from workflows.scoring.seen import Predictions


def sureness(validated: Predictions, tested: Predictions) -> Sureness:
    """The same network's answers on validation faces (one set of them) and on test sets."""
    ((name, truth),) = validated.truth.items()
    ahead = in_front(truth)
    calibration = calibrate(euler_error(validated.angles[name], truth)[ahead], validated.spreads[name][ahead])
    intervals, risk = list[Intervals](), dict[str, tuple[float, ...]]()
    for test, labels in tested.truth.items():
        ahead = in_front(labels)
        errors, spreads = euler_error(tested.angles[test], labels)[ahead], tested.spreads[test][ahead]
        raw = coverage(errors, np.array(NORMAL)[:, None, None] * spreads)
        held = coverage(errors, calibration.half_widths(spreads))
        intervals += [Intervals(test, *row) for row in zip(LEVELS, map(triple, raw), map(triple, held), strict=True)]
        sure = confidence(calibration.standard(spreads))
        risk[test] = tuple(risk_coverage(errors.mean(axis=1), sure).tolist())
    return Sureness(calibration, tuple(intervals), risk)
