"""Shards -> PoseBatch: rows resident in memory when they fit, else streamed shard group by shard group.

The order of rows is a function of (files, seed, epoch) alone, and a global batch is cut among the workers, so a
resumed run sees the same batches, and the workers together see the faces that one worker would see.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.rows import ShardError, read_shard, read_soft_labels


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
        moved = {
            name: value.to(device, non_blocking=True) for name, value in self.__dict__.items() if value is not None
        }
        return replace(self, **moved)

    def take(self, rows: Tensor) -> "PoseBatch":
        """The rows that an index or a mask picks."""
        return replace(self, **{name: value[rows] for name, value in self.__dict__.items() if value is not None})

    def split(self, parts: int) -> list["PoseBatch"]:
        """In so many parts, in order, of sizes that differ by at most one face; an empty part is left out."""
        cuts = {name: v.tensor_split(parts) for name, v in self.__dict__.items() if v is not None}
        pieces = [replace(self, **{name: cut[i] for name, cut in cuts.items()}) for i in range(parts)]
        return [piece for piece in pieces if len(piece)]


@dataclass(frozen=True, eq=False)
class _Rows:
    images: NDArray[np.uint8]
    angles: NDArray[np.float32]
    scales: NDArray[np.float32]
    soft: NDArray[np.float16] | None

    def take(self, index: NDArray[np.int64]) -> PoseBatch:
        return PoseBatch(
            torch.from_numpy(self.images[index]),
            torch.from_numpy(self.angles[index]),
            torch.from_numpy(self.scales[index]),
            None if self.soft is None else torch.from_numpy(self.soft[index]),
        )


class FaceData:
    """The rows of some shards, with the soft labels that lie beside them if asked for."""

    def __init__(self, files: Sequence[Path], labels: Sequence[Path] | None = None, resident_gb: float = 4.0) -> None:
        if not files:
            raise ShardError("no shards to read")
        if labels is not None and [path.name for path in labels] != [path.name for path in files]:
            raise ShardError(f"soft labels beside {labels[0].parent if labels else '(none)'} do not match the shards")
        self.files = list(files)
        self.labels = None if labels is None else list(labels)
        self.counts = [pq.read_metadata(path).num_rows for path in self.files]
        self._groups = self._grouped(resident_gb)
        self._resident: _Rows | None = None

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def is_resident(self) -> bool:
        return len(self._groups) == 1

    def _grouped(self, resident_gb: float) -> list[list[int]]:
        """Shard indices in groups whose pixels fit into the budget; one group means resident."""
        bytes_of = [self._pixel_bytes(path, count) for path, count in zip(self.files, self.counts, strict=True)]
        if sum(bytes_of) <= resident_gb * 1e9:
            return [list(range(len(self.files)))]
        groups: list[list[int]] = [[]]
        used = 0.0
        for index, size in enumerate(bytes_of):
            # Half the budget a group: one is trained on while the allocator still holds the one before.
            if groups[-1] and used + size > resident_gb * 0.5e9:
                groups.append([])
                used = 0.0
            groups[-1].append(index)
            used += size
        rest = sum(self.counts[i] for i in groups[-1])
        if len(groups) > 1 and rest < min(sum(self.counts[i] for i in group) for group in groups[:-1]):
            groups[-2:] = [groups[-2] + groups[-1]]  # a small rest would make batches of a face or none
        return groups

    @staticmethod
    def _pixel_bytes(path: Path, count: int) -> float:
        import json

        stored = json.loads((pq.read_schema(path).metadata or {})[b"hpe"])
        return float(count * 3 * (stored["size"] + 2 * stored["margin_px"]) ** 2)

    def _read(self, indices: Sequence[int]) -> _Rows:
        total = sum(self.counts[i] for i in indices)
        images = angles = scales = soft = None
        at = 0
        for i in indices:
            shard = read_shard(self.files[i])
            part = None if self.labels is None else read_soft_labels(self.labels[i], shard.sample_ids)
            if images is None or angles is None or scales is None:
                images = np.empty((total, *shard.images.shape[1:]), np.uint8)
                angles, scales = np.empty((total, 3), np.float32), np.empty((total, 2), np.float32)
                soft = None if part is None else np.empty((total, *part.shape[1:]), np.float16)
            rows = slice(at, at + len(shard))
            images[rows], angles[rows], scales[rows] = shard.images, shard.angles, shard.scales
            if soft is not None and part is not None:
                soft[rows] = part
            at += len(shard)
        assert images is not None and angles is not None and scales is not None
        return _Rows(images, angles, scales, soft)

    def _group(self, group: Sequence[int]) -> _Rows:
        if not self.is_resident:
            return self._read(group)
        if self._resident is None:
            self._resident = self._read(group)
        return self._resident

    def steps(self, batch_size: int) -> int:
        """Batches of one epoch; what is left over in a group is not used in that epoch."""
        return sum(max(1, sum(self.counts[i] for i in group) // batch_size) for group in self._groups)

    def shuffled(self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[PoseBatch]:
        """This worker's part of every global batch of one epoch, in an order fixed by (seed, epoch)."""
        order = np.random.default_rng([seed, epoch])
        for group_index in order.permutation(len(self._groups)):
            rows = self._group(self._groups[group_index])
            permutation = order.permutation(len(rows.angles))
            size = min(batch_size, len(permutation))
            for start in range(0, len(permutation) - size + 1, size):
                yield rows.take(permutation[start : start + size][rank::world])

    def ordered(self, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[PoseBatch]:
        """Every row once, in file order; with several workers each takes every world-th batch."""
        step = 0
        for group in self._groups:
            rows = self._group(group)
            for start in range(0, len(rows.angles), batch_size):
                if step % world == rank:
                    yield rows.take(np.arange(start, min(start + batch_size, len(rows.angles))))
                step += 1
