"""The search as a game without Tune: trials run in any order, at any speed, cut off anywhere. One outcome."""

import pickle
import random
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.system.files import write_json
from tests.searching.test_proposals import spec
from workflows.engine.told import trial_file
from workflows.searching.proposals import NUMBER, Proposer
from workflows.searching.rounds import AgainstEarlierRounds, Rounds, loses, rungs


def searched(**search: Any) -> PipelineSpec:
    tree = to_dict(spec())
    tree["search"] |= {"epochs": 6, "grace_epochs": 1, "trials": 9, "concurrent": 3, **search}
    return build(PipelineSpec, tree)


def error(changes: dict[str, Any], epoch: int) -> float:
    """What a trial errs: it follows from its settings, and falls."""
    return float(100 * changes["optim.lr"] + changes["optim.accumulate"] + 4 / epoch)


Outcome = dict[int, tuple[dict[str, Any], list[float]]]  # of each trial: its settings, and its errors by epoch


def front(error: float) -> dict[str, float]:
    return {"val/mae": error}


def behind(error: float) -> dict[str, float]:
    """What is told where some faces are seen from behind: there the geodesic error decides."""
    return {"val/mae": 180 - error, "val/geodesic": error, "val/geodesic_behind": error}


def play(
    made: PipelineSpec,
    folder: Path,
    dice: random.Random,
    at_once: int,
    fails: tuple[int, ...] = (),
    scores: Callable[[float], dict[str, float]] = front,
) -> Outcome:
    """Tune's part: so many trials at once, an epoch of any of them after the other, the driver cut off now and then."""
    searcher, scheduler = Rounds(made), AgainstEarlierRounds(made)
    running: dict[str, dict[str, Any]] = {}
    found: Outcome = {}
    while True:
        if dice.random() < 0.2:
            searcher.save(str(folder / "state"))
            searcher = Rounds(made)
            searcher.restore(str(folder / "state"))
            scheduler = AgainstEarlierRounds(made)
        if len(running) < at_once and dice.random() < 0.7:
            name = f"{dice.random():.12f}"
            config = searcher.suggest(name)
            if config == Rounds.FINISHED and not running:
                return found
            if isinstance(config, dict):
                running[name] = config
                number = config[NUMBER]
                found[number] = ({key: value for key, value in config.items() if key != NUMBER}, [])
        if not running:
            continue
        name = dice.choice(list(running))
        number = running[name][NUMBER]
        changes, errors = found[number]
        if number in fails and len(errors) == 1:
            searcher.on_trial_complete(running.pop(name) and name, error=True)
            continue
        errors.append(error(changes, len(errors) + 1))
        rows = [{"epoch": epoch, **scores(value)} for epoch, value in enumerate(errors, start=1)]
        write_json(trial_file(folder, number), {"history": rows})
        result = {"training_iteration": len(errors), "val_error": errors[-1], "best_val_error": min(errors)}
        trials = [
            SimpleNamespace(config={NUMBER: n}, last_result={"training_iteration": len(e)})
            for n, (_, e) in found.items()
        ]
        controller = SimpleNamespace(get_trials=lambda known=trials: known, experiment_path=f"{folder}/tune")
        decided = scheduler.on_trial_result(controller, SimpleNamespace(config=running[name]), result)
        if decided == "STOP" or len(errors) == made.search.epochs:
            del running[name]
            searcher.on_trial_complete(name, result)


def test_a_round_is_proposed_after_the_errors_of_every_trial_before(tmp_path: Path) -> None:
    made = searched()
    found = play(made, tmp_path, random.Random(3), at_once=2)
    proposer, last = Proposer(made), list[int]()
    for first in (1, 4, 7):
        own = list(range(first, first + 3))
        assert proposer.round([min(found[n][1]) for n in last]) == [found[n][0] for n in own]
        last = own


FAILS: tuple[tuple[int, ...], ...] = ((), (2,), (1, 5))


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Outcome]:
    """By the trials that fail, the outcome of one trial after the other."""
    return {
        fails: play(searched(), tmp_path_factory.mktemp("one-by-one"), random.Random(0), 1, fails) for fails in FAILS
    }


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from(FAILS))
def test_the_outcome_does_not_depend_on_speed_places_or_cuts(tmp_path_factory, one_by_one, seed, at_once, fails):
    found = play(searched(), tmp_path_factory.mktemp("search"), random.Random(seed), at_once, fails)
    assert found == one_by_one[fails] and sorted(found) == list(range(1, 10))
    whole = [number for number, (_, errors) in found.items() if len(errors) == 6]
    assert whole and len(whole) < 9, "somebody is stopped, and somebody not"


@pytest.mark.parametrize("scores", [front, behind])
def test_the_first_round_is_never_stopped_and_later_ones_are_measured_by_it(tmp_path, scores):
    found = play(searched(), tmp_path, random.Random(1), 2, scores=scores)
    for number, (_, errors) in found.items():
        earlier = [other for n, (_, other) in found.items() if n <= (number - 1) // 3 * 3]
        for rung in (1, 4):
            there = [other[rung - 1] for other in earlier if len(other) >= rung]
            if len(errors) > rung:
                assert not there or errors[rung - 1] <= np.percentile(there, 25)
            elif len(errors) == rung:
                assert there and errors[rung - 1] > np.percentile(there, 25)
                break


@given(st.integers(1, 9), st.integers(1, 99))
def test_rungs_lie_before_the_end_and_grow(grace, epochs):
    found = rungs(grace, epochs)
    assert found[:1] == ([grace] if grace < epochs else [])
    assert all(later == 4 * sooner for sooner, later in pairwise(found))
    assert all(rung < epochs for rung in found) and (not found or 4 * found[-1] >= epochs)


@pytest.mark.parametrize(("value", "others", "lost"), [(5, [], False), (5, [5], False), (6, [5], True)])
def test_nobody_loses_against_nobody_or_an_equal(value, others, lost):
    assert loses(value, others) is lost
    assert loses(float("nan"), [5.0]), "what came out as no number is no winner"
    for others in ([float("nan")], [float("nan"), 5.0], [float("inf"), float("nan"), 5.0]):
        assert not loses(4.0, others), "and stops nobody else"
        assert loses(6.0, others) == (5.0 in others)


def test_a_search_goes_on_in_a_store_that_was_moved(tmp_path):
    """Tune keeps the scheduler as it was made; where the other trials' errors lie, it knows of each run anew."""
    scheduler = pickle.loads(pickle.dumps(AgainstEarlierRounds(searched())))
    first = SimpleNamespace(config={NUMBER: 1}, last_result={"training_iteration": 1})
    for place in ("here", "there"):
        write_json(trial_file(tmp_path / place, 1), {"history": [{"epoch": 1, **front(5.0)}]})
        tune = SimpleNamespace(get_trials=lambda: [first], experiment_path=str(tmp_path / place / "tune"))
        for error, decided in ((4.0, scheduler.CONTINUE), (6.0, scheduler.STOP)):
            result = {"training_iteration": 1, "val_error": error}
            assert scheduler.on_trial_result(tune, SimpleNamespace(config={NUMBER: 4}), result) == decided
        shutil.rmtree(tmp_path / place)


def test_a_trial_counts_by_its_best_epoch_and_one_without_any_has_failed():
    """The last epoch may be a worse one, and chance decides which one it is."""
    rounds = Rounds(searched())
    for name in "abc":
        rounds.suggest(name)
    rounds.on_trial_complete("a", {"val_error": 9.0, "best_val_error": 3.0})
    rounds.on_trial_complete("b", {"training_iteration": 0})
    rounds.on_trial_complete("c", {"val_error": 2.0, "best_val_error": 2.0}, error=True)
    assert rounds.errors == {"a": 3.0, "b": None, "c": None}


def test_no_more_trials_run_than_there_is_room_for(tmp_path):
    """Rounds of three where two have room: trials that hold every CPU would wait for their readers for ever."""
    rounds = Rounds(searched(), at_once=2)
    assert [isinstance(rounds.suggest(name), dict) for name in "abc"] == [True, True, False]
    rounds.on_trial_complete("b", error=True)
    rounds.save(str(tmp_path / "state"))
    again = Rounds(searched(), at_once=2)
    again.restore(str(tmp_path / "state"))
    for each in (rounds, again):
        assert each.suggest("c") is not None and each.suggest("d") is None, "one that has failed makes room"
        each.on_trial_complete("a", {"best_val_error": 2.0})
        assert each.suggest("d") is None, "the round is not over"
        each.on_trial_complete("c", {"best_val_error": 1.0})
        assert [isinstance(each.suggest(name), dict) for name in "def"] == [True, True, False]


def test_without_a_space_there_is_one_trial(tmp_path):
    rounds = Rounds(spec({}))
    assert rounds.suggest("a") == {NUMBER: 1} and rounds.suggest("b") == Rounds.FINISHED
