"""Offset ensemble and teachers' ensemble (offsets eqs. 5, 6; EHPNet eq. 4), many (K, d) from one pass.

Each offset is a window of the canonical crop, so the windows of all asked-for grids are visited once, each window's
softmax is added in place to every grid that holds it, and nothing of size S x batch is ever kept. The mean over
teachers of means over windows is one mean, because both are plain averages of probabilities.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.crop import offset_grid, window
from hpe_core.models import PoseNet

Offsets = tuple[int, int]  # (K, d) in network pixels


@torch.inference_mode()
def ensemble_probs(
    nets: Sequence[PoseNet], crops_BHWC: Tensor, size: int, offsets: Sequence[Offsets]
) -> dict[Offsets, Tensor]:
    """Mean softmax over `nets` and over the windows of each (K, d): {(K, d): (B, 3, N) float32}.

    `crops_BHWC` are uint8 canonical crops on the networks' device. Raises ValueError where K exceeds the margin.
    """
    grids = {pair: set(offset_grid(*pair)) for pair in offsets}
    means: dict[Offsets, Tensor] = {}
    for dx, dy in sorted(set().union(*grids.values())):
        view = window(crops_BHWC, size, dx, dy)
        for net in nets:
            probs = net.predict(view)
            for pair, grid in grids.items():
                if (dx, dy) in grid:
                    share = 1.0 / (len(grid) * len(nets))
                    if pair not in means:
                        means[pair] = torch.zeros_like(probs)
                    means[pair].add_(probs, alpha=share)
    return means


@torch.inference_mode()
def window_angles(net: PoseNet, crops_BHWC: Tensor, size: int, radius: int) -> NDArray[np.float32]:
    """Angles in every window with |dx|, |dy| <= radius: (2 radius + 1, 2 radius + 1, B, 3), indexed [dy, dx]."""
    rows = []
    for dy in range(-radius, radius + 1):
        row = [net.angles(window(crops_BHWC, size, dx, dy)).cpu().numpy() for dx in range(-radius, radius + 1)]
        rows.append(np.stack(row))
    return np.stack(rows).astype(np.float32)


def offset_table(angles_YXB3: NDArray[np.float32]) -> Mapping[Offsets, NDArray[np.float64]]:
    """The offset ensemble's angles for every (K, d) up to the radius, from one pass over the d = 1 windows.

    The decoded angle is linear in the probabilities, so the ensemble's angle is the mean of the windows' angles.
    Returns {(K, d): (B, 3) degrees} for 0 <= K <= radius, 1 <= d <= max(1, radius).
    """
    radius = angles_YXB3.shape[0] // 2
    table = {}
    for k in range(radius + 1):
        for d in range(1, max(1, radius) + 1):
            reach = k // d * d
            picked = slice(radius - reach, radius + reach + 1, d)
            table[k, d] = angles_YXB3[picked, picked].astype(np.float64).mean(axis=(0, 1))
    return table
