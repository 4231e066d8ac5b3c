"""How far a mean may be off."""

import numpy as np
from numpy.typing import NDArray


def half_interval(values: NDArray[np.floating]) -> float | None:
    """Half the 95 % interval of the mean of (M,) independent values, by normal approximation; None for one."""
    if len(values) < 2:
        return None
    return float(1.96 * values.std(ddof=1, dtype=np.float64) / np.sqrt(len(values)))
