"""A network with its files, as `model=` takes it, and a folder to be in."""

from pathlib import Path

import pytest


@pytest.fixture
def net(exported_net: Path) -> Path:
    return exported_net


@pytest.fixture
def onnx(net: Path) -> str:
    return f"model={net / 'student.onnx'}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path
