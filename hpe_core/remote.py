"""Files of other filesystems by way of a folder here: s3:// and gs:// through pyarrow, other schemes through fsspec.

Whatever reads an archive or a store wants real files: scipy, SQLite, OpenCV and Ray's workers alike. So
a remote folder has a counterpart on this machine, `$HPE_CACHE/head-pose-remote/<scheme>/<bucket>/<path>` ($HPE_CACHE is
~/.cache where it is not set), and files are copied there when they are asked for. The price is the disk that they take:
delete the folder whenever you like. A copy counts as long as its size and time are those of the original (S3 keeps
whole seconds: a file that is replaced twice within one, by as many bytes, is not seen to change the second time).

Who we are and where the server stands is said as the filesystems' own tools have it: AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_REGION, and AWS_ENDPOINT_URL for a server that speaks S3 but is not Amazon's; GOOGLE_APPLICATION_CREDENTIALS.
"""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from hpe_core.plain import SpecError, UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

CONNECTIONS = 16  # a small file's time is nearly all waiting
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
    """A remote folder, such as s3://bucket/archives/BIWI. Opens nothing when it is made; may be pickled."""

    address: str

    @property
    def folder(self) -> Path:
        """Its counterpart on this machine; need not exist yet."""
        scheme, _, path = self.address.partition("://")
        cache = Path(os.environ.get("HPE_CACHE") or Path.home() / ".cache").expanduser().absolute()
        return cache / "head-pose-remote" / scheme / path.strip("/")

    @property
    def parent(self) -> "Remote":
        return Remote(self.address.rstrip("/").rpartition("/")[0])

    def index(self, below: str = "") -> dict[str, Entry]:
        """Every file below the folder (or a folder in it), by its path from here. Raises RemoteError."""
        from pyarrow.fs import FileSelector

        filesystem, base = self._open()
        try:
            found = filesystem.get_file_info(
                FileSelector(str(PurePosixPath(base, below)), recursive=True, allow_not_found=True)
            )
        except OSError as error:
            raise RemoteError(f"{self.address} cannot be listed: {_said(error)}") from None
        return {_below(info.path, base): _entry(info) for info in found if info.is_file}

    def look(self, paths: Iterable[str]) -> dict[str, Entry]:
        """Those of the named files that exist. Raises RemoteError."""
        filesystem, base = self._open()
        names = list(dict.fromkeys(paths))
        try:
            found = filesystem.get_file_info([f"{base}/{name}" for name in names]) if names else []
        except OSError as error:
            raise RemoteError(f"{self.address} cannot be read: {_said(error)}") from None
        return {name: _entry(info) for name, info in zip(names, found, strict=True) if info.is_file}

    def fetch(self, paths: Iterable[str]) -> int:
        """Copy the named files here unless they are here; one that is gone there goes here, too. Returns bytes copied.

        Raises RemoteError. Names that lead out of the folder are left alone: whoever reads them will say so.
        """
        names = [name for name in dict.fromkeys(paths) if is_inside(name)]
        there = self.look(names)
        for name in names:
            if name not in there:
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
        """Copy files here, several at a time, each whole or not at all; returns their bytes. Raises RemoteError."""
        filesystem, base = self._open()

        def copy(name: str) -> int:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            try:
                with filesystem.open_input_stream(f"{base}/{name}") as source, open(temporary, "wb") as sink:
                    while chunk := source.read(1 << 24):
                        sink.write(chunk)
                if entries[name].changed_ns != NO_TIME:
                    os.utime(temporary, ns=(entries[name].changed_ns, entries[name].changed_ns))
                temporary.replace(target)
            except OSError as error:
                raise RemoteError(f"{self.address}/{name} cannot be copied here: {_said(error)}") from None
            finally:
                temporary.unlink(missing_ok=True)
            return entries[name].size

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return sum(pool.map(copy, entries))

    def send(self, names: Iterable[str]) -> int:
        """Copy files from here to there, several at a time; returns their bytes. Raises RemoteError."""
        filesystem, base = self._open()

        def copy(name: str) -> int:
            try:
                with open(self.folder / name, "rb") as source, self._sink(filesystem, f"{base}/{name}") as sink:
                    while chunk := source.read(1 << 24):
                        sink.write(chunk)
            except OSError as error:
                raise RemoteError(f"{self.address}/{name} cannot be written: {_said(error)}") from None
            return (self.folder / name).stat().st_size

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return sum(pool.map(copy, names))

    def write(self, name: str, content: bytes) -> None:
        """Make a small file there. Raises RemoteError."""
        filesystem, base = self._open()
        try:
            with self._sink(filesystem, f"{base}/{name}") as sink:
                sink.write(content)
        except OSError as error:
            raise RemoteError(f"{self.address}/{name} cannot be written: {_said(error)}") from None

    def read(self, name: str) -> bytes | None:
        """A small file there, or None where there is none. Raises RemoteError."""
        filesystem, base = self._open()
        try:
            if not filesystem.get_file_info(f"{base}/{name}").is_file:
                return None
            with filesystem.open_input_stream(f"{base}/{name}") as source:
                return bytes(source.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RemoteError(f"{self.address}/{name} cannot be read: {_said(error)}") from None

    def delete(self, name: str) -> None:
        """Remove a file there; it need not exist. Raises RemoteError."""
        filesystem, base = self._open()
        try:
            filesystem.delete_file(f"{base}/{name}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise RemoteError(f"{self.address}/{name} cannot be removed: {_said(error)}") from None

    def _open(self) -> "tuple[FileSystem, str]":
        return open_filesystem(self.address)

    @staticmethod
    def _sink(filesystem: "FileSystem", path: str):  # type: ignore[no-untyped-def]  # pyarrow has no types
        """A stream that makes a file; on filesystems with real folders those come first."""
        if filesystem.type_name not in ("s3", "gcs"):
            filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)
        return filesystem.open_output_stream(path)


@lru_cache(maxsize=16)
def open_filesystem(address: str) -> "tuple[FileSystem, str]":
    """The filesystem of an address and the path in it. Raises SpecError for a scheme that nobody knows."""
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    if "?" in address:
        raise SpecError(f"{address}: the server is named by AWS_ENDPOINT_URL, not in the address")
    scheme, _, path = address.partition("://")
    try:
        filesystem, base = FileSystem.from_uri(address)
        return filesystem, base.rstrip("/")
    except (ValueError, OSError) as error:
        if scheme in ("s3", "gs", "gcs", "hdfs", "file"):
            raise SpecError(f"{address} cannot be used: {_said(error)}") from None
    try:
        import fsspec

        return PyFileSystem(FSSpecHandler(fsspec.filesystem(scheme))), path.strip("/")
    except (ImportError, ValueError) as error:
        raise SpecError(f"{address}: there is no filesystem '{scheme}' here: {_said(error)}") from None


def is_inside(name: str) -> bool:
    """Whether a relative path stays below the folder that it starts from."""
    return bool(name) and not name.startswith("/") and ".." not in PurePosixPath(name).parts


def _entry(info: "FileInfo") -> Entry:
    return Entry(info.size, info.mtime_ns if info.mtime_ns is not None else NO_TIME)


def _below(path: str, base: str) -> str:
    return str(PurePosixPath("/", path).relative_to(PurePosixPath("/", base)))


def _said(error: BaseException) -> str:
    """One line; Amazon's request numbers help nobody."""
    return " ".join(str(error).split()).partition(" (Request ID")[0][:240] or type(error).__name__
