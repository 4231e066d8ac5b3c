"""Laws of the way to MLflow: an address means one place and tells no password, a database is whole."""

from typing import Any
from unittest.mock import Mock

import pytest

from hpe_core.errors import SpecError
from tests.tracking import places
from workflows.tracking import server
from workflows.tracking.live import Live
from workflows.tracking.registry import downloaded
from workflows.tracking.server import connect, make_database, public, ui_command
from workflows.tracking.sync import sync

ODD = ["sqlite:////runs%20a/mlflow.db", "sqlite:////really?/mlflow.db"]


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "file:///x", "mlruns", "", "nonesuch", *ODD])
def test_an_address_that_would_land_somewhere_else_is_an_error(uri, tmp_path):
    said = "cannot lie in a folder" if uri in ODD else "mlflow.uri must be"
    with pytest.raises(SpecError, match=said):
        sync(tmp_path / "store", uri, "e", [])
    with pytest.raises(SpecError, match=said):
        Live(tmp_path / "store", uri, "e", list)
    assert not (tmp_path / "store").exists()


def test_addresses_are_shown_without_passwords():
    assert ui_command("sqlite:////a/m.db") == "mlflow ui --backend-store-uri sqlite:////a/m.db --port 5000"
    for secret in ("secret", "se@cret", "se/cret", "se?cret", "se#cret"):
        assert public(f"http://me:{secret}@host:1") == "http://host:1"
    assert public("https://host/a?token=secret") == "https://host/a"
    assert public("sqlite:////home/me@work/m.db") == "sqlite:////home/me@work/m.db"


def test_a_database_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    """MLflow never opens one whose making was cut off: by a kill, or by a disk that was full and no longer is."""
    server.prepare()
    from mlflow.store.db import utils

    uri, cut_off = places.uri_of(tmp_path), Mock(side_effect=OSError("No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(utils, "_upgrade_db", cut_off)
        with pytest.raises(OSError):
            make_database(uri)
    assert not (tmp_path / "mlflow.db").exists() and (tmp_path / ".mlflow.db.new").exists()
    monkeypatch.setattr(utils, "_upgrade_db", lambda engine: None)  # five seconds that other tests take
    make_database(uri)
    assert (tmp_path / "mlflow.db").exists() and not (tmp_path / ".mlflow.db.new").exists()
    monkeypatch.setattr(utils, "_upgrade_db", cut_off)
    make_database(uri)  # there is one
    with pytest.raises(OSError):
        make_database(uri, upgrade=True)


def test_an_older_schema_is_brought_up(store, monkeypatch):
    server.prepare()
    from mlflow import exceptions

    class Old:
        def __init__(self, **place: str) -> None:
            if not upgraded:
                raise exceptions.MlflowException("Detected out-of-date database schema (found version 1, but ...)")

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **words: None

    upgraded = list[str]()
    monkeypatch.setattr("mlflow.MlflowClient", Old)
    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", lambda engine: upgraded.append(str(engine.url)))
    with pytest.raises(SpecError, match="model=champion: MLflow at .*: Detected out-of-date database schema"):
        downloaded("champion", places.uri_of(store), "head-pose", store)
    connect(places.uri_of(store), "e", store)
    assert upgraded == [places.uri_of(store)]
