"""Faces by which the exported files are compared with the network, calibrated and scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpe_core.data.rows import count_rows, read_shard, shard_files
from hpe_core.geometry.crop import Image, window


class Faces(NamedTuple):
    """Windows (M, size, size, 3) uint8, their labels (M, 3) degrees, and the dataset and group (M,) of each."""

    windows: Image
    angles: NDArray[np.float32]
    groups: NDArray[np.str_]


def spread_faces(shards: Path, datasets: Sequence[str], split: str, wanted: int, size: int) -> Faces | None:
    """Up to `wanted` faces of a split, evenly from the datasets, as far as each has them, and from the rows of each;
    None where there is none."""
    listed = {name: shard_files(shards, name, split) for name in datasets}
    rows_of = {name: [*map(count_rows, files)] for name, files in listed.items()}
    shares = fair_shares({name: sum(counts) for name, counts in rows_of.items()}, wanted)
    parts: list[Faces] = []
    for name, files in listed.items():
        counts, start = rows_of[name], 0
        picked = evenly(sum(counts), shares[name])
        for file, count in zip(files, counts, strict=True):
            rows = picked[(picked >= start) & (picked < start + count)] - start
            start += count
            if len(rows):
                shard = read_shard(file)
                groups = np.array([f"{name}/{shard.groups[row]}" for row in rows])
                parts.append(Faces(window(shard.images[rows], size), shard.angles[rows], groups))
    return together(parts)


def evenly(count: int, wanted: int) -> NDArray[np.int64]:
    """Up to `wanted` of `count` places, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, wanted).round().astype(np.int64))


def together(parts: Sequence[Faces | None]) -> Faces | None:
    """All faces of the parts, in order; None where there is none."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    windows, *others = (np.concatenate(columns) for columns in zip(*known, strict=True))
    return Faces(np.ascontiguousarray(windows), *others)


def fair_shares(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """How many of `wanted` each gives: as many as the others, or all that it has; together `wanted` or all there is."""
    shares, left = dict[str, int](), max(0, wanted)
    for place, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        shares[name] = min(sizes[name], -(-left // (len(sizes) - place)))
        left -= shares[name]
    return shares
