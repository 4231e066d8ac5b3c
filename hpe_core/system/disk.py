"""Room on the disk: asked for before a stage writes, and a full disk recognised when it comes all the same."""

import errno
import shutil
from pathlib import Path

from hpe_core.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
SAYINGS = ("No space left on device", "Disk quota exceeded")  # what is left of the error once Ray has carried it here


class DiskFull(UserError):
    """The store's disk has too little room; the message says how much is needed, free and missing."""


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raises DiskFull unless the disk of `folder` has `needed` bytes free for `what`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        lacking = f"where {size(free)} are free: {size(needed - free)} are missing"
        raise DiskFull(f"{what} need {size(needed)} in {folder}, {lacking}")


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, is that of a full disk, also where Ray has made text of it."""
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in FULL) or any(saying in str(seen) for saying in SAYINGS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
