"""MLflow's address and client, and the private functions of MLflow that we call, as seen in version 3.17.2."""

import fcntl
import logging
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpe_core.errors import SpecError, check, shown

UI_PORT = 5000  # of the page that `ui_command` opens
DEADLINE_S = 10  # of one request; MLflow's own tries take minutes


def public(uri: str) -> str:
    """The address of a server without user, password and query, for messages; a database as it is."""
    return shown(uri) if re.match("https?://", uri) else uri


def ui_command(uri: str) -> str:
    """The command that shows a database in a browser."""
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)} --port {UI_PORT}"


def check_address(uri: str) -> None:
    """Raises SpecError unless the address means the same in every folder, and names the file that MLflow will open:
    its database driver takes what follows a ? for options, and % for an escape."""
    known = re.match(r"sqlite:////[^/]|https?://[^/]|none$", uri)
    said = f"mlflow.uri must be 'sqlite:////absolute/path/mlflow.db', 'http://host:port' or 'none', not {public(uri)!r}"
    check(known is not None, said)
    said = f"MLflow's database cannot lie in a folder with ? or % in its name, such as {uri.removeprefix('sqlite:///')}"
    check(re.match(r"sqlite:.*[?%]", uri) is None, f"{said}: choose another store=, or say mlflow.uri=")


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process or thread is inside with this lock file. A killed holder frees it."""
    with open(lock, "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def prepare() -> None:
    """Import mlflow: it asks a server once, not for minutes, and does not talk about it."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(DEADLINE_S))
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401

    for name in ("mlflow.store.db.utils", "mlflow.utils.rest_utils", "urllib3.connectionpool", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # we say it once, in our own words


def client_of(uri: str) -> Any:
    """MLflow's client of an address."""
    prepare()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def asked(uri: str, what: str) -> Iterator[Any]:
    """The client, for what is to be brought here. Raises SpecError that names it where MLflow does not hand it out."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    prepare()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield client_of(uri)  # which opens a database: an older one, or a file that is none, is refused here
    except (MlflowException, SQLAlchemyError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise SpecError(f"{what}: MLflow at {public(uri)} does not hand it out: {said}") from None


def brought(uri: str, where: str, folder: Path) -> Path:
    """A file or folder of MLflow's artifacts, such as `runs:/ID/model`, in a folder here."""
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(where, dst_path=str(folder), tracking_uri=uri))


def connect(uri: str, experiment: str, artifacts: Path) -> tuple[Any, str]:
    """The client and the experiment's id. What is missing is made, `artifacts` being where the experiment's files lie
    if no server keeps them; an older database is brought to the newest schema, a deleted experiment back."""
    prepare()
    from mlflow.exceptions import MlflowException

    local = uri.startswith("sqlite:")
    if local:
        make_database(uri)
    try:
        client = client_of(uri)
    except MlflowException as error:
        if "out-of-date" not in str(error):
            raise
        make_database(uri, upgrade=True)
        client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        root = (artifacts / re.sub(r"[^\w-]", "_", experiment)).as_uri() if local else None
        return client, str(client.create_experiment(experiment, artifact_location=root))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return client, str(found.experiment_id)


def make_database(uri: str, upgrade: bool = False) -> None:
    """MLflow's SQLite file, unless there is one; that one may be brought to the schema of the installed version.

    A schema takes five seconds and hundreds of steps. A kill or a full disk in their midst would leave a file that
    MLflow never opens again, so it is made beside and renamed.
    """
    from mlflow.store.db.utils import _initialize_tables, _upgrade_db, create_sqlalchemy_engine_with_retry

    path = Path(uri.removeprefix("sqlite:///"))
    if path.exists() and not upgrade:
        return
    with alone(path.with_name(f".{path.name}.lock")):
        if path.exists():
            if upgrade:
                _upgrade_db(create_sqlalchemy_engine_with_retry(uri))  # what `mlflow db upgrade` calls
            return
        beside = path.with_name(f".{path.name}.new")
        beside.unlink(missing_ok=True)
        engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{beside}")
        try:
            _initialize_tables(engine)  # what MLflow itself calls for a new file
        finally:
            engine.dispose()
        beside.replace(path)
