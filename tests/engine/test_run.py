"""What a run does with the stages, without Ray and MLflow: in order, only what is not finished, and nothing in vain."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpe_core.errors import SpecError
from hpe_core.spec.pipeline import PipelineSpec
from tests.engine.test_store import TOY, spec_in
from workflows.engine import pipeline
from workflows.engine.config import load
from workflows.engine.pipeline import check_backbones, run, run_alone
from workflows.engine.plan import Planned, plan
from workflows.engine.runner import execute
from workflows.engine.store import Plan, Store
from workflows.tracking.progress import Reporter


class Driven:
    """Stands for the driver's side of a run; remembers which stages it ran, and how often it was opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.opened = 0
        self.asked = 0
        self.dies = ""
        monkeypatch.setattr(pipeline, "Runner", self.open)
        monkeypatch.setattr(pipeline, "check_backbones", self.ask)

    def ask(self, spec: PipelineSpec) -> None:
        self.asked += 1

    def open(self, store: Store, planned: Plan) -> "Driven":
        self.store, self.planned = store, planned
        self.opened += 1
        return self

    def __enter__(self) -> "Driven":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, entry: Planned) -> None:
        if entry.stage.name == self.dies:
            raise RuntimeError("died")
        execute(self.store, self.planned, entry, Reporter())
        self.ran.append(entry.stage.name)


def test_a_run_does_what_is_not_finished_in_order_and_the_next_one_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven, spec = Driven(monkeypatch), spec_in(tmp_path)
    driven.dies = "second"
    with pytest.raises(RuntimeError, match="died"):
        run(TOY, spec)
    assert driven.ran == ["first"]
    driven.dies = ""
    results = run(TOY, spec)
    assert driven.ran == ["first", "second", "third"] and (driven.opened, driven.asked) == (2, 2)
    saw = {name: result.saw for name, result in results.found.items()}
    assert saw == {"first": (), "second": ("first",), "third": ("second",)}
    assert run(TOY, spec) == results
    assert len(driven.ran) == 3 and (driven.opened, driven.asked) == (2, 2), "neither Ray nor timm is loaded in vain"
    (plan(TOY, spec)[1].folder / "count").unlink()
    assert run(TOY, spec) == results and driven.ran[3:] == ["second"]
    changed = spec_in(tmp_path, "student.optim.lr=0.5")
    assert run(TOY, changed).found["second"].value == 0.5 and driven.ran[4:] == ["second", "third"]


def test_every_backbone_that_may_be_asked_for_is_looked_up_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = load(["tests/tiny.yaml"], ["student.net.backbone=a", "search.space.net.backbone.choice=[b,c]"])
    answer = SimpleNamespace(returncode=0, stdout="", stderr="")
    asked: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: asked.append(words[3:]) or answer)
    check_backbones(spec)
    assert asked == [["a", "b", "c", "test_byobnet", "test_resnet"]]
    for said in ({"stdout": "no backbone b\n"}, {"returncode": 1, "stderr": "trace\nno module timm"}):
        answer.__dict__.update({"returncode": 0, "stdout": "", "stderr": ""} | said)
        with pytest.raises(SpecError, match="no backbone b|timm cannot be imported: no module timm"):
            check_backbones(spec)


def test_a_stage_alone_runs_where_those_that_it_reads_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven, spec = Driven(monkeypatch), spec_in(tmp_path)
    with pytest.raises(SpecError, match="stage second needs first, not finished .*: run first, or the whole pipeline"):
        run_alone(TOY, spec, "second", as_json=False)
    assert run_alone(TOY, spec, "first", as_json=False) == f"first: {plan(TOY, spec)[0].folder}"
    said = json.loads(run_alone(TOY, spec, "second", as_json=True))
    assert said == {"value": spec.student.optim.lr, "saw": ["first"]}
    run_alone(TOY, spec, "second", as_json=True)
    assert driven.ran == ["first", "second"]
