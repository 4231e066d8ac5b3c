"""Files written whole or not at all, read, hashed."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_sha256(tree: Any) -> str:
    """Hex digest of a tree of plain values: equal trees have one, in whatever order their keys stand."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new name beside `path`. The file that the block writes there replaces `path` when the block ends.

    It is flushed to the disk first, so a reader sees the old file or the whole new one, even after a kill or a power
    cut. If the block raises, its file is removed. Only a kill leaves one, as `.<start of the name>.<random>.tmp`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:48]}.{uuid.uuid4().hex}.tmp")  # 230 bytes at most: a disk takes 255
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:  # after a failure, and where both names are links to one file: then rename does nothing
        with suppress(OSError):
            temporary.unlink()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a small file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, tree: Any) -> None:
    """`write_atomic` of a tree as JSON."""
    write_atomic(path, json.dumps(tree, indent=1, sort_keys=True))


def read_json(path: Path) -> Any | None:
    """What `write_json` wrote, or None if there is no such file. Raises ValueError if it is no JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


def known_json(path: Path) -> Any | None:
    """The same; what is no JSON, as a kill or a bad disk may leave it, counts as no file."""
    with suppress(ValueError):
        return read_json(path)
    return None
