"""Benchmark of the training loop in a Ray Train worker, against the same loop in a fresh process without Ray."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.training import AugmentSpec, DistillSpec, OptimSpec, TrainSpec
from workflows.bench.shared.children import Noting, alone, train_here
from workflows.bench.shared.common import Row, Side, interleaved, must_agree, rows_of
from workflows.bench.shared.lab import BATCH, CLUSTER, Lab, shards_in
from workflows.engine.results import Results
from workflows.engine.stage import StageRun
from workflows.training.jobs import Job
from workflows.training.networks import run_ray_train

End = tuple[float, dict[str, float]]  # when an epoch ended, and its figures
RIVAL = "hpe_core.training.loop.fit in a fresh process"


def train(lab: Lab) -> list[Row]:
    job, cluster, curves = training_job(lab), lab.cluster(), set()

    def side(who: str, work: Callable[[Job, Path], None]) -> Side:
        def timed(turn: int) -> dict[str, float]:
            notes, began = lab.scratch() / "notes", time.time()
            work(job, notes)
            ends = [(when, metrics) for when, metrics in map(json.loads, notes.read_text().splitlines())]
            curves.add(tuple(round(metrics["val/mae"], 3) for _, metrics in ends))
            return {f"{who} {name}": value for name, value in figures(began, ends, epoch_faces(lab)).items()}

        return timed

    found = interleaved([side("ours", by_ray), side("rival", by_itself)], lab.few, warm=False)
    must_agree(len(curves) == 1, "validation errors by epoch")
    net, epochs = job.spec.net.backbone, job.spec.optim.epochs
    what = f"{net}, {job.data.crop.size} px, epochs 2 to {epochs} of {epoch_faces(lab)} faces"
    start = "from the call to the first batch: processes, imports, network; not counted: Ray's cluster"

    def line(name: str, unit: str, figure: str, counted: str) -> tuple[str, str, str, str, str, str]:
        return f"train under Ray, {name}", unit, f"ours {figure}", f"rival {figure}", RIVAL, counted

    lines = [
        line("inside epochs", "faces/s", "inside", f"{what}, with validation; 1 worker, 1 thread"),
        line("epoch to epoch", "faces/s", "across", f"{what}, with validation, checkpoint and report"),
        line("CPU time", "faces/CPU s", "cpu", f"{what}; CPU time of the worker's process, all threads"),
        line("start-up", "s", "start", f"{start}, {cluster:.1f} s once"),
    ]
    return rows_of(found, lines)


def figures(began: float, ends: Sequence[End], faces: int) -> dict[str, float]:
    """Faces a second in epochs, from end to end, and of CPU time, but for the first epoch; seconds of the start-up."""
    times, rows = [when for when, _ in ends], [metrics for _, metrics in ends]
    counted = faces * (len(ends) - 1)
    return {
        "inside": counted / sum(row["epoch_seconds"] for row in rows[1:]),
        "across": counted / (times[-1] - times[0]),
        "cpu": counted / (rows[-1]["cpu_seconds"] - rows[0]["cpu_seconds"]),
        "start": times[0] - rows[0]["epoch_seconds"] - began,
    }


def epoch_faces(lab: Lab) -> int:
    """Faces of an epoch: as many as in the archive, in whole batches."""
    return max(1, lab.faces // BATCH) * BATCH


def training_job(lab: Lab) -> Job:
    """The demo's student on shards that hold the archive's faces."""
    crop, folder = CropSpec(64, 8), lab.scratch()
    faces = lab.rows(crop)
    for split, count in (("train", epoch_faces(lab)), ("val", BATCH)):
        many = [replace(faces[i % len(faces)], sample_id=f"{split}-{i:06d}") for i in range(count)]
        shards_in(folder / f"heads.{split}", many, crop)
    optim, augment = OptimSpec(epochs=4, batch_size=BATCH, lr=0.002), AugmentSpec(turn_deg=10.0, jitter_px=4)
    spec = TrainSpec(NetSpec("test_resnet"), optim, augment, mse_weight=0.01)
    return Job("benchmark", "student", spec, lab.data(crop), folder, None)


def by_ray(job: Job, notes: Path) -> None:
    """run_ray_train with one worker, for a stage that has what it reads of one: the cluster's shape and a reporter."""
    store, student = notes.parent, replace(job.spec, distill=DistillSpec())
    spec = PipelineSpec("benchmark", job.data, {"student": job.spec}, student, cluster=CLUSTER, store=str(store))
    run_ray_train(
        job, StageRun("student", "benchmark", spec, store, {}, {}, Results({}), Noting(notes)), store / "network"
    )


def by_itself(job: Job, notes: Path) -> None:
    with alone(1) as process:
        process.submit(train_here, job, notes).result()
