"""Stage "search": Ray Tune over distillation, offsets, optimiser and student backbone.

A trial is the plain loop of hpe_core inside one Tune function. The label sets of every searched (K, d) exist already,
so trials share them. Optuna proposes, ASHA stops the losers early, and the judge is the error on validation identities:
the test set is not opened here. Finished and half-done trials survive a kill of the driver.
"""

import ast
import dataclasses
import json
import operator
import shutil
import tempfile
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec, SearchSpace, student_with
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import TrainSpec
from hpe_core.system.files import read_json, write_json
from workflows.engine.cluster import capacity, worker_device
from workflows.engine.placement import placed
from workflows.engine.plan import leaves_of
from workflows.engine.results import SearchResult, Trial
from workflows.engine.stage import StageFailed, StageRun
from workflows.engine.told import trial_file
from workflows.tracking.progress import Reporter, now_ms
from workflows.training.jobs import Job, online_teachers, open_data, soft_labels, weights
from workflows.training.networks import HISTORY, resend


def depends(spec: PipelineSpec) -> dict[str, Any]:
    """The student's keys, the weights that it starts from, the search's own keys, and what decides batches."""
    return {
        "student": to_dict(spec.student),
        "weights": weights([spec.student]),
        "search": leaves_of(spec.search, "concurrent", "finalists") if spec.search.trials else "none",
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
    if restorable(path, searched=bool(search.space)):
        tuner = tune.Tuner.restore(str(path), trainable=trainable, resume_unfinished=True, restart_errored=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
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
    for result in results:
        if "trial_id" in (metrics := result.metrics or {}):  # a trial that ASHA stopped has not said so itself
            stage.reporter.ended(f"{stage.key}/{metrics['trial_id']}", "FAILED" if result.error else "FINISHED")
    ended = ranked(list(results), stage.spec)
    if not ended:
        errors = [str(result.error).strip().splitlines()[-1] for result in results if result.error is not None]
        raise StageFailed(f"stage search: no trial finished: {errors[0] if errors else 'no reason given'}")
    costs = costs_of([trial.changes for trial in ended], stage.spec)
    trials = [
        dataclasses.replace(trial, parameters=cost["parameters"], latency_ms=cost["latency_ms"])
        for trial, cost in zip(ended, costs, strict=True)
    ]
    return SearchResult(tuple(trials), len(results) - len(trials))


def rules(spec: PipelineSpec, at_once: int) -> Any:
    """Tune's own settings: who proposes, how many trials, and when a loser is stopped."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    search = spec.search
    return tune.TuneConfig(
        metric="val_mae",
        mode="min",
        num_samples=search.trials if search.space else 1,  # without a space all trials would be the same
        max_concurrent_trials=at_once,
        search_alg=proposer(spec) if search.space else None,  # without a space: the student itself
        scheduler=ASHAScheduler(time_attr="training_iteration", max_t=search.epochs, grace_period=search.grace_epochs),
        reuse_actors=True,
    )


def ranked(results: Sequence[Any], spec: PipelineSpec) -> list[Trial]:
    """The trials that did not fail, best first. `results` are Tune's, in the order in which they were proposed."""
    # Optuna is given the configured student's own settings first, and without a space there is nothing else.
    starts_from_own = not spec.search.space or bool(first_point(spec))
    trials = []
    for number, result in enumerate(results):
        metrics = result.metrics or {}
        if result.error is None and "val_mae" in metrics:
            trials.append(
                Trial(
                    trial=metrics.get("trial_id", str(number)),
                    changes=decode_changes(result.config or {}),
                    configured=starts_from_own and number == 0,
                    best_val_mae=float(metrics["best_val_mae"]),
                    epochs=int(metrics["training_iteration"]),
                    seconds=float(metrics.get("time_total_s", 0.0)),
                )
            )
    return sorted(trials, key=lambda trial: (trial.best_val_mae, trial.trial))


def costs_of(changes: list[dict[str, Any]], spec: PipelineSpec) -> list[dict[str, float]]:
    """Parameters and CPU time (one thread) of each trial's network: after the search, one at a time."""
    import ray

    nets = [student_with(spec.student, change).net for change in changes]
    measure = ray.remote(num_cpus=1)(cost)
    known = {net: ray.get(measure.remote(to_dict(net), spec.data.crop.size)) for net in dict.fromkeys(nets)}
    return [known[net] for net in nets]


def cost(net: dict[str, Any], size: int) -> dict[str, float]:
    from hpe_core.learning.models import PoseNet
    from hpe_core.training.latency import cpu_cost

    fresh = dataclasses.replace(build(NetSpec, net), pretrained="none")  # weights change no time
    return cpu_cost(PoseNet(fresh, size))


def restorable(folder: Path, searched: bool = True) -> bool:
    """Whether Tune's own files are all there and whole: it writes them in place, and a SIGKILL can leave half a one."""
    kinds = ["tuner.pkl", "experiment_state-*.json"]
    kinds += ["search_gen_state-*.json", "searcher-state-*.pkl"] if searched else ["basic-variant-state-*.json"]
    files = [list(folder.glob(kind)) for kind in kinds]
    return all(files) and all(_is_whole(file) for kind in files for file in kind)


def _is_whole(file: Path) -> bool:
    data = file.read_bytes()
    if file.suffix == ".pkl":
        return data.endswith(b".")  # the last opcode of every pickle
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def proposer(spec: PipelineSpec) -> Any:
    """Optuna's TPE over the search space, seeded. The configured student itself is the first trial."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: distribution(entry, isinstance(own(spec, key), int)) for key, entry in spec.search.space.items()}
    start = first_point(spec)
    return OptunaSearch(
        space=space,
        metric="val_mae",
        mode="min",
        sampler=optuna.samplers.TPESampler(seed=spec.student.seed, n_startup_trials=max(4, spec.search.trials // 3)),
        points_to_evaluate=[start] if start else None,
    )


def distribution(entry: SearchSpace, whole: bool = False) -> Any:
    """One searched key as an Optuna distribution; choices that are lists travel as text."""
    import optuna

    if entry.choice:
        return optuna.distributions.CategoricalDistribution([encode_choice(value) for value in entry.choice])
    assert entry.low is not None and entry.high is not None
    if whole:
        return optuna.distributions.IntDistribution(int(entry.low), int(entry.high), log=entry.log)
    return optuna.distributions.FloatDistribution(entry.low, entry.high, log=entry.log)


def encode_choice(value: Any) -> Any:
    return repr(value) if isinstance(value, list | tuple | dict) else value


def decode_changes(config: dict[str, Any]) -> dict[str, Any]:
    lists = {key: ast.literal_eval(v) for key, v in config.items() if isinstance(v, str) and v[:1] in "[({"}
    return config | lists


def own(spec: PipelineSpec, key: str) -> Any:
    """The configured student's own value of a dotted key."""
    return reduce(operator.getitem, key.split("."), to_dict(spec.student))


def first_point(spec: PipelineSpec) -> dict[str, Any]:
    """The configured student's own values, where each lies inside the search space."""
    point = {}
    for key, entry in spec.search.space.items():
        value = own(spec, key)
        inside = value in entry.choice if entry.choice else (entry.low or 0) <= value <= (entry.high or 0)
        if not inside:
            return {}
        point[key] = encode_choice(next(c for c in entry.choice if c == value) if entry.choice else value)
    return point


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
    place = Place(worker_device(threads))
    changes = decode_changes(config)
    student = trial_student(pipeline, changes)
    trial_id = tune.get_context().get_trial_id()
    name, run_key = f"trial {trial_id}", f"{key}/{trial_id}"
    folders = {stage: Path(place) for stage, place in inputs.items()}
    labels, online, _ = soft_labels(pipeline, student, folders)
    job = Job(run_key, name, student, pipeline.data, folders["shards"], labels, online)
    params = {**changes, "student": to_dict(student)}
    reporter.started(run_key, name, key, params)
    train, val = open_data(job, pipeline.cluster.readers_per_worker)
    checkpoint = tune.get_checkpoint()
    with tempfile.TemporaryDirectory() as scratch:
        resume: Path | None = None
        history: list[dict[str, Any]] = []
        if checkpoint is not None:
            resume = Path(checkpoint.to_directory(scratch))
            history = read_json(resume / HISTORY) or []

        def on_epoch(end: EpochEnd) -> None:
            history.append({"epoch": end.epoch, "time_ms": now_ms(), **end.metrics})
            write_json(trial_file(Path(folder), trial_id), {"params": params, "history": history})
            resend(reporter, run_key, history[-1:])
            reporter.progress(
                name, end.epoch, student.optim.epochs, f"epochs, validation MAE {end.metrics['val/mae']:.2f}"
            )
            with tempfile.TemporaryDirectory() as kept:
                end.save(Path(kept))
                write_json(Path(kept) / HISTORY, history)
                figures = {"val_mae": end.metrics["val/mae"], "best_val_mae": end.best_mae}
                tune.report(figures, checkpoint=tune.Checkpoint.from_directory(kept))

        teachers = online_teachers(job, place.device)
        fit(student, job.data.crop, train, val, place=place, resume=resume, teachers=teachers, on_epoch=on_epoch)
    reporter.ended(run_key)
