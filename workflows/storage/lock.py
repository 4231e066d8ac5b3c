"""A folder's lock: one run at a time works in a store."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpe_core.errors import SpecError
from workflows.storage.manifest import now


class StoreHeld(RuntimeError):
    """Another run works in this store; the message says who."""


@contextmanager
def holding(store: Path) -> Iterator[None]:
    """Hold the store for one run; a killed holder frees it. Raises StoreHeld, or SpecError for an unusable store."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        (store / ".lock").touch()
    except OSError as error:
        raise SpecError(f"store {store} cannot be used: {error.strerror}") from None
    with open(store / ".lock", "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read(200).strip() or "another process"
            raise StoreHeld(f"store {store} is in use by {holder}; wait for it or choose another store=") from None
        except OSError as error:
            raise SpecError(f"store {store} lies on a disk that knows no locks: {error.strerror}") from None
        with suppress(OSError):  # on a full disk the lock holds all the same, and stages say what they lack
            stream.truncate(0)
            os.write(stream.fileno(), f"process {os.getpid()} on {platform.node()} since {now()}".encode())
        yield
