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

from hpe_core.errors import SpecError
from workflows.engine import code, lock
from workflows.engine.code import code_hashes
from workflows.engine.config import EXIT_FAILED, REPO, guarded, load
from workflows.engine.lock import StoreHeld, holding
from workflows.engine.manifest import read_manifest
from workflows.engine.plan import plan
from workflows.engine.results import StageResult
from workflows.engine.runner import execute
from workflows.engine.stage import Stage, StageRun
from workflows.engine.store import Store
from workflows.full_pipeline import STAGES
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


def test_the_real_graph_reruns_exactly_what_depends_on_a_key(tmp_path):
    def hashes(*overrides):
        return {entry.stage.name: entry.hash for entry in plan(STAGES, spec_in(tmp_path, *overrides))}

    base = hashes()

    def changed(*overrides):
        return [name for name, value in hashes(*overrides).items() if value != base[name]]

    everything = ["shards", "teachers", "labels", "search", "student", "evaluate", "publish"]
    teacher = next(iter(load(["demo"]).teachers))
    assert changed("data.crop.margin_px=10") == everything
    assert changed(f"teachers.{teacher}.optim.lr=0.5") == everything[1:]
    assert changed("search.trials=99") == everything[3:]
    assert changed("student.seed=5") == everything[3:]
    assert changed("publish.model_name=other") == ["publish"]
    assert changed("evaluate.latency_threads=2") == ["evaluate", "publish"]
    assert changed("search.concurrent=1", "cluster.local_cpus=8", "mlflow.uri=none") == []
    assert changed("data.resident_gb=1") == everything[1:]
    assert changed("data.ingest=own_shards") == changed("data.ingest=ray_data") == everything[1:]
    assert changed("data.ingest=all_shards", "data.stream_shards=3", "cluster.readers_per_worker=2") == []
    streamed, others = "data.ingest=ray_data", ("data.resident_gb=1", "cluster.readers_per_worker=2")
    assert hashes(streamed) == hashes(streamed, *others) != hashes(streamed, "data.stream_shards=3")


def test_another_test_set_retrains_nobody(tmp_path):
    (tmp_path / "more.yaml").write_text(
        "data: {test: [heads, more], datasets: {more: {reader: synthetic, count: 30, seed: 5}}}\n"
    )
    base = {e.stage.name: e.hash for e in plan(STAGES, spec_in(tmp_path))}
    more = load(["demo", str(tmp_path / "more.yaml")], [f"store={tmp_path}"])
    changed = [e.stage.name for e in plan(STAGES, more) if e.hash != base[e.stage.name]]
    assert changed == ["shards", "evaluate", "publish"]


def test_dropping_a_test_set_is_a_change_of_the_shards(tmp_path):
    (tmp_path / "more.yaml").write_text("data: {datasets: {more: {reader: synthetic, count: 30, seed: 5}}}\n")
    files = ["demo", str(tmp_path / "more.yaml")]
    base = {e.stage.name: e.hash for e in plan(STAGES, load(files, [f"store={tmp_path}", "data.test=[heads,more]"]))}
    fewer = plan(STAGES, load(files, [f"store={tmp_path}", "data.test=[more]"]))
    assert [e.stage.name for e in fewer if e.hash != base[e.stage.name]] == ["shards", "evaluate", "publish"]


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
        "import sys, time; from pathlib import Path; from workflows.engine.lock import holding\n"
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

    monkeypatch.setattr(lock.fcntl, "flock", unknown)
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


def test_a_result_comes_back_from_its_manifest_as_it_was(tmp_path):
    spec = spec_in(tmp_path)
    planned = run_toy(spec)
    manifest = json.loads((planned["third"].folder / "manifest.json").read_text())
    assert {"schema", "leaves", "inputs", "code", "finished", "seconds"} <= set(manifest)
    assert Store.open(TOY, spec).results(planned).found["third"] == Counted(spec.student.optim.lr, ("second",))


@pytest.mark.parametrize("noted", [None, 1, 3])
def test_a_store_of_another_version_is_named_and_left_as_it_is(tmp_path, noted):
    spec = spec_in(tmp_path)
    planned = run_toy(spec)
    version = tmp_path / "store.json"
    version.write_text(json.dumps({"version": noted})) if noted else version.unlink()  # the first version noted none
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SpecError, match=rf"store {tmp_path} is of version {noted or 1}, .*choose another store="):
        run_toy(spec_in(tmp_path, "student.optim.lr=0.5"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert planned["third"].folder.is_dir()
