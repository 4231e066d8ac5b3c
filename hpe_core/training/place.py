"""Where a worker of a training stands."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Place:
    """Device, rank and world size of a worker, and how many bytes rows may take of a device with memory of its own."""

    device: torch.device = torch.device("cpu")
    rank: int = 0
    world: int = 1
    rows_bytes: float = 4e9
