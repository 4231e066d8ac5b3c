"""Shards -> PoseBatch: rows mapped into memory once a machine, and the order in which an epoch takes them.

`TrainFaces` is what the training loop asks for: `FaceData` cuts each global batch among the workers, `OwnFaces` gives
each worker a part of the rows, and `workflows/training/stream.py` streams by Ray Data. In all of them the order of rows
is a function of (files, seed, epoch, workers) alone, so a resumed run sees the same batches. In the first two it is one
permutation of all rows, whatever memory there is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.data.node_rows import node_rows
from hpe_core.data.shares import FaceArrays, Piece, count, part_of, share, steps_of, whole_shards


@dataclass(frozen=True, eq=False)
class PoseBatch:
    """Faces of one step. Crops are canonical (with margin) until `augment` cuts the network's window."""

    images_BHWC: Tensor  # uint8 RGB
    angles_B3: Tensor  # float32 degrees
    scales_B2: Tensor | None = None  # float32 image pixels per crop pixel, x and y; what is moved needs them
    soft_B3N: Tensor | None = None  # float16 log-probabilities, or float32 mean rotations
    landmarks_BL3: Tensor | None = None  # float32 crop pixels from its centre, and seen or not; NaN: unknown

    def __len__(self) -> int:
        return int(self.images_BHWC.shape[0])

    def tensors(self) -> list[Tensor]:
        """The columns that there are."""
        return [column for column in vars(self).values() if column is not None]

    def copy(self) -> "PoseBatch":
        return self._each(torch.clone)

    def to(self, device: torch.device | str) -> "PoseBatch":
        """On a device; from pinned memory, so that nobody waits for it."""
        if torch.device(device).type == "cpu":
            return self._each(lambda column: column.to(device))
        return self._each(lambda column: column.pin_memory().to(device, non_blocking=True))

    def take(self, rows: Tensor | slice) -> "PoseBatch":
        """The rows that an index, a mask or a slice picks."""
        return self._each(lambda column: column[rows])

    def split(self, parts: int) -> list["PoseBatch"]:
        """In so many parts, in order, of sizes that differ by at most one face; an empty part is left out."""
        runs = np.array_split(np.arange(len(self)), parts)
        return [self.take(slice(rows[0], rows[-1] + 1)) for rows in runs if len(rows)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PoseBatch":
        return replace(self, **{name: change(column) for name, column in vars(self).items() if column is not None})


def taken(rows: FaceArrays, index: NDArray[np.int64]) -> PoseBatch:
    """The rows of an index, copied."""
    return PoseBatch(
        torch.from_numpy(rows.images[index]),
        torch.from_numpy(rows.angles[index]),
        torch.from_numpy(rows.scales[index]),
        *(None if column is None else torch.from_numpy(column[index]) for column in (rows.soft, rows.landmarks)),
    )


class TrainFaces(Protocol):
    """The faces that a network learns from, as the training loop asks for them."""

    def __len__(self) -> int:
        """Faces in all, whoever reads them."""

    def steps(self, batch_size: int) -> int:
        """Batches of one epoch, `batch_size` being that of all workers together."""

    def shuffled(self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[PoseBatch]:
        """This worker's part of every batch of one epoch: `steps` of them, and equally large on all workers.

        No row comes twice in an epoch, over all workers; asked again, the same rows come in the same order.
        """


class FaceData:
    """The rows of some shards, with the soft labels that lie beside them if asked for; workers share every batch.

    The rows lie in files that all who read them on this machine share (`node_rows.py`). Landmarks come if asked for.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[Path] | None = None, *, landmarks: bool = False) -> None:
        self.shards, self.landmarks = whole_shards(files, labels), landmarks
        self._rows: tuple[list[Piece], FaceArrays, FaceArrays] | None = None  # the second keeps the shared files

    def __len__(self) -> int:
        return count(self.shards)

    def pieces(self, rank: int, world: int) -> list[Piece]:
        """What this worker reads: everything."""
        return self.shards

    def rows(self, rank: int = 0, world: int = 1) -> FaceArrays:
        """The rows that this worker learns from, mapped into memory; kept until it asks for others."""
        pieces = self.pieces(rank, world)
        if self._rows is None or self._rows[0] != pieces:
            rows = node_rows(pieces)
            self._rows = (pieces, rows, rows if self.landmarks else replace(rows, landmarks=None))
        return self._rows[2]

    def steps(self, batch_size: int) -> int:
        """Batches of one epoch; what is left over is not used in that epoch."""
        return steps_of(len(self), batch_size)

    def order(self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """(steps, part): which of `rows` are this worker's part of each batch, fixed by (seed, epoch).

        Several workers see together the batches that one would see.
        """
        part_of(len(self), batch_size, world)
        batches = _batches(len(self), self.steps(batch_size), min(batch_size, len(self)), [seed, epoch])
        return batches[:, rank::world]

    def shuffled(self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[PoseBatch]:
        """This worker's part of every batch of one epoch; see `TrainFaces`."""
        order = self.order(batch_size, seed=seed, epoch=epoch, rank=rank, world=world)
        rows = self.rows(rank, world)
        for index in order:
            yield taken(rows, index)

    def in_order(self, batch_size: int, *, rank: int = 0, world: int = 1) -> list[NDArray[np.int64]]:
        """Every row once, in file order; with several workers each takes every world-th batch."""
        starts = range(rank * batch_size, len(self), world * batch_size)
        return [np.arange(start, min(start + batch_size, len(self))) for start in starts]


class OwnFaces(FaceData):
    """The same rows, of which each worker reads its own part only."""

    def pieces(self, rank: int, world: int) -> list[Piece]:
        """What this worker reads: its part, of one row more than another's at most."""
        return share(self.shards, rank, world)

    def order(self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """(steps, part): which of `rows` make this worker's part of each batch, fixed by (seed, epoch, rank)."""
        part = part_of(len(self), batch_size, world)
        own = count(self.pieces(rank, world))
        return _batches(own, self.steps(batch_size), part, [seed, epoch, 1 + rank])


def _batches(rows: int, steps: int, size: int, seeds: Sequence[int]) -> NDArray[np.int64]:
    """(steps, size): the first rows of one permutation of all."""
    return np.random.default_rng(seeds).permutation(rows)[: steps * size].reshape(steps, size)
