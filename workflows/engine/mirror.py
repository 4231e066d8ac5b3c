"""A store on another filesystem (store=s3://bucket/runs): a working folder here, and what is finished copied there.

Stages, Ray, SQLite and MLflow work in the counterpart of the address on this machine (`system/remote.py`), as in any
store. When a stage is finished its files go there, the manifest last, so there it is finished, too, or not at all; the
networks that it trained go with it, and MLflow's files when the run ends. A run elsewhere reads the manifests, skips
what is finished, and copies here the files of those stages that the stages to be run will read.

What that costs. The working folder takes the disk of a store of its own. What a stage has half done stays on its
machine: there it is continued, after a kill or a full disk; a machine that is lost loses the running stage and nothing
else. Ray's checkpoints are not sent for the same reason. MLflow's SQLite remembers artifacts by their paths, so use one
$HPE_CACHE on all machines, or a server (mlflow.uri). A dataset that has grown keeps its shards where the working
folder is; elsewhere all are cut anew. With several nodes the working folder must be one that all of them see
($HPE_CACHE), because workers write into it.

Object stores know no locks. A lease lies beside the data: who holds the store, renewed every `BEAT_S`. Whoever finds it
watches for a new beat and gives up (exit code 3) when there is one; a lease without a beat for `STALE_S` is that of a
run that was killed and is taken over, and at once on the machine of the killed run, whose lock of the working folder is
free. No run is taken for dead because a server failed for as long as a request is repeated: `STALE_S` allows for a
beat whose read and write both wait that long, and a beat that hangs for longer does not delay the next. Two that take a
lease in the same moment both read it again after `SETTLE_S`: the last to write has it. A holder that was cut off for so
long that somebody took over notices at its next beat, and sends nothing any more.
"""

import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hpe_core.errors import SpecError
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.system.filesystems import PATIENCE_S
from hpe_core.system.remote import Entry, Remote, RemoteError, is_remote
from workflows.engine.contents import MANIFEST, Files, set_aside_damaged
from workflows.engine.disk import check_room, size
from workflows.engine.store import StoreHeld, holding, now, read_manifest

LEASE = "lease.json"
BEAT_S, SETTLE_S = 10.0, 1.0
STALE_S = BEAT_S + 2 * PATIENCE_S  # a beat reads, then writes
BEATS_AT_ONCE = 16  # that wait for an answer
HALF = ""  # the id of a lease that is no JSON
NETWORK = ("model.safetensors", "model.json", "result.json")  # the last one makes it count
TRACKING = ("mlflow.db", "mlflow-runs.json", "mlartifacts")


class Mirror:
    """A store as a run sees it. Where the store is a folder on this machine nothing is sent and nothing is fetched."""

    def __init__(self, spec: PipelineSpec) -> None:
        self.folder = spec.folder
        self.remote = Remote(spec.store) if is_remote(spec.store) else None
        self.lease: Lease | None = None
        self._there: dict[str, Entry] = {}

    def look(self) -> None:
        """List what is there and bring the manifests, so that a plan knows what is finished. Raises RemoteError."""
        if self.remote is not None:
            self._there = self.remote.index()
            self._bring(name for name in self._there if name.count("/") == 2 and name.endswith(f"/{MANIFEST}"))

    def bring_networks(self) -> None:
        """Every network that was trained anywhere, for a stage that trains: one that exists is not trained again.

        What makes a network count comes last, as in `push`: a run that is killed meanwhile leaves none that is half.
        """
        names = [name for name in self._there if name.startswith("networks/")]
        self._bring(name for name in names if not name.endswith(f"/{NETWORK[-1]}"))
        self._bring(name for name in names if name.endswith(f"/{NETWORK[-1]}"))

    def size(self, path: Path) -> int | None:
        """Of the file's copy there, or None where there is none."""
        entry = self._there.get(self._name(path))
        return None if entry is None else entry.size

    def lacks(self, folder: Path) -> bool:
        """Whether a stage that is finished here is not finished there: its files could not be sent."""
        return self.remote is not None and self._name(folder / MANIFEST) not in self._there

    def check(self, folder: Path, files: Files) -> list[str]:
        """Bring a finished stage's files, hash them, and set aside those that are damaged, with a sentence for each.

        What is damaged here is brought again; what is damaged there, too, counts as missing there from then on.
        """
        self._pull(folder, files)
        damaged = set_aside_damaged(folder, files)
        if damaged and self.remote is not None:
            self._pull(folder, files)
            damaged = set_aside_damaged(folder, files)
            for place in files:
                if not (folder / place).exists():
                    self._there.pop(self._name(folder / place), None)
        return damaged

    def push(self, folder: Path, *, made: bool = True) -> None:
        """Send a finished stage's files that are not there yet, its manifest last. Raises RemoteError, StoreHeld.

        Of a stage that this run has not `made`, what is whole there stays: ours may have been damaged since. So does
        every network that is there: none is ever written again.
        """
        manifest = read_manifest(folder)
        if self.remote is None or manifest is None:
            return
        wanted = []
        for place, listed in manifest["files"].items():
            path = folder / place
            is_whole = path.is_file() and path.stat().st_size == listed["bytes"]
            if is_whole and (made or self.size(path) != listed["bytes"]):
                wanted.append(self._name(path))
        self._send(wanted)
        for result in self.folder.glob(f"networks/*/{NETWORK[-1]}"):
            network = [result.with_name(name) for name in NETWORK]
            if self.size(result) is None and all(path.is_file() for path in network):
                for path in network:
                    self._send([self._name(path)])
        self._send([self._name(folder / MANIFEST)])

    def pull_tracking(self) -> None:
        """MLflow's files, where those there are newer than ours."""
        self._bring(name for name in self._there if name.split("/")[0] in TRACKING)

    def push_tracking(self) -> None:
        """MLflow's files that have changed. What waits in the spool stays here."""
        for name in TRACKING if self.remote is not None else ():
            path = self.folder / name
            found = [path] if path.is_file() else [inner for inner in sorted(path.rglob("*")) if inner.is_file()]
            self._send([self._name(inner) for inner in found])

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _bring(self, names: Iterator[str]) -> None:
        """Copy files here that are missing or older here."""
        if self.remote is None:
            return
        wanted = {}
        for name in names:
            path, entry = self.folder / name, self._there[name]
            if not path.exists() or path.stat().st_mtime_ns < entry.changed_ns:
                wanted[name] = entry
        self.remote.copy_here(wanted)

    def _pull(self, folder: Path, files: Files) -> None:
        if self.remote is None:
            return
        wanted = {}
        for place, listed in files.items():
            path = folder / place
            entry = self._there.get(self._name(path))
            if entry is not None and not (path.is_file() and path.stat().st_size == listed["bytes"]):
                wanted[self._name(path)] = entry
        if wanted:
            needed, what = sum(entry.size for entry in wanted.values()), f"{len(wanted)} files of {self._name(folder)}"
            check_room(self.folder, needed, what)
            print(f"fetching {what}, {size(needed)}", file=sys.stderr)
        self.remote.copy_here(wanted)

    def _send(self, names: list[str]) -> None:
        """Copy files there that are not there in this state, and note their time so that they are not sent again."""
        if self.remote is None:
            return
        if self.lease is not None:
            self.lease.check()
        new = [name for name in names if not self._is_there(name)]
        self.remote.send(new)
        for name, entry in self.remote.look(new).items():
            self._there[name] = entry
            if not self._is_there(name):
                os.utime(self.folder / name, ns=(entry.changed_ns, entry.changed_ns))

    def _is_there(self, name: str) -> bool:
        """Whether the file there is ours as it is now.

        Its time is the original's then. A piece that folders share (`pieces`) has one time here and several there, so
        for such a one, which is never written again, it is enough that it is older.
        """
        assert self.remote is not None
        entry, stat = self._there.get(name), (self.folder / name).stat()
        if entry is None:
            return False
        shared = stat.st_nlink > 1 and stat.st_size == entry.size and stat.st_mtime_ns <= entry.changed_ns
        return shared or self.remote.is_here(name, entry)


@contextmanager
def held(spec: PipelineSpec) -> Iterator[Mirror]:
    """Hold the store for one run, here and there. Raises StoreHeld with who has it."""
    mirror = Mirror(spec)
    with holding(spec.folder):
        if mirror.remote is None:
            yield mirror
            return
        with Lease(mirror.remote, spec.folder) as mirror.lease:
            mirror.look()
            mirror.pull_tracking()
            try:
                yield mirror
            except BaseException:
                with suppress(RemoteError, StoreHeld):  # what ended the run is what has to be said
                    mirror.push_tracking()
                raise
            mirror.push_tracking()


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
        end = time.monotonic() + BEAT_S
        for beat in self._beats:
            beat.join(max(0.0, end - time.monotonic()))
        if any(beat.is_alive() for beat in self._beats):
            return  # the server does not answer; the lease becomes stale by itself
        with suppress(RemoteError):  # the same
            found = self._read()
            if found is not None and found["id"] == self._mine["id"]:
                self._remote.delete(LEASE)

    def check(self) -> None:
        """Raises StoreHeld where somebody has taken the store over because our beats did not get through."""
        if self._taken_by:
            raise StoreHeld(
                f"store {self._remote.address} was taken over by {self._taken_by} while this run was cut off"
            )

    def _await_turn(self) -> None:
        first = self._read()
        if first is None or (first["host"], first["folder"]) == (self._mine["host"], self._mine["folder"]):
            return  # nobody's, or that of a run that held our working folder's lock and is gone
        print(f"store {self._remote.address}: waiting for a sign of life from {first['holder']}", file=sys.stderr)
        end = time.monotonic() + STALE_S
        while time.monotonic() < end:
            time.sleep(min(BEAT_S / 4, STALE_S / 4))
            found = self._read()
            if found is None:
                return
            if (found["id"], found["beat"]) != (first["id"], first["beat"]):
                raise self._held(found)

    def _keep(self) -> None:
        """Each beat has a thread of its own: a request that hangs, for minutes on Google's, does not delay the next."""
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
        """The lease there. One that is no JSON is half written, by somebody who is alive if it changes."""
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
