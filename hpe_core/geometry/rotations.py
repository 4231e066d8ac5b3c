"""Rotations as answers, in torch: the mean rotation matrix E[R], its projection to SO(3), its spread, 6D, and Euler.

An answer of a head that predicts rotations is E[R] of what it believes, (B, 3, 3): a rotation where it is sure, a
shorter matrix where it is not. Means over windows, mirror images and teachers are then plain averages, and the rotation
nearest to an average is the chordal mean (Hartley et al., IJCV 2013).

Everything goes through unit quaternions. tr(M^T R(q)) = q^T K(M) q with Davenport's symmetric (4, 4) matrix K, so the
nearest rotation is the eigenvector of its largest eigenvalue. Repeated squaring finds it: a fixed number of
multiplications, no decomposition, so nothing waits for a GPU and an ONNX file can hold it. Computed in float64: the
spread of a sure answer is a small difference.
"""

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.geometry.rotation import LOCKED
from hpe_core.spec.network import FormName

SQUARINGS, RESCALED = 24, 4  # P^(2^24), its trace put to 1 after every fourth
WIDEST_DEG = 180 / math.sqrt(3)  # the standard deviation of an angle of which nothing is known
FRONT = 1e-3  # cosine of yaw below which an angle's spread is not divided by it


@dataclass(frozen=True)
class Rotations:
    """Answers that are mean rotations (B, 3, 3): the form of every head that predicts no bins (`forms.Form`)."""

    name: ClassVar[FormName] = "rotations"
    count: ClassVar[int] = 3
    limit: ClassVar[float] = 180.0
    stored: ClassVar[torch.dtype] = torch.float32

    def decode(self, answers_B33: Tensor) -> Tensor:
        """(..., 3, 3) -> (..., 3) degrees of the nearest rotation; of its two Euler triples that which looks ahead."""
        return upright(to_euler(project(answers_B33).float()))

    def spread(self, answers_B33: Tensor) -> Tensor:
        """(..., 3, 3) -> (..., 3) standard deviations of pitch, yaw and roll, degrees.

        `covariance` at the nearest rotation, taken to the angles by their derivatives there. At most that of an angle
        of which nothing is known: near 90 degrees of yaw pitch and roll are not told apart.
        """
        mean = project(answers_B33)
        slopes = euler_slopes(mean)
        variances = ((slopes @ covariance(answers_B33, mean)) * slopes).sum(-1).clamp_min(0)
        return variances.sqrt().rad2deg().clamp_max(WIDEST_DEG).float()

    def scatter(self, answers_B33: Tensor) -> Tensor:
        """(..., 3, 3) -> (...) mean squared distance from the nearest rotation, rad^2 (chords): tr of `covariance`."""
        return (3 - (project(answers_B33) * answers_B33.double()).sum((-2, -1))).clamp_min(0).float()

    def mirror(self, answers_B33: Tensor) -> Tensor:
        """Of the flipped picture: D R D with D = diag(-1, 1, 1), exactly (pitch, -yaw, -roll)."""
        return answers_B33 * constant(_mirrored, answers_B33)

    def moved(self, labels_B33: Tensor, flips_B: Tensor, shift_B3: Tensor | None, turns_B: Tensor | None) -> Tensor:
        """Labels of faces that were flipped, then turned by (B,) degrees clockwise: Rz(turn) R, exactly."""
        labels = torch.where(flips_B[:, None, None] > 0, self.mirror(labels_B33), labels_B33)
        if turns_B is None:
            return labels
        zeros = torch.zeros_like(turns_B)
        spin = to_matrix(torch.stack([zeros, zeros, turns_B], -1).double())  # a GPU may round float32 products to TF32
        return (spin @ labels.double()).to(labels.dtype)

    def rotations(self, answers_B33: Tensor) -> Tensor:
        """(..., 3, 3) mean rotations: the answers themselves."""
        return answers_B33

    def labels(self, answers_B33: Tensor) -> Tensor:
        """What a student reads of mean answers: the same in float32."""
        return answers_B33.float()

    def answers(self, labels_B33: Tensor) -> Tensor:
        return labels_B33

    def averaged(self, answers_B33: Tensor) -> Tensor:
        """What may be averaged in place of answers before `angles_of`: the answers."""
        return answers_B33

    def angles_of(self, averaged_B33: Tensor) -> Tensor:
        return self.decode(averaged_B33)


def project(matrices: Tensor) -> Tensor:
    """(..., 3, 3) -> the nearest rotations, float64: those of the largest tr(M^T R).

    Where two are equally near, something between them; of zeros, zeros.
    """
    return from_quaternions(dominant(davenport(matrices.double())))


def dominant(symmetric: Tensor) -> Tensor:
    """(..., 4, 4) traceless symmetric float64 -> q q^T of its largest eigenvalue, by squaring again and again.

    Moved by sqrt(3) times its scale first, so that no eigenvalue is negative. The mean over the eigenvectors where
    several are largest, to a share of 1e-7 of its scale.
    """
    eye = torch.eye(4, dtype=symmetric.dtype, device=symmetric.device)
    size = symmetric.square().sum((-2, -1), keepdim=True).sqrt() / 2  # the Frobenius norm of the 3 x 3 matrix
    power = symmetric / size.clamp_min(1e-300) + math.sqrt(3) * eye
    for step in range(SQUARINGS):
        if step % RESCALED == 0:
            power = power / (power * eye).sum((-2, -1), keepdim=True)
        power = power @ power
    return power / (power * eye).sum((-2, -1), keepdim=True)


def davenport(matrices: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 4, 4) symmetric K with q^T K q = tr(M^T R(q)), q = (w, x, y, z) a unit quaternion."""
    return (matrices.flatten(-2) @ constant(_coefficients, matrices)).unflatten(-1, (4, 4))


def from_quaternions(moments: Tensor) -> Tensor:
    """(..., 4, 4) E[q q^T] -> (..., 3, 3) E[R(q)]: the entries of a rotation are quadratic in its quaternion."""
    return (moments.flatten(-2) @ constant(_coefficients, moments).T).unflatten(-1, (3, 3))


def covariance(answers: Tensor, nearest: Tensor) -> Tensor:
    """Mean rotations (..., 3, 3) and the rotations nearest to them -> (..., 3, 3) E[v v^T], v = 2 sin(angle / 2) axis.

    v is the way from the nearest rotation to R, in radians and in the head's frame; for small angles the tangent. With
    A = nearest^T E[R], which is symmetric, E[v v^T] = 2 A + (1 - tr A) I: no density need be known.
    """
    inner = nearest.mT @ answers.double()
    eye = torch.eye(3, dtype=inner.dtype, device=inner.device)
    return inner + inner.mT + (1 - (inner * eye).sum((-2, -1), keepdim=True)) * eye


def euler_slopes(rotations: Tensor) -> Tensor:
    """(..., 3, 3) rotations -> (..., 3, 3) d(pitch, yaw, roll) / d(turn about the head's x, y, z)."""
    sin, across, up = rotations[..., 0, 2], rotations[..., 0, 0], rotations[..., 0, 1]
    cos, zero = (across.square() + up.square()).sqrt(), torch.zeros_like(sin)
    locked = cos < LOCKED  # roll is zero there
    c, s = torch.where(locked, zero + 1, across / cos), torch.where(locked, zero, -up / cos)
    cos = cos.clamp_min(FRONT)
    pitch = torch.stack([-c / cos, s / cos, zero], -1)
    yaw = torch.stack([s, c, zero], -1)
    roll = torch.stack([-sin * c / cos, sin * s / cos, zero + 1], -1)
    return torch.stack([pitch, yaw, roll], -2)


def from_6d(numbers: Tensor) -> Tensor:
    """(..., 3, 2) two columns -> (..., 3, 3) rotation by Gram-Schmidt (Zhou et al., CVPR 2019, eq. 15; 6DRepNet)."""
    first, second = numbers[..., 0], numbers[..., 1]
    x = first / _length(first)
    rest = second - (x * second).sum(-1, keepdim=True) * x
    y = rest / _length(rest)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def to_matrix(angles_deg: Tensor) -> Tensor:
    """(..., 3) degrees -> (..., 3, 3) rotations: `rotation.euler_to_matrix` in torch."""
    angles = angles_deg.deg2rad()
    return matrix_of(angles.cos(), angles.sin())


def matrix_of(cosines: Tensor, sines: Tensor) -> Tensor:
    """(..., 3) cosines and sines of pitch, yaw, roll -> (..., 3, 3) Rx(-pitch) Ry(yaw) Rz(roll).

    No entry holds an angle twice. So for independent angles the means of cosines and sines give E[R].
    """
    (ca, cb, cc), (na, sb, sc) = cosines.unbind(-1), sines.unbind(-1)
    sa = -na
    entries = [cb * cc, -cb * sc, sb]
    entries += [ca * sc + sa * sb * cc, ca * cc - sa * sb * sc, -sa * cb]
    entries += [sa * sc - ca * sb * cc, sa * cc + ca * sb * sc, ca * cb]
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def to_euler(rotations: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 3) degrees, yaw in [-90, 90]: `rotation.matrix_to_euler` in torch."""
    r = rotations
    cos = r[..., 0, :2].square().sum(-1).sqrt()
    yaw, locked = torch.atan2(r[..., 0, 2], cos), cos < LOCKED
    down = torch.where(locked, r[..., 2, 1], -r[..., 1, 2])
    pitch = -torch.atan2(down, torch.where(locked, r[..., 1, 1], r[..., 2, 2]))
    roll = torch.where(locked, torch.zeros_like(yaw), torch.atan2(-r[..., 0, 1], r[..., 0, 0]))
    return torch.stack([pitch, yaw, roll], -1).rad2deg()


def upright(angles_deg: Tensor) -> Tensor:
    """Of the two Euler triples of a rotation that with the smaller |pitch| + |roll|: a head seen from behind has a yaw
    beyond 90, and does not stand on its crown."""
    pitch, yaw, roll = angles_deg.unbind(-1)
    twin = 180 - (180 - torch.stack([pitch + 180, 180 - yaw, roll + 180], -1)).remainder(360)
    return torch.where((pitch.abs() + roll.abs() > 180)[..., None], twin, angles_deg)


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(-1, keepdim=True).clamp_min(1e-24).sqrt()


def constant(values: Callable[..., NDArray[np.float64]], like: Tensor, *of: Hashable) -> Tensor:
    """The array that a function makes `of` these, of a tensor's type and on its device: made once, so nobody writes
    into it.

    A step that made it anew would wait for a copy to the device.
    """
    if torch.compiler.is_compiling():  # a trace holds the constant itself
        return torch.as_tensor(values(*of), dtype=like.dtype, device=like.device)
    return _kept(values, of, like.dtype, like.device)


@functools.cache
def _kept(
    values: Callable[..., NDArray[np.float64]], of: tuple[Hashable, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # the first who asks may not learn; the next one's gradient needs them
        return torch.as_tensor(values(*of), dtype=dtype, device=device)


def _mirrored() -> NDArray[np.float64]:
    """The signs that D R D gives to R's entries, D = diag(-1, 1, 1)."""
    return np.outer([-1.0, 1.0, 1.0], [-1.0, 1.0, 1.0])


def _coefficients() -> NDArray[np.float64]:
    """Of R(q)'s entries (9) over the products of quaternion entries (16), symmetric in the pairs."""
    w, x, y, z = range(4)
    terms = {
        (0, 0): [(w, w, 1), (x, x, 1), (y, y, -1), (z, z, -1)],
        (1, 1): [(w, w, 1), (x, x, -1), (y, y, 1), (z, z, -1)],
        (2, 2): [(w, w, 1), (x, x, -1), (y, y, -1), (z, z, 1)],
        (0, 1): [(x, y, 2), (w, z, -2)],
        (1, 0): [(x, y, 2), (w, z, 2)],
        (0, 2): [(x, z, 2), (w, y, 2)],
        (2, 0): [(x, z, 2), (w, y, -2)],
        (1, 2): [(y, z, 2), (w, x, -2)],
        (2, 1): [(y, z, 2), (w, x, 2)],
    }
    table = np.zeros((3, 3, 4, 4))
    for place, parts in terms.items():
        for i, j, factor in parts:
            table[place][i, j] += factor / 2
            table[place][j, i] += factor / 2
    return table.reshape(9, 16)
