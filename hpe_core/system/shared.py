"""Files that processes of one machine share: built once, by whoever comes first, and gone with their last user.

They lie in a folder of the temporary directory (TMPDIR), each set in a folder of its own with a lock file beside it.
The builder holds the lock alone and gives the set its name when it is whole; whoever comes meanwhile waits. Users hold
the lock together. The system frees the lock of a process that is killed, so the last to leave knows that it is the
last, and the next comer, of whatever set, removes what nobody uses.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from hpe_core.errors import UserError
from hpe_core.system.disk import DiskFull, check_room, disk_is_full

BOOT = Path("/proc/sys/kernel/random/boot_id")
RETRY_S = 0.01


class NotShared(UserError):
    """The temporary directory cannot hold shared files; the message says why."""


def shared_home() -> Path:
    """The folder of all sets of this user on this machine; a temporary directory may be common to several."""
    return Path(tempfile.gettempdir(), f"hpe-shared-{os.getuid()}-{platform.node()}")


def share(key: str, write: Callable[[Path], None], needed: int, what: str) -> tuple[Path, Callable[[], None]]:
    """The folder of the set `key`, made by `write(folder)` unless it is there, and what to call when done with it.

    `needed` is its size in bytes, `what` says for messages what it holds. What `write` raises is raised here, and
    nothing stays. Raises DiskFull where there is too little room, NotShared where the directory knows no locks.
    """
    home, boot = shared_home(), BOOT.read_text() if BOOT.exists() else ""
    # After a power cut a set may be torn: no set is used that an earlier start of the machine has left.
    name = hashlib.sha256(f"{boot}{key}".encode()).hexdigest()[:20]
    folder, lock = home / name, home / f"{name}.lock"
    _sweep(home, lock)
    while True:
        held = _open(home, lock)
        if _locked(held, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_there(held, lock) and not folder.exists():
            try:
                _build(folder, write, needed, what)
            except BaseException:
                _leave(held, lock)
                raise
        # Others may come between the two locks; to them the set is whole and without users.
        _locked(held, fcntl.LOCK_SH)
        if _is_there(held, lock) and folder.exists():
            return folder, partial(_leave, held, lock, os.getpid())
        os.close(held)  # its builder failed, or its last user has just removed it
        time.sleep(RETRY_S)


def _open(home: Path, lock: Path) -> int:
    while True:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.stat().st_uid != os.getuid():
            raise NotShared(f"{home} belongs to another user; set TMPDIR to another folder")
        with suppress(FileNotFoundError):  # the last user of another set has removed the folder
            return os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)


def _locked(held: int, how: int) -> bool:
    """Whether the lock could be had; without LOCK_NB it is waited for."""
    try:
        fcntl.flock(held, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NotShared(
            f"{tempfile.gettempdir()} knows no locks ({error.strerror}); set TMPDIR to a folder of a local disk"
        ) from None
    return True


def _is_there(held: int, lock: Path) -> bool:
    """Whether the open lock file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(held), lock.stat())
    except FileNotFoundError:
        return False


def _build(folder: Path, write: Callable[[Path], None], needed: int, what: str) -> None:
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    said = f"{what}, shared by all who read them on this machine (TMPDIR says where),"
    check_room(folder.parent, needed, said)
    part.mkdir()
    try:
        write(part)
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise DiskFull(f"{said} did not fit into {folder.parent}: its disk is full") from None
    part.rename(folder)


def _leave(held: int, lock: Path, opener: int = 0) -> None:
    """Give up a lock; who was its last holder removes the set. A fork leaves nothing: its parent uses the set still."""
    if opener not in (0, os.getpid()):
        return
    try:
        if _locked(held, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_there(held, lock):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            shutil.rmtree(lock.with_suffix(".part"), ignore_errors=True)
            lock.unlink(missing_ok=True)  # last: what a kill leaves here has a lock by which it is found
            with suppress(OSError):
                lock.parent.rmdir()
    finally:
        os.close(held)


def _sweep(home: Path, own: Path) -> None:
    """Remove the sets that nobody uses: those of killed processes."""
    for lock in home.glob("*.lock"):
        if lock != own:
            with suppress(FileNotFoundError):
                _leave(os.open(lock, os.O_RDWR), lock)
