"""Shards: one row a face, one Parquet file a shard, the same bytes for the same input.

Raw images are a fixed-size binary column of (size + 2 margin)^2 * 3 bytes, so a shard is read without decoding; JPEG
(q95, 4:4:4) is the small choice. (Parquet would store a uint8 tensor column as INT32.) Page checksums are verified when
read. The metadata hold schema version, convention and crop, so that a shard of another recipe is refused, not misread.

Soft labels are a column file per shard in the same row order, joined by position and checked by sample id: many label
sets share one set of images. They hold log-probabilities in fp16, so temperature stays a key of the student, or mean
rotations in float32; the file says which.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hpe_core.datasets.base import SCHEMA_VERSION, FaceRow
from hpe_core.errors import UserError
from hpe_core.geometry.crop import Image, encoded
from hpe_core.geometry.landmarks import LANDMARKS
from hpe_core.geometry.rotation import ANGLE_NAMES, CONVENTION
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import FormName
from hpe_core.spec.serde import to_dict
from hpe_core.system.files import file_sha256, replacing

ROW_GROUP = 128
TEXTS, SCALES, CORNERS = ("sample_id", "group", "path"), ("scale_x", "scale_y"), ("x1", "y1", "x2", "y2")
MARKS = 3 * LANDMARKS  # numbers of the landmarks of a face
CROP_KEYS = tuple(to_dict(CropSpec()))


class ShardError(UserError):
    """A shard that cannot be read or does not belong to this recipe; the message names the file."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard in memory: M rows. `images` is (M, stored, stored, 3) uint8, read-only where it is a view."""

    sample_ids: list[str]
    groups: list[str]
    paths: list[str]
    angles: NDArray[np.float32]  # (M, 3) degrees
    scales: NDArray[np.float32]  # (M, 2) image pixels per crop pixel, x and y
    boxes: NDArray[np.float32]  # (M, 4) the network box in the image
    landmarks: NDArray[np.float32]  # (M, 68, 3) crop pixels from its centre, and whether it is seen; NaN: unknown
    images: Image

    def __len__(self) -> int:
        return len(self.sample_ids)


def row_bytes(crop: CropSpec, encoding: str) -> int:
    """About how much of a shard's file a face takes, for asking whether there is room; in JPEG usually less."""
    raw = crop.stored_size**2 * 3
    return raw + 1_000 if encoding == "raw" else raw // 5 + 2_000


def schema(crop: CropSpec, encoding: str) -> pa.Schema:
    """Arrow schema of a shard, with version, convention and crop in its metadata."""
    image = pa.binary(crop.stored_size**2 * 3) if encoding == "raw" else pa.binary()
    columns = [
        *[pa.field(name, pa.string(), nullable=False) for name in TEXTS],
        *[pa.field(name, pa.float32(), nullable=False) for name in (*ANGLE_NAMES, *SCALES, *CORNERS)],
        pa.field("landmarks", pa.binary(4 * MARKS), nullable=False),
        pa.field("image", image, nullable=False),
    ]
    contract = {"version": SCHEMA_VERSION, "convention": CONVENTION, "encoding": encoding, **to_dict(crop)}
    return pa.schema(columns, metadata={"hpe": json.dumps(contract, sort_keys=True)})


def stored_image(pixels: Image, encoding: str) -> bytes:
    """A canonical crop as the image column holds it."""
    if encoding == "raw":
        return pixels.tobytes()
    return encoded(pixels, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111])


def to_table(rows: Sequence[FaceRow], crop: CropSpec, encoding: str) -> pa.Table:
    """Faces as a table of `schema(crop, encoding)`, in the order given."""
    columns = schema(crop, encoding)
    corners = [(row.crop.box.x1, row.crop.box.y1, row.crop.box.x2, row.crop.box.y2) for row in rows]
    values = [(*row.pose, row.crop.scale_x, row.crop.scale_y, *box) for row, box in zip(rows, corners, strict=True)]
    numbers_MF = np.array(values, np.float32).reshape(len(rows), 9)
    unknown = np.full((LANDMARKS, 3), np.nan, np.float32)
    marks = np.array([unknown if row.landmarks is None else row.landmarks for row in rows], np.float32)
    landmarks = fixed_binary(marks.reshape(len(rows), MARKS))
    if encoding == "raw":
        pixels = np.array([row.crop.pixels for row in rows], np.uint8)
        pictures = fixed_binary(pixels.reshape(len(rows), crop.stored_size**2 * 3))
    else:
        pictures = pa.array([stored_image(row.crop.pixels, encoding) for row in rows], pa.binary())
    texts = [pa.array([getattr(row, name) for row in rows], pa.string()) for name in TEXTS]
    floats = [pa.array(np.ascontiguousarray(column)) for column in numbers_MF.T]
    arrays = [*texts, *floats, landmarks, pictures]
    return pa.Table.from_arrays(arrays, schema=columns)


def write_shard(path: Path, rows: Sequence[FaceRow], crop: CropSpec, encoding: str) -> str:
    """Write rows in the order given, atomically; returns the file's SHA-256."""
    return write_table(path, to_table(rows, crop, encoding))


def write_table(path: Path, table: pa.Table) -> str:
    """Write a table so that equal tables are equal bytes, atomically; returns the SHA-256 of the file."""
    large = ("image", LOG_PROBS, ROTATIONS)
    with replacing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=ROW_GROUP,
            compression={name: "none" if name in large else "zstd" for name in table.column_names},
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
            data_page_version="1.0",
        )
        return file_sha256(temporary)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read with page checksums verified. Raises ShardError that names the file."""
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True, memory_map=False)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"shard {path} cannot be read: {error}") from None


def count_rows(file: Path) -> int:
    """Of a Parquet file, by its footer alone. Raises ShardError that names the file."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"shard {file} cannot be read: {error}") from None


def read_sample_ids(file: Path) -> list[str]:
    """Of a shard's rows, without their pictures. Raises ShardError that names the file."""
    return list(read_table(file, ["sample_id"])["sample_id"].to_pylist())


def shard_files(folder: Path, dataset: str, split: str) -> list[Path]:
    """The shards of one split of one dataset in a shards folder, in the order of their sample ids."""
    return sorted((folder / f"{dataset}.{split}").glob("part-*.parquet"))


def contract_of(table: pa.Table, path: Path) -> dict[str, object]:
    """The recipe stored in a shard's metadata. Raises ShardError where it is absent or of another version."""
    contract = _metadata(table, path)
    if contract.get("version") != SCHEMA_VERSION or contract.get("convention") != CONVENTION:
        found = contract.get("version", "unknown")
        raise ShardError(f"shard {path} has schema version {found}; this code reads {SCHEMA_VERSION}")
    return contract


def _metadata(table: pa.Table, path: Path) -> dict[str, object]:
    """The 'hpe' entry; page checksums do not cover it, so a damaged one must not pass for anything."""
    stored = (table.schema.metadata or {}).get(b"hpe")
    if stored is None:
        raise ShardError(f"{path} is a Parquet file but not a shard: its metadata has no 'hpe' entry")
    try:
        return dict(json.loads(stored))
    except (ValueError, TypeError):
        raise ShardError(f"shard {path} is damaged: its metadata is not readable") from None


def read_shard(path: Path) -> Shard:
    """One shard into memory; raw images are views of the Arrow buffers where one chunk holds them.

    Raises ShardError for a damaged file, also where the damage is in the footer, which has no checksum: names,
    types and metadata must be those of the recipe that the metadata claims.
    """
    table = read_table(path)
    contract = contract_of(table, path)
    try:
        crop = CropSpec(**{key: contract[key] for key in CROP_KEYS})  # type: ignore[arg-type]
        expected = schema(crop, str(contract["encoding"]))
        whole = table.schema.equals(expected) and table.schema.metadata == expected.metadata
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ShardError(f"shard {path} is damaged: its columns are not those of its recipe")
    side = crop.stored_size

    def stacked(*names: str) -> NDArray[np.float32]:
        return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float32, copy=False)

    column = table["image"].combine_chunks()
    if contract["encoding"] == "raw":
        images = fixed_binary_view(column, np.uint8, (side, side, 3))
    else:
        images = np.stack([_decode_jpeg(value.as_buffer(), path) for value in column])
    marks = fixed_binary_view(table["landmarks"], np.float32, (LANDMARKS, 3))  # from the window's corner
    return Shard(
        sample_ids=table["sample_id"].to_pylist(),
        groups=table["group"].to_pylist(),
        paths=table["path"].to_pylist(),
        angles=stacked(*ANGLE_NAMES),
        scales=stacked(*SCALES),
        boxes=stacked(*CORNERS),
        landmarks=marks - np.array([crop.size / 2, crop.size / 2, 0], np.float32),
        images=images,
    )


def fixed_binary(values: NDArray[Any]) -> pa.Array:
    """(M, ...) as a column of M binary values of equal size, without a copy."""
    flat = np.ascontiguousarray(values)
    width = flat.itemsize * math.prod(flat.shape[1:])
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(flat), [None, pa.py_buffer(flat)])


def fixed_binary_view(column: pa.Array, dtype: type, shape: tuple[int, ...]) -> NDArray:
    """What `fixed_binary` made as an (M, *shape) array, without a copy."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    width = int(np.prod(shape))
    flat: NDArray[np.generic] = np.frombuffer(column.buffers()[1] or b"", dtype=dtype)
    start = column.offset * width
    return flat[start : start + len(column) * width].reshape(len(column), *shape)


def _decode_jpeg(buffer: pa.Buffer, path: Path) -> Image:
    picture = cv2.imdecode(np.frombuffer(buffer, np.uint8), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise ShardError(f"shard {path} holds a picture that does not decode")
    return np.asarray(picture, dtype=np.uint8)


# ---------------------------------------------------------------- soft labels


LOG_PROBS, ROTATIONS = "log_probs", "rotations"  # the column of either form
LABEL_TYPES: dict[str, tuple[FormName, type[np.floating]]] = {
    LOG_PROBS: ("bins", np.float16),
    ROTATIONS: ("rotations", np.float32),
}


def write_soft_labels(path: Path, sample_ids: Sequence[str], labels_MAN: NDArray[np.floating], origin: str) -> str:
    """Soft labels beside a shard of the same rows: fp16 log-probabilities (M, 3, N), or float32 mean rotations
    (M, 3, 3). `origin` says who made them. Returns SHA-256."""
    (name,) = [name for name, (_, kind) in LABEL_TYPES.items() if labels_MAN.dtype == kind]
    assert len(labels_MAN) == len(sample_ids)
    column = fixed_binary(labels_MAN)
    said = {"version": SCHEMA_VERSION, "origin": origin} | ({"bins": labels_MAN.shape[2]} if name == LOG_PROBS else {})
    metadata = {"hpe": json.dumps(said, sort_keys=True)}
    fields = pa.schema([("sample_id", pa.string()), (name, column.type)], metadata=metadata)
    return write_table(path, pa.Table.from_arrays([pa.array(sample_ids, pa.string()), column], schema=fields))


def read_soft_labels(path: Path, sample_ids: Sequence[str]) -> NDArray[np.floating]:
    """(M, 3, N) fp16 log-probabilities, or (M, 3, 3) float32 mean rotations, as the file has them. Raises ShardError
    unless the rows are those of `sample_ids`, in order."""
    table = read_table(path)
    name, bins = table.column_names[-1], _metadata(table, path).get("bins", 3)
    if table.column_names[:-1] != ["sample_id"] or name not in LABEL_TYPES or not isinstance(bins, int):
        raise ShardError(f"{path} is not a file of soft labels")
    if table["sample_id"].to_pylist() != list(sample_ids):
        raise ShardError(f"soft labels {path} do not belong to this shard: their sample ids differ")
    kind = LABEL_TYPES[name][1]
    if table[name].type != pa.binary(3 * bins * np.dtype(kind).itemsize):
        raise ShardError(f"soft labels {path} are damaged: their column does not hold {bins} bins")
    return fixed_binary_view(table[name], kind, (3, bins))


def label_type(path: Path) -> tuple[FormName, type[np.floating]]:
    """Which form the soft labels in a file have, and their type, by its footer alone. Raises ShardError."""
    try:
        return LABEL_TYPES[pq.read_schema(path).names[-1]]
    except (OSError, pa.ArrowException, LookupError) as error:
        raise ShardError(f"{path} is not a file of soft labels ({error})") from None


def check_form(path: Path, wanted: FormName) -> None:
    """Raises ShardError where a file of soft labels has another form than a student reads."""
    found = label_type(path)[0]
    if found != wanted:
        raise ShardError(f"soft labels {path} hold {found}; a student of this head reads {wanted}")
