"""What the search proposes: the configured student first, then what small errors speak for."""

import copy
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from hpe_core.spec.pipeline import PipelineSpec, SearchSpace, student_with
from hpe_core.spec.serde import build, to_dict
from tests.stages.test_search import result
from workflows.engine.config import load
from workflows.searching.proposals import Proposer, decode_changes, distribution, encode_choice, first_point
from workflows.stages.search import ranked

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
    rows = ranked([result(5.0, number=1), result(4.0, number=2)], made)
    assert {row.trial: row.configured for row in rows} == {"001": inside, "002": False}
    point = first_point(made)
    assert set(point) == (set(SPACE) if inside and space is None else set())
    assert student_with(made.student, decode_changes(point)) == made.student
    first, *_ = Proposer(made).round([])
    assert (first == point) == inside


@pytest.mark.parametrize("seed", [0, 1])
def test_every_proposal_makes_a_student_and_small_errors_are_sought(seed):
    """Told that small steps err least, the search proposes smaller ones."""
    made = spec(**INSIDE, seed=seed)
    tree = to_dict(made)
    made = build(PipelineSpec, tree | {"search": tree["search"] | {"trials": 24, "concurrent": 2}})
    proposer, rates, errors = Proposer(made), list[float](), list[float]()
    while changed := proposer.round(errors):
        students = [student_with(made.student, decode_changes(changes)) for changes in changed]
        for changes, student in zip(changed, students, strict=True):
            assert set(changes) == set(SPACE) and 0.001 <= student.optim.lr <= 0.1
            assert 1 <= student.optim.accumulate <= 4 and student.net.bin_widths in ((3, 9), (3,))
        assert changed[0] != changed[1]
        errors = [100 * student.optim.lr for student in students]
        rates += [student.optim.lr for student in students]
    assert len(rates) == 24 and sum(rates[-8:]) / 8 < 0.5 * sum(rates[1:9]) / 8


def test_another_seed_of_the_student_searches_elsewhere_and_the_same_one_there_again():
    def proposed(seed: int) -> list[dict[str, Any]]:
        tree = to_dict(spec(**INSIDE, seed=seed))
        proposer = Proposer(build(PipelineSpec, tree | {"search": tree["search"] | {"concurrent": 3}}))
        return [*proposer.round([]), *proposer.round([3.0, 2.0, 1.0])]

    assert proposed(1) == proposed(1) != proposed(2)
    assert proposed(1)[0] == proposed(2)[0], "the configured student is the first of both"


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_a_range_is_searched_on_the_scale_that_it_names(whole, log):
    entry = SearchSpace(low=2, high=64, log=log)
    found = distribution(entry, whole)
    kind = IntDistribution if whole else FloatDistribution
    assert type(found) is kind and (found.low, found.high, found.log) == (2, 64, log)


@pytest.mark.parametrize("value", [(3.0, 9.0), [], ["a", "b"], "test_resnet", 2, 0.5, True, "none"])
def test_a_choice_survives_the_way_through_optuna(value):
    (found,) = decode_changes({"key": encode_choice(value)}).values()
    assert found == value and type(found) is type(value)
