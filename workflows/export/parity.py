"""How far an exported file's answers lie from the network's."""

import itertools

import numpy as np

from hpe_core.geometry.crop import Image
from hpe_core.geometry.rotation import ANGLE_NAMES
from workflows.engine.exported import Parity
from workflows.export.runtimes import Call

PARITY_DEG = 1e-3
BATCH = 32


def proved(network: Call, exported: Call, crops: Image, what: str) -> Parity:
    """Largest difference by angle, over batches of several sizes of (M, size, size, 3) crops. Raises ValueError."""
    worst = np.zeros((2, 3))
    # One crop, one whole batch, and what is left: the batch size has to be free, not merely unchecked.
    from hpe_core.learning.precision import exact_float32

    cuts = [0, *range(1, len(crops), BATCH), len(crops)]
    for start, end in itertools.pairwise(cuts):
        batch = np.ascontiguousarray(crops[start:end])
        with exact_float32():
            answers = zip(network(batch), exported(batch), strict=True)
        gaps = [np.abs(np.subtract(a, b, dtype=np.float64)).max(0) for a, b in answers]
        worst = np.maximum(worst, gaps)  # a NaN stays a NaN
    angles, spread = (dict(zip(ANGLE_NAMES, map(float, row), strict=True)) for row in worst)
    parity = Parity(angles, spread, len(crops), PARITY_DEG)
    if not parity.worst <= PARITY_DEG:
        gap = f"{what} and torch differ by {parity.worst:.2g} degrees on {parity.crops} crops"
        raise ValueError(f"{gap}; {PARITY_DEG:g} is allowed")
    return parity
