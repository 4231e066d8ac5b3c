"""A finished stage's manifest: what it depended on, which files it made, and its result."""

import time
from pathlib import Path
from typing import Any

from hpe_core.system.files import known_json
from workflows.storage.contents import MANIFEST


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, or None; a damaged one finishes nothing."""
    return known_json(folder / MANIFEST)


def finished(folder: Path) -> dict[str, Any]:
    """The manifest of a stage that has finished."""
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} has no manifest: its stage did not finish"
    return manifest
