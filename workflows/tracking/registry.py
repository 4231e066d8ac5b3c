"""From the registry to files: what an alias, a version or a run of MLflow means, and its artifacts.

MLflow is imported only when somebody asks.
"""

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

from hpe_core.errors import SpecError, check, nearest
from hpe_core.spec.network import MEANING, WEIGHTS
from hpe_core.system.files import write_atomic
from workflows.tracking.server import asked, brought

ARTIFACTS = "model"  # the folder of a published run that holds the model
RUN_ID, VERSION = re.compile(r"[0-9a-f]{32}"), re.compile(r"\d+")
NETWORK = (WEIGHTS, MEANING)  # the files of a saved network
SCHEME = "models:/"
REGISTERED = re.compile(SCHEME + r"(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def downloaded(model: str, uri: str, registered: str, folder: Path) -> Path:
    """The artifacts of an alias, a version or a run, in `folder`. Raises SpecError that says what there is instead."""
    check(uri != "none", f"model={model} is no file, and mlflow.uri=none leaves no registry to ask")
    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).is_file():  # MLflow would create an empty one
        said = f"model={model} is no file here, and there is no registry {database}"
        raise SpecError(f"{said}; say store=FOLDER of the run, mlflow.uri=URI, or the model's file")
    with asked(uri, f"model={model}") as client:
        where = run_artifacts(client, model) if RUN_ID.fullmatch(model) else version_of(client, model, registered)
        return brought(uri, where, folder)


def fetched_network(model: str, uri: str, folder: Path) -> Path:
    """The saved network of `models:/...`, kept in `folder` under the hash of its files: an alias may move on.

    Raises SpecError, also where the model has no weights for torch.
    """
    with tempfile.TemporaryDirectory(prefix="hpe-start-") as place:
        found = downloaded(model, uri, "", Path(place))
        check((found / WEIGHTS).is_file(), f"model={model} has no {WEIGHTS}, with which a training could begin")
        kept = folder / hashlib.sha256(b"".join((found / name).read_bytes() for name in NETWORK)).hexdigest()[:12]
        for name in NETWORK:
            write_atomic(kept / name, (found / name).read_bytes())
    return kept


def version_of(client: Any, model: str, registered: str) -> str:
    """Where the artifacts of a registered version lie. Raises SpecError that names the models or versions there are."""
    spelt = REGISTERED.fullmatch(model)
    check(spelt is not None or "/" not in model, f"model={model} is not models:/NAME@ALIAS or models:/NAME/VERSION")
    name = spelt["name"] if spelt else registered
    version = spelt["version"] if spelt else (model if VERSION.fullmatch(model) else None)
    if not client.search_registered_models(f"name = '{name}'"):
        known = [entry.name for entry in client.search_registered_models()]  # the first hundred
        raise SpecError(f"model={model}: the registry has no model '{name}'{nearest(name, known)}")
    if version is None:
        alias = spelt["alias"] if spelt else model
        aliases = client.get_registered_model(name).aliases
        check(alias in aliases, f"model={model}: '{name}' has no alias '{alias}'{nearest(alias, list(aliases))}")
        version = aliases[alias]
    held = [str(entry.version) for entry in client.search_model_versions(f"name = '{name}'")]
    check(str(version) in held, f"model={model}: '{name}' has no version {version}; known: {', '.join(sorted(held))}")
    return str(client.get_model_version_download_uri(name, str(version)))


def run_artifacts(client: Any, run_id: str) -> str:
    """Where the model of a run lies, or of the publish run below it."""
    experiment = client.get_run(run_id).info.experiment_id
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}' and tags.stage = 'publish'")
    for candidate in (run_id, *(run.info.run_id for run in below)):
        if client.list_artifacts(candidate, ARTIFACTS):
            return f"runs:/{candidate}/{ARTIFACTS}"
    raise SpecError(f"model={run_id}: neither this run nor a publish run below it holds the folder '{ARTIFACTS}'")
