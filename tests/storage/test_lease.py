"""One run at a time writes into a remote store; a dead run's lease is taken over, a living one's never."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest

import workflows.storage.lease
from hpe_core.system.filesystems import PATIENCE_S
from hpe_core.system.remote import Remote, RemoteError
from tests.engine.test_store import spec_in
from tests.storage.test_contents import run_toy
from workflows.engine.config import REPO
from workflows.engine.stage import StageFailed
from workflows.storage.lease import BEAT_S, STALE_S, Lease
from workflows.storage.lock import StoreHeld
from workflows.storage.mirror import held

pytestmark = pytest.mark.parametrize("bucket", ("s3", "gs"), indirect=True)

HOLD = """
import sys, time, workflows.storage.lease as lease
from pathlib import Path
from hpe_core.system.remote import Remote
lease.BEAT_S, lease.STALE_S, lease.SETTLE_S = 0.2, 1.5, 0.05
lease.platform.node = lambda: "first-machine"
with lease.Lease(Remote(sys.argv[1]), Path("/first")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_run_says_who_holds_the_store_and_a_killed_holder_does_not_for_long(store):
    process = subprocess.Popen([sys.executable, "-c", HOLD, store], stdout=subprocess.PIPE, text=True, cwd=REPO)
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == "held"
        with pytest.raises(StoreHeld, match=f"{store} is in use by process {process.pid} on first-machine since"):
            run_toy(spec_in(store))
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        run_toy(spec_in(store))
        assert time.monotonic() - began > 1, "it was watched for a sign of life"
        assert Remote(store).read("lease.json") is None, "whoever is done leaves nothing"
    finally:
        process.kill()


def test_of_two_that_take_a_free_store_in_the_same_moment_one_has_it(store, monkeypatch):
    monkeypatch.setattr(workflows.storage.lease, "SETTLE_S", 2.0)
    found_free, inside = threading.Barrier(2), threading.Barrier(2)
    original, has_it = Lease._await_turn, []

    def take(name: str) -> None:
        try:
            with Lease(Remote(store), Path(name)) as lease:
                has_it.append(lease._mine["id"] == json.loads(Remote(store).read("lease.json") or b"{}")["id"])
                inside.wait(20)
        except StoreHeld as error:
            assert "in use by process" in str(error)
            inside.wait(20)

    monkeypatch.setattr(Lease, "_await_turn", lambda self: [original(self), found_free.wait(20)])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(take, ("/first", "/second")))
    assert has_it == [True]


def test_a_holder_whose_requests_hang_is_not_taken_for_dead(store, monkeypatch):
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


def test_a_beat_of_its_own_that_is_half_written_takes_no_store_from_its_holder(store):
    remote = Remote(store)
    with Lease(remote, Path("/here")) as lease:
        remote.write("lease.json", b'{"hol')
        deadline = time.monotonic() + 20
        while remote.read("lease.json") == b'{"hol' and time.monotonic() < deadline:
            time.sleep(0.05)
        lease.check()
        assert json.loads(remote.read("lease.json") or b"{}")["id"] == lease._mine["id"]


def test_a_killed_run_is_continued_at_once_where_it_was_killed(store, monkeypatch):
    monkeypatch.setattr(workflows.storage.lease, "STALE_S", 1000.0)
    remote = Remote(store)
    left = Lease(remote, remote.folder)
    left._write()  # and no beat ever after: killed
    run_toy(spec_in(store))


def test_a_holder_that_was_cut_off_sends_nothing_any_more(store):
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


def test_a_server_that_is_gone_hides_no_error_and_holds_nobody_back(store, monkeypatch):
    hanging, answered = threading.Event(), threading.Event()

    def hang(*ignored: object) -> None:
        hanging.set()
        answered.wait(30)

    monkeypatch.setattr(workflows.storage.lease, "CLOSING_S", 0.2)
    with pytest.raises(StageFailed, match="shards"), held(spec_in(store)) as mirror:
        (mirror.folder / "mlflow.db").write_bytes(b"runs")
        monkeypatch.setattr(Remote, "send", Mock(side_effect=RemoteError("the server is gone")))
        monkeypatch.setattr(Remote, "read", hang)
        assert hanging.wait(20), "the beat waits for an answer"
        began = time.monotonic()
        raise StageFailed("stage shards failed")
    assert time.monotonic() - began < 10
    answered.set()
    for thread in (mirror.lease._thread, *mirror.lease._beats):
        thread.join(20)
        assert not thread.is_alive()


def test_a_lease_that_is_half_written_is_that_of_somebody(store):
    """Not every filesystem writes a file at once; whoever left half of one was killed in that moment, or goes on."""
    remote = Remote(store)
    remote.write("lease.json", b'{"hol')
    run_toy(spec_in(store))
    assert remote.read("lease.json") is None
    remote.write("lease.json", b'{"hol')
    lease, beat = Lease(remote, Path("/other")), Lease(remote, Path("/first"))
    threading.Timer(0.4, beat._write).start()
    with pytest.raises(StoreHeld, match="in use by process"):
        lease._await_turn()
