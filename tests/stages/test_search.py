"""Which trials count, in what order, and what a trial is."""

import json
import pickle
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build, to_dict
from tests.reporting import LocalReporter
from workflows.engine.config import load
from workflows.engine.results import Results
from workflows.engine.stage import StageFailed, StageRun
from workflows.stages import search as tune
from workflows.tracking.progress import Event


def result(mae: float | None, lr: float = 0.1, best: float | None = None, error: str = "", number: int = 1) -> Any:
    """A trial as Tune gives it: its last validation error, and the smallest."""
    metrics = {"val_error": mae, "best_val_error": mae if best is None else best, "training_iteration": 3}
    config = {"number": number, "optim.lr": lr}
    metrics |= {"time_total_s": 1.5}
    return SimpleNamespace(metrics=metrics if mae is not None else None, config=config, error=error or None)


SEARCHED = load(["tests/tiny.yaml"])


@given(st.lists(st.tuples(st.floats(1, 20), st.booleans()), max_size=8))
def test_trials_that_ended_are_ranked_by_their_smallest_error(ends):
    """The last epoch of a trial may be worse than its best one; a trial that failed does not count, however good."""
    results = [
        result(30 - mae, lr=i / 100, best=mae, error="died" if failed else "", number=i)
        for i, (mae, failed) in enumerate(ends, start=1)
    ]
    rows = tune.ranked([*results[::-1], result(None), result(None, error="never began")], SEARCHED)
    alive = [(mae, i) for i, (mae, failed) in enumerate(ends, start=1) if not failed]
    assert [(row.best_val_error, int(row.trial)) for row in rows] == sorted(alive)
    assert all(row.changes == {"optim.lr": int(row.trial) / 100} for row in rows)
    assert all((row.epochs, row.seconds) == (3, 1.5) for row in rows)


@pytest.mark.parametrize(("epochs", "warmup", "expected"), [(4, 3, 1), (4, 0.5, 0.5), (8, 3, 2), (1, 0, 0)])
def test_a_trial_is_short_and_else_the_changed_student(epochs, warmup, expected):
    tree = to_dict(load(["tests/tiny.yaml"], ["student.optim.epochs=20", f"student.optim.warmup_epochs={warmup}"]))
    tree["search"] |= {"epochs": epochs, "grace_epochs": 1}
    student = to_dict(tune.trial_student(build(PipelineSpec, tree), {"optim.lr": 0.07, "seed": 5}))
    optim = tree["student"]["optim"] | {"lr": 0.07, "epochs": epochs, "warmup_epochs": expected}
    assert student == tree["student"] | {"seed": 5, "optim": optim}


def test_a_trial_has_the_cost_of_its_own_network_measured_once(monkeypatch):
    import ray

    measured = []

    def cost(net: dict[str, Any], size: int) -> dict[str, float]:
        measured.append((build(NetSpec, net).backbone, size))
        return {"parameters": float(len(measured)), "latency_ms": 1.0}

    monkeypatch.setattr(tune, "cost", cost)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: SimpleNamespace(remote=function))
    monkeypatch.setattr(ray, "get", lambda found: found)
    names = ["test_resnet", "test_byobnet", "test_resnet"]
    changes = [{"net.backbone": name, "optim.lr": 0.01 * i} for i, name in enumerate(names, start=1)]
    found = tune.costs_of(changes, SEARCHED)
    assert [row["parameters"] for row in found] == [1, 2, 1]
    assert measured == [("test_resnet", 32), ("test_byobnet", 32)]


def test_state_that_a_kill_has_torn_is_not_restored(tmp_path):
    """Ray writes its lists in place: half a file must mean a new start, not an error for ever."""
    from workflows.training.networks import discard_torn

    snapshot = tmp_path / "ray-train" / "checkpoint_manager_snapshot.json"
    snapshot.parent.mkdir()
    discard_torn(snapshot.parent)
    snapshot.write_text('{"checkpoint_results": []}')
    discard_torn(snapshot.parent)
    assert snapshot.exists()
    for torn in ("", '{"checkpoint_res'):
        snapshot.parent.mkdir(exist_ok=True)
        snapshot.write_text(torn)
        discard_torn(snapshot.parent)
        assert not snapshot.parent.exists()

    def state(statuses: dict[str, str], errors: dict[str, float], counter: int = 2) -> dict[str, bytes]:
        """Tune's four files: the trials "a" and "b" with their statuses, and what the searcher knows of them."""
        trials = [[json.dumps({"trial_id": name, "status": status}), "{}"] for name, status in statuses.items()]
        return {
            "tuner.pkl": pickle.dumps(None),
            "experiment_state-2026.json": json.dumps({"trial_data": trials}).encode(),
            "search_gen_state-2026.json": pickle.dumps({"counter": counter}),
            "searcher-state-2026.pkl": pickle.dumps((["a", "b"], errors)),
        }

    def restored(files: dict[str, bytes]) -> bool:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return tune.restorable(folder)

    half = {"a": "TERMINATED", "b": "RUNNING"}
    whole = state(half, {"a": 1.0})
    assert restored(whole)
    for name in whole:
        for body in (None, b"", b"\x80\x05", b'{"a"'):
            others = {other: content for other, content in whole.items() if other != name}
            assert not restored(others if body is None else others | {name: body}), (name, body)
    # One file is newer than another: Tune would wait for a trial for ever, or leave one out.
    assert not restored(state(half, {})), "Tune knows an end that the searcher does not"
    assert not restored(state({"a": "TERMINATED"}, {"a": 1.0})), "the searcher knows a trial that Tune does not"
    assert not restored(state(half | {"c": "RUNNING"}, {"a": 1.0}))
    assert not restored(state(half, {"a": 1.0}, counter=1))


@pytest.mark.parametrize("ended", [0, 1, 3])
def test_the_search_tells_its_best_trial_and_how_many_failed(tmp_path, monkeypatch, ended):
    """Of three trials; of each what its network costs, and to the tracker how it ended."""
    from ray import tune as ray_tune

    spec, events = load(["tests/tiny.yaml"], ["search.trials=3", f"store={tmp_path}"]), list[Event]()
    results = [result(9.0 - i, number=i, error="" if i <= ended else "a\ndied of it") for i in (1, 2, 3)]
    checkpoint = tmp_path / "tune" / "trial_1" / "checkpoint_000000"
    tuner = SimpleNamespace(fit=lambda: checkpoint.mkdir(parents=True) or results)
    asked: list[Any] = []
    monkeypatch.setattr(ray_tune, "Tuner", lambda *_, tune_config, **__: asked.append(tune_config) or tuner)
    monkeypatch.setattr(ray_tune, "with_parameters", lambda function, **_: function)
    monkeypatch.setattr(ray_tune, "with_resources", lambda function, _: function)
    monkeypatch.setattr(tune, "capacity", lambda cluster: {"CPU": 2.0, "GPU": 0.0})
    monkeypatch.setattr(tune, "costs_of", lambda changes, spec: [{"parameters": 4.0, "latency_ms": 2.0}] * len(changes))
    run = StageRun("search", "search/1", spec, tmp_path, {}, {}, Results({}), LocalReporter(events.append))
    if not ended:
        with pytest.raises(StageFailed, match="no trial finished: died of it"):
            tune.run(run)
    else:
        found = tune.run(run)
        assert [trial.trial for trial in found.trials] == [f"{number:03d}" for number in range(ended, 0, -1)]
        assert asked[0].search_alg.at_once == 2, "two CPUs, and nobody who reads beside"
        assert checkpoint.parent.exists() and not checkpoint.exists(), "a search that is over needs none"
        assert found.failed == 3 - ended and found.metrics()["best_val_error"] == 9.0 - ended
        assert {(trial.parameters, trial.latency_ms) for trial in found.trials} == {(4.0, 2.0)}
    said = [body[0] for kind, body in events if kind == "say"]
    assert said == [f"  trial 00{i} failed: died of it" for i in (1, 2, 3) if i > ended]
    told = [body for kind, body in events if kind == "ended"]
    assert told == [(f"search/1/00{i}", "FINISHED" if i <= ended else "FAILED") for i in (1, 2, 3)]
