"""One step of training: eager, compiled, or captured once as a CUDA graph and replayed.

A step never waits for the device: losses stay there as tensors; what the host decides (rates, draws) it knows.
A captured step is trusted only after it has made, from the same state and faces, the step that eager code makes.
"""

import contextlib
import os
import typing
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from hpe_core.data.batch import PoseBatch
from hpe_core.errors import SpecError
from hpe_core.learning.ensemble import OnlineTeachers
from hpe_core.learning.task import PoseTask
from hpe_core.networks.checkpoint import start_from
from hpe_core.networks.models import PoseNet
from hpe_core.shipped import network_folder
from hpe_core.spec.data import CropSpec
from hpe_core.spec.training import OptimSpec, TrainSpec
from hpe_core.training.place import Place
from hpe_core.training.state import TrainState

Losses = dict[str, Tensor]  # the loss and its parts, detached, on the device
Taken = Callable[[PoseBatch], Losses]
WARM = 3  # steps on a side stream before a capture, as PyTorch asks for
AGREE = 0.2  # how far a captured step may lie from an eager one, as a share of the step: sums differ in their order


def kind_of(optim: OptimSpec, place: Place) -> str:
    """eager | compiled | graph: what `optim.step` says; `auto` is a graph on one GPU, else eager."""
    if optim.step == "graph" and (place.device.type != "cuda" or place.world > 1):
        return "eager"  # there is nothing to capture on a CPU, and several workers exchange gradients by hooks
    if optim.step != "auto":
        return optim.step
    return "graph" if place.device.type == "cuda" and place.world == 1 else "eager"


def choose_kernels(deterministic: bool) -> None:
    """Of CUDA: the fastest, or those that add in a fixed order. An operation that has none of these is refused."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def wrapped(net: PoseNet, optim: OptimSpec, place: Place) -> nn.Module:
    """The network as the step calls it: data-parallel over several workers, compiled if asked for."""
    model = typing.cast(nn.Module, torch.compile(net)) if kind_of(optim, place) == "compiled" else net
    if place.world > 1:
        device_ids = [place.device.index] if place.device.type == "cuda" else None
        # Heads that a loss leaves out (hard_loss ce, hard_weight 0) have no gradient.
        spare = len(net.heads) + (net.regression is not None) + (net.decoder is not None) > 1
        model = nn.parallel.DistributedDataParallel(
            model,
            device_ids=device_ids,
            find_unused_parameters=spare,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # `fit` does it once an epoch
        )
    return model


def backward(
    task: PoseTask,
    model: nn.Module,
    batch: PoseBatch,
    optim: OptimSpec,
    place: Place,
    teachers: OnlineTeachers | None = None,
) -> Losses:
    """Sum the gradients of a batch in `optim.accumulate` parts, by their faces; returns loss and parts, detached."""
    half = optim.amp and place.device.type == "cuda"
    sums: Losses = {}
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


class Step:
    """A batch of windows in, a step of the weights made, its losses out.

    `capture` turns the eager step, and a batch of its size, into the captured one.
    """

    def __init__(
        self,
        task: PoseTask,
        state: TrainState,
        optim: OptimSpec,
        place: Place,
        teachers: OnlineTeachers | None = None,
        capture: Callable[[Taken, PoseBatch], Taken] | None = None,
    ) -> None:
        self.task, self.state, self.optim, self.place, self.teachers = task, state, optim, place, teachers
        self.model = wrapped(state.net, optim, place)
        self._capture = capture
        self._captured: tuple[int, Taken] | None = None  # for batches of so many faces

    def __call__(self, batch: PoseBatch) -> Losses:
        if self._capture is not None and self.state.optimizer.state:  # the first step makes the optimiser's state
            self._captured, self._capture = self._trusted(self._capture, batch), None
        if self._captured is not None and self._captured[0] == len(batch):
            losses = self._captured[1](batch)
        else:
            losses = self.eager(batch)
        self.state.average()
        return losses

    @property
    def is_captured(self) -> bool:
        return self._captured is not None

    def eager(self, batch: PoseBatch) -> Losses:
        """Raises SpecError that names an operation without a fixed order, where `optim.deterministic` asks for one."""
        try:
            losses = backward(self.task, self.model, batch, self.optim, self.place, self.teachers)
        except RuntimeError as error:
            operation, refused, _ = str(error).partition(" does not have a deterministic implementation")
            if not refused:
                raise
            raise SpecError(
                f"optim.deterministic: {operation} of this network adds in no fixed order on {self.place.device}; "
                f"leave the key out, and its bits differ from run to run"
            ) from None
        self.state.step()
        return losses

    def _trusted(self, capture: Callable[[Taken, PoseBatch], Taken], batch: PoseBatch) -> tuple[int, Taken] | None:
        """The captured step if it moves the weights as the eager one does from here, and both trials undone."""
        tensors = self.state.tensors()
        before = [tensor.clone() for tensor in tensors]
        weights = list(self.state.net.parameters())
        device = weights[0].device
        chance = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

        def draw_again() -> None:
            if device.type == "cuda":
                torch.cuda.set_rng_state(chance, device)
            else:
                torch.set_rng_state(chance)

        def moved(step: Taken) -> Tensor:
            draw_again()
            step(batch)
            after = torch.cat([p.detach().flatten().float() for p in weights])
            torch._foreach_copy_(tensors, before)
            return after - torch.cat([p.detach().flatten().float() for p in weights])

        try:
            replay = capture(self.eager, batch)
            torch._foreach_copy_(tensors, before)
            ours, wanted = moved(replay), moved(self.eager)
        except RuntimeError as error:
            self.state.optimizer.zero_grad(set_to_none=True)  # half a step may have left some
            torch._foreach_copy_(tensors, before)
            warnings.warn(f"optim.step: no CUDA graph of this step, training stays eager ({error})", stacklevel=2)
            return None
        finally:
            draw_again()
        apart = float((ours - wanted).norm() / wanted.norm())
        if not apart <= AGREE:
            said = f"optim.step: the captured step is {apart:.2g} of a step away from the eager one"
            warnings.warn(f"{said}, training stays eager", stacklevel=2)
            return None
        return len(batch), replay


def begin(
    spec: TrainSpec, crop: CropSpec, place: Place, *, resume: Path | None = None, teachers: OnlineTeachers | None = None
) -> Step:
    """A network as it begins to learn, or as a checkpoint left it, and its step."""
    optim, graph = spec.optim, kind_of(spec.optim, place) == "graph"
    torch.manual_seed(spec.seed)
    if place.device.type == "cuda":
        choose_kernels(optim.deterministic)
    net = PoseNet(spec.net, crop.size)
    if spec.start and resume is None:
        start_from(net, crop, network_folder(spec.start))
    net = net.to(place.device)
    if optim.channels_last:
        net = net.to(memory_format=torch.channels_last)
    state = TrainState(net, optim, captured=graph)
    if resume is not None:
        state.load(resume)
    return Step(PoseTask(spec, net), state, optim, place, teachers, captured if graph else None)


def captured(step: Taken, batch: PoseBatch) -> Taken:
    """The step as a CUDA graph: its kernels are launched as one. Raises RuntimeError for what cannot be captured.

    It is really taken WARM times on the way; who asks for it puts the weights back.
    """
    inputs, graph = batch.copy(), torch.cuda.CUDAGraph()
    with torch.cuda.device(batch.images_BHWC.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                step(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        # Another thread uploads the next epoch's draws meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            losses = step(inputs)

    def replay(batch: PoseBatch) -> Losses:
        for kept, new in zip(inputs.tensors(), batch.tensors(), strict=True):
            kept.copy_(new)
        graph.replay()
        return losses

    return replay
