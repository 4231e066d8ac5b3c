"""Laws of the steps of training: what each step is shown, its learning rate, its gradient, its averaged weights."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from hpe_core.augment.moves import center_window
from hpe_core.data.batch import FaceData, PoseBatch
from hpe_core.data.rows import read_shard
from hpe_core.geometry.crop import window
from hpe_core.learning.metrics import PoseSums
from hpe_core.learning.task import PoseTask
from hpe_core.networks import models
from hpe_core.networks.models import PoseNet
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import AugmentSpec, OptimSpec, TrainSpec
from hpe_core.training.loop import fit
from hpe_core.training.place import Place
from hpe_core.training.state import TRAINER
from tests.faces import CROP, ordered, write_heads

STEPS, FACES = 4, 16
SPEC = TrainSpec(
    net=NetSpec("test_byobnet"),
    optim=OptimSpec(epochs=3, batch_size=FACES, lr=1e-3),
    augment=AugmentSpec(flip=0, photometric="none"),
    mse_weight=0.01,
)


def optim(**changes: Any) -> TrainSpec:
    return dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, **changes))


class Same:
    """A `TrainFaces` of which every batch of every epoch holds the same faces. It notes what it is asked for."""

    def __init__(self, batch: PoseBatch) -> None:
        self.batch = batch
        self.asked: list[dict[str, int]] = []

    def __len__(self) -> int:
        return STEPS * len(self.batch)

    def steps(self, batch_size: int) -> int:
        return STEPS

    def shuffled(self, batch_size: int, **asked: int) -> Iterator[PoseBatch]:
        self.asked.append({"batch_size": batch_size, **asked})
        return itertools.repeat(self.batch, STEPS)


class Onlooker:
    """Stands where online teachers stand: notes every view, and where torch's random numbers are."""

    view_size = CROP.size + 4

    def __init__(self) -> None:
        self.views: list[Tensor] = []
        self.draws: list[bytes] = []

    def __call__(self, batch: PoseBatch) -> PoseBatch:
        self.views.append(batch.images_BHWC)
        self.draws.append(torch.get_rng_state().numpy().tobytes())
        return center_window(batch, CROP.size)


class Watched:
    """One run of `fit`, and what torch was asked to do in each of its steps."""

    def __init__(self, spec: TrainSpec, train: Any, val: Any, folder: Path | None = None, **options: Any) -> None:
        self.folder = folder  # of its checkpoints
        self.parts: list[int] = []  # faces of each pass forward
        self.rates: list[float] = []
        self.gradients: list[Tensor] = []  # as the optimiser finds them
        self.states: list[dict[str, Tensor]] = []  # of the network: at the start, then after every step
        self.progress: list[tuple[int, int]] = []
        self.metrics: list[dict[str, float]] = []
        self.seen = Onlooker()
        hooks = [register_module_forward_pre_hook(self._forward), register_optimizer_step_pre_hook(self._step)]
        try:
            fit(spec, CROP, train, val, teachers=self.seen, on_step=self._stepped, on_epoch=self._epoch, **options)
        finally:
            for hook in hooks:
                hook.remove()

    def _forward(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        if isinstance(module, PoseNet) and module.training:
            self.net = module
            self.parts.append(len(inputs[0]))
            if not self.states:
                self._note_state()

    def _step(self, optimizer: Optimizer, *_: Any) -> None:
        (group,) = optimizer.param_groups
        self.optimizer = optimizer
        self.rates.append(group["lr"])
        self.gradients.append(torch.cat([p.grad.flatten() for p in group["params"]]))

    def _stepped(self, done: int, total: int) -> None:
        self.progress.append((done, total))
        self._note_state()

    def _note_state(self) -> None:
        self.states.append({name: value.clone() for name, value in self.net.state_dict().items()})

    def _epoch(self, end: Any) -> None:
        self.metrics.append(end.metrics)
        if self.folder is not None:
            end.save(self.folder)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A backbone of one layer: these laws are the loop's, whatever the network is."""
    monkeypatch.setattr(models, "create_backbone", one_layer)


def one_layer(spec: NetSpec, size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    return write_heads(folder, FACES), write_heads(folder, FACES, split="val", first=FACES)


@pytest.fixture
def train(shards):
    return Same(next(ordered(FaceData(shards[0]), FACES)))


@pytest.fixture
def val(shards):
    return FaceData(shards[1])


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("schedule", "warmup"), [("cosine", 0), ("cosine", 1.5), ("cosine", 3), ("constant", 0), ("constant", 0.5)]
)
def test_the_rate_rises_in_equal_steps_then_falls_by_half_a_cosine_to_zero_or_stays(
    train, val, tmp_path, schedule, warmup
):
    """Over the whole training, not an epoch, and the same after a cut; zero would come one step after the last."""
    spec = optim(schedule=schedule, warmup_epochs=warmup)
    whole = Watched(spec, train, val)
    total, rise = 3 * STEPS, int(warmup * STEPS)
    rising = np.arange(1, rise + 1) / (rise + 1)
    falling = np.cos(np.pi / 2 * np.arange(total - rise) / max(total - rise, 1)) ** 2
    rest = falling if schedule == "cosine" else np.ones(total - rise)
    assert whole.rates == pytest.approx([*(1e-3 * rising), *(1e-3 * rest)])
    assert [end["lr"] for end in whole.metrics] == whole.rates[STEPS - 1 :: STEPS]
    first = Watched(spec, train, val, tmp_path, stop_after=1)
    assert first.rates + Watched(spec, train, val, resume=tmp_path).rates == whole.rates


def test_a_gradient_is_clipped_to_the_norm_and_keeps_its_direction(train, val):
    free = Watched(optim(epochs=1), train, val)
    size = float(free.gradients[0].norm())
    above, below = (Watched(optim(epochs=1, clip_norm=factor * size), train, val) for factor in (2, 0.1))
    assert torch.equal(above.gradients[0], free.gradients[0])
    torch.testing.assert_close(below.gradients[0], 0.1 * free.gradients[0], rtol=1e-4, atol=1e-9)
    assert all(float(gradient.norm()) <= 0.1001 * size for gradient in below.gradients)


@pytest.mark.parametrize(
    ("name", "kind", "extra"),
    [
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999)}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "dampening": 0}),
    ],
)
def test_the_optimizer_is_the_one_asked_for_and_has_every_weight(train, val, name, kind, extra):
    run = Watched(optim(epochs=1, optimizer=name, weight_decay=0.25), train, val)
    (group,) = run.optimizer.param_groups
    assert type(run.optimizer) is kind and extra.items() | {("weight_decay", 0.25)} <= group.items()
    assert list(map(id, group["params"])) == list(map(id, run.net.parameters()))


def test_a_step_has_the_gradient_of_its_own_batch_and_an_epoch_the_mean_of_its_losses(train, val):
    """A network that as good as stands still finds the same gradient and loss in the same faces again and again."""
    run = Watched(optim(lr=1e-12), train, val)
    net = PoseNet(SPEC.net, CROP.size)
    net.load_state_dict(run.states[0])
    out = PoseTask(SPEC, net)(net.train(), center_window(train.batch, CROP.size))
    out.loss.backward()
    by_hand = torch.cat([p.grad.flatten() for p in net.parameters()])
    for gradient in run.gradients:
        torch.testing.assert_close(gradient, by_hand, rtol=1e-3, atol=1e-4 * float(by_hand.abs().max()))
    for metrics in run.metrics:
        assert metrics["train/loss"] == pytest.approx(float(out.loss.detach()), rel=1e-4)
        assert {"train/ce", "train/mse"} < metrics.keys()
        assert metrics["train/ce"] + metrics["train/mse"] == pytest.approx(metrics["train/loss"], rel=1e-5)
    counts = {int(v) for name, v in run.states[-1].items() if name.endswith("num_batches_tracked")}
    assert counts == {3 * STEPS}, "every step is taken in train mode"


def test_a_batch_goes_through_the_network_in_as_many_parts_as_asked_for(train, val):
    run = Watched(optim(epochs=2, accumulate=3), train, val)
    assert run.parts == [6, 5, 5] * STEPS * 2 and len(run.rates) == STEPS * 2
    assert [view.shape for view in run.seen.views[:3]] == [(n, CROP.size + 4, CROP.size + 4, 3) for n in (6, 5, 5)]
    assert run.progress == [(FACES * step, FACES * STEPS * 2) for step in range(1, STEPS * 2 + 1)]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
def test_averaged_weights_are_what_is_validated_and_on_the_validation_rows(train, val, shards, tmp_path, decay):
    """By hand: m += (1 - d) (w - m), d = min(decay, (1 + n) / (10 + n)) after step n; counts of batches are copied."""
    run = Watched(optim(epochs=2, ema_decay=decay), train, val, tmp_path)
    mean = {name: value.double() for name, value in run.states[0].items()}
    for n, state in enumerate(run.states[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        mean = {name: d * mean[name] + (1 - d) * value.double() for name, value in state.items()}
        mean |= {name: value for name, value in state.items() if not value.is_floating_point()}
    saved = torch.load(tmp_path / TRAINER, weights_only=True)
    assert (saved["ema"] is None) == (decay == 0)
    net = PoseNet(SPEC.net, CROP.size)
    net.load_state_dict(saved["ema"] or saved["net"])
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value.double(), mean[name].double(), rtol=1e-4, atol=1e-6, msg=name)
    shard = read_shard(shards[1][0])
    with torch.inference_mode():
        found = net.eval().angles(torch.from_numpy(window(shard.images, CROP.size).copy()))
    by_hand = PoseSums.of(found.numpy(), shard.angles).summary()
    assert by_hand.pop("n") == FACES
    told = {name.removeprefix("val/"): v for name, v in run.metrics[-1].items() if name.startswith("val/")}
    assert told == pytest.approx(by_hand, rel=1e-4)


def runs_of(spec, train, val):
    """The same training with two seeds, and as a second worker would see it."""
    for seed, rank in ((0, 0), (1, 0), (0, 1)):
        yield Watched(dataclasses.replace(spec, seed=seed), train, val, place=Place(rank=rank))


@pytest.mark.parametrize(
    "augment",
    [{"flip": 0.5}, {"turn_deg": 20}, {"jitter_px": 4}, {"zoom": 0.3}, {"photometric": "ehpnet"}],
    ids=lambda change: next(iter(change)),
)
def test_no_view_comes_twice_whatever_the_step_epoch_seed_or_worker(train, val, augment):
    """One kind of augmentation at a time, on batches of the same faces; asked again, all views come again."""
    spec = dataclasses.replace(optim(epochs=2), augment=dataclasses.replace(SPEC.augment, **augment))
    first, again = ([view for run in runs_of(spec, train, val) for view in run.seen.views] for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert len({view.numpy().tobytes() for view in first}) == len(first) == 2 * STEPS * 3


def test_the_seed_makes_the_weights_the_order_of_rows_and_what_the_layers_draw(train, val, tmp_path):
    """Workers begin with the same weights, and draw apart; what the process drew before is nothing to them."""
    torch.manual_seed(1234)
    spec = optim(epochs=2)
    plain, seeded, other = runs_of(spec, train, val)
    again = Watched(spec, train, val, tmp_path, stop_after=1)
    resumed = Watched(spec, train, val, resume=tmp_path)
    assert equal(plain.states[0], other.states[0]) and equal(plain.states[0], again.states[0])
    assert not torch.equal(plain.states[0]["heads.0.weight"], seeded.states[0]["heads.0.weight"])
    draws = [run.seen.draws[::STEPS] for run in (plain, seeded, other)]
    assert len({state for run in draws for state in run}) == 6
    assert again.seen.draws + resumed.seen.draws == plain.seen.draws
    asked = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1), (0, 1, 1), (0, 0, 0), (0, 1, 0)]
    assert train.asked == [{"batch_size": FACES, "seed": s, "epoch": e, "rank": r, "world": 1} for s, e, r in asked]
