"""Which trials count, in what order, and what a trial is."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build, to_dict
from workflows.engine.config import load
from workflows.stages import search as tune


def result(mae: float | None, lr: float = 0.1, best: float | None = None, error: str = "", number: int = 1) -> Any:
    """A trial as Tune gives it: its last validation error, and the smallest."""
    metrics = {"val_mae": mae, "best_val_mae": mae if best is None else best, "training_iteration": 3}
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
    assert [(row.best_val_mae, int(row.trial)) for row in rows] == sorted(alive)
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
