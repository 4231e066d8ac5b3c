"""A folder's own name: random, made once, in a file of it. It goes along wherever the folder is moved or copied."""

import fcntl
import os
import re
import uuid
from pathlib import Path

ID = "store.id"


def id_of(folder: Path) -> str:
    """The folder's id, 32 letters of hex; whoever asks first makes it, and all who ask at once get the same.

    An id that a kill has cut off is made anew. Raises OSError where there is none and none can be written.
    """
    file = folder / ID
    while not (known := _read(file)):
        with open(file, "ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not _read(file):
                stream.truncate(0)
                stream.write(uuid.uuid4().hex.encode())
                stream.flush()
                os.fsync(stream.fileno())
    return known


def _read(file: Path) -> str:
    """The id in a file; '' where there is no whole one."""
    content = file.read_bytes() if file.exists() else b""
    return content.decode() if re.fullmatch(rb"[0-9a-f]{32}", content) else ""
