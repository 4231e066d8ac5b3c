"""Heads that predict rotations: their losses, what they hand on, what they read, and that they learn."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch.utils._python_dispatch import TorchDispatchMode

from hpe_core.data.batch import PoseBatch
from hpe_core.errors import SpecError
from hpe_core.geometry import rotation
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.crop import offset_grid, window
from hpe_core.geometry.rotations import Rotations, from_6d, project
from hpe_core.learning.ensemble import OnlineTeachers, ensemble_probs, offset_table, window_answers
from hpe_core.learning.losses import geodesic_angle
from hpe_core.learning.task import PoseTask
from hpe_core.networks.fisher import normaliser
from hpe_core.networks.heads import label_bytes
from hpe_core.networks.models import PoseLogits, PoseNet
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import DistillSpec, LabelSet, TrainSpec
from tests.faces import CROP, face_row

SIZE = CROP.size
FIT = {"bins": "ehpnet", "sixd": "geodesic", "fisher": "fisher"}
seeds = st.integers(0, 10_000)


@cache
def net_of(head: str, backbone: str = "test_resnet") -> PoseNet:
    torch.manual_seed(len(backbone))
    net = PoseNet(NetSpec(backbone, head=head), SIZE).eval()
    for layer in net.heads:
        torch.nn.init.normal_(layer.weight, std=0.5)  # outputs that differ from window to window
    return net


@cache
def crops() -> torch.Tensor:
    return torch.from_numpy(np.stack([face_row(i).crop.pixels for i in range(4)]))


def task(head: str, distill: DistillSpec | None = None) -> PoseTask:
    return PoseTask(
        TrainSpec(net=NetSpec("test_resnet", head=head), hard_loss=FIT[head], distill=distill), net_of(head)
    )


def loss(made: PoseTask, raw: torch.Tensor, angles: np.ndarray, soft: torch.Tensor | None = None) -> dict[str, float]:
    batch = PoseBatch(torch.zeros(len(raw), 1, 1, 3), torch.tensor(angles), None, soft)
    return {name: float(value) for name, value in made.parts(PoseLogits((raw,), None), batch).items()}


# ---------------------------------------------------------------- losses


@settings(max_examples=25)
@given(seeds)
def test_hard_losses_are_their_equations(seed):
    random = np.random.default_rng(seed)
    angles, truth = (a := random.uniform(-90, 90, (5, 3))), rotation.euler_to_matrix(a)
    six = torch.tensor(random.normal(size=(5, 3, 2)))
    said = from_6d(six).numpy()
    by_trace = np.arccos(np.clip((np.einsum("bij,bij->b", said, truth) - 1) / 2, -1, 1))
    assert loss(task("sixd"), six, angles) == pytest.approx({"geodesic": by_trace.mean()}, abs=1e-6)
    nine = random.normal(0, 20, (5, 3, 3))
    nll = normaliser(torch.from_numpy(nine))[0].numpy() - np.einsum("bij,bij->b", nine, truth)
    assert loss(task("fisher"), torch.from_numpy(nine), angles) == pytest.approx({"nll": nll.mean()}, abs=1e-6)


@pytest.mark.parametrize("degrees", [0.0, 1e-7, 1e-3, 1.0, 90.0, 179.999, 180.0])
def test_the_geodesic_angle_has_a_finite_slope_everywhere(degrees):
    turn = Rotation.from_rotvec(np.radians(degrees) * np.array([0.6, 0.0, 0.8])).as_matrix()
    first = torch.from_numpy(turn).requires_grad_()
    angle = geodesic_angle(first, torch.eye(3, dtype=torch.float64))
    angle.backward()
    assert float(angle.detach()) == pytest.approx(np.radians(degrees), abs=1e-5)
    assert first.grad.isfinite().all() and first.grad.norm() < 2
    if 1e-3 <= degrees <= 179.999:
        ahead = Rotation.from_rotvec(np.radians(degrees + 1e-4) * np.array([0.6, 0.0, 0.8])).as_matrix()
        along = float((first.grad * torch.from_numpy(ahead - turn)).sum()) / np.radians(1e-4)
        assert along == pytest.approx(1, rel=1e-2), "a radian is a radian, near nothing and near a half turn"


@settings(max_examples=40)
@given(seeds, st.sampled_from([0.0, 0.7]), st.sampled_from([0.0, 2.0]))
def test_soft_losses_are_their_equations(seed, hard_weight, distrust):
    """Each face by the scatter of its labels: 1 / (1 + k v). The labels of bins scatter as rotations do."""
    random = np.random.default_rng(seed)
    angles, truth = (a := random.uniform(-60, 60, (5, 3))), rotation.euler_to_matrix(a)
    cloud = truth[:, None] @ Rotation.from_rotvec(random.normal(0, 0.3, (5 * 20, 3))).as_matrix().reshape(5, 20, 3, 3)
    mean = torch.from_numpy(cloud.mean(1))
    nearest = project(mean).numpy()
    chords = ((cloud - nearest[:, None]) ** 2).sum((2, 3)).mean(1) / 2  # |R - S|^2 = 8 sin(angle / 2)^2
    weights = 1 / (1 + distrust * chords)
    distill = DistillSpec(hard_weight=hard_weight, scale=0.5, distrust=distrust)
    six, nine = torch.tensor(random.normal(size=(5, 3, 2))), random.normal(0, 20, (5, 3, 3))
    angle = np.radians(rotation.geodesic_deg(from_6d(six).numpy(), nearest))
    found = loss(task("sixd", distill), six, angles, mean)
    assert found["kl"] == pytest.approx(0.5 * (weights * angle).mean(), abs=1e-5)
    log_c = normaliser(torch.from_numpy(nine))[0].numpy()
    found = loss(task("fisher", distill), torch.from_numpy(nine), angles, mean)
    by_hand = (weights * (log_c - np.einsum("bij,bij->b", nine, mean.numpy()))).mean()
    assert found["kl"] == pytest.approx(0.5 * by_hand, abs=1e-5)
    assert ("nll" in found) == (hard_weight > 0)


def test_bins_that_disagree_count_less_where_they_are_distrusted():
    bins = AngleBins.covering(99, 3)
    sharp, broad = (torch.softmax(-((bins.centers_like(torch.zeros(1)) / sd) ** 2) / 2, -1) for sd in (3.0, 30.0))
    soft = bins.labels(torch.stack([sharp, broad])[:, None].expand(2, 3, bins.count))
    variances = [3 * float(np.radians(bins.spread(each)) ** 2) for each in (sharp, broad)]
    kl = [
        loss(task("bins", DistillSpec(hard_weight=0)), torch.zeros(1, 3, 66), np.zeros((1, 3)), s[None])["kl"]
        for s in soft
    ]
    found = loss(task("bins", DistillSpec(hard_weight=0, distrust=4)), torch.zeros(2, 3, 66), np.zeros((2, 3)), soft)[
        "kl"
    ]
    by_hand = np.mean([k / (1 + 4 * v) for k, v in zip(kl, variances, strict=True)])
    assert found == pytest.approx(by_hand, rel=1e-3)


class Asked(TorchDispatchMode):
    """Notes every operation that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("head", ["sixd", "fisher"])
def test_a_step_asks_nothing_for_which_a_gpu_would_make_the_host_wait(head):
    """No number read back, no constant sent, no decomposition whose success is looked at."""
    raw = net_of(head).kinds[0].start().repeat(4, 1, 1).requires_grad_()
    made = task(head, DistillSpec(hard_weight=0.5, distrust=1.0))
    labels = torch.eye(3).repeat(4, 1, 1)
    flips, turns = torch.tensor([0.0, 1, 0, 1]), torch.linspace(-9, 9, 4)
    for _ in range(2):  # constants are made by the first
        with Asked() as asked:
            batch = PoseBatch(
                torch.zeros(4, 1, 1, 3), torch.zeros(4, 3), None, Rotations().moved(labels, flips, None, turns)
            )
            parts = made.parts(PoseLogits((raw,), None), batch)
            torch.stack(list(parts.values())).sum().backward()
    waits = {
        name for name in asked.names if name.startswith(("linalg_", "_linalg", "lift", "nonzero", "masked_select"))
    }
    assert "matmul" in " ".join(asked.names) or "bmm" in asked.names
    assert not (waits - {"linalg_cross"}) and "_local_scalar_dense" not in asked.names


# ---------------------------------------------------------------- teachers


@pytest.mark.parametrize("heads", [("sixd", "fisher"), ("bins", "fisher")])
def test_teachers_of_any_head_hand_on_the_plain_average_of_their_mean_rotations(heads):
    nets = {head: net_of(head, backbone) for head, backbone in zip(heads, ("test_resnet", "test_byobnet"), strict=True)}
    sets = [LabelSet(heads, 4, 4, mirrored, "rotations") for mirrored in (False, True)]
    found = ensemble_probs(nets, crops(), SIZE, sets)
    for labels in sets:
        with torch.inference_mode():
            each = [
                net.form.rotations(net.predict(view.flip(2) if flip else view))
                for net in nets.values()
                for view in (window(crops(), SIZE, *at) for at in offset_grid(4, 4))
                for flip in range(1 + labels.mirrored)
            ]
        signs = np.diag([-1.0, 1.0, 1.0])
        parts = [part.numpy() for part in each]
        if labels.mirrored:
            parts[1::2] = [signs @ part @ signs for part in parts[1::2]]
        mean = np.mean(parts, 0)
        np.testing.assert_allclose(found[labels].numpy(), mean, atol=1e-5)
        for i, own in enumerate(found[labels]):
            if heads[0] == "sixd" and not labels.mirrored:
                sure = [part[i] for part in parts[: len(parts) // 2]]  # of the first teacher
                expected = Rotation.from_matrix(sure).mean().as_matrix()
                alone = torch.from_numpy(np.mean(sure, 0))
                said = rotation.euler_to_matrix(Rotations().decode(alone).numpy())
                assert rotation.geodesic_deg(said, expected) < 1e-3
            assert torch.linalg.matrix_norm(own, 2) <= 1 + 1e-5, "an average of rotations is no longer than one"


@pytest.mark.parametrize("head", ["sixd", "fisher"])
def test_the_table_of_every_K_and_d_equals_brute_force(head):
    net = net_of(head)
    for pair, angles in offset_table(window_answers(net, crops(), SIZE, 2), net.form).items():
        labels = LabelSet((head,), *pair, form="rotations")
        direct = net.form.decode(ensemble_probs({head: net}, crops(), SIZE, [labels])[labels]).numpy()
        assert np.abs(direct - angles).max() < 1e-3


def test_online_labels_are_float32_rotations_that_a_loss_may_read():
    teachers = OnlineTeachers({"t": net_of("bins")}, SIZE, LabelSet(("t",), 2, 2, False, "rotations"))
    batch = teachers(PoseBatch(window(crops(), teachers.view_size), torch.zeros(4, 3)))
    assert batch.soft_B3N.dtype == torch.float32 and batch.soft_B3N.shape == (4, 3, 3)
    assert not batch.soft_B3N.is_inference()


# ---------------------------------------------------------------- networks and spec


@pytest.mark.parametrize("head", ["sixd", "fisher"])
def test_a_network_that_has_not_learnt_looks_ahead(head):
    torch.manual_seed(0)
    net = PoseNet(NetSpec("test_resnet", head=head), SIZE).eval()
    assert net.angles(window(crops(), SIZE)).abs().max() < 10
    assert net.form.count == 3 and net.bins == () and net.form.name == NetSpec(head=head).form == "rotations"
    answers = net.predict(window(crops(), SIZE))
    assert answers.dtype == torch.float64 and answers.shape == (4, 3, 3)


@pytest.mark.parametrize("head", ["sixd", "fisher"])
def test_a_head_learns_the_rotations_that_it_is_shown(head):
    """Raw numbers that follow the slope of the hard loss come from looking ahead to any pose, seen from behind too."""
    angles = np.random.default_rng(0).uniform([-80, -170, -80], [80, 170, 80], (32, 3))
    raw = net_of(head).kinds[0].start().double().repeat(32, 1, 1).requires_grad_()
    optimizer, made = torch.optim.Adam([raw], lr=0.1), task(head)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    batch = PoseBatch(torch.zeros(32, 1, 1, 3), torch.tensor(angles))
    for _ in range(200):
        optimizer.zero_grad()
        torch.stack(list(made.parts(PoseLogits((raw,), None), batch).values())).sum().backward()
        optimizer.step()
        schedule.step()
    answers = net_of(head).kinds[0].answer(raw.detach())
    said = rotation.euler_to_matrix(Rotations().decode(answers).numpy())
    assert rotation.geodesic_deg(said, rotation.euler_to_matrix(angles)).max() < 6


@pytest.mark.parametrize("head", ["bins", "sixd", "fisher"])
def test_no_loss_fits_two_heads(head):
    for other, fitting in FIT.items():
        if other == head:
            assert TrainSpec(net=NetSpec(head=head), hard_loss=fitting)
        else:
            with pytest.raises(
                SpecError, match=f"hard_loss {fitting} does not fit net.head {head}; it takes {FIT[head]}"
            ):
                TrainSpec(net=NetSpec(head=head), hard_loss=fitting)


def test_what_belongs_to_bins_is_refused_elsewhere():
    with pytest.raises(SpecError, match="regression_head regularises heads of bins; head sixd has none"):
        NetSpec(head="sixd", regression_head=True)
    with pytest.raises(SpecError, match="temperature softens bins; net.head fisher takes 1"):
        TrainSpec(net=NetSpec(head="fisher"), hard_loss="fisher", distill=DistillSpec(temperature=2.0))


def test_a_label_of_bins_is_half_precision_and_one_of_rotations_nine_numbers():
    assert label_bytes(NetSpec(bin_widths=(3.0, 1.0))) == 3 * 198 * 2
    assert label_bytes(NetSpec(head="sixd")) == label_bytes(NetSpec(head="fisher")) == 36
