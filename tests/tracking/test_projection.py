"""Laws of what a store says: who made a stage, what runs, what was killed, and in which order it is told."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.places import model_in, told
from workflows.tracking.facts import Point, RunFacts, git_commit
from workflows.tracking.projection import facts_of


def say(file: Path, tree: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree))


def begin(store: Path, key: str, stages: list[str], reused: Sequence[str] = (), **words: Any) -> None:
    """The run's file, as the runner writes it."""
    run = RunFacts(key, **{"name": "demo", "started_ms": 1000, "tags": {"commit": key[-1] * 7}, **words})
    beside = {"stages": stages, "reused": [*reused], "pid": os.getpid(), "host": platform.node()}
    say(store / key / "run.json", run.to_json() | beside)


def finish(store: Path, key: str, parent: str, ended_ms: int = 2000, children: Sequence[RunFacts] = ()) -> None:
    stage = RunFacts(key, key.split("/")[0], parent, "FINISHED", 1000, ended_ms)
    say(store / key / "manifest.json", {"told": stage.to_json(), "children": [each.to_json() for each in children]})


def by_key(store: Path, held: bool = False) -> dict[str, RunFacts]:
    facts = facts_of(store, held)
    keys = [run.key for run in facts]
    assert len(set(keys)) == len(keys)
    for place, run in enumerate(facts):
        assert run.parent is None or run.parent in keys[:place], "parents come first"
    return {run.key: run for run in facts}


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_facts_are_the_same_after_json(tmp_path):
    odd = RunFacts("a", "a", points=(Point("x", math.inf, 0, 1),), model=model_in(tmp_path), home=tmp_path)
    for run in [*told(tmp_path), odd]:
        assert RunFacts.from_json(json.loads(json.dumps(run.to_json() | {"pid": 1})), run.home) == run
    unknown = replace(odd, points=(Point("x", math.nan, 0, 1),)).to_json()
    nan = RunFacts.from_json(json.loads(json.dumps(unknown)), tmp_path)
    assert math.isnan(nan.points[0].value)
    with pytest.raises(ValueError, match="a run's key is made of letters"):
        RunFacts("it's", "quoted")


def test_a_finished_run_tells_itself_its_stages_and_their_networks(tmp_path):
    begin(tmp_path, "pipeline/1", ["shards/a", "teachers/b", "labels/c"], status="FINISHED", ended_ms=3000)
    finish(tmp_path, "shards/a", "pipeline/1")
    network = RunFacts("teachers/b/resnet", "teachers: resnet", "teachers/b", "FINISHED", points=(Point("x", 1, 0, 1),))
    finish(tmp_path, "teachers/b", "pipeline/1", children=[network])
    found = by_key(tmp_path)
    assert list(found) == ["pipeline/1", "shards/a", "teachers/b", "teachers/b/resnet"], "labels never began"
    assert {run.tags["commit"] for run in found.values()} == {"1111111"}
    assert found["teachers/b/resnet"].points == network.points
    assert found["teachers/b/resnet"].home == found["teachers/b"].home == tmp_path / "teachers/b"


def test_a_stage_belongs_to_the_run_that_made_it(tmp_path):
    """Run 1 was cut off in the shards, run 2 finished them, and run 3 read them; run 1 is not continued."""
    ended = {"status": "FINISHED", "ended_ms": 9}
    begin(tmp_path, "pipeline/3", ["shards/a", "labels/z"], ["shards/a"], started_ms=3000, **ended)
    begin(tmp_path, "pipeline/1", ["shards/a", "labels/x"], started_ms=1000)
    begin(tmp_path, "pipeline/2", ["shards/a", "labels/y"], started_ms=2000)
    (tmp_path / "shards/a").mkdir(parents=True)
    assert by_key(tmp_path)["shards/a"].parent == "pipeline/2"
    finish(tmp_path, "shards/a", "pipeline/2")
    begin(tmp_path, "pipeline/2", ["shards/a", "labels/y"], ["shards/a"], started_ms=2000)  # it was cut off after them
    found = by_key(tmp_path)
    assert found["shards/a"].parent == "pipeline/2"
    assert found["pipeline/3"].tags["reused.shards"] == "shards/a"
    for lost in ("pipeline/1", "pipeline/2"):
        (tmp_path / lost / "run.json").unlink()
    assert by_key(tmp_path)["shards/a"].parent == "pipeline/3", "its run's file is lost, it is not"


def test_only_a_run_whose_process_works_in_the_store_is_running(tmp_path):
    def statuses(held: bool) -> list[str]:
        return [by_key(tmp_path, held)[key].status for key in ("pipeline/1", "shards/a")]

    begin(tmp_path, "pipeline/1", ["shards/a"])
    (tmp_path / "shards/a").mkdir(parents=True)
    assert statuses(held=True) == ["RUNNING", "RUNNING"]
    assert statuses(held=False) == ["KILLED", "KILLED"]
    assert by_key(tmp_path)["shards/a"].ended_ms == by_key(tmp_path)["pipeline/1"].ended_ms is not None
    file = tmp_path / "pipeline/1/run.json"
    tree = json.loads(file.read_text())
    say(file, tree | {"pid": gone()})
    assert statuses(held=True) == ["KILLED", "KILLED"], "somebody else holds the store"
    say(file, tree | {"pid": gone(), "host": "elsewhere"})
    assert statuses(held=True) == ["RUNNING", "RUNNING"], "its process cannot be seen from here"
    begin(tmp_path, "pipeline/2", [], started_ms=5000)
    assert statuses(held=True) == ["KILLED", "KILLED"], "a store is held by one run, the newest"


def test_a_failed_stage_says_why_and_shows_what_it_has(tmp_path):
    begin(tmp_path, "pipeline/1", ["shards/a", "teachers/b"], status="FAILED", ended_ms=7000)
    finish(tmp_path, "shards/a", "pipeline/1", ended_ms=4000)
    say(tmp_path / "teachers/b/failed.json", {"error": "no room", "time_ms": 6000})
    failed = by_key(tmp_path)["teachers/b"]
    assert (failed.status, failed.started_ms, failed.ended_ms) == ("FAILED", 4000, 6000), "it began after the shards"
    assert failed.tags == {"stage": "teachers", "error": "no room", "commit": "1111111"}
    stage = RunFacts("teachers/b", "teachers", "pipeline/1", "FAILED", points=(Point("x", 1, 0, 1),))
    child = RunFacts("teachers/b/resnet", "resnet", "teachers/b", "FINISHED")
    noted = {"told": stage.to_json(), "children": [child.to_json()]}
    say(tmp_path / "teachers/b/failed.json", {"error": "no room", "time_ms": 6000} | noted)
    found = by_key(tmp_path)
    assert found["teachers/b"].points == stage.points and found["teachers/b"].tags["error"] == "no room"
    assert found["teachers/b/resnet"].status == "FINISHED"
    finish(tmp_path, "teachers/b", "pipeline/1")
    assert "error" not in by_key(tmp_path)["teachers/b"].tags, "the next try made it"


def test_a_damaged_file_tells_nothing(tmp_path):
    begin(tmp_path, "pipeline/1", ["shards/a"], status="FINISHED", ended_ms=1)
    begin(tmp_path, "pipeline/2", [])
    finish(tmp_path, "shards/a", "pipeline/1")
    (tmp_path / "shards/a/manifest.json").write_text('{"told": {"ke')
    (tmp_path / "pipeline/2/run.json").write_text("")
    found = by_key(tmp_path)
    assert list(found) == ["pipeline/1", "shards/a"] and found["shards/a"].status == "KILLED"
    assert facts_of(tmp_path / "nowhere") == []


def test_git_commit_names_the_commit_and_its_changes(tmp_path, monkeypatch):
    assert git_commit(tmp_path / "nowhere") == "unknown"
    repo = tmp_path / "repo"
    repo.mkdir()
    for name in (f"GIT_{who}_{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")):
        monkeypatch.setenv(name, "t@example.org")
    (repo / "f").write_text("1")
    for words in (["init", "-q"], ["add", "f"], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(repo), *words], check=True)
    clean = git_commit(repo)
    assert len(clean) == 40
    (repo / "lib").mkdir()
    assert git_commit(repo / "lib") == "unknown", "the commit of a repository above says nothing about installed code"
    (repo / "f").write_text("2")
    assert git_commit(repo) == clean + "-dirty"
