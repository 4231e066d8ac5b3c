"""A store with an empty MLflow database, copied from one that is made once: a schema takes seconds."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def store(tmp_path: Path, fresh_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store; whatever is written into the working folder would be seen."""
    for place in ("store", "cwd"):
        (tmp_path / place).mkdir()
    shutil.copyfile(fresh_database, tmp_path / "store" / "mlflow.db")
    monkeypatch.chdir(tmp_path / "cwd")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    return tmp_path / "store"
