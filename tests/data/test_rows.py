"""Shards come back as they were written, in the same bytes every time, and damage never passes for data."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as Pil
from pyarrow import parquet

from hpe_core.data.rows import (
    ShardError,
    check_form,
    label_type,
    read_shard,
    read_soft_labels,
    stored_image,
    write_shard,
    write_soft_labels,
    write_table,
)
from hpe_core.datasets.base import SCHEMA_VERSION, FaceRow
from hpe_core.geometry.crop import Box, FaceCrop
from hpe_core.spec.data import CropSpec
from hpe_core.system.files import file_sha256

CROP = CropSpec(size=16, margin_px=2)


def faces(count: int, seed: int = 0) -> list[FaceRow]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        smooth = np.full((20, 20, 3), rng.integers(40, 200, 3), np.uint8) + rng.integers(0, 9, (20, 20, 3), np.uint8)
        crop = FaceCrop(smooth.astype(np.uint8), 1.5, 1.25, Box(1.5, 2.0, 25.5, 22.0))
        landmarks = rng.normal(size=(68, 3)).astype(np.float32) if i % 2 else None
        pose = (float(i), -float(i) / 3, 0.1)
        out.append(FaceRow(f"face-{i:04d}", f"who-{i // 3}", f"a/ü {i}.jpg", pose, crop, landmarks))
    return out


@pytest.mark.parametrize("count", [1, 7, 300])
def test_round_trip_raw(tmp_path, count):
    written = faces(count)
    digest = write_shard(tmp_path / "part.parquet", written, CROP, "raw")
    shard = read_shard(tmp_path / "part.parquet")
    assert digest == file_sha256(tmp_path / "part.parquet")
    assert shard.sample_ids == [row.sample_id for row in written] and len(shard) == count
    assert shard.groups == [row.group for row in written] and shard.paths == [row.path for row in written]
    assert np.array_equal(shard.images, np.stack([row.crop.pixels for row in written]))
    # The doctor counts these bytes.
    assert b"".join(stored_image(row.crop.pixels, "raw") for row in written) == shard.images.tobytes()
    assert np.array_equal(shard.angles, np.array([row.pose for row in written], np.float32))
    assert (shard.scales == [1.5, 1.25]).all() and (shard.boxes == [1.5, 2.0, 25.5, 22.0]).all()
    middle = np.array([CROP.size / 2, CROP.size / 2, 0], np.float32)
    for row, marks in zip(written, shard.landmarks, strict=True):
        assert np.isnan(marks).all() if row.landmarks is None else np.array_equal(marks, row.landmarks - middle)


def test_a_shard_of_another_version_is_refused(tmp_path):
    write_shard(tmp_path / "part.parquet", faces(2), CROP, "raw")
    table = parquet.read_table(tmp_path / "part.parquet")
    contract = json.loads(table.schema.metadata[b"hpe"]) | {"version": SCHEMA_VERSION - 1}
    write_table(tmp_path / "old.parquet", table.replace_schema_metadata({"hpe": json.dumps(contract)}))
    said = f"has schema version {SCHEMA_VERSION - 1}; this code reads {SCHEMA_VERSION}"
    with pytest.raises(ShardError, match=f"old.parquet {said}"):
        read_shard(tmp_path / "old.parquet")


def test_round_trip_jpeg_is_near_and_smaller(tmp_path):
    written = faces(50)
    write_shard(tmp_path / "raw.parquet", written, CROP, "raw")
    write_shard(tmp_path / "jpeg.parquet", written, CROP, "jpeg")
    raw, jpeg = read_shard(tmp_path / "raw.parquet"), read_shard(tmp_path / "jpeg.parquet")
    assert jpeg.images.shape == raw.images.shape and jpeg.images.dtype == np.uint8
    assert np.abs(jpeg.images.astype(int) - raw.images).mean() < 3
    assert jpeg.sample_ids == raw.sample_ids


def test_a_stored_jpeg_is_pillows_of_quality_95_with_a_colour_for_each_pixel(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    (face,) = faces(1)
    write_shard(tmp_path / "a.parquet", [replace(face, crop=replace(face.crop, pixels=noise))], CROP, "jpeg")
    stream = io.BytesIO()
    Pil.fromarray(noise).save(stream, "JPEG", quality=95, subsampling=0)
    expected = np.asarray(Pil.open(stream))
    assert np.abs(read_shard(tmp_path / "a.parquet").images[0].astype(int) - expected).mean() < 0.5


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_same_rows_same_bytes(tmp_path, encoding):
    first, second = (write_shard(tmp_path / f"{i}.parquet", faces(40), CROP, encoding) for i in range(2))
    assert first == second
    assert write_shard(tmp_path / "other.parquet", faces(40, seed=1), CROP, encoding) != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.parquet", "1.parquet", "other.parquet"]


def test_no_flipped_bit_is_read_as_other_data(tmp_path):
    path = tmp_path / "part.parquet"
    write_shard(path, faces(6), CROP, "raw")
    good, sound = path.read_bytes(), read_shard(path)
    rng = np.random.default_rng(0)
    found = 0
    for position in rng.integers(0, len(good), 300):
        damaged = bytearray(good)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            shard = read_shard(path)
        except ShardError as error:
            assert str(path) in str(error)
            found += 1
            continue
        assert np.array_equal(shard.images, sound.images) and np.array_equal(shard.angles, sound.angles)
        assert (shard.sample_ids, shard.groups, shard.paths) == (sound.sample_ids, sound.groups, sound.paths)
    assert found > 200


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>", b"PAR1" + bytes(100) + b"PAR1"])
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(content)
    with pytest.raises(ShardError, match="part-00000"):
        read_shard(path)
    with pytest.raises(ShardError, match="absent"):
        read_shard(tmp_path / "absent.parquet")
    parquet.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ShardError, match="part-00000.parquet is a Parquet file but not a shard"):
        read_shard(path)


def soft(count: int, bins: int) -> np.ndarray:
    logits = np.random.default_rng(0).normal(size=(count, 3, bins))
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float16)


def test_soft_labels_round_trip_and_belong_to_their_rows(tmp_path):
    ids, labels = [f"face-{i}" for i in range(200)], soft(200, 66)
    digest = write_soft_labels(tmp_path / "soft.parquet", ids, labels, "two teachers")
    assert digest == write_soft_labels(tmp_path / "again.parquet", ids, labels, "two teachers")
    back = read_soft_labels(tmp_path / "soft.parquet", ids)
    assert back.dtype == np.float16 and np.array_equal(back, labels)
    swapped = [ids[1], ids[0], *ids[2:]]
    for other in (swapped, ids[:-1], [*ids, "more"]):
        with pytest.raises(ShardError, match="do not belong"):
            read_soft_labels(tmp_path / "soft.parquet", other)


def test_mean_rotations_round_trip_and_a_file_says_what_it_holds(tmp_path):
    ids = [f"face-{i}" for i in range(200)]
    rotations = np.random.default_rng(0).normal(size=(200, 3, 3)).astype(np.float32)
    files = {"bins": tmp_path / "bins.parquet", "rotations": tmp_path / "rotations.parquet"}
    write_soft_labels(files["bins"], ids, soft(200, 6), "")  # a row of these takes as many bytes
    write_soft_labels(files["rotations"], ids, rotations, "")
    back = read_soft_labels(files["rotations"], ids)
    assert back.dtype == np.float32 and np.array_equal(back, rotations)
    for form, file in files.items():
        assert label_type(file) == (form, read_soft_labels(file, ids).dtype)
        check_form(file, form)
        (other,) = {*files} - {form}
        with pytest.raises(ShardError, match=f"{file.name} hold {form}; a student of this head reads {other}"):
            check_form(file, other)
    write_shard(tmp_path / "shard.parquet", faces(5), CROP, "raw")
    for file in (tmp_path / "shard.parquet", tmp_path / "absent"):
        with pytest.raises(ShardError, match="not a file of soft labels"):
            label_type(file)


def test_a_shard_is_not_soft_labels_nor_the_other_way_round(tmp_path):
    ids = [row.sample_id for row in faces(5)]
    write_shard(tmp_path / "shard.parquet", faces(5), CROP, "raw")
    write_soft_labels(tmp_path / "soft.parquet", ids, soft(5, 10), "")
    with pytest.raises(ShardError):
        read_soft_labels(tmp_path / "shard.parquet", ids)
    with pytest.raises(ShardError):
        read_shard(tmp_path / "soft.parquet")
