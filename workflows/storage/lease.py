"""Who may write into a remote store: object stores know no locks, so a lease lies beside the data.

The holder renews it every `BEAT_S`. Whoever finds a lease watches for a new beat: if one comes, it gives up (exit code
3). A lease without a beat for `STALE_S` is that of a killed run and is taken over. The machine of the killed run takes
it over at once, because its lock of the working folder is free. No run is taken for dead while a server fails:
`STALE_S` allows for a beat whose read and write are both repeated for as long as may be, and a beat that hangs longer
does not delay the next. If two take a lease in the same moment, both read it again after `SETTLE_S`: the last to write
has it. A holder that was cut off for so long that another run took over notices at its next beat and sends nothing
more. Why no exclusive create: docs/libraries.md.
"""

import json
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpe_core.errors import SpecError, say
from hpe_core.system.filesystems import PATIENCE_S
from hpe_core.system.remote import Remote, RemoteError
from workflows.storage.lock import StoreHeld
from workflows.storage.manifest import now

LEASE = "lease.json"
BEAT_S, SETTLE_S = 10.0, 1.0
CLOSING_S = 10.0  # that the end waits for beats that hang
STALE_S = BEAT_S + 2 * PATIENCE_S  # a beat reads, then writes
BEATS_AT_ONCE = 16  # that wait for an answer
HALF = ""  # the id of a lease that is no JSON


class Lease:
    """The right to write into a remote store, kept alive by a thread while it is entered."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        self._remote = remote
        self._mine = {
            "holder": f"process {os.getpid()} on {platform.node()} since {now()}",
            "id": uuid.uuid4().hex,
            "host": platform.node(),
            "folder": str(folder),
        }
        self._beat, self._taken_by = 0, ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._beats: list[threading.Thread] = []

    def __enter__(self) -> "Lease":
        """Raises StoreHeld with who holds the store, SpecError if the store cannot be used."""
        try:
            self._await_turn()
            self._write()
        except RemoteError as error:
            raise SpecError(f"store: {error}") from None
        time.sleep(SETTLE_S)
        found = self._read()
        if found is None or found["id"] != self._mine["id"]:
            raise self._held(found)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        end = time.monotonic() + CLOSING_S
        for beat in self._beats:
            beat.join(max(0.0, end - time.monotonic()))
        if any(beat.is_alive() for beat in self._beats):
            return  # the server does not answer; the lease becomes stale by itself
        with suppress(RemoteError):  # the same
            found = self._read()
            if found is not None and found["id"] == self._mine["id"]:
                self._remote.delete(LEASE)

    def check(self) -> None:
        """Raises StoreHeld if another run took the store over because our beats did not get through."""
        if self._taken_by:
            taken = f"was taken over by {self._taken_by} while this run was cut off"
            raise StoreHeld(f"store {self._remote.address} {taken}")

    def _await_turn(self) -> None:
        first = self._read()
        if first is None or (first["host"], first["folder"]) == (self._mine["host"], self._mine["folder"]):
            return  # nobody's, or that of a run that held our working folder's lock and is gone
        say(f"store {self._remote.address}: waiting for a sign of life from {first['holder']}")
        end = time.monotonic() + STALE_S
        while time.monotonic() < end:
            time.sleep(min(BEAT_S, STALE_S) / 4)
            found = self._read()
            if found is None:
                return
            if (found["id"], found["beat"]) != (first["id"], first["beat"]):
                raise self._held(found)

    def _keep(self) -> None:
        """Each beat has its own thread: a request that hangs, for minutes on Google's, does not delay the next."""
        while not self._done.wait(BEAT_S):
            self._beats = [beat for beat in self._beats if beat.is_alive()]
            if len(self._beats) < BEATS_AT_ONCE:
                self._beats.append(threading.Thread(target=self._renew, name="beat", daemon=True))
                self._beats[-1].start()

    def _renew(self) -> None:
        with suppress(RemoteError):  # the next beat may get through
            found = self._read()
            if found is not None and found["id"] not in (self._mine["id"], HALF):  # a beat of ours may be half written
                self._taken_by = found["holder"]
                self._done.set()
            elif not self._done.is_set():
                self._write()

    def _read(self) -> dict[str, Any] | None:
        """The lease there. One that is no JSON is half written: its writer lives if it changes."""
        content = self._remote.read(LEASE)
        if content is None:
            return None
        try:
            return dict(json.loads(content))
        except ValueError:
            return {"holder": "another process", "id": HALF, "host": "", "folder": "", "beat": content.hex()}

    def _write(self) -> None:
        self._beat += 1
        self._remote.write(LEASE, json.dumps({**self._mine, "beat": self._beat}).encode())

    def _held(self, found: dict[str, Any] | None) -> StoreHeld:
        holder = found["holder"] if found else "another process"
        return StoreHeld(f"store {self._remote.address} is in use by {holder}; wait for it or choose another store=")
