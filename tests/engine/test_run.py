"""What a run does with the stages, without Ray and MLflow: in order, only what is not finished, and nothing in vain."""

import json
import subprocess
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from hpe_core.errors import SpecError
from hpe_core.spec.pipeline import PipelineSpec
from tests.engine.test_store import TOY, Counted, counting, spec_in
from workflows.engine import pipeline
from workflows.engine.config import load
from workflows.engine.pipeline import check_backbones, registered_backbones, run, run_alone
from workflows.engine.plan import Planned, plan
from workflows.engine.runner import execute
from workflows.engine.stage import Stage
from workflows.engine.store import Plan, Store
from workflows.storage.mirror import Mirror
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

    def open(self, store: Store, planned: Plan, names: Sequence[str]) -> "Driven":
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


def test_a_run_does_what_is_not_finished_in_order_and_the_next_one_nothing(tmp_path, monkeypatch):
    driven, spec = Driven(monkeypatch), spec_in(tmp_path)
    driven.dies = "second"
    with pytest.raises(RuntimeError, match="died"):
        run(TOY, spec)
    assert driven.ran == ["first"]
    driven.dies = ""
    results = run(TOY, spec)
    assert driven.ran == ["first", "second", "third"] and (driven.opened, driven.asked) == (2, 2)
    saw = {"first": (), "second": ("first",), "third": ("second",)}
    assert results.found == {name: Counted(spec.student.optim.lr, seen) for name, seen in saw.items()}
    assert run(TOY, spec) == results
    assert len(driven.ran) == 3 and (driven.opened, driven.asked) == (2, 2), "neither Ray nor timm is loaded in vain"
    (plan(TOY, spec)[1].folder / "count").unlink()
    assert run(TOY, spec) == results and driven.ran[3:] == ["second"]
    changed = spec_in(tmp_path, "student.optim.lr=0.5")
    assert run(TOY, changed).found["second"] == Counted(0.5, ("first",)) and driven.ran[4:] == ["second", "third"]
    assert run(TOY, spec) == results and len(driven.ran) == 6, "the old results are still there"


def test_a_stage_runs_alone_once_those_that_it_reads_are_whole(tmp_path, monkeypatch):
    """The stage that comes first in a sentence says what to do; what it made is printed, in words or as JSON."""
    driven, spec = Driven(monkeypatch), spec_in(tmp_path)

    def alone(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run_alone(TOY, spec, name, as_json=True))
        return found

    with pytest.raises(SpecError, match=f"second needs first, not finished for .* in {tmp_path}: run first"):
        alone("second")
    assert (driven.ran, driven.opened) == ([], 0)
    for name, saw in (("first", []), ("second", ["first"])):
        assert alone(name) == {"value": spec.student.optim.lr, "saw": saw}
    assert driven.ran == ["first", "second"] and (driven.opened, driven.asked) == (2, 2)
    folders = {entry.stage.name: entry.folder for entry in plan(TOY, spec)}
    assert run_alone(TOY, spec, "first", as_json=False) == f"first: {folders['first']}", "it has no headline"
    assert (driven.opened, driven.asked) == (2, 2), "neither Ray nor timm is loaded in vain"
    (folders["second"] / "count").unlink()
    with pytest.raises(SpecError, match=r"third needs second, .*\(.*count.*\): run second"):
        alone("third")
    (folders["first"] / "count").write_text("7")
    with pytest.raises(SpecError, match="second needs first"):
        alone("second")  # its size is right, so this is found when the stage is about to read it
    assert driven.ran == ["first", "second"]


def test_every_backbone_that_may_be_asked_for_is_looked_up_before_anything_runs(tmp_path, monkeypatch):
    """In timm's source first; what is not there, timm itself is asked for."""
    words = [f"store={tmp_path}", "student.net.backbone=a", "search.space.net.backbone.choice=[b,c]"]
    spec = load(["tests/tiny.yaml"], words)
    answer = SimpleNamespace(returncode=0, stdout="", stderr="")
    asked: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: asked.append(words[3:]) or answer)
    check_backbones(spec)
    assert asked == [["a", "b", "c"]]
    dead = ({"returncode": 1, "stderr": "trace\nno module timm"}, {"returncode": -9})
    for said in ({"stdout": "no backbone b\n"}, *dead):
        answer.__dict__.update({"returncode": 0, "stdout": "", "stderr": ""} | said)
        with pytest.raises(SpecError, match="no backbone b|timm cannot be imported: (no module timm|.* ended with -9)"):
            check_backbones(spec)
    check_backbones(load(["tests/tiny.yaml"], words[:1]))
    assert asked[1:] == [["a", "b", "c"]] * 3, "nobody is asked for those that are in the source"
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None)
    answer.__dict__.update({"returncode": 0, "stdout": ""})
    check_backbones(spec)
    assert asked[4] == ["a", "b", "c", "test_byobnet", "test_resnet"], "where there is no source, for all"


def test_the_source_names_the_backbones_that_timm_makes_and_ours():
    import timm

    import hpe_core.networks.backbones  # noqa: F401  # registers ours

    assert registered_backbones() == set(timm.list_models())


def test_backbones_that_timm_does_not_know_are_all_named(tmp_path):
    words = ["student.net.backbone=resnet81", "teachers.resnet.net.backbone=vitt"]
    spec = load(["tests/tiny.yaml"], [f"store={tmp_path}", *words])
    with pytest.raises(SpecError, match="resnet81.*; .*vitt"):
        check_backbones(spec)


def test_a_stage_alone_looks_at_what_it_reads_and_at_nothing_else(tmp_path, monkeypatch):
    """What others will read may lie far away, and large."""
    Driven(monkeypatch)
    spec = spec_in(tmp_path)
    run(TOY, spec)
    store = Store.open(TOY, spec)
    folders = {name: entry.folder for name, entry in store.plan().items()}
    (folders["third"] / "manifest.json").unlink()
    (folders["second"] / "count").write_text("7")  # the size is right
    (folders["first"] / "count").unlink()
    with store.held():
        assert store.checkout(["first"])["second"].action == "skip"
        assert store.checkout()["second"].action == "repair"


@pytest.mark.parametrize(("name", "trains"), [("teachers", True), ("student", True), ("labels", False)])
def test_networks_are_brought_before_any_is_trained_and_not_in_vain(tmp_path, monkeypatch, name, trains):
    brought: list[Mirror] = []
    monkeypatch.setattr(Mirror, "bring_networks", lambda mirror: brought.append(mirror))
    store = Store.open((Stage(name, counting, (), lambda spec: {}),), spec_in(tmp_path))
    with store.held():
        planned = store.checkout()
        assert brought == ([store.mirror] if trains else [])
        execute(store, planned, planned[name], Reporter())
        brought.clear()
        assert store.checkout()[name].action == "skip" and brought == []
