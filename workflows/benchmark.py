"""What each idea of the house is worth, measured against its plain rival in the same run.

    python workflows/benchmark.py                    all of them, about 6 minutes on 2 cores
    python workflows/benchmark.py windows read       only these

Both sides of a comparison are timed in turn (A B, B A, A B ...), so that a busy machine slows both; what counts is
the ratio of each pair, as median and range over the repeats. Everything runs on one thread a process unless the row
says otherwise, in wall-clock time, with files in the page cache. Before a pair is timed, its two sides are checked to
do the same work (equal pixels, equal shards, equal training curves); a benchmark whose sides differ fails.

The pictures are rendered heads in an archive in the form of AFLW2000 (450 px JPEG and .mat), written to a temporary
folder. A few distinct heads are stored under many names: the cost of decoding a file does not depend on its neighbours.
The module is long because eight benchmarks share one archive, one cluster and one way of taking turns.
"""

import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpe_core.errors import SpecError, check, nearest
from hpe_core.spec.cluster import ClusterSpec
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.training import AugmentSpec, DistillSpec, LabelSet, OptimSpec, TrainSpec
from workflows.engine.commandline import CommandParser
from workflows.engine.config import EXIT_BAD_INPUT, EXIT_FAILED, guarded
from workflows.tracking.progress import Reporter

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.utils.data import Dataset

    from hpe_core.datasets.base import FaceRow
    from hpe_core.datasets.plan import Job as ShardJob
    from hpe_core.geometry.crop import Box, Image
    from hpe_core.render.scene import RenderedHead
    from workflows.training.jobs import Job

DISTINCT = 24  # heads that are rendered for the archive; the rest are copies of their files
PICTURE_PX, QUALITY = 450, 95
BATCH = 64
STREAMED = 8  # times the archive's faces make a stream's epoch: long, as its start is no part of its rate
Figures = dict[str, list[float]]  # a figure's name -> its value in each repeat
Side = Callable[[int], Mapping[str, float]]  # one side of a comparison: number of the repeat -> its figures
CLUSTER = ClusterSpec(address="local", local_cpus=4)


@dataclass(frozen=True)
class Row:
    """One line of the table. `ours` and `rival` hold one value a repeat; the ratio is ours / rival, pair by pair."""

    name: str
    unit: str
    ours: list[float]
    rival: list[float]
    rival_is: str
    counted: str

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.rival, strict=True)]


# ---------------------------------------------------------------- taking turns


def interleaved(sides: Sequence[Side], repeat: int, *, warm: bool = True) -> Figures:
    """Every side `repeat` times in turn, the order reversed each time; a first, uncounted turn warms caches."""
    if warm:
        for side in sides:
            side(-1)
    found: Figures = {}
    for turn in range(repeat):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            for name, value in side(turn).items():
                found.setdefault(name, []).append(value)
    return found


def rate(name: str, work: Callable[[int], int]) -> Side:
    """A side whose figure is what `work` returns (faces, windows ...) over the seconds that it took."""

    def timed(turn: int) -> dict[str, float]:
        began = time.perf_counter()
        count = work(turn)
        return {name: count / (time.perf_counter() - began)}

    return timed


def must_agree(same: bool, what: str) -> None:
    """A ratio between sides that did different work means nothing. Raises StageFailed."""
    from workflows.engine.stage import StageFailed

    if not same:
        raise StageFailed(f"the two sides of a benchmark did not do the same work: {what}")


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for OpenCV and torch, here and (through the environment) in the processes started from here."""
    import cv2
    import torch

    before = (cv2.getNumThreads(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"))
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
        if before[2] is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before[2]


# ---------------------------------------------------------------- what the benchmarks share


class Lab:
    """The archive, made once and when first needed, and one local Ray cluster for those that ask for it."""

    def __init__(self, folder: Path, faces: int, repeat: int, stack: ExitStack) -> None:
        self.folder, self.faces, self.repeat = folder, faces, repeat
        self._stack = stack

    @property
    def few(self) -> int:
        """Repeats of what takes many seconds: three of five."""
        return (self.repeat + 1) // 2

    @cached_property
    def heads(self) -> "list[RenderedHead]":
        from hpe_core.render.scene import render_head

        count = min(self.faces, DISTINCT)
        return [render_head(3, i, size=PICTURE_PX, heads_per_person=6) for i in range(count)]

    @cached_property
    def archive(self) -> Path:
        """`faces` pictures with their .mat files, as AFLW2000 stores them."""
        import numpy as np
        import scipy.io

        root = self.folder / "archive"
        root.mkdir()
        encoded = [jpeg(head.image) for head in self.heads]
        for i in range(self.faces):
            head = self.heads[i % len(self.heads)]
            (root / f"image{i:05d}.jpg").write_bytes(encoded[i % len(encoded)])
            points = np.vstack([head.landmarks.T, np.zeros((1, len(head.landmarks)), np.float32)])
            pose = np.array([[*np.radians(head.pose), 0.0, 0.0, 0.0, 1.0]], np.float32)
            scipy.io.savemat(root / f"image{i:05d}.mat", {"Pose_Para": pose, "pt3d_68": points.astype(np.float32)})
        return root

    @property
    def pictures(self) -> list[Path]:
        return sorted(self.archive.glob("*.jpg"))

    def data(self, crop: CropSpec, encoding: str = "raw") -> DataSpec:
        """The archive as the shards stage is given it: eight parts or so."""
        heads = DatasetSpec("aflw2000", str(self.archive), val=0.125, test=0.0)
        per_shard = max(1, self.faces // 8)
        spec = DataSpec({"heads": heads}, ("heads",), (), crop, rows_per_shard=per_shard)
        return replace(spec, encoding=encoding)  # type: ignore[arg-type]

    def rows(self, crop: CropSpec) -> "list[FaceRow]":
        """Every face of the archive, loaded and cropped, in the order of `pictures`."""
        from hpe_core.datasets.base import FaceRow
        from hpe_core.datasets.registry import open_source
        from hpe_core.datasets.sandbox import load_directly

        source = open_source(self.data(crop).datasets["heads"])
        return [face for face in load_directly(source, crop, sorted(source.refs())) if isinstance(face, FaceRow)]

    def scratch(self) -> Path:
        """A fresh, empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @cached_property
    def cluster_seconds(self) -> float:
        """Starts the cluster; how long that took. It stays until the last benchmark is done."""
        from workflows.engine.cluster import connected

        began = time.perf_counter()
        say(self._stack.enter_context(connected(CLUSTER)))
        return time.perf_counter() - began


def jpeg(image: "Image") -> bytes:
    import cv2

    done, code = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done, "cv2 refused to encode a uint8 picture"
    return code.tobytes()


def read_rgb(path: Path) -> "Image":
    """The bare read: no check of the file, as most loaders do."""
    import cv2
    import numpy as np

    return np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), dtype=np.uint8)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- 1. rendering


def render(lab: Lab) -> list[Row]:
    """Heads rendered from their number, against reading the same pictures from JPEG files."""
    return [_render_at(lab, size) for size in (64, 112, 192)]


def _render_at(lab: Lab, size: int) -> Row:
    from hpe_core.render.scene import render_head

    count = 12  # two persons of six pictures
    folder = lab.scratch()

    def make(turn: int) -> int:
        """New persons each time: the renderer keeps the last ones."""
        first = (turn + 1) * count
        return len([render_head(11, first + i, size=size, heads_per_person=6).image for i in range(count)])

    stored = [folder / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(stored):
        path.write_bytes(jpeg(render_head(11, i, size=size, heads_per_person=6).image))
    must_agree({read_rgb(path).shape for path in stored} == {(size, size, 3)}, "sizes of the rendered pictures")
    found = interleaved([rate("ours", make), rate("rival", lambda _: len(list(map(read_rgb, stored))))], lab.repeat)
    counted = f"{count} heads a repeat, two persons made anew; the rival reads {count} files of the same size"
    return Row(f"render {size} px", "heads/s", found["ours"], found["rival"], "imread of JPEG", counted)


# ---------------------------------------------------------------- 2. writing shards


def write(lab: Lab) -> list[Row]:
    """Shards from the archive, in one process and by the whole stage on all cores, against decoding its pictures.

    The rival is a plain loop in a process of its own. It is measured once more with its freed memory kept, as our
    workers keep theirs (`hpe_core.system.memory`): that alone makes it faster, and says what else the stage costs.
    """
    from hpe_core.datasets.plan import plan_dataset
    from hpe_core.datasets.registry import open_source

    crop, cores = CropSpec(112, 15), os.cpu_count() or 1
    pictures = [str(path) for path in lab.pictures]
    jobs = {}
    for encoding in ("raw", "jpeg"):
        data = lab.data(crop, encoding)
        jobs[encoding] = plan_dataset("heads", open_source(data.datasets["heads"]), data).jobs
    with ExitStack() as stack:
        plain, kept = (stack.enter_context(alone(1, keep=keep)) for keep in (False, True))
        crowd = stack.enter_context(alone(cores, keep=False))

        def written(encoding: str) -> Callable[[int], int]:
            data = lab.data(crop, encoding)
            return lambda _: kept.submit(write_here, jobs[encoding], data, lab.scratch()).result()

        sides = [
            rate("plain", lambda _: plain.submit(decode_all, pictures).result()),
            rate("kept", lambda _: kept.submit(decode_all, pictures).result()),
            rate("raw", written("raw")),
            rate("jpeg", written("jpeg")),
        ]
        found = interleaved(sides, lab.repeat)
        lab.cluster_seconds  # noqa: B018  # started before anything is timed
        parts = [pictures[i::cores] for i in range(cores)]
        beside = rate("crowd", lambda _: sum(crowd.map(decode_all, parts)))
        beside(-1)
        found |= interleaved([beside, build_with_ray(lab, crop, cores)], lab.few, warm=False)
    say(f"  Ray: {lab.cluster_seconds:.1f} s to start the cluster, {statistics.median(found['start']):.1f} s the stage")
    common = f"{lab.faces} faces: strict decode, .mat, crop 142 px, Parquet with checksums, SHA-256, rename"
    loop, keeping = "imread of the same JPEGs, one process", "the same loop, freed memory kept"
    seconds = [lab.faces / value for value in found["crowd"]]
    return [
        Row("write raw shards, one process", "faces/s", found["raw"], found["plain"], loop, common),
        Row("write raw shards, one process", "faces/s", found["raw"], found["kept"], keeping, common),
        Row("write JPEG shards, one process", "faces/s", found["jpeg"], found["plain"], loop, common),
        Row(
            "write raw shards, Ray, steady",
            "faces/s",
            found["steady"],
            found["crowd"],
            f"{cores} such processes at once",
            f"{cores} actors, each with its decoding child, from the first shard's receipt to the last",
        ),
        Row(
            "write raw shards, Ray, whole stage",
            "s",
            found["whole"],
            seconds,
            f"{cores} such processes at once",
            f"{lab.faces} faces with actors and children started; the cluster took {lab.cluster_seconds:.1f} s once",
        ),
    ]


def alone(processes: int, *, keep: bool) -> ProcessPoolExecutor:
    """Fresh processes with one thread each; with `keep` they keep their freed memory."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), set_up, (keep,))


def set_up(keep: bool) -> None:
    import cv2

    from hpe_core.system.memory import keep_freed_memory

    cv2.setNumThreads(1)
    if keep:
        keep_freed_memory()


def decode_all(paths: Sequence[str]) -> int:
    return sum(1 for path in paths if read_rgb(Path(path)).size)


def write_here(jobs: "Sequence[ShardJob]", data: DataSpec, folder: Path) -> int:
    """The jobs of the shards stage in this process, without sandbox and Ray; faces written."""
    from hpe_core.data.rows import write_shard
    from hpe_core.datasets.base import FaceRow
    from hpe_core.datasets.registry import open_source
    from hpe_core.datasets.sandbox import load_directly

    source, count = open_source(data.datasets["heads"]), 0
    for job in jobs:
        kept = [face for face in load_directly(source, data.crop, job.refs) if isinstance(face, FaceRow)]
        write_shard(folder / job.path, kept, data.crop, data.encoding)
        count += len(kept)
    must_agree(count == sum(len(job.refs) for job in jobs), f"{count} faces written")
    return count


def build_with_ray(lab: Lab, crop: CropSpec, actors: int) -> Side:
    """build_shards: steady rate, seconds until the first shard's work began, seconds in all.

    The receipts' times on disk tell when each shard was done. Once, the bytes are compared with `write_here`'s.
    """
    from hpe_core.datasets.plan import plan_dataset
    from hpe_core.datasets.registry import open_source
    from hpe_core.system.files import file_sha256
    from workflows.stages.shards import build_shards

    data, expected = lab.data(crop), lab.scratch()
    jobs = plan_dataset("heads", open_source(data.datasets["heads"]), data).jobs
    write_here(jobs, data, expected)

    def built(turn: int) -> dict[str, float]:
        folder = lab.scratch() / "stage"  # alone in its parent: shards of a sibling would be taken over
        began, clock = time.time(), time.perf_counter()
        build_shards(data, folder, Reporter(), workers=actors)
        whole = time.perf_counter() - clock
        done = sorted(((folder / job.path).with_suffix(".json").stat().st_mtime, len(job.refs)) for job in jobs)
        if turn == 0:
            same = all(file_sha256(folder / job.path) == file_sha256(expected / job.path) for job in jobs)
            must_agree(same, "shards written through Ray and without it have other bytes")
        steady = sum(count for _, count in done[1:]) / (done[-1][0] - done[0][0])
        return {"steady": steady, "whole": whole, "start": done[0][0] - began - actors * done[0][1] / steady}

    return built


# ---------------------------------------------------------------- 3. memory of the shards stage


def memory(lab: Lab) -> list[Row]:
    """Peak memory of the whole shards stage on an archive and on one ten times as large."""
    few, many = 2 * lab.faces, 20 * lab.faces
    lab.cluster_seconds  # noqa: B018
    peaks = {count: peak_megabytes(lambda count=count: shards_of(lab, count)) for count in (few, many)}  # type: ignore[misc]
    counted = "proportional set sizes of all processes, Ray's included, sampled every half second; one run each"
    return [
        Row(f"peak memory, {many:,} pictures", "MB", [peaks[many]], [peaks[few]], f"{few:,} pictures", counted),
    ]


def shards_of(lab: Lab, count: int) -> None:
    """The shards stage over so many faces: files of the archive under further names."""
    from workflows.stages.shards import build_shards

    root = lab.scratch()
    for i in range(count):
        for suffix in (".jpg", ".mat"):
            os.link(lab.archive / f"image{i % lab.faces:05d}{suffix}", root / f"image{i:05d}{suffix}")
    heads = DatasetSpec("aflw2000", str(root), val=0.125, test=0.0)
    data = DataSpec({"heads": heads}, ("heads",), (), CropSpec(112, 15), rows_per_shard=256)
    result = build_shards(data, lab.scratch() / "stage", Reporter(), workers=os.cpu_count() or 1)
    must_agree(result.kept == count, f"{result['kept']} of {count} faces kept")


def peak_megabytes(work: Callable[[], None]) -> float:
    """The largest sum of the proportional set sizes of this process and all below it while `work` runs."""
    import psutil

    done, sizes = threading.Event(), []

    def sample() -> None:
        while not done.wait(0.5):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it ended meanwhile
                    continue
            sizes.append(total / 1e6)

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(sizes)


# ---------------------------------------------------------------- 4. reading shards


def read(lab: Lab) -> list[Row]:
    """Shuffled batches of canonical crops from shards, against a torch DataLoader over the image files."""
    crop = CropSpec(112, 15)
    faces = lab.rows(crop)
    files = {encoding: _shards(lab.scratch(), faces, crop, encoding) for encoding in ("raw", "jpeg")}
    batch = min(BATCH, len(faces))
    boxes = [face.crop.box for face in faces]
    loaders = {workers: loader(lab, boxes, crop, batch, workers) for workers in (0, 2)}
    must_agree(checksum(epoch(files["raw"], batch)) == checksum(loaders[0]), "pixels of one epoch")
    sides = [shard_side(name, paths, batch) for name, paths in files.items()]
    sides += [loader_side("loader 0", lambda: loaders[0]), loader_side("loader 2", lambda: loaders[2])]
    sides.append(loader_side("loader cold", lambda: loader(lab, boxes, crop, batch, 2)))
    flat = _flat_file(lab.scratch(), faces)
    must_agree(checksum(epoch(files["raw"], batch)) == checksum(gathered(flat, len(faces), crop, batch, 0)), "gather")
    sides.append(rate("gather", lambda turn: consumed(x for x, _ in gathered(flat, len(faces), crop, batch, turn))))
    found = interleaved(sides, lab.repeat)
    first = f"{len(faces) // batch * batch} faces of 142 px in batches of {batch}; files in the page cache"
    rows = []
    for ours, name in (("raw first", "read raw shards, first epoch"), ("jpeg first", "read JPEG shards, first epoch")):
        counted = f"{first}; Parquet opened and read{', decoded' if 'jpeg' in ours else ''}, shuffled, batched"
        none, two = "DataLoader, 0 workers: imread and crop", "DataLoader, 2 workers, starting them counted"
        rows.append(Row(name, "faces/s", found[ours], found["loader 0"], none, counted))
        rows.append(Row(name, "faces/s", found[ours], found["loader cold"], two, counted))
    bare = "rows gathered from one memory-mapped file"
    rows.append(Row("read raw shards, first epoch", "faces/s", found["raw first"], found["gather"], bare, first))
    rows.append(Row("read shards, later epochs", "faces/s", found["raw later"], found["gather"], bare, first))
    for workers in (0, 2):
        rival = f"DataLoader, {workers} workers" + (", already running" if workers else "")
        counted = f"{first}; rows resident, gathered in shuffled order"
        rows.append(
            Row("read shards, later epochs", "faces/s", found["raw later"], found[f"loader {workers}"], rival, counted)
        )
    return rows


def _shards(folder: Path, faces: "Sequence[FaceRow]", crop: CropSpec, encoding: str) -> list[Path]:
    from hpe_core.data.rows import write_shard

    files = []
    for part, start in enumerate(range(0, len(faces), 512)):
        files.append(folder / f"part-{part:05d}.parquet")
        write_shard(files[-1], faces[start : start + 512], crop, encoding)
    return files


def _flat_file(folder: Path, faces: "Sequence[FaceRow]") -> Path:
    """The crops one after the other, without anything that says what they are or whether they are whole."""
    path = folder / "crops.bin"
    with open(path, "wb") as stream:
        for face in faces:
            stream.write(face.crop.pixels.tobytes())
    return path


def gathered(flat: Path, count: int, crop: CropSpec, batch: int, seed: int) -> "Iterator[tuple[Tensor, Tensor]]":
    """One shuffled epoch of a memory-mapped file: (images, angles) a batch."""
    import numpy as np
    import torch

    side = crop.stored_size
    images, angles = np.memmap(flat, np.uint8, "r", shape=(count, side, side, 3)), np.zeros((count, 3), np.float32)
    order = np.random.default_rng(seed + 1).permutation(count)
    for start in range(0, count - batch + 1, batch):
        rows = order[start : start + batch]
        yield torch.from_numpy(images[rows]), torch.from_numpy(angles[rows])


def epoch(files: Sequence[Path], batch: int) -> "Iterator[tuple[Tensor, Tensor]]":
    """One shuffled epoch of freshly opened shards: (images, angles) a batch."""
    from hpe_core.data.batch import FaceData

    for part in FaceData(files).shuffled(batch, seed=0, epoch=0):
        yield part.images_BHWC, part.angles_B3


def shard_side(name: str, files: Sequence[Path], batch: int) -> Side:
    """Faces a second of a first epoch (shards opened and read) and of four later ones (rows resident)."""
    from hpe_core.data.batch import FaceData

    def timed(turn: int) -> dict[str, float]:
        began = time.perf_counter()
        data = FaceData(files)
        count = consumed(part.images_BHWC for part in data.shuffled(batch, seed=turn + 1, epoch=0))
        middle = time.perf_counter()
        later = sum(
            consumed(part.images_BHWC for part in data.shuffled(batch, seed=turn + 1, epoch=i)) for i in range(1, 5)
        )
        return {f"{name} first": count / (middle - began), f"{name} later": later / (time.perf_counter() - middle)}

    return timed


def loader_side(name: str, make: Callable[[], Any]) -> Side:
    """Faces a second of one epoch of the DataLoader that `make` gives: one whose workers run already, or a new one."""
    return rate(name, lambda _: consumed(images for images, _ in make()))


def consumed(batches: "Iterable[Tensor]") -> int:
    """Faces in the batches; every picture's middle pixel is touched."""
    count = 0
    for images in batches:
        count += len(images)
        int(images[:, images.shape[1] // 2, images.shape[2] // 2].sum())
    return count


def checksum(batches: "Iterable[tuple[Tensor, Tensor]]") -> list[int]:
    """The sum of each picture's pixels over an epoch, sorted: equal for the same pictures in any order."""
    import torch

    return sorted(torch.cat([images.flatten(1).sum(1, dtype=torch.int64) for images, _ in batches]).tolist())


def loader(lab: Lab, boxes: "Sequence[Box]", crop: CropSpec, batch: int, workers: int) -> Any:
    """A plain DataLoader over the image files: read, decode, one warp. Boxes and poses are in memory already."""
    from torch.utils.data import DataLoader

    poses = [lab.heads[i % len(lab.heads)].pose for i in range(len(boxes))]
    files = ImageFiles(lab.pictures, boxes, poses, crop)
    running = workers > 0
    return DataLoader(
        typing.cast("Dataset[Any]", files),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=running,
    )


class ImageFiles:
    """Map-style dataset over image files: (stored, stored, 3) uint8 canonical crop, (3,) float32 degrees."""

    def __init__(self, paths: Sequence[Path], boxes: "Sequence[Box]", poses: Sequence[Any], crop: CropSpec) -> None:
        self.paths, self.boxes, self.poses, self.crop = paths, boxes, poses, crop
        self.plain = replace(crop, box_scale=1.0)  # the boxes are network boxes already

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> "tuple[Image, np.ndarray]":
        import numpy as np

        from hpe_core.geometry.crop import canonical_crop

        image = read_rgb(self.paths[index])
        return canonical_crop(image, self.boxes[index], self.plain).pixels, np.asarray(self.poses[index], np.float32)


def stream(lab: Lab) -> list[Row]:
    """One worker's epoch through Ray Data (`data.ingest=ray_data`), against rows that the worker reads itself."""
    from hpe_core.data.batch import FaceData, TrainFaces
    from workflows.training.stream import StreamedFaces

    crop, count = CropSpec(112, 15), STREAMED * lab.faces
    faces = lab.rows(crop)
    many = [replace(faces[i % len(faces)], sample_id=f"{i:06d}") for i in range(count)]
    files = _shards(lab.scratch(), many, crop, "raw")
    lab.cluster_seconds  # noqa: B018  # started before anything is timed
    streamed, kept = StreamedFaces(files, stream_shards=max(1, len(files) // 4)), FaceData(files)

    def batches(data: TrainFaces, number: int) -> "Iterator[tuple[Tensor, Tensor]]":
        return ((part.images_BHWC, part.angles_B3) for part in data.shuffled(BATCH, seed=0, epoch=number))

    def side(name: str, data: Callable[[], TrainFaces]) -> Side:
        return rate(name, lambda turn: consumed(images for images, _ in batches(data(), turn + 1)))

    must_agree(checksum(batches(streamed, 0)) == checksum(batches(kept, 0)), "pixels of one epoch")
    sides = [side("stream", lambda: streamed), side("first", lambda: FaceData(files)), side("later", lambda: kept)]
    found = interleaved(sides, lab.few)
    counted = f"an epoch of {count} faces of 142 px in batches of {BATCH}, in four groups; files in the page cache"
    name = "read raw shards through Ray Data, one task"
    return [
        Row(name, "faces/s", found["stream"], found[rival], said, counted)
        for rival, said in (("first", "read by the worker itself, first epoch"), ("later", "rows resident"))
    ]


# ---------------------------------------------------------------- 5. offset windows


def windows(lab: Lab) -> list[Row]:
    """Windows of the canonical crop against one warp of the 450 px picture for each offset, in two ways.

    From the picture: the canonical crop is cut, and each offset is a view of it, which the network's first operation
    reads as it lies (the ensemble's row shows that this costs nothing). From the stored crop: each offset is copied
    into a batch, which nobody does here; it is what a program would pay that wants its batches contiguous.
    """
    grids = [(size, k, d) for k, d in ((15, 5), (8, 1)) for size in (224, 112)]
    return [row for grid in grids for row in (_crop_stage(lab, *grid), _windows_of(lab, *grid))]


def _crop_stage(lab: Lab, size: int, radius: int, step: int) -> Row:
    from hpe_core.geometry.crop import canonical_crop, offset_grid, window

    offsets, heads = offset_grid(radius, step), lab.heads[:2]
    spec, bare = CropSpec(size, radius), CropSpec(size, 0)

    def from_views(turn: int) -> int:
        made = 0
        for _ in range(20):  # for a time that a clock can tell
            for head in heads:
                pixels = canonical_crop(head.image, head.box, spec).pixels
                made += len([window(pixels, size, dx, dy) for dx, dy in offsets])
        return made

    def from_warps(turn: int) -> int:
        made = 0
        for head in heads:
            crop = canonical_crop(head.image, head.box, bare)
            places = [head.box.moved(dx * crop.scale_x, dy * crop.scale_y) for dx, dy in offsets]
            made += len([canonical_crop(head.image, place, bare).pixels for place in places])
        return made

    found = interleaved([rate("ours", from_views), rate("rival", from_warps)], lab.repeat)
    counted = (
        f"picture of {PICTURE_PX} px in memory to the {len(offsets)} windows of a face that the network reads: one "
        f"warp to {spec.stored_size} px and {len(offsets)} views of it, against {len(offsets)} warps to {size} px"
    )
    name = f"crop stage K={radius}, d={step}, {size} px"
    return Row(name, "windows/s", found["ours"], found["rival"], "one warpAffine an offset and face", counted)


def _windows_of(lab: Lab, size: int, radius: int, step: int) -> Row:
    from hpe_core.geometry.crop import offset_grid

    offsets = offset_grid(radius, step)
    count = min(DISTINCT if len(offsets) < 100 else 8, len(lab.heads))
    stored, pairs = window_sides(lab.heads[:count], size, radius)
    for dx, dy in offsets:
        must_agree(grey_levels(pairs["windows"](dx, dy), pairs["warps"](dx, dy)) <= 1, f"window ({dx}, {dy})")

    def all_of(name: str, passes: int) -> Callable[[int], int]:
        """Windows made; the fast side goes round several times, for a time that a clock can tell."""

        def visit(turn: int) -> int:
            return sum(len(pairs[name](dx, dy)) for _ in range(passes) for dx, dy in offsets)

        return visit

    found = interleaved([rate("ours", all_of("windows", 10)), rate("rival", all_of("warps", 1))], lab.repeat)
    counted = (
        f"{count} faces x {len(offsets)} windows, each copied into one contiguous uint8 batch on both sides; decode "
        f"({stored} px crop, {PICTURE_PX} px picture in memory) left out; equal to one grey level"
    )
    name = f"windows copied K={radius}, d={step}, {size} px"
    return Row(name, "windows/s", found["ours"], found["rival"], "one warpAffine an offset and face", counted)


def window_sides(
    heads: "Sequence[RenderedHead]", size: int, radius: int
) -> "tuple[int, dict[str, Callable[[int, int], Image]]]":
    """Side of the stored crops, and (dx, dy) -> the (B, size, size, 3) batch of that offset, by window and by warp."""
    import numpy as np

    from hpe_core.geometry.crop import canonical_crop, window

    spec, bare = CropSpec(size, radius), CropSpec(size, 0)
    crops = [canonical_crop(head.image, head.box, spec) for head in heads]
    stored = np.stack([crop.pixels for crop in crops])
    shape = (len(heads), size, size, 3)
    mine, theirs = np.empty(shape, np.uint8), np.empty(shape, np.uint8)

    def by_window(dx: int, dy: int) -> "Image":
        np.copyto(mine, window(stored, size, dx, dy))
        return mine

    def by_warp(dx: int, dy: int) -> "Image":
        for i, (head, crop) in enumerate(zip(heads, crops, strict=True)):
            theirs[i] = canonical_crop(head.image, head.box.moved(dx * crop.scale_x, dy * crop.scale_y), bare).pixels
        return theirs

    return spec.stored_size, {"windows": by_window, "warps": by_warp}


def grey_levels(a: "Image", b: "Image") -> int:
    """The largest difference between two uint8 batches."""
    import cv2

    return int(cv2.absdiff(a.reshape(-1, 3), b.reshape(-1, 3)).max())


# ---------------------------------------------------------------- 6. the offset ensemble


def ensemble(lab: Lab) -> list[Row]:
    """The whole offset ensemble, against as many bare forwards of batches that lie ready."""
    import torch

    from hpe_core.geometry.crop import canonical_crop, offset_grid, window
    from hpe_core.learning.ensemble import ensemble_probs
    from hpe_core.learning.models import PoseNet

    spec, (radius, step) = CropSpec(112, 15), (15, 5)
    labels = LabelSet(("",), radius, step)
    torch.manual_seed(0)
    net = PoseNet(NetSpec("resnet18"), spec.size).eval()
    heads = lab.heads[:4]
    crops = torch.stack([torch.from_numpy(canonical_crop(h.image, h.box, spec).pixels) for h in heads])
    ready = [window(crops, spec.size, dx, dy).contiguous() for dx, dy in offset_grid(radius, step)]

    def ours(turn: int) -> int:
        ensemble_probs({"": net}, crops, spec.size, [labels])
        return len(ready) * len(crops)

    @torch.inference_mode()
    def rival(turn: int) -> int:
        return sum(len(net.predict(batch)) for batch in ready)

    with torch.inference_mode():
        mean = torch.stack([net.predict(batch) for batch in ready]).mean(0)
    both = ensemble_probs({"": net}, crops, spec.size, [labels])[labels]
    must_agree(torch.allclose(both, mean, atol=1e-5), "the ensemble's probabilities")
    found = interleaved([rate("ours", ours), rate("rival", rival)], lab.few)
    counted = f"ResNet18, {len(crops)} faces x {len(ready)} windows of 112 px: slicing, forward, softmax, running mean"
    name = f"offset ensemble K={radius}, d={step}"
    return [Row(name, "windows/s", found["ours"], found["rival"], "forwards of ready batches", counted)]


# ---------------------------------------------------------------- 7. training


def train(lab: Lab) -> list[Row]:
    """The training loop in a Ray Train worker, against the same loop in a fresh process without Ray."""
    job = training_job(lab)
    lab.cluster_seconds  # noqa: B018  # started before anything is timed
    runs: dict[str, list[Run]] = {"ours": [], "rival": []}

    def side(who: str, run: "Callable[[Lab, Job], Run]") -> Side:
        def timed(turn: int) -> dict[str, float]:
            one = run(lab, job)
            runs[who].append(one)
            return {f"{who} {name}": value for name, value in one.figures.items()}

        return timed

    found = interleaved([side("ours", train_with_ray), side("rival", train_alone)], lab.few, warm=False)
    must_agree(len({tuple(run.curve) for some in runs.values() for run in some}) == 1, "validation errors by epoch")
    say(f"  Ray: {lab.cluster_seconds:.1f} s to start the cluster")
    optim, plain = job.spec.optim, "hpe_core.learning.loop.fit in a fresh process"
    what = f"{job.spec.net.backbone}, {job.data.crop.size} px, epochs 2 to {optim.epochs} of {training_rows(lab)} faces"

    def row(name: str, unit: str, figure: str, counted: str) -> Row:
        return Row(name, unit, found[f"ours {figure}"], found[f"rival {figure}"], plain, counted)

    start = (
        "from the call to the first batch: processes, imports, network; "
        f"not counted: Ray's cluster, {lab.cluster_seconds:.1f} s once"
    )
    return [
        row("train under Ray, inside epochs", "faces/s", "inside", f"{what}, with validation; 1 worker, 1 thread"),
        row("train under Ray, epoch to epoch", "faces/s", "across", f"{what}, with validation, checkpoint and report"),
        row(
            "train under Ray, CPU time", "faces/CPU s", "cpu", f"{what}; CPU time of the worker's process, all threads"
        ),
        row("train under Ray, start-up", "s", "start", start),
    ]


@dataclass(frozen=True)
class Run:
    """One training run: when it was asked for, and (time, figures) of each epoch's end."""

    began: float
    ends: list[tuple[float, dict[str, float]]]
    faces: int  # of one epoch

    @property
    def curve(self) -> list[float]:
        return [round(metrics["val/mae"], 3) for _, metrics in self.ends]

    @property
    def figures(self) -> dict[str, float]:
        """Faces a second inside epochs, from one epoch's end to the next, and of CPU time; start-up, s.

        The first epoch is left out of the rates: it reads the shards and warms the libraries.
        """
        times, seconds = [when for when, _ in self.ends], [metrics["epoch_seconds"] for _, metrics in self.ends]
        cpu = self.ends[-1][1]["cpu_seconds"] - self.ends[0][1]["cpu_seconds"]
        faces = self.faces * (len(self.ends) - 1)
        return {
            "inside": faces / sum(seconds[1:]),
            "across": faces / (times[-1] - times[0]),
            "cpu": faces / cpu,
            "start": times[0] - seconds[0] - self.began,
        }


class Stamping(Reporter):
    """Adds to each epoch's figures the CPU seconds that the worker's process has used, all its threads together."""

    def metrics(self, key: str, values: Mapping[str, float], step: int, when_ms: int | None = None) -> None:
        super().metrics(key, {**values, "cpu_seconds": time.process_time()}, step, when_ms)


def training_rows(lab: Lab) -> int:
    """Faces of an epoch: as many as in the archive, in whole batches."""
    return max(1, lab.faces // BATCH) * BATCH


def training_job(lab: Lab) -> "Job":
    """The demo's student on shards that hold the archive's faces."""
    from workflows.training.jobs import Job

    crop, folder = CropSpec(64, 8), lab.scratch()
    faces = lab.rows(crop)
    for split, count in (("train", training_rows(lab)), ("val", BATCH)):
        many = [replace(faces[i % len(faces)], sample_id=f"{split}-{i:06d}") for i in range(count)]
        _shards(folder / f"heads.{split}", many, crop, "raw")
    spec = TrainSpec(
        NetSpec("test_resnet"),
        OptimSpec(epochs=4, batch_size=BATCH, lr=0.002),
        AugmentSpec(turn_deg=10.0, jitter_px=4),
        mse_weight=0.01,
    )
    return Job("benchmark", "student", spec, lab.data(crop), folder, None)


def train_with_ray(lab: Lab, job: "Job") -> Run:
    """run_ray_train with one worker; the epochs' ends are read from the board that workers report to."""
    import ray

    from workflows.tracking.progress import start_board
    from workflows.training.networks import run_ray_train

    board, _ = start_board()
    stage = stage_run(lab, job, Stamping(board))
    began = time.time()
    run_ray_train(job, stage, lab.scratch())
    events = ray.get(board.drain.remote(), timeout=60)
    ray.kill(board)
    ends = [(when / 1000, values) for kind, body in events if kind == "metrics" for _, values, _, when in [body]]
    return Run(began, ends, training_rows(lab))


def stage_run(lab: Lab, job: "Job", reporter: Reporter) -> Any:
    """What the driver of Ray Train reads of a stage: the cluster's shape and the reporter."""
    from workflows.engine.results import Results
    from workflows.engine.stage import StageRun

    student = replace(job.spec, distill=DistillSpec())
    spec = PipelineSpec("benchmark", job.data, {"student": job.spec}, student, cluster=CLUSTER, store=str(lab.folder))
    return StageRun("benchmark", "benchmark", spec, lab.folder, {}, {}, Results({}), reporter)


def train_alone(lab: Lab, job: "Job") -> Run:
    """The same loop in a process of its own, with a checkpoint after each epoch and nobody to report to."""
    from workflows.training.jobs import as_plain

    out = lab.scratch()
    began = time.time()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=plain_worker, args=(as_plain(job), str(out)), daemon=True)  # ends with this one
    process.start()
    process.join()
    must_agree(process.exitcode == 0, f"the plain loop ended with exit code {process.exitcode}")
    return Run(began, [(when, row) for when, row in json.loads((out / "ends.json").read_text())], training_rows(lab))


def plain_worker(job: dict[str, Any], folder: str) -> None:
    """Body of the rival's process: what workflows.training.networks.train_worker does, without Ray."""
    import torch

    from hpe_core.learning.loop import EpochEnd, fit
    from workflows.training.jobs import from_plain, open_data

    torch.set_num_threads(1)
    ends: list[tuple[float, dict[str, float]]] = []

    def on_epoch(end: EpochEnd) -> None:
        ends.append((time.time(), {**end.metrics, "cpu_seconds": time.process_time()}))
        end.save(Path(folder))

    whole = from_plain(job)
    train_rows, val_rows = open_data(whole)
    fit(whole.spec, whole.data.crop, train_rows, val_rows, on_epoch=on_epoch)
    (Path(folder) / "ends.json").write_text(json.dumps(ends))


# ---------------------------------------------------------------- the table


BENCHMARKS: dict[str, Callable[[Lab], list[Row]]] = {
    "render": render,
    "windows": windows,
    "ensemble": ensemble,
    "read": read,
    "write": write,  # the first to start Ray: an idle cluster takes a few percent of a core from the others
    "memory": memory,
    "stream": stream,
    "train": train,
}


def chosen(names: Sequence[str]) -> list[str]:
    """The benchmarks named, or all, in the order of BENCHMARKS. Raises SpecError for an unknown name."""
    for name in names:
        if name not in BENCHMARKS:
            raise SpecError(f"unknown benchmark '{name}'{nearest(name, list(BENCHMARKS))}")
    return [name for name in BENCHMARKS if name in names or not names]


def measure(names: Sequence[str], faces: int, repeat: int) -> list[Row]:
    """Run benchmarks one after the other in a temporary folder that is removed at the end."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="hpe-benchmark-") as folder, ExitStack() as stack, one_thread():
        lab = Lab(Path(folder), faces, repeat, stack)
        for name in names:
            began = time.perf_counter()
            made = BENCHMARKS[name](lab)
            rows += made
            say(f"{name}: {time.perf_counter() - began:.0f} s")
            for row in made:  # so that a run that is cut off has not measured in vain
                say(f"  {row.name} / {row.rival_is}: {ratio_text(row)}")
    return rows


def machine() -> dict[str, Any]:
    """Cores, processor and versions: what a reader needs to judge the rates. No name of the machine."""
    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    names = {"torch": "torch", "ray": "ray", "opencv": "opencv-python-headless", "pyarrow": "pyarrow", "numpy": "numpy"}
    versions = {"python": platform.python_version()}
    for name, package in names.items():
        try:
            versions[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return {"cores": os.cpu_count(), "cpu": cpu, "versions": versions}


def number(value: float) -> str:
    """Three figures: 12,300; 456; 7.89; 0.0123."""
    if value >= 100:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def markdown(rows: Sequence[Row]) -> str:
    """The table as the README prints it: medians, and the ratio's median with its range."""
    lines = ["| benchmark | ours | rival | ratio | what is counted |", "|---|---|---|---|---|"]
    for row in rows:
        ours = f"{number(statistics.median(row.ours))} {row.unit}"
        rival = f"{number(statistics.median(row.rival))} {row.unit} ({row.rival_is})"
        lines.append(f"| {row.name} | {ours} | {rival} | {ratio_text(row)} | {row.counted}; {len(row.ours)} repeats |")
    return "\n".join(lines)


def ratio_text(row: Row) -> str:
    return f"{number(statistics.median(row.ratios))} ({number(min(row.ratios))}..{number(max(row.ratios))})"


def machine_line(report: Mapping[str, Any]) -> str:
    about = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    load = f"load {report['load'][0]:.1f} before and {report['load'][1]:.1f} after"
    return f"{about['cores']} cores, {about['cpu']}; {versions}; {load}; {report['seconds']:.0f} s in all."


def as_json(row: Row) -> dict[str, Any]:
    ratios = row.ratios
    spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {**asdict(row), "ratio": spread}


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(__doc__ or "", "", {0: "done", EXIT_FAILED: "two sides differ", EXIT_BAD_INPUT: "bad input"})
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none is all")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")
    parser.add_argument("--faces", type=int, default=1024, metavar="N", help="pictures in the archive (default 1024)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="pairs, half for long ones (default 5)")
    args = parser.parse_intermixed_args(argv)
    names = chosen(args.names)
    check(args.faces >= 16, f"--faces must be at least 16, got {args.faces}")
    check(args.repeat >= 1, f"--repeat must be at least 1, got {args.repeat}")
    load, began = os.getloadavg()[0], time.perf_counter()
    rows = measure(names, args.faces, args.repeat)
    report = {
        "machine": machine(),
        "load": [load, os.getloadavg()[0]],
        "settings": {"names": names, "faces": args.faces, "repeat": args.repeat},
        "seconds": time.perf_counter() - began,
        "rows": [as_json(row) for row in rows],
    }
    print(json.dumps(report, indent=1) if args.json else f"{markdown(rows)}\n\n{machine_line(report)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
