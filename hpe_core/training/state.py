"""Everything that a checkpoint of a training holds: weights, optimiser, averaged weights, best weights, counts."""

import math
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpe_core.networks.checkpoint import save_net
from hpe_core.networks.models import PoseNet
from hpe_core.spec.data import CropSpec
from hpe_core.spec.training import OptimSpec
from hpe_core.system.files import replacing

TRAINER = "trainer.pt"


class TrainState:
    """A network in training, on the device where it lies. With `captured` its optimiser can stand in a CUDA graph."""

    def __init__(self, net: PoseNet, spec: OptimSpec, captured: bool = False) -> None:
        self.net, self.spec, self.epoch, self.steps = net, spec, 0, 0
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[spec.optimizer]
        extra: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if spec.optimizer == "sgd" else {}
        if captured and spec.optimizer != "sgd":
            extra["capturable"] = True
        self.lr = spec.lr
        device = next(net.parameters()).device
        lr = torch.tensor(spec.lr, device=device) if captured else spec.lr
        self.optimizer = kind(net.parameters(), lr=lr, weight_decay=spec.weight_decay, fused=True, **extra)
        self.ema = deepcopy(net) if spec.ema_decay else None
        self.best_error, self.best_epoch = math.inf, 0
        self.best: dict[str, Tensor] = {}

    def set_lr(self, factor: float) -> None:
        self.lr = self.spec.lr * factor
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.lr)
            else:
                group["lr"] = self.lr

    def step(self) -> None:
        """Use the gradients that have been summed, and forget them."""
        if self.spec.clip_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.spec.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def average(self) -> None:
        """Count a step, and let the averaged weights follow."""
        self.steps += 1
        if self.ema is None:
            return
        # Warm-up of the average (as in TensorFlow's): early on it follows the weights closely.
        decay = min(self.spec.ema_decay, (1 + self.steps) / (10 + self.steps))
        (means, values), (counts, counted) = self._followed
        torch._foreach_lerp_(means, values, 1 - decay)
        if counts:
            torch._foreach_copy_(counts, counted)

    @cached_property
    def _followed(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """(averaged, of the network): what has fractions, and the counts. They stay where they are in memory."""
        assert self.ema is not None
        pairs = list(zip(self.ema.state_dict().values(), self.net.state_dict().values(), strict=True))
        kinds = [[pair for pair in pairs if pair[0].is_floating_point() == floating] for floating in (True, False)]
        return [([mean for mean, _ in kind], [value for _, value in kind]) for kind in kinds]

    def averaged(self) -> PoseNet:
        return self.net if self.ema is None else self.ema

    def keep_if_best(self, error: float, epoch: int) -> None:
        if error < self.best_error or not self.best:
            self.best_error, self.best_epoch = error, epoch
            self.best = {k: v.detach().clone() for k, v in self.averaged().state_dict().items()}

    def save(self, folder: Path, crop: CropSpec, spec: dict[str, Any]) -> None:
        """Best weights as a loadable network, and the whole state to resume from."""
        notes = {"epoch": self.best_epoch, "val_error": self.best_error, "train_spec": spec}
        save_net(folder, self.net, crop, notes, self.best)
        whole = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "ema": None if self.ema is None else self.ema.state_dict(),
            "best": self.best,
            "numbers": [float(self.epoch), float(self.steps), self.best_error, float(self.best_epoch)],
        }
        with replacing(folder / TRAINER) as temporary, open(temporary, "wb") as stream:
            torch.save(whole, stream)  # given a path, torch repeats its name in the archive

    def tensors(self) -> list[Tensor]:
        """All that a step changes, but for the average."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.net.state_dict().values(), *[value for value in kept if isinstance(value, Tensor)]]

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; rates and the like stay this one's own."""
        whole = torch.load(folder / TRAINER, map_location="cpu", weights_only=True)
        self.net.load_state_dict(whole["net"])
        # The optimiser itself puts its counts of steps where its kernels want them.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": whole["optimizer"], "param_groups": groups})
        if self.ema is not None:
            self.ema.load_state_dict(whole["ema"])
        device = next(self.net.parameters()).device
        self.best = {name: value.to(device) for name, value in whole["best"].items()}
        epoch, steps, self.best_error, best_epoch = whole["numbers"]
        self.epoch, self.steps, self.best_epoch = int(epoch), int(steps), int(best_epoch)
