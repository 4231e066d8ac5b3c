"""Room on the disk: asked for before a stage writes, and a full disk recognised when it comes all the same."""

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

from hpe_core.errors import UserError

# Numbers of the errors, and what is left of them once Ray has carried them here.
FULL = (errno.ENOSPC, errno.EDQUOT), ("No space left on device", "Disk quota exceeded")
LIMITED = (errno.EFBIG,), ("File too large",)


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
    return _is_of(error, *FULL)


def files_are_limited(error: BaseException) -> bool:
    """The same of a file that may not grow further: by `ulimit -f`, or by its filesystem."""
    return _is_of(error, *LIMITED)


def _is_of(error: BaseException | None, numbers: Sequence[int], sayings: Sequence[str]) -> bool:
    while error is not None:
        if (isinstance(error, OSError) and error.errno in numbers) or any(said in str(error) for said in sayings):
            return True
        error = error.__cause__ or error.__context__
    return False


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
