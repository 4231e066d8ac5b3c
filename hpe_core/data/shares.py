"""Rows of shards in memory, and which of them a worker reads. No torch: a task that only reads does without it.

Everything is a list of pieces, a piece being consecutive rows of one shard. `share` deals rows to workers so that their
parts differ by one row at most, whatever the sizes of the shards: a shard that lies on a border is read by both
neighbours, and each takes its own rows of it. So all workers make the same number of equal steps, and what is left over
in an epoch is less than one batch.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hpe_core.data.rows import ShardError, count_rows, read_shard, read_soft_labels


class Piece(NamedTuple):
    """Rows `start` to `stop` of a shard, and the file of soft labels beside it if they are asked for."""

    file: Path
    labels: Path | None
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class FaceArrays:
    """M rows in memory."""

    images: NDArray[np.uint8]  # (M, stored, stored, 3) RGB
    angles: NDArray[np.float32]  # (M, 3) degrees
    scales: NDArray[np.float32]  # (M, 2) image pixels per crop pixel, x and y
    soft: NDArray[np.floating] | None = None  # (M, 3, N) log-probabilities in fp16, or mean rotations in float32
    landmarks: NDArray[np.float32] | None = None  # (M, 68, 3) crop pixels from its centre, seen or not; NaN: unknown

    def __len__(self) -> int:
        return len(self.angles)


def whole_shards(files: Sequence[Path], labels: Sequence[Path] | None = None) -> list[Piece]:
    """Every shard as one piece. Raises ShardError for none, or where soft labels do not lie beside the shards."""
    if not files:
        raise ShardError("no shards to read")
    if labels is not None and [path.name for path in labels] != [path.name for path in files]:
        raise ShardError(f"soft labels beside {labels[0].parent if labels else '(none)'} do not match the shards")
    beside: Sequence[Path | None] = [None] * len(files) if labels is None else labels
    return [Piece(file, label, 0, count_rows(file)) for file, label in zip(files, beside, strict=True)]


def count(pieces: Iterable[Piece]) -> int:
    """Rows of all pieces."""
    return sum(piece.rows for piece in pieces)


def row_pixels(file: Path) -> int:
    """Bytes that the picture of one row of this shard takes in memory."""
    stored = json.loads((pq.read_schema(file).metadata or {})[b"hpe"])
    return int(3 * (stored["size"] + 2 * stored["margin_px"]) ** 2)


def share(pieces: Sequence[Piece], rank: int, world: int) -> list[Piece]:
    """One worker's part of all rows, the pieces laid end to end. The parts of all workers are every row once."""
    total, at, own = count(pieces), 0, []
    first, last = rank * total // world, (rank + 1) * total // world
    for piece in pieces:
        start, stop = max(first - at, 0), min(last - at, piece.rows)
        if start < stop:
            own.append(piece._replace(start=piece.start + start, stop=piece.start + stop))
        at += piece.rows
    return own


def cut(pieces: Sequence[Piece], rows: int) -> list[list[Piece]]:
    """Groups of so many rows, in order; the last holds what is left."""
    groups: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            if not room:
                groups.append([])
                room = rows
            stop = min(piece.stop, start + room)
            groups[-1].append(piece._replace(start=start, stop=stop))
            room -= stop - start
            start = stop
    return groups


def steps_of(total: int, batch_size: int) -> int:
    """Batches of one epoch over so many rows; fewer rows than a batch make one small batch."""
    return max(1, total // batch_size)


def part_of(total: int, batch_size: int, world: int) -> int:
    """Rows of a batch that each worker takes. Raises ShardError where a worker would have none."""
    part = min(batch_size, total) // world
    if not part:
        raise ShardError(f"{total} faces to train on are too few for {world} workers")
    return part


def read_pieces(pieces: Sequence[Piece], order: NDArray[np.int64] | None = None) -> FaceArrays:
    """The rows of some pieces; row k is row order[k] of them laid end to end. All is checked. Raises ShardError."""
    where = None if order is None else np.argsort(order)
    columns, at = dict[str, NDArray[Any]](), 0
    for piece in pieces:
        shard = read_shard(piece.file)
        parts = {name: getattr(shard, name) for name in ("images", "angles", "scales", "landmarks")}
        if piece.labels is not None:
            parts["soft"] = read_soft_labels(piece.labels, shard.sample_ids)
        laid = slice(at, at + piece.rows)
        rows = laid if where is None else where[laid]
        for name, part in parts.items():
            if name not in columns:
                columns[name] = np.empty((count(pieces), *part.shape[1:]), part.dtype)
            columns[name][rows] = part[piece.start : piece.stop]
        at += piece.rows
    return FaceArrays(**columns)
