"""The training loop: plain PyTorch, one function, used alone, under Ray Train and inside a Ray Tune trial.

Everything random is a function of (seed, epoch, rank): a run that was cut off and resumed from its last checkpoint
makes the weights that an uninterrupted run makes. The best epoch by validation error is kept beside the last one;
validation people are held out of the training set and are never the test set. With several workers each keeps batch
statistics of its own part of the batch; rank 0's are saved.
"""

import contextlib
import math
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpe_core.data.augment import Augment, center_window
from hpe_core.data.batch import FaceData, PoseBatch, TrainFaces
from hpe_core.learning.checkpoint import save_net, start_from
from hpe_core.learning.ensemble import OnlineTeachers
from hpe_core.learning.metrics import PoseSums
from hpe_core.learning.models import PoseNet
from hpe_core.learning.task import PoseTask
from hpe_core.shipped import network_folder
from hpe_core.spec.data import CropSpec
from hpe_core.spec.serde import to_dict
from hpe_core.spec.training import OptimSpec, TrainSpec
from hpe_core.system.files import replacing

TRAINER = "trainer.pt"


@dataclass(frozen=True)
class Place:
    """Where this worker stands: device, rank and world size."""

    device: torch.device = torch.device("cpu")
    rank: int = 0
    world: int = 1


@dataclass(frozen=True, eq=False)
class EpochEnd:
    """What `fit` hands to its caller after an epoch; `save(folder)` writes a checkpoint (rank 0 only)."""

    epoch: int  # finished epochs
    metrics: dict[str, float]
    best_mae: float
    save: Callable[[Path], None]


def fit(
    spec: TrainSpec,
    crop: CropSpec,
    train: TrainFaces,
    val: FaceData,
    *,
    place: Place = Place(),
    resume: Path | None = None,
    teachers: OnlineTeachers | None = None,
    on_epoch: Callable[[EpochEnd], None],
    on_step: Callable[[int, int], None] = lambda done, total: None,
    stop_after: int | None = None,
) -> PoseNet:
    """Train one network; returns it with its best weights.

    `train` carries soft labels where `spec.distill` is set, or `teachers` write them as the views come. `on_epoch` is
    called on every rank after each epoch; `on_step` with faces seen and faces in all. `resume` is a folder written by
    `EpochEnd.save`. `stop_after` ends early after so many finished epochs, on the schedule of the full length.
    """
    optim = spec.optim
    torch.manual_seed(spec.seed)
    net = PoseNet(spec.net, crop.size)
    if spec.start and resume is None:
        start_from(net, crop, network_folder(spec.start))
    net = net.to(place.device)
    if optim.channels_last:
        net = net.to(memory_format=torch.channels_last)
    view_size = crop.size if teachers is None else teachers.view_size
    task, augment = PoseTask(spec, net), Augment(spec.augment, view_size, net.main_bins)
    state = _State(net, optim)
    if resume is not None:
        state.load(resume, place.device)
    model = wrapped(net, optim, place)
    steps, step_faces = train.steps(optim.batch_size), min(optim.batch_size, len(train))

    for epoch in range(state.epoch, min(optim.epochs, stop_after or optim.epochs)):
        began = time.monotonic()
        torch.manual_seed(_mixed(spec.seed, epoch, place.rank))  # dropout and the like
        random = np.random.default_rng([spec.seed, 1 + epoch, place.rank])
        model.train()
        sums: dict[str, Tensor] = {}
        batches = train.shuffled(optim.batch_size, seed=spec.seed, epoch=epoch, rank=place.rank, world=place.world)
        for step, batch in enumerate(batches, start=epoch * steps):
            batch = augment(batch, random).to(place.device)
            state.set_lr(lr_factor(optim, step, steps))
            for name, value in backward(task, model, batch, optim, place, teachers).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            state.step()
            on_step((step + 1) * step_faces, optim.epochs * steps * step_faces)
        state.epoch = epoch + 1
        metrics = {f"train/{name}": float(value) / steps for name, value in sums.items()}
        if not math.isfinite(metrics["train/loss"]):
            raise FloatingPointError(f"the training loss became {metrics['train/loss']} in epoch {epoch + 1}; lower lr")
        if place.world > 1:  # each worker has batch statistics of its own; the network that is saved is rank 0's
            for buffer in state.averaged().buffers():
                dist.broadcast(buffer, 0)
        scored = validate(state.averaged(), val, crop, optim.batch_size * 2, place).summary()
        metrics |= {f"val/{name}": value for name, value in scored.items() if name != "n"}
        metrics |= {"lr": state.lr, "epoch_seconds": time.monotonic() - began}
        if not math.isfinite(scored["mae"]):
            raise FloatingPointError(f"the validation error became {scored['mae']} in epoch {epoch + 1}; lower lr")
        state.keep_if_best(scored["mae"], epoch + 1)
        on_epoch(EpochEnd(epoch + 1, metrics, state.best_mae, lambda folder: state.save(folder, crop, to_dict(spec))))
    net.load_state_dict(state.best)
    return net


def wrapped(net: PoseNet, optim: OptimSpec, place: Place) -> nn.Module:
    """The network as the step calls it: data-parallel over several workers, compiled if asked for."""
    model = typing.cast(nn.Module, torch.compile(net)) if optim.compile else net
    if place.world > 1:
        device_ids = [place.device.index] if place.device.type == "cuda" else None
        # Heads that a loss leaves out (hard_loss ce, hard_weight 0) have no gradient.
        spare = len(net.heads) + (net.regression is not None) > 1
        model = nn.parallel.DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=spare)
    return model


def backward(
    task: PoseTask,
    model: nn.Module,
    batch: PoseBatch,
    optim: OptimSpec,
    place: Place,
    teachers: OnlineTeachers | None = None,
) -> dict[str, Tensor]:
    """Sum the gradients of a batch in `optim.accumulate` parts, by their faces; returns loss and parts, detached."""
    half = optim.amp and place.device.type == "cuda"
    sums: dict[str, Tensor] = {}
    pieces = batch.split(optim.accumulate)
    for number, piece in enumerate(pieces, start=1):
        silent = isinstance(model, nn.parallel.DistributedDataParallel) and number < len(pieces)
        with typing.cast(nn.parallel.DistributedDataParallel, model).no_sync() if silent else contextlib.nullcontext():
            if teachers is not None:
                with torch.autocast(place.device.type, torch.bfloat16, enabled=half):
                    piece = teachers(piece)
            out = task(model, piece, half)
            share = len(piece) / len(batch)
            (out.loss * share).backward()
        for name, value in {**out.parts, "loss": out.loss.detach()}.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + share * value
    return sums


def validate(net: PoseNet, data: FaceData, crop: CropSpec, batch_size: int, place: Place = Place()) -> PoseSums:
    """Errors over every row of `data` once, merged over all workers."""
    net.eval()
    sums = PoseSums.empty()
    with torch.inference_mode():
        for batch in data.ordered(batch_size, rank=place.rank, world=place.world):
            images = center_window(batch, crop.size).to(place.device).images_BHWC
            sums += PoseSums.of(net.angles(images).cpu().numpy(), batch.angles_B3.numpy())
    if place.world > 1:
        vector = torch.from_numpy(sums.as_vector()).to(place.device)
        dist.all_reduce(vector)
        sums = PoseSums.from_vector(vector.cpu().numpy())
    return sums


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def lr_factor(optim: OptimSpec, step: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by: linear warm-up, then cosine to zero (EHPNet 4.2) or constant."""
    warmup, total = optim.warmup_epochs * steps_per_epoch, optim.epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optim.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class _State:
    """Everything that a checkpoint holds: weights, optimiser, averaged weights, best weights, finished epochs."""

    def __init__(self, net: PoseNet, spec: OptimSpec) -> None:
        self.net, self.spec, self.epoch = net, spec, 0
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[spec.optimizer]
        extra: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if spec.optimizer == "sgd" else {}
        self.optimizer = kind(net.parameters(), lr=spec.lr, weight_decay=spec.weight_decay, **extra)
        self.ema: PoseNet | None = None
        if spec.ema_decay:
            self.ema = PoseNet(net.spec, net.size).to(next(net.parameters()).device)
            self.ema.load_state_dict(net.state_dict())
        self.best_mae, self.best_epoch = math.inf, 0
        self.best: dict[str, Tensor] = {}
        self.steps = 0

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def set_lr(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.lr * factor

    def step(self) -> None:
        """Use the gradients that have been summed, and forget them."""
        if self.spec.clip_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.spec.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if self.ema is not None:
            # Warm-up of the average (as in TensorFlow's): early on it follows the weights closely.
            decay = min(self.spec.ema_decay, (1 + self.steps) / (10 + self.steps))
            with torch.no_grad():
                for mean, value in zip(self.ema.state_dict().values(), self.net.state_dict().values(), strict=True):
                    if mean.is_floating_point():
                        mean.lerp_(value, 1 - decay)
                    else:
                        mean.copy_(value)

    def averaged(self) -> PoseNet:
        return self.net if self.ema is None else self.ema

    def keep_if_best(self, mae: float, epoch: int) -> None:
        if mae < self.best_mae or not self.best:
            self.best_mae, self.best_epoch = mae, epoch
            self.best = {k: v.detach().clone() for k, v in self.averaged().state_dict().items()}

    def save(self, folder: Path, crop: CropSpec, spec: dict[str, Any]) -> None:
        """Best weights as a loadable network, and the whole state to resume from."""
        notes = {"epoch": self.best_epoch, "val_mae": self.best_mae, "train_spec": spec}
        save_net(folder, self.net, crop, notes, self.best)
        whole = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "best": self.best,
            "numbers": [float(self.epoch), float(self.steps), self.best_mae, float(self.best_epoch)],
        }
        with replacing(folder / TRAINER) as temporary, open(temporary, "wb") as stream:
            torch.save(whole, stream)  # given a path, torch repeats its name in the archive

    def load(self, folder: Path, device: torch.device) -> None:
        whole = torch.load(folder / TRAINER, map_location=device, weights_only=True)
        self.net.load_state_dict(whole["net"])
        self.optimizer.load_state_dict(whole["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(whole["ema"])
        self.best = whole["best"]
        epoch, steps, self.best_mae, best_epoch = whole["numbers"]
        self.epoch, self.steps, self.best_epoch = int(epoch), int(steps), int(best_epoch)
