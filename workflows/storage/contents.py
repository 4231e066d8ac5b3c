"""What a finished stage's folder holds, file by file, so that a torn or flipped one is found before it is used.

The manifest lists every file with its size and SHA-256. Sizes are looked at whenever a run is planned, bytes are hashed
when a stage that was finished earlier is about to be read, and by `verify`. A file that does not fit is set aside under
a hidden name until its stage is repaired: it counts as missing, and a stage made of pieces makes that piece alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpe_core.system.files import file_sha256
from workflows.storage.receipts import recorded_sha256

MANIFEST = "manifest.json"
DAMAGED = ".damaged"
Files = Mapping[str, Mapping[str, Any]]  # path below the folder -> {"bytes": size, "sha256": hash}

Elsewhere = Callable[[Path], int | None]


def inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file below a stage's folder but the manifest and hidden ones, which are half-written or set aside.

    Pieces have the hash of their receipts: they were hashed when they were written.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in place.parts) and str(place) != MANIFEST:
            found[str(place)] = {"bytes": path.stat().st_size, "sha256": recorded_sha256(path) or file_sha256(path)}
    return found


def nowhere(path: Path) -> int | None:
    """Size of a file's copy elsewhere: there is none."""
    return None


def misfits(folder: Path, files: Files, elsewhere: Elsewhere = nowhere) -> list[str]:
    """A sentence for each file that is missing or has another size than listed, here and `elsewhere`; opens none."""
    found = []
    for place, listed in files.items():
        path = folder / place
        here, there = path.stat().st_size if path.is_file() else None, elsewhere(path)
        if listed["bytes"] in (here, there):
            continue
        size = there if here is None else here
        found.append(f"{place} is missing" if size is None else f"{place} has {size} bytes, not {listed['bytes']}")
    return found


def set_aside_damaged(folder: Path, files: Files) -> list[str]:
    """Hash every file of the right size and rename those whose bytes are not as listed; a sentence for each."""
    found = []
    for place, listed in files.items():
        path = folder / place
        right_size = path.is_file() and path.stat().st_size == listed["bytes"]
        if right_size and file_sha256(path) != listed["sha256"]:
            path.rename(path.with_name(f".{path.name}{DAMAGED}"))
            found.append(f"{place} is damaged: its bytes are not those that were written")
    return found


def drop_damaged(folder: Path) -> None:
    """Remove what was set aside: its stage has been repaired."""
    for path in folder.rglob(f".*{DAMAGED}"):
        path.unlink()
