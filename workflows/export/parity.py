"""How far an exported file's answers lie from the network's."""

import itertools

import numpy as np

from hpe_core.geometry.crop import Image
from hpe_core.geometry.rotation import ANGLE_NAMES, YAW, euler_error, euler_to_matrix, geodesic_deg
from workflows.engine.exported import Parity
from workflows.export.runtimes import Call

PARITY_DEG, PARITY_PX = 1e-3, 1e-2
LOCK = 0.05  # cosine of yaw below which rotations are compared, not their angles
BATCH = 32


def proved(network: Call, exported: Call, crops: Image, what: str) -> Parity:
    """Largest difference by angle, over batches of several sizes of (M, size, size, 3) crops. Raises ValueError."""
    worst, marks = np.zeros((2, 3)), list[float]()
    # One crop, one whole batch, and what is left: the batch size has to be free, not merely unchecked.
    from hpe_core.learning.precision import exact_float32

    cuts = [0, *range(1, len(crops), BATCH), len(crops)]
    for start, end in itertools.pairwise(cuts):
        batch = np.ascontiguousarray(crops[start:end])
        with exact_float32():
            answers = zip(network(batch), exported(batch), strict=True)
        (ours, theirs), spreads, *landmarks = answers
        away = euler_error(theirs, ours)
        locked = np.cos(np.radians(np.asarray(ours, np.float64)[:, YAW])) < LOCK  # pitch and roll are not told apart
        away[locked] = geodesic_deg(euler_to_matrix(ours[locked]), euler_to_matrix(theirs[locked]))[:, None]
        doubt = np.abs(np.subtract(*spreads, dtype=np.float64)) * ~locked[:, None]
        worst = np.maximum(worst, [away.max(0), doubt.max(0)])  # a NaN stays a NaN
        marks += [float(np.abs(np.subtract(*pair)).max()) for pair in landmarks]
    angles, spread = (dict(zip(ANGLE_NAMES, map(float, row), strict=True)) for row in worst)
    apart = float(np.max(marks)) if marks else None
    parity = Parity(angles, spread, len(crops), PARITY_DEG, apart)
    if not parity.worst <= PARITY_DEG:
        gap = f"{what} and torch differ by {parity.worst:.2g} degrees on {parity.crops} crops"
        raise ValueError(f"{gap}; {PARITY_DEG:g} is allowed")
    if apart is not None and not apart <= PARITY_PX:
        raise ValueError(f"{what} and torch place landmarks {apart:.2g} pixels apart; {PARITY_PX:g} is allowed")
    return parity
