"""The stage store: what is finished is skipped, a changed key reruns only what depends on it, and says which."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
from unittest.mock import Mock

import pytest

from hpe_core.errors import SpecError
from workflows.engine.config import EXIT_BAD_INPUT, EXIT_FAILED, REPO, guarded, load
from workflows.engine.plan import plan
from workflows.engine.results import SCHEMA_VERSION, StageResult
from workflows.engine.runner import execute
from workflows.engine.stage import Stage, StageRun
from workflows.engine.store import Store
from workflows.stages import teachers
from workflows.storage import code, lock
from workflows.storage.begun import BEGUN
from workflows.storage.code import code_hashes
from workflows.storage.lock import StoreHeld, holding
from workflows.storage.manifest import read_manifest
from workflows.tracking.progress import Reporter


@dataclasses.dataclass(frozen=True)
class Counted(StageResult):
    value: float
    saw: tuple[str, ...]


def counting(run: StageRun) -> Counted:
    """A stage that counts its own runs in its folder."""
    count = run.folder / "count"
    count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
    return Counted(run.spec.student.optim.lr, tuple(sorted(run.inputs)))


TOY = (
    Stage("first", counting, (), lambda s: {"count": s.data.datasets["heads"].count}),
    Stage("second", counting, ("first",), lambda s: {"lr": s.student.optim.lr}),
    Stage("third", counting, ("second",), lambda s: {}),
)


def run_all(stages, spec):
    """As the pipeline does it, without Ray and MLflow; returns the plan by stage."""
    store = Store.open(stages, spec)
    with store.held():
        planned = store.checkout()
        store.push_finished(planned)
        for entry in planned.values():
            if entry.action != "skip":
                execute(store, planned, entry, Reporter())
    return planned


def run_toy(spec):
    return run_all(TOY, spec)


def spec_in(store, *overrides):
    return load(["demo"], [f"store={store}", *overrides])


def actions(entries):
    return [entry.action for entry in entries]


@pytest.mark.parametrize("left", [0, 20])
def test_a_folder_with_half_a_manifest_or_none_is_continued(tmp_path, left):
    planned = run_toy(spec_in(tmp_path))
    manifest = planned["second"].folder / "manifest.json"
    torn = manifest.read_bytes()[:left]
    manifest.unlink() if not left else manifest.write_bytes(torn)
    again = plan(TOY, spec_in(tmp_path))
    assert actions(again) == ["skip", "continue", "skip"]
    run_toy(spec_in(tmp_path))
    assert (planned["second"].folder / "count").read_text() == "2"
    assert (planned["first"].folder / "count").read_text() == "1"
    assert read_manifest(planned["second"].folder)["result"]["saw"] == ["first"]


def dying(run: StageRun) -> Counted:
    (run.folder / "half").write_text("a part")
    raise RuntimeError("out of memory")


@dataclasses.dataclass(frozen=True)
class Seen(StageResult):
    key: str
    hashes: dict[str, str]
    results: dict[str, Counted]


def seen(run: StageRun) -> Seen:
    return Seen(run.key, dict(run.hashes), dict(run.results.found))


@pytest.mark.parametrize("at", ["in the stage", "before it is finished"])
def test_a_stage_that_fails_at_any_moment_is_continued_not_skipped(tmp_path, at):
    """The manifest comes last: after the stage, and after what is told of it."""
    told = []
    stage = Stage("only", dying if at == "in the stage" else counting, (), lambda s: {})
    store = Store.open((stage,), spec_in(tmp_path))
    entry = store.plan()["only"]

    def note(result):
        assert not (entry.folder / "manifest.json").exists()
        told.append(result)
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        execute(store, {"only": entry}, entry, Reporter(), note)
    assert read_manifest(entry.folder) is None and len(told) == (at != "in the stage")
    assert actions(store.plan().values()) == ["continue"]


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
    spec = spec_in(tmp_path)
    planned = run_toy(spec)
    store = Store.open((*TOY, Stage("last", seen, ("first", "third"), lambda s: {})), spec)
    everything = store.plan()
    result, _ = execute(store, everything, everything["last"], Reporter())
    read = ("first", "third")
    assert result == Seen(
        everything["last"].key,
        {name: planned[name].hash for name in read},
        {name: Counted(spec.student.optim.lr, tuple(planned[name].stage.upstream)) for name in read},
    )


def test_the_reason_names_the_change_from_the_run_that_is_most_alike(tmp_path):
    run_toy(spec_in(tmp_path, "student.optim.lr=0.5"))
    run_toy(spec_in(tmp_path, "student.optim.lr=0.25", "data.datasets.heads.count=30"))
    first, second, third = plan(TOY, spec_in(tmp_path, "student.optim.lr=0.125"))
    assert (first.action, second.reason) == ("skip", "lr 0.5 -> 0.125") and third.reason == "second changed"
    alike = read_manifest(plan(TOY, spec_in(tmp_path, "student.optim.lr=0.5"))[1].folder)
    assert second.seconds == alike["seconds"] and f"took {alike['seconds']:.0f} s" in second.line
    fresh = plan(TOY, spec_in(tmp_path / "elsewhere"))
    assert {entry.reason for entry in fresh} == {"never ran in this store"}


def test_a_key_that_only_one_of_two_runs_has_is_absent_in_the_other(tmp_path):
    folder = run_toy(spec_in(tmp_path, "student.optim.lr=0.5"))["second"].folder
    manifest = read_manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"leaves": {"momentum": 3}}))
    entry = plan(TOY, spec_in(tmp_path, "student.optim.lr=0.125"))[1]
    assert entry.reason == 'lr "absent" -> 0.125; momentum 3 -> "absent"' and list(manifest["leaves"]) == ["lr"]


def test_of_runs_that_are_as_alike_the_newest_says_how_long_it_takes(tmp_path):
    for lr, day, seconds in ((0.5, 2, 7.0), (0.25, 3, 9.0), (0.4, 1, 5.0)):
        folder = run_toy(spec_in(tmp_path, f"student.optim.lr={lr}"))["second"].folder
        changed = {"finished": f"2030-01-0{day} 00:00:00", "seconds": seconds}
        (folder / "manifest.json").write_text(json.dumps(read_manifest(folder) | changed))
    entry = plan(TOY, spec_in(tmp_path, "student.optim.lr=0.125"))[1]
    assert (entry.reason, entry.seconds) == ("lr 0.25 -> 0.125", 9.0)


def test_a_run_that_cannot_go_on_with_what_was_cut_off_says_so_and_how_far_that_was(tmp_path):
    """Half-trained networks are kept, but those of another configuration are not gone on with."""

    def half_trained(run: StageRun) -> Counted:
        for name, epochs in (("byobnet-0123", 3), ("resnet-4567", 0)):
            home = run.spec.folder / "networks" / name / "ray-train" / "checkpoint_1"
            home.mkdir(parents=True, exist_ok=True)
            if epochs:
                (home / "history.json").write_text(json.dumps([{}] * epochs))
        (run.spec.folder / "networks" / "vgg-89").mkdir()
        (run.spec.folder / "networks" / "vgg-89" / "result.json").write_text("{}")
        raise RuntimeError("cut off")

    def planned(body, *words):
        spec = load(["tests/tiny.yaml"], [f"store={tmp_path}", *words])
        return Store.open((Stage("teachers", body, (), teachers.depends),), spec)

    store = planned(half_trained)
    entry = store.plan()["teachers"]
    with pytest.raises(RuntimeError):
        execute(store, {"teachers": entry}, entry, Reporter())
    kept = r"\(byobnet 3 of 8 epochs, resnet 0 of 8 epochs, vgg trained\)"
    other = planned(half_trained, "cluster.workers=2").plan()["teachers"]
    said = rf"cluster.workers 1 -> 2: begins anew, without what was cut off at 20.* {kept}"
    assert other.action == "run" and re.fullmatch(said, other.reason) and other.reason in other.line
    assert store.plan()["teachers"].reason == "was cut off", "it goes on where nothing was changed"
    finished = planned(counting, "cluster.workers=2")
    other = finished.plan()["teachers"]
    execute(finished, {"teachers": other}, other, Reporter())
    assert set(read_manifest(other.folder)["files"]) == {"count"} and not (other.folder / BEGUN).exists()
    later = planned(counting, "cluster.workers=4").plan()["teachers"]
    assert later.reason.startswith("cluster.workers 2 -> 4"), "nobody waits any more for what was cut off before"
    assert "anew" not in later.reason


def test_code_is_followed_through_every_kind_of_import(tmp_path, monkeypatch):
    """At the top, inside a function, of a module or of a name in it; carriers and other people's code are left out."""
    texts = {
        "hpe_core/start.py": "import json\nimport hpe_core.plain_import\nfrom hpe_core import module_import\n",
        "hpe_core/plain_import.py": "def f():\n    from hpe_core.deep.inner import g\n    return g()\n",
        "hpe_core/module_import.py": "from workflows.engine.pieces import adopt\n",
        "hpe_core/deep/inner.py": "from __future__ import annotations\n",
        "hpe_core/unused.py": "",
        "hpe_core/named.py": "",
        "workflows/engine/pieces.py": "import hpe_core.unused\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    names = {"hpe_core.start", "hpe_core.plain_import", "hpe_core.module_import", "hpe_core.deep.inner"}
    assert set(code_hashes("hpe_core.start")) == names
    assert set(code_hashes("hpe_core.start", "hpe_core.named")) == {*names, "hpe_core.named"}


def test_code_counts_but_comments_do_not(tmp_path, monkeypatch):
    package = tmp_path / "hpe_core"
    package.mkdir()
    monkeypatch.setattr(code, "ROOT", tmp_path)

    def hashed(text):
        (package / "toy.py").write_text(text)
        code._read.cache_clear()
        return code_hashes("hpe_core.toy")

    plain = hashed("def f(x):\n    return x + 1\n")
    assert hashed('"""About."""\n# why\ndef f(x):\n    """Adds."""\n    return x + 1\n') == plain
    assert hashed("def f(x):\n    return x + 2\n") != plain
    code._read.cache_clear()


def test_the_second_run_says_who_holds_the_store_and_a_killed_holder_does_not(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from workflows.storage.lock import holding\n"
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
    monkeypatch.setattr(lock.fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
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
    full, broken = (OSError(code, os.strerror(code), "/data/runs/spool") for code in (errno.ENOSPC, errno.EIO))
    assert guarded(Mock(side_effect=full)) == EXIT_FAILED
    assert "No space left on device: '/data/runs/spool': make room" in capsys.readouterr().err
    with pytest.raises(OSError, match="Input/output"):
        guarded(Mock(side_effect=broken))


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR])
def test_a_name_that_cannot_be_opened_is_a_sentence_wherever_it_was_given(capsys, code):
    assert guarded(Mock(side_effect=OSError(code, os.strerror(code), "/data/a\nb"))) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == f"error: /data/a\\nb: {os.strerror(code)}\n"
    with pytest.raises(OSError):  # without a name it is no word of the user's
        guarded(Mock(side_effect=OSError(code, os.strerror(code))))


@pytest.mark.parametrize("noted", [None, 1, SCHEMA_VERSION + 1])
def test_a_store_of_another_version_is_named_and_left_as_it_is(tmp_path, noted):
    spec = spec_in(tmp_path)
    planned = run_toy(spec)
    for file in tmp_path.glob("*/*/manifest.json"):
        tree = json.loads(file.read_text())
        tree.pop("schema")  # the first version noted none
        file.write_text(json.dumps(tree | ({"schema": noted} if noted else {})))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SpecError, match=rf"store {tmp_path} is of version {noted or 1}, .*choose another store="):
        run_toy(spec_in(tmp_path, "student.optim.lr=0.5"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert planned["third"].folder.is_dir()
