"""Rendered faces as shards, without Ray: the smallest real input for tests of the library and the stages."""

from functools import cache
from pathlib import Path

import numpy as np

from hpe_core.data.rows import write_shard
from hpe_core.datasets.base import FaceRow
from hpe_core.geometry.crop import Image, canonical_crop, window
from hpe_core.render.scene import RenderedHead, render_head
from hpe_core.spec.data import CropSpec

CROP = CropSpec(size=32, margin_px=6)


@cache
def head(index: int) -> RenderedHead:
    return render_head(7, index, size=64)


def face_row(index: int, crop: CropSpec = CROP) -> FaceRow:
    rendered = head(index)
    return FaceRow(
        rendered.sample_id, rendered.group, "", rendered.pose, canonical_crop(rendered.image, rendered.box, crop)
    )


def windows(count: int, *, first: int = 0) -> Image:
    """Rendered heads as the network sees them, (count, size, size, 3) uint8."""
    return window(np.stack([face_row(first + i).crop.pixels for i in range(count)]), CROP.size)


def write_heads(folder: Path, count: int, *, split: str = "train", first: int = 0, per_shard: int = 24) -> list[Path]:
    """Rendered heads `first` ... as shards of dataset 'heads'; returns the files."""
    files = []
    for part, start in enumerate(range(first, first + count, per_shard)):
        rows = [face_row(i) for i in range(start, min(start + per_shard, first + count))]
        path = folder / f"heads.{split}" / f"part-{part:05d}.parquet"
        write_shard(path, rows, CROP, "raw")
        files.append(path)
    return files
