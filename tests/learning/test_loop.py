"""Laws of training: it learns poses from pixels, it resumes exactly, distillation reads its soft labels."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from hpe_core.augment.moves import center_window
from hpe_core.data.batch import FaceData
from hpe_core.data.rows import read_shard, write_soft_labels
from hpe_core.errors import SpecError
from hpe_core.geometry.bins import AngleBins
from hpe_core.learning.ensemble import OnlineTeachers
from hpe_core.learning.losses import ehpnet_loss
from hpe_core.learning.task import PoseTask
from hpe_core.networks.checkpoint import load_net
from hpe_core.networks.models import PoseNet
from hpe_core.spec.network import NetSpec
from hpe_core.spec.serde import build
from hpe_core.spec.training import AugmentSpec, DistillSpec, LabelSet, OptimSpec, TrainSpec
from hpe_core.training import loop
from hpe_core.training.loop import fit, validate
from hpe_core.training.place import Place
from hpe_core.training.state import TRAINER
from hpe_core.training.step import backward
from tests.faces import CROP, ordered, write_heads

SPEC = TrainSpec(
    net=NetSpec(backbone="test_byobnet"),
    optim=OptimSpec(epochs=3, batch_size=16, lr=3e-3, ema_decay=0.9, warmup_epochs=0.5),
    augment=AugmentSpec(turn_deg=8, jitter_px=2),
    mse_weight=0.01,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    return write_heads(folder, 48), write_heads(folder, 24, split="val", first=48)


def data(shards):
    return FaceData(shards[0]), FaceData(shards[1])


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A folder of the checkpoints of an uninterrupted training, and its figures."""
    folder, told = tmp_path_factory.mktemp("whole"), []
    fit(SPEC, CROP, *data(shards), on_epoch=keeper(folder, told))
    return folder, told


def scored(mae):
    return SimpleNamespace(summary=lambda: {"mae": mae, "geodesic": 1.0})


def scored_wide(geodesic):
    """Of faces all round: their front alone, which has Euler angles, says the opposite."""
    return SimpleNamespace(summary=lambda: {"mae": 9 - geodesic, "geodesic": geodesic, "geodesic_behind": 1.0})


def keeper(folder, told):
    def keep(end):
        end.save(folder / str(end.epoch))
        told.append({name: value for name, value in end.metrics.items() if name != "epoch_seconds"})

    return keep


def trainer_state(folder):
    return torch.load(folder / TRAINER, weights_only=True)


def same(first, second):
    """Assert that two nested states are equal to the last bit."""
    assert type(first) is type(second)
    if isinstance(first, Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name, value in first.items():
            same(value, second[name])
    else:
        assert first == second


@pytest.mark.parametrize("cut", [1, 2])
def test_resume_equals_no_interruption(shards, whole, tmp_path, cut):
    """The whole state is the same after every epoch to come: network, optimiser, average, best, counts, random numbers.

    (The figures of an epoch, its losses among them, are those of its draws.)
    """
    folder, expected = whole
    told = []
    fit(SPEC, CROP, *data(shards), on_epoch=keeper(tmp_path, told), stop_after=cut)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["1", "2"][:cut]
    torch.manual_seed(99)
    fit(SPEC, CROP, *data(shards), on_epoch=keeper(tmp_path, told), resume=tmp_path / str(cut))
    assert told == expected
    for epoch in ("1", "2", "3"):
        same(trainer_state(folder / epoch), trainer_state(tmp_path / epoch))


@pytest.mark.parametrize(
    ("errors", "cut", "score", "key"),
    [
        *((errors, cut, scored, "mae") for errors, cut in [((1, 2, 3), 2), ((3, 1, 2), 1), ((2, 2, 3), 1)]),
        ((3, 1, 2), 2, scored_wide, "geodesic"),
    ],
)
def test_the_best_epoch_is_that_of_the_smallest_error_before_or_after_a_cut(
    shards, whole, tmp_path, monkeypatch, errors, cut, score, key
):
    """Its averaged weights are kept, and are what is saved after every epoch and returned; of equal ones the first."""
    left = iter(errors)
    monkeypatch.setattr(loop, "validate", lambda *_, **__: score(float(next(left))))
    seen = []

    def keep(end):
        end.save(tmp_path / str(end.epoch))
        seen.append((end.epoch, end.metrics[f"val/{key}"], end.best_error))

    cut_off = fit(SPEC, CROP, *data(shards), on_epoch=keep, stop_after=cut)
    net = fit(SPEC, CROP, *data(shards), on_epoch=keep, resume=tmp_path / str(cut))
    assert seen == [(epoch, errors[epoch - 1], min(errors[:epoch])) for epoch in (1, 2, 3)]
    for epoch in (1, 2, 3):
        best = 1 + errors.index(min(errors[:epoch]))
        weights = trainer_state(whole[0] / str(best))["ema"]
        saved = load_net(tmp_path / str(epoch))
        same(dict(saved.net.state_dict()), dict(weights))
        if epoch == cut:
            same(dict(cut_off.state_dict()), dict(weights))
        assert saved.crop == CROP and build(TrainSpec, saved.notes["train_spec"]) == SPEC
        assert (saved.notes["epoch"], saved.notes["val_error"]) == (best, errors[best - 1])
        state = trainer_state(tmp_path / str(epoch))
        assert state["numbers"] == [epoch, 3 * epoch, errors[best - 1], best]
    same(dict(net.state_dict()), dict(weights))


def test_a_validation_that_finds_no_number_stops_the_training(shards, monkeypatch):
    monkeypatch.setattr(loop, "validate", lambda *_, **__: scored(math.nan))
    with pytest.raises(FloatingPointError, match="validation error became nan in epoch 1; lower lr"):
        fit(SPEC, CROP, *data(shards), on_epoch=lambda end: None, stop_after=1)


@pytest.mark.parametrize(
    ("head", "hard_loss"),
    [
        ("bins", "ehpnet"),
        pytest.param("sixd", "geodesic", marks=pytest.mark.longer),
        pytest.param("fisher", "fisher", marks=pytest.mark.longer),
    ],
)
def test_loss_falls_and_the_right_sign_is_learnt(shards, head, hard_loss):
    """Trained on one half of the labels' meaning, the network must beat its own mirror image by far."""
    changes = {"optim": dataclasses.replace(SPEC.optim, epochs=60, lr=5e-3, ema_decay=0.0), "hard_loss": hard_loss}
    changes["augment"] = AugmentSpec(turn_deg=8, photometric="none")  # of which few faces are learnt in few epochs
    spec = dataclasses.replace(SPEC, net=dataclasses.replace(SPEC.net, head=head), **changes)
    losses = []
    net = fit(spec, CROP, *data(shards), on_epoch=lambda end: losses.append(end.metrics["train/loss"]))
    assert losses[-1] < (0.8 * losses[0] if losses[0] > 0 else losses[0] - 1)  # a log-density may be below nothing
    shard = read_shard(shards[0][0])
    margin = CROP.margin_px
    with torch.inference_mode():
        yaw = net.eval().angles(torch.from_numpy(shard.images[:, margin:-margin, margin:-margin].copy()))[:, 1].numpy()
    assert np.corrcoef(yaw, shard.angles[:, 1])[0, 1] > 0.8


def test_distillation_pulls_towards_the_soft_labels_not_the_hard_ones(shards, tmp_path):
    """Soft labels that say the same pose for everybody teach that pose, whatever the hard labels are."""
    labels = []
    for file in shards[0]:
        shard = read_shard(file)
        logits = -((np.arange(66) - 45.0) ** 2) / 8
        logs = np.broadcast_to(logits - np.log(np.exp(logits).sum()), (len(shard), 3, 66)).astype(np.float16)
        labels.append(tmp_path / file.name)
        write_soft_labels(labels[-1], shard.sample_ids, np.ascontiguousarray(logs), "test")
    changes = {"augment": AugmentSpec(flip=0, photometric="none"), "distill": DistillSpec(hard_weight=0.0)}
    spec = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, epochs=6, ema_decay=0.0), **changes)
    seen = []
    fit(spec, CROP, FaceData(shards[0], labels), FaceData(shards[1]), on_epoch=lambda end: seen.append(end.metrics))
    assert seen[-1]["train/kl"] < 0.2 * seen[0]["train/kl"]
    target = AngleBins.covering(99, 3).centers[45]
    truth = np.concatenate([read_shard(file).angles for file in shards[1]])
    if_all_are_the_target = np.abs(truth - target).mean()
    assert abs(seen[-1]["val/mae"] - if_all_are_the_target) < 0.2 * if_all_are_the_target


def test_accumulated_parts_make_the_gradient_of_the_whole_batch(shards):
    """Exactly so without batch statistics: a network in eval mode, 10 faces in parts of 4, 3 and 3."""
    torch.manual_seed(0)
    net = PoseNet(SPEC.net, CROP.size).eval()
    task = PoseTask(SPEC, net)
    batch = next(iter(ordered(FaceData(shards[1]), 10)))
    batch = center_window(batch, CROP.size)
    gradients, losses = [], []
    for parts in (1, 3):
        net.zero_grad()
        found = backward(task, net, batch, dataclasses.replace(SPEC.optim, accumulate=parts), Place())
        losses.append(float(found["loss"]))
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5 * float(gradients[0].abs().max()))
    assert [len(piece) for piece in batch.split(3)] == [4, 3, 3]


def test_angles_and_losses_keep_their_digits_in_half_precision(shards):
    """bfloat16 has steps of half a degree beyond 64; heads, expectation and loss must not be computed in it."""
    torch.manual_seed(0)
    net = PoseNet(SPEC.net, CROP.size).eval()
    batch = center_window(next(iter(ordered(FaceData(shards[1]), 8))), CROP.size)
    spec = dataclasses.replace(SPEC, mse_weight=1.0)
    seen = []
    net.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for half in (False, True):
        out = PoseTask(spec, net)(net, batch, half)
        logits = seen[-1].heads[0]
        assert logits.dtype == torch.float32
        expected = ehpnet_loss(seen[-1], batch.angles_B3, net.bins, 1.0)
        for name, value in expected.items():
            assert float(out.parts[name]) == pytest.approx(float(value.detach()), rel=1e-6), (half, name)
    assert not torch.equal(seen[0].heads[0], seen[1].heads[0]), "the backbone did compute in bfloat16"


def test_channels_last_computes_the_same_network(shards):
    curves = []
    for wanted in (False, True):
        spec = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, epochs=1, channels_last=wanted))
        net = fit(spec, CROP, *data(shards), on_epoch=lambda end: curves.append(end.metrics["train/loss"]))
        filters = [p for p in net.parameters() if p.ndim == 4 and p.shape[1] > 1 < p.shape[2]]
        assert filters and {p.is_contiguous(memory_format=torch.channels_last) for p in filters} == {wanted}
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_online_teachers_teach_what_they_see(shards, whole):
    """A student of online labels follows its teacher, not the hard labels; the hard labels here are all wrong."""
    teacher = load_net(whole[0] / "3").net
    online = OnlineTeachers({"teacher": teacher}, CROP.size, LabelSet(("teacher",), 2, 2))
    spec = dataclasses.replace(SPEC, distill=DistillSpec(hard_weight=0.0, offset_radius=2, offset_step=2))
    seen = []
    fit(spec, CROP, *data(shards), teachers=online, on_epoch=lambda end: seen.append(end.metrics["train/kl"]))
    assert seen[-1] < 0.5 * seen[0]


def test_validation_does_not_depend_on_the_batch_size(shards):
    torch.manual_seed(0)
    net = PoseNet(SPEC.net, CROP.size)
    scores = [validate(net, FaceData(shards[1]), CROP, size).summary() for size in (3, 32)]
    assert all(abs(scores[0][key] - scores[1][key]) < 1e-3 for key in scores[0])


def test_a_diverged_run_says_so(shards):
    spec = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, lr=1e12, ema_decay=0))
    with pytest.raises(FloatingPointError, match="lower lr"):
        fit(spec, CROP, *data(shards), on_epoch=lambda end: None)


def test_a_folder_without_a_network_is_named(tmp_path):
    with pytest.raises(SpecError, match=str(tmp_path)):
        load_net(tmp_path)


@pytest.mark.parametrize(
    "backend", [pytest.param("aot_eager", marks=pytest.mark.longer), pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compiled_training_is_the_eager_one(shards, monkeypatch, backend):
    """`inductor` is what users get; on a CPU it calls a C++ compiler for minutes. The other one makes the same graphs
    of the same code, forward and backward, and runs them by torch's own operators."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    losses: dict[bool, list[float]] = {}
    for compiled in (False, True):
        spec = dataclasses.replace(
            SPEC, optim=dataclasses.replace(SPEC.optim, epochs=2, step="compiled" if compiled else "eager")
        )
        kept = losses.setdefault(compiled, [])
        fit(spec, CROP, *data(shards), on_epoch=lambda end, kept=kept: kept.append(end.metrics["train/loss"]))
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


def test_training_begins_with_the_network_that_it_starts_from(shards, whole, tmp_path):
    """A learning rate of next to nothing leaves it as it is."""
    taught = whole[0] / "3"
    spec = dataclasses.replace(
        SPEC, start=str(taught), optim=OptimSpec(epochs=2, batch_size=16, lr=1e-12, optimizer="sgd")
    )
    told = []
    fit(spec, CROP, *data(shards), on_epoch=keeper(tmp_path, told), stop_after=1)
    wanted = load_net(taught).net.state_dict()
    gone = dataclasses.replace(spec, start=str(tmp_path / "gone"))  # a resumed training needs no start any more
    fit(gone, CROP, *data(shards), resume=tmp_path / "1", on_epoch=keeper(tmp_path, told))
    weights = [name for name, _ in load_net(taught).net.named_parameters()]
    got = load_net(tmp_path / "1").net.state_dict()
    assert weights and all(torch.allclose(got[name], wanted[name], atol=1e-6) for name in weights)
