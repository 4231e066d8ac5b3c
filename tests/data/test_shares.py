"""Laws of dealing rows to workers: every row once, equal parts, whatever the sizes of the shards."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.data.rows import ShardError, read_shard
from hpe_core.data.shares import Piece, count, cut, part_of, read_pieces, share, steps_of, whole_shards
from tests.faces import marked_labels, write_heads

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def shards_of(sizes: list[int]) -> list[Piece]:
    return [Piece(Path(f"part-{number:05d}.parquet"), None, 0, size) for number, size in enumerate(sizes)]


def rows_of(pieces: list[Piece]) -> list[tuple[str, int]]:
    return [(piece.file.name, row) for piece in pieces for row in range(piece.start, piece.stop)]


@given(SIZES, st.integers(1, 9))
def test_the_parts_of_all_workers_are_every_row_once_in_order(sizes, world):
    shards = shards_of(sizes)
    parts = [share(shards, rank, world) for rank in range(world)]
    assert [row for part in parts for row in rows_of(part)] == rows_of(shards)
    assert max(map(count, parts)) - min(map(count, parts)) <= 1
    assert all(piece.rows > 0 for part in parts for piece in part)


@pytest.mark.parametrize("content", [b"PAR1 and no more", None])
def test_a_shard_without_a_footer_is_named(tmp_path, content):
    file = tmp_path / "part-00000.parquet"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ShardError, match=f"shard {file} cannot be read"):
        whole_shards([file])


@given(SIZES, st.integers(1, 9), st.integers(1, 30))
def test_every_worker_has_rows_for_all_steps_and_less_than_a_batch_is_left(sizes, world, part):
    shards, batch_size = shards_of(sizes), part * world
    total, steps = count(shards), steps_of(count(shards), batch_size)
    if total < world:
        with pytest.raises(ShardError, match="too few"):
            part_of(total, batch_size, world)
        return
    each = part_of(total, batch_size, world)
    assert all(count(share(shards, rank, world)) >= steps * each for rank in range(world))
    assert total - steps * each * world < max(batch_size, world)


@given(SIZES, st.integers(1, 50))
def test_groups_are_the_rows_in_order_and_all_but_the_last_are_full(sizes, rows):
    groups = cut(shards_of(sizes), rows)
    assert [row for group in groups for row in rows_of(group)] == rows_of(shards_of(sizes))
    assert all(count(group) == rows for group in groups[:-1]) and 0 < count(groups[-1]) <= rows


def test_rows_that_are_read_are_those_that_were_asked_for_in_the_order_asked_for(tmp_path):
    files = write_heads(tmp_path, 30, per_shard=12)
    pieces = share(whole_shards(files), 1, 2)
    assert count(pieces) == 15 and len(pieces) == 2
    everything = np.concatenate([read_shard(file).images for file in files])
    plain = read_pieces(pieces)
    assert np.array_equal(plain.images, everything[15:])
    order = np.random.default_rng(0).permutation(15)
    mixed = read_pieces(pieces, order)
    assert np.array_equal(mixed.images, plain.images[order]) and np.array_equal(mixed.angles, plain.angles[order])
    assert np.array_equal(mixed.scales, plain.scales[order]) and mixed.soft is None
    marks = np.concatenate([read_shard(file).landmarks for file in files])
    assert plain.landmarks is not None and np.array_equal(plain.landmarks, marks[15:])
    assert mixed.landmarks is not None and np.array_equal(mixed.landmarks, plain.landmarks[order])
    told = read_pieces(share(whole_shards(files, marked_labels(files, tmp_path / "labels")), 1, 2), order)
    assert told.soft is not None and np.array_equal(told.soft[:, :, 0], mixed.angles.astype(np.float16))
