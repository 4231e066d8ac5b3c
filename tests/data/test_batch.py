"""Laws of reading shards for training: every row once, the same order for the same seed, workers share the rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.data.batch import FaceData, OwnFaces
from hpe_core.data.rows import ShardError, read_shard
from tests.faces import exchanged, marked_labels, ordered, write_heads


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp("shards"), 60)


def keys(batches) -> list[bytes]:
    return [picture.numpy().tobytes() for batch in batches for picture in batch.images_BHWC]


def test_every_row_once_and_the_same_order_again(files):
    data = FaceData(files)
    in_file_order = keys(ordered(data, 7))
    assert len(in_file_order) == len(data) == 60 and in_file_order == keys(ordered(FaceData(files), 8))
    first, again = keys(data.shuffled(6, seed=1, epoch=0)), keys(data.shuffled(6, seed=1, epoch=0))
    assert first == again and sorted(first) == sorted(in_file_order)
    assert data.steps(7) == len(list(data.shuffled(7, seed=1, epoch=0))) == 8
    assert first != keys(data.shuffled(6, seed=1, epoch=1)) != keys(data.shuffled(6, seed=2, epoch=1))


@pytest.mark.parametrize("kind", [FaceData, OwnFaces])
def test_epoch_and_seed_both_make_the_order_and_no_batch_is_a_run_of_a_file(files, kind):
    data = kind(files)
    runs = [list(data.shuffled(6, seed=seed, epoch=epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    orders = [keys(run) for run in runs]
    assert len({tuple(order) for order in orders}) == 4
    place = {key: row for row, key in enumerate(keys(ordered(FaceData(files), 60)))}
    for run in runs:
        assert len(run) == data.steps(6) and {len(batch) for batch in run} == {6}
        assert all((np.diff([place[key] for key in keys([batch])]) != 1).any() for batch in run)


def test_a_row_keeps_its_pixels_angles_and_scales(files):
    """However rows are taken: in file order, shuffled, picked or split."""
    shards = [read_shard(file) for file in files]
    row_of = {
        image.tobytes(): (angles.tolist(), scales.tolist())
        for shard in shards
        for image, angles, scales in zip(shard.images, shard.angles, shard.scales, strict=True)
    }
    shuffled = list(OwnFaces(files).shuffled(10, seed=0, epoch=0))
    some = shuffled[0].take(torch.tensor([7, 2, 2]))
    assert keys([some]) == [keys([shuffled[0]])[i] for i in (7, 2, 2)]
    for batch in (*ordered(FaceData(files), 60), *shuffled, some, *shuffled[1].split(3)):
        for key, angles, scales in zip(keys([batch]), batch.angles_B3, batch.scales_B2, strict=True):
            assert row_of[key] == (angles.tolist(), scales.tolist())


@pytest.mark.parametrize(("world", "batch_size"), [(1, 6), (2, 6), (3, 9), (7, 14), (4, 200)])
def test_workers_with_rows_of_their_own_see_every_row_once_in_equal_steps(files, world, batch_size):
    """60 rows in shards of 24, 24 and 12: no number of workers here divides the shards, and 7 does not divide the rows.

    A batch of 200 is larger than all rows: one step then, of as many rows as there are.
    """

    def epoch(number):
        workers = [OwnFaces(files) for _ in range(world)]
        how = {"seed": 1, "epoch": number, "world": world}
        return [list(data.shuffled(batch_size, rank=rank, **how)) for rank, data in enumerate(workers)]

    parts, steps = epoch(0), OwnFaces(files).steps(batch_size)
    size = min(batch_size, 60) // world
    assert [[len(batch) for batch in part] for part in parts] == [[size] * steps] * world
    seen = [key for part in parts for key in keys(part)]
    assert len(set(seen)) == len(seen) > 60 - max(batch_size, 2 * world)
    assert set(seen) <= set(keys(ordered(FaceData(files), 9)))
    assert list(map(keys, parts)) == list(map(keys, epoch(0))) != list(map(keys, epoch(1)))


def test_what_is_left_over_is_not_left_out_for_ever(files):
    data = OwnFaces(files)
    seen = {key for epoch in range(12) for key in keys(data.shuffled(50, seed=0, epoch=epoch))}
    assert len(seen) == 60


def test_a_worker_reads_its_own_part_and_no_more(files):
    for world in (1, 2, 4):
        for rank in range(world):
            data = OwnFaces(files)
            first = set(keys(data.shuffled(world, seed=0, epoch=0, rank=rank, world=world)))
            assert len(data.rows(rank, world)) == 60 / world
            assert first == set(keys(data.shuffled(world, seed=0, epoch=1, rank=rank, world=world)))


def test_more_workers_than_faces_is_an_error(files):
    for kind in (FaceData, OwnFaces):
        with pytest.raises(ShardError, match="60 faces to train on are too few for 61 workers"):
            list(kind(files).shuffled(122, seed=0, epoch=0, world=61))


def test_workers_share_every_global_batch(files):
    data = FaceData(files)
    whole = list(data.shuffled(10, seed=3, epoch=2))
    parts = [list(data.shuffled(10, seed=3, epoch=2, rank=rank, world=2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(keys([batch])) == sorted(keys([first]) + keys([second]))
    validation = [keys(ordered(data, 8, rank=rank, world=3)) for rank in range(3)]
    assert sorted(key for part in validation for key in part) == sorted(keys(ordered(data, 8)))


@settings(max_examples=30)
@given(
    st.integers(1, 70), st.integers(1, 3), st.integers(0, 9), st.integers(0, 3), st.sampled_from([FaceData, OwnFaces])
)
def test_an_order_names_each_row_once_in_equal_parts(files, batch_size, world, seed, epoch, kind):
    """Over all workers, and `shuffled` gives the rows in that order. Who share batches see those of a single worker."""
    data, how = kind(files), {"seed": seed, "epoch": epoch}
    if min(batch_size, 60) < world:
        with pytest.raises(ShardError, match="too few"):
            data.order(batch_size, **how, world=world)
        return
    orders = [data.order(batch_size, **how, rank=rank, world=world) for rank in range(world)]
    assert {len(order) for order in orders} == {data.steps(batch_size)}
    first = [0] + list(np.cumsum([len(data.rows(rank, world)) for rank in range(world)]))
    seen = np.concatenate([order.ravel() + (kind is OwnFaces) * first[rank] for rank, order in enumerate(orders)])
    assert len(set(seen.tolist())) == len(seen) and set(seen.tolist()) <= set(range(60))
    if kind is FaceData:
        whole = data.order(batch_size, **how)
        np.testing.assert_array_equal(np.sort(np.concatenate(orders, axis=1)), np.sort(whole))
    else:
        assert {order.shape for order in orders} == {orders[0].shape}
    rank = seed % world
    rows, batches = data.rows(rank, world), list(data.shuffled(batch_size, **how, rank=rank, world=world))
    for index, batch in zip(orders[rank], batches, strict=True):
        np.testing.assert_array_equal(rows.angles[index], batch.angles_B3.numpy())


def test_soft_labels_stay_with_their_rows(files, tmp_path):
    labels = marked_labels(files, tmp_path / "labels")
    wrong = exchanged(labels, tmp_path / "wrong")
    for kind in (FaceData, OwnFaces):
        for batch in kind(files, labels).shuffled(10, seed=0, epoch=0, rank=1, world=2):
            assert torch.equal(batch.soft_B3N[:, :, 0], batch.angles_B3.half())
        with pytest.raises(ShardError, match="do not belong"):
            list(kind(files, wrong).shuffled(10, seed=0, epoch=0))


def test_no_shards_is_an_error():
    for kind in (FaceData, OwnFaces):
        with pytest.raises(ShardError, match="no shards"):
            kind([])


def test_networks_with_and_without_landmarks_share_the_rows_of_a_machine_while_both_live(files):
    """Whoever takes no landmarks keeps the shared files all the same: else each would build its own."""
    without, with_them = FaceData(files), FaceData(files, landmarks=True)
    rows, more = without.rows(), with_them.rows()
    assert rows.landmarks is None and more.landmarks is not None
    (first, second) = (Path(file_of(found.images)) for found in (rows, more))
    assert first == second and first.exists()


def file_of(values: np.ndarray) -> str:
    """The file that an array is a map of."""
    while not isinstance(values, np.memmap):
        values = values.base
    return str(values.filename)
