"""Stage "search": Ray Tune over distillation, offsets, optimiser and student backbone.

A trial is the plain loop of hpe_core inside one Tune function. The label sets of every searched (K, d) exist already,
so trials share them. Optuna proposes them in rounds, losers are stopped early, and the judge is the error on validation
identities: the test set is not opened here. Finished and half-done trials survive a kill of the driver, and what comes
out does not depend on it, nor on which trial was quicker (`searching/`).
"""

import dataclasses
import json
import pickle
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpe_core.learning.metrics import deciding
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec, student_with
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import TrainSpec
from hpe_core.system.files import write_json
from workflows.engine.cluster.connection import capacity, rows_bytes, worker_device
from workflows.engine.cluster.placement import placed
from workflows.engine.plan import leaves_of
from workflows.engine.results import SearchResult, Trial
from workflows.engine.stage import StageFailed, StageRun
from workflows.engine.told import trial_file, trial_name
from workflows.searching.proposals import NUMBER, decode_changes, first_point
from workflows.tracking.progress import Reporter, now_ms
from workflows.training.jobs import Job, online_teachers, open_data, soft_labels, weights
from workflows.training.networks import HISTORY, last_line, resend, resumed

# Tune's files below `tune/`: its settings, the trials, how many were made, and what the searcher knows.
STATE = ("tuner.pkl", "experiment_state-*.json", "search_gen_state-*.json", "searcher-state-*.pkl")


def depends(spec: PipelineSpec) -> dict[str, Any]:
    """The student's keys, the weights that it starts from, the search's own keys, and what decides batches."""
    student = to_dict(spec.student)
    del student["optim"]["epochs"]  # trials have the search's
    return {
        "student": student,
        "weights": weights({"student": spec.student}, spec.data.crop),
        "search": leaves_of(spec.search, "finalists") if spec.search.trials else "none",
        **spec.data.batching,
    }


def run(stage: StageRun) -> SearchResult:
    """Search; returns every trial, the best first."""
    from ray import tune

    search = stage.spec.search
    if not search.trials:
        return SearchResult()
    place = placed(stage.spec, stage.name, capacity(stage.spec.cluster))
    trainable = tune.with_resources(
        tune.with_parameters(
            trial,
            spec=to_dict(stage.spec),
            key=stage.key,
            folder=str(stage.folder),
            inputs={name: str(folder) for name, folder in stage.inputs.items()},
            reporter=stage.reporter,
            threads=place.threads,
        ),
        place.resources,
    )
    path = stage.folder / "tune"
    if restorable(path):
        tuner = tune.Tuner.restore(str(path), trainable=trainable, resume_unfinished=True)
    else:
        for left in (path, trial_file(stage.folder, 1).parent):
            shutil.rmtree(left, ignore_errors=True)
        tuner = tune.Tuner(
            trainable,
            param_space={},
            tune_config=rules(stage.spec, place.at_once),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(stage.folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=stage.spec.cluster.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=3),
            ),
        )
    results = tuner.fit()
    for result in results:  # a trial that was stopped early has not said so itself
        name = trial_name((result.config or {})[NUMBER])
        stage.reporter.ended(f"{stage.key}/{name}", "FAILED" if result.error else "FINISHED")
        if result.error:
            stage.reporter.say(f"  trial {name} failed: {last_line(result.error)}")
    ended = ranked(list(results), stage.spec)
    if not ended:
        shutil.rmtree(path, ignore_errors=True)  # whatever is mended now, the next run tries them again
        errors = [last_line(result.error) for result in results if result.error is not None]
        raise StageFailed(f"stage search: no trial finished: {errors[0] if errors else 'no reason given'}")
    for left in path.glob("*/checkpoint_*"):  # nobody goes on from them any more, and they are most of what lies here
        shutil.rmtree(left)
    costs = costs_of([trial.changes for trial in ended], stage.spec)
    trials = [
        dataclasses.replace(trial, parameters=cost["parameters"], latency_ms=cost["latency_ms"])
        for trial, cost in zip(ended, costs, strict=True)
    ]
    return SearchResult(tuple(trials), search.tried - len(trials))


def rules(spec: PipelineSpec, at_once: int) -> Any:
    """Tune's own settings: who proposes, how many trials, and when a loser is stopped."""
    from ray import tune

    from workflows.searching.rounds import AgainstEarlierRounds, Rounds

    return tune.TuneConfig(
        metric="val_error",
        mode="min",
        num_samples=spec.search.tried,
        search_alg=Rounds(spec, at_once),
        scheduler=AgainstEarlierRounds(spec),
        reuse_actors=True,
    )


def ranked(results: Sequence[Any], spec: PipelineSpec) -> list[Trial]:
    """The trials that did not fail, best first, of Tune's results in any order."""
    # Optuna is given the configured student's own settings first, and without a space there is nothing else.
    starts_from_own = not spec.search.space or bool(first_point(spec))
    trials = {}  # by number: where Tune's notes were cut off between two files, one trial may be there twice
    for result in results:
        metrics, config = result.metrics or {}, dict(result.config or {})
        if result.error is None and "val_error" in metrics:
            number = int(config.pop(NUMBER))
            trials[number] = Trial(
                trial=trial_name(number),
                changes=decode_changes(config),
                configured=starts_from_own and number == 1,
                best_val_error=float(metrics["best_val_error"]),
                epochs=int(metrics["training_iteration"]),
                seconds=float(metrics.get("time_total_s", 0.0)),
            )
    return sorted(trials.values(), key=lambda trial: (trial.best_val_error, trial.trial))


def costs_of(changes: list[dict[str, Any]], spec: PipelineSpec) -> list[dict[str, float]]:
    """Parameters and CPU time (one thread) of each trial's network: after the search, one at a time."""
    import ray

    nets = [student_with(spec.student, change).net for change in changes]
    measure = ray.remote(num_cpus=1)(cost)
    known = {net: ray.get(measure.remote(to_dict(net), spec.data.crop.size)) for net in dict.fromkeys(nets)}
    return [known[net] for net in nets]


def cost(net: dict[str, Any], size: int) -> dict[str, float]:
    from hpe_core.networks.models import PoseNet
    from hpe_core.training.latency import cpu_cost

    fresh = dataclasses.replace(build(NetSpec, net), pretrained="none")  # weights change no time
    return cpu_cost(PoseNet(fresh, size))


def restorable(folder: Path) -> bool:
    """Whether Tune's own files are all there, are whole, and say the same.

    It writes them in place and one after the other: a SIGKILL can leave half a one, or a new one beside an old one.
    """
    newest = [max(folder.glob(kind), default=None) for kind in STATE]
    if not all(file is not None and _is_whole(file) for file in newest):
        return False
    _, experiment, generator, searcher = (file.read_bytes() for file in newest if file is not None)
    trials = [json.loads(row[0]) for row in json.loads(experiment).get("trial_data", ())]
    ended = {trial["trial_id"] for trial in trials if trial["status"] in ("TERMINATED", "ERROR")}
    names, errors = pickle.loads(searcher)
    counted = pickle.loads(generator)["counter"]
    return {trial["trial_id"] for trial in trials} == set(names) and ended <= set(errors) and counted == len(names)


def _is_whole(file: Path) -> bool:
    data = file.read_bytes()
    if not file.name.startswith("experiment_state"):
        return data.endswith(b".")  # the last opcode of every pickle
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def trial_student(spec: PipelineSpec, changes: dict[str, Any]) -> TrainSpec:
    """The student with a trial's changes, for `search.epochs`; a warm-up takes a quarter of them at most."""
    student, epochs = student_with(spec.student, changes), spec.search.epochs
    warmup = min(student.optim.warmup_epochs, epochs / 4)
    return dataclasses.replace(student, optim=dataclasses.replace(student.optim, epochs=epochs, warmup_epochs=warmup))


def trial(
    config: dict[str, Any],
    spec: dict[str, Any],
    key: str,
    folder: str,
    inputs: dict[str, str],
    reporter: Reporter,
    threads: int = 1,
) -> None:
    """Body of a trial: the student with the proposed changes, for the search's number of epochs."""
    from ray import tune

    from hpe_core.training.loop import EpochEnd, fit
    from hpe_core.training.place import Place

    pipeline = build(PipelineSpec, spec)
    place = Place(worker_device(threads), rows_bytes=rows_bytes(pipeline.data.resident_gb))
    number = int(config[NUMBER])
    changes = decode_changes({key: value for key, value in config.items() if key != NUMBER})
    student = trial_student(pipeline, changes)
    name, run_key = f"trial {trial_name(number)}", f"{key}/{trial_name(number)}"
    folders = {stage: Path(place) for stage, place in inputs.items()}
    labels, online, _ = soft_labels(pipeline, student, folders)
    job = Job(run_key, name, student, pipeline.data, folders["shards"], labels, online)
    params = {**changes, "student": to_dict(student)}
    reporter.started(run_key, name, key, params)
    train, val = open_data(job, pipeline.cluster.readers_per_worker)
    checkpoint = tune.get_checkpoint()
    with tempfile.TemporaryDirectory() as scratch:
        resume, history = resumed(checkpoint, scratch)

        def on_epoch(end: EpochEnd) -> None:
            history.append({"epoch": end.epoch, "time_ms": now_ms(), **end.metrics})
            write_json(trial_file(Path(folder), number), {"params": params, "history": history})
            resend(reporter, run_key, history[-1:])
            error = end.metrics[deciding(end.metrics, "val/")]
            reporter.progress(name, end.epoch, student.optim.epochs, f"epochs, validation error {error:.2f}")
            with tempfile.TemporaryDirectory() as kept:
                end.save(Path(kept))
                write_json(Path(kept) / HISTORY, history)
                figures = {"val_error": error, "best_val_error": end.best_error}
                tune.report(figures, checkpoint=tune.Checkpoint.from_directory(kept))

        teachers = online_teachers(job, place.device)
        fit(student, job.data.crop, train, val, place=place, resume=resume, teachers=teachers, on_epoch=on_epoch)
    reporter.ended(run_key)
