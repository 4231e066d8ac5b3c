"""Laws of several stores on one MLflow: each has its own runs, and a store stays one wherever it lies."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tracking import places
from workflows.tracking import server
from workflows.tracking import sync as syncing
from workflows.tracking.facts import RunFacts
from workflows.tracking.server import connect
from workflows.tracking.sync import STORE_TAG, Session, Synced, sync

NOTHING = Synced()


@pytest.fixture
def database(store: Path) -> str:
    """The address of a database that is no store's own, and whose files lie beside it."""
    connect(places.uri_of(store), places.EXPERIMENT, store / "mlartifacts")
    return places.uri_of(store)


def facts_in(store: Path, points: int = 5, error: float = 4.1) -> list[RunFacts]:
    """What the store says: the same keys in all stores."""
    run, stage, network = places.told(store / "home", points)
    model = places.model_in(store / "home", error)
    return [replace(run, params={"store": str(store)}), replace(stage, model=model), network]


def bring(store: Path, database: str, facts: list[RunFacts]) -> Synced:
    return sync(store, database, places.EXPERIMENT, facts)


def all_runs(database: str) -> list[Any]:
    client = server.client_of(database)
    return list(client.search_runs([client.get_experiment_by_name(places.EXPERIMENT).experiment_id]))


def shown(database: str) -> dict[str, dict[str, Any]]:
    """By the store's id all that MLflow shows of its runs, by their keys."""
    client, found = server.client_of(database), dict[str, dict[str, Any]]()
    for run in all_runs(database):
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        tags = {tag: value for tag, value in run.data.tags.items() if tag != "hpe.sent"}
        told = (run.info.run_id, run.info.status, run.info.end_time, run.data.params, tags, files)
        mine = found.setdefault(run.data.tags.get(STORE_TAG, ""), {})
        assert run.data.tags["hpe.key"] not in mine
        mine[run.data.tags["hpe.key"]] = (*told, places.history(client, run, "loss"))
    return found


def ids(runs: Mapping[str, tuple[Any, ...]]) -> dict[str, str]:
    return {key: told[0] for key, told in runs.items()}


def test_two_stores_of_one_configuration_do_not_touch_each_others_runs(tmp_path, database):
    """One finished; the other was killed, with a network that both show early still at work."""
    mine, yours = tmp_path / "mine", tmp_path / "yours"
    facts = facts_in(mine)
    assert bring(mine, database, facts).runs == 3
    Session(mine, database, places.EXPERIMENT).begin(RunFacts("publish/1/b", "b", "publish/1"))
    before = shown(database)
    killed = [replace(run, status="KILLED", points=places.loss(2), model=None) for run in facts_in(yours)[:2]]
    session = Session(yours, database, places.EXPERIMENT)
    session.sync([replace(run, status="RUNNING", ended_ms=None) for run in killed])
    session.begin(RunFacts("publish/1/b", "b", "publish/1"))
    session.log(session.run_id("publish/1/b"), places.loss(9))
    assert bring(yours, database, killed).runs == 2
    after = shown(database)
    (own,) = before
    (other,) = after.keys() - before.keys()
    assert after[own] == before[own] and after[own]["publish/1/b"][1] == "RUNNING"
    assert {key: run[1] for key, run in after[other].items()} == dict.fromkeys(
        ("pipeline/1", "publish/1", "publish/1/b"), "KILLED"
    )
    assert len(after[other]["publish/1/b"][-1]) == 9 and after[other]["publish/1"][-1] == after[own]["publish/1"][-1]
    assert after[other]["publish/1/b"][4]["mlflow.parentRunId"] == after[other]["publish/1"][0]
    assert bring(yours, database, killed) == NOTHING and bring(mine, database, facts).runs == 0


def test_the_better_student_is_champion_whichever_store_it_is_of(tmp_path, database):
    client = server.client_of(database)
    stores = {name: tmp_path / name for name in ("first", "worse", "best")}
    for (name, store), error in zip(stores.items(), (4.0, 5.0, 3.0), strict=True):
        (said,) = bring(store, database, facts_in(store, error=error)).registered
        assert said.endswith("the champion") == (name != "worse")
    versions = client.search_model_versions("name = 'head-pose'")
    assert len(versions) == len({version.run_id for version in versions}) == 3
    champion = client.get_model_version_by_alias("head-pose", "champion").run_id
    (best,) = (runs for runs in shown(database).values() if runs["pipeline/1"][3]["store"] == str(stores["best"]))
    assert champion == best["publish/1"][0]


def test_a_store_that_was_moved_or_copied_is_the_same_store(tmp_path, database, fresh_database):
    """To a database of its own it sends all, once."""
    store, copy, moved = tmp_path / "first", tmp_path / "copy", tmp_path / "moved"
    facts = facts_in(store)
    bring(store, database, facts)
    before = shown(database)
    shutil.copytree(store, copy)
    store.rename(moved)
    for place in (copy, moved):
        assert bring(place, database, [replace(run, home=place / "home") for run in facts]) == NOTHING
        assert shown(database) == before
    going = [replace(run, home=copy / "home", points=places.loss(7)) for run in facts[2:]]
    assert bring(copy, database, [*facts[:2], *going]).points == 2
    assert [ids(runs) for runs in shown(database).values()] == [ids(runs) for runs in before.values()]
    shutil.copyfile(fresh_database, copy / "mlflow.db")
    new = places.uri_of(copy)
    moved_facts = [replace(run, home=moved / "home") for run in facts]
    assert bring(moved, new, moved_facts).runs == 3 and bring(moved, new, moved_facts) == NOTHING
    assert shown(new).keys() == before.keys()


def unnamed(database: str) -> None:
    """MLflow as an earlier version has left it: no run names its store."""
    for run in all_runs(database):
        server.client_of(database).delete_tag(run.info.run_id, STORE_TAG)


@pytest.mark.parametrize("continued", [False, True])
def test_runs_of_an_earlier_version_go_to_the_store_that_sent_them(continued, tmp_path, database):
    """It may have been moved since, and may have gone on where it lies now; another store of the configuration makes
    runs of its own, even if it comes first."""
    mine, yours, moved = tmp_path / "mine", tmp_path / "yours", tmp_path / "moved"
    facts, others = facts_in(mine), facts_in(yours)
    bring(mine, database, facts)
    if continued:  # a param keeps its first value, and what it is now becomes a tag
        facts[0] = replace(facts[0], params={"store": str(moved)})
        bring(mine, database, facts)
    unnamed(database)
    client, (before,) = server.client_of(database), shown(database).values()
    client.delete_run(before["publish/1/a"][0])
    assert bring(yours, database, others).runs == 3 and len(shown(database)[""]) == 2
    mine.rename(moved)
    facts = [replace(run, home=moved / "home") for run in facts]
    for _ in range(2):
        assert bring(moved, database, facts) == NOTHING, "nor does the run that the user deleted come back"
    theirs, ours = sorted(shown(database).values(), key=len, reverse=True)
    assert (len(theirs), len(ours)) == (3, 2) and "" not in shown(database)
    assert ids(before).items() > ids(ours).items() and not {*ids(before).values()} & {*ids(theirs).values()}


def test_an_adoption_that_was_cut_off_is_completed(tmp_path, database, monkeypatch):
    store = tmp_path / "mine"
    facts = facts_in(store)
    bring(store, database, facts)
    before = shown(database)
    for most in range(3):
        unnamed(database)
        with monkeypatch.context() as patch:
            patch.setattr(syncing, "connect", lambda *place, most=most: (Cut(connect(*place)[0], most), "1"))
            with pytest.raises(ConnectionError):
                bring(store, database, facts)
        assert len(shown(database)[""]) == 3 - most
        assert bring(store, database, facts) == NOTHING and shown(database) == before


class Cut:
    """A client that sets so many tags and then is dead."""

    def __init__(self, client: Any, most: int) -> None:
        self.client, self.left = client, most

    def __getattr__(self, name: str) -> Any:
        if name == "set_tag":
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("cut off")
        return getattr(self.client, name)
