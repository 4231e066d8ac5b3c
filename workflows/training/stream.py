"""Training rows as a stream of Ray Data (`data.ingest=ray_data`): tasks read, check, decode, shuffle; workers train.

In each epoch the shards are put into a new order, the rows are dealt to the workers (`data/shares.py`), and each
worker's part is cut into groups of `stream_shards` shards or so. A task reads one group and shuffles its rows; what it
made crosses to the worker through Ray's object store.

Exact: the shards' order comes from (seed, epoch), a group's rows from (seed, epoch, rank, group), Ray Data keeps the
order of groups, and batches are cut by rows, however Ray cuts its blocks. So a worker group that was killed goes on
with the batches that it would have seen, wherever and how often a task ran.

Bounded: a stream runs `readers` tasks at once and is told to hold STREAM_DEPTH groups for each of them.

Ray Train's own way (`get_dataset_shard`) counts epochs from the worker group's start, so after a restart it could not
give the epoch that is due; and its split hands blocks to whoever asks.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hpe_core.data.rows import MARKS, fixed_binary, fixed_binary_view, label_type
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
from hpe_core.errors import UserError
from hpe_core.geometry.landmarks import LANDMARKS
from hpe_core.spec.data import STREAM_DEPTH
from workflows.engine.cluster.connection import quiet_data

if TYPE_CHECKING:
    from hpe_core.data.batch import PoseBatch

BLOCK_BYTES = 16 << 20  # of the object store; small, so that a worker need not wait for a whole group
RETRIES = 5  # of a task that dies with its process or node; Ray Data would retry one that kills its process for ever
PREFETCH = 2  # batches that are brought to the worker while it learns
DTYPES = {"images": np.uint8, "angles": np.float32, "scales": np.float32, "landmarks": np.float32}


class StreamedFaces:
    """The rows of some shards, and soft labels if asked for; needs Ray, and `readers` free CPUs beside the workers'."""

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[Path] | None = None,
        stream_shards: int = 8,
        readers: int = 1,
        *,
        landmarks: bool = False,
    ) -> None:
        self.shards, self.landmarks = whole_shards(files, labels), landmarks
        self.stream_shards, self.readers = stream_shards, readers
        self._row_bytes = row_pixels(self.shards[0].file) + 4 * MARKS * landmarks
        self._soft_type = label_type(labels[0])[1] if labels else np.float16

    def __len__(self) -> int:
        return count(self.shards)

    def steps(self, batch_size: int) -> int:
        return steps_of(len(self), batch_size)

    def plan(self, batch_size: int, *, seed: int, epoch: int, rank: int, world: int) -> list[list[Piece]]:
        """What each task of this worker reads in one epoch: groups of whole batches, `steps` batches in all."""
        part = part_of(len(self), batch_size, world)
        order = np.random.default_rng([seed, epoch]).permutation(len(self.shards))  # the same on every worker
        own = share([self.shards[i] for i in order], rank, world)
        used = cut(own, self.steps(batch_size) * part)[0]
        rows = len(self) / len(self.shards) * self.stream_shards
        return cut(used, max(1, int(rows // part)) * part)

    def shuffled(
        self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1
    ) -> "Iterator[PoseBatch]":
        """This worker's part of every batch of one epoch. Raises ShardError, or RuntimeError for a wrong count."""
        from ray.exceptions import RayTaskError

        groups = self.plan(batch_size, seed=seed, epoch=epoch, rank=rank, world=world)
        part, asked, given = part_of(len(self), batch_size, world), sum(map(count, groups)), 0
        stream = self._stream(groups, [seed, epoch, 1 + rank])
        try:
            for table in stream.iter_batches(batch_size=part, batch_format="pyarrow", prefetch_batches=PREFETCH):
                yield to_batch(table, self._soft_type)
                given += len(table)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):  # the sentence itself, not Ray's pages around it
                raise error.cause from None
            raise
        if given != asked:
            raise RuntimeError(f"Ray Data gave {given} faces where {asked} were asked for")

    def _stream(self, groups: Sequence[Sequence[Piece]], seeds: Sequence[int]) -> Any:
        """The groups as a dataset that is read when it is iterated over."""
        import ray.data

        quiet_data()
        tasks = tasks_of(groups, seeds, self.landmarks)
        dataset = ray.data.from_items(tasks, override_num_blocks=len(groups)).map_batches(
            read_groups,
            batch_size=1,
            compute=ray.data.TaskPoolStrategy(size=self.readers),
            num_cpus=1,
            max_retries=RETRIES,  # deprecated in Ray 2.60, gone in 2.64, and nothing else bounds them
        )
        held = STREAM_DEPTH * self.readers * max(map(count, groups)) * self._row_bytes
        dataset.context.target_max_block_size = BLOCK_BYTES
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = options.resource_limits.copy(object_store_memory=float(held))
        return dataset


def tasks_of(groups: Sequence[Sequence[Piece]], seeds: Sequence[int], landmarks: bool) -> list[dict[str, Any]]:
    """A row for each task: what it reads, the seeds of its order, and whether landmarks are asked for."""
    return [
        {"pieces": as_text(group), "seeds": [*seeds, 1 + number], "landmarks": landmarks}
        for number, group in enumerate(groups)
    ]


def as_text(group: Sequence[Piece]) -> str:
    """Pieces as JSON, which Arrow types the same way whether there are labels or not."""
    return json.dumps([[str(p.file), None if p.labels is None else str(p.labels), p.start, p.stop] for p in group])


def from_text(text: str) -> list[Piece]:
    plain = json.loads(text)
    return [Piece(Path(file), None if labels is None else Path(labels), *rows) for file, labels, *rows in plain]


def read_groups(plans: dict[str, Any]) -> Iterator[pa.Table]:
    """Body of a task: rows of `tasks_of` -> the faces of each group, shuffled, some at a time."""
    for text, seeds, landmarks in zip(plans["pieces"], plans["seeds"], plans["landmarks"], strict=True):
        group = from_text(str(text))
        order = np.random.default_rng([int(seed) for seed in seeds]).permutation(count(group))
        faces = read_pieces(group, order)
        table = to_table(faces if landmarks else replace(faces, landmarks=None))
        rows = max(1, BLOCK_BYTES * len(table) // table.nbytes)
        for start in range(0, len(table), rows):
            yield table.slice(start, rows)


def to_table(faces: FaceArrays) -> pa.Table:
    """Rows as fixed-size binary columns, without a copy."""
    columns = {name: getattr(faces, name) for name in (*DTYPES, "soft")}
    return pa.table({name: fixed_binary(values) for name, values in columns.items() if values is not None})


def to_batch(table: pa.Table, soft_type: type[np.floating] = np.float16) -> "PoseBatch":
    """The rows of `to_table`, copied out of the object store; soft labels are of `soft_type`."""
    import torch

    from hpe_core.data.batch import PoseBatch

    def tensor(name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(fixed_binary_view(table[name], DTYPES.get(name, soft_type), shape).copy())

    side = int((table.schema.field("images").type.byte_width / 3) ** 0.5)
    soft = None
    if "soft" in table.column_names:
        soft = tensor("soft", 3, table.schema.field("soft").type.byte_width // (3 * np.dtype(soft_type).itemsize))
    marks = tensor("landmarks", LANDMARKS, 3) if "landmarks" in table.column_names else None
    return PoseBatch(tensor("images", side, side, 3), tensor("angles", 3), tensor("scales", 2), soft, marks)
