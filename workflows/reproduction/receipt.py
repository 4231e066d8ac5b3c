"""A finished run's receipt: its configuration and the manifests of its stages, from its store or from MLflow."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpe_core.errors import check
from hpe_core.system.files import known_json
from hpe_core.system.remote import is_remote
from workflows.engine.results import SCHEMA_VERSION
from workflows.full_pipeline import NAMES
from workflows.storage.contents import MANIFEST
from workflows.storage.manifest import read_manifest
from workflows.tracking.registry import RUN_ID
from workflows.tracking.server import asked, brought
from workflows.tracking.sync import KEY_TAG, STORE_TAG

CONFIG, RUN = "config.yaml", "run.json"
Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Receipt:
    """What a run was told, and what each of its stages made of it."""

    name: str  # for messages
    config: str  # YAML
    manifests: Mapping[str, Manifest]  # by stage, from the top down
    commit: str = "unknown"  # of the whole run

    def all_of(self, what: str) -> list[str]:
        """What the stages were made by, each once: `commit`, `python`, `processors` or `packages` ("name==version")."""
        found: list[str] = []
        for manifest in self.manifests.values():
            value = manifest.get("made_by", {}).get(what, [])  # an older version of this program wrote nothing
            if isinstance(value, Mapping):
                value = [f"{name}=={version}" for name, version in value.items()]
            found += [value] if isinstance(value, str) else value
        return list(dict.fromkeys(found))

    def result(self, stage: str) -> Mapping[str, Any]:
        return dict(self.manifests[stage]["result"])


def read_receipt(run: str, uri: str = "") -> Receipt:
    """`run` is a store with one finished run, its folder `STORE/pipeline/HASH`, or a run's id in the MLflow at `uri`.

    Raises SpecError where there is none, or several, or one that is not finished.
    """
    if RUN_ID.fullmatch(run):
        return from_mlflow(run, uri)
    check(not is_remote(run), f"{run}: name the run's id in MLflow, or a copy of the store on this machine")
    place = Path(os.path.realpath(os.path.expanduser(run)))
    check(place.is_dir(), f"{run} is neither a folder nor the id of a run in MLflow")
    runs = [place / RUN] if (place / RUN).is_file() else sorted(place.glob(f"pipeline/*/{RUN}"))
    done = [file.parent for file in runs if (known_json(file) or {}).get("status") == "FINISHED"]
    check(bool(done), f"{run} holds no finished run")
    check(len(done) == 1, f"{run} holds {len(done)} finished runs; name one of {', '.join(map(str, done))}")
    return from_store(done[0])


def from_store(home: Path) -> Receipt:
    """The run of `STORE/pipeline/HASH`."""
    store, told = home.parents[1], known_json(home / RUN) or {}
    found = {key.split("/")[0]: read_manifest(store / key) for key in told["stages"]}
    return _checked(str(home), (home / CONFIG).read_text(), found, told["tags"])


def from_mlflow(run_id: str, uri: str) -> Receipt:
    """The same, from the artifacts of the whole run and of its stages."""
    check(uri not in ("", "none"), f"{run_id} is the id of a run: say mlflow.uri=URI, where it is found")
    with asked(uri, f"run {run_id}") as client, tempfile.TemporaryDirectory(prefix="hpe-receipt-") as place:
        whole = client.get_run(run_id)
        named = whole.data.tags.get(KEY_TAG, "")
        check(named.startswith("pipeline/"), f"{run_id} is no whole run of a pipeline, but {named or 'unknown'}")
        check(whole.info.status == "FINISHED", f"{run_id} is not finished, but {whole.info.status}")
        experiment = [whole.info.experiment_id]
        below = client.search_runs(experiment, f"tags.`mlflow.parentRunId` = '{run_id}'")
        stages = {run.data.tags["stage"]: run.info.run_id for run in below if "stage" in run.data.tags}
        for tag, key in whole.data.tags.items():
            if tag.startswith("reused."):  # made by an earlier run
                found = client.search_runs(experiment, f"tags.`{KEY_TAG}` = '{key}'")
                makers = [run for run in found if run.data.tags.get(STORE_TAG) == whole.data.tags.get(STORE_TAG)]
                check(bool(makers), f"the run of {key}, which {run_id} used, is no longer in MLflow")
                stages[tag.removeprefix("reused.")] = makers[0].info.run_id

        def text(run: str, file: str) -> str:
            return brought(uri, f"runs:/{run}/{file}", Path(place)).read_text()

        found = {name: json.loads(text(stages[name], MANIFEST)) for name in NAMES if name in stages}
        return _checked(run_id, text(run_id, CONFIG), found, whole.data.tags)


def _checked(name: str, config: str, found: Mapping[str, Manifest | None], tags: Mapping[str, str]) -> Receipt:
    check("evaluate" in found, f"run {name} was never scored: it has no stage evaluate to compare")
    missing = [stage for stage, manifest in found.items() if manifest is None]
    check(not missing, f"run {name} is not whole: {', '.join(missing)} has no manifest")
    manifests = {stage: manifest for stage, manifest in found.items() if manifest is not None}
    for stage, manifest in manifests.items():
        version = manifest.get("schema", 1)
        said = f"run {name}: {stage} is of version {version}, and this program reads version {SCHEMA_VERSION}"
        check(version == SCHEMA_VERSION, said)
    return Receipt(name, config, manifests, tags.get("commit", "unknown"))
