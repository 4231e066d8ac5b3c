"""A receipt from MLflow is that of one store, whoever else sends runs of the same configuration there."""

import json
import shutil
from pathlib import Path

from tests.reproduction.receipts import RESULTS, manifests
from tests.tracking import places
from workflows.reproduction.receipt import read_receipt
from workflows.tracking.facts import Artifact, RunFacts
from workflows.tracking.server import client_of
from workflows.tracking.sync import Session


def told(store: Path, commit: str) -> list[RunFacts]:
    """A run that made the shards, and one that found them finished and made the rest."""
    first = RunFacts("pipeline/1", "tiny", None, "FINISHED", 1000, 2000, artifacts=(Artifact("config.yaml"),))
    reused = {"commit": commit, "reused.shards": "shards/1"}
    second = RunFacts("pipeline/2", "tiny", None, "FINISHED", 3000, 4000, tags=reused, artifacts=first.artifacts)
    runs = [RunFacts(**{**vars(run), "home": store}) for run in (first, second)]
    store.mkdir()
    (store / "config.yaml").write_text("name: tiny\n")
    for stage, manifest in manifests().items():
        manifest["made_by"]["commit"] = commit
        (home := store / stage).mkdir()
        (home / "manifest.json").write_text(json.dumps(manifest))
        parent = "pipeline/1" if stage == "shards" else "pipeline/2"
        made = (Artifact("manifest.json"),)
        ended = ("FINISHED", 1000, 2000, {}, {"stage": stage}, (), made, None, home)
        runs.append(RunFacts(f"{stage}/1", stage, parent, *ended))
    return runs


def test_a_stage_that_was_reused_is_the_stores_own(tmp_path, fresh_database):
    shutil.copyfile(fresh_database, tmp_path / "mlflow.db")
    uri = places.uri_of(tmp_path)
    for commit in ("1" * 40, "2" * 40):
        store = tmp_path / commit[:1]
        facts = told(store, commit)
        session = Session(store, uri, places.EXPERIMENT)
        session.sync(facts)
        found = read_receipt(session.run_id("pipeline/2"), uri)
        assert found.commit == commit and list(found.manifests) == list(RESULTS)
        assert found.all_of("commit") == [commit], "not the other store's shards"
    assert len(client_of(uri).search_runs(["1"])) == 2 * (2 + len(RESULTS))
