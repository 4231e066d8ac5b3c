"""Stages "teachers" and "student": networks trained at the same time, each by its own Ray Train run.

    python workflows/train.py teachers -c conf/demo.yaml         the teachers, where shards are finished
    python workflows/train.py student -c conf/demo.yaml          the student and its twin, where the search is

Teachers learn from hard labels (EHPNet eqs. 1-3 or offsets eq. 4). The student learns from soft labels with the
settings of the search's best trial. Short trials prefer what learns fast, so of several finalists (`search.finalists`)
the one with the smallest validation error after its whole training is the student. Its twin, with the same backbone,
budget, seed and augmentation, learns from hard labels alone: the difference between the two is what distillation is
worth.

A network lies in `<store>/networks/<hash>`, the hash taken over its own spec, its data, its labels and the code: a
changed teacher is trained anew, its neighbours are not. One that was cut off resumes from its last epoch. Ray Train
resumes silently by (storage path, name), so the hash is the name.

How training rows reach the workers is `data.ingest`; validation rows are read by every worker, whatever it says.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpe_core.allocator import keep_freed_memory
from hpe_core.plain import SpecError, build, to_dict
from hpe_core.rows import file_sha256, shard_files
from hpe_core.spec import ClusterSpec, DataSpec, LabelSet, NetSpec, PipelineSpec, TrainSpec, student_with
from workflows.cluster import capacity
from workflows.progress import now_ms
from workflows.stages import StageFailed, StageRun, code_hashes, read_json, write_json

if TYPE_CHECKING:
    from hpe_core.batch import FaceData, TrainFaces

KEPT = ("model.safetensors", "model.json")


@dataclass(frozen=True, eq=False)
class Job:
    """One network to train: everything a worker needs, as paths and plain values."""

    key: str  # of its MLflow run
    name: str
    spec: TrainSpec
    data: DataSpec
    shards: Path
    labels: Path | None = None  # folder of the label set, beside the shards' names
    online: tuple[LabelSet, Path] | None = None  # labels to be written in the training step, by the teachers there
    depends: str = ""  # hashes of shards, labels and code, for the network's own hash

    @property
    def hash(self) -> str:
        body = json.dumps([to_dict(self.spec), self.depends], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(body.encode()).hexdigest()[:12]}"


def run_teachers(stage: StageRun) -> dict[str, Any]:
    """Train every teacher; returns their histories and validation errors by name."""
    return {"networks": train_all([job_for(stage, name, spec) for name, spec in stage.spec.teachers.items()], stage)}


def run_student(stage: StageRun) -> dict[str, Any]:
    """Train the search's finalists to the end; the best of them is the student, and its hard-label twin learns, too."""
    chosen = finalists(stage.results["search"], stage.spec.search.finalists)
    students = [student_with(stage.spec.student, changes) for changes in chosen]
    if len(students) == 1:
        jobs = [job_for(stage, "distilled", students[0]), job_for(stage, "hard", hard_twin(students[0]))]
        return {"networks": train_all(jobs, stage), "spec": to_dict(students[0]), "finalists": []}
    names = [f"finalist-{place}" for place in range(1, len(students) + 1)]
    ended = train_all([job_for(stage, *each) for each in zip(names, students, strict=True)], stage)
    best = min(range(len(names)), key=lambda place: ended[names[place]]["val_mae"])
    shutil.rmtree(stage.folder / "distilled", ignore_errors=True)  # of a run that was cut off here
    (stage.folder / names[best]).rename(stage.folder / "distilled")
    for name in names:  # the store keeps every network that was trained
        shutil.rmtree(stage.folder / name, ignore_errors=True)
    twin = train_all([job_for(stage, "hard", hard_twin(students[best]))], stage)
    return {
        "networks": {"distilled": ended[names[best]], **twin},
        "spec": to_dict(students[best]),
        "finalists": [
            {"name": name, "changes": changes, "val_mae": ended[name]["val_mae"]}
            for name, changes in zip(names, chosen, strict=True)
        ],
    }


def finalists(search: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The changes of up to `count` trials, best first; of several, the configured student's own are one if tried."""
    ranked = [row["changes"] for row in search["trials"]] or [search["best"]["changes"]]
    chosen = [changes for place, changes in enumerate(ranked) if changes not in ranked[:place]][:count]
    own = next((row["changes"] for row in search["trials"] if row["configured"]), None)
    if count > 1 and own is not None and own not in chosen:
        chosen[-1] = own
    return chosen


def job_for(stage: StageRun, name: str, spec: TrainSpec) -> Job:
    """The job of one network of this stage, with soft labels where its spec distils."""
    labels, online, source = soft_labels(stage.spec, spec, stage.inputs)
    depends = [stage.hashes["shards"], *code_hashes(__name__).values(), stage.spec.cluster.workers]
    depends += stage.spec.data.batching.values()
    depends += [stage.hashes[source]] if source else []
    weights = weights_hash(spec.net)
    depends += [weights] if weights else []
    return Job(
        f"{stage.key}/{name}", name, spec, stage.spec.data, stage.inputs["shards"], labels, online, json.dumps(depends)
    )


def soft_labels(
    pipeline: PipelineSpec, spec: TrainSpec, inputs: Mapping[str, Path]
) -> tuple[Path | None, tuple[LabelSet, Path] | None, str]:
    """Where a network's soft labels come from: (their folder, or the teachers to ask, and the stage of either)."""
    if spec.distill is None:
        return None, None, ""
    labels = pipeline.label_set(spec)
    if spec.distill.labels == "online":
        return None, (labels, inputs["teachers"]), "teachers"
    return inputs["labels"] / labels.name, None, "labels"


def weights_hash(net: NetSpec) -> str:
    """Of the weights file that a network starts from, '' where it names none. Raises SpecError for a missing one."""
    if net.pretrained in ("none", "hub"):
        return ""
    if not Path(net.pretrained).is_file():
        raise SpecError(f"net.pretrained: there is no weights file {net.pretrained}")
    return file_sha256(Path(net.pretrained))


def hard_twin(student: TrainSpec) -> TrainSpec:
    """The same network, budget, seed and augmentation, without a teacher."""
    return dataclasses.replace(student, distill=None)


def train_all(jobs: Sequence[Job], stage: StageRun) -> dict[str, Any]:
    """Train all jobs at once; returns {name: result}. Raises StageFailed that names those that failed."""
    # A worker group that waits for room counts as failed after a while, so no more are started than have room.
    at_once = slots(stage.spec.cluster, readers_of(stage.spec))
    with ThreadPoolExecutor(min(len(jobs), at_once)) as pool:
        running = {job.name: pool.submit(train_one, job, stage) for job in jobs}
    failed = {name: future.exception() for name, future in running.items() if future.exception() is not None}
    if failed:
        reasons = "; ".join(f"{name}: {_first_line(error)}" for name, error in failed.items())
        raise StageFailed(f"stage {stage.name}: {reasons} (finished networks are kept; the same command continues)")
    return {name: future.result() for name, future in running.items()}


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def train_one(job: Job, stage: StageRun) -> dict[str, Any]:
    """Train one network unless it exists, and copy it into `<stage>/<name>/`; returns its summary."""
    home = stage.spec.folder / "networks" / job.hash
    stage.reporter.started(job.key, f"{stage.name}: {job.name}", stage.key, to_dict(job.spec))
    summary = read_json(home / "result.json")
    if summary is not None:
        stage.reporter.say(f"  {job.name}: already trained, validation MAE {summary['val_mae']:.2f}")
        resend(stage.reporter, job.key, summary["history"])
    else:
        try:
            summary = run_ray_train(job, stage, home)
        except Exception:
            stage.reporter.ended(job.key, "FAILED")
            raise
    folder = stage.folder / job.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(home / name, folder / name)
    stage.reporter.ended(job.key)
    return summary


def run_ray_train(job: Job, stage: StageRun, home: Path) -> dict[str, Any]:
    """One Ray Train run to its end; leaves the best weights, their meaning and the history in `home`."""
    import ray.train

    cluster, began = stage.spec.cluster, time.monotonic()

    def fit() -> Any:
        discard_torn(home / "ray-train")
        return make_trainer().fit()

    def make_trainer() -> Any:
        return trainer_class(cluster.workers)(
            train_worker,
            train_loop_config={
                "job": as_plain(job),
                "reporter": stage.reporter,
                "threads": cluster.threads_per_worker,
                "readers": cluster.readers_per_worker,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker=resources(cluster),
            ),
            run_config=ray.train.RunConfig(
                name="ray-train",
                storage_path=str(home),
                failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=3),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
        )

    for attempt in range(cluster.max_failures + 1):
        try:
            result = fit()
            break
        except Exception as error:
            # Ray Train restarts a worker that dies in the training loop; one that dies while its group is being set up
            # ends the run. The next run of this name goes on from the last checkpoint.
            if attempt == cluster.max_failures or "worker process has died" not in str(error):
                raise
            stage.reporter.say(f"  {job.name}: a worker died; going on from its last checkpoint")
    assert result.checkpoint is not None, "a finished run has reported a checkpoint"
    with result.checkpoint.as_directory() as last:
        for name in KEPT:
            shutil.copyfile(Path(last) / name, home / name)
        history = read_json(Path(last) / "history.json") or []
    summary = summary_of(history, time.monotonic() - began)
    write_json(home / "result.json", summary)
    shutil.rmtree(home / "ray-train", ignore_errors=True)
    return summary


def summary_of(history: Sequence[Mapping[str, float]], seconds: float) -> dict[str, Any]:
    """A trained network in figures; its weights are those of the first epoch with the smallest validation error."""
    best = min(history, key=lambda row: row["val/mae"])
    return {
        "val_mae": best["val/mae"],
        "best_epoch": best["epoch"],
        "epochs": len(history),
        "seconds": seconds,
        "history": list(history),
    }


def trainer_class(workers: int) -> Any:
    """Ray's TorchTrainer, which sets up the process group; for one worker its parent class, which needs none.

    TorchTrainer imports torch into the driver and into every controller, 0.4 GB each, and does nothing else for
    one worker.
    """
    if workers > 1:
        from ray.train.torch import TorchTrainer

        return TorchTrainer
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer


def discard_torn(folder: Path) -> None:
    """Remove a Ray Train run whose list of checkpoints is half written; the network then starts anew.

    Ray writes the list in place, so a SIGKILL can tear it, and from then on Ray refuses the folder for ever.
    """
    try:
        read_json(folder / "checkpoint_manager_snapshot.json")
    except ValueError:
        shutil.rmtree(folder)


def slots(cluster: ClusterSpec, readers: int = 0, *, workers: int = 0) -> int:
    """How many networks of so many workers (0: `cluster.workers`) the connected cluster can train at the same time.

    `readers` CPUs are left free beside each worker, which would else wait for its faces for ever.
    Raises SpecError for none.
    """
    have, need, workers = capacity(cluster), resources(cluster), workers or cluster.workers
    beside = need | {"CPU": need["CPU"] + readers}
    room = min(int(have[kind] / (amount * workers)) for kind, amount in beside.items())
    if room < 1:
        asked = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items())
        asked += f" with {readers} CPU each to read for them (data.ingest=ray_data)" if readers else ""
        there = ", ".join(f"{have[kind]:g} {kind}" for kind in need)
        raise SpecError(f"cluster: {workers} workers of {asked} do not fit into a cluster of {there}")
    return room


def readers_of(spec: PipelineSpec) -> int:
    """CPUs that read for each worker, beside those that it holds; 0 where workers read themselves."""
    return spec.cluster.readers_per_worker if spec.data.ingest == "ray_data" else 0


def resources(cluster: ClusterSpec) -> dict[str, float]:
    need = {"CPU": cluster.cpus_per_worker}
    return need | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})


def as_plain(job: Job) -> dict[str, Any]:
    """A job as plain values: what crosses to a worker does not depend on how this module was imported."""
    return {
        "key": job.key,
        "name": job.name,
        "spec": to_dict(job.spec),
        "data": to_dict(job.data),
        "shards": str(job.shards),
        "labels": None if job.labels is None else str(job.labels),
        "online": None if job.online is None else [list(job.online[0]), str(job.online[1])],
    }


def from_plain(tree: dict[str, Any]) -> Job:
    return Job(
        tree["key"],
        tree["name"],
        build(TrainSpec, tree["spec"]),
        build(DataSpec, tree["data"]),
        Path(tree["shards"]),
        None if tree["labels"] is None else Path(tree["labels"]),
        None if tree["online"] is None else (label_set(tree["online"][0]), Path(tree["online"][1])),
    )


def label_set(plain: Sequence[Any]) -> LabelSet:
    teachers, radius, step = plain
    return LabelSet(tuple(teachers), radius, step)


def train_worker(config: dict[str, Any]) -> None:
    """Body of a Ray Train worker: the plain loop of hpe_core, its checkpoints reported to Ray."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from hpe_core.loop import EpochEnd, Place, fit

    torch.set_num_threads(config["threads"])
    keep_freed_memory()
    context = ray.train.get_context()
    place = Place(get_device(), context.get_world_rank(), context.get_world_size())
    job, reporter = from_plain(config["job"]), config["reporter"]
    history: list[dict[str, float]] = []
    checkpoint = ray.train.get_checkpoint()
    with tempfile.TemporaryDirectory() as scratch:
        resume = None
        if checkpoint is not None:
            resume = Path(scratch)
            checkpoint.to_directory(scratch)
            history = read_json(resume / "history.json") or []
            if place.rank == 0:
                resend(reporter, job.key, history)  # what was on its way when everything was killed is not lost
        train, val = open_data(job, config["readers"])

        def on_epoch(end: EpochEnd) -> None:
            history.append({"epoch": end.epoch, "time_ms": now_ms(), **end.metrics})
            if place.rank > 0:
                ray.train.report(end.metrics)
                return
            with tempfile.TemporaryDirectory() as folder:
                end.save(Path(folder))
                write_json(Path(folder) / "history.json", history)
                ray.train.report(end.metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
            resend(reporter, job.key, history[-1:])  # after the checkpoint: an epoch that is not kept is not told

        def on_step(seen: int, total: int) -> None:
            if place.rank == 0 and clock.due():
                reporter.progress(job.name, seen, total, "faces")

        clock = _Every(1.0)
        fit(
            job.spec,
            job.data.crop,
            train,
            val,
            place=place,
            resume=resume,
            teachers=online_teachers(job, place.device),
            on_epoch=on_epoch,
            on_step=on_step,
        )
        if place.rank == 0:
            reporter.progress(job.name, 1, 1, "run, trained")


def resend(reporter: Any, key: str, history: Sequence[Mapping[str, float]]) -> None:
    """Figures of finished epochs, each with the time when it ended: however often they are sent, they count once."""
    for row in history:
        figures = {name: value for name, value in row.items() if name not in ("epoch", "time_ms")}
        reporter.metrics(key, figures, int(row["epoch"]), int(row["time_ms"]))


class _Every:
    """True at most once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, 0.0

    def due(self) -> bool:
        if time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True


def open_data(job: Job, readers: int = 1) -> "tuple[TrainFaces, FaceData]":
    """The training rows (with soft labels if the job has any) and the validation rows of a job.

    `readers` tasks read at the same time where Ray Data does.
    """
    from hpe_core.batch import FaceData, OwnFaces

    names = sorted(job.data.train)  # batches come from the order of files, and a network's hash knows no order of names
    files = [file for name in names for file in shard_files(job.shards, name, "train")]
    held_out = [file for name in names for file in shard_files(job.shards, name, "val")]
    labels = None if job.labels is None else [job.labels / file.parent.name / file.name for file in files]
    train: TrainFaces
    if job.data.ingest == "ray_data":
        from workflows.stream import StreamedFaces

        train = StreamedFaces(files, labels, job.data.stream_shards, readers)
    else:
        kind = OwnFaces if job.data.ingest == "own_shards" else FaceData
        train = kind(files, labels, resident_gb=job.data.resident_gb)
    return train, FaceData(held_out, resident_gb=job.data.resident_gb)


def online_teachers(job: Job, device: Any) -> Any:
    """The teachers that label each step's views, on the worker's device; None where labels are stored."""
    if job.online is None:
        return None
    from hpe_core.checkpoint import load_net
    from hpe_core.ensemble import OnlineTeachers

    labels, folder = job.online
    nets = {name: load_net(folder / name, device).net for name in labels.teachers}
    return OnlineTeachers(nets, job.data.crop.size, labels)


if __name__ == "__main__":
    from workflows.full_pipeline import stage_command

    sys.exit(stage_command(["teachers", "student"], __doc__ or "", sys.argv[1:]))
