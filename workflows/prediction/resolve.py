"""What a user calls a model -> its files on this machine.

    student.onnx, a folder with an ONNX file or a saved network      as it lies there
    champion, candidate                                              an alias of the registered model
    3                                                                its version
    models:/head-pose@champion, models:/head-pose/3                  the same, as MLflow spells it
    0123456789abcdef0123456789abcdef                                 an MLflow run: of the publish stage, or a whole run

MLflow is imported only if no file has this name.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpe_core.errors import SpecError, check, nearest
from hpe_core.spec.network import WEIGHTS
from workflows.tracking.server import prepare, public

ARTIFACTS = "model"  # the folder of a published run that holds the model
RUN_ID, VERSION = re.compile(r"[0-9a-f]{32}"), re.compile(r"\d+")
REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@contextmanager
def model_files(model: str, uri: str, registered: str) -> Iterator[Path]:
    """What `HeadPosePredictor.load` takes; a download is removed in the end. Raises SpecError that names the model."""
    path = Path(model).expanduser()
    if path.exists():
        yield loadable(path)
        return
    if path.suffix in (".onnx", ".safetensors") or ("/" in model and not model.startswith("models:/")):
        raise SpecError(f"model={model}: there is no such file{similar(path)}")
    with tempfile.TemporaryDirectory(prefix="hpe-model-") as folder:
        yield loadable(_download(model, uri, registered, Path(folder)))


def similar(path: Path) -> str:
    """A closing half-sentence that names the file or folder beside a missing one with the most similar name, or ''."""
    close = nearest(path.name, [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else [])
    return close if close.startswith("; did") else ""


def loadable(path: Path) -> Path:
    """A file as it is; of a folder the ONNX file, else the folder of a saved network. Raises SpecError."""
    if path.is_file():
        check(path.suffix in (".onnx", ".safetensors"), f"{path} is no model: .onnx or .safetensors is needed")
        return path.parent if path.suffix == ".safetensors" else path
    found = sorted(path.glob("*.onnx"))
    named = [file for file in found if file.name == "student.onnx"] or found
    check(len(named) <= 1, f"{path} holds several models: {', '.join(file.name for file in named)}; name one")
    if named:
        return named[0]
    check((path / WEIGHTS).is_file(), f"{path} holds no model: neither an .onnx file nor {WEIGHTS}")
    return path


def _download(model: str, uri: str, registered: str, folder: Path) -> Path:
    """The artifacts of an alias, a version or a run, in `folder`. Raises SpecError that says what there is instead."""
    check(uri != "none", f"model={model} is no file, and mlflow.uri=none leaves no registry to ask")
    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).is_file():  # MLflow would create an empty one
        said = f"model={model} is no file here, and there is no registry {database}"
        raise SpecError(f"{said}; say store=FOLDER of the run, mlflow.uri=URI, or the model's file")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for files that are here already
    prepare()
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        where = _run_artifacts(client, model) if RUN_ID.fullmatch(model) else _version(client, model, registered)
        return Path(mlflow.artifacts.download_artifacts(where, dst_path=str(folder), tracking_uri=uri))
    except (MlflowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise SpecError(f"model={model}: MLflow at {public(uri)} does not hand it out: {said}") from None


def _version(client: Any, model: str, registered: str) -> str:
    """Where the artifacts of a registered version lie. Raises SpecError that names the models or versions there are."""
    spelt = REGISTERED.fullmatch(model)
    check(spelt is not None or "/" not in model, f"model={model} is not models:/NAME@ALIAS or models:/NAME/VERSION")
    name = spelt["name"] if spelt else registered
    version = spelt["version"] if spelt else (model if VERSION.fullmatch(model) else None)
    models = {entry.name: entry for entry in client.search_registered_models()}
    check(name in models, f"model={model}: the registry has no model '{name}'{nearest(name, list(models))}")
    if version is None:
        alias = spelt["alias"] if spelt else model
        aliases = client.get_registered_model(name).aliases
        check(alias in aliases, f"model={model}: '{name}' has no alias '{alias}'{nearest(alias, list(aliases))}")
        version = aliases[alias]
    held = [str(entry.version) for entry in client.search_model_versions(f"name = '{name}'")]
    check(str(version) in held, f"model={model}: '{name}' has no version {version}; known: {', '.join(sorted(held))}")
    return str(client.get_model_version_download_uri(name, str(version)))


def _run_artifacts(client: Any, run_id: str) -> str:
    """Where the model of a run lies, or of the publish run below it."""
    experiment = client.get_run(run_id).info.experiment_id
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}' and tags.stage = 'publish'")
    for candidate in (run_id, *(run.info.run_id for run in below)):
        if client.list_artifacts(candidate, ARTIFACTS):
            return f"runs:/{candidate}/{ARTIFACTS}"
    raise SpecError(f"model={run_id}: neither this run nor a publish run below it holds the folder '{ARTIFACTS}'")
