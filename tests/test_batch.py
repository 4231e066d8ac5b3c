"""Laws of reading shards for training: every row once, the same order for the same seed, workers share a batch."""

import numpy as np
import pytest
import torch

from hpe_core.batch import FaceData
from hpe_core.rows import ShardError, read_shard, write_soft_labels
from tests.faces import write_heads


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp("shards"), 60)


def keys(batches) -> list[bytes]:
    return [picture.numpy().tobytes() for batch in batches for picture in batch.images_BHWC]


@pytest.mark.parametrize("resident_gb", [1.0, 1e-6])
def test_every_row_once_and_the_same_order_again(files, resident_gb):
    data = FaceData(files, resident_gb=resident_gb)
    assert data.is_resident == (resident_gb == 1.0)
    ordered = keys(data.ordered(7))
    assert len(ordered) == len(data) == 60
    first, again = keys(data.shuffled(6, seed=1, epoch=0)), keys(data.shuffled(6, seed=1, epoch=0))
    assert first == again and sorted(first) == sorted(ordered)
    assert first != keys(data.shuffled(6, seed=1, epoch=1)) != keys(data.shuffled(6, seed=2, epoch=1))


def test_streamed_rows_are_the_resident_rows(files):
    resident, streamed = FaceData(files), FaceData(files, resident_gb=1e-6)
    assert keys(resident.ordered(8)) == keys(streamed.ordered(8))
    assert streamed.steps(8) == sum(len(list(range(n // 8))) for n in streamed.counts)


def test_workers_share_every_global_batch(files):
    data = FaceData(files)
    whole = list(data.shuffled(10, seed=3, epoch=2))
    parts = [list(data.shuffled(10, seed=3, epoch=2, rank=rank, world=2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(keys([batch])) == sorted(keys([first]) + keys([second]))
    validation = [keys(data.ordered(8, rank=rank, world=3)) for rank in range(3)]
    assert sorted(key for part in validation for key in part) == sorted(keys(data.ordered(8)))


def test_soft_labels_stay_with_their_rows(files, tmp_path):
    labels = []
    for file in files:
        shard = read_shard(file)
        path = tmp_path / file.name
        marks = np.repeat(shard.angles[:, :, None], 66, axis=2).astype(np.float16)
        write_soft_labels(path, shard.sample_ids, marks, "test")
        labels.append(path)
    for batch in FaceData(files, labels).shuffled(9, seed=0, epoch=0):
        assert batch.soft_B3N is not None
        assert torch.equal(batch.soft_B3N[:, :, 0], batch.angles_B3.half())
    with pytest.raises(ShardError, match="do not belong"):
        list(FaceData(files, _wrong(labels, tmp_path)).ordered(8))


def _wrong(labels, folder):
    """The right names with the labels of two shards exchanged."""
    swapped = folder / "swapped"
    swapped.mkdir()
    sources = [labels[1], labels[0], *labels[2:]]
    for label, source in zip(labels, sources, strict=True):
        (swapped / label.name).write_bytes(source.read_bytes())
    return [swapped / label.name for label in labels]


def test_no_shards_is_an_error():
    with pytest.raises(ShardError, match="no shards"):
        FaceData([])
