"""What each operation of the augmentation costs a face. Imports torch, numpy and hpe_core.augment alone."""

import timeit
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hpe_core.augment.chains import operations
from hpe_core.augment.draw import DRAWS
from hpe_core.augment.operations.apply import ON_CPU, OPERATIONS, Apply
from hpe_core.augment.table import Draws, Table

REPEATS, CALLS = 5, 3


def operation_costs(device: str, size: int, batch: int) -> dict[str, float]:
    """Microseconds a face of every operation, the least of some repeats."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size // 4, size // 4, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels.repeat(4, 1).repeat(4, 2)).to(device)  # as smooth as faces, nearly
    table: Mapping[str, Apply] = OPERATIONS if images.device.type != "cpu" else ON_CPU
    found = {}
    for operation in operations():
        draw = DRAWS.get(operation.name)
        drawn = draw(operation, batch, size, np.random.default_rng(1)) if draw else {"nothing": np.zeros(batch)}
        columns = {f"{operation.name}.{name}": values for name, values in drawn.items()}
        draws = Table(columns, {operation.name: np.ones(batch, bool)}, device).rows(0, batch)
        found[operation.name] = cost(table[operation.name], images, draws) * 1e6 / batch
    return found


def cost(apply: Apply, images: Tensor, draws: Draws) -> float:
    """Seconds of one call."""

    def calls() -> None:
        for _ in range(CALLS):
            apply(images, draws)
        finish(images)

    calls()
    return min(timeit.repeat(calls, repeat=REPEATS, number=1)) / CALLS


def finish(images: Tensor) -> None:
    """Waits until the device has done what it was asked."""
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
