"""What a training step minimises: a task turns a batch into a loss, its named parts and the predicted angles."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpe_core.data.batch import PoseBatch
from hpe_core.geometry.bins import AngleBins
from hpe_core.learning.losses import cross_entropy, ehpnet_loss, offsets_loss, soft_label_kl
from hpe_core.learning.models import PoseLogits, PoseNet
from hpe_core.spec.training import TrainSpec


class StepOutput(NamedTuple):
    loss: Tensor
    parts: dict[str, Tensor]  # detached, add up to the loss
    angles_B3: Tensor  # detached, degrees


class PoseTask:
    """Hard labels: EHPNet eqs. 1-3, offsets eq. 4, or cross-entropy alone."""

    def __init__(self, spec: TrainSpec, net: PoseNet) -> None:
        self.spec, self.bins, self.predicting = spec, net.bins, net.predicting

    def __call__(self, model: nn.Module, batch: PoseBatch, half: bool = False) -> StepOutput:
        """`model` is the PoseNet or its data-parallel wrapper; with `half` it computes in bfloat16, the loss never."""
        with torch.autocast(batch.images_BHWC.device.type, torch.bfloat16, enabled=half):
            logits: PoseLogits = model(batch.images_BHWC)
        return self._output(logits, self.parts(logits, batch))

    def parts(self, logits: PoseLogits, batch: PoseBatch) -> dict[str, Tensor]:
        if self.spec.hard_loss == "ehpnet":
            return ehpnet_loss(logits, batch.angles_B3, self.bins, self.spec.mse_weight)
        if self.spec.hard_loss == "offsets":
            return offsets_loss(logits, batch.angles_B3, self.bins, self.spec.net.limit_deg)
        head = logits.heads[self.predicting]
        return {"ce": cross_entropy(head, batch.angles_B3, self.main_bins)}

    @property
    def main_bins(self) -> AngleBins:
        return self.bins[self.predicting]

    def _output(self, logits: PoseLogits, parts: dict[str, Tensor]) -> StepOutput:
        angles = self.main_bins.decode(logits.heads[self.predicting].detach().softmax(-1))
        return StepOutput(torch.stack(list(parts.values())).sum(), {k: v.detach() for k, v in parts.items()}, angles)


class DistillTask(PoseTask):
    """scale * (hard_weight * hard loss + T^2 KL(soft labels || student)): EHPNet eq. 5 and offsets eq. 7."""

    def parts(self, logits: PoseLogits, batch: PoseBatch) -> dict[str, Tensor]:
        distill = self.spec.distill
        assert distill is not None and batch.soft_B3N is not None
        kl = soft_label_kl(logits.heads[self.predicting], batch.soft_B3N, distill.temperature)
        parts = {"kl": distill.scale * kl}
        if distill.hard_weight > 0:
            for name, value in super().parts(logits, batch).items():
                parts[name] = distill.scale * distill.hard_weight * value
        return parts


def make_task(spec: TrainSpec, net: PoseNet) -> PoseTask:
    """The task that a network's spec asks for."""
    return PoseTask(spec, net) if spec.distill is None else DistillTask(spec, net)
