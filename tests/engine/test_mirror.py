"""A store on S3 or on Google's storage: what is finished is finished everywhere, and one run at a time writes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import workflows.engine.disk
import workflows.engine.mirror
from hpe_core.errors import SpecError
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.system.files import write_json
from hpe_core.system.remote import PATIENCE_S, Remote, RemoteError
from tests.engine.test_contents import TOY, flip, run_all, tear
from tests.engine.test_store import actions, spec_in
from tests.test_pipeline import call, environment, tail, words
from workflows.engine.config import REPO
from workflows.engine.contents import inventory
from workflows.engine.disk import DiskFull
from workflows.engine.lock import StoreHeld
from workflows.engine.manifest import finished
from workflows.engine.mirror import Lease, Mirror, held
from workflows.engine.plan import plan
from workflows.engine.stage import StageFailed
from workflows.engine.store import Store
from workflows.full_pipeline import STAGES

BEAT_S, STALE_S = workflows.engine.mirror.BEAT_S, workflows.engine.mirror.STALE_S  # before a test changes them

pytestmark = pytest.mark.parametrize("bucket", ("s3", "gs"), indirect=True)


@pytest.fixture
def store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store on a server, with a lease whose clock runs fast."""
    for name, seconds in (("BEAT_S", 0.2), ("STALE_S", 1.5), ("SETTLE_S", 0.05)):
        monkeypatch.setattr(workflows.engine.mirror, name, seconds)
    yield f"{bucket}/runs"


def here(store: str, *overrides: str) -> PipelineSpec:
    return spec_in(store, *overrides)


def seen(spec: PipelineSpec) -> list[str]:
    """What a plan says that reads the manifests there."""
    mirror = Mirror(spec)
    mirror.look()
    return actions(plan(TOY, spec, mirror.size))


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "other") -> None:
    """From now on this is another machine."""
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / name))
    monkeypatch.setattr(workflows.engine.mirror.platform, "node", lambda: name)


def test_what_one_machine_finished_another_one_skips_and_goes_on_from(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_all(here(store))["first"].folder
    whole = inventory(folder)
    there = Remote(store).index()
    assert {name for name in there if name.startswith(f"first/{folder.name}/")} == {
        f"first/{folder.name}/{place}" for place in [*whole, "manifest.json"]
    }
    elsewhere(monkeypatch, tmp_path)
    spec = here(store)
    assert spec.folder != folder.parents[1] and seen(spec) == ["skip", "skip"]
    assert not list(spec.folder.rglob("*.parquet")), "nothing was needed yet"
    run_all(here(store, "student.optim.lr=0.5"))
    assert inventory(spec.folder / "first" / folder.name) == whole, "what the second stage read was fetched"
    assert seen(here(store, "student.optim.lr=0.5")) == ["skip", "skip"]
    assert Remote(store).index().keys() > there.keys() and seen(here(store)) == ["skip", "skip"]


def test_the_manifest_goes_last(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off while it sends has finished nothing there, and sends the rest the next time."""
    sent: list[str] = []
    original = Remote.send

    def until_cut(self: Remote, names: list[str]) -> int:
        names = list(names)
        if any("manifest" in name for name in names):
            raise RemoteError("the line is cut")
        sent.extend(names)
        return original(self, names)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "send", until_cut)
        with pytest.raises(RemoteError):
            run_all(here(store))
    assert len(sent) == 6 and not any("manifest" in name for name in Remote(store).index())
    behind = Mirror(here(store))
    behind.look()
    assert behind.lacks(plan(TOY, here(store))[0].folder)
    times = {name: entry for name, entry in Remote(store).index().items() if name in sent}
    planned = run_all(here(store))
    assert finished(planned["first"].folder)["result"] == {"made": ["a", "b", "c"]}, "it was finished here"
    after = Remote(store).index()
    assert {name: after[name] for name in times} == times, "and is not sent twice"
    assert sum("manifest" in name for name in after) == 2


def network(spec: PipelineSpec, name: str, weights: bytes, *more: str) -> Path:
    """The folder of one that training has left, with as many of its files."""
    folder = spec.folder / "networks" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    for file in ("model.json", *more):
        (folder / file).write_bytes(b"{}")
    return folder


def test_what_is_damaged_here_does_not_go_there(store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stage that nothing reads in this run is not hashed, so what is whole there is left alone, and fetched later.

    Nor is a network, which is never written again, whether or not this run has made a stage.
    """
    spec = here(store)
    trained = network(spec, "trained", b"weights of a network.", "result.json")
    folder = run_all(spec)["first"].folder
    whole = inventory(folder)
    flip(folder / "part" / "b.parquet")
    tear(folder / "part" / "c.parquet")
    tear(trained / "model.safetensors")
    assert seen(spec) == ["skip", "skip"]
    with held(spec) as mirror:
        mirror.push(folder, made=False)
    run_all(here(store, "student.optim.lr=0.4"))
    assert Remote(store).read("networks/trained/model.safetensors") == b"weights of a network."
    elsewhere(monkeypatch, tmp_path)
    run_all(here(store, "student.optim.lr=0.5"))
    assert inventory(here(store).folder / "first" / folder.name) == whole


def test_a_piece_that_two_folders_share_is_sent_once_for_each(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    original = Remote.send
    monkeypatch.setattr(Remote, "send", lambda self, names: [sent.extend(names), original(self, names)][1])
    folders = [here(store).folder / "shards" / name for name in ("old", "grown")]
    for folder in folders:
        folder.mkdir(parents=True)
        if folder is folders[0]:
            (folder / "part.parquet").write_bytes(b"faces")
        else:
            os.link(folders[0] / "part.parquet", folder / "part.parquet")
        write_json(folder / "manifest.json", {"files": inventory(folder)})
    for _ in range(2):
        for folder in folders:
            time.sleep(1.1 if not sent else 0)  # so that the two have different times there
            with held(here(store)) as mirror:
                mirror.push(folder)
    wanted = [f"shards/{name}/{file}" for name in ("old", "grown") for file in ("part.parquet", "manifest.json")]
    assert [name for name in sent if not name.startswith("mlflow")] == wanted


def test_what_is_damaged_here_is_fetched_and_what_is_damaged_there_is_made_again(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = run_all(here(store))["first"].folder
    whole = inventory(folder)
    flip(folder / "part" / "b.parquet")
    tear(folder / "part" / "c.parquet")
    run_all(here(store, "student.optim.lr=0.5"))
    assert inventory(folder) == whole and finished(folder)["result"] == {"made": ["a", "b", "c"]}, "fetched, not made"
    content = bytearray(b"b" * 1000)
    content[500] = 0
    Remote(store).write(f"first/{folder.name}/part/b.parquet", bytes(content))
    elsewhere(monkeypatch, tmp_path)
    again = run_all(here(store, "student.optim.lr=0.6"))["first"].folder
    assert inventory(again) == whole and finished(again)["result"] == {"made": ["b"]}
    assert Remote(store).read(f"first/{folder.name}/part/b.parquet") == b"b" * 1000, "and sent"


def test_files_lost_there_are_noticed_by_the_plan(store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = run_all(here(store))["first"].folder
    Remote(store).delete(f"first/{folder.name}/part/c.parquet")
    assert seen(here(store)) == ["skip", "skip"], "it is still here"
    elsewhere(monkeypatch, tmp_path)
    assert seen(here(store)) == ["repair", "skip"]


def test_mlflows_files_follow(store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = here(store)
    (spec.folder / "mlartifacts" / "deep").mkdir(parents=True)
    (spec.folder / "mlflow.db").write_bytes(b"runs")
    (spec.folder / "mlartifacts" / "deep" / "card.md").write_bytes(b"card")
    run_all(spec)
    elsewhere(monkeypatch, tmp_path)
    run_all(here(store))
    assert (here(store).folder / "mlflow.db").read_bytes() == b"runs"
    assert (here(store).folder / "mlartifacts" / "deep" / "card.md").read_bytes() == b"card"


def test_networks_are_sent_with_the_stages_and_fetched_for_training_alone(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network(here(store), "trained", b"weights", "result.json")
    network(here(store), "half", b"weights")
    run_all(here(store))
    assert {name for name in Remote(store).index("networks")} == {
        f"networks/trained/{name}" for name in ("model.safetensors", "model.json", "result.json")
    }
    elsewhere(monkeypatch, tmp_path)
    mirror = Mirror(here(store))
    mirror.look()
    assert not (mirror.folder / "networks").exists(), "a plan needs none"
    mirror.bring_networks()
    assert (mirror.folder / "networks" / "trained" / "model.safetensors").read_bytes() == b"weights"


def test_a_network_that_was_fetched_in_part_neither_counts_nor_stops_a_run(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed in between: what makes it count comes last. Without its weights, lost or not yet here, it is not sent."""
    network(here(store), "trained", b"weights", "result.json")
    folder = run_all(here(store))["first"].folder
    elsewhere(monkeypatch, tmp_path)
    batches: list[set[str]] = []
    original = Remote.copy_here
    monkeypatch.setattr(
        Remote, "copy_here", lambda self, found: [batches.append({Path(n).name for n in found}), original(self, found)]
    )
    with held(here(store)) as mirror:
        batches.clear()
        mirror.bring_networks()
    assert batches == [{"model.safetensors", "model.json"}, {"result.json"}]
    lost = here(store).folder / "networks" / "trained"
    (lost / "model.safetensors").unlink()
    (network(here(store), "lost", b"weights", "result.json") / "model.safetensors").unlink()
    with held(here(store)) as mirror:
        mirror.push(mirror.folder / "first" / folder.name, made=False)
        assert not Remote(store).index("networks/lost")
        mirror.bring_networks()
    assert (lost / "model.safetensors").read_bytes() == b"weights"


def test_an_address_that_is_none_is_one_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = f"{bucket[:2]}://no-such-bucket-here/runs"
    with pytest.raises(SpecError, match=f"store: {absent}/lease.json cannot be written"):
        run_all(here(absent))

    def refuse(*ignored: object) -> None:
        raise RemoteError("s3://bucket/runs cannot be listed: AWS Error ACCESS_DENIED")

    monkeypatch.setattr(Remote, "index", refuse)
    with pytest.raises(SpecError, match="store: s3://bucket/runs cannot be listed"):  # nothing has begun: exit code 2
        Store.open(STAGES, here(f"{bucket}/runs"))


def test_too_little_room_for_what_is_fetched_is_said_before(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(here(store))
    elsewhere(monkeypatch, tmp_path)
    monkeypatch.setattr(workflows.engine.disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DiskFull, match=r"6 files of first/\w+ need 0.00 MB in .*: 0.00 MB are missing"):
        run_all(here(store, "student.optim.lr=0.5"))
    assert not list(here(store).folder.rglob("*.parquet"))


# ---------------------------------------------------------------- who holds it


HOLD = """
import sys, time, workflows.mirror as mirror
from pathlib import Path
from hpe_core.remote import Remote
mirror.BEAT_S, mirror.STALE_S, mirror.SETTLE_S = 0.2, 1.5, 0.05
mirror.platform.node = lambda: "first-machine"
with mirror.Lease(Remote(sys.argv[1]), Path("/first")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_run_says_who_holds_the_store_and_a_killed_holder_does_not_for_long(store: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, store], stdout=subprocess.PIPE, text=True, cwd=REPO, env=dict(os.environ)
    )
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == "held"
        with pytest.raises(StoreHeld, match=f"{store} is in use by process {process.pid} on first-machine since"):
            run_all(here(store))
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        run_all(here(store))
        assert time.monotonic() - began > 1, "it was watched for a sign of life"
        assert Remote(store).read("lease.json") is None, "whoever is done leaves nothing"
    finally:
        process.kill()


def test_a_holder_whose_requests_hang_is_not_taken_for_dead(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a server that fails keeps a beat waiting: the next one tells that the run is alive."""
    assert STALE_S >= BEAT_S + 2 * PATIENCE_S, "the clocks of a run: a read and a write that fail for as long as may be"
    held_up, answered = threading.Event(), threading.Event()
    original, writing = Remote.read, Remote.write

    def hang_once(name: str, *ignored: object) -> None:
        if threading.current_thread().name in ("lease", "beat") and not held_up.is_set():
            held_up.set()
            answered.wait(20)

    remote = Remote(store)
    for method, usual in (("read", original), ("write", writing)):
        held_up.clear()
        answered.clear()
        with Lease(remote, Path("/first")), monkeypatch.context() as patch:
            patch.setattr(Remote, method, lambda self, *given, usual=usual: [hang_once(*given), usual(self, *given)][1])
            assert held_up.wait(20)
            with pytest.raises(StoreHeld):
                Lease(remote, Path("/other"))._await_turn()
            answered.set()


def test_a_beat_of_its_own_that_is_half_written_takes_no_store_from_its_holder(store: str) -> None:
    remote = Remote(store)
    with Lease(remote, Path("/here")) as lease:
        remote.write("lease.json", b'{"hol')
        deadline = time.monotonic() + 20
        while remote.read("lease.json") == b'{"hol' and time.monotonic() < deadline:
            time.sleep(0.05)
        lease.check()
        assert json.loads(remote.read("lease.json") or b"{}")["id"] == lease._mine["id"]


def test_a_killed_run_is_continued_at_once_where_it_was_killed(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflows.engine.mirror, "STALE_S", 1000.0)
    remote = Remote(store)
    left = Lease(remote, remote.folder)
    left._write()  # and no beat ever after: killed
    run_all(here(store))


def test_a_holder_that_was_cut_off_sends_nothing_any_more(store: str) -> None:
    remote = Remote(store)
    with Lease(remote, Path("/here")) as lease:
        lease.check()
        taken = {"holder": "process 7 on other", "id": "other", "host": "other", "folder": "/", "beat": 1}
        remote.write("lease.json", json.dumps(taken).encode())
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                lease.check()
            except StoreHeld as error:
                assert "taken over by process 7 on other" in str(error)
                break
            time.sleep(0.05)
        else:
            pytest.fail("the holder did not notice")
    assert json.loads(remote.read("lease.json") or b"{}")["id"] == "other", "nor does it remove the other's lease"


def test_a_server_that_is_gone_hides_no_error_and_holds_nobody_back(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, answered = threading.Event(), threading.Event()

    def hang(*ignored: object) -> None:
        hanging.set()
        answered.wait(30)

    def fail(*ignored: object) -> None:
        raise RemoteError("the server is gone")

    with pytest.raises(StageFailed, match="shards"), held(here(store)) as mirror:
        (mirror.folder / "mlflow.db").write_bytes(b"runs")
        monkeypatch.setattr(Remote, "send", fail)
        monkeypatch.setattr(Remote, "read", hang)
        assert hanging.wait(20), "the beat waits for an answer"
        began = time.monotonic()
        raise StageFailed("stage shards failed")
    assert time.monotonic() - began < 10
    answered.set()
    assert mirror.lease is not None
    for thread in (mirror.lease._thread, *mirror.lease._beats):
        thread.join(20)
        assert not thread.is_alive()


def test_a_lease_that_is_half_written_is_that_of_somebody(store: str) -> None:
    """Not every filesystem writes a file at once; whoever left half of one was killed in that moment, or goes on."""
    remote = Remote(store)
    remote.write("lease.json", b'{"hol')
    run_all(here(store))
    assert remote.read("lease.json") is None
    remote.write("lease.json", b'{"hol')
    lease, beat = Lease(remote, Path("/other")), Lease(remote, Path("/first"))
    threading.Timer(0.4, beat._write).start()
    with pytest.raises(StoreHeld, match="in use by process"):
        lease._await_turn()


# ---------------------------------------------------------------- the whole road


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_pipeline_runs_into_a_bucket_and_is_finished_everywhere(bucket: str, tmp_path: Path) -> None:
    """The command that a user types, with its store in a bucket; then the same command on another machine."""
    store = f"{bucket}/runs"
    first = call(words("full_pipeline.py", store, "cluster.address=local"), environment())
    assert first.code == 0, tail(first)
    index = Remote(store).index()
    for stage in STAGES:
        assert sum(name.startswith(f"{stage.name}/") and name.endswith("manifest.json") for name in index) == 1
    assert {"mlflow.db"} <= set(index) and "lease.json" not in index
    assert f"report   {store}/publish/" in first.out and any(name.endswith("report/report.html") for name in index)
    other = environment(HPE_CACHE=str(tmp_path / "other"))
    again = call(words("full_pipeline.py", store), other)
    assert again.code == 0 and [line.split()[1] for line in again.err.splitlines()] == ["skip"] * len(STAGES)
    assert again.out.split("report")[0] == first.out.split("report")[0], "the same table"
    assert not list((tmp_path / "other").rglob("*.parquet"))
    scored = call(words("full_pipeline.py", store, "evaluate.offset_step=1", "cluster.address=local"), other)
    assert scored.code == 0, tail(scored)
    assert [line.split()[1] for line in scored.err.splitlines()[: len(STAGES)]] == ["skip"] * 5 + ["run"] * 2
    assert call(words("full_pipeline.py verify", store), other).code == 0
