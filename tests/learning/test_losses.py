"""Every loss, and every task made of them, against a direct NumPy reading of its equation."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.data.batch import PoseBatch
from hpe_core.geometry.bins import AngleBins
from hpe_core.learning.losses import offsets_loss, regression_mae
from hpe_core.learning.task import PoseTask
from hpe_core.networks.models import PoseLogits, PoseNet
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import DistillSpec, TrainSpec

GRIDS = tuple(AngleBins.covering(99, width) for width in (1, 2, 3, 4))
seeds = st.integers(0, 10_000)


def draw(seed: int, *shape: int, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0, scale, shape)


def labels(seed: int, count: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-98, 98, (count, 3))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def ce_by_hand(logits: np.ndarray, angles: np.ndarray, bins: AngleBins) -> float:
    total = 0.0
    for row, pose in zip(softmax(logits), angles, strict=True):
        for probs, angle in zip(row, pose, strict=True):
            total -= np.log(probs[int((angle + bins.limit) // bins.width)])
    return total / len(angles)


def normal_ce_by_hand(logits: np.ndarray, angles: np.ndarray, bins: AngleBins, sd: float) -> float:
    """Against a normal distribution about each label, cut off at the grid's ends."""
    total = 0.0
    for row, pose in zip(softmax(logits), angles, strict=True):
        for probs, angle in zip(row, pose, strict=True):
            label = np.exp(-((bins.centers - angle) ** 2) / (2 * sd**2))
            total -= (label / label.sum() * np.log(probs)).sum()
    return total / len(angles)


@pytest.mark.parametrize("regression", [True, False])
@settings(max_examples=25)
@given(seed=seeds)
def test_offsets_equation_4(regression, seed):
    """A mean over M + 1 terms with the regression head, over M without."""
    angles, raw = labels(seed), draw(seed, 5, 3, scale=1.0)
    heads = [draw(seed + i, 5, 3, grid.count) for i, grid in enumerate(GRIDS)]
    mae = np.abs(99 * np.tanh(raw) - angles).mean()
    assert np.isclose(float(regression_mae(torch.tensor(raw), torch.tensor(angles), 99)), mae)
    ce = sum(ce_by_hand(head, angles, grid) for head, grid in zip(heads, GRIDS, strict=True))
    logits = PoseLogits(tuple(map(torch.tensor, heads)), torch.tensor(raw) if regression else None)
    parts = offsets_loss(logits, torch.tensor(angles), GRIDS, 99)
    by_hand = {"ce": ce / 5, "mae": mae / 5} if regression else {"ce": ce / 4}
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(by_hand)


def kl_by_hand(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Logits of the student, probabilities of the teacher."""
    p, q = softmax(np.log(teacher) / temperature), softmax(student / temperature)
    return temperature**2 * (p * np.log(p / q)).sum((1, 2)).mean()


@cache
def tiny_net(widths: tuple[float, ...], limit: float) -> PoseNet:
    return PoseNet(NetSpec("test_byobnet", bin_widths=widths, limit_deg=limit, regression_head=True), 32)


weights = st.floats(0.01, 3)
distills = st.builds(DistillSpec, temperature=st.floats(0.5, 5), hard_weight=st.just(0.0) | weights, scale=weights)


@pytest.mark.parametrize("hard_loss", ["ehpnet", "offsets", "dldl", "ce"])
@settings(max_examples=25)
@given(seed=seeds, mse_weight=weights, distill=st.none() | distills)
def test_a_task_is_scale_times_the_weighted_hard_loss_and_the_kl_at_the_temperature(
    hard_loss, seed, mse_weight, distill
):
    """Equations 1 to 3 and 5 of EHPNet, 4 and 7 of the offsets.

    The narrowest head, which is the second here, predicts, and reads the soft labels; all heads read the hard ones.

    The parts that are told add up to the loss.
    """
    net = tiny_net((3.0, 1.0, 2.0), 93.0)
    grids = [AngleBins.covering(93, width) for width in (3, 1, 2)]
    heads, raw = [draw(seed + i, 5, 3, grid.count) for i, grid in enumerate(grids)], draw(seed, 5, 3)
    angles, teacher = labels(seed) * 0.9, softmax(draw(seed + 9, 5, 3, grids[1].count))
    ce = [ce_by_hand(head, angles, grid) for head, grid in zip(heads, grids, strict=True)]
    means = [softmax(head) @ grid.centers for head, grid in zip(heads, grids, strict=True)]
    mse = sum(((mean - angles) ** 2).mean(0).sum() for mean in means)
    hard = {
        "ehpnet": {"ce": sum(ce), "mse": mse_weight * mse},
        "offsets": {"ce": sum(ce) / 4, "mae": np.abs(93 * np.tanh(raw) - angles).mean() / 4},
        "dldl": {
            "ce": sum(normal_ce_by_hand(head, angles, grid, 5) for head, grid in zip(heads, grids, strict=True)),
            "mae": mse_weight * sum(np.abs(mean - angles).mean(0).sum() for mean in means),
        },
        "ce": {"ce": ce[1]},
    }[hard_loss]
    by_hand = hard
    if distill is not None:
        by_hand = {"kl": distill.scale * kl_by_hand(heads[1], teacher, distill.temperature)}
        if distill.hard_weight:
            by_hand |= {name: distill.scale * distill.hard_weight * value for name, value in hard.items()}
    own = {"hard_loss": hard_loss, "mse_weight": mse_weight, "label_sd": 5.0, "mae_weight": mse_weight}
    spec = TrainSpec(net=net.spec, distill=distill, **own)
    logits = PoseLogits(tuple(torch.tensor(head, requires_grad=True) for head in heads), torch.tensor(raw))
    nothing = torch.zeros(5, 1, 1, 3, dtype=torch.uint8)
    batch = PoseBatch(nothing, torch.tensor(angles), torch.ones(5, 2), torch.tensor(np.log(teacher)))
    out = PoseTask(spec, net)(lambda images: logits, batch)
    assert {name: float(value) for name, value in out.parts.items()} == pytest.approx(by_hand, rel=1e-4)
    assert float(out.loss.detach()) == pytest.approx(sum(by_hand.values()), rel=1e-4)
    assert out.loss.requires_grad and not any(told.requires_grad for told in out.parts.values())
