"""Laws of the Ray Data stream: the rows of its plan, in the order of its plan, whatever Ray does in between."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from hpe_core.data.batch import PoseBatch
from hpe_core.data.rows import ShardError, read_shard
from hpe_core.data.shares import FaceArrays, count
from tests.faces import exchanged, marked_labels, write_heads
from workflows.training.stream import StreamedFaces, read_groups, tasks_of, to_batch, to_table

ROWS, PER_SHARD = 66, 6


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_heads(tmp_path_factory.mktemp("shards"), ROWS, per_shard=PER_SHARD)


@pytest.fixture(scope="module")
def labels(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return marked_labels(files, tmp_path_factory.mktemp("labels"))


def without_ray(data: StreamedFaces, batch_size: int, *, seed: int, epoch: int, rank: int, world: int) -> PoseBatch:
    """All rows of one worker's epoch, its tasks done here, one after the other."""
    groups = data.plan(batch_size, seed=seed, epoch=epoch, rank=rank, world=world)
    tasks = tasks_of(groups, [seed, epoch, 1 + rank], data.landmarks)
    tables = (table for task in tasks for table in read_groups({k: [v] for k, v in task.items()}))
    return to_batch(pa.concat_tables(tables), data._soft_type)


def keys(batch: PoseBatch) -> list[bytes]:
    return [picture.numpy().tobytes() for picture in batch.images_BHWC]


@pytest.mark.parametrize("stream_shards", [1, 3, 100])
@pytest.mark.parametrize(("world", "batch_size"), [(1, 8), (2, 8), (3, 9), (4, 1000)])
def test_every_row_once_in_equal_steps(files, stream_shards, world, batch_size):
    data = StreamedFaces(files, None, stream_shards)
    for epoch in (0, 1):
        parts = [without_ray(data, batch_size, seed=5, epoch=epoch, rank=rank, world=world) for rank in range(world)]
        size = min(batch_size, ROWS) // world
        assert [len(part) for part in parts] == [data.steps(batch_size) * size] * world
        seen = [key for part in parts for key in keys(part)]
        assert len(set(seen)) == len(seen) > ROWS - max(batch_size % ROWS, world)


def test_a_task_reads_few_shards_however_many_there_are(files):
    """What a stream holds is bounded by its groups; a group of 3 shards' rows touches one or two more at its ends."""
    data = StreamedFaces(files, None, 3)
    groups = data.plan(8, seed=0, epoch=0, rank=0, world=1)
    assert all(count(group) <= 3 * PER_SHARD and len({piece.file for piece in group}) <= 5 for group in groups)
    assert len(groups) == ROWS // 8 / 2 == 4


def test_epochs_seeds_and_workers_have_orders_of_their_own(files):
    data = StreamedFaces(files, None, 3)
    base = {"seed": 0, "epoch": 0, "rank": 0, "world": 1}
    orders = [keys(without_ray(data, 8, **{**base, **change})) for change in ({}, {"epoch": 1}, {"seed": 1}, {})]
    assert orders[0] == orders[3] and orders[0] != orders[1] != orders[2] != orders[0]
    own, first = without_ray(data, ROWS, **base), np.concatenate([read_shard(file).angles for file in files])
    assert sorted(map(tuple, own.angles_B3.tolist())) == sorted(map(tuple, first.tolist())), "one group: all rows"
    assert not np.array_equal(own.angles_B3.numpy(), first)


def test_shards_come_in_a_new_order_in_each_epoch_and_no_two_tasks_shuffle_alike(files):
    data = StreamedFaces(files, None, 3)
    plans = [data.plan(8, seed=0, epoch=epoch, rank=0, world=1) for epoch in (0, 0, 1)]
    first, again, second = ([piece.file for group in plan for piece in group] for plan in plans)
    assert first == again != second
    orders = [tuple(task["seeds"]) for task in tasks_of(plans[0], [0, 0, 1], landmarks=False)]
    assert len(set(orders)) == len(orders) == 4


def test_rows_cross_as_they_are():
    random = np.random.default_rng(0)
    for bins, kind in ((None, np.float16), (62, np.float16), (3, np.float32)):  # nothing, bins, rotations
        soft = None if bins is None else random.normal(size=(7, 3, bins)).astype(kind)
        images = random.integers(0, 256, (7, 20, 20, 3), np.uint8)
        angles, scales = (random.normal(size=(7, n)).astype("f4") for n in (3, 2))
        marks = random.normal(size=(7, 68, 3)).astype("f4")
        faces = FaceArrays(images, angles, scales, soft, marks)
        table = to_table(faces)
        cut = pa.concat_tables([table.slice(2, 3), table.slice(5, 1)])
        for part, rows in ((table, slice(None)), (cut, slice(2, 6))):
            batch = to_batch(part, kind)
            for name, value in (("images_BHWC", images), ("angles_B3", faces.angles), ("scales_B2", faces.scales)):
                assert np.array_equal(getattr(batch, name).numpy(), value[rows])
            assert torch.equal(batch.landmarks_BL3, torch.from_numpy(marks[rows]))
            assert (batch.soft_B3N is None) if soft is None else np.array_equal(batch.soft_B3N.numpy(), soft[rows])


def test_soft_labels_stay_with_their_rows(files, labels, tmp_path):
    whole = without_ray(StreamedFaces(files, labels, 3), 8, seed=0, epoch=0, rank=1, world=2)
    assert whole.soft_B3N is not None and torch.equal(whole.soft_B3N[:, :, 0], whole.angles_B3.half())
    wrong = StreamedFaces(files, exchanged(labels, tmp_path), 3)
    with pytest.raises(ShardError, match="do not belong"):
        without_ray(wrong, 8, seed=0, epoch=0, rank=0, world=1)


@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_the_rows_of_the_plan_in_its_order(files, labels, monkeypatch, tmp_path):
    """Two tasks at once of which the first is the slower, and blocks of a few rows: neither may change a batch."""

    def first_is_slow(plans: dict[str, Any]) -> Iterator[pa.Table]:
        if plans["seeds"][0][-1] == 1:
            time.sleep(1.5)
        yield from read_groups(plans)

    monkeypatch.setattr("workflows.training.stream.read_groups", first_is_slow)
    monkeypatch.setattr("workflows.training.stream.BLOCK_BYTES", 5 * 3 * 44 * 44)
    data = StreamedFaces(files, labels, 2, readers=2, landmarks=True)
    where = {"seed": 3, "epoch": 1, "rank": 1, "world": 2}
    batches = list(data.shuffled(8, **where))
    assert [len(batch) for batch in batches] == [4] * data.steps(8)
    expected = without_ray(data, 8, **where)
    for field in dataclasses.fields(PoseBatch):
        assert torch.equal(torch.cat([getattr(batch, field.name) for batch in batches]), getattr(expected, field.name))
    with pytest.raises(ShardError, match="soft labels .*part-0000.* do not belong to this shard"):
        list(StreamedFaces(files, exchanged(labels, tmp_path)).shuffled(8, **where))
