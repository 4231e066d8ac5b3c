"""A stage that was begun and is not finished: with which configuration, and how far its networks and trials came.

The note is a hidden file of the stage's folder, so it belongs to no inventory, and goes when the manifest comes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpe_core.system.files import known_json, read_json, write_json
from workflows.storage.contents import MANIFEST
from workflows.storage.manifest import read_manifest

BEGUN = ".begun.json"
NETWORKS = "networks"  # beside the stages' folders, in the store
RESULT = "result.json"  # in a network's folder: makes it count


@dataclass(frozen=True, eq=False)
class Begun:
    """`parts` are the leaves, inputs and code that it was begun with; times are seconds of the clock."""

    folder: Path
    parts: Mapping[str, Mapping[str, Any]]
    began_s: float  # for the first time
    last_s: float  # for the last time

    @property
    def date(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.last_s))


def note_begun(folder: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Note that a stage begins, or goes on, in its folder."""
    known = _read(folder)
    write_json(folder / BEGUN, {"began_s": time.time() if known is None else known.began_s, **parts})


def cut_off(stage: Path) -> Begun | None:
    """What was begun last of a stage, if nothing of it was finished since; `stage` holds its folders."""
    notes = [note for note in map(_read, stage.glob("*")) if note is not None and read_manifest(note.folder) is None]
    done = [file.stat().st_mtime for file in stage.glob(f"*/{MANIFEST}")]
    last = max(notes, key=lambda note: note.last_s, default=None)
    return None if last is None or last.last_s < max(done, default=0.0) else last


def how_far(begun: Begun) -> str:
    """'resnet 4 of 30 epochs, resnet10 trained', or '3 trials'; '' where nothing was kept that takes long to make."""
    leaves, found = begun.parts["leaves"], []
    for home in sorted(begun.folder.parents[1].glob(f"{NETWORKS}/*")):
        name, result = home.name.rpartition("-")[0], home / RESULT
        if home.stat().st_mtime < begun.began_s:
            continue
        if result.exists():
            found.append(f"{name} trained")
        elif (home / "ray-train").exists():
            epochs = [len(read_json(file) or []) for file in home.glob("ray-train/*/history.json")]
            whole = leaves.get(f"teachers.{name}.optim.epochs", leaves.get("student.optim.epochs"))
            found.append(f"{name} {max(epochs, default=0)}" + (f" of {whole} epochs" if whole else " epochs"))
    trials = len(list(begun.folder.glob("trials/*.json")))
    return ", ".join(found + ([f"{trials} trials"] if trials else []))


def _read(folder: Path) -> Begun | None:
    """The note in a folder; None where there is none, or a torn one."""
    file = folder / BEGUN
    try:
        known, last_s = known_json(file), file.stat().st_mtime
    except OSError:
        return None
    if known is None:
        return None
    parts = {key: known[key] for key in ("leaves", "inputs", "code")}
    return Begun(folder, parts, known["began_s"], last_s)
