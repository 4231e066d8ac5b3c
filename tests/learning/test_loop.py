"""Laws of training: it learns poses from pixels, it resumes exactly, distillation reads its soft labels."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpe_core.data.augment import center_window
from hpe_core.data.batch import FaceData
from hpe_core.data.rows import read_shard, write_soft_labels
from hpe_core.errors import SpecError
from hpe_core.geometry.bins import AngleBins
from hpe_core.learning import loop
from hpe_core.learning.checkpoint import load_net
from hpe_core.learning.ensemble import OnlineTeachers
from hpe_core.learning.loop import Place, backward, fit, validate
from hpe_core.learning.losses import ehpnet_loss
from hpe_core.learning.models import PoseNet
from hpe_core.learning.task import make_task
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import AugmentSpec, DistillSpec, LabelSet, OptimSpec, TrainSpec
from tests.faces import CROP, write_heads

SPEC = TrainSpec(
    net=NetSpec(backbone="test_byobnet"),
    optim=OptimSpec(epochs=3, batch_size=16, lr=3e-3, ema_decay=0.9, warmup_epochs=0.5),
    augment=AugmentSpec(turn_deg=8, jitter_px=2),
    mse_weight=0.01,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    return write_heads(folder, 96), write_heads(folder, 32, split="val", first=96)


def data(shards):
    return FaceData(shards[0]), FaceData(shards[1])


def test_resume_equals_no_interruption(shards, tmp_path):
    def keep(end):
        end.save(tmp_path / f"epoch-{end.epoch}")

    whole = fit(SPEC, CROP, *data(shards), on_epoch=lambda end: None)
    fit(SPEC, CROP, *data(shards), on_epoch=keep, stop_after=1)
    assert not (tmp_path / "epoch-2").exists()
    resumed = fit(SPEC, CROP, *data(shards), on_epoch=keep, resume=tmp_path / "epoch-1")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    saved = load_net(tmp_path / "epoch-3")
    assert saved.crop == CROP and saved.notes["train_spec"]["optim"]["lr"] == 3e-3
    assert torch.equal(next(saved.net.parameters()), next(resumed.parameters()))


def test_loss_falls_and_the_right_sign_is_learnt(shards):
    """Trained on one half of the labels' meaning, the network must beat its own mirror image by far."""
    spec = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, epochs=14, ema_decay=0.0))
    losses = []
    net = fit(spec, CROP, *data(shards), on_epoch=lambda end: losses.append(end.metrics["train/loss"]))
    assert losses[-1] < 0.7 * losses[0]
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
    spec = dataclasses.replace(
        SPEC,
        augment=AugmentSpec(flip=0, photometric="none"),
        optim=dataclasses.replace(SPEC.optim, epochs=6, ema_decay=0.0),
        distill=DistillSpec(hard_weight=0.0),
    )
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
    task = make_task(SPEC, net)
    batch = next(iter(FaceData(shards[1]).ordered(10)))
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
    batch = center_window(next(iter(FaceData(shards[1]).ordered(8))), CROP.size)
    spec = dataclasses.replace(SPEC, mse_weight=1.0)
    seen = []
    net.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for half in (False, True):
        out = make_task(spec, net)(net, batch, half)
        assert out.angles_B3.dtype == torch.float32
        logits = seen[-1].heads[0]
        assert logits.dtype == torch.float32
        expected = ehpnet_loss(seen[-1], batch.angles_B3, net.bins, 1.0)
        for name, value in expected.items():
            assert float(out.parts[name]) == pytest.approx(float(value.detach()), rel=1e-6), (half, name)
    assert not torch.equal(seen[0].heads[0], seen[1].heads[0]), "the backbone did compute in bfloat16"


def test_channels_last_computes_the_same_network(shards):
    curves = []
    for wanted in (False, True):
        optim = dataclasses.replace(SPEC.optim, epochs=1, channels_last=wanted)
        fit(
            dataclasses.replace(SPEC, optim=optim),
            CROP,
            *data(shards),
            on_epoch=lambda end: curves.append(end.metrics["train/loss"]),
        )
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_online_teachers_teach_what_they_see(shards):
    """A student of online labels follows its teacher, not the hard labels; the hard labels here are all wrong."""
    teacher = fit(dataclasses.replace(SPEC, distill=None), CROP, *data(shards), on_epoch=lambda end: None)
    online = OnlineTeachers({"teacher": teacher}, CROP.size, LabelSet(("teacher",), 2, 2))
    spec = dataclasses.replace(SPEC, distill=DistillSpec(hard_weight=0.0, offset_radius=2, offset_step=2))
    seen = []
    fit(spec, CROP, *data(shards), teachers=online, on_epoch=lambda end: seen.append(end.metrics["train/kl"]))
    assert seen[-1] < 0.5 * seen[0]


def test_the_epoch_with_the_smallest_validation_error_is_kept(shards, tmp_path, monkeypatch):
    """Its weights, its number and its error; of two that are equal the first; and so after a resumption."""
    scores = iter([5.0, 3.0, 4.0, 3.0, 9.0])
    monkeypatch.setattr(loop, "validate", lambda *_: SimpleNamespace(summary=lambda: {"mae": next(scores), "n": 1.0}))
    spec = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, epochs=5, ema_decay=0.0, warmup_epochs=0))
    weights, best, saved = [], [], tmp_path / "last"

    def on_epoch(end):
        end.save(saved)
        best.append(end.best_mae)
        weights.append(torch.load(saved / loop.TRAINER, weights_only=True)["net"])

    fit(spec, CROP, *data(shards), on_epoch=on_epoch, stop_after=3)
    net = fit(spec, CROP, *data(shards), on_epoch=on_epoch, resume=saved)
    assert best == [5.0, 3.0, 3.0, 3.0, 3.0]
    kept = load_net(saved)
    assert (kept.notes["epoch"], kept.notes["val_mae"]) == (2, 3.0)
    for name, value in weights[1].items():
        assert torch.equal(value, kept.net.state_dict()[name]) and torch.equal(value, net.state_dict()[name]), name
    assert any(not torch.equal(value, weights[-1][name]) for name, value in weights[1].items())


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


@pytest.mark.slow
def test_compiled_training_is_the_eager_one(shards):
    """On a CPU, where it needs a C++ compiler; a first step of half a minute."""
    losses: dict[bool, list[float]] = {}
    for compiled in (False, True):
        spec = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, epochs=2, compile=compiled))
        kept = losses.setdefault(compiled, [])
        fit(spec, CROP, *data(shards), on_epoch=lambda end, kept=kept: kept.append(end.metrics["train/loss"]))
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
