"""Every loss against a direct NumPy reading of its equation."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.geometry.bins import AngleBins
from hpe_core.learning.losses import (
    cross_entropy,
    ehpnet_loss,
    expectation_mse,
    offsets_loss,
    regression_mae,
    soft_label_kl,
)
from hpe_core.learning.models import PoseLogits

WIDE = AngleBins.covering(99, 3)
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


@settings(max_examples=25)
@given(seeds)
def test_ehpnet_equations_1_to_3(seed):
    logits, angles = draw(seed, 5, 3, WIDE.count), labels(seed)
    tensors = torch.tensor(logits), torch.tensor(angles)
    expectation = softmax(logits) @ WIDE.centers
    mse = ((expectation - angles) ** 2).mean(0).sum()  # eq. 2 for each angle, summed as in eq. 3
    assert np.isclose(float(cross_entropy(*tensors, WIDE)), ce_by_hand(logits, angles, WIDE))
    assert np.isclose(float(expectation_mse(*tensors, WIDE)), mse)
    parts = ehpnet_loss(PoseLogits((tensors[0],), None), tensors[1], (WIDE,), 0.5)
    assert np.isclose(float(sum(parts.values())), ce_by_hand(logits, angles, WIDE) + 0.5 * mse)


@settings(max_examples=25)
@given(seeds)
def test_offsets_equation_4(seed):
    angles, raw = labels(seed), draw(seed, 5, 3, scale=1.0)
    heads = [draw(seed + i, 5, 3, grid.count) for i, grid in enumerate(GRIDS)]
    by_hand = np.abs(99 * np.tanh(raw) - angles).mean()
    assert np.isclose(float(regression_mae(torch.tensor(raw), torch.tensor(angles), 99)), by_hand)
    by_hand += sum(ce_by_hand(head, angles, grid) for head, grid in zip(heads, GRIDS, strict=True))
    logits = PoseLogits(tuple(torch.tensor(head) for head in heads), torch.tensor(raw))
    parts = offsets_loss(logits, torch.tensor(angles), GRIDS, 99)
    assert np.isclose(float(sum(parts.values())), by_hand / 5)


@settings(max_examples=25)
@given(seeds, st.sampled_from([1.0, 2.0, 4.0]))
def test_ehpnet_equation_5_and_offsets_equation_7(seed, temperature):
    teacher = softmax(draw(seed, 5, 3, WIDE.count))
    student = draw(seed + 1, 5, 3, WIDE.count)
    p, q = softmax(np.log(teacher) / temperature), softmax(student / temperature)
    by_hand = temperature**2 * (p * np.log(p / q)).sum((1, 2)).mean()
    loss = soft_label_kl(torch.tensor(student), torch.tensor(np.log(teacher)), temperature)
    assert np.isclose(float(loss), by_hand, rtol=1e-5)


@given(seeds)
def test_kl_is_zero_only_for_the_teacher_itself(seed):
    logits = torch.tensor(draw(seed, 5, 3, WIDE.count))
    assert abs(float(soft_label_kl(logits, logits.log_softmax(-1)))) < 1e-6
    other = torch.tensor(draw(seed + 1, 5, 3, WIDE.count))
    assert float(soft_label_kl(other, logits.log_softmax(-1))) > 0.01
