"""Remote files by way of a folder on this machine.

Whatever reads an archive or a store needs real files. So a remote folder has a counterpart here,
`$HPE_CACHE/head-pose-remote/<scheme>/<bucket>/<path>` ($HPE_CACHE is ~/.cache if it is not set), and files are copied
there when they are asked for. That takes disk: delete the folder whenever you like. A copy counts while its size and
time are those of the original. (S3 keeps whole seconds.) Why not fsspec's own get, put and find: docs/libraries.md.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from hpe_core.errors import SpecError, UserError
from hpe_core.system.files import replacing
from hpe_core.system.filesystems import one_line, open_filesystem

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

CONNECTIONS = 16  # a small file's time is nearly all waiting
CHUNK = 1 << 24
LONGEST, LONGEST_PATH = 255, 1024  # bytes of a file's name here, and of its path: keys in buckets have as many
NO_TIME = 0  # of filesystems that keep none


class RemoteError(UserError, OSError):
    """A remote folder cannot be read or written; the message names the address."""


class Entry(NamedTuple):
    """Size in bytes and time of change in ns of a remote file."""

    size: int
    changed_ns: int


def is_remote(address: str) -> bool:
    return "://" in address


@dataclass(frozen=True)
class Remote:
    """A remote folder, such as s3://bucket/archives/BIWI; opens nothing when made. Its methods raise RemoteError."""

    address: str

    @property
    def folder(self) -> Path:
        """The counterpart on this machine; need not exist yet. Raises SpecError if the address holds '..'."""
        scheme, _, path = self.address.partition("://")
        if ".." in path.split("/"):
            raise SpecError(f"{self.address}: '..' leads nowhere in an address")
        cache = Path(os.environ.get("HPE_CACHE") or Path.home() / ".cache").expanduser().absolute()
        return cache / "head-pose-remote" / scheme / path.strip("/")

    @property
    def parent(self) -> "Remote":
        return Remote(self.address.rstrip("/").rpartition("/")[0])

    def index(self, below: str = "") -> dict[str, Entry]:
        """Every file below the folder (or a folder in it), by its path from here."""
        from pyarrow.fs import FileSelector

        filesystem, base = self._open()
        selector = FileSelector(str(PurePosixPath(base, below)), recursive=True, allow_not_found=True)
        with self._naming("", "listed"):
            found = filesystem.get_file_info(selector)
        return {_below(info.path, base): _entry(info) for info in found if info.is_file}

    def look(self, paths: Iterable[str]) -> dict[str, Entry]:
        """Those of the named files that exist."""
        filesystem, base = self._open()
        names = list(dict.fromkeys(paths))
        with self._naming("", "read"):
            found = filesystem.get_file_info([f"{base}/{name}" for name in names]) if names else []
        return {name: _entry(info) for name, info in zip(names, found, strict=True) if info.is_file}

    def fetch(self, paths: Iterable[str]) -> int:
        """Copy the named files here unless they are here; remove here what is gone there. Returns the bytes copied."""
        names = [name for name in dict.fromkeys(paths) if can_lie_here(name)]
        there = self.look(names)
        for name in names:
            if name not in there:
                with suppress(IsADirectoryError, NotADirectoryError):  # it names a folder, or goes through a file
                    (self.folder / name).unlink(missing_ok=True)
        return self.copy_here({name: entry for name, entry in there.items() if not self.is_here(name, entry)})

    def is_here(self, name: str, entry: Entry) -> bool:
        """Whether the counterpart holds this state of the file."""
        try:
            stat = (self.folder / name).stat()
        except OSError:
            return False
        return stat.st_size == entry.size and entry.changed_ns in (stat.st_mtime_ns, NO_TIME)

    def copy_here(self, entries: Mapping[str, Entry]) -> int:
        """Copy files here, several at a time, each whole or not at all; returns their bytes."""
        filesystem, base = self._open()

        def copy(name: str) -> int:
            size, changed_ns = entries[name]
            with self._naming(name, "copied here"), replacing(self.folder / name) as temporary:
                with (
                    filesystem.open_input_stream(f"{base}/{name}", compression=None) as source,
                    open(temporary, "wb") as sink,
                ):
                    shutil.copyfileobj(source, sink, CHUNK)
                    if sink.tell() != size:
                        raise OSError(f"{sink.tell()} bytes came, not {size}: it was changed meanwhile")
                if changed_ns != NO_TIME:
                    os.utime(temporary, ns=(changed_ns, changed_ns))
            return size

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return sum(pool.map(copy, entries))

    def send(self, names: Iterable[str]) -> int:
        """Copy files from here to there, several at a time; returns their bytes."""

        def copy(name: str) -> int:
            with self._naming(name, "written"), open(self.folder / name, "rb") as source, self._sink(name) as sink:
                shutil.copyfileobj(source, sink, CHUNK)
                return source.tell()

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return sum(pool.map(copy, names))

    def write(self, name: str, content: bytes) -> None:
        """Make a small file there."""
        with self._naming(name, "written"), self._sink(name) as sink:
            sink.write(content)

    def read(self, name: str) -> bytes | None:
        """A small file there, or None if there is none."""
        filesystem, base = self._open()
        with self._naming(name, "read"):
            try:
                with filesystem.open_input_stream(f"{base}/{name}", compression=None) as source:
                    return bytes(source.read())
            except FileNotFoundError:
                return None

    def delete(self, name: str) -> None:
        """Remove a file there; it need not exist."""
        filesystem, base = self._open()
        with self._naming(name, "removed"), suppress(FileNotFoundError):
            filesystem.delete_file(f"{base}/{name}")

    def _open(self) -> "tuple[FileSystem, str]":
        return open_filesystem(self.address)

    def _sink(self, name: str):  # type: ignore[no-untyped-def]  # pyarrow has no types
        """A stream that makes a file there."""
        filesystem, base = self._open()
        path = f"{base}/{name}"
        if filesystem.type_name not in ("s3", "gcs"):  # it has real folders
            filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)
        return filesystem.open_output_stream(path, compression=None)  # by default Arrow packs what is named *.gz

    @contextmanager
    def _naming(self, name: str, done: str) -> Iterator[None]:
        """Makes an OSError of the block a sentence that names the file."""
        try:
            yield
        except OSError as error:
            place = f"{self.address}/{name}" if name else self.address
            raise RemoteError(f"{place} cannot be {done}: {one_line(error)}") from None


def can_lie_here(name: str) -> bool:
    """Whether a name, maybe somebody else's, is a path that stays below its folder and that a disk can hold."""
    sizes = [len(os.fsencode(part)) for part in name.split("/")]
    plain = not {"", ".", ".."}.intersection(name.split("/")) and "\0" not in name
    return plain and max(sizes) <= LONGEST and sum(sizes) + len(sizes) <= LONGEST_PATH


def _entry(info: "FileInfo") -> Entry:
    return Entry(info.size, info.mtime_ns if info.mtime_ns is not None else NO_TIME)


def _below(path: str, base: str) -> str:
    return str(PurePosixPath("/", path).relative_to(PurePosixPath("/", base)))
