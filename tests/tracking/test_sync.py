"""Laws of the sync: MLflow shows what the store says, nothing twice, whatever was cut off, deleted or refused."""

import math
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from werkzeug.serving import BaseWSGIServer, make_server

from hpe_core.errors import SpecError
from tests.tracking import places
from workflows.tracking import server
from workflows.tracking import sync as syncing
from workflows.tracking.facts import Artifact, Point, RunFacts
from workflows.tracking.live import Live
from workflows.tracking.registry import downloaded, version_of
from workflows.tracking.server import connect
from workflows.tracking.sync import Session, Synced, clean, flatten, sync

NOTHING = Synced()


def bring(store: Path, facts: list[RunFacts], experiment: str = places.EXPERIMENT) -> Synced:
    return sync(store, places.uri_of(store), experiment, facts)


def forget(store: Path) -> None:
    """Take away the notes of what was sent."""
    client = server.client_of(places.uri_of(store))
    for run in places.runs_by_key(client).values():
        client.delete_tag(run.info.run_id, "hpe.sent")


def state(uri: str, experiment: str = places.EXPERIMENT) -> dict[str, Any]:
    """All that MLflow shows of an experiment, but for its ids."""
    client = server.client_of(uri)
    runs = places.runs_by_key(client, experiment)
    ids = {run.info.run_id: key for key, run in runs.items()}
    shown: dict[str, Any] = {}
    for key, run in runs.items():
        tags = {tag: ids.get(value, value) for tag, value in run.data.tags.items() if tag != "hpe.sent"}
        figures = {name: repr(places.history(client, run, name)) for name in run.data.metrics}  # nan is not nan
        files = [file.path for file in client.list_artifacts(run.info.run_id)]
        files += [file.path for folder in files for file in client.list_artifacts(run.info.run_id, folder)]
        shown[key] = (run.info.run_name, run.info.status, run.info.end_time, run.data.params, tags, figures, files)
    for version in client.search_model_versions(f"name = '{experiment}'"):
        shown[f"version {version.version}"] = (ids.get(version.run_id), version.description)
        shown["aliases"] = client.get_registered_model(experiment).aliases
    return shown


def test_params_become_flat_names_that_mlflow_takes():
    flat = flatten({"a": {"b": {"c": 1}}, "list": [1, 2], "rows": [{"x": None}], "empty": {}, "odd=key": "v"})
    assert flat == {"a.b.c": "1", "list": "[1, 2]", "rows.0.x": "None", "empty": "{}", "odd_key": "v"}
    assert len(flatten({"n": "z" * 9000})["n"]) == 6000 and max(map(len, flatten({"k" * 999: 1}))) <= 250
    odd = {"a//b": "a/b", "../x": "x", "a/./b": "a/b", "a/..": "a", "": "_", "/x /": "x", "90 %": "90 _", "é": "é"}
    assert {name: clean(name) for name in odd} == odd


def test_mlflow_shows_what_the_store_says_and_gets_it_once(store, tmp_path):
    facts = places.told(tmp_path / "home")
    odd = (Point("odd metric=1", math.inf, 0, 5), Point("odd metric=1", math.nan, 1, 6), Point("odd metric=1", 2, 2, 7))
    tags = {"commit": "c0ffee", "long": "x" * 9000, "it's/../odd\n": "yes", "n" * 300: "yes"}
    facts[0] = replace(facts[0], points=odd, tags=tags, params={"n" * 300: "it's \n odd", "a/../b": ""})
    done = bring(store, facts)
    assert (done.runs, done.points, done.artifacts, done.refused) == (3, 35, 2, {})
    assert done.registered == ["registered head-pose version 1, the champion"]
    assert bring(store, facts) == NOTHING

    client = server.client_of(places.uri_of(store))
    runs = places.runs_by_key(client)
    parent, stage, network = (runs[run.key] for run in facts)
    assert (parent.info.run_name, parent.info.status) == ("MAE 4.10 · demo", "FINISHED")
    assert (parent.info.start_time, parent.info.end_time) == (1000, 9000)
    assert parent.data.tags["mlflow.source.git.commit"] == "c0ffee" and len(parent.data.tags["long"]) == 5000
    assert parent.data.tags["it_s/odd_"] == parent.data.tags["n" * 200] == "yes"
    assert parent.data.params == {"n" * 200: "it's \n odd", "a/b": ""}
    assert stage.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert network.data.tags["mlflow.parentRunId"] == stage.info.run_id
    assert stage.data.params == {"net.name": "resnet", "net.bins": "[1, 2]", "rows.0.x": "None"}
    assert len(network.data.params) == 150
    assert places.history(client, network, "loss") == [(point.step, point.value) for point in places.loss(30)]
    figures = places.history(client, parent, "odd metric_1")
    assert [step for step, _ in figures] == [0, 1, 2] and figures[2][1] == 2
    assert math.isnan(figures[0][1]) and math.isnan(figures[1][1]), "inf would ruin the axis of the chart"
    assert parent.data.tags["nonfinite.odd metric_1"] == "nan at step 1"
    kept = store / "mlartifacts" / "head-pose" / stage.info.run_id / "artifacts"
    assert (kept / "kept/notes.txt").read_text() == "notes" and (kept / "model/student.onnx").read_bytes() == b"onnx"
    assert list(Path.cwd().iterdir()) == [], "nothing may be written into the working directory"

    facts[2] = replace(facts[2], points=places.loss(40))
    assert bring(store, facts) == Synced(runs=1, points=10), "what is there is not sent again"
    facts[1] = replace(facts[1], tags={**facts[1].tags, "new": "tag"})
    done = bring(store, facts)
    assert (done.runs, done.points, done.artifacts) == (1, 0, 0)
    facts[2] = replace(facts[2], points=tuple(point._replace(time_ms=point.time_ms + 9) for point in places.loss(41)))
    assert bring(store, facts) == Synced(runs=1, points=41), "other points are new ones, however many there are"
    before = state(places.uri_of(store))
    forget(store)
    again = bring(store, facts)
    assert again.points == 46 and state(places.uri_of(store)) == before, "what is sent again leaves no trace"


class Cut:
    """A client that is dead from its `at`-th writing call on."""

    def __init__(self, client: Any, at: int) -> None:
        self.client, self.left = client, at

    def __getattr__(self, name: str) -> Any:
        self.left -= not name.startswith(("get_", "search_", "list_"))
        if self.left <= 0:
            raise ConnectionError("cut off")
        return getattr(self.client, name)


def test_a_sync_that_is_cut_off_anywhere_is_completed_by_the_next(store, tmp_path, monkeypatch):
    run, stage, _ = places.told(tmp_path / "home")

    def named(name: str) -> list[RunFacts]:
        """The run and its stage, which has all that a run may have, with a registered model of its own."""
        return [run, replace(stage, model=replace(stage.model, name=name))]

    assert bring(store, named("whole"), "whole").runs == 2
    expected = state(places.uri_of(store), "whole")
    for at in range(1, 99):
        name = f"cut-{at}"
        with monkeypatch.context() as patch:
            patch.setattr(syncing, "connect", lambda *place, at=at: (Cut((made := connect(*place))[0], at), made[1]))
            try:
                bring(store, named(name), name)
                break
            except ConnectionError:
                pass
        bring(store, named(name), name)
        assert state(places.uri_of(store), name) == expected, f"cut off at writing call {at}"
        assert bring(store, named(name), name) == NOTHING
    assert 15 < at < 98


def test_of_two_syncs_at_once_one_sends(store, tmp_path):
    facts, together = places.told(tmp_path / "home"), threading.Barrier(2)

    def work(_: int) -> int:
        together.wait()
        return bring(store, facts).runs

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(work, range(2))) == [0, 3]
    assert len(places.runs_by_key(server.client_of(places.uri_of(store)))) == 3


def test_a_run_that_was_killed_goes_on_as_the_same_run(store):
    killed = RunFacts("pipeline/1", "demo", None, "KILLED", 1000, 2000, {"lr": 1, "seed": 7})
    bring(store, [killed])
    client = server.client_of(places.uri_of(store))
    first = places.runs_by_key(client)["pipeline/1"]
    assert first.info.status == "KILLED"
    going = replace(killed, status="RUNNING", ended_ms=None, params={"lr": 2, "seed": 7, "new": 1})
    bring(store, [going])
    assert places.runs_by_key(client)["pipeline/1"].info.status == "RUNNING"
    bring(store, [replace(going, status="FINISHED", ended_ms=9000, name="MAE 4.10 · demo")])
    run = places.runs_by_key(client)["pipeline/1"]
    assert run.info.run_id == first.info.run_id and (run.info.status, run.info.end_time) == ("FINISHED", 9000)
    assert run.info.run_name == run.data.tags["mlflow.runName"] == "MAE 4.10 · demo"
    assert run.data.params == {"lr": "1", "seed": "7", "new": "1"}, "a param keeps its first value"
    assert run.data.tags["param.lr"] == "2" and "param.seed" not in run.data.tags


def test_what_was_shown_early_ends_with_its_stage(store):
    run, stage = RunFacts("pipeline/1", "demo"), RunFacts("teachers/1", "teachers", "pipeline/1")
    other = RunFacts("teachers/2", "teachers", "pipeline/1")
    bring(store, [run, stage, other])
    session = Session(store, places.uri_of(store), places.EXPERIMENT)
    for key in ("teachers/1/a", "teachers/1/b", "teachers/2/c"):
        session.begin(RunFacts(key, key, key.rpartition("/")[0]))
    session.end("teachers/1/b", "FAILED")
    told = [run, replace(stage, status="KILLED", ended_ms=5), other]
    bring(store, told)
    client = server.client_of(places.uri_of(store))
    found = places.runs_by_key(client)
    assert [found[f"teachers/{key}"].info.status for key in ("1/a", "1/b", "2/c")] == ["KILLED", "FAILED", "RUNNING"]
    assert found["teachers/1/a"].data.tags["mlflow.parentRunId"] == found["teachers/1"].info.run_id
    whole = RunFacts("teachers/1/a", "a", "teachers/1", "FINISHED", 1, 2, points=places.loss(3))
    bring(store, [run, replace(stage, status="FINISHED", ended_ms=9), whole])
    session.begin(RunFacts("teachers/1/a", "a", "teachers/1"))  # the stage is repaired, and shows its network again
    assert places.runs_by_key(client)["teachers/1/a"].info.status == "RUNNING"
    assert bring(store, [run, replace(stage, status="FINISHED", ended_ms=9), whole]) == Synced(runs=1)
    after = places.runs_by_key(client)["teachers/1/a"]
    assert after.info.run_id == found["teachers/1/a"].info.run_id and after.info.status == "FINISHED"


def test_a_deleted_experiment_comes_back_and_a_deleted_run_with_news_only(store, tmp_path):
    facts = places.told(tmp_path / "home", points=3)
    bring(store, facts)
    client, before = server.client_of(places.uri_of(store)), state(places.uri_of(store))
    client.delete_experiment(client.get_experiment_by_name(places.EXPERIMENT).experiment_id)
    assert bring(store, facts) == NOTHING and state(places.uri_of(store)) == before
    client.delete_run(places.runs_by_key(client)["publish/1/a"].info.run_id)
    assert bring(store, facts) == NOTHING and "publish/1/a" not in places.runs_by_key(client), "the user's wish"
    facts[2] = replace(facts[2], points=places.loss(4))
    assert bring(store, facts).points == 4 and bring(store, facts) == NOTHING
    assert places.history(client, places.runs_by_key(client)["publish/1/a"], "loss") == [
        (p.step, p.value) for p in places.loss(4)
    ]


def test_what_mlflow_refuses_holds_up_nothing_else(store, tmp_path, monkeypatch):
    facts = places.told(tmp_path / "home")
    shutil.rmtree(tmp_path / "home/model")  # lost: nothing to register
    done = bring(store, facts)
    assert list(done.refused) == ["publish/1"] and "no artifacts in 'model'" in done.sentence()
    client = server.client_of(places.uri_of(store))
    assert places.history(client, places.runs_by_key(client)["publish/1/a"], "loss") and done.runs == 2
    places.model_in(tmp_path / "home")  # repaired
    assert bring(store, facts).refused == {} and bring(store, facts) == NOTHING
    assert client.get_model_version_by_alias("head-pose", "champion").version in ("1", 1)
    monkeypatch.setattr(type(client), "log_artifact", Mock(side_effect=RuntimeError("disk on fire")))
    new = [replace(facts[2], key="publish/1/b", artifacts=(Artifact("notes.txt"),), home=tmp_path / "home")]
    new += [replace(facts[2], key="publish/1/c")]
    assert bring(store, new).refused == {"publish/1/b": "RuntimeError: disk on fire"}
    assert places.runs_by_key(client)["publish/1/c"].data.metrics


def test_the_alias_is_won_on_the_same_faces_and_once(store, tmp_path):
    entries, said, facts = [("A", 5.0), ("A", 6.0), ("A", 4.0), ("B", 9.0)], [], []
    for number, (faces, error) in enumerate(entries, start=1):
        home = tmp_path / str(number)
        model = places.model_in(home, error, faces, {"report": "report/report.html"})
        run = RunFacts(f"publish/{number}", "publish", None, "FINISHED", model=model, artifacts=(Artifact("model"),))
        facts.append(replace(run, home=home))
        said += bring(store, facts[-1:]).registered
    assert [line.removeprefix("registered head-pose version ") for line in said] == [
        "1, the champion",
        "2, candidate; version 1 stays champion with a smaller error on the same validation faces",
        "3, the champion",
        "4, the champion",
    ]
    client = server.client_of(places.uri_of(store))
    versions = {version.version: version for version in client.search_model_versions("name = 'head-pose'")}
    assert len(versions) == 4
    champion = client.get_model_version_by_alias("head-pose", "champion")
    run_id = places.runs_by_key(client)["publish/4"].info.run_id
    assert champion.run_id == run_id and champion.source == f"runs:/{run_id}/model"
    assert champion.tags["contest"] == "B" and "| 9.00 |" in champion.description
    # Two clicks from the start page: the experiment shows the champion, its run and its report.
    found = client.get_experiment_by_name(places.EXPERIMENT)
    assert found.tags["champion"] == "MAE 9.00 · head-pose v4"
    note, page = found.tags["mlflow.note.content"], client.get_registered_model("head-pose").description
    assert f"/runs/{run_id}" in note and "#/models/head-pose/versions/4" in note and "| 9.00 |" in page
    for shown in (note, page):
        assert f"[report](#/experiments/{found.experiment_id}/runs/{run_id}/artifacts/report/report.html)" in shown
    # An old store that is sent again takes the alias from nobody, and makes no versions.
    client.set_registered_model_alias("head-pose", "champion", "1")
    forget(store)
    assert bring(store, facts).runs == 4 and len(client.search_model_versions("name = 'head-pose'")) == 4
    assert str(client.get_model_version_by_alias("head-pose", "champion").version) == "1"
    assert str(client.get_model_version_by_alias("head-pose", "candidate").version) == "4"
    # A server's database has 5,000 letters for a description, and a link has no spaces.
    model = replace(places.model_in(tmp_path / "9"), name="head pose", description="| a test set |" * 500)
    bring(store, [replace(facts[-1], key="publish/9", model=model, home=tmp_path / "9")])
    version = client.get_model_version_by_alias("head pose", "champion")
    assert len(version.description) == len(client.get_registered_model("head pose").description) == 5000
    note = client.get_experiment_by_name(places.EXPERIMENT).tags["mlflow.note.content"]
    assert "](#/models/head%20pose/versions/1)" in note


@pytest.fixture
def start_server(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """What `mlflow server` serves, in this process, which has imported MLflow."""
    running: list[BaseWSGIServer] = []

    def start(port: int) -> None:
        from mlflow.server import app, constants, handlers

        monkeypatch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, places.uri_of(store))
        monkeypatch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
        monkeypatch.setenv(constants.ARTIFACTS_DESTINATION_ENV_VAR, str(store / "served"))
        monkeypatch.setenv(constants.SERVE_ARTIFACTS_ENV_VAR, "true")
        for opened in ("_tracking_store", "_model_registry_store", "_artifact_repo"):
            monkeypatch.setattr(handlers, opened, None)
        running.append(make_server("127.0.0.1", port, app, threaded=True))
        threading.Thread(target=running[0].serve_forever, daemon=True).start()

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


def test_a_server_that_was_dead_gets_all_exactly_once(store, tmp_path, start_server):
    """Files go through the server: the client sees no folder of its."""
    port, mine, facts = places.free_port(), tmp_path / "mine", places.told(tmp_path / "home")
    uri, said = f"http://127.0.0.1:{port}", list[str]()
    live = Live(mine, uri, places.EXPERIMENT, lambda: facts, say=said.append)
    live.started("publish/1/a", "a", "publish/1", {})
    behind = live.close()
    assert behind.startswith("MLflow is behind (") and "`full_pipeline.py sync` brings it up" in behind
    assert len(said) == 1 and "dead or slow" in said[0] and uri in said[0]
    start_server(port)
    assert sync(mine, uri, places.EXPERIMENT, facts).runs == 3
    before = state(uri)
    assert before["publish/1"][-1] == ["kept", "model", "kept/notes.txt", "model/student.onnx"]
    assert before["version 1"] == ("publish/1", "| MAE |\n|---|\n| 4.10 |")
    assert sync(mine, uri, places.EXPERIMENT, facts) == NOTHING
    forget(store)
    live = Live(mine, uri, places.EXPERIMENT, lambda: facts, say=said.append)
    assert live.close(60) == "" and state(uri) == before, "the next run mends it, too"
    assert said[1:] == ["registered head-pose version 1, the champion"]
    assert not (mine / "mlartifacts").exists() and list((store / "served").rglob("student.onnx"))


def test_a_model_is_found_behind_a_hundred_others(tmp_path, fresh_database):
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    client, _ = connect(places.uri_of(tmp_path), places.EXPERIMENT, tmp_path)
    for number in range(101):
        client.create_registered_model(f"a-{number:03d}")
    client.create_registered_model("head-pose")
    client.create_model_version("head-pose", str(tmp_path / "model"))
    client.set_registered_model_alias("head-pose", "champion", "1")
    assert version_of(client, "champion", "head-pose") == str(tmp_path / "model")
    with pytest.raises(SpecError, match="no model 'head-posing'"):
        version_of(client, "champion", "head-posing")
    (tmp_path / "text.db").write_text("no database" * 99)
    with pytest.raises(SpecError, match="model=champion: MLflow at .* is not a database"):
        downloaded("champion", f"sqlite:///{tmp_path}/text.db", "head-pose", tmp_path)
