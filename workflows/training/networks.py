"""Networks trained at the same time, each by its own Ray Train run.

A network lies in `<store>/networks/<hash>`, the hash taken over its own spec, its data, its labels and the code: a
changed teacher is trained anew, its neighbours are not. One that was cut off resumes from its last epoch. Ray Train
resumes silently by (storage path, name), so the hash is the name.

How training rows reach the workers is `data.ingest`; validation rows are read by every worker, whatever it says.
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpe_core.spec.network import MEANING, WEIGHTS
from hpe_core.spec.serde import build, to_dict
from hpe_core.system.files import file_sha256, known_json, read_json, write_json
from workflows.engine.cluster.connection import QUIET, capacity, rows_bytes, worker_device
from workflows.engine.cluster.placement import placed
from workflows.engine.cluster.trainer import trainer_of
from workflows.engine.results import NetworkResult
from workflows.engine.stage import StageFailed, StageRun
from workflows.engine.told import figures
from workflows.storage.begun import RESULT
from workflows.tracking.progress import now_ms
from workflows.training.jobs import Job, online_teachers, open_data

TOLD_EVERY_S = 1.0
# When a node is lost Ray asks for as many workers as before, for it learns of the loss up to 20 s later; only when it
# has waited this long for their room does it count again. Fixed workers wait for nodes that still have to start.
START_TIMEOUT, ELASTIC_START_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"
KEPT = (WEIGHTS, MEANING)
HISTORY = "history.json"  # in a checkpoint: the epochs so far


def train_all(jobs: Sequence[Job], stage: StageRun) -> dict[str, NetworkResult]:
    """Train all jobs at once; returns {name: result}. Raises StageFailed that names those that failed."""
    # A worker group that waits for room counts as failed after a while, so no more are started than have room.
    at_once = placed(stage.spec, stage.name, capacity(stage.spec.cluster)).at_once
    with ThreadPoolExecutor(min(len(jobs), at_once)) as pool:
        running = {job.name: pool.submit(train_one, job, stage) for job in jobs}
    failed = {name: future.exception() for name, future in running.items() if future.exception() is not None}
    if failed:
        reasons = "; ".join(f"{name}: {last_line(error)}" for name, error in failed.items())
        raise StageFailed(f"stage {stage.name}: {reasons} (finished networks are kept; the same command continues)")
    return {name: future.result() for name, future in running.items()}


def last_line(error: BaseException | None) -> str:
    """What went wrong, without the traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def train_one(job: Job, stage: StageRun) -> NetworkResult:
    """Train one network unless it exists, and copy it into `<stage>/<name>/`; returns its summary."""
    home = stage.spec.folder / "networks" / job.hash
    stage.reporter.started(job.key, f"{stage.name}: {job.name}", stage.key, to_dict(job.spec))
    result = kept_result(home)
    if result is None and (home / RESULT).exists():
        stage.reporter.say(f"  {job.name}: its files in {home} are damaged; it is trained anew")
    if result is not None:
        stage.reporter.say(f"  {job.name}: already trained, validation error {result.val_error:.2f}")
        resend(stage.reporter, job.key, result.history)
    else:
        try:
            result = run_ray_train(job, stage, home)
        except Exception:
            stage.reporter.ended(job.key, "FAILED")
            raise
    folder = stage.folder / job.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(home / name, folder / name)
    stage.reporter.ended(job.key)
    return result


def kept_result(home: Path) -> NetworkResult | None:
    """The result of a network that was trained before, if its files still are as they were written."""
    known = known_json(home / RESULT)
    if known is None:
        return None
    written = known.pop("files", {})  # an older result holds none: there the files are believed
    for name in KEPT:
        if not (home / name).is_file() or written.get(name) not in (None, file_sha256(home / name)):
            return None
    return build(NetworkResult, known)


def run_ray_train(job: Job, stage: StageRun, home: Path) -> NetworkResult:
    """One Ray Train run to its end; leaves the best weights, their meaning and the history in `home`."""
    import ray.train

    cluster, began = stage.spec.cluster, time.monotonic()
    place = placed(stage.spec, stage.name, capacity(cluster))
    threads, readers, (fewest, most) = place.threads, cluster.readers_per_worker, place.workers

    def fit() -> Any:
        discard_torn(home / "ray-train")
        os.environ[START_TIMEOUT] = QUIET[START_TIMEOUT] if fewest == most else ELASTIC_START_S
        trainer = trainer_of(
            most,
            train_worker,
            train_loop_config={
                "job": job,
                "reporter": stage.reporter,
                "threads": threads,
                "readers": readers,
                "checkpoint_s": cluster.checkpoint_s,
                "elastic": fewest < most,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=most if fewest == most else (fewest, most),
                use_gpu=place.gpus > 0,
                resources_per_worker=place.resources,
            ),
            run_config=ray.train.RunConfig(
                name="ray-train",
                storage_path=str(home),
                failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=3),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
        )
        return trainer.fit()

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
        history = read_json(Path(last) / HISTORY) or []
    trained = NetworkResult.of(history, time.monotonic() - began)
    files = {name: file_sha256(home / name) for name in KEPT}
    write_json(home / RESULT, {**to_dict(trained), "files": files})
    shutil.rmtree(home / "ray-train", ignore_errors=True)
    return trained


def discard_torn(folder: Path) -> None:
    """Remove a Ray Train run whose list of checkpoints a kill has torn: Ray would refuse the folder for ever."""
    try:
        read_json(folder / "checkpoint_manager_snapshot.json")
    except ValueError:
        shutil.rmtree(folder)


def resumed(checkpoint: Any, scratch: str) -> tuple[Path | None, list[dict[str, float]]]:
    """Where a checkpoint's files were laid, and its epochs so far; None and none where there is no checkpoint."""
    folder = None if checkpoint is None else Path(checkpoint.to_directory(scratch))
    return folder, [] if folder is None else read_json(folder / HISTORY) or []


def train_worker(config: dict[str, Any]) -> None:
    """Body of a Ray Train worker: the plain loop of hpe_core, its checkpoints reported to Ray."""
    import ray.train

    from hpe_core.training.loop import EpochEnd, fit
    from hpe_core.training.place import Place

    context = ray.train.get_context()
    job, reporter = config["job"], config["reporter"]
    device, room = worker_device(config["threads"]), rows_bytes(job.data.resident_gb)
    place = Place(device, context.get_world_rank(), context.get_world_size(), room)
    spec = replace(job.spec, optim=job.spec.optim.over(place.world))
    checkpoint = ray.train.get_checkpoint()
    with tempfile.TemporaryDirectory() as scratch:
        resume, history = resumed(checkpoint, scratch)
        if place.rank == 0:
            resend(reporter, job.key, history)  # what was on its way when everything was killed is not lost
        train, val = open_data(job, config["readers"])

        stored, stored_at = len(history), -math.inf

        def on_epoch(end: EpochEnd) -> None:
            nonlocal stored, stored_at
            counted = {"workers": float(place.world)} if config.get("elastic") else {}
            history.append({"epoch": end.epoch, "time_ms": now_ms(), **end.metrics, **counted})
            due = end.epoch == spec.optim.epochs or time.monotonic() - stored_at >= config["checkpoint_s"]
            if place.rank > 0 or not due:
                ray.train.report(end.metrics)
                return
            folder = Path(tempfile.mkdtemp())
            end.save(folder)
            write_json(folder / HISTORY, history)
            ray.train.report(  # Ray stores it while training goes on, and removes the folder
                end.metrics,
                checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                delete_local_checkpoint_after_upload=True,
            )
            resend(reporter, job.key, history[stored:])  # an epoch that would be trained again is not told
            stored, stored_at = len(history), time.monotonic()

        told = 0.0

        def on_step(seen: int, total: int) -> None:
            nonlocal told
            if place.rank == 0 and time.monotonic() - told >= TOLD_EVERY_S:
                told = time.monotonic()
                reporter.progress(job.name, seen, total, "faces")

        fit(
            spec,
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
        reporter.metrics(key, *figures(row))
