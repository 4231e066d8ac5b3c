"""Hours, shards and memory of a run before it runs, from its configuration and a few rates.

    hpe plan -c demo --measure                                the cluster of this machine, by steps that it takes now
    hpe plan -c ehpnet --gpus 8 --rates gpu.json              by the table of `hpe benchmark gpu --json`
    hpe plan -c ehpnet --faces 350000 --gpus 8 --tflops 20 --shard-rate 354 --actors 32

Rates come from steps of the very networks on this machine, from that table, or as how many TFLOP a second a GPU really
does. The arithmetic of every network is counted by PyTorch. What is not told is counted or measured here: faces,
GPUs, cores, and how many faces a second are decoded, cropped and written.

Assumed: reading costs nothing; starting Ray, validation and a search's early stops are left out. Augmentation is in the
rates that are measured; a rate in TFLOP is told by whoever knows it.
"""

import argparse
import dataclasses
import heapq
import json
import math
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hpe_core.datasets.base import Source
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.errors import SpecError, check
from hpe_core.geometry.crop import offset_grid
from hpe_core.spec.cluster import TRAINING
from hpe_core.spec.data import CropSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.training import LabelSet, TrainSpec
from hpe_core.system.memory import keep_freed_memory
from workflows.engine.cluster.placement import placed

MEASURE_S, SAMPLE = 3.0, 32  # seconds for each network, and faces that are loaded
CHANNELS = 3  # bytes of a stored pixel


@dataclass(frozen=True)
class Told:
    """Faces to learn from (validation included), the cluster, and the rates."""

    faces: int
    gpus: int
    tflops: float  # 1e12 floating-point operations a second that one GPU really does; 0: networks are timed here
    shard_rate: float  # faces a second and actor
    actors: int

    @property
    def lanes(self) -> int:
        """What networks run on side by side."""
        return self.gpus or cores()

    @property
    def there(self) -> dict[str, float]:
        return {"CPU": math.inf if self.gpus else cores(), "GPU": self.gpus}


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


def finished(seconds: Iterable[float], lanes: int) -> float:
    """When the last job ends, if `lanes` of them run at once and the next starts where one ends."""
    ends = [0.0] * lanes
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


@cache
def timed(train: TrainSpec, crop: CropSpec, *, backward: bool) -> float:
    """Seconds a face of a training step with its augmentation, or of a pass forward, on this machine's device."""
    import torch

    from hpe_core.networks.models import PoseNet
    from hpe_core.training.place import Place
    from hpe_core.training.rate import forward_rate, noise, step_rate

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    keep_freed_memory()
    place = Place(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    spec = dataclasses.replace(train, net=dataclasses.replace(train.net, pretrained="none"), start="")
    rows = noise(crop, 2 * spec.optim.batch_size)
    if backward:
        return 1 / step_rate(spec, crop, rows, place, MEASURE_S)
    return 1 / forward_rate(PoseNet(spec.net, crop.size), rows, place, MEASURE_S)


def seconds_of(train: TrainSpec, spec: PipelineSpec, told: Told, *, backward: bool) -> float:
    """Of one face on one GPU, or one core where there is none: a training step or a pass forward."""
    from hpe_core.training.rate import flops

    if not told.tflops:
        alone = dataclasses.replace(train, distill=None)  # a student and its hard twin are timed once
        return timed(alone, spec.data.crop, backward=backward)
    return flops(train.net, spec.data.crop.size, backward=backward) / (told.tflops * 1e12)


def training(spec: PipelineSpec, told: Told, train: TrainSpec, epochs: int, workers: int) -> tuple[float, float]:
    """(GPU seconds, wall seconds) of one network; with online labels its teachers are asked in every step."""
    faces = epochs * train_faces(spec, told)
    step = seconds_of(train, spec, told, backward=True)
    if train.distill is not None and train.distill.labels == "online":
        labels = spec.label_set(train)
        asked = sum(seconds_of(spec.teachers[name], spec, told, backward=False) for name in labels.teachers)
        step += asked * len(windows([labels])) * (1 + labels.mirrored)
    return faces * step, faces * step / workers


def windows(sets: Iterable[LabelSet]) -> set[tuple[int, int]]:
    """Every window of these sets, each once."""
    return set().union(*(offset_grid(*labels.offsets) for labels in sets))


def costs(spec: PipelineSpec, told: Told) -> list[Cost]:
    """The stages that take time, in order. Raises SpecError where a network's workers do not fit into the GPUs."""
    taught, learning = (placed(spec, name, told.there) for name in TRAINING)
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
    seen = 0.0
    for name, teacher in spec.teachers.items():
        sets = [labels for labels in spec.label_sets() if name in labels.teachers]
        views = len(windows(sets)) + len(windows([labels for labels in sets if labels.mirrored]))
        seen += views * seconds_of(teacher, spec, told, backward=False)
    each = train_faces(spec, told) * seen / told.lanes
    stage("labels", f"{len(spec.label_sets())} sets", told.lanes, [(each, each)] * told.lanes)
    if spec.search.trials:
        trial = training(spec, told, spec.student, spec.search.epochs, 1)
        at_once = min(spec.search.concurrent, told.lanes)  # trials that share a GPU do not make it faster
        tried = spec.search.tried
        stage("search", f"{tried} trial{'s' * (tried > 1)}", at_once, [trial] * tried)
    alone = dataclasses.replace(spec.student, distill=None)  # a hard twin asks no teacher, whoever labels
    student, twin = (training(spec, told, net, net.optim.epochs, learning.workers[1]) for net in (spec.student, alone))
    ending = spec.search.ending
    twins = max(1, min(ending, learning.at_once - ending))  # beside the finalists where there is room, else the best's
    who = "distilled and hard" if ending == 1 else f"{ending} finalists and {twins} hard twin{'s' * (twins > 1)}"
    stage("student", who, learning.at_once, [student] * ending + [twin] * twins)
    return found


def figures(spec: PipelineSpec, told: Told) -> dict[str, Any]:
    """Everything as numbers: data (GB are 1e9 bytes), each network's GFLOP and augmented faces a second, stages."""
    from hpe_core.networks.heads import label_bytes
    from hpe_core.training.rate import flops

    crop, faces = spec.data.crop, train_faces(spec, told)
    networks = {
        name: {
            "forward_gflop": flops(train.net, crop.size, backward=False) / 1e9,
            "step_gflop": flops(train.net, crop.size, backward=True) / 1e9,
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
        "label_set_gb": faces * label_bytes(spec.student.net) / 1e9,
        "rows_gb": spec.data.machine_bytes(faces, spec.cluster) / 1e9,
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
        "network                 forward   training step",
    ]
    for name, row in found["networks"].items():
        lines.append(f"{name:<20} {row['forward_gflop']:5.2f} GFLOP     {row['step_gflop']:5.2f} GFLOP")
    lines += ["", f"stage      {'GPU' if told.gpus else 'core':>4} hours    hours"]
    for row in found["stages"]:
        lines.append(f"{row['stage']:<10} {row['gpu_hours']:10.3g} {row['hours']:8.3g}   {row['what']}".rstrip())
    return "\n".join(lines)


RATES = (
    ("faces", int, "faces of the training datasets, validation included; else they are counted"),
    ("gpus", int, "GPUs of the cluster; else those of this machine"),
    ("tflops", float, "TFLOP a second that one GPU really does, not its data sheet's"),
    ("shard-rate", float, "faces a second that one shard actor writes; else measured on the datasets' own"),
    ("actors", int, "shard actors, one for each CPU of the cluster; else the cores of this machine"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `plan` is told of costs."""
    group = parser.add_argument_group("for plan: what a run costs, by one of --measure, --rates and --tflops")
    group.add_argument("--measure", action="store_true", help="time steps of every network on this machine")
    group.add_argument("--rates", metavar="FILE", help="the output of hpe benchmark gpu --json")
    for name, kind, said in RATES:
        group.add_argument(f"--{name}", type=kind, metavar="N", help=said)


def told_of(args: argparse.Namespace, spec: PipelineSpec) -> Told | None:
    """What the options say, the rest counted and measured; None if they say nothing. Raises SpecError."""
    given = {name: getattr(args, name.replace("-", "_")) for name, _, _ in RATES}
    ways = [bool(args.measure), args.rates is not None, given["tflops"] is not None]
    if not any(ways) and all(value is None for value in given.values()):
        return None
    import torch

    check(sum(ways) == 1, "what a run costs needs one of --measure, --rates FILE and --tflops N")
    for name, value in given.items():
        check(value is None or value > 0, f"--{name} must be positive, got {value or 0:g}")
    gpus = torch.cuda.device_count() if given["gpus"] is None else given["gpus"]
    uses = spec.cluster.share_of("teachers").gpus != 0
    check(uses or args.measure, "this run uses no GPU: cluster.gpus_per_worker is 0; --measure plans it")
    check(gpus > 0 or args.measure, "there is no GPU here: --gpus says how many the cluster has")
    tflops = 0.0 if args.measure else given["tflops"] or tflops_of(Path(args.rates))
    faces = given["faces"] or sum(1 for source in sources(spec) for _ in source.refs())
    check(faces > 0, "no face was found in the training datasets; --faces says how many there are")
    rate = given["shard-rate"] or shard_rate(spec)
    return Told(faces, gpus if uses else 0, tflops, rate, given["actors"] or cores())


def tflops_of(file: Path) -> float:
    """What a GPU really did in the training steps of a table of `hpe benchmark gpu --json`: the median of its networks.

    Raises SpecError for a file that is no such table, or of a CPU or a part.
    """
    try:
        table = json.loads(file.read_text())
        found = [line["value"] * line["gflop"] / 1e3 for line in table["lines"] if line["gflop"]]
        on = table["device"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SpecError(f"--rates {file} is no table of hpe benchmark gpu --json") from None
    check(on != "CPU", f"--rates {file} was measured on a CPU; --measure plans this machine")
    check(bool(found), f"--rates {file} holds no rate of training: hpe benchmark gpu train --json")
    return statistics.median(found)


def sources(spec: PipelineSpec) -> list[Source]:
    return [open_source(spec.data.datasets[name]) for name in spec.data.train]


def shard_rate(spec: PipelineSpec) -> float:
    """Faces a second that one process loads and crops, of the first training dataset."""
    source = sources(spec)[0]
    some = sorted(source.refs())[:SAMPLE]
    said = f"no face was found in dataset '{spec.data.train[0]}' to measure by; --shard-rate says what an actor writes"
    check(bool(some), said)
    began = time.perf_counter()
    list(load_directly(source, spec.data.crop, some))
    return len(some) / (time.perf_counter() - began)


def cores() -> int:
    return os.cpu_count() or 1
