"""Opens the filesystem of an address: s3:// and gs:// by pyarrow, any other scheme by fsspec.

Credentials and servers are named as the filesystems' own tools name them: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_REGION,
and AWS_ENDPOINT_URL for another server that speaks S3; GOOGLE_APPLICATION_CREDENTIALS, and STORAGE_EMULATOR_HOST for a
server that speaks like Google's and is asked without credentials. The path is taken as it is written: '%20' is three
characters of a name. A server that fails, is silent or drops the line is asked again for about half a minute
(docs/filesystems.md).
"""

import os
import re
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from hpe_core.errors import SpecError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SILENCE_S = 15  # of an S3 server, before it is asked again
TRIES = 7  # of a request to S3; pauses between them double and are drawn: 10 to 45 s in all
PATIENCE_S = 45  # with a server that fails: S3's longest pauses in all, and what Google's client is told


@lru_cache(maxsize=16)
def open_filesystem(address: str) -> "tuple[FileSystem, str]":
    """The filesystem of an address and the path in it. Raises SpecError if the address cannot be used."""
    scheme, _, path = address.partition("://")
    if "?" in address:
        raise SpecError(f"{address}: AWS_ENDPOINT_URL or STORAGE_EMULATOR_HOST names a server, not the address")
    try:
        filesystem, base = OPENERS.get(scheme, _open_fsspecs)(scheme, path)
    except (ValueError, OSError) as error:
        raise SpecError(f"{address} cannot be used: {one_line(error)}") from None
    return filesystem, base.rstrip("/")


def one_line(error: BaseException) -> str:
    """What an error says, without the clients' request numbers and accounts of their retries."""
    text = re.split(r" \(Request ID| error_info=\{", " ".join(str(error).split()))[0]
    return text.rpartition("with a last message of ")[2][:240] or type(error).__name__


def _open_s3(scheme: str, path: str) -> "tuple[FileSystem, str]":
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

    bucket = _bucket(path)
    if "@" in bucket:
        raise ValueError("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY hold the keys, not the address")
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
        anonymous=bool(server) or bucket.startswith("anonymous@"),  # gs://anonymous@bucket is pyarrow's spelling
        scheme=(protocol or "http") if server else None,
        endpoint_override=server.rstrip("/") or None,
        retry_time_limit=timedelta(seconds=PATIENCE_S),
    ), path.removeprefix("anonymous@")


def _bucket(path: str) -> str:
    bucket = path.split("/")[0]
    if not bucket:
        raise ValueError("it names no bucket")
    return bucket


def _open_fsspecs(scheme: str, path: str) -> "tuple[FileSystem, str]":
    from fsspec.core import url_to_fs
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    try:
        filesystem, base = url_to_fs(f"{scheme}://{path}")
    except (ImportError, ValueError) as error:
        raise ValueError(f"there is no filesystem '{scheme}' here: {error}") from None
    return PyFileSystem(FSSpecHandler(filesystem)), base


OPENERS = {"s3": _open_s3, "gs": _open_google, "gcs": _open_google}
