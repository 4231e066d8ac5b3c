"""Labels of another convention -> ours, as `ConventionSpec` describes the difference.

The steps are taken in the order of its keys. What comes out is (pitch, yaw, roll) in degrees of `rotation.py`, or the
rotation itself. Angles that only change unit, range, order or sign stay numbers and keep their branch (a yaw beyond 90
stays one). Another product of rotations, or a transposed one, is composed and decoded to the triple of a head that does
not stand on its crown.
"""

from functools import reduce

import numpy as np
from numpy.typing import ArrayLike

from hpe_core.geometry.rotation import ANGLE_NAMES, Floats, euler_to_matrix, matrix_to_euler, upright
from hpe_core.spec.data import ConventionSpec

FACTOR = {"as_read": 1.0, "radians_as_degrees": 180.0 / np.pi, "degrees_as_radians": np.pi / 180.0}
AXES = "xyz"  # pitch turns about -x, yaw about y, roll about z


def to_ours(angles_deg: ArrayLike, convention: ConventionSpec) -> Floats:
    """(..., 3) angles as a reader gives them -> (..., 3) degrees (pitch, yaw, roll) of our convention."""
    if convention.rotation == AXES and not convention.transposed:
        return _named(angles_deg, convention)
    return upright(matrix_to_euler(to_matrix(angles_deg, convention)))


def to_matrix(angles_deg: ArrayLike, convention: ConventionSpec) -> Floats:
    """(..., 3) angles as a reader gives them -> (..., 3, 3) rotation, head frame to camera frame."""
    angles = _named(angles_deg, convention)
    # Of one angle alone, our product of three is that angle's own factor.
    factors = {axis: euler_to_matrix(angles * unit) for axis, unit in zip(AXES, np.eye(3), strict=True)}
    rotation: Floats = reduce(np.matmul, [factors[axis] for axis in convention.rotation])
    return np.swapaxes(rotation, -1, -2) if convention.transposed else rotation


def _named(angles_deg: ArrayLike, convention: ConventionSpec) -> Floats:
    """Degrees, in our range and order and with our signs."""
    angles = np.asarray(angles_deg, dtype=np.float64) * FACTOR[convention.unit]
    if convention.range == "wrapped":
        angles = np.where(np.abs(angles) > 180.0, 180.0 - (180.0 - angles) % 360.0, angles)
    stored = convention.order.split("_")
    signs = [convention.pitch_sign, convention.yaw_sign, convention.roll_sign]
    return angles[..., [stored.index(name) for name in ANGLE_NAMES]] * np.array(signs, dtype=np.float64)
