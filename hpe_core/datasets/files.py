"""Listing an archive, here or on another filesystem, and the states of its files, without opening one."""

import os
import stat
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from stat import S_ISLNK
from typing import ClassVar
from unicodedata import normalize

from hpe_core.datasets.base import DatasetError, FaceRef, Reader, Rejected
from hpe_core.errors import check
from hpe_core.spec.data import DatasetSpec, Links
from hpe_core.system.remote import Entry, Remote, RemoteError, is_remote

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class Archive(Reader):
    """What readers of unpacked archives share: a folder, here or remote, in which files of its own decide a face.

    `root` is the folder here. Of a remote archive it is the counterpart (`system/remote.py`), where files lie once they
    were fetched: listings and states are the remote's, and `load` reads what `fetch` has brought.
    """

    root_is: ClassVar[str] = "the archive's folder"

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__(spec)
        self.root = archive_root(spec.root)
        self.remote = Remote(spec.root) if is_remote(spec.root) else None

    def check(self) -> None:
        super().check()
        check(bool(self.spec.root), f"reader {self.name} needs root, {self.root_is}")

    @property
    def place(self) -> str:
        """The root as the user named it, for messages about it."""
        return printable(str(self.root) if self.remote is None else self.spec.root)

    @property
    def folder(self) -> Path:
        """The folder here that files are named from."""
        return self.root

    @abstractmethod
    def files_of(self, ref: FaceRef) -> tuple[str, ...]:
        """Every file that decides a face, below `folder`, whether or not it is there: the picture first."""

    def tables(self) -> tuple[str, ...]:
        """Files that list faces, below `folder`, whether or not they are there."""
        return ()

    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        """Size and time of change of each face's files; where they lie is not part of it, so an archive may move."""
        return [" ".join(map(self._state, self.files_of(ref))) for ref in refs]

    def fetch(self, refs: Sequence[FaceRef]) -> None:
        self._fetch([*self.tables(), *(name for ref in refs for name in self.files_of(ref))])

    def bytes_to_fetch(self, refs: Iterable[FaceRef]) -> int:
        """What `fetch` will copy for these faces, as the listing has it. Opens nothing. Raises DatasetError."""
        if self.remote is None:
            return 0
        index = _index(self.remote)
        names = {spelled(name, index.__contains__) for ref in refs for name in self.files_of(ref)}
        return sum(index[n].size for n in names if n in index and not self.remote.is_here(n, index[n]))

    def fetch_tables(self) -> None:
        """Before they are looked at: they are needed whole where pictures are only listed. Raises DatasetError."""
        try:
            self._fetch(self.tables())
        except RemoteError as error:
            raise DatasetError(str(error)) from None

    def _fetch(self, names: Sequence[str]) -> None:
        if self.remote is not None:
            index = _index(self.remote)
            self.remote.fetch([spelled(name, index.__contains__) for name in names])

    def origin(self, spec: DatasetSpec) -> PurePath:
        return PurePath(spec.root)

    def shares_faces(self, other: DatasetSpec) -> bool:
        """Also where one root lies in the other: whatever a folder holds is listed from above, too."""
        if other.reader != self.name:
            return False
        own, its = self.origin(self.spec), self.origin(other)
        return own.is_relative_to(its) or its.is_relative_to(own)

    def listing(self, suffixes: tuple[str, ...], folder: str = "") -> Iterator[str]:
        """Paths relative to `folder`, a folder in the root, of the files with these suffixes. Raises DatasetError."""
        if self.remote is None:
            yield from listing(self.root / folder, suffixes)
            return
        index = _index(self.remote)
        if not index:
            raise DatasetError(f"its root {self.place} holds no file")
        start = f"{folder}/" if folder else ""
        for path in index:
            below = path[len(start) :]
            if path.startswith(start) and below.lower().endswith(suffixes) and "/." not in f"/{below}":
                yield below

    def has_folder(self, name: str) -> bool:
        """Whether a folder in the root is there. Raises DatasetError."""
        if self.remote is None:
            return (self.root / name).is_dir()
        return any(path.startswith(f"{name}/") for path in _index(self.remote))

    def _state(self, name: str) -> str:
        """Size and time of change of a file below `folder`, or that there is none."""
        if self.remote is not None:
            index = _index(self.remote)
            entry = index.get(spelled(name, index.__contains__))
            return "gone" if entry is None else f"{entry.size}/{entry.changed_ns}"
        try:
            place = self.folder / spelled(name, lambda name: os.path.exists(self.folder / name))
            status = place.stat()
        except (OSError, ValueError):  # a name from a table may be no name
            return "gone"
        # Permission changes neither size nor time, and a face that was rejected for want of it must be read again.
        return f"{status.st_size}/{status.st_mtime_ns}" + " shut" * (not os.access(place, os.R_OK))


@lru_cache(maxsize=8)
def _index(remote: Remote) -> dict[str, Entry]:
    """A remote archive's listing, once a process: it takes a request for every thousand files. Raises DatasetError."""
    try:
        return remote.index()
    except RemoteError as error:
        raise DatasetError(str(error)) from None


def archive_root(root: str) -> Path:
    """The folder of a `root:` key as an absolute path, of a remote one its counterpart here; it need not exist yet."""
    return Remote(root).folder if is_remote(root) else Path(os.path.expanduser(root)).absolute()


def must_be_folder(root: Path) -> None:
    """Raises DatasetError."""
    if not root.is_dir():
        packed = " but a file: unpack an archive, or name the folder" if root.is_file() else ""
        raise DatasetError(f"its root {printable(str(root))} is not a folder{packed}")


def listing(root: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Paths relative to `root` of the files with these suffixes (in any case), at any depth.

    Hidden files are left out. Linked folders are entered, each once, so that a loop of links ends; one that holds the
    root itself is no part of the dataset (a link to / would list the whole disk). Raises DatasetError where `root` is
    no folder, or one below cannot be listed: what lies there could not even be counted.
    """
    must_be_folder(root)
    top, seen = Path(os.path.realpath(root)), set()
    for folder, inside, names in os.walk(root, followlinks=True, onerror=_unlisted):
        # In order: of two names of one folder it must not be the disk that decides which one faces are known by.
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        real = Path(os.path.realpath(folder))
        if real in seen or (real != top and top.is_relative_to(real)):
            inside.clear()
            continue
        seen.add(real)
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield str(Path(folder, name).relative_to(root))


def _unlisted(error: OSError) -> None:
    raise DatasetError(f"its folder {printable(str(error.filename))} cannot be listed: {error.strerror}")


def spelled(name: str, there: Callable[[str], bool]) -> str:
    """The name of a file as it is `there`: as it stands; else with `/` for Windows' backslash, its ending in another
    case (image1.MAT beside image1.jpg), or its accents as other systems write them. As it stands, too, where none of
    these is there."""
    if there(name):
        return name
    stem, ending = os.path.splitext(name.replace("\\", "/"))
    endings = (ending, ending.lower(), ending.upper(), ending[:1] + ending[1:].capitalize())
    others = [stem + other for other in endings]
    if not name.isascii():
        others += [normalize(form, other) for form in ("NFC", "NFD") for other in others]
    return next(filter(there, others), name)


def within(root: Path, key: str, links: Links) -> Path:
    """The file `key` below `root`, as `spelled` finds it. Raises Rejected where it lies outside: by `..`, or behind a
    link unless `links` says "anywhere".

    Names in tables and links in archives are other people's: they must not reach into the user's other files.
    """
    key = spelled(key, lambda name: os.path.exists(os.path.join(root, name)))
    folder, name = os.path.split(key)
    if name in ("", ".", ".."):
        folder, name = key, ""
    try:
        place, is_below, is_inside = _seen_folder(os.fspath(root), folder)
        path = os.path.join(place, name) if name else place
        if not is_below:
            raise Rejected("outside_root", f"{printable(path)} lies outside the dataset's folder")
        if links == "inside":
            if _is_link(path):
                is_inside = _is_below(os.path.realpath(path), os.path.realpath(root))
            if not is_inside:
                said = "lies behind a link that leaves the dataset's folder (its key links=anywhere allows that)"
                raise Rejected("outside_root", f"{printable(path)} {said}")
    except ValueError as error:  # a null character
        raise Rejected("unreadable_file", f"{printable(key)} is no name of a file: {error}") from None
    return Path(path)


@lru_cache(maxsize=4096)
def _seen_folder(root: str, folder: str) -> tuple[str, bool, bool]:
    """(its path, whether that lies below the root, and whether it does behind all links): asked for every face."""
    place = os.path.normpath(os.path.join(root, folder))
    inside = _is_below(os.path.realpath(place), os.path.realpath(root))
    return place, _is_below(place, os.path.normpath(root)), inside


def _is_below(place: str, folder: str) -> bool:
    return place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)


def _is_link(path: str) -> bool:
    try:
        return S_ISLNK(os.lstat(path).st_mode)
    except OSError:  # whoever opens it will say what is wrong
        return False


def check_plain(path: Path, what: str) -> None:
    """Raises DatasetError for what is there but no plain file: a pipe may never begin to answer, a device never end."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # whoever opens it says why that fails
    if not stat.S_ISREG(mode):
        raise DatasetError(f"{what} {printable(str(path))} is not a plain file")


def printable(name: str) -> str:
    """A file name as one line of text: bytes that are no UTF-8, line breaks and the like are spelt out as \\xNN."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
