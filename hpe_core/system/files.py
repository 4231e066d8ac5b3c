"""Small files: written whole or not at all, read, hashed."""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write text and rename it into place, flushed to the disk: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with open(temporary, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_json(path: Path, tree: Any) -> None:
    """`write_atomic` of a tree as JSON."""
    write_atomic(path, json.dumps(tree, indent=1, sort_keys=True))


def read_json(path: Path) -> Any | None:
    """What `write_json` wrote, or None if there is no such file. Raises ValueError if it is no JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
