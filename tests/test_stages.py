"""The stage store: what is finished is skipped, a changed key reruns only what depends on it, and says which."""

import dataclasses
import errno
import fcntl
import json
import os
import resource
import subprocess
import sys

import pytest

import workflows.stages
from hpe_core.plain import SpecError
from workflows.config import EXIT_FAILED, REPO, guarded, load
from workflows.progress import Reporter
from workflows.stages import (
    Stage,
    StoreHeld,
    code_hashes,
    execute,
    holding,
    plan,
    read_manifest,
)


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


def test_code_counts_but_comments_do_not(tmp_path, monkeypatch):
    import workflows.stages as stages

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
        "import sys, time; from pathlib import Path; from workflows.stages import holding\n"
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

    monkeypatch.setattr(workflows.stages.fcntl, "flock", unknown)
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
