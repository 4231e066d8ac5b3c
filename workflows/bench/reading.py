"""Benchmarks of batches of canonical crops: from shards, from image files, and through Ray Data."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hpe_core.data.batch import FaceData, TrainFaces
from hpe_core.geometry.crop import Box, Image, canonical_crop
from hpe_core.spec.data import CropSpec
from workflows.bench.shared.children import read_rgb
from workflows.bench.shared.common import Row, Side, interleaved, must_agree, rate, rows_of
from workflows.bench.shared.lab import BATCH, CROP, Lab, shards_in
from workflows.training.stream import StreamedFaces

Batches = Iterable[tuple[Tensor, Tensor]]  # images (B, side, side, 3) uint8, angles (B, 3) degrees
STREAMED = 8  # times the archive's faces make a stream's epoch: long, as its start is no part of its rate


def read(lab: Lab) -> list[Row]:
    """Shuffled batches from shards, against a torch DataLoader over the image files."""
    faces, flat = lab.rows(), lab.scratch() / "crops.bin"
    batch, boxes = min(BATCH, len(faces)), [face.crop.box for face in faces]
    raw, encoded = shards_in(lab.scratch(), faces), shards_in(lab.scratch(), faces, encoding="jpeg")
    np.stack([face.crop.pixels for face in faces]).tofile(flat)
    running = {workers: loader(lab, boxes, CROP, batch, workers) for workers in (0, 2)}
    pixels = checksum(epoch(FaceData(raw), batch, 0, 0))
    must_agree(pixels == checksum(running[0]), "pixels of one epoch")
    must_agree(pixels == checksum(gathered(flat, len(faces), batch, 0)), "gather")
    sides = [
        shard_side("raw", raw, batch),
        shard_side("jpeg", encoded, batch),
        rate("loader 0", lambda _: consumed(running[0])),
        rate("loader 2", lambda _: consumed(running[2])),
        rate("loader cold", lambda _: consumed(loader(lab, boxes, CROP, batch, 2))),
        rate("gather", lambda turn: consumed(gathered(flat, len(faces), batch, turn))),
    ]
    counted = f"{len(faces) // batch * batch} faces of 142 px in batches of {batch}; files in the page cache"
    opened, later = f"{counted}; Parquet opened and read", f"{counted}; rows resident, gathered in shuffled order"
    plain, decoded = f"{opened}, shuffled, batched", f"{opened}, decoded, shuffled, batched"
    none, two = "DataLoader, 0 workers: imread and crop", "DataLoader, 2 workers, starting them counted"
    bare, unit = "rows gathered from one memory-mapped file", "faces/s"
    lines = [
        ("read raw shards, first epoch", unit, "raw first", "loader 0", none, plain),
        ("read raw shards, first epoch", unit, "raw first", "loader cold", two, plain),
        ("read JPEG shards, first epoch", unit, "jpeg first", "loader 0", none, decoded),
        ("read JPEG shards, first epoch", unit, "jpeg first", "loader cold", two, decoded),
        ("read raw shards, first epoch", unit, "raw first", "gather", bare, counted),
        ("read shards, later epochs", unit, "raw later", "gather", bare, counted),
        ("read shards, later epochs", unit, "raw later", "loader 0", "DataLoader, 0 workers", later),
        ("read shards, later epochs", unit, "raw later", "loader 2", "DataLoader, 2 workers, already running", later),
    ]
    return rows_of(interleaved(sides, lab.repeat), lines)


def stream(lab: Lab) -> list[Row]:
    """One worker's epoch through Ray Data (`data.ingest=ray_data`), against rows that the worker reads itself."""
    faces, count = lab.rows(), STREAMED * lab.faces
    files = shards_in(lab.scratch(), [replace(faces[i % len(faces)], sample_id=f"{i:06d}") for i in range(count)])
    lab.cluster()
    streamed, kept = StreamedFaces(files, stream_shards=max(1, len(files) // 4)), FaceData(files)

    def side(name: str, data: Callable[[], TrainFaces]) -> Side:
        return rate(name, lambda turn: consumed(epoch(data(), BATCH, 0, turn + 1)))

    must_agree(checksum(epoch(streamed, BATCH, 0, 0)) == checksum(epoch(kept, BATCH, 0, 0)), "pixels of one epoch")
    sides = [side("stream", lambda: streamed), side("first", lambda: FaceData(files)), side("later", lambda: kept)]
    counted = f"an epoch of {count} faces of 142 px in batches of {BATCH}, in four groups; files in the page cache"
    name, unit = "read raw shards through Ray Data, one task", "faces/s"
    lines = [
        (name, unit, "stream", "first", "read by the worker itself, first epoch", counted),
        (name, unit, "stream", "later", "rows resident", counted),
    ]
    return rows_of(interleaved(sides, lab.few), lines)


def epoch(data: TrainFaces, batch: int, seed: int, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    return ((part.images_BHWC, part.angles_B3) for part in data.shuffled(batch, seed=seed, epoch=number))


def consumed(batches: Batches) -> int:
    """Faces in the batches; every picture's middle pixel is touched."""
    count = 0
    for images, _ in batches:
        count += len(images)
        int(images[:, images.shape[1] // 2, images.shape[2] // 2].sum())
    return count


def checksum(batches: Batches) -> list[int]:
    """The sum of each picture's pixels, sorted: equal for the same pictures in any order."""
    return sorted(torch.cat([images.flatten(1).sum(1, dtype=torch.int64) for images, _ in batches]).tolist())


def shard_side(name: str, files: Sequence[Path], batch: int) -> Side:
    """Faces a second of a first epoch (shards opened and read) and of four later ones (rows resident)."""

    def timed(turn: int) -> dict[str, float]:
        began = time.perf_counter()
        data = FaceData(files)
        count = consumed(epoch(data, batch, turn + 1, 0))
        middle = time.perf_counter()
        later = sum(consumed(epoch(data, batch, turn + 1, number)) for number in range(1, 5))
        return {f"{name} first": count / (middle - began), f"{name} later": later / (time.perf_counter() - middle)}

    return timed


def gathered(flat: Path, count: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled epoch of a file that holds the crops one after the other, and nothing that says what they are."""
    side = CROP.stored_size
    images, angles = np.memmap(flat, np.uint8, "r", shape=(count, side, side, 3)), np.zeros((count, 3), np.float32)
    order = np.random.default_rng(seed + 1).permutation(count)
    for start in range(0, count - batch + 1, batch):
        rows = order[start : start + batch]
        yield torch.from_numpy(images[rows]), torch.from_numpy(angles[rows])


def loader(lab: Lab, boxes: Sequence[Box], crop: CropSpec, batch: int, workers: int) -> Batches:
    """A plain DataLoader over the image files: read, decode, one warp. Boxes and poses are in memory already."""
    files = ImageFiles(lab.pictures, boxes, [lab.heads[i % len(lab.heads)].pose for i in range(len(boxes))], crop)
    return DataLoader(files, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


class ImageFiles(Dataset[Any]):
    """Map-style dataset over image files: (stored, stored, 3) uint8 canonical crop, (3,) float32 degrees."""

    def __init__(self, paths: Sequence[Path], boxes: Sequence[Box], poses: Sequence[Any], crop: CropSpec) -> None:
        self.paths, self.boxes, self.poses = paths, boxes, poses
        self.crop = replace(crop, box_scale=1.0)  # the boxes are network boxes already

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image, Any]:
        image = read_rgb(self.paths[index])
        return canonical_crop(image, self.boxes[index], self.crop).pixels, np.asarray(self.poses[index], np.float32)
