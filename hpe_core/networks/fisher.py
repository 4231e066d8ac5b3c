"""The matrix Fisher density on SO(3): p(R) = exp(tr(F^T R)) / c(F), with its normaliser and mean, for F (..., 3, 3).

Its parameter comes from a network (Mohlin et al., NeurIPS 2020; Lee, "Bayesian attitude estimation with the matrix
Fisher distribution", 2018). On unit quaternions it is Bingham's density with Davenport's matrix K(F), and

    c(F) = 1F1(1/2; 2; K) = 1 / (2 pi i)  integral of  e^t det(t I - K)^(-1/2) dt

along a path round the eigenvalues. The path here is the parabola t = z + mu (i u + 1)^2, z the largest eigenvalue of K
(Weideman and Trefethen, Math. Comp. 2007): NODES points give some ten digits for any concentration, because wherever
the other eigenvalues lie, they lie on the negative axis behind it. The mean is the derivative of log c:

    E[q q^T] = 1 / (2 c)  (1 / (2 pi i))  integral of  e^t det(t I - K)^(-1/2) (t I - K)^(-1) dt

No Bessel functions, eigenvectors or singular values are needed: equal singular values are no special case, a GPU's
step waits for nothing, and an ONNX file can hold it all. Complex numbers are pairs, since ONNX has none. The tests
compare with the integral of Bessel functions over proper singular values (Lee's eq. 17) and with sums over SO(3).
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.geometry.rotations import constant, davenport, dominant, from_quaternions

NODES = 24  # of the path's upper half; the lower half is its conjugate
LARGEST = 1e5  # of an F's norm: beyond it float64 would lose digits; a network that wants more is sure enough


def normaliser(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """F (..., 3, 3) -> (log c (...), E[R] (..., 3, 3)) in float64, finite for concentrations from 0 to 1e5.

    log c of the uniform density (F = 0) is 0.
    """
    k = davenport(parameters.double())
    z = (k * dominant(k)).sum((-2, -1))  # Rayleigh's quotient: right to a share of 1e-7 even where two are equal
    eye = torch.eye(4, dtype=k.dtype, device=k.device)
    below = z[..., None, None] * eye - k
    re_t, im_t, re_f, im_f = constant(_path, k).unbind()
    re = below.unsqueeze(-3) + re_t[:, None, None] * eye
    im = (im_t[:, None, None] * eye).expand_as(re)
    for place in range(4):  # Gauss and Jordan: the inverse in place, and the determinant as a product of pivots
        unit = eye[place]
        keep = (1 - unit)[:, None] * (1 - unit)
        re_d, im_d = re[..., place, place], im[..., place, place]
        size = re_d.square() + im_d.square()
        re_i, im_i = (re_d / size)[..., None], (-im_d / size)[..., None]
        row = re[..., place, :] * (1 - unit) + unit, im[..., place, :] * (1 - unit)
        row = row[0] * re_i - row[1] * im_i, row[0] * im_i + row[1] * re_i
        column = unit - re[..., :, place] * (1 - unit), -im[..., :, place] * (1 - unit)
        re, im = (
            re * keep + column[0][..., None] * row[0][..., None, :] - column[1][..., None] * row[1][..., None, :],
            im * keep + column[0][..., None] * row[1][..., None, :] + column[1][..., None] * row[0][..., None, :],
        )
        # 1 / sqrt(pivot): its imaginary part is positive, as t's is, so the principal root is the continuous one.
        size = size.sqrt()
        big = ((size + re_d.abs()) / 2).sqrt()
        small = im_d / (2 * big)
        ahead = re_d >= 0
        re_r, im_r = torch.where(ahead, big, small) / size, -torch.where(ahead, small, big) / size
        re_f, im_f = re_f * re_r - im_f * im_r, re_f * im_r + im_f * re_r
    total = im_f.sum(-1)
    moments = (re_f[..., None, None] * im + im_f[..., None, None] * re).sum(-3) / (2 * total[..., None, None])
    return z + total.log(), from_quaternions(moments)


def _path() -> NDArray[np.float64]:
    """(4, NODES): real and imaginary parts of t - z on the path's upper half, and of the weights with which the
    imaginary parts of the integrand add up to the integral."""
    mu, step = math.pi * NODES / 12, 3 / NODES
    u = (np.arange(NODES) + 0.5) * step
    t = mu * (1j * u + 1) ** 2
    weights = step / math.pi * np.exp(t) * 2j * mu * (1j * u + 1)
    return np.stack([t.real, t.imag, weights.real, weights.imag])


class _LogNormaliser(torch.autograd.Function):
    """log c(F), whose derivative is E[R]: nothing is differentiated through the path."""

    @staticmethod
    def forward(ctx: Any, parameters: Tensor) -> Tensor:
        log_c, mean = normaliser(parameters)
        ctx.save_for_backward(mean.to(parameters.dtype))
        return log_c

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (mean,) = ctx.saved_tensors
        return grads[0].to(mean.dtype)[..., None, None] * mean


def log_normaliser(parameters: Tensor) -> Tensor:
    """F (..., 3, 3) -> log c(F) (...), float64, with gradient E[R]."""
    out: Tensor = _LogNormaliser.apply(parameters)
    return out


def bounded(parameters: Tensor) -> Tensor:
    """F with a norm of at most LARGEST, its direction kept."""
    size = parameters.square().sum((-2, -1), keepdim=True).clamp_min(1e-24).sqrt()
    return parameters * (LARGEST / size).clamp_max(1)


def negative_log_likelihood(parameters: Tensor, rotations: Tensor) -> Tensor:
    """log c(F) - tr(F^T R) (...): of a rotation, or of a mean rotation E[R]; there it is the cross-entropy with any
    density of that mean, its KL divergence but for what F does not change."""
    f = bounded(parameters.double())
    return log_normaliser(f) - (f * rotations.double()).sum((-2, -1))
