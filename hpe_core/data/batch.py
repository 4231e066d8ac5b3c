"""Shards -> PoseBatch: rows resident in memory when they fit, else streamed shard group by shard group.

`TrainFaces` is what the training loop asks for: `FaceData` reads everything in every worker and cuts each global batch
among them, `OwnFaces` keeps a worker's own part only, and `workflows/training/stream.py` streams by Ray Data. In all of
them the order of rows is a function of (files, seed, epoch, workers) alone, so a resumed run sees the same batches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.data.shares import (
    FaceArrays,
    Piece,
    count,
    cut,
    part_of,
    read_pieces,
    row_pixels,
    share,
    steps_of,
    whole_shards,
)


@dataclass(frozen=True, eq=False)
class PoseBatch:
    """Faces of one step. Crops are canonical (with margin) until `augment` cuts the network's window."""

    images_BHWC: Tensor  # uint8 RGB
    angles_B3: Tensor  # float32 degrees
    scales_B2: Tensor  # float32 image pixels per crop pixel, x and y
    soft_B3N: Tensor | None = None  # float16 log-probabilities

    def __len__(self) -> int:
        return int(self.images_BHWC.shape[0])

    def to(self, device: torch.device) -> "PoseBatch":
        return self._each(lambda column: column.to(device, non_blocking=True))

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
        None if rows.soft is None else torch.from_numpy(rows.soft[index]),
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
    """The rows of some shards, with the soft labels that lie beside them if asked for; every worker reads them all."""

    def __init__(self, files: Sequence[Path], labels: Sequence[Path] | None = None, resident_gb: float = 4.0) -> None:
        self.shards = whole_shards(files, labels)
        self._groups = self._grouped(resident_gb)
        self._resident: FaceArrays | None = None

    def __len__(self) -> int:
        return count(self.shards)

    @property
    def is_resident(self) -> bool:
        return len(self._groups) == 1

    def _grouped(self, resident_gb: float) -> list[list[Piece]]:
        """Shards in groups whose pixels fit into the budget; one group means resident."""
        bytes_of = [row_pixels(shard.file) * shard.rows for shard in self.shards]
        if sum(bytes_of) <= resident_gb * 1e9:
            return [self.shards]
        groups: list[list[Piece]] = [[]]
        used = 0.0
        for shard, size in zip(self.shards, bytes_of, strict=True):
            # Half the budget a group: one is trained on while the allocator still holds the one before.
            if groups[-1] and used + size > resident_gb * 0.5e9:
                groups.append([])
                used = 0.0
            groups[-1].append(shard)
            used += size
        if len(groups) > 1 and count(groups[-1]) < min(map(count, groups[:-1])):
            groups[-2:] = [groups[-2] + groups[-1]]  # a small rest would make batches of a face or none
        return groups

    def _group(self, group: Sequence[Piece]) -> FaceArrays:
        if not self.is_resident:
            return read_pieces(group)
        if self._resident is None:
            self._resident = read_pieces(group)
        return self._resident

    def steps(self, batch_size: int) -> int:
        """Batches of one epoch; what is left over in a group is not used in that epoch."""
        return sum(steps_of(count(group), batch_size) for group in self._groups)

    def shuffled(self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[PoseBatch]:
        """This worker's part of every global batch of one epoch, in an order fixed by (seed, epoch)."""
        order = np.random.default_rng([seed, epoch])
        for group_index in order.permutation(len(self._groups)):
            rows = self._group(self._groups[group_index])
            permutation = order.permutation(len(rows))
            size = min(batch_size, len(permutation))
            for start in range(0, len(permutation) - size + 1, size):
                yield taken(rows, permutation[start : start + size][rank::world])

    def ordered(self, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[PoseBatch]:
        """Every row once, in file order; with several workers each takes every world-th batch."""
        step = 0
        for group in self._groups:
            rows = self._group(group)
            for start in range(0, len(rows), batch_size):
                if step % world == rank:
                    yield taken(rows, np.arange(start, min(start + batch_size, len(rows))))
                step += 1


class OwnFaces:
    """The same rows, of which each worker keeps its own part, or reads it anew in every epoch if it does not fit."""

    def __init__(self, files: Sequence[Path], labels: Sequence[Path] | None = None, resident_gb: float = 4.0) -> None:
        self.shards = whole_shards(files, labels)
        self._rows_that_fit = int(resident_gb * 1e9 / row_pixels(self.shards[0].file))
        self._kept: tuple[list[Piece], FaceArrays] | None = None

    def __len__(self) -> int:
        return count(self.shards)

    @property
    def kept_rows(self) -> int:
        """Rows that this worker holds between two epochs."""
        return 0 if self._kept is None else len(self._kept[1])

    def steps(self, batch_size: int) -> int:
        return steps_of(len(self), batch_size)

    def shuffled(self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[PoseBatch]:
        """This worker's rows in an order fixed by (seed, epoch, rank); see `TrainFaces`."""
        part = part_of(len(self), batch_size, world)
        order = np.random.default_rng([seed, epoch, 1 + rank])
        # A part may have one row more than another; it makes no step more.
        yield from islice(self._batches(share(self.shards, rank, world), part, order), self.steps(batch_size))

    def _batches(self, own: list[Piece], part: int, order: np.random.Generator) -> Iterator[PoseBatch]:
        groups = [own]
        if count(own) > self._rows_that_fit:
            # Half the budget a group, as in FaceData; whole batches, so that only the last has a rest.
            groups = cut(own, max(1, self._rows_that_fit // 2 // part) * part)
        for index in order.permutation(len(groups)):
            rows = self._read(groups[index]) if len(groups) == 1 else read_pieces(groups[index])
            permutation = order.permutation(len(rows))
            for start in range(0, len(rows) - part + 1, part):
                yield taken(rows, permutation[start : start + part])

    def _read(self, own: list[Piece]) -> FaceArrays:
        if self._kept is None or self._kept[0] != own:
            self._kept = (own, read_pieces(own))
        return self._kept[1]
