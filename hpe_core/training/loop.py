"""The training loop: plain PyTorch, one function, used alone, under Ray Train and inside a Ray Tune trial.

Everything random is a function of (seed, epoch, rank): a run that was cut off and resumed from its last checkpoint
makes the weights that an uninterrupted run makes. The best epoch by validation error is kept beside the last one;
validation people are held out of the training set and are never the test set. With several workers each keeps batch
statistics of its own part of the batch; rank 0's are saved.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hpe_core.augment.augment import Augment
from hpe_core.augment.moves import center_window
from hpe_core.data.batch import FaceData, TrainFaces
from hpe_core.data.device_rows import DeviceRows
from hpe_core.geometry.landmarks import landmark_errors
from hpe_core.learning.ensemble import OnlineTeachers
from hpe_core.learning.metrics import PoseSums, deciding
from hpe_core.networks.models import PoseNet
from hpe_core.spec.data import CropSpec
from hpe_core.spec.serde import to_dict
from hpe_core.spec.training import OptimSpec, TrainSpec
from hpe_core.training.place import Place
from hpe_core.training.step import Losses, begin
from hpe_core.training.views import Views


@dataclass(frozen=True, eq=False)
class EpochEnd:
    """What `fit` hands to its caller after an epoch; `save(folder)` writes a checkpoint (rank 0 only)."""

    epoch: int  # finished epochs
    metrics: dict[str, float]
    best_error: float
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
    optim, step = spec.optim, begin(spec, crop, place, resume=resume, teachers=teachers)
    state, net = step.state, step.state.net
    augment = Augment(spec.augment, crop.size if teachers is None else teachers.view_size, net.form)
    views = Views(train, augment, optim.batch_size, spec.seed, place)
    held_out = DeviceRows(val.rows(), place.device, place.rows_bytes)
    steps, step_faces = train.steps(optim.batch_size), min(optim.batch_size, len(train))

    first, last = state.epoch, min(optim.epochs, stop_after or optim.epochs)
    for epoch, batches in zip(range(first, last), views.epochs(first, last), strict=True):
        began = time.monotonic()
        mixed = np.random.SeedSequence([spec.seed, epoch, place.rank]).generate_state(1)
        torch.manual_seed(int(mixed[0]))  # dropout and the like
        step.model.train()
        sums: Losses = {}
        for number, batch in enumerate(batches, start=epoch * steps):
            state.set_lr(lr_factor(optim, number, steps))
            for name, value in step(batch).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            on_step((number + 1) * step_faces, optim.epochs * steps * step_faces)
        state.epoch = epoch + 1
        totals = torch.stack(list(sums.values())).tolist()  # here the host waits for the device, once an epoch
        metrics = {f"train/{name}": total / steps for name, total in zip(sums, totals, strict=True)}
        if not math.isfinite(metrics["train/loss"]):
            raise FloatingPointError(f"the training loss became {metrics['train/loss']} in epoch {epoch + 1}; lower lr")
        if place.world > 1:  # each worker has batch statistics of its own; the network that is saved is rank 0's
            for buffer in state.averaged().buffers():
                dist.broadcast(buffer, 0)
        scored = validate(state.averaged(), val, crop, optim.batch_size * 2, place, held_out).summary()
        metrics |= {f"val/{name}": value for name, value in scored.items() if name != "n"}
        metrics |= {"lr": state.lr, "epoch_seconds": time.monotonic() - began}
        if not (math.isfinite(scored["mae"]) and math.isfinite(scored["geodesic"])):
            raise FloatingPointError(f"the validation error became {scored['mae']} in epoch {epoch + 1}; lower lr")
        state.keep_if_best(scored[deciding(scored)], epoch + 1)
        on_epoch(EpochEnd(epoch + 1, metrics, state.best_error, lambda folder: state.save(folder, crop, to_dict(spec))))
    net.load_state_dict(state.best)
    return net


def validate(
    net: PoseNet,
    data: FaceData,
    crop: CropSpec,
    batch_size: int,
    place: Place = Place(),
    rows: DeviceRows | None = None,
) -> PoseSums:
    """Errors over every row of `data` once, merged over all workers. `rows` are its rows on the device already."""
    rows = rows or DeviceRows(data.rows(), place.device, place.rows_bytes)
    net.eval()
    predicted, true, marks = [], [], list[tuple[Tensor, Tensor, Tensor]]()
    with torch.inference_mode():
        for batch in rows.batches(data.in_order(batch_size, rank=place.rank, world=place.world)):
            answers, said = net.answered(center_window(batch, crop.size).images_BHWC)
            predicted.append(net.form.decode(answers))
            true.append(batch.angles_B3.numpy())
            if batch.landmarks_BL3 is not None and said is not None:
                assert batch.scales_B2 is not None
                marks.append((said.points_BL2, batch.landmarks_BL3[..., :2], batch.scales_B2[:, None]))
    sums = PoseSums.empty()
    if predicted:  # a worker may have no batch
        angles = torch.cat(predicted).cpu().numpy()
        # In pixels of the picture, where a stretched crop is not square.
        errors = [
            landmark_errors(points.cpu().numpy() * scale.numpy(), known.cpu().numpy() * scale.numpy(), "box")
            for points, known, scale in marks
        ]
        sums = PoseSums.of(angles, np.concatenate(true), np.concatenate([*errors, []]))
    if place.world > 1:
        vector = torch.from_numpy(sums.as_vector()).to(place.device)
        dist.all_reduce(vector)
        sums = PoseSums.from_vector(vector.cpu().numpy())
    return sums


def lr_factor(optim: OptimSpec, step: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by: linear warm-up, then cosine to zero (EHPNet 4.2) or constant."""
    warmup, total = optim.warmup_epochs * steps_per_epoch, optim.epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optim.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
