"""Files of other filesystems by way of a folder here: s3:// and gs:// through pyarrow, other schemes through fsspec.

Whatever reads an archive or a store wants real files: scipy, SQLite, OpenCV and Ray's workers alike. So
a remote folder has a counterpart on this machine, `$HPE_CACHE/head-pose-remote/<scheme>/<bucket>/<path>` ($HPE_CACHE is
~/.cache where it is not set), and files are copied there when they are asked for. The price is the disk that they take:
delete the folder whenever you like. A copy counts as long as its size and time are those of the original (S3 keeps
whole seconds: a file that is replaced twice within one, by as many bytes, is not seen to change the second time).

Who we are and where the server stands is said as the filesystems' own tools have it: AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_REGION, and AWS_ENDPOINT_URL for a server that speaks S3 but is not Amazon's; GOOGLE_APPLICATION_CREDENTIALS, and
STORAGE_EMULATOR_HOST for a server that speaks as Google's does, which is asked without credentials. The path of an
address is taken as it is written: '%20' is three characters of a name, and '#' and a space are one.

A server that fails (503), is silent or drops the line is asked again for half a minute or so. What the clients do by
themselves was measured: S3's gives up after 6 s, and wherever the first byte takes 3 s; Google's not within a minute.
"""

import os
import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from hpe_core.errors import SpecError, UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

CONNECTIONS = 16  # a small file's time is nearly all waiting
SILENCE_S = 15  # of an S3 server, before it is asked again
TRIES = 7  # of a request to S3; pauses between them double and are drawn: 10 to 45 s in all
PATIENCE_S = 45  # with a server that fails: S3's longest pauses in all, and what Google's client is told
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
    """A remote folder, such as s3://bucket/archives/BIWI. Opens nothing when it is made; may be pickled."""

    address: str

    @property
    def folder(self) -> Path:
        """Its counterpart on this machine; need not exist yet. Raises SpecError where it would lie elsewhere."""
        scheme, _, path = self.address.partition("://")
        if ".." in path.split("/"):
            raise SpecError(f"{self.address}: '..' leads nowhere in an address")
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

        Raises RemoteError. Names that lead out of the folder or to a folder, or that no file here can have, are left
        alone: whoever reads them will say so.
        """
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
        """Copy files here, several at a time, each whole or not at all; returns their bytes. Raises RemoteError."""
        filesystem, base = self._open()

        def copy(name: str) -> int:
            target = self.folder / name
            temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")  # the name itself may be as long as names may be
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with filesystem.open_input_stream(f"{base}/{name}") as source, open(temporary, "wb") as sink:
                    while chunk := source.read(1 << 24):
                        sink.write(chunk)
                    if sink.tell() != entries[name].size:
                        raise OSError(f"{sink.tell()} bytes came, not {entries[name].size}: it was changed meanwhile")
                if entries[name].changed_ns != NO_TIME:
                    os.utime(temporary, ns=(entries[name].changed_ns, entries[name].changed_ns))
                temporary.replace(target)
            except OSError as error:
                raise RemoteError(f"{self.address}/{name} cannot be copied here: {_said(error)}") from None
            finally:
                with suppress(OSError):
                    temporary.unlink()
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
    scheme, _, path = address.partition("://")
    if "?" in address:
        raise SpecError(f"{address}: AWS_ENDPOINT_URL or STORAGE_EMULATOR_HOST names a server, not the address")
    try:
        filesystem, base = OPENERS.get(scheme, _open_fsspecs)(scheme, path)
    except (ValueError, OSError) as error:
        raise SpecError(f"{address} cannot be used: {_said(error)}") from None
    return filesystem, base.rstrip("/")


def _open_s3(scheme: str, path: str) -> "tuple[FileSystem, str]":
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

    bucket = _bucket(path)
    if "@" in bucket:
        raise ValueError("keys are said by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, not in the address")
    plain, _ = FileSystem.from_uri(f"s3://{bucket}")  # asks where the bucket lies, unless a region or a server is set
    return S3FileSystem(
        region=plain.region,
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        request_timeout=SILENCE_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=TRIES),
    ), path


def _open_google(scheme: str, path: str) -> "tuple[FileSystem, str]":
    from pyarrow.fs import GcsFileSystem

    bucket = _bucket(path)
    protocol, _, server = os.environ.get("STORAGE_EMULATOR_HOST", "").rpartition("://")
    return GcsFileSystem(
        anonymous=bool(server) or bucket.startswith("anonymous@"),  # gs://anonymous@bucket, as pyarrow has it
        scheme=(protocol or "http") if server else None,
        endpoint_override=server.rstrip("/") or None,
        retry_time_limit=timedelta(seconds=PATIENCE_S),
    ), path.removeprefix("anonymous@")


def _bucket(path: str) -> str:
    bucket = path.split("/")[0]
    if not bucket:
        raise ValueError("it names no bucket")
    return bucket


def _open_arrows(scheme: str, path: str) -> "tuple[FileSystem, str]":
    from pyarrow.fs import FileSystem

    filesystem, base = FileSystem.from_uri(f"{scheme}://{quote(path)}")
    return filesystem, base


def _open_fsspecs(scheme: str, path: str) -> "tuple[FileSystem, str]":
    from fsspec.core import url_to_fs
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    try:
        filesystem, base = url_to_fs(f"{scheme}://{path}")
    except (ImportError, ValueError) as error:
        raise ValueError(f"there is no filesystem '{scheme}' here: {error}") from None
    return PyFileSystem(FSSpecHandler(filesystem)), base


OPENERS = {"s3": _open_s3, "gs": _open_google, "gcs": _open_google, "file": _open_arrows, "hdfs": _open_arrows}


def can_lie_here(name: str) -> bool:
    """Whether a name is a listing's: a path that stays below the folder it starts from, and that a disk can hold.

    Names in tables are other people's: '//etc/passwd' is absolute, and neither a disk nor a client takes a NUL.
    """
    sizes = [len(os.fsencode(part)) for part in name.split("/")]
    plain = not {"", ".", ".."}.intersection(name.split("/")) and "\0" not in name
    return plain and max(sizes) <= LONGEST and sum(sizes) + len(sizes) <= LONGEST_PATH


def _entry(info: "FileInfo") -> Entry:
    return Entry(info.size, info.mtime_ns if info.mtime_ns is not None else NO_TIME)


def _below(path: str, base: str) -> str:
    return str(PurePosixPath("/", path).relative_to(PurePosixPath("/", base)))


def _said(error: BaseException) -> str:
    """One line; the clients' request numbers and accounts of their retries help nobody."""
    text = re.split(r" \(Request ID| error_info=\{", " ".join(str(error).split()))[0]
    return text.rpartition("with a last message of ")[2][:240] or type(error).__name__
