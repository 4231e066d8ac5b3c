"""What a run, its stages and their networks have to say lies in the store, and is what was shown early."""

import contextlib
import errno
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import call, create_autospec

import pytest

from hpe_core.errors import SpecError
from hpe_core.spec.cluster import Pool, StageShares
from hpe_core.spec.pipeline import PipelineSpec, student_with
from hpe_core.spec.serde import build, to_dict
from hpe_core.system.files import write_json
from tests.engine.test_results import RESULTS
from tests.engine.test_store import Counted, counting
from tests.reporting import LocalReporter
from workflows.engine import pipeline, runner
from workflows.engine import results as made
from workflows.engine.config import load
from workflows.engine.plan import Planned, plan
from workflows.engine.runner import FAILED
from workflows.engine.stage import Stage, StageFailed, StageRun
from workflows.engine.told import children, run_name, run_points, run_tags, stage_facts, trial_file
from workflows.full_pipeline import STAGES
from workflows.stages import student, teachers
from workflows.tracking.console import Console
from workflows.tracking.facts import Artifact, Model, Point, RunFacts
from workflows.tracking.live import Live
from workflows.tracking.progress import Event, Reporter
from workflows.tracking.projection import facts_of
from workflows.training import networks

MAES = (7.0, 5.5, 6.0)
HISTORY = tuple({"epoch": i, "time_ms": 10_000 * i, "val/mae": v, "epoch_seconds": 4.0} for i, v in enumerate(MAES, 1))
NETWORK = made.NetworkResult.of(HISTORY, 12.0)
SPEC = load(["tests/tiny.yaml"])
BY_STAGE = dict(zip((stage.name for stage in STAGES), RESULTS, strict=True))


def row(test: str, name: str, mae: float, role: made.Role = made.Role.DISTILLED) -> made.Row:
    return made.Row(test, name, role, "what it is", {"mae": mae}, 1e6, 2.0)


ROWS = (
    ("heads", made.Role.TEACHERS, 4.5, made.Role.TEACHERS),
    ("heads", "distilled", 5.125),
    ("others", "distilled", 9.0),
)
SCORED = made.EvaluateResult(tuple(row(*each) for each in ROWS), (), {}, {"flip": {"kl": 0.5}}, {})


def entry_of(name: str, folder: Path) -> Planned:
    stage = next(stage for stage in STAGES if stage.name == name)
    return Planned(stage, "0123", folder, {"a.b": 1}, {}, {}, {}, "run", "never ran", None)


def read_again(facts: RunFacts) -> RunFacts:
    return RunFacts.from_json(json.loads(json.dumps(facts.to_json())), facts.home)


@pytest.mark.parametrize("name", BY_STAGE)
def test_a_stage_says_its_figures_its_keys_and_its_files(name, tmp_path):
    """One that failed says how long that took, and shows the files that are there."""
    result, entry = BY_STAGE[name], entry_of(name, tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "quarantine.csv").touch()
    shown = [Artifact("report", "report")] if name == "publish" else []
    shown += [Artifact("quarantine.csv", "quarantine")] if name == "shards" else []
    model = Model("head-pose", "model", "champion", ("validation", 3.0), "table", "MAE 3.00", {"config": "demo"})
    for found, status in ((result, "FINISHED"), (None, "FAILED")):
        told = stage_facts(entry, found, "pipeline/9", 1000, 3500)
        values = (found.metrics() if found else {}) | {"seconds": 2.5}
        assert told == RunFacts(
            *(f"{name}/0123", name, "pipeline/9", status, 1000, 3500, {"a.b": 1}),
            tags={"stage": name, "folder": str(tmp_path)},
            points=tuple(Point(key, value, 0, 3500) for key, value in values.items()),
            artifacts=(*shown, Artifact("manifest.json")) if found else tuple(shown),
            model=model if found and name == "publish" else None,
        )
        assert read_again(told) == told
    if name not in ("teachers", "search", "student"):
        assert list(children(entry, result, SPEC)) == []


def test_the_whole_run_has_the_scores_of_all_and_the_students_in_its_name():
    scores = {"heads/teachers ensemble": 4.5, "heads/distilled": 5.125, "others/distilled": 9.0}
    assert run_points(SCORED, 9) == tuple(Point(f"{name}/mae", mae, 0, 9) for name, mae in scores.items())
    assert run_tags(SCORED) == {"student_mae": "5.125"}
    assert (run_name(SPEC, run_tags(SCORED)), run_name(SPEC, {})) == ("MAE 5.12 · tiny", "tiny")
    assert run_tags(BY_STAGE["shards"]) == {"shards.fingerprint": "ef"}
    others = [result for name, result in BY_STAGE.items() if name not in ("shards", "evaluate")]
    assert not any(run_points(result, 9) or run_tags(result) for result in others)


def shown_by(events: list[Event]) -> dict[str, tuple[Any, ...]]:
    """What the workers showed of each run: name, parent, params, figures, how it ended."""
    found: dict[str, tuple[Any, ...]] = {}
    for key, name, parent, params in [body for kind, body in events if kind == "started"]:
        told = [body[1:] for kind, body in events if kind == "metrics" and body[0] == key]
        points = {(figure, value, step, ms) for values, step, ms in told for figure, value in values.items()}
        (status,) = [body[1] for kind, body in events if kind == "ended" and body[0] == key]
        found[key] = (name, parent, json.loads(json.dumps(params)), points, status)
    return found


def said_of(members: list[RunFacts]) -> dict[str, tuple[Any, ...]]:
    params = {told.key: json.loads(json.dumps(told.params)) for told in members}
    return {told.key: (told.name, told.parent, params[told.key], {*told.points}, told.status) for told in members}


@pytest.mark.parametrize(("module", "count"), [(teachers, 1), (student, 1), (student, 2)])
@pytest.mark.parametrize("room", [1, 4])
def test_what_is_shown_of_a_network_early_is_what_the_store_says(module, count, room, tmp_path, monkeypatch):
    """The same run, figures and times, so each counts once, however often and by whomever it is sent."""
    events: list[Event] = []
    spec = load(["tests/tiny.yaml"], [f"store={tmp_path}", f"search.finalists={count}"])
    name = module.__name__.split(".")[-1]
    tried = [made.Trial(str(i), {"optim.lr": 0.01 + 0.01 * i}, False, 5.0 + i, 1, 1.0) for i in range(3)]

    def train(job: Any, stage: Any, home: Path) -> made.NetworkResult:
        home.mkdir(parents=True)
        for file in networks.KEPT:
            (home / file).touch()
        write_json(home / "result.json", to_dict(NETWORK))
        return NETWORK

    monkeypatch.setattr(student, "room", lambda stage: room)
    monkeypatch.setattr(networks, "run_ray_train", train)
    monkeypatch.setattr(networks, "capacity", lambda cluster: {"CPU": 4, "GPU": 0})
    stage = StageRun(
        *(name, f"{name}/0123", spec, tmp_path / name),
        inputs={upstream: tmp_path for upstream in ("shards", "teachers", "labels")},
        hashes=dict.fromkeys(("shards", "teachers", "labels", "search"), "1"),
        results=made.Results({"search": made.SearchResult(tuple(tried))}),
        reporter=LocalReporter(events.append),
    )
    module.run(stage)
    events.clear()
    result = module.run(stage)  # the networks are there, and are told with all their epochs
    told = list(children(entry_of(name, stage.folder), result, spec))
    assert said_of(told) == shown_by(events)
    expected = {"teachers": ["byobnet", "resnet"], "student": ["distilled", "hard"]}[name]
    if count == 2:
        expected = ["finalist-1", "finalist-2", *(["twin-1", "twin-2"] if room == 4 else ["hard"])]
    assert sorted(each.key for each in told) == [f"{name}/0123/{member}" for member in expected]
    for each in told:
        assert read_again(each) == each and each.tags == {"stage": name}
        assert (each.started_ms, each.ended_ms) == (6_000, 30_000), "from the start of its first epoch to its last"
        assert Point("val/mae", 5.5, 2, 20_000) in each.points and len(each.points) == 6
    if module is student:
        best = student_with(spec.student, tried[0].changes)
        assert told[0].params == to_dict(best) and told[count].params == to_dict(best) | {"distill": None}


@pytest.mark.parametrize("name", ["a b", "it's", "a(b)", "élan", "a\nb", "#1", "resnet@2", "x" * 100, "x" * 101, "a+b"])
def test_a_teacher_has_a_name_that_can_be_told_or_is_refused(name, tmp_path):
    """Before anything runs, not when its network is trained."""
    tree = to_dict(SPEC)
    tree["teachers"] = {name: tree["teachers"]["resnet"]}
    with contextlib.suppress(SpecError):
        spec = build(PipelineSpec, tree)
        (told,) = children(entry_of("teachers", tmp_path), made.TeachersResult({name: NETWORK}), spec)
        assert told.key == f"teachers/0123/{name}"


@pytest.mark.parametrize("role", [*made.Role])
def test_no_teacher_takes_the_name_of_another_row(role):
    tree = to_dict(SPEC)
    tree["teachers"] = {str(role): tree["teachers"]["resnet"]}
    if role in (made.Role.BASE, made.Role.TEACHER):  # their rows are named after the teachers
        build(PipelineSpec, tree)
    else:
        with pytest.raises(SpecError, match=r"teachers\..*: a name is made of"):
            build(PipelineSpec, tree)


def test_every_trial_says_what_it_changed_and_one_that_did_not_finish_has_failed(tmp_path):
    epochs = {"001": HISTORY, "002": HISTORY[:1], "003": HISTORY[:2]}
    params: dict[str, Any] = {name: {"optim.lr": i, "student": {"seed": i}} for i, name in enumerate(epochs)}
    for name, history in epochs.items():
        write_json(trial_file(tmp_path, int(name)), {"params": params[name], "history": history})
    found = made.SearchResult(
        tuple(made.Trial(name, {}, False, 5.0, 3, 1.0, 4e5, 2.5) for name in ("003", "001")), failed=1
    )
    told = {each.key: each for each in children(entry_of("search", tmp_path), found, SPEC)}
    assert list(told) == [f"search/0123/{name}" for name in epochs]
    for name, history in epochs.items():
        each = told[f"search/0123/{name}"]
        costs = [] if name == "002" else [("parameters", 4e5, 0), ("latency_ms", 2.5, 0)]
        assert (each.name, each.parent, each.params) == (f"trial {name}", "search/0123", params[name])
        assert each.status == ("FAILED" if name == "002" else "FINISHED") and read_again(each) == each
        figures = [(key, row[key], row["epoch"]) for row in history for key in ("epoch_seconds", "val/mae")]
        assert [point[:3] for point in each.points] == figures + costs
    assert list(children(entry_of("search", tmp_path / "none"), made.SearchResult(), SPEC)) == []


def taught(stage: StageRun) -> made.TeachersResult:
    return made.TeachersResult({"resnet": NETWORK})


def scored(stage: StageRun) -> made.EvaluateResult:
    return SCORED


def fragile(stage: StageRun) -> Counted:
    """Fails as often as `ERRORS` says, and sees what is told of the run while it works."""
    SEEN.update({run.key: run.status for run in facts_of(stage.spec.folder, held=True)})
    if ERRORS:
        raise ERRORS.pop()
    return counting(stage)


ERRORS: list[BaseException] = []
SEEN: dict[str, str] = {}
ROAD = (
    Stage("teachers", taught, (), lambda spec: {"seed": spec.student.seed}),
    Stage("evaluate", scored, ("teachers",), lambda spec: {}),
    Stage("last", fragile, ("evaluate",), lambda spec: {}),
)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineSpec:
    """The driver's side without Ray, and without MLflow."""
    monkeypatch.setattr(runner, "connected", lambda cluster: contextlib.nullcontext("Ray: none"))
    monkeypatch.setattr(runner, "machinery", lambda: {"cpus": 3.0, "gpus": 0.0})
    made_by = {"python": "3.11", "processors": ["A 1000"], "packages": {"torch": "2"}}
    monkeypatch.setattr(runner, "made_by", lambda: made_by)
    monkeypatch.setattr(runner, "capacity", lambda cluster: {"CPU": 4, "GPU": 0})
    monkeypatch.setattr(runner, "start_board", lambda: (None, Reporter()))
    monkeypatch.setattr(runner, "Pump", lambda *_: SimpleNamespace(flush=lambda: None, close=lambda: None))
    monkeypatch.setattr(pipeline, "check_backbones", lambda spec: None)
    ERRORS.clear()
    SEEN.clear()
    return load(["tests/tiny.yaml"], [f"store={tmp_path}", "mlflow.uri=none"])


def run_file(spec: PipelineSpec) -> Mapping[str, Any]:
    (file,) = spec.folder.glob("pipeline/*/run.json")
    found: Mapping[str, Any] = json.loads(file.read_text())
    return found


def last_folder(spec: PipelineSpec) -> Path:
    (folder,) = (spec.folder / "last").iterdir()
    return folder


def statuses(spec: PipelineSpec) -> dict[str, str]:
    """By stage, or of the whole run ("pipeline"), as MLflow is told."""
    return {told.key.split("/")[0]: told.status for told in facts_of(spec.folder) if told.key.count("/") == 1}


def test_a_run_writes_down_itself_its_stages_and_their_networks(spec, capsys):
    pipeline.run(ROAD, spec)
    (whole, *stages, network) = facts_of(spec.folder)
    keys = [told.key for told in stages]
    assert [key.split("/")[0] for key in keys] == [stage.name for stage in ROAD]
    assert network.key == f"{keys[0]}/resnet"
    assert whole.key == f"pipeline/{keys[-1].split('/')[1]}", "a run is named after its last stage"
    assert {told.parent for told in stages} == {whole.key} and network.parent == keys[0]
    assert {told.status for told in (whole, *stages, network)} == {"FINISHED"}
    assert (whole.name, whole.tags["student_mae"]) == ("MAE 5.12 · tiny", "5.125")
    assert whole.points == run_points(SCORED, stages[1].ended_ms or 0) != ()
    assert whole.params == json.loads(json.dumps(to_dict(spec)))
    assert load([str(whole.home / whole.artifacts[0].path)]) == spec, "its configuration runs as it is"
    begun = [told.started_ms for told in (whole, *stages)]
    assert begun == sorted(begun) and whole.ended_ms is not None and whole.ended_ms >= (stages[-1].ended_ms or 0)
    manifest = json.loads((spec.folder / keys[0] / "manifest.json").read_text())
    assert manifest["machinery"] == {"cpus": 3.0, "gpus": 0.0} and run_file(spec)["reused"] == []
    told = {"python": "3.11", "processors": ["A 1000"], "packages": {"torch": "2"}}
    assert manifest["made_by"] == {"commit": whole.tags["commit"], **told}
    ended = dict.fromkeys((keys[0], network.key, keys[1]), "FINISHED")
    assert ended | {whole.key: "RUNNING", keys[2]: "RUNNING"} == SEEN
    said = capsys.readouterr().err
    assert "Ray: none" in said and "last: starting (never ran in this store)" in said
    assert "teachers: done in 0 s; validation error resnet 5.50" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("trace\nit broke"), r"stage last failed: it broke \(traceback in .*error.txt\)"),
        (StageFailed("stage last: resnet: no room"), "stage last: resnet: no room"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk of .* is full .* the same command continues"),
        (RuntimeError("a worker: OSError: [Errno 27] File too large"), r"may not grow further \(ulimit -f.*continues"),
    ],
)
def test_a_stage_that_fails_says_why_until_it_runs_again(spec, error, said):
    """And the run that goes on says all that the one before it did, with the same times, so that it counts once."""
    ERRORS.append(error)
    with pytest.raises(StageFailed, match=said) as caught:
        pipeline.run(ROAD, spec)
    failed = {told.key.split("/")[0]: told for told in facts_of(spec.folder)}["last"]
    assert (failed.status, failed.tags["error"]) == ("FAILED", str(caught.value)) and failed.points[0].name == "seconds"
    assert statuses(spec) == {"pipeline": "FAILED", "teachers": "FINISHED", "evaluate": "FINISHED", "last": "FAILED"}
    before = run_file(spec)
    assert before["name"] == "MAE 5.12 · tiny" and before["ended_ms"] is not None
    pipeline.run(ROAD, spec)
    assert set(statuses(spec).values()) == {"FINISHED"} and not (last_folder(spec) / FAILED).exists()
    after = run_file(spec)
    assert after["reused"] == after["stages"][:2] and before["reused"] == []
    for key in ("key", "name", "points", "tags", "params"):
        assert after[key] == before[key], key


def test_a_run_that_is_stopped_was_killed_and_nothing_has_failed(spec):
    ERRORS.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(ROAD, spec)
    assert statuses(spec)["pipeline"] == statuses(spec)["last"] == "KILLED"
    assert not (last_folder(spec) / FAILED).exists()


def test_a_run_that_cannot_open_is_told_and_what_was_opened_is_closed(spec, monkeypatch):
    closed = []
    monkeypatch.setattr(runner.Live, "close", lambda self: closed.append(True) or "MLflow is behind")
    monkeypatch.setattr(runner, "connected", lambda cluster: (_ for _ in ()).throw(RuntimeError("no cluster")))
    with pytest.raises(RuntimeError, match="no cluster"):
        pipeline.run(ROAD, spec)
    assert statuses(spec) == {"pipeline": "FAILED"} and closed == [True]


def test_a_clock_that_is_set_back_makes_no_stage_end_before_it_began(spec, monkeypatch):
    """As a machine's does that asks the network for the time while it works."""
    clock = iter(range(2 * 10**12, 10**12, -3_600_000))
    monkeypatch.setattr(runner, "now_ms", lambda: next(clock))
    pipeline.run(ROAD, spec)
    told = [fact for fact in facts_of(spec.folder) if fact.key.startswith(("pipeline", "teachers", "evaluate", "last"))]
    seconds = [point.value for fact in told for point in fact.points if point.name == "seconds"]
    assert len(seconds) == 3 and all(0 <= value < 600 for value in seconds)
    assert all(fact.ended_ms is not None and fact.ended_ms >= fact.started_ms for fact in told)


def test_lines_and_progress_go_to_the_console_and_all_else_to_mlflow():
    said = {"say": ("a line",), "progress": ("shards", 3.0, 8.0, "faces"), "ended": ("a/1/b", "FAILED")}
    said |= {"started": ("a/1/b", "a: b", "a/1", {"lr": 1}), "metrics": ("a/1/b", {"loss": 2.0}, 4, 500)}
    driver = SimpleNamespace(console=create_autospec(Console, instance=True), live=create_autospec(Live, instance=True))
    reporter = LocalReporter(lambda event: runner.Runner.handle(driver, event))
    for kind, body in said.items():
        getattr(reporter, kind)(*body)
    for side, kinds in ((driver.console, ("say", "progress")), (driver.live, ("ended", "started", "metrics"))):
        assert side.method_calls == [getattr(call, kind)(*said[kind]) for kind in kinds]


def test_what_does_not_fit_into_the_cluster_is_said_before_anything_starts(spec, monkeypatch):
    """Though the stage that asks for it is a later one; a stage that is not run may ask for what it likes."""
    greedy = replace(spec, cluster=replace(spec.cluster, stages=StageShares(evaluate=Pool(cpus=5))))
    with pytest.raises(SpecError, match="evaluate: 1 workers of 5 CPU do not fit into a cluster of 4 CPU"):
        pipeline.run(ROAD, greedy)
    assert not SEEN and not list(Path(spec.store).glob("teachers/*"))
    pipeline.run_alone(ROAD, greedy, "teachers", as_json=False)
    assert "teachers" in [entry.stage.name for entry in plan(ROAD, greedy) if entry.action == "skip"]
