"""Listing an archive's folder and fingerprinting what was listed, without opening a file."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hpe_core.sources.base import DatasetError, FaceRef

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class Archive(ABC):
    """What readers of unpacked archives share: a face is decided by files of its own."""

    @abstractmethod
    def files_of(self, ref: FaceRef) -> tuple[Path, ...]:
        """Every file that decides a face, whether or not it is there, in an order of the reader's."""

    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        """Size and time of change of each face's files; where they lie is not part of it, so an archive may move."""
        return [" ".join(map(file_state, self.files_of(ref))) for ref in refs]


def archive_root(root: str) -> Path:
    """The folder of a `root:` key as an absolute path, with ~ expanded; it need not exist yet."""
    return Path(root).expanduser().absolute()


def listing(root: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Paths relative to `root` of the files with these suffixes (in any case), at any depth.

    Hidden files are left out. Linked folders are entered, each once, so that a loop of links ends. Raises
    DatasetError where `root` is no folder.
    """
    if not root.is_dir():
        raise DatasetError(f"its root {printable(str(root))} is not a folder")
    seen = set()
    for folder, inside, names in os.walk(root, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".")]
        real = os.path.realpath(folder)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield str(Path(folder, name).relative_to(root))


def paired(root: Path, suffix: str) -> list[str]:
    """Every picture under `root`, and every file with `suffix` that lacks its picture: nothing half there is missed."""
    pictures = list(listing(root, PICTURES))
    complete = {str(Path(path).with_suffix("")) for path in pictures}
    return pictures + [path for path in listing(root, (suffix,)) if str(Path(path).with_suffix("")) not in complete]


def fingerprint(root: Path, paths: Iterable[str]) -> str:
    """SHA-256 over (relative path, size, time of change) of each file, or the fact that it is gone."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(os.fsencode(f"{path}\0{file_state(root / path)}\n"))
    return digest.hexdigest()


def file_state(path: Path) -> str:
    """Size and time of change, or that there is no such file."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # a name from a table may be no name
        return "gone"
    return f"{stat.st_size}/{stat.st_mtime_ns}"


def printable(name: str) -> str:
    """A file name as text that UTF-8 can hold: bytes that are none are spelt out as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
