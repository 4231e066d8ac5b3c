"""The parts of the check of a GPU; `gpu.py` runs them and prints what they find."""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from hpe_core.augment.moves import center_window
from hpe_core.data.batch import PoseBatch, taken
from hpe_core.data.device_rows import DeviceRows
from hpe_core.geometry.crop import offset_grid, window
from hpe_core.learning.ensemble import ensemble_probs, folded
from hpe_core.learning.task import PoseTask
from hpe_core.networks.models import PoseNet
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import AugmentSpec, DistillSpec, LabelSet, OptimSpec, TrainSpec
from hpe_core.training.loop import EpochEnd, fit
from hpe_core.training.place import Place
from hpe_core.training.rate import HeldFaces, flops, noise, rate, views_of, wait
from hpe_core.training.state import TRAINER
from hpe_core.training.step import begin, choose_kernels
from workflows.bench.operations import operation_costs

EHPNET = TrainSpec(
    NetSpec("resnet18", bin_widths=(3.0,), limit_deg=93.0),
    OptimSpec(epochs=3, batch_size=128, lr=1e-4),
    AugmentSpec(turn_deg=0, jitter_px=8, photometric="ehpnet"),
)
OFFSETS = TrainSpec(
    NetSpec("resnet50", bin_widths=(1.0, 2.0, 3.0, 4.0), limit_deg=99.0, regression_head=True),
    OptimSpec(epochs=3, batch_size=128, lr=1e-4),
    AugmentSpec(turn_deg=15, jitter_px=8, photometric="offsets"),
    hard_loss="offsets",
)


@dataclass(frozen=True)
class Line:
    """One figure, what it stands beside, and for what must hold whether it does."""

    part: str
    what: str
    unit: str
    value: float
    beside: float | None = None
    beside_is: str = ""
    holds: bool | None = None
    gflop: float = 0.0  # of a face, where the value is a rate of training steps

    @property
    def ratio(self) -> float | None:
        return None if not self.beside else self.value / self.beside


@dataclass(frozen=True)
class Setup:
    """A network with its crop, and how many faces an epoch of it has."""

    name: str
    spec: TrainSpec
    crop: CropSpec
    faces: int


def tiny(setup: Setup) -> Setup:
    """The same training in seconds."""
    spec = replace(
        setup.spec,
        net=replace(setup.spec.net, backbone="test_resnet"),
        optim=replace(setup.spec.optim, batch_size=16),
        augment=replace(setup.spec.augment, jitter_px=2),
    )
    return Setup(f"test_resnet, 32 px, {setup.name.split(', ')[-1]}", spec, CropSpec(32, 4), 64)


@dataclass
class Bench:
    """The device, and what to measure on it."""

    place: Place
    small: bool
    left_out: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return self.place.device

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.is_gpu else "CPU"

    @cached_property
    def setups(self) -> tuple[Setup, ...]:
        chain = replace(EHPNET, augment=OFFSETS.augment)
        whole = (
            Setup("ResNet18, 112 px, EHPNet's chain", EHPNET, CropSpec(112, 15), 32_768),
            Setup("ResNet18, 112 px, the offset paper's chain", chain, CropSpec(112, 15), 32_768),
            Setup("ResNet50, 224 px, the offset paper's teacher", OFFSETS, CropSpec(224, 15, "stretch"), 6_144),
        )
        return tuple(map(tiny, whole)) if self.small else whole

    def rate(self, work: Callable[[], int]) -> float:
        return rate(work, self.place, 0.1 if self.small else 2.0)


def views(bench: Bench, setup: Setup, steps: int) -> Iterator[PoseBatch]:
    """So many batches of augmented views."""
    net = PoseNet(setup.spec.net, setup.crop.size)
    bins = net.bins[0].count if setup.spec.distill else 0
    return views_of(setup.spec, net, noise(setup.crop, steps * setup.spec.optim.batch_size, bins), bench.place)


def with_all(setup: Setup) -> Setup:
    """The same with whatever else a step may do: soft labels, averaged weights, clipped gradients."""
    optim = replace(setup.spec.optim, ema_decay=0.99, clip_norm=1.0)
    distill = DistillSpec(temperature=2.0, distrust=10.0)
    return replace(setup, name=f"{setup.name}, distilled", spec=replace(setup.spec, optim=optim, distill=distill))


@contextlib.contextmanager
def no_waiting(bench: Bench) -> Iterator[None]:
    """Raises RuntimeError inside where the host waits for the device."""
    if bench.is_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if bench.is_gpu:
            torch.cuda.set_sync_debug_mode("default")


def sync(bench: Bench) -> Iterator[Line]:
    if not bench.is_gpu:
        bench.left_out.append("sync: only CUDA says when the host waits; the steps ran")
    for setup, kind in itertools.product([*bench.setups[:2], with_all(bench.setups[0])], ("eager", "graph")):
        with tempfile.TemporaryDirectory() as folder:
            for resumed in (False, True):
                spec = replace(setup.spec, optim=replace(setup.spec.optim, step=kind))  # type: ignore[arg-type]
                step = begin(spec, setup.crop, bench.place, resume=Path(folder) if resumed else None)
                step.model.train()
                waits = 0.0
                batches = views(bench, setup, 8)
                for number in range(8):  # in the first four libraries start, and the graph is captured
                    try:
                        with no_waiting(bench) if number >= 4 else contextlib.nullcontext():
                            step.state.set_lr(1.0)
                            step(next(batches))
                    except RuntimeError as error:
                        waits += 1
                        bench.left_out.append(f"sync, {kind}: {str(error).splitlines()[0]}")
                step.state.keep_if_best(1.0, 1)
                step.state.save(Path(folder), setup.crop, {})
                what = f"{setup.name}, {kind} step, {'resumed' if resumed else 'fresh'}"
                held = waits == 0 and (kind == "eager" or step.is_captured)
                yield Line("sync", what, "of 4 steps wait", waits, holds=held if bench.is_gpu else None)


def parity(bench: Bench) -> Iterator[Line]:
    setup = bench.setups[0]
    spec = replace(setup.spec, optim=replace(setup.spec.optim, amp=False))
    torch.manual_seed(0)
    net = PoseNet(spec.net, setup.crop.size)
    rows = noise(setup.crop, 32)
    batch = center_window(taken(rows, np.arange(len(rows))), setup.crop.size)

    def measured(device: torch.device, half: bool) -> tuple[float, torch.Tensor, torch.Tensor]:
        net.to(device).eval().zero_grad()
        out = PoseTask(spec, net)(net, batch.to(device), half)
        out.loss.backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in net.parameters() if p.grad is not None])
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            return float(out.loss.detach()), gradient, net.angles(batch.images_BHWC.to(device)).float().cpu()

    loss, gradient, angles = measured(torch.device("cpu"), False)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for name, tf32, half, degrees, share in (
            ("fp32", False, False, 1e-3, 1e-3),
            ("TF32", True, False, 0.1, 0.05),
            ("bf16", False, True, 2.0, 0.2),
        ):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            their_loss, their_gradient, their_angles = measured(bench.device, half)
            apart = float((their_angles - angles).abs().max())
            yield Line("parity", f"angles, {name}, worst of 32 faces", "degrees", apart, holds=apart < degrees)
            grad = float((their_gradient - gradient).norm() / gradient.norm())
            yield Line("parity", f"gradient, {name}, of its norm", "", grad, holds=grad < share)
            close = abs(their_loss / loss - 1) < share
            yield Line("parity", f"loss, {name}", "", their_loss, loss, "the CPU's", holds=close)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def bits(bench: Bench) -> Iterator[Line]:
    try:
        for setup in [with_all(bench.setups[0]), with_landmarks(bench.setups[0])]:
            optim = replace(setup.spec.optim, epochs=2, deterministic=True)
            fixed = replace(setup, spec=replace(setup.spec, optim=optim), faces=4 * optim.batch_size)
            with tempfile.TemporaryDirectory() as home:
                first = last_state(bench, fixed, Path(home, "first"))
                again = last_state(bench, fixed, Path(home, "again"))
                resumed = last_state(bench, fixed, Path(home, "resumed"), Path(home, "first", "1"))
            for name, state in (("trained once more", again), ("resumed after an epoch", resumed)):
                what, differs = f"{setup.name}, {name}", state != first
                yield Line("bits", what, "of 1 differ", float(differs), holds=not differs)
    finally:
        if bench.is_gpu:
            choose_kernels(deterministic=False)


def last_state(bench: Bench, setup: Setup, folder: Path, resume: Path | None = None) -> bytes:
    """Weights, averages, optimiser and counts after the last epoch. Each epoch's are left in a folder of its number."""
    bins = PoseNet(setup.spec.net, setup.crop.size).bins[0].count if setup.spec.distill else 0
    faces, held_out = HeldFaces(noise(setup.crop, setup.faces, bins)), HeldFaces(noise(setup.crop, 16))

    def on_epoch(end: EpochEnd) -> None:
        end.save(folder / str(end.epoch))

    fit(setup.spec, setup.crop, faces, held_out, place=bench.place, resume=resume, on_epoch=on_epoch)
    return (folder / str(setup.spec.optim.epochs) / TRAINER).read_bytes()


def with_landmarks(setup: Setup) -> Setup:
    """The same with a decoder and its two tasks."""
    net = replace(setup.spec.net, landmarks=True)
    return replace(setup, name=f"{setup.name}, landmarks", spec=replace(setup.spec, net=net))


def rows(bench: Bench) -> Iterator[Line]:
    setup = bench.setups[0]
    arrays = noise(setup.crop, setup.faces // 4, bins=66)
    size = setup.spec.optim.batch_size
    order = [np.random.default_rng(i).permutation(len(arrays))[:size] for i in range(len(arrays) // size)]
    began = time.perf_counter()
    there = DeviceRows(arrays, bench.device, 1e12)
    wait(bench.place)
    gigabytes = (arrays.images.nbytes + arrays.soft.nbytes) / 1e9 if arrays.soft is not None else 0.0
    yield Line("rows", "upload of all rows", "GB/s", gigabytes / (time.perf_counter() - began))
    brought = DeviceRows(arrays, bench.device, 0)
    pairs = list(zip(there.batches(order[:4]), brought.batches(order[:4]), strict=True))
    same = all(torch.equal(a, b) for pair in pairs for a, b in zip(*(each.tensors() for each in pair), strict=True))
    yield Line("rows", "batches that differ between both ways", "", float(not same), holds=same)

    def batches(way: DeviceRows) -> int:
        return sum(map(len, way.batches(order)))

    for name, way in (("on the device", there), ("brought as they are asked for", brought)):
        what = f"faces {name}, {setup.crop.stored_size} px"
        yield Line("rows", what, "faces/s", bench.rate(partial(batches, way)))


def train(bench: Bench) -> Iterator[Line]:
    for setup in bench.setups:
        ours, peak = epochs_rate(bench, setup)
        still = standing_rate(bench, setup)
        holds = ours >= 0.95 * still if bench.is_gpu else None
        what, work = f"{setup.name}, epochs 2 and 3", flops(setup.spec.net, setup.crop.size, backward=True) / 1e9
        yield Line("train", what, "faces/s", ours, still, "one batch again and again", holds, gflop=work)
        yield Line("train", f"{setup.name}, peak memory", "GB", peak / 1e9)
        if find_spec("albumentations") is None:
            bench.left_out.append("train: the old way, albumentations is not installed")
            continue
        spec = replace(setup.spec, augment=replace(setup.spec.augment, backend="albumentations"))
        old, _ = epochs_rate(bench, replace(setup, spec=spec, faces=max(64, setup.faces // 16)))
        what, old_way = f"{setup.name}, beside the old way", "albumentations, on the host"
        yield Line("train", what, "faces/s", ours, old, old_way)


def epochs_rate(bench: Bench, setup: Setup) -> tuple[float, float]:
    """Faces a second from the end of the first epoch to that of the last, validation and checkpoints in; peak bytes."""
    faces, held_out = (HeldFaces(noise(setup.crop, count)) for count in (setup.faces, max(16, setup.faces // 16)))
    ends: list[float] = []
    if bench.is_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    with tempfile.TemporaryDirectory() as folder:

        def on_epoch(end: object) -> None:
            if not ends or len(ends) == setup.spec.optim.epochs - 1:  # by time: one at the start, one at the end
                end.save(Path(folder))  # type: ignore[attr-defined]
            ends.append(time.perf_counter())

        fit(setup.spec, setup.crop, faces, held_out, place=bench.place, on_epoch=on_epoch)
    seen = faces.steps(setup.spec.optim.batch_size) * min(setup.spec.optim.batch_size, setup.faces) * (len(ends) - 1)
    peak = torch.cuda.max_memory_allocated(bench.device) if bench.is_gpu else 0
    return seen / (ends[-1] - ends[0]), float(peak)


def standing_rate(bench: Bench, setup: Setup) -> float:
    """Faces a second of the same step on one batch of views."""
    step, batch = begin(setup.spec, setup.crop, bench.place), next(views(bench, setup, 1))
    step.model.train()
    for _ in range(4):
        step(batch)

    def some() -> int:
        times = 2 if bench.small else 20
        for _ in range(times):
            step(batch)
        return len(batch) * times

    return bench.rate(some)


def batch(bench: Bench) -> Iterator[Line]:
    first = bench.setups[0]
    for size in (16, 32) if bench.small else (128, 512, 1024):
        setup = replace(first, spec=replace(first.spec, optim=replace(first.spec.optim, batch_size=size)))
        yield Line("batch", f"{setup.name}, batch {size}", "faces/s", standing_rate(bench, setup))


def labels(bench: Bench) -> Iterator[Line]:
    setup = bench.setups[0]
    net = PoseNet(setup.spec.net, setup.crop.size).to(bench.device).to(memory_format=torch.channels_last).eval()
    asked = LabelSet(("net",), 2, 2) if bench.small else LabelSet(("net",), 15, 5)
    windows, size = len(offset_grid(*asked.offsets)), setup.crop.size
    for faces in (8, 16) if bench.small else (64, 512):
        crops = torch.from_numpy(noise(setup.crop, faces).images).to(bench.device)
        fold = folded(crops)  # as many rows a pass as `ours` has, and as many passes before the host waits
        whole, passes = window(crops, size).repeat(fold, 1, 1, 1).contiguous(), -(-windows // fold)

        def bare(whole: torch.Tensor = whole, passes: int = passes) -> int:
            with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.is_gpu):
                for _ in range(passes):
                    net.predict(whole)
            return len(whole) * passes

        def ours(crops: torch.Tensor = crops) -> int:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.is_gpu):
                ensemble_probs({"net": net}, crops, size, [asked])
            return len(crops) * windows

        found, forwards = bench.rate(ours), bench.rate(bare)
        what = f"{setup.name.split(',')[0]}, {windows} windows, {faces} faces"
        holds = found >= 0.9 * forwards if bench.is_gpu else None
        yield Line("labels", what, "windows/s", found, forwards, "bare forwards", holds)


def augment(bench: Bench) -> Iterator[Line]:
    costs = operation_costs(str(bench.device), 32 if bench.small else 112, 16 if bench.small else 512)
    yield from (Line("augment", name, "us a face", cost) for name, cost in costs.items())


PARTS: Mapping[str, Callable[[Bench], Iterator[Line]]] = {
    part.__name__: part for part in (parity, train, labels, batch, rows, sync, bits, augment)
}
