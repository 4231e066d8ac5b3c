"""What a training step minimises: a task turns a batch into a loss and its named parts."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpe_core.data.batch import PoseBatch
from hpe_core.learning.losses import (
    cross_entropy,
    dldl_loss,
    ehpnet_loss,
    fisher_nll,
    geodesic,
    offsets_loss,
    soft_loss,
)
from hpe_core.networks.models import PoseLogits, PoseNet
from hpe_core.networks.multitask import landmark_parts
from hpe_core.spec.training import TrainSpec


class StepOutput(NamedTuple):
    loss: Tensor
    parts: dict[str, Tensor]  # detached, add up to the loss


class PoseTask:
    """Hard labels: EHPNet eqs. 1-3, offsets eq. 4, DLDL-v2, or cross-entropy alone; of rotations 6DRepNet eq. 4, or the
    likelihood of Mohlin et al. With `spec.distill` also soft ones:

    scale * (hard_weight * hard loss + T^2 KL(soft labels || student)), EHPNet eq. 5 and offsets eq. 7. A network with
    landmarks learns them beside (MNN).
    """

    def __init__(self, spec: TrainSpec, net: PoseNet) -> None:
        self.spec, self.bins, self.predicting = spec, net.bins, net.predicting
        self.form, self.size = net.form, net.size

    def __call__(self, model: nn.Module, batch: PoseBatch, half: bool = False) -> StepOutput:
        """`model` is the PoseNet or its data-parallel wrapper; with `half` it computes in bfloat16, the loss never."""
        with torch.autocast(batch.images_BHWC.device.type, torch.bfloat16, enabled=half):
            logits: PoseLogits = model(batch.images_BHWC)
        parts = self.parts(logits, batch)
        return StepOutput(torch.stack(list(parts.values())).sum(), {k: v.detach() for k, v in parts.items()})

    def parts(self, logits: PoseLogits, batch: PoseBatch) -> dict[str, Tensor]:
        """The loss by its terms."""
        pose = self.pose_parts(logits, batch)
        if logits.landmarks is None or batch.landmarks_BL3 is None:
            return pose
        return pose | landmark_parts(logits.landmarks, batch.landmarks_BL3, self.size, self.spec)

    def pose_parts(self, logits: PoseLogits, batch: PoseBatch) -> dict[str, Tensor]:
        """Of the pose alone."""
        distill = self.spec.distill
        if distill is None:
            return self.hard_parts(logits, batch)
        assert batch.soft_B3N is not None
        weights = None
        if distill.distrust:
            weights = 1 / (1 + distill.distrust * self.form.scatter(self.form.answers(batch.soft_B3N)))
        raw = logits.heads[self.predicting]
        kl = soft_loss(self.spec.net.head, raw, batch.soft_B3N, distill.temperature, weights)
        hard = self.hard_parts(logits, batch) if distill.hard_weight > 0 else {}
        weight = distill.scale * distill.hard_weight
        return {"kl": distill.scale * kl} | {name: weight * value for name, value in hard.items()}

    def hard_parts(self, logits: PoseLogits, batch: PoseBatch) -> dict[str, Tensor]:
        if self.spec.hard_loss == "ehpnet":
            return ehpnet_loss(logits, batch.angles_B3, self.bins, self.spec.mse_weight)
        if self.spec.hard_loss == "offsets":
            return offsets_loss(logits, batch.angles_B3, self.bins, self.spec.net.limit_deg)
        if self.spec.hard_loss == "dldl":
            return dldl_loss(logits, batch.angles_B3, self.bins, self.spec.label_sd, self.spec.mae_weight)
        head = logits.heads[self.predicting]
        if self.spec.hard_loss == "geodesic":
            return {"geodesic": geodesic(head, batch.angles_B3)}
        if self.spec.hard_loss == "fisher":
            return {"nll": fisher_nll(head, batch.angles_B3)}
        return {"ce": cross_entropy(head, batch.angles_B3, self.bins[self.predicting])}
