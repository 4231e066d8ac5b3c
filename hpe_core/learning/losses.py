"""The papers' losses, each beside its equation. Sums run over the three angles, means over the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.rotations import from_6d, project, to_matrix
from hpe_core.networks.fisher import negative_log_likelihood
from hpe_core.networks.models import PoseLogits
from hpe_core.spec.network import HeadName

NEAR = 1e-6  # radians; below it the geodesic loss is flat


def cross_entropy(logits_B3N: Tensor, angles_B3: Tensor, bins: AngleBins) -> Tensor:
    """EHPNet eq. 1 and L^(j) of offsets eq. 4: sum over angles of -log p[bin of the label]; mean over the batch."""
    return 3 * F.cross_entropy(logits_B3N.flatten(0, 1), bins.encode(angles_B3).flatten())


def expectation_mse(logits_B3N: Tensor, angles_B3: Tensor, bins: AngleBins) -> Tensor:
    """EHPNet eq. 2: squared error of the decoded expectation, degrees^2, summed over angles."""
    return (bins.decode(logits_B3N.softmax(-1)) - angles_B3).square().sum(1).mean()


def regression_mae(output_B3: Tensor, angles_B3: Tensor, limit_deg: float) -> Tensor:
    """L^reg of offsets eq. 4 on theta * tanh(output) (eq. 3): mean absolute error over angles, degrees."""
    return (limit_deg * torch.tanh(output_B3) - angles_B3).abs().mean()


def ehpnet_loss(
    logits: PoseLogits, angles_B3: Tensor, bins: tuple[AngleBins, ...], mse_weight: float
) -> dict[str, Tensor]:
    """EHPNet eq. 3: cross-entropy plus MSE for each angle, summed, over every head."""
    pairs = list(zip(logits.heads, bins, strict=True))
    ce = torch.stack([cross_entropy(head, angles_B3, grid) for head, grid in pairs]).sum()
    mse = torch.stack([expectation_mse(head, angles_B3, grid) for head, grid in pairs]).sum()
    return {"ce": ce, "mse": mse_weight * mse}


def offsets_loss(
    logits: PoseLogits, angles_B3: Tensor, bins: tuple[AngleBins, ...], limit_deg: float
) -> dict[str, Tensor]:
    """Offsets eq. 4: (L^reg + sum over M heads of L^(j)) / (M + 1); without a regression head the mean over M."""
    heads = [cross_entropy(head, angles_B3, grid) for head, grid in zip(logits.heads, bins, strict=True)]
    terms = len(heads) + (logits.regression_B3 is not None)
    parts = {"ce": torch.stack(heads).sum() / terms}
    if logits.regression_B3 is not None:
        parts["mae"] = regression_mae(logits.regression_B3, angles_B3, limit_deg) / terms
    return parts


def dldl_loss(
    logits: PoseLogits, angles_B3: Tensor, bins: tuple[AngleBins, ...], sd_deg: float, mae_weight: float
) -> dict[str, Tensor]:
    """DLDL-v2 (Gao et al., IJCAI 2018): a label is a normal distribution over the bins. Cross-entropy against it plus
    the absolute error of the expectation, degrees; sums over angles and heads."""
    ce, mae = angles_B3.new_zeros(()), angles_B3.new_zeros(())
    for head, grid in zip(logits.heads, bins, strict=True):
        away = (grid.centers_like(angles_B3) - angles_B3.unsqueeze(-1)) / sd_deg
        label = torch.softmax(-away.square() / 2, -1)
        ce = ce - (label * F.log_softmax(head, -1)).sum(-1).sum(1).mean()
        mae = mae + (grid.decode(head.softmax(-1)) - angles_B3).abs().sum(1).mean()
    return {"ce": ce, "mae": mae_weight * mae}


def geodesic(raw_B32: Tensor, angles_B3: Tensor) -> Tensor:
    """6DRepNet eq. 4: the angle arccos((tr(R_predicted R_label^T) - 1) / 2), radians, mean over the batch."""
    return geodesic_angle(from_6d(raw_B32.double()), to_matrix(angles_B3.double())).mean()


def geodesic_angle(first: Tensor, second: Tensor) -> Tensor:
    """(..., 3, 3) rotations -> (...) the angle between them, radians, by its sine and cosine.

    arccos has no finite slope at 0 and pi; this one's is 0 there, and 1 from a millionth of a radian on.
    """
    between = first @ second.mT
    sine = torch.stack([between[..., j, i] - between[..., i, j] for i, j in ((1, 2), (2, 0), (0, 1))], -1) / 2
    cosine = (between.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.atan2((sine.square().sum(-1) + NEAR**2).sqrt(), cosine)


def fisher_nll(raw_B33: Tensor, angles_B3: Tensor) -> Tensor:
    """Mohlin et al. 2020, eq. 4: log c(F) - tr(F^T R_label), mean over the batch."""
    return negative_log_likelihood(raw_B33, to_matrix(angles_B3.double())).mean()


def soft_loss(
    head: HeadName, raw_B3K: Tensor, labels: Tensor, temperature: float = 1.0, weights_B: Tensor | None = None
) -> Tensor:
    """The distance of a head's raw numbers from soft labels of its form, each face with its weight; mean over the
    batch."""
    if head == "sixd":
        return geodesic_to_mean(raw_B3K, labels, weights_B)
    if head == "fisher":
        return mean_rotation_kl(raw_B3K, labels, weights_B)
    return soft_label_kl(raw_B3K, labels, temperature, weights_B)


def mean_rotation_kl(raw_B33: Tensor, mean_B33: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """KL(teacher || student) of matrix Fisher densities, the teacher's with E[R] = `mean_B33`, mean over the batch, but
    for the teacher's entropy, which nobody can change: log c(F) - tr(F^T E[R])."""
    return _mean(negative_log_likelihood(raw_B33, mean_B33), weights_B)


def geodesic_to_mean(raw_B32: Tensor, mean_B33: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """The angle to the rotation nearest to a mean rotation (the chordal mean), radians, mean over the batch."""
    return _mean(geodesic_angle(from_6d(raw_B32.double()), project(mean_B33)), weights_B)


def _mean(values_B: Tensor, weights_B: Tensor | None) -> Tensor:
    """Over the batch. Weights are not made to add up, so that parts of a batch add up to the batch."""
    return values_B.mean() if weights_B is None else (weights_B * values_B).mean()


def soft_label_kl(
    logits_B3N: Tensor, teacher_log_probs_B3N: Tensor, temperature: float = 1.0, weights_B: Tensor | None = None
) -> Tensor:
    """T^2 KL(teacher^(1/T) || student^(1/T)), summed over angles, mean over the batch.

    At T = 1 this is EHPNet eq. 5 (printed there without its minus sign) and L_dist of offsets eq. 7. The teacher is a
    mean of softmaxes; its log-probabilities take the place of logits when it is softened.
    """
    teacher = F.log_softmax(teacher_log_probs_B3N.float() / temperature, dim=-1)
    student = F.log_softmax(logits_B3N / temperature, dim=-1)
    kl = (teacher.exp() * (teacher - student)).sum(-1)
    return temperature**2 * _mean(kl.sum(1), weights_B)
