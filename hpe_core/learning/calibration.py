"""How sure is an answer? Spreads that are made to hold on validation faces, and what they are then worth.

A head gives each angle a standard deviation, by its own lights. Divided by it, the errors of validation faces are
scores, and their quantiles say how wide an interval has to be: the answer plus or minus so many spreads. For faces like
those of validation it then holds about as often as it says, whatever the errors' distribution is (split conformal
prediction; Lei et al., JASA 2018). The promise is exact only for faces that chose nothing, and validation faces chose
the epoch. For other faces nobody promises anything: hence the tables by test set.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LEVELS = (0.5, 0.8, 0.95)
ONE_SD = math.erf(math.sqrt(0.5))  # the share of a normal distribution within one standard deviation
NORMAL = (0.6745, 1.2816, 1.96)  # standard deviations that hold LEVELS of a normal distribution
WITHIN_DEG = 10.0  # confidence is the chance that no angle is off by more
ROUNDING = 1e-12
LEAST_DEG = 1e-3  # of a raw spread: a head that says one answer and no doubt gets the quantiles of its errors
POINTS = 20  # of a risk-coverage curve
Triple = tuple[float, float, float]


def floored(spreads_M3: ArrayLike) -> Floats:
    return np.maximum(np.asarray(spreads_M3, np.float64), LEAST_DEG)


def triple(values: Floats) -> Triple:
    pitch, yaw, roll = values.tolist()
    return pitch, yaw, roll


@dataclass(frozen=True)
class Calibration:
    """Of pitch, yaw, roll: by what a raw spread is multiplied to be a standard deviation, and to be the half width of
    an interval for each of LEVELS. `faces`: how many said so."""

    one_sd: Triple
    widths: tuple[Triple, ...]
    faces: int

    def half_widths(self, spreads_M3: ArrayLike) -> Floats:
        """(LEVELS, M, 3) degrees."""
        return np.asarray(self.widths, np.float64)[:, None] * floored(spreads_M3)

    def standard(self, spreads_M3: ArrayLike) -> Floats:
        """(M, 3) raw spreads as standard deviations, degrees."""
        return np.asarray(self.one_sd, np.float64) * floored(spreads_M3)


def calibrate(errors_M3: ArrayLike, spreads_M3: ArrayLike) -> Calibration:
    """From absolute errors and raw spreads of validation faces, degrees. Raises ValueError for no face."""
    scores = np.asarray(errors_M3, np.float64) / floored(spreads_M3)
    if not len(scores):
        raise ValueError("no validation face, no calibration")

    ranked = np.sort(scores, axis=0)

    def quantile(level: float) -> Triple:
        """Counted with the face that is to be answered: ceil((M + 1) level) of M (Lei et al., section 2.2)."""
        return triple(ranked[min(len(scores), math.ceil((len(scores) + 1) * level)) - 1])

    return Calibration(quantile(ONE_SD), tuple(quantile(level) for level in LEVELS), len(scores))


def coverage(errors_M3: ArrayLike, half_widths_LM3: ArrayLike) -> Floats:
    """(LEVELS, 3): the share of faces whose error an interval holds, the face that a width comes from among them."""
    reach = np.asarray(half_widths_LM3) * (1 + ROUNDING)
    return np.asarray((np.asarray(errors_M3) <= reach).mean(axis=1), np.float64)


def confidence(spreads_M3: ArrayLike) -> Floats:
    """(M,) the chance that no angle is off by more than WITHIN_DEG, were its errors normal with these spreads."""
    reach = WITHIN_DEG / (floored(spreads_M3) * math.sqrt(2))
    return np.asarray(np.vectorize(math.erf, otypes=[float])(reach).prod(-1), np.float64)


def risk_coverage(errors_M: ArrayLike, confidence_M: ArrayLike) -> Floats:
    """(POINTS,) mean error of the surest 5 %, 10 % ... of the faces: it rises where confidence knows errors."""
    ranked = np.asarray(errors_M, np.float64)[np.argsort(-np.asarray(confidence_M), kind="stable")]
    counts = np.maximum(1, np.round(np.arange(1, POINTS + 1) / POINTS * len(ranked)).astype(int))
    return np.asarray(np.cumsum(ranked)[counts - 1] / counts)
