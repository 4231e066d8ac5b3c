"""Stage "student": the student learns from soft labels (EHPNet eq. 5, offsets eq. 7), its twin from hard ones alone.

Short trials prefer what learns fast, so of several finalists (`search.finalists`) the one with the smallest validation
error after its whole training is the student. Its twin has the same backbone, budget, seed and augmentation: the
difference between the two is what distillation is worth.
"""

import dataclasses
import shutil
from typing import Any

from hpe_core.spec.pipeline import PipelineSpec, student_with
from hpe_core.spec.serde import to_dict
from hpe_core.spec.training import TrainSpec
from workflows.engine.cluster.connection import capacity
from workflows.engine.cluster.placement import placed
from workflows.engine.results import Finalist, Role, SearchResult, StudentResult
from workflows.engine.stage import StageRun
from workflows.training.jobs import batching, job_for
from workflows.training.networks import train_all


def depends(spec: PipelineSpec) -> dict[str, Any]:
    """The student's keys, how many finalists there are, and what decides batches."""
    return {"student": to_dict(spec.student), "finalists": spec.search.finalists, **batching(spec, "student")}


def run(stage: StageRun) -> StudentResult:
    """Train the search's finalists to the end; the best of them is the student, and its hard-label twin learns, too."""
    chosen = finalists(stage.results.search, stage.spec.search.finalists)
    students = [student_with(stage.spec.student, changes) for changes in chosen]
    if len(students) == 1:
        jobs = [job_for(stage, Role.DISTILLED, students[0]), job_for(stage, Role.HARD, hard_twin(students[0]))]
        trained = train_all(jobs, stage)
        return StudentResult(trained[Role.DISTILLED], trained[Role.HARD], students[0])
    names = [f"finalist-{place}" for place in range(1, len(students) + 1)]
    twins = list(map(hard_twin, students))
    # Who wins is not known yet: where there is room, twins learn beside the finalists, so that nobody waits for one.
    early = list(dict.fromkeys(twins))[: max(0, room(stage) - len(students))]
    called = {twin: f"twin-{number}" for number, twin in enumerate(early, start=1)}
    pairs = [*zip(names, students, strict=True), *((name, twin) for twin, name in called.items())]
    ended = train_all([job_for(stage, *each) for each in pairs], stage)
    best = min(range(len(names)), key=lambda place: ended[names[place]].val_error)
    if twins[best] not in called:
        called[twins[best]] = Role.HARD.value
        ended |= train_all([job_for(stage, Role.HARD.value, twins[best])], stage)
    own_twin = called[twins[best]]
    for name, role in ((names[best], Role.DISTILLED), (own_twin, Role.HARD)):
        if name != role:
            shutil.rmtree(stage.folder / role, ignore_errors=True)  # of a run that was cut off here
            (stage.folder / name).rename(stage.folder / role)
    for name in {*names, *called.values()} - {Role.HARD}:  # the store keeps every network that was trained
        shutil.rmtree(stage.folder / name, ignore_errors=True)
    rivals = [Finalist(name, changes, ended[name]) for name, changes in zip(names, chosen, strict=True)]
    paired = [Finalist(name, chosen[twins.index(twin)], ended[name]) for twin, name in called.items()]
    return StudentResult(ended[names[best]], ended[own_twin], students[best], tuple(rivals), tuple(paired))


def finalists(search: SearchResult, count: int) -> list[dict[str, Any]]:
    """The changes of up to `count` trials, best first; of several, the configured student's own are one if tried."""
    ranked = [trial.changes for trial in search.trials] or [search.best]
    chosen = [changes for place, changes in enumerate(ranked) if changes not in ranked[:place]][:count]
    own = next((trial.changes for trial in search.trials if trial.configured), None)
    if count > 1 and own is not None and own not in chosen:
        chosen[-1] = own
    return chosen


def room(stage: StageRun) -> int:
    """How many networks learn at once on this cluster."""
    return placed(stage.spec, stage.name, capacity(stage.spec.cluster)).at_once


def hard_twin(student: TrainSpec) -> TrainSpec:
    """The same network, budget, seed and augmentation, without a teacher."""
    return dataclasses.replace(student, distill=None)
