"""Laws of a step: it asks the device for no number, and a captured one is taken only if it is the eager one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpe_core.augment.augment import Augment
from hpe_core.data.batch import FaceData
from hpe_core.data.device_rows import DeviceRows
from hpe_core.errors import SpecError
from hpe_core.learning.task import PoseTask
from hpe_core.networks.models import PoseNet
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import AugmentSpec, OptimSpec, TrainSpec
from hpe_core.training.place import Place
from hpe_core.training.state import TrainState
from hpe_core.training.step import Step, kind_of
from hpe_core.training.views import Views
from tests.faces import CROP, write_heads

SPEC = TrainSpec(
    net=NetSpec("test_byobnet"),
    optim=OptimSpec(epochs=2, batch_size=8, lr=1e-3, ema_decay=0.9, clip_norm=1.0),
    augment=AugmentSpec(flip=0.5, turn_deg=10, jitter_px=2),
    mse_weight=0.01,
)
# What makes the host wait for a GPU: a number that is read, or a shape that depends on values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class Waits(TorchDispatchMode):
    """Notes every operation for which the host would wait."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        by_mask = name.startswith("index") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8)
            for i in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else [])
        )
        if name in WAITS or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return FaceData(write_heads(tmp_path_factory.mktemp("heads"), 32), landmarks=True)


def step_of(spec=SPEC, **options):
    torch.manual_seed(0)
    net = PoseNet(spec.net, CROP.size)
    return Step(PoseTask(spec, net), TrainState(net, spec.optim), spec.optim, Place(), **options)


def views_of(faces, spec=SPEC):
    augment = Augment(spec.augment, CROP.size, PoseNet(spec.net, CROP.size).form)
    (batches,) = Views(faces, augment, spec.optim.batch_size, 0, Place()).epochs(0, 1)
    return list(batches)


def weights(step):
    return torch.cat([p.detach().flatten() for p in step.state.net.parameters()])


@pytest.mark.parametrize(
    ("photometric", "optimizer"), [("none", "adam"), ("light", "adamw"), ("ehpnet", "sgd"), ("offsets", "adam")]
)
def test_no_step_waits_for_a_number(faces, photometric, optimizer):
    """From the table of an epoch to the averaged weights: gather, flip, turn, colours, loss, optimiser, average."""
    changed = {"augment": {"photometric": photometric, "backend": "device"}, "optim": {"optimizer": optimizer}}
    parts = {name: type(getattr(SPEC, name))(**vars(getattr(SPEC, name)) | new) for name, new in changed.items()}
    spec = TrainSpec(**vars(SPEC) | parts)
    step = step_of(spec)
    augment = Augment(spec.augment, CROP.size, step.state.net.form)
    views = Views(faces, augment, 8, 0, Place())
    order, table = views._drawn(faces, 0)
    with Waits() as waits:
        rows = DeviceRows(faces.rows(), torch.device("cpu"), 0)
        for batch in views._shown(rows, order, table):
            step(batch)
    assert waits.seen == []
    with Waits() as waits:
        float(weights(step).sum())
    assert waits.seen == ["_local_scalar_dense"], "and whoever reads a number is seen"


@pytest.mark.parametrize("loss", ["ce", "offsets"])
def test_no_step_decodes_what_nobody_reads(faces, monkeypatch, loss):
    """These losses need no angle; those of EHPNet and DLDL compare means."""
    step = step_of(TrainSpec(**vars(SPEC) | {"hard_loss": loss}))
    batch = views_of(faces)[0]
    monkeypatch.setattr(type(step.state.net.form), "decode", lambda *_: pytest.fail("decoded"))
    step(batch)


# What CUDA does in no fixed order, by the documentation of torch.use_deterministic_algorithms.
UNORDERED = {
    *("_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "max_unpool2d", "grid_sampler_2d_backward"),
    *("upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "reflection_pad2d_backward", "nll_loss2d_forward"),
    *("put_", "histc", "bincount", "median", "scatter_reduce", "scatter_reduce_", "kthvalue"),
}


class Names(TorchDispatchMode):
    """Notes every operation, those of the way back, too."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("net", "loss"),
    [
        (NetSpec("test_byobnet", landmarks=True, decoder_width=8, decoder_stride=4), "ehpnet"),
        (NetSpec("resnet18", regression_head=True, bin_widths=(1.0, 3.0)), "offsets"),
        (NetSpec("botnet26t_256"), "dldl"),
        (NetSpec("test_resnet", head="sixd"), "geodesic"),
        (NetSpec("test_resnet", head="fisher"), "fisher"),
    ],
)
def test_every_operation_of_a_step_has_a_fixed_order_on_cuda(faces, net, loss):
    """So `optim.deterministic` has a kernel for each: the sums of the losses, decoders and heads in use."""
    spec = TrainSpec(**vars(SPEC) | {"net": net, "hard_loss": loss, "augment": AugmentSpec(photometric="offsets")})
    step = step_of(spec)
    with Names() as names:
        step(views_of(faces, spec)[0])
    assert "convolution_backward" in names.seen and not names.seen & UNORDERED
    assert ("upsample_nearest2d_backward" in names.seen) == net.landmarks, "the decoder learns, too"


def test_what_has_no_fixed_order_is_refused_in_a_sentence(faces):
    step = step_of()
    step.task = lambda *_: torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(SpecError, match="^optim.deterministic: put_ of this network adds in no fixed order on cpu"):
            step(views_of(faces)[0])
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_captured_step_that_is_the_eager_one_is_taken_from_the_second_step_on(faces):
    plain, taken = step_of(), []

    def capture(eager, batch):
        eager(batch)  # as a real capture does to warm up
        return lambda batch: taken.append(len(batch)) or eager(batch)

    graph = step_of(capture=capture)
    for batch in views_of(faces):
        ours, wanted = graph(batch), plain(batch)
        assert ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in ours)
        assert torch.equal(weights(graph), weights(plain)), "trying it out leaves no trace"
    assert all(map(torch.equal, graph.state.tensors(), plain.state.tensors()))
    assert taken == [8, 8, 8, 8], "once on trial, then three times for good"
    graph(batch.take(slice(0, 4)))
    assert len(taken) == 4, "a batch of another size is eager"


def test_trying_a_capture_out_draws_no_chance_that_training_would_have_had(faces, monkeypatch):
    """A step that draws, as dropout does: both trials see the same draws, and the step that counts sees them again."""
    step, drawn = step_of(capture=lambda eager, batch: eager), []
    eager = step.eager
    monkeypatch.setattr(step, "eager", lambda batch: drawn.append(torch.rand(3)) or eager(batch))
    for batch in views_of(faces)[:2]:
        step(batch)
    first, *others = drawn
    assert step.is_captured and len(others) == 3 and all(torch.equal(other, others[0]) for other in others)
    assert not torch.equal(first, others[0])


def stale(eager, batch):
    return lambda other: eager(
        batch.take(torch.arange(len(batch)).flip(0)) if other is None else batch.take(slice(0, 4))
    )


def no_rate(eager, batch):
    return lambda batch: None


def refused(eager, batch):
    eager(batch)
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("capture", "said"), [(no_rate, "of a step away"), (stale, "away"), (refused, "not permitted")]
)
def test_one_that_is_not_is_left_and_training_goes_on_as_if_it_had_not_been_tried(faces, capture, said):
    plain, graph = step_of(), step_of(capture=capture)
    with pytest.warns(UserWarning, match=said):
        for batch in views_of(faces):
            graph(batch), plain(batch)
    assert torch.equal(weights(graph), weights(plain))
    assert all(map(torch.equal, graph.state.tensors(), plain.state.tensors()))


def test_a_cpu_steps_eagerly_and_one_gpu_by_a_graph():
    cuda = torch.device("cuda", 0)
    asked = {
        ("auto", Place()): "eager",
        ("graph", Place()): "eager",
        ("compiled", Place()): "compiled",
        ("auto", Place(cuda)): "graph",
        ("auto", Place(cuda, 0, 2)): "eager",
        ("eager", Place(cuda)): "eager",
    }
    found = {(step, place): kind_of(OptimSpec(step=step), place) for step, place in asked}
    assert found == asked


def test_the_draws_of_an_epoch_are_those_of_its_batches(faces, tmp_path):
    """Made at once for all of them, and the next epoch's beside it: the same views as one epoch alone."""
    augment = Augment(SPEC.augment, CROP.size, PoseNet(SPEC.net, CROP.size).form)
    views = Views(faces, augment, 8, 3, Place())
    both = [list(batches) for batches in views.epochs(0, 2)]
    (second,) = (list(batches) for batches in views.epochs(1, 2))
    for ours, alone in zip(both[1], second, strict=True):
        assert torch.equal(ours.images_BHWC, alone.images_BHWC) and torch.equal(ours.angles_B3, alone.angles_B3)
    assert not torch.equal(both[0][0].images_BHWC, both[1][0].images_BHWC)
