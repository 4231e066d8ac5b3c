"""Hours, shards and memory of a run that is too large to try first, from its configuration and a few measured rates.

    hpe plan -c ehpnet --faces 350000 --gpus 8 --tflops 20 --shard-rate 354 --actors 32

Measured when it is asked: the arithmetic of every network, as PyTorch counts it in a step, and the CPU time that
augmenting one face takes. Told: how many faces there are, how many of them one shard actor writes in a second (the row
"write raw shards, Ray, steady" of `hpe benchmark write` divided by its actors, which is the number of cores there), and
how many TFLOP a second a GPU really does in these networks: train one epoch there, read `epoch_seconds` in MLflow, and
put in the number that gives the same.

Assumed: training is the sum of augmentation (one core a worker) and GPU, which overlap in part; reading costs nothing;
starting Ray, validation and a search's early stops are left out.
"""

import argparse
import dataclasses
import heapq
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hpe_core.datasets.base import FaceRow
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.errors import check
from hpe_core.geometry.crop import offset_grid
from hpe_core.spec.cluster import TRAINING
from hpe_core.spec.data import CropSpec, DatasetSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.training import AugmentSpec, LabelSet, TrainSpec
from hpe_core.system.memory import keep_freed_memory
from workflows.engine.placement import placed

CHANNELS, ANGLES, HALF = 3, 3, 2  # bytes of a stored pixel and of an fp16 number; angles of a label


@dataclass(frozen=True)
class Told:
    """What the command line says: faces to learn from (validation included), GPUs, and the two rates."""

    faces: int
    gpus: int
    tflops: float  # 1e12 floating-point operations a second that one GPU really does
    shard_rate: float  # faces a second and actor
    actors: int


@dataclass(frozen=True)
class Cost:
    """One stage: what its GPUs do in all, and the hours until its last job is done."""

    stage: str
    what: str
    gpu_hours: float
    hours: float


def train_faces(spec: PipelineSpec, told: Told) -> int:
    """Faces that are left to train on; the shares for validation and test are those of the first dataset."""
    first = spec.data.datasets[spec.data.train[0]]
    return int(told.faces * (1 - first.val - first.test))


@cache
def flops(net: NetSpec, size: int, *, backward: bool) -> int:
    """Floating-point operations of one face, a multiply-add as two; with `backward`, of a whole training step."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from hpe_core.learning.models import PoseNet

    model = PoseNet(dataclasses.replace(net, pretrained="none"), size).train(backward)
    faces = torch.zeros(2, size, size, CHANNELS, dtype=torch.uint8)  # one alone has no batch statistics
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        out = model(faces)
        if backward:
            sum(head.sum() for head in out.heads).backward()
    return int(counter.get_total_flops()) // len(faces)


@cache
def augment_seconds(augment: AugmentSpec, crop: CropSpec, net: NetSpec) -> float:
    """CPU seconds of one face on one core: this process's own time, so that a busy machine says the same."""
    import cv2
    import numpy as np
    import torch

    from hpe_core.data.augment import Augment
    from hpe_core.data.batch import PoseBatch
    from hpe_core.geometry.bins import AngleBins

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    keep_freed_memory()  # as the workers do
    heads = open_source(DatasetSpec("synthetic", count=8))
    faces = [face for face in load_directly(heads, crop, [*heads.refs()]) if isinstance(face, FaceRow)] * 16
    pixels = torch.from_numpy(np.stack([face.crop.pixels for face in faces]))
    batch = PoseBatch(pixels, torch.tensor([face.pose for face in faces]), torch.ones(len(faces), 2))
    change = Augment(augment, crop.size, AngleBins.covering(net.limit_deg, min(net.bin_widths)))
    random = np.random.default_rng(0)
    seconds = []
    for _ in range(4):  # the first imports albumentations and builds the chain
        began = time.process_time()
        change(batch, random)
        seconds.append(time.process_time() - began)
    return min(seconds) / len(faces)


def finished(seconds: Iterable[float], lanes: int) -> float:
    """When the last job ends, if `lanes` of them run at once and the next starts where one ends."""
    ends = [0.0] * lanes
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def training(spec: PipelineSpec, told: Told, train: TrainSpec, epochs: int, workers: int) -> tuple[float, float]:
    """(GPU seconds, wall seconds) of one network; with online labels its teachers are asked in every step."""
    size, faces = spec.data.crop.size, epochs * train_faces(spec, told)
    work = flops(train.net, size, backward=True)
    if train.distill is not None and train.distill.labels == "online":
        labels = spec.label_set(train)
        asked = sum(flops(spec.teachers[name].net, size, backward=False) for name in labels.teachers)
        work += asked * len(windows([labels])) * (1 + labels.mirrored)
    gpu = faces * work / (told.tflops * 1e12)
    return gpu, (gpu + faces * augment_seconds(train.augment, spec.data.crop, train.net)) / workers


def windows(sets: Iterable[LabelSet]) -> set[tuple[int, int]]:
    """Every window of these sets, each once."""
    return set().union(*(offset_grid(*labels.offsets) for labels in sets))


def costs(spec: PipelineSpec, told: Told) -> list[Cost]:
    """The stages that take time, in order. Raises SpecError where a network's workers do not fit into the GPUs."""
    size = spec.data.crop.size
    taught, learning = (placed(spec, name, {"CPU": math.inf, "GPU": told.gpus}) for name in TRAINING)
    shards = math.ceil(told.faces / spec.data.rows_per_shard)
    actors = min(told.actors, shards)
    found = [Cost("shards", f"{actors} actors", 0.0, told.faces / (told.shard_rate * actors) / 3600)]

    def stage(name: str, what: str, at_once: int, *rounds: Sequence[tuple[float, float]]) -> None:
        gpu = sum(job[0] for jobs in rounds for job in jobs)
        wall = sum(finished((job[1] for job in jobs), at_once) for jobs in rounds)
        most = min(at_once, max(len(jobs) for jobs in rounds))
        found.append(Cost(name, f"{what}, {most} at once", gpu / 3600, wall / 3600))

    trained = [training(spec, told, net, net.optim.epochs, taught.workers[1]) for net in spec.teachers.values()]
    stage("teachers", f"{len(trained)} networks", taught.at_once, trained)
    seen = 0
    for name, teacher in spec.teachers.items():
        sets = [labels for labels in spec.label_sets() if name in labels.teachers]
        views = len(windows(sets)) + len(windows([labels for labels in sets if labels.mirrored]))
        seen += views * flops(teacher.net, size, backward=False)
    gpu = train_faces(spec, told) * seen / (told.tflops * 1e12)
    per_gpu = (gpu / told.gpus, gpu / told.gpus)
    stage("labels", f"{len(spec.label_sets())} sets", told.gpus, [per_gpu] * told.gpus)
    if spec.search.trials:
        trial = training(spec, told, spec.student, spec.search.epochs, 1)
        at_once = min(spec.search.concurrent, told.gpus)  # trials that share a GPU do not make it faster
        stage("search", f"{spec.search.trials} trials", at_once, [trial] * spec.search.trials)
    student = training(spec, told, spec.student, spec.student.optim.epochs, learning.workers[1])
    if spec.search.ending == 1:
        stage("student", "distilled and hard", learning.at_once, [student] * 2)
    else:  # whose twin to train is known when the finalists have ended
        finalists = spec.search.ending
        stage("student", f"{finalists} finalists, then a hard twin", learning.at_once, [student] * finalists, [student])
    return found


def memory_gb(spec: PipelineSpec, told: Told) -> float:
    """Pixels of the training rows on one machine, or what streams of Ray Data hold of them for a network's workers."""
    return spec.data.machine_bytes(train_faces(spec, told), spec.cluster) / 1e9


def figures(spec: PipelineSpec, told: Told) -> dict[str, Any]:
    """Everything as numbers: data (GB are 1e9 bytes), each network's GFLOP and augmented faces a second, stages."""
    from hpe_core.geometry.bins import AngleBins

    crop, faces = spec.data.crop, train_faces(spec, told)
    bins = AngleBins.covering(spec.student.net.limit_deg, min(spec.student.net.bin_widths)).count
    networks = {
        name: {
            "forward_gflop": flops(train.net, crop.size, backward=False) / 1e9,
            "step_gflop": flops(train.net, crop.size, backward=True) / 1e9,
            "augmented_per_core_s": 1 / augment_seconds(train.augment, crop, train.net),
        }
        for name, train in {**spec.teachers, "student": spec.student}.items()
    }
    stages = costs(spec, told)
    whole = sum(cost.gpu_hours for cost in stages), sum(cost.hours for cost in stages)
    return {
        "faces": told.faces,
        "train_faces": faces,
        "shards": math.ceil(told.faces / spec.data.rows_per_shard),
        "side_px": crop.stored_size,
        "raw_gb": told.faces * CHANNELS * crop.stored_size**2 / 1e9,
        "label_set_gb": faces * ANGLES * bins * HALF / 1e9,
        "rows_gb": memory_gb(spec, told),
        "networks": networks,
        "stages": [dataclasses.asdict(cost) for cost in [*stages, Cost("together", "", *whole)]],
    }


def page(spec: PipelineSpec, told: Told) -> str:
    """The figures as text: data, networks, stages."""
    found, side = figures(spec, told), spec.data.crop.stored_size
    whose = "a network's streams in Ray's object store" if spec.data.ingest == "ray_data" else "rows, once a machine"
    less = ", less as JPEG" if spec.data.encoding == "jpeg" else ""
    pixels = f"{found['raw_gb']:.1f} GB of {side} x {side} pixels{less}"
    lines = [
        f"faces     {told.faces:,}, {found['train_faces']:,} of them to train on",
        f"shards    {found['shards']:,} of {spec.data.rows_per_shard} faces",
        f"disk      {pixels}; {found['label_set_gb']:.2f} GB a label set",
        f"memory    {found['rows_gb']:.1f} GB of {whose}",
        "",
        "network                 forward   training step   augmentation",
    ]
    for name, row in found["networks"].items():
        work = f"{row['forward_gflop']:5.2f} GFLOP     {row['step_gflop']:5.2f} GFLOP"
        lines.append(f"{name:<20} {work}   {row['augmented_per_core_s']:,.0f} faces/s and core")
    lines += ["", "stage       GPU hours    hours"]
    for row in found["stages"]:
        lines.append(f"{row['stage']:<10} {row['gpu_hours']:10.3g} {row['hours']:8.3g}   {row['what']}".rstrip())
    return "\n".join(lines)


RATES = (
    ("faces", int, "faces of the training datasets, validation included"),
    ("gpus", int, "GPUs of the cluster"),
    ("tflops", float, "TFLOP a second that one GPU really does, not its data sheet's"),
    ("shard-rate", float, "faces a second that one shard actor writes: the benchmark's row divided by its actors"),
    ("actors", int, "shard actors, one for each CPU of the cluster"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `plan` is told, all of it or nothing."""
    said = "for plan: what a run costs that is too large to try; all of them, and the datasets need not be here"
    group = parser.add_argument_group(said)
    for name, kind, said in RATES:
        group.add_argument(f"--{name}", type=kind, metavar="N", help=said)


def told_of(args: argparse.Namespace, spec: PipelineSpec) -> Told | None:
    """What the options say, or None if none was given. Raises SpecError for a part of them."""
    given = {name: getattr(args, name.replace("-", "_")) for name, _, _ in RATES}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    check(not missing, f"what a run costs needs {', '.join(missing)}, too")
    for name, value in given.items():
        check(value > 0, f"--{name} must be positive, got {value:g}")
    check(spec.cluster.share_of("teachers").gpus != 0, "this run uses no GPU: cluster.gpus_per_worker is 0")
    return Told(*given.values())
