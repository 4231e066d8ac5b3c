"""Who is trained to the end after a search, and who of them becomes the student."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.spec.pipeline import student_with
from hpe_core.spec.serde import to_dict
from workflows.engine.config import load
from workflows.engine.results import NetworkResult, Results, SearchResult, Trial
from workflows.stages import student as stage_student
from workflows.stages.student import finalists

OWN = {"optim.lr": 0.005}


def searched(*errors: float, own: int | None = None, alike: int = 1) -> SearchResult:
    """A search's result with these validation errors; trial `own` had the configured student's settings.

    So many trials after each other have the same settings: a space of few choices is soon searched twice.
    """
    settings = [OWN if i == own else {"optim.lr": 0.01 + i // alike} for i in range(len(errors))]
    each = zip(settings, errors, strict=True)
    trials = [Trial(str(i), changes, i == own, mae, 1, 1.0, 1.0, 1.0) for i, (changes, mae) in enumerate(each)]
    return SearchResult(tuple(sorted(trials, key=lambda trial: trial.best_val_error)))


@given(st.lists(st.floats(1, 20), min_size=1, max_size=8), st.integers(1, 10), st.data())
def test_the_best_trial_is_among_them_and_so_are_the_own_settings(errors, count, data):
    own = data.draw(st.none() | st.integers(0, len(errors) - 1))
    search = searched(*errors, own=own, alike=data.draw(st.integers(1, 3)))
    different = {trial.changes["optim.lr"] for trial in search.trials}
    chosen = finalists(search, count)
    assert len(chosen) == min(count, len(different)) and all(chosen.count(each) == 1 for each in chosen)
    assert chosen[0] == search.best
    assert OWN in chosen or own is None or count == 1
    if own is None:
        best = {trial.changes["optim.lr"]: trial.best_val_error for trial in reversed(search.trials)}
        assert [best[changes["optim.lr"]] for changes in chosen] == sorted(best.values())[:count]


def test_without_a_search_the_student_is_as_configured():
    assert finalists(SearchResult(), 3) == [{}]


@pytest.mark.parametrize("winner", ["finalist-1", "finalist-2", "distilled"])
@pytest.mark.parametrize("room", [1, 3, 4])
def test_the_student_is_the_one_that_ends_best_and_the_twin_is_its_own(tmp_path, monkeypatch, winner, room):
    """Of two finalists, or the only one, which has no rival and is called by its name at once.

    Twins learn beside the finalists where there is room, and else the winner's alone after them.
    """
    alone = winner == "distilled"
    spec = load(["tests/tiny.yaml"], [f"search.finalists={1 if alone else 2}"])
    search = searched(6.0, 7.0, 8.0, own=2)
    stage: Any = SimpleNamespace(spec=spec, folder=tmp_path, results=Results({"search": search}))
    trained, rounds = {}, []

    def train_all(jobs: list[Any], stage: Any) -> dict[str, NetworkResult]:
        rounds.append([name for name, _ in jobs])
        for name, student in jobs:
            trained[name] = student
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.json").write_text(name)
        return {name: NetworkResult(5.0 if name == winner else 6.0, 1, 1, 1.0, ()) for name, _ in jobs}

    monkeypatch.setattr(stage_student, "job_for", lambda stage, name, student: (name, student))
    monkeypatch.setattr(stage_student, "train_all", train_all)
    monkeypatch.setattr(stage_student, "room", lambda stage: room)
    result = stage_student.run(stage)
    lr = {"finalist-1": 0.01, "finalist-2": OWN["optim.lr"], "distilled": 0.01}[winner]
    student = student_with(spec.student, {"optim.lr": lr})
    assert result.spec == student == trained[winner]
    twin = (tmp_path / "hard" / "model.json").read_text()
    assert to_dict(trained[twin]) == to_dict(student) | {"distill": None}, "but for the teachers it is the student"
    if not alone:
        first = ["finalist-1", "finalist-2", *["twin-1", "twin-2"][: max(0, room - 2)]]
        assert rounds == [first] + ([["hard"]] if twin == "hard" else [])
        assert (twin == "hard") == (room == 1 or (room == 3 and winner == "finalist-2"))
    assert (tmp_path / "distilled" / "model.json").read_text() == winner
    assert {path.name for path in tmp_path.iterdir()} == {"distilled", "hard"}
    assert (result.student.val_error, result.twin.val_error) == (5.0, 6.0)
    rivals = [] if alone else [(0.01, winner == "finalist-1"), (OWN["optim.lr"], winner == "finalist-2")]
    assert [(rival.changes["optim.lr"], rival.val_error == 5.0) for rival in result.finalists] == rivals
