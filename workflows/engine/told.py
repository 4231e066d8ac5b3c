"""What a run, its stages and their networks have to say, as facts that lie in the store (`tracking/facts.py`)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpe_core.spec.pipeline import PipelineSpec, student_with
from hpe_core.spec.serde import to_dict
from hpe_core.system.files import read_json
from workflows.engine.plan import Planned
from workflows.engine.results import (
    Epoch,
    EvaluateResult,
    NetworkResult,
    PublishResult,
    Role,
    SearchResult,
    ShardsResult,
    StageResult,
    StudentResult,
    TeachersResult,
)
from workflows.storage.contents import MANIFEST
from workflows.tracking.facts import Artifact, Point, RunFacts, Status, points_of


def stage_facts(entry: Planned, result: StageResult | None, parent: str, started_ms: int, ended_ms: int) -> RunFacts:
    """A stage that has ended; without a result it has failed, and shows the files that are there."""
    seconds = {"seconds": (ended_ms - started_ms) / 1000}
    shown = [Artifact(path, folder) for path, folder in entry.stage.artifacts.items() if (entry.folder / path).exists()]
    finished = [Artifact(MANIFEST)] if result is not None else []
    return RunFacts(
        key=entry.key,
        name=entry.stage.name,
        parent=parent,
        status="FAILED" if result is None else "FINISHED",
        started_ms=started_ms,
        ended_ms=ended_ms,
        params=entry.leaves,
        tags={"stage": entry.stage.name, "folder": str(entry.folder)},
        points=points_of((result.metrics() if result is not None else {}) | seconds, 0, ended_ms),
        artifacts=(*shown, *finished),
        model=result.registration if isinstance(result, PublishResult) else None,
    )


def run_points(result: StageResult, time_ms: int) -> tuple[Point, ...]:
    """What a stage's result says of the whole run: the scores of every network."""
    if not isinstance(result, EvaluateResult):
        return ()
    scores = {f"{row.test}/{row.name.replace(chr(39), '')}/mae": row.mae for row in result.rows}
    return points_of(scores, 0, time_ms)


def run_tags(result: StageResult) -> dict[str, str]:
    """The same, as tags."""
    if isinstance(result, ShardsResult):
        return {"shards.fingerprint": result.fingerprint}
    if isinstance(result, EvaluateResult):
        return {"student_mae": f"{result.row(Role.DISTILLED).mae:.3f}"}
    return {}


def run_name(spec: PipelineSpec, tags: Mapping[str, str]) -> str:
    """The student's score comes first: MLflow's list shows the first 16 letters."""
    return f"MAE {float(tags['student_mae']):.2f} · {spec.name}" if "student_mae" in tags else spec.name


def children(entry: Planned, result: StageResult, spec: PipelineSpec) -> Iterator[RunFacts]:
    """The networks or trials of a stage, with their figures by epoch."""
    if isinstance(result, TeachersResult):
        for name, network in result.networks.items():
            yield _network(entry, name, network, to_dict(spec.teachers[name]))
    elif isinstance(result, StudentResult):
        for rival in result.finalists:
            yield _network(entry, rival.name, rival.network, to_dict(student_with(spec.student, rival.changes)))
        if not result.finalists:  # the student was one of them
            yield _network(entry, Role.DISTILLED, result.student, to_dict(result.spec))
            yield _network(entry, Role.HARD, result.twin, {**to_dict(result.spec), "distill": None})
        for twin in result.twins:
            params = {**to_dict(student_with(spec.student, twin.changes)), "distill": None}
            yield _network(entry, twin.name, twin.network, params)
    elif isinstance(result, SearchResult):
        ended = {trial.trial: trial for trial in result.trials}
        for file in sorted(trial_file(entry.folder, 1).parent.glob("*.json")):
            told, trial, name = read_json(file) or {}, ended.get(file.stem), f"trial {file.stem}"
            costs = {"parameters": trial.parameters, "latency_ms": trial.latency_ms} if trial else {}
            status: Status = "FINISHED" if trial else "FAILED"
            yield _member(entry, file.stem, name, told["params"], told["history"], status, costs)


def trial_name(number: int) -> str:
    """Trials are counted in the order in which they were proposed, from 1."""
    return f"{number:03d}"


def trial_file(folder: Path, number: int) -> Path:
    """Where a trial keeps its `params` and the `history` of its epochs, below the search's folder."""
    return folder / "trials" / f"{trial_name(number)}.json"


def _network(entry: Planned, name: str, network: NetworkResult, params: dict[str, Any]) -> RunFacts:
    return _member(entry, name, f"{entry.stage.name}: {name}", params, network.history, "FINISHED", {})


def _member(
    entry: Planned,
    key: str,
    name: str,
    params: Mapping[str, Any],
    history: Sequence[Epoch],
    status: Status,
    costs: Mapping[str, float],
) -> RunFacts:
    """A run below the stage's; an epoch has the time when it ended, so however often it is sent it counts once."""
    times = [int(row["time_ms"]) for row in history] or [0]
    began = times[0] - int(1000 * history[0].get("epoch_seconds", 0)) if history else 0
    points = [point for row in history for point in points_of(*figures(row))]
    return RunFacts(
        key=f"{entry.key}/{key}",
        name=name,
        parent=entry.key,
        status=status,
        started_ms=began,
        ended_ms=times[-1],
        params=params,
        tags={"stage": entry.stage.name},
        points=(*points, *points_of(costs, 0, times[-1])),
    )


def figures(row: Mapping[str, float]) -> tuple[dict[str, float], int, int]:
    """An epoch's figures, its number, and when it ended."""
    found = {name: value for name, value in row.items() if name not in ("epoch", "time_ms")}
    return found, int(row["epoch"]), int(row["time_ms"])
