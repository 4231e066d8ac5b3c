"""What the search proposes, which trials count, and in what order."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec, student_with
from hpe_core.spec.serde import build, to_dict
from workflows.engine.config import load
from workflows.stages import search as tune

SPACE = {
    "optim.lr": {"low": 0.001, "high": 0.1, "log": True},
    "optim.accumulate": {"low": 1, "high": 4},
    "net.backbone": {"choice": ["test_byobnet", "test_resnet"]},
    "net.bin_widths": {"choice": [[3, 9], [3]]},
}


def spec(space: dict[str, Any] | None = None, **student: Any) -> PipelineSpec:
    """The smallest configuration with a search over SPACE, or another space."""
    tree = to_dict(load(["tests/tiny.yaml"]))
    tree["search"] |= {"space": copy.deepcopy(SPACE if space is None else space), "trials": 9}
    made = build(PipelineSpec, tree)
    return build(PipelineSpec, tree | {"student": to_dict(student_with(made.student, student))})


def result(mae: float | None, lr: float = 0.1, best: float | None = None, error: str = "", name: str = "") -> Any:
    """A trial as Tune gives it: its last validation error, and the smallest."""
    metrics = {"val_mae": mae, "best_val_mae": mae if best is None else best, "training_iteration": 3}
    metrics |= {"time_total_s": 1.5} | ({"trial_id": name} if name else {})
    return SimpleNamespace(metrics=metrics if mae is not None else None, config={"optim.lr": lr}, error=error or None)


SEARCHED = spec()


@given(st.lists(st.tuples(st.floats(1, 20), st.booleans()), max_size=8))
def test_trials_that_ended_are_ranked_by_their_smallest_error(ends):
    """The last epoch of a trial may be worse than its best one; a trial that failed does not count, however good."""
    died = ["died" if failed else "" for _, failed in ends]
    results = [result(30 - mae, lr=i / 100, best=mae, error=died[i], name=f"t{i}") for i, (mae, _) in enumerate(ends)]
    rows = tune.ranked([*results, result(None), result(None, error="never began")], SEARCHED)
    alive = [(mae, i) for i, (mae, failed) in enumerate(ends) if not failed]
    assert [(row.best_val_mae, int(row.trial[1:])) for row in rows] == sorted(alive)
    assert all(row.changes == {"optim.lr": int(row.trial[1:]) / 100} for row in rows)
    assert all((row.epochs, row.seconds) == (3, 1.5) for row in rows)


INSIDE = {"optim.lr": 0.002, "net.bin_widths": [3], "net.backbone": "test_resnet"}


@pytest.mark.parametrize(
    ("space", "changes", "inside"),
    [
        (None, INSIDE, True),
        (None, INSIDE | {"optim.lr": 0.001}, True),
        (None, INSIDE | {"optim.lr": 0.1}, True),
        (None, INSIDE | {"optim.lr": 0.0009}, False),
        (None, INSIDE | {"optim.lr": 0.11}, False),
        (None, INSIDE | {"net.backbone": "test_convnext"}, False),
        (None, INSIDE | {"net.bin_widths": [3, 11]}, False),
        ({}, {}, True),  # without a space every trial is the student itself
    ],
)
def test_the_first_trial_is_the_configured_student_where_the_space_holds_it(space, changes, inside):
    made = spec(space, **changes)
    rows = tune.ranked([result(5.0, name="a"), result(4.0, name="b")], made)
    assert {row.trial: row.configured for row in rows} == {"a": inside, "b": False}
    point = tune.first_point(made)
    assert set(point) == (set(SPACE) if inside and space is None else set())
    assert student_with(made.student, tune.decode_changes(point)) == made.student
    if space is None:
        first = tune.proposer(made).suggest("a")
        assert (first == point) == inside


@pytest.mark.parametrize("seed", [0, 1])
def test_every_proposal_makes_a_student_and_small_errors_are_sought(seed):
    """Told that small steps err least, the search proposes smaller ones."""
    made = spec(**INSIDE, seed=seed)
    search, rates = tune.proposer(made), []
    for number in range(24):
        changes = tune.decode_changes(search.suggest(str(number)))
        student = student_with(made.student, changes)
        assert set(changes) == set(SPACE) and 0.001 <= student.optim.lr <= 0.1
        assert 1 <= student.optim.accumulate <= 4 and student.net.bin_widths in ((3, 9), (3,))
        rates.append(student.optim.lr)
        search.on_trial_complete(str(number), {"val_mae": 100 * student.optim.lr})
    assert sum(rates[-8:]) / 8 < 0.5 * sum(rates[1:9]) / 8
    first, second = tune.proposer(made), tune.proposer(made)
    assert [first.suggest(name) for name in "abcd"] == [second.suggest(name) for name in "abcd"]


@pytest.mark.parametrize("value", [(3.0, 9.0), [], ["a", "b"], "test_resnet", 2, 0.5, True, "none"])
def test_a_choice_survives_the_way_through_optuna(value):
    (found,) = tune.decode_changes({"key": tune.encode_choice(value)}).values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("epochs", "warmup", "expected"), [(4, 3, 1), (4, 0.5, 0.5), (8, 3, 2), (1, 0, 0)])
def test_a_trial_is_short_and_else_the_changed_student(epochs, warmup, expected):
    tree = to_dict(spec(**{"optim.epochs": 20, "optim.warmup_epochs": warmup}))
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
    found = tune.costs_of(changes, spec())
    assert [row["parameters"] for row in found] == [1, 2, 1]
    assert measured == [("test_resnet", 32), ("test_byobnet", 32)]


def test_losers_are_stopped_after_the_grace_and_nobody_goes_on_beyond_the_end():
    tree = to_dict(SEARCHED)
    tree["search"] |= {"epochs": 16, "grace_epochs": 2}
    made = build(PipelineSpec, tree)
    config = tune.rules(made, at_once=3)
    assert (config.num_samples, config.max_concurrent_trials) == (9, 3)
    scheduler, trials = config.scheduler, [SimpleNamespace(trial_id=name) for name in "abcd"]
    scheduler.set_search_properties(config.metric, config.mode)
    for trial in trials:
        scheduler.on_trial_add(None, trial)

    def after(epoch: int, *errors: float) -> list[str]:
        results = [{"training_iteration": epoch, "val_mae": mae} for mae in errors]
        return [scheduler.on_trial_result(None, *each) for each in zip(trials, results, strict=True)]

    assert after(1, 5.0, 4.0, 9.0, 8.0) == ["CONTINUE"] * 4
    assert after(2, 5.0, 4.0, 9.0, 3.0) == ["CONTINUE", "CONTINUE", "STOP", "CONTINUE"]
    assert after(16, 5.0, 4.0, 9.0, 3.0) == ["STOP"] * 4
    assert tune.rules(spec({}), at_once=3).num_samples == 1, "without a space all trials would be the same"
