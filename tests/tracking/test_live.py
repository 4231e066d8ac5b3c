"""Laws of live tracking: nobody waits for MLflow, and what it misses the store brings."""

import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.servers import answering
from tests.tracking.places import EXPERIMENT, free_port, history, loss, runs_by_key, told, until, uri_of
from workflows.tracking import live as living
from workflows.tracking.live import Live
from workflows.tracking.server import client_of, prepare
from workflows.tracking.sync import Synced, sync

ROOT = Path(__file__).resolve().parents[2]


def talk(live: Live, steps: int = 300, workers: int = 4) -> float:
    """What a run with several networks says; returns the seconds that its slowest call took."""
    slowest = [0.0]

    def work(worker: int) -> None:
        key = f"publish/1/{worker}"
        calls: list[Callable[[], None]] = [lambda: live.started(key, key, "publish/1", {"lr": 0.1})]
        calls += [lambda s=step: live.metrics(key, {"loss": 1.0}, s, s) for step in range(steps)]
        for call in [*calls, live.sync, lambda: live.ended(key, "FINISHED")]:
            began = time.perf_counter()
            call()
            slowest[0] = max(slowest[0], time.perf_counter() - began)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    return slowest[0]


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_running_network_is_seen_and_its_figures_count_once(store, tmp_path, said):
    facts = told(tmp_path / "home", points=5)
    finished = list(facts)
    facts[:] = [replace(run, status="RUNNING", ended_ms=None, points=(), model=None) for run in facts[:2]]
    live = Live(store, uri_of(store), EXPERIMENT, lambda: list(facts), say=said.append)
    live.started("publish/1/a", "publish: a", "publish/1", {"p0": 0})
    for point in loss(4):
        live.metrics("publish/1/a", {point.name: point.value}, point.step, point.time_ms)
    live.metrics("publish/1/nobody", {"loss": 1.0}, 0, 0)  # was never shown: dropped
    client = client_of(uri_of(store))

    def steps() -> int:
        found = client.get_experiment_by_name(EXPERIMENT) and runs_by_key(client).get("publish/1/a")
        return len(history(client, found, "loss")) if found else 0

    until(lambda: steps() == 4)
    early = runs_by_key(client)["publish/1/a"]
    assert early.info.status == "RUNNING" and early.data.params == {"p0": "0"}
    live.ended("publish/1/a", "FINISHED")
    until(lambda: runs_by_key(client)["publish/1/a"].info.status == "FINISHED")
    facts[:] = finished
    live.sync()
    until(lambda: runs_by_key(client)["publish/1"].info.status == "FINISHED")
    assert live.close(120) == "" and said == ["registered head-pose version 1, the champion"]
    run = runs_by_key(client)["publish/1/a"]
    assert run.info.run_id == early.info.run_id and run.info.run_name == "publish: a"
    assert history(client, run, "loss") == [(point.step, point.value) for point in loss(5)]
    assert sync(store, uri_of(store), EXPERIMENT, finished) == Synced()


def test_a_locked_database_delays_nobody(store, tmp_path, said):
    facts = told(tmp_path / "home")
    prepare()
    other = sqlite3.connect(store / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    live = Live(store, uri_of(store), EXPERIMENT, lambda: facts, say=said.append)
    assert talk(live) < 0.5
    began = time.monotonic()
    assert live.close(1.0) == "MLflow is behind (no answer in 1 s): `full_pipeline.py sync` brings it up"
    assert time.monotonic() - began < 3
    other.execute("ROLLBACK")
    other.close()
    sync(store, uri_of(store), EXPERIMENT, facts)  # waits for the thread that goes on, if it does
    client = client_of(uri_of(store))
    assert history(client, runs_by_key(client)["publish/1/a"], "loss") == [(p.step, p.value) for p in loss(30)]


@pytest.mark.parametrize("kind", ["dead", "slow"])
def test_a_dead_or_slow_server_delays_nobody_and_is_named_once(kind, tmp_path, said, monkeypatch):
    prepare()
    monkeypatch.setattr(living, "ROOM", 50)
    monkeypatch.setattr(living, "PAUSE_S", 0.1)

    def slow(path: str) -> tuple[int, bytes, int]:
        time.sleep(2.0)
        return 503, b"", 0

    with answering(slow) as port:
        uri = f"http://127.0.0.1:{free_port() if kind == 'dead' else port}"
        live = Live(tmp_path / "mine", uri.replace("//", "//me:secret@"), EXPERIMENT, list, say=said.append)
        assert talk(live) < 0.5
        assert live._events.qsize() <= 50, "what waits is bounded"
        began = time.monotonic()
        assert live.close(20).startswith("MLflow is behind (")
        assert time.monotonic() - began < 15
        live.metrics("late", {"loss": 1.0}, 0, 0)
    assert len(said) == 1 and f"MLflow at {uri} is dead or slow" in said[0], said


def test_a_server_that_never_answers_does_not_keep_the_process(tmp_path):
    """It accepts, and that is all. One file is on its way when the process ends."""
    code = """
        import sys, time
        from pathlib import Path
        from workflows.tracking.facts import RunFacts
        from workflows.tracking.live import Live
        from workflows.tracking.server import prepare
        prepare()
        began = time.monotonic()
        live = Live(Path(sys.argv[1]), sys.argv[2], "e", lambda: [RunFacts("pipeline/1", "demo")])
        live.metrics("a", {"loss": 1.0}, 0, 0)
        time.sleep(0.5)
        print(live.close(1.0), time.monotonic() - began, flush=True)
        sys.stdin.read()  # the test says when to end
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "store"), uri]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            sentence, seconds = process.stdout.readline().rsplit(maxsplit=1)
            began = time.monotonic()
            process.stdin.close()
            assert process.wait(60) == 0
            ended = time.monotonic() - began
    assert sentence == "MLflow is behind (no answer in 1 s): `full_pipeline.py sync` brings it up"
    assert float(seconds) < 5 and ended < 8, (seconds, ended)  # a request alone may take 10


def test_facts_that_cannot_be_read_stop_nothing(store, said):
    broken = Mock(side_effect=ValueError("run.json: no such key 'started_ms'"))
    live = Live(store, uri_of(store), EXPERIMENT, broken, say=said.append)
    live.started("it's", "odd", "pipeline/1", {})
    assert "no such key 'started_ms'" in live.close(60) and len(said) == 1


def test_without_mlflow_nothing_is_done(tmp_path, said):
    live = Live(tmp_path / "store", "none", EXPERIMENT, list, say=said.append)
    talk(live, steps=2 * living.ROOM, workers=1)
    assert live.close() == "" and not said and sync(tmp_path / "store", "none", "e", told(tmp_path)) == Synced()
    assert not (tmp_path / "store").exists()
