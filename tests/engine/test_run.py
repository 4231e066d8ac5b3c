"""What a run does with the stages, without Ray and MLflow: in order, only what is not finished, and nothing in vain."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpe_core.errors import SpecError
from hpe_core.spec.pipeline import PipelineSpec
from tests.engine.test_store import TOY, spec_in
from workflows import full_pipeline
from workflows.engine.config import load
from workflows.engine.store import Planned, execute, plan
from workflows.full_pipeline import check_backbones, run_pipeline
from workflows.tracking.progress import Reporter


class Driven:
    """Stands for the driver's side of a run; remembers which stages it ran, and how often it was opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.opened = 0
        self.asked = 0
        self.dies = ""
        monkeypatch.setattr(full_pipeline, "Drive", self.open)
        monkeypatch.setattr(full_pipeline, "check_backbones", self.ask)

    def ask(self, spec: PipelineSpec) -> None:
        self.asked += 1

    def open(self, spec: PipelineSpec, planned: dict[str, Planned]) -> "Driven":
        self.spec, self.planned = spec, planned
        self.opened += 1
        return self

    def __enter__(self) -> "Driven":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, entry: Planned) -> None:
        if entry.stage.name == self.dies:
            raise RuntimeError("died")
        execute(entry, self.spec, self.planned, Reporter())
        self.ran.append(entry.stage.name)


def test_a_run_does_what_is_not_finished_in_order_and_the_next_one_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven, spec = Driven(monkeypatch), spec_in(tmp_path)
    driven.dies = "second"
    with pytest.raises(RuntimeError, match="died"):
        run_pipeline(spec, TOY)
    assert driven.ran == ["first"]
    driven.dies = ""
    results = run_pipeline(spec, TOY)
    assert driven.ran == ["first", "second", "third"] and (driven.opened, driven.asked) == (2, 2)
    assert {name: result["saw"] for name, result in results.items()} == {
        "first": [],
        "second": ["first"],
        "third": ["second"],
    }
    assert run_pipeline(spec, TOY) == results
    assert len(driven.ran) == 3 and (driven.opened, driven.asked) == (2, 2), "neither Ray nor timm is loaded in vain"
    (plan(TOY, spec)[1].folder / "count").unlink()
    assert run_pipeline(spec, TOY) == results and driven.ran[3:] == ["second"]
    changed = spec_in(tmp_path, "student.optim.lr=0.5")
    assert run_pipeline(changed, TOY)["second"]["value"] == 0.5 and driven.ran[4:] == ["second", "third"]


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


def test_numbers_of_a_stage_are_those_of_its_result() -> None:
    """Told to MLflow, and in the line that ends the stage."""
    networks: Any = {"networks": {"distilled": {"val_mae": 4.25}, "hard": {"val_mae": 5.5}}, "finalists": []}
    assert full_pipeline.stage_metrics("student", networks) == {"distilled/val_mae": 4.25, "hard/val_mae": 5.5}
    assert full_pipeline.headline("student", networks) == "; validation MAE distilled 4.25, hard 5.50"
    best = {"best_val_mae": 3.0, "changes": {"optim.lr": 0.0123456}}
    search: Any = {"best": best, "trials": [best, {"best_val_mae": 9.0}], "failed": 1}
    assert full_pipeline.stage_metrics("search", search) == {"trials": 2, "best_val_mae": 3.0}
    assert full_pipeline.headline("search", search) == "; best of 2 trials (1 failed) 3.00 with lr=0.0123"
    none: Any = {"best": {"changes": {}}, "trials": [], "failed": 0}
    assert full_pipeline.stage_metrics("search", none) == {"trials": 0}
    shards: Any = {"splits": {"heads.val": {"kept": 3, "input": 5}}}
    assert full_pipeline.stage_metrics("shards", shards) == {"heads.val/kept": 3, "heads.val/input": 5}
