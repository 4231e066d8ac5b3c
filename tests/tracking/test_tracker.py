"""The tracker's laws: nothing waits for MLflow, nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from workflows.tracking import backend as mlflow_backend
from workflows.tracking import tracker as tracking
from workflows.tracking.tracker import Tracker, flatten, git_commit, main, ui_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _quiet_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database, made once: the schema takes seconds."""
    store = tmp_path_factory.mktemp("schema")
    Tracker.open(f"sqlite:///{store}/mlflow.db", "other", store).close()
    return store / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, fresh_database: Path) -> Path:
    (tmp_path / "store").mkdir()
    shutil.copyfile(fresh_database, tmp_path / "store" / "mlflow.db")
    return tmp_path / "store"


def uri_of(store: Path) -> str:
    return f"sqlite:///{store}/mlflow.db"


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def history(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, name))


def run_by_key(client: Any, key: str, experiment: str = "head-pose") -> Any:
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], f"tags.`hpe.key` = '{key}'")
    assert len(runs) == 1, [r.info.run_name for r in runs]
    return runs[0]


def sessions(store: Path) -> list[Path]:
    return sorted((store / "mlflow-spool").glob("[0-9]*"))


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


def free_port() -> int:
    for port in range(27100, 27400):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


# -- without MLflow ------------------------------------------------------------------------------------------


def test_import_and_help_do_not_load_mlflow() -> None:
    code = "import sys, workflows.tracking.tracker.tracker as t; assert 'mlflow' not in sys.modules; t.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "replay" in done.stdout


def test_flatten_joins_names_and_clips_to_what_mlflow_takes() -> None:
    flat = flatten(
        {
            "a": {"b": {"c": 1}},
            "list": [1, 2],
            "rows": [{"x": None}],
            "empty": {},
            "odd=key": "v",
            "n": "z" * 9000,
        }
    )
    assert flat["a.b.c"] == "1"
    assert flat["list"] == "[1, 2]"
    assert flat["rows.0.x"] == "None"
    assert flat["empty"] == "{}"
    assert flat["odd_key"] == "v"
    assert len(flat["n"]) == 6000
    assert max(len(name) for name in flatten({"k" * 999: 1})) <= 250


def test_none_records_nothing_and_keeps_the_methods(tmp_path: Path) -> None:
    with Tracker.open("none", "e", tmp_path) as tracker:
        assert tracker.run("a", name="a") == "a"
        tracker.params("a", {"x": 1})
        tracker.metrics("a", {"x": 1.0}, 0)
        tracker.text("a", "t", "t.txt")
        tracker.artifact("a", tmp_path / "missing")
        assert tracker.register("a", "m", "model") is None
        assert tracker.flush() and tracker.run_id("a") is None and tracker.url("a") is None
    assert not (tmp_path / "mlflow-spool").exists()


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "file:///x", "mlruns"])
def test_an_address_that_would_land_somewhere_else_is_an_error(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uri must be"):
        Tracker.open(uri, "e", tmp_path)


def test_git_commit_names_the_commit_and_its_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_commit(tmp_path / "nowhere") == "unknown"
    repo = tmp_path / "repo"
    repo.mkdir()
    who = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for name, value in who.items():
        monkeypatch.setenv(name, value)
    (repo / "f").write_text("1")
    for words in (["init", "-q"], ["add", "f"], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(repo), *words], check=True)
    clean = git_commit(repo)
    assert len(clean) == 40
    (repo / "f").write_text("2")
    assert git_commit(repo) == clean + "-dirty"


def test_ui_command_opens_the_store() -> None:
    assert ui_command("sqlite:////a/m.db") == "mlflow ui --backend-store-uri sqlite:////a/m.db --port 5000"
    assert ui_command("http://me:secret@host:1") == "http://host:1"


# -- SQLite --------------------------------------------------------------------------------------------------


def test_a_pipeline_in_sqlite(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Tracker.open(uri_of(store), "head-pose", store) as tracker:
        tracker.run("pipeline/1", name="pipeline", tags={"stage": "pipeline"})
        tracker.run("teachers/1/a", name="teacher a", parent="pipeline/1")
        tracker.params("teachers/1/a", {"model": {"name": "resnet", "bins": [1, 2]}} | {f"p{i}": i for i in range(150)})
        for step, value in enumerate([3.0, 2.0, math.inf, math.nan, 1.0]):
            tracker.metrics("teachers/1/a", {"val/mae": value}, step)
        picture = tmp_path / "curve.png"
        picture.write_bytes(b"png")
        tracker.artifact("teachers/1/a", picture, "pictures")
        picture.unlink()  # the tracker has its own copy
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "student.onnx").write_bytes(b"onnx")
        tracker.artifact("teachers/1/a", tmp_path / "model")
        tracker.text("pipeline/1", "a: 1\n", "config/run.yaml")
        tracker.metrics("nobody", {"x": 1.0}, 0)  # refused, and in nobody's way
        tracker.finish("teachers/1/a")
        assert tracker.register("pipeline/1", "head-pose", "nothing-there") is None
        assert tracker.flush() and tracker.pending == 0

    client = client_of(uri_of(store))
    parent, child = run_by_key(client, "pipeline/1"), run_by_key(client, "teachers/1/a")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == child.info.status == "FINISHED"
    assert child.data.tags["mlflow.source.git.commit"]
    assert child.data.params["model.name"] == "resnet" and len(child.data.params) == 152
    rows = history(client, child.info.run_id, "val/mae")
    assert [step for step, _ in rows] == [0, 1, 2, 3, 4]
    assert [value for _, value in rows if math.isfinite(value)] == [3.0, 2.0, 1.0]
    assert child.data.tags["nonfinite.val/mae"] == "nan at step 3"
    artifacts = store / "mlartifacts" / "head-pose" / child.info.run_id / "artifacts"
    assert (artifacts / "pictures" / "curve.png").read_bytes() == b"png"
    assert (artifacts / "model" / "student.onnx").read_bytes() == b"onnx"
    assert [f.path for f in client.list_artifacts(parent.info.run_id, "config")] == ["config/run.yaml"]
    assert list(Path.cwd().iterdir()) == [], "nothing may be written into the working directory"
    refused = (store / "mlflow-spool" / "refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"]["op"] for line in refused] == ["metrics", "register"]
    assert "nobody" in capfd.readouterr().err
    assert not sessions(store), "a session that is all in MLflow leaves nothing behind"


def test_a_database_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow never opens one whose making was cut off: by a kill, or by a disk that was full and no longer is."""
    from mlflow.store.db import utils

    def cut_off(engine: Any) -> None:
        raise OSError("No space left on device")

    uri = uri_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(utils, "_upgrade_db", cut_off)
        with pytest.raises(OSError):
            mlflow_backend.make_database(uri)
    assert not (tmp_path / "mlflow.db").exists() and (tmp_path / ".mlflow.db.new").exists()
    monkeypatch.setattr(utils, "_upgrade_db", lambda engine: None)  # five seconds that other tests take
    mlflow_backend.make_database(uri)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mlflow.db"]
    monkeypatch.setattr(utils, "_upgrade_db", cut_off)
    mlflow_backend.make_database(uri)  # there is one


def test_a_killed_process_loses_nothing_and_its_run_goes_on(store: Path) -> None:
    uri = uri_of(store)
    with Tracker.open(uri, "head-pose", store) as tracker:
        tracker.run("pipeline/1", name="first")
        tracker.params("pipeline/1", {"lr": 1, "seed": 7})
        tracker.flush()
        first = tracker.run_id("pipeline/1")
    code = f"""
        import os
        from pathlib import Path
        from workflows.tracking import Tracker
        t = Tracker.open({uri!r}, "head-pose", Path({str(store)!r}))
        t.run("pipeline/1", name="again")
        t.params("pipeline/1", {{"lr": 2, "seed": 7, "new": 1}})
        t.run("trial/1", name="trial", parent="pipeline/1")
        assert t.flush() and t.pending == 0
        print(t.run_id("pipeline/1"))
        for step in range(300):
            t.metrics("trial/1", {{"loss": step}}, step)
        os.write(1, b"")
        os._exit(9)  # like SIGKILL: no close, no exit hooks
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 9, done.stderr
    (left,) = sessions(store)
    with open(left / "events.jsonl", "ab") as file:
        file.write(b'{"op": "metrics", "key": "trial/1", "me')  # it died inside a write

    # The map is only a short cut: without it the run is found by its tag.
    (store / "mlflow-runs.json").unlink()
    with Tracker.open(uri, "head-pose", store) as tracker:
        tracker.run("pipeline/1", name="third")
        assert tracker.flush()
        assert tracker.run_id("pipeline/1") == first
    client = client_of(uri)
    pipeline, trial = run_by_key(client, "pipeline/1"), run_by_key(client, "trial/1")
    assert pipeline.info.run_id == first and pipeline.info.run_name == "third"
    assert pipeline.data.params == {"lr": "1", "seed": "7", "new": "1"}
    assert pipeline.data.tags["param.lr"] == "2" and "param.seed" not in pipeline.data.tags
    assert pipeline.info.status == "FINISHED" and trial.info.status == "KILLED"
    assert history(client, trial.info.run_id, "loss") == [(step, float(step)) for step in range(300)]
    assert not sessions(store)


def test_an_exception_ends_open_runs_as_failed(store: Path) -> None:
    client = client_of(uri_of(store))
    for error, status in ((RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")):
        with pytest.raises(error), Tracker.open(uri_of(store), "head-pose", store) as tracker:
            tracker.run("p", name="p")
            tracker.run("done", name="done", parent="p")
            tracker.finish("done")
            raise error
        assert run_by_key(client, "p").info.status == status
        assert run_by_key(client, "done").info.status == "FINISHED"
    tracker.close()
    tracker.metrics("p", {"late": 1.0}, 0)  # neither raises nor arrives
    assert "late" not in run_by_key(client, "p").data.metrics


def test_a_process_that_forgets_close_has_failed(store: Path) -> None:
    code = f"""
        from pathlib import Path
        from workflows.tracking import Tracker
        t = Tracker.open({uri_of(store)!r}, "head-pose", Path({str(store)!r}))
        t.run("p", name="p")
        raise RuntimeError("nobody catches this")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "nobody catches this" in done.stderr
    assert run_by_key(client_of(uri_of(store)), "p").info.status == "FAILED"
    assert not sessions(store)


def test_an_event_that_always_fails_blocks_nobody_for_long(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(mlflow_backend.Backend, "_tags", fails)
    with Tracker.open(uri_of(store), "head-pose", store) as tracker:
        tracker.run("p", name="p")
        tracker.tags("p", {"a": "b"})
        tracker.metrics("p", {"loss": 1.0}, 0)
        until(lambda: tracker.pending == 0)
    assert run_by_key(client_of(uri_of(store)), "p").data.metrics == {"loss": 1.0}
    (refused,) = (store / "mlflow-spool" / "refused.jsonl").read_text().splitlines()
    assert json.loads(refused)["error"] == "disk on fire"


def test_many_threads_and_a_locked_database(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker.open(uri_of(store), "head-pose", store)
    tracker.run("p", name="p")
    assert tracker.flush()
    monkeypatch.setattr(tracking, "DEADLINE_S", 0.3)
    other = sqlite3.connect(store / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    slowest = [0.0]

    def work(worker: int) -> None:
        for step in range(50):
            start = time.perf_counter()
            tracker.metrics("p", {f"loss{worker}": float(step)}, step)
            slowest[0] = max(slowest[0], time.perf_counter() - start)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tracker.flush() and tracker.spooling, "a locked database counts as slow, all is in the spool"
    assert tracker.pending == 400
    other.execute("ROLLBACK")
    other.close()
    until(lambda: tracker.pending == 0)
    tracker.close()
    assert slowest[0] < 0.5
    client = client_of(uri_of(store))
    run_id = run_by_key(client, "p").info.run_id
    for worker in range(8):
        assert history(client, run_id, f"loss{worker}") == [(s, float(s)) for s in range(50)]
    said = capfd.readouterr().err
    assert said.count("dead or slow") == 1 and said.count("answers again") == 1


def test_registration_sets_version_alias_and_the_pages(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "student.onnx").write_bytes(b"onnx")
    with Tracker.open(uri_of(store), "head-pose", store) as tracker:
        for key in ("student/1", "student/2"):
            tracker.run(key, name=key)
            tracker.artifact(key, folder, "model")
        table = "| MAE |\n|---|\n| 4.10 |"
        assert tracker.register("student/1", "head-pose", "model", tags={"mae": "4.2"}, description="old") == ("1", "1")
        page = {"report": "report/report.html"}
        new = [
            tracker.register("student/2", "head-pose", "model", description=table, summary="MAE 4.10", tags=page)
            for _ in range(2)
        ]
        assert new == [("2", "2")] * 2, "a run's folder is one version, however often it is registered"
    client = client_of(uri_of(store))
    champion = client.get_model_version_by_alias("head-pose", "champion")
    run_id = run_by_key(client, "student/2").info.run_id
    assert (champion.version, champion.run_id) in (("2", run_id), (2, run_id))
    assert champion.description == table and champion.source == f"runs:/{run_id}/model"
    assert client.get_model_version("head-pose", "1").tags == {"mae": "4.2"}
    assert table in client.get_registered_model("head-pose").description
    experiment, tags = (getattr(client.get_experiment_by_name("head-pose"), key) for key in ("experiment_id", "tags"))
    assert tags["champion"] == "MAE 4.10 · head-pose v2"
    assert f"/runs/{run_id}" in tags["mlflow.note.content"] and "/versions/2" in tags["mlflow.note.content"]
    for shown in (tags["mlflow.note.content"], client.get_registered_model("head-pose").description):
        assert f"[report](#/experiments/{experiment}/runs/{run_id}/artifacts/report/report.html)" in shown


def test_the_alias_is_won_on_the_same_faces_only(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "student.onnx").write_bytes(b"onnx")
    entries = [("faces A", 5.0), ("faces A", 6.0), ("faces A", 4.0), ("faces B", 9.0)]
    holders = []
    with Tracker.open(uri_of(store), "head-pose", store) as tracker:
        for number, contest in enumerate(entries, start=1):
            tracker.run(f"student/{number}", name="student")
            tracker.artifact(f"student/{number}", folder, "model")
            made = tracker.register(f"student/{number}", "head-pose", "model", summary=str(contest), contest=contest)
            assert made is not None and made.version == str(number)
            holders.append(made.holder)
    assert holders == ["1", "1", "3", "4"]
    client = client_of(uri_of(store))
    assert str(client.get_model_version_by_alias("head-pose", "candidate").version) == "4"
    assert "9.0" in client.get_experiment_by_name("head-pose").tags["champion"]


# -- a server ------------------------------------------------------------------------------------------------


@pytest.fixture
def start_server(store: Path) -> Iterator[Callable[[int], str]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> str:
        words = f"server --host 127.0.0.1 --port {port} --workers 1 --backend-store-uri {uri_of(store)}"
        words += f" --artifacts-destination {store}/served"
        env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        command = [sys.executable, "-m", "mlflow", *words.split()]
        with open(store / "server.log", "wb") as log:
            started.append(
                subprocess.Popen(command, cwd=store, env=env, stdout=log, stderr=log, start_new_session=True)
            )

        def up() -> bool:
            assert started[0].poll() is None, (store / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        until(up, 180)  # a server imports for a minute on a busy machine
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        os.killpg(process.pid, 15)  # its own session: the workers go with it
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def test_a_dead_server_spools_and_a_live_one_gets_all_exactly_once(
    tmp_path: Path, start_server: Callable[[int], str], capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    uri, mine = f"http://127.0.0.1:{port}", tmp_path / "mine"
    start = time.monotonic()
    tracker = Tracker.open(uri, "head-pose", mine)
    assert time.monotonic() - start < 8
    model = tmp_path / "student.onnx"
    model.write_bytes(b"onnx")

    took = []

    def timed(call: Callable[[], object]) -> None:
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)

    timed(lambda: tracker.run("pipeline/1", name="pipeline"))
    timed(lambda: tracker.run("teacher/1", name="teacher", parent="pipeline/1"))
    timed(lambda: tracker.params("teacher/1", {"lr": 0.1}))
    for step in range(300):
        values = {"loss": 1 / (step + 1), "odd": math.nan}
        timed(partial(tracker.metrics, "teacher/1", values, step))
    timed(lambda: tracker.artifact("teacher/1", model, "model"))
    model.unlink()
    until(lambda: tracker.spooling)
    assert tracker.register("teacher/1", "head-pose", "model", summary="MAE 4.10") is None
    assert tracker.flush(), "all is in the spool"
    timed(lambda: tracker.close("FINISHED"))
    assert sorted(took)[-4] < 0.05, "a call must not wait for the server"
    assert max(took) < 5.0

    said = capfd.readouterr().err
    assert said.count("dead or slow") == 1 and "replay store=" in said
    (left,) = sessions(mine)
    events = [json.loads(line) for line in (left / "events.jsonl").read_text().splitlines()]
    assert [e["op"] for e in events[:3]] == ["run", "run", "params"]
    assert [e["step"] for e in events if e["op"] == "metrics"] == list(range(300))
    assert [e["op"] for e in events[-3:]] == ["register", "finish", "finish"]
    assert main(["replay", f"store={mine}"]) == 1, "still dead"
    assert len(sessions(mine)) == 1, "a replay that sent nothing leaves nothing"

    # The driver dies between sending and writing that down: what was sent comes again.
    shutil.copytree(left, tmp_path / "before")
    start_server(port)
    for attempt in range(2):
        if attempt == 1:
            shutil.copytree(tmp_path / "before", left)
        assert main(["replay", f"store={mine}"]) == 0
        assert not sessions(mine)
        client = client_of(uri)
        teacher, parent = run_by_key(client, "teacher/1"), run_by_key(client, "pipeline/1")
        rows = history(client, teacher.info.run_id, "loss")
        assert rows == [(step, 1 / (step + 1)) for step in range(300)]
        assert len(client.get_metric_history(teacher.info.run_id, "odd")) == 300
        assert teacher.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert teacher.info.status == parent.info.status == "FINISHED"
        assert teacher.data.params == {"lr": "0.1"}
        assert [f.path for f in client.list_artifacts(teacher.info.run_id, "model")] == ["model/student.onnx"]
        assert len(client.search_model_versions("name = 'head-pose'")) == 1
        assert client.get_model_version_by_alias("head-pose", "champion").run_id == teacher.info.run_id


def test_a_server_that_never_answers_stalls_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "DEADLINE_S", 0.3)
    monkeypatch.setattr(tracking, "OPEN_WAIT_S", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", free_port())) as listener:  # accepts, and that is all
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        start = time.monotonic()
        tracker = Tracker.open(uri, "head-pose", tmp_path / "store")
        took = []
        tracker.run("p", name="p")
        for step in range(200):
            begin = time.perf_counter()
            tracker.metrics("p", {"loss": 1.0}, step)
            took.append(time.perf_counter() - begin)
        assert tracker.flush(20.0) and tracker.spooling
        tracker.close("FAILED")
        assert time.monotonic() - start < 20
    assert sorted(took)[-4] < 0.05
    (left,) = sessions(tmp_path / "store")
    assert len((left / "events.jsonl").read_text().splitlines()) == 202
    assert capfd.readouterr().err.count("dead or slow") == 1
