"""The stage store: what is finished is skipped, a changed key reruns only what depends on it, and says which."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import resource
import subprocess
import sys

import pytest

import workflows.engine.store
from hpe_core.errors import SpecError
from hpe_core.system.files import read_json, write_json
from workflows.engine.config import EXIT_FAILED, REPO, guarded, load
from workflows.engine.store import Stage, StoreHeld, code_hashes, execute, holding, plan, read_manifest
from workflows.tracking.progress import Reporter


def counting(run):
    """A stage that counts its own runs in its folder."""
    count = run.folder / "count"
    count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
    return {"value": run.spec.student.optim.lr, "saw": sorted(run.inputs)}


TOY = (
    Stage("first", "tests.test_stages:counting", (), lambda s: {"count": s.data.datasets["heads"].count}),
    Stage("second", "tests.test_stages:counting", ("first",), lambda s: {"lr": s.student.optim.lr}),
    Stage("third", "tests.test_stages:counting", ("second",), lambda s: {}),
)


def run_toy(spec):
    planned = {entry.stage.name: entry for entry in plan(TOY, spec)}
    for entry in planned.values():
        if entry.action != "skip":
            execute(entry, spec, planned, Reporter())
    return planned


def spec_in(store, *overrides):
    return load(["demo"], [f"store={store}", *overrides])


def actions(entries):
    return [entry.action for entry in entries]


def test_finished_stages_are_skipped_and_changes_reach_only_downstream(tmp_path):
    assert actions(plan(TOY, spec_in(tmp_path))) == ["run", "run", "run"]
    run_toy(spec_in(tmp_path))
    assert actions(plan(TOY, spec_in(tmp_path))) == ["skip", "skip", "skip"]
    changed = plan(TOY, spec_in(tmp_path, "student.optim.lr=0.5"))
    assert actions(changed) == ["skip", "run", "run"]
    assert "lr" in changed[1].reason and "0.5" in changed[1].reason and "second changed" in changed[2].reason
    assert actions(plan(TOY, spec_in(tmp_path, "student.optim.epochs=2"))) == ["skip", "skip", "skip"]
    run_toy(spec_in(tmp_path, "student.optim.lr=0.5"))
    assert actions(plan(TOY, spec_in(tmp_path))) == ["skip", "skip", "skip"], "the old results are still there"


def test_a_folder_without_a_manifest_is_continued(tmp_path):
    planned = run_toy(spec_in(tmp_path))
    (planned["second"].folder / "manifest.json").unlink()
    again = plan(TOY, spec_in(tmp_path))
    assert actions(again) == ["skip", "continue", "skip"]
    run_toy(spec_in(tmp_path))
    assert (planned["second"].folder / "count").read_text() == "2"
    assert (planned["first"].folder / "count").read_text() == "1"
    assert read_manifest(planned["second"].folder)["result"]["saw"] == ["first"]


def dying(run):
    (run.folder / "half").write_text("a part")
    raise RuntimeError("out of memory")


def seen(run):
    return {"key": run.key, "hashes": run.hashes, "results": run.results}


@pytest.mark.parametrize("at", ["in the stage", "before it is finished"])
def test_a_stage_that_fails_at_any_moment_is_continued_not_skipped(tmp_path, at):
    """The manifest comes last: after the stage, and after what is told of it."""
    spec, told = spec_in(tmp_path), []
    stage = Stage("only", f"tests.test_stages:{'dying' if at == 'in the stage' else 'counting'}", (), lambda s: {})
    (entry,) = plan((stage,), spec)

    def before_finish(result):
        assert not (entry.folder / "manifest.json").exists()
        told.append(result)
        raise RuntimeError("the journal is full")

    with pytest.raises(RuntimeError):
        execute(entry, spec, {"only": entry}, Reporter(), before_finish)
    assert read_manifest(entry.folder) is None and len(told) == (at != "in the stage")
    assert actions(plan((stage,), spec)) == ["continue"]


def test_the_manifest_lists_what_the_stage_left_and_what_it_depends_on(tmp_path):
    """What it made it from stands there, too, so that `plan` can say why another run differs."""
    planned = run_toy(spec_in(tmp_path))
    entry = planned["second"]
    manifest = read_manifest(entry.folder)
    sha = hashlib.sha256((entry.folder / "count").read_bytes()).hexdigest()
    assert manifest["files"] == {"count": {"bytes": 1, "sha256": sha}}
    assert (manifest["stage"], manifest["hash"]) == ("second", entry.hash) == tuple(entry.key.split("/"))
    assert manifest["leaves"] == {"lr": spec_in(tmp_path).student.optim.lr}
    assert manifest["inputs"] == {"first": planned["first"].hash} and manifest["code"] == entry.code
    assert entry.folder == tmp_path / "second" / entry.hash


def test_a_stage_is_given_the_results_of_those_that_it_reads_and_of_no_other(tmp_path):
    looking = (*TOY, Stage("last", "tests.test_stages:seen", ("first", "third"), lambda s: {}))
    planned = run_toy(spec_in(tmp_path))
    everything = {entry.stage.name: entry for entry in plan(looking, spec_in(tmp_path))}
    result = execute(everything["last"], spec_in(tmp_path), everything, Reporter())
    assert result["key"] == everything["last"].key
    assert result["hashes"] == {name: planned[name].hash for name in ("first", "third")}
    assert result["results"] == {name: read_manifest(planned[name].folder)["result"] for name in ("first", "third")}


@pytest.mark.parametrize("lost", ["gone", "torn"])
def test_a_finished_stage_that_lost_a_file_is_repaired_unless_it_is_whole_elsewhere(tmp_path, lost):
    planned = run_toy(spec_in(tmp_path))
    count = planned["second"].folder / "count"
    count.unlink() if lost == "gone" else count.write_text("11")
    assert actions(plan(TOY, spec_in(tmp_path))) == ["skip", "repair", "skip"]
    for size, action in ((1, "skip"), (2, "repair")):
        entries = plan(TOY, spec_in(tmp_path), lambda path, size=size: size if path == count else None)
        assert actions(entries) == ["skip", action, "skip"]
    run_toy(spec_in(tmp_path))
    assert actions(plan(TOY, spec_in(tmp_path))) == ["skip"] * 3


def test_the_reason_names_the_change_from_the_run_that_is_most_alike(tmp_path):
    run_toy(spec_in(tmp_path, "student.optim.lr=0.5"))
    run_toy(spec_in(tmp_path, "student.optim.lr=0.25", "data.datasets.heads.count=30"))
    first, second, third = plan(TOY, spec_in(tmp_path, "student.optim.lr=0.125"))
    assert (first.action, second.reason) == ("skip", "lr 0.5 -> 0.125") and third.reason == "second changed"
    fresh = plan(TOY, spec_in(tmp_path / "elsewhere"))
    assert {entry.reason for entry in fresh} == {"never ran in this store"}


def test_a_file_of_json_is_the_old_one_or_the_whole_new_one(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("cut off")))
    with pytest.raises(OSError):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1} and read_json(tmp_path / "nobody.json") is None


def test_code_is_followed_through_every_kind_of_import(tmp_path, monkeypatch):
    """At the top, inside a function, of a module or of a name in it; carriers and other people's code are left out."""
    texts = {
        "hpe_core/start.py": "import json\nimport hpe_core.plain_import\nfrom hpe_core import module_import\n",
        "hpe_core/plain_import.py": "def f():\n    from hpe_core.deep.inner import g\n    return g()\n",
        "hpe_core/module_import.py": "from workflows.engine.receipts import adopt\n",
        "hpe_core/deep/inner.py": "from __future__ import annotations\n",
        "hpe_core/unused.py": "",
        "workflows/pieces.py": "import hpe_core.unused\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(workflows.engine.store, "REPO", tmp_path)
    code_hashes.cache_clear()
    found = code_hashes("hpe_core.start")
    code_hashes.cache_clear()
    names = {"hpe_core.start", "hpe_core.plain_import", "hpe_core.module_import", "hpe_core.deep.inner"}
    assert set(found) == names and len(set(found.values())) == 4


def test_code_counts_but_comments_do_not(tmp_path, monkeypatch):
    import workflows.engine.store as stages

    package = tmp_path / "hpe_core"
    package.mkdir()
    monkeypatch.setattr(stages, "REPO", tmp_path)

    def hashed(text):
        (package / "toy.py").write_text(text)
        code_hashes.cache_clear()
        return code_hashes("hpe_core.toy")

    plain = hashed("def f(x):\n    return x + 1\n")
    assert hashed('"""About."""\n# why\ndef f(x):\n    """Adds."""\n    return x + 1\n') == plain
    assert hashed("def f(x):\n    return x + 2\n") != plain
    code_hashes.cache_clear()


def test_the_second_run_says_who_holds_the_store_and_a_killed_holder_does_not(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from workflows.engine.store import holding\n"
        f"with holding(Path({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True, cwd=REPO)
    assert process.stdout is not None and process.stdout.readline().strip() == "held"
    with pytest.raises(StoreHeld, match=f"process {process.pid} on "), holding(tmp_path):
        pass
    process.kill()
    process.wait()
    with holding(tmp_path):
        pass


def test_a_store_that_cannot_be_written_or_locked_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    match = f"store {tmp_path}/file/runs cannot be used: Not a directory"
    with pytest.raises(SpecError, match=match), holding(tmp_path / "file" / "runs"):
        pass

    def unknown(*ignored):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workflows.engine.store.fcntl, "flock", unknown)
    with pytest.raises(SpecError, match="knows no locks: No locks available"), holding(tmp_path):
        pass


def test_a_full_disk_does_not_keep_anybody_from_the_lock(tmp_path):
    """Who holds it cannot be written then; the stages say what they lack."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file may have a byte
    try:
        with holding(tmp_path):
            locked = os.open(tmp_path / ".lock", os.O_RDWR)
            with pytest.raises(BlockingIOError):
                fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(locked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / ".lock").read_text() == ""


def test_a_disk_that_is_full_before_any_stage_is_a_sentence(capsys):
    def write(code):
        raise OSError(code, os.strerror(code), "/data/runs/spool")

    assert guarded(lambda: write(errno.ENOSPC)) == EXIT_FAILED
    assert "No space left on device: '/data/runs/spool': make room" in capsys.readouterr().err
    with pytest.raises(OSError, match="Input/output"):
        guarded(lambda: write(errno.EIO))


def test_results_are_plain_json(tmp_path):
    planned = run_toy(spec_in(tmp_path))
    manifest = json.loads((planned["third"].folder / "manifest.json").read_text())
    assert {"leaves", "inputs", "code", "finished", "seconds"} <= set(manifest)
    assert dataclasses.is_dataclass(planned["third"])
