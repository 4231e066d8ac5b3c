"""How far a mean may be off."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def half_interval(values: NDArray[np.floating], people: Sequence[str] | None = None) -> float | None:
    """Half the 95 % interval of the mean of (M,) values, by Student's t; None for a single person.

    `people` (M,) says whom each value is of. Values of one person are no independent draws, so people count, not faces:
    the cluster-robust variance of a mean. Without it each value is somebody else's.
    """
    place = np.arange(len(values)) if people is None else np.unique(np.asarray(people), return_inverse=True)[1]
    apart = np.bincount(place, weights=values - values.mean(dtype=np.float64))
    count = len(apart)
    if count < 2:
        return None
    from scipy.special import stdtrit  # takes a third of the time that a plan pays for imports

    return float(stdtrit(count - 1, 0.975) * np.sqrt(count / (count - 1) * (apart**2).sum()) / len(values))
