"""THE angle convention: Euler <-> matrix, geodesic distance, mirror and in-plane turn.

Order is always (pitch, yaw, roll), in degrees. Camera frame: x right, y down, z forward (away from the
camera). A head that looks straight into the camera has R = I, and

    R_cam = Rx(-pitch) Ry(yaw) Rz(roll)        (SciPy: Rotation.from_euler('XYZ', [-pitch, yaw, roll]))

so positive pitch lifts the nose, positive yaw turns it to the left of the picture, positive roll turns the
head clockwise on screen. It holds for `Pose_Para` of 300W-LP and AFLW2000 and for BIWI's stored matrix.

Everything here is NumPy in float64: one implementation cannot disagree with itself.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

PITCH, YAW, ROLL = 0, 1, 2
ANGLE_NAMES = ("pitch", "yaw", "roll")
LOCKED = 1e-7  # cosine of yaw below which pitch and roll are not told apart
# Written into every shard, saved network and ONNX file; a file with another one is refused.
CONVENTION = "pitch,yaw,roll degrees; R=Rx(-pitch)Ry(yaw)Rz(roll); camera x right, y down, z forward"


def euler_to_matrix(angles_deg: ArrayLike) -> Floats:
    """(..., 3) degrees (pitch, yaw, roll) -> (..., 3, 3) rotation, head frame to camera frame."""
    angles = np.radians(np.asarray(angles_deg, dtype=np.float64))
    a, b, c = -angles[..., PITCH], angles[..., YAW], angles[..., ROLL]
    sa, ca, sb, cb, sc, cc = np.sin(a), np.cos(a), np.sin(b), np.cos(b), np.sin(c), np.cos(c)
    out = np.empty((*a.shape, 3, 3))  # nine places: stacking nine scalars would take most of the time
    out[..., 0, 0], out[..., 0, 1], out[..., 0, 2] = cb * cc, -cb * sc, sb
    out[..., 1, 0], out[..., 1, 1], out[..., 1, 2] = ca * sc + sa * sb * cc, ca * cc - sa * sb * sc, -sa * cb
    out[..., 2, 0], out[..., 2, 1], out[..., 2, 2] = sa * sc - ca * sb * cc, sa * cc + ca * sb * sc, ca * cb
    return out


def matrix_to_euler(rotation: ArrayLike) -> Floats:
    """(..., 3, 3) rotation -> (..., 3) degrees with yaw in [-90, 90], pitch and roll in (-180, 180].

    At |yaw| = 90 only pitch + roll is determined; roll is then put to zero.
    """
    r = np.asarray(rotation, dtype=np.float64)
    yaw = np.arcsin(np.clip(r[..., 0, 2], -1.0, 1.0))
    locked = np.hypot(r[..., 0, 0], r[..., 0, 1]) < LOCKED
    a = np.where(locked, np.arctan2(r[..., 2, 1], r[..., 1, 1]), np.arctan2(-r[..., 1, 2], r[..., 2, 2]))
    roll = np.where(locked, 0.0, np.arctan2(-r[..., 0, 1], r[..., 0, 0]))
    return np.degrees(np.stack([-a, yaw, roll], axis=-1))


def is_rotation(matrix: ArrayLike, tolerance: float = 0.01) -> bool:
    """Whether one (3, 3) matrix is a rotation and no mirror, to the few digits that annotation files keep."""
    r = np.asarray(matrix, dtype=np.float64)
    return bool(np.abs(r @ r.T - np.eye(3)).max() <= tolerance and np.linalg.det(r) > 0)


def geodesic_deg(first: ArrayLike, second: ArrayLike) -> Floats:
    """Angle of the rotation from one (..., 3, 3) matrix to the other, degrees in [0, 180].

    From the chord |R1 - R2|_F = 2 sqrt(2) sin(angle / 2): near zero, arccos of the trace would lose half of the digits.
    """
    chord = np.linalg.norm(np.asarray(first, np.float64) - np.asarray(second, np.float64), axis=(-2, -1))
    return np.degrees(2.0 * np.arcsin(np.clip(chord / (2.0 * np.sqrt(2.0)), 0.0, 1.0)))


def angle_error(first_deg: ArrayLike, second_deg: ArrayLike) -> Floats:
    """Circular difference min(d, 360 - d), degrees in [0, 180]: a 170-degree miss scores 170, never 10."""
    d = np.abs(np.asarray(first_deg, np.float64) - np.asarray(second_deg, np.float64)) % 360.0
    return np.minimum(d, 360.0 - d)


def euler_error(answer_deg: ArrayLike, label_deg: ArrayLike) -> Floats:
    """(..., 3) `angle_error` of whichever of the answer's two triples lies nearer to the label: the same rotation has
    no error, whatever branch it is written in."""
    return np.asarray(angle_error(nearer_branch(answer_deg, label_deg), label_deg))


def mirror(angles_deg: ArrayLike) -> Floats:
    """Labels of the horizontally flipped picture: (p, y, r) -> (p, -y, -r), exactly."""
    return np.asarray(angles_deg, dtype=np.float64) * np.array([1.0, -1.0, -1.0])


def turn(angles_deg: ArrayLike, clockwise_deg: ArrayLike) -> Floats:
    """Labels after the picture is turned in its plane by (...,) degrees clockwise on screen.

    R' = Rz(delta) R, decoded again: (20, 60, 0) turned by 15 is (39.65, 52.40, 23.49). Adding delta to roll
    would be wrong off-frontal. A triple with |yaw| > 90 keeps its own branch, so that a turn of 0 is identity.
    """
    angles = np.asarray(angles_deg, dtype=np.float64)
    delta = np.asarray(clockwise_deg, dtype=np.float64)
    zeros = np.zeros(np.broadcast_shapes(delta.shape, angles.shape[:-1]))
    spin = euler_to_matrix(np.stack([zeros, zeros, zeros + delta], axis=-1))
    return same_branch(matrix_to_euler(spin @ euler_to_matrix(angles)), angles)


def same_branch(decoded_deg: ArrayLike, as_deg: ArrayLike) -> Floats:
    """Decoded triples, but the other one of the same rotation where `as_deg` has |yaw| > 90."""
    behind = np.abs(np.asarray(as_deg, np.float64)[..., YAW : YAW + 1]) > 90.0
    return np.where(behind, other_branch(decoded_deg), decoded_deg)


def nearer_branch(angles_deg: ArrayLike, to_deg: ArrayLike) -> Floats:
    """Of the two triples of a rotation the one whose angles lie nearer to another triple's."""
    angles, other = np.asarray(angles_deg, np.float64), other_branch(angles_deg)
    nearer = angle_error(other, to_deg).sum(-1, keepdims=True) < angle_error(angles, to_deg).sum(-1, keepdims=True)
    return np.where(nearer, other, angles)


def upright(angles_deg: ArrayLike) -> Floats:
    """Of the two triples the one with the smaller |pitch| + |roll|: a head seen from behind has a yaw beyond 90, and
    does not stand on its crown."""
    angles = np.asarray(angles_deg, np.float64)
    on_its_crown = np.abs(angles[..., PITCH]) + np.abs(angles[..., ROLL]) > 180.0
    return np.where(on_its_crown[..., None], other_branch(angles), angles)


def other_branch(angles_deg: ArrayLike) -> Floats:
    """The second Euler triple of the same rotation: (p +- 180, 180 - y, r +- 180), wrapped to (-180, 180]."""
    angles = np.asarray(angles_deg, dtype=np.float64)
    twin = np.stack([angles[..., 0] + 180.0, 180.0 - angles[..., 1], angles[..., 2] + 180.0], axis=-1)
    return 180.0 - (180.0 - twin) % 360.0
