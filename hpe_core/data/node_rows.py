"""Rows of shards once a node: memory-mapped files that its workers and trials share through the page cache.

Pictures, angles, scales and landmarks make one set of files. Soft labels make another, so that many label sets share
one set of pictures. A set is named by its pieces, and each file by its inode, size and time of change: links of a shard
are the same shard, one that was written anew is another, and no byte is hashed.
"""

import json
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpe_core.data.rows import MARKS, ShardError, count_rows, label_type, read_sample_ids, read_soft_labels
from hpe_core.data.shares import FaceArrays, Piece, count, read_pieces, row_pixels
from hpe_core.geometry.landmarks import LANDMARKS
from hpe_core.system.shared import share as shared

FORM = 2  # of the files


def node_rows(pieces: Sequence[Piece]) -> FaceArrays:
    """The rows of some pieces laid end to end, as read-only maps, with soft labels where the pieces have them.

    The files stay as long as what this returns is referred to. Raises ShardError for a damaged shard and for soft
    labels that are not those of its rows; DiskFull or NotShared where the temporary directory cannot hold the files.
    """
    total, pixels = count(pieces), row_pixels(pieces[0].file)
    side = round((pixels / 3) ** 0.5)
    bare = [piece._replace(labels=None) for piece in pieces]
    with ExitStack() as users:
        folder, leave = shared(
            _key(bare),
            lambda folder: _write(folder, map(_columns, bare)),
            total * (pixels + 4 * (5 + MARKS)),  # float32 beside the pixels
            f"rows of {total:,} faces",
        )
        users.callback(leave)
        images = _mapped(folder / "images", np.uint8, (total, side, side, 3))
        angles = _mapped(folder / "angles", np.float32, (total, 3))
        scales = _mapped(folder / "scales", np.float32, (total, 2))
        landmarks = _mapped(folder / "landmarks", np.float32, (total, LANDMARKS, 3))
        soft = None
        if (first := pieces[0].labels) is not None:
            folder, leave = shared(
                _key(pieces),
                lambda folder: _write(folder, map(_soft_column, pieces)),
                total * first.stat().st_size // max(1, count_rows(first)),
                f"soft labels of {total:,} faces",
            )
            users.callback(leave)
            soft = _mapped(folder / "soft", label_type(first)[1], (total, 3, -1))
        rows = FaceArrays(images, angles, scales, soft, landmarks)
        weakref.finalize(rows, users.pop_all().close)
    return rows


def _key(pieces: Sequence[Piece]) -> str:
    def known(file: Path | None) -> list[int]:
        stat = None if file is None else file.stat()
        return [] if stat is None else [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns]

    return json.dumps([FORM, [[known(piece.file), known(piece.labels), piece.start, piece.stop] for piece in pieces]])


def _columns(piece: Piece) -> dict[str, NDArray[Any]]:
    rows = read_pieces([piece])
    return {name: getattr(rows, name) for name in ("images", "angles", "scales", "landmarks")}


def _soft_column(piece: Piece) -> dict[str, NDArray[Any]]:
    assert piece.labels is not None
    return {"soft": read_soft_labels(piece.labels, read_sample_ids(piece.file))[piece.start : piece.stop]}


def _write(folder: Path, parts: Iterable[dict[str, NDArray[Any]]]) -> None:
    """Each column as a file of its bare bytes, part after part. Raises ShardError where two parts differ in shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        for name, values in part.items():
            if shapes.setdefault(name, values.shape[1:]) != values.shape[1:]:
                raise ShardError(f"{name} of {values.shape[1:]} a row in one shard and {shapes[name]} in another")
            with open(folder / name, "ab") as stream:
                stream.write(np.ascontiguousarray(values).data)


def _mapped(file: Path, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.asarray(np.memmap(file, dtype, "r")).reshape(shape)
