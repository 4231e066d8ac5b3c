"""Listing an archive's folder and fingerprinting what was listed, without opening a file."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hpe_core.sources.base import DatasetError, Rejected
from hpe_core.spec import Links

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


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
        try:
            stat = (root / path).stat()
            line = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        except OSError:
            line = f"{path}\0gone\n"
        digest.update(os.fsencode(line))
    return digest.hexdigest()


def within(root: Path, key: str, links: Links) -> Path:
    """The file `key` below `root`. Raises Rejected where it lies outside: by `..`, or behind a link unless `links` says
    "anywhere".

    Names in tables and links in archives are other people's: they must not reach into the user's other files.
    """
    path = root / key
    name = printable(str(path))
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root)):
        raise Rejected("outside_root", f"{name} lies outside the dataset's folder")
    try:
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except ValueError as error:  # a null character
        raise Rejected("unreadable_file", f"{name} is no name of a file: {error}") from None
    if not inside and links == "inside":
        said = "lies behind a link that leaves the dataset's folder (its key links=anywhere allows that)"
        raise Rejected("outside_root", f"{name} {said}")
    return path


def printable(name: str) -> str:
    """A file name as one line of text: bytes that are no UTF-8, line breaks and the like are spelt out as \\xNN."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
