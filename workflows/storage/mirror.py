"""A store on another filesystem (store=s3://bucket/runs): a working folder here, and what is finished copied there.

Stages, Ray, SQLite and MLflow work in the counterpart of the address on this machine (`system/remote.py`), as in any
store. A finished stage's files go there, its manifest last: so it is finished there, too, or not at all. The networks
that it trained go with it, and MLflow's files when the run ends. A run elsewhere reads the manifests, skips what is
finished, and copies here the files that the stages to be run will read. What that costs: docs/filesystems.md.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpe_core.errors import say
from hpe_core.spec.network import MEANING, WEIGHTS
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.system.disk import check_room, size
from hpe_core.system.identity import ID, id_of
from hpe_core.system.remote import Entry, Remote, RemoteError, is_remote
from workflows.storage.begun import RESULT
from workflows.storage.contents import MANIFEST, Files, set_aside_damaged
from workflows.storage.lease import Lease
from workflows.storage.lock import StoreHeld, holding
from workflows.storage.manifest import read_manifest

NETWORK = (WEIGHTS, MEANING, RESULT)  # the last one makes it count
TRACKING = ("mlflow.db", "mlartifacts", "pipeline")


class Mirror:
    """A store as a run sees it; one on this machine sends and brings nothing. Raises RemoteError, sending StoreHeld."""

    def __init__(self, spec: PipelineSpec) -> None:
        self.folder = spec.folder
        self.remote = Remote(spec.store) if is_remote(spec.store) else None
        self.lease: Lease | None = None
        self._there: dict[str, Entry] = {}  # by path below the store; of a store on this machine nothing

    def look(self) -> None:
        """List what is there and bring the manifests, so that a plan knows what is finished, and the store's id."""
        if self.remote is not None:
            self._there = self.remote.index()
            self.remote.copy_here({name: self._there[name] for name in (ID,) if name in self._there})
            self._bring(name for name in self._there if name.count("/") == 2 and name.endswith(f"/{MANIFEST}"))

    def size(self, path: Path) -> int | None:
        """Of the file's copy there, or None if there is none."""
        entry = self._there.get(self._name(path))
        return None if entry is None else entry.size

    def lacks(self, folder: Path) -> bool:
        """Whether a stage that is finished here is not finished there: its files could not be sent."""
        return self.remote is not None and self._name(folder / MANIFEST) not in self._there

    def check(self, folder: Path, files: Files) -> list[str]:
        """Bring a stage's files, hash them, set aside damaged ones (a sentence each) and bring those once more."""
        self._bring_missing(folder, files)
        damaged = set_aside_damaged(folder, files)
        if damaged and self.remote is not None:
            self._bring_missing(folder, files)
            damaged = set_aside_damaged(folder, files)
            for place in files:
                if not (folder / place).exists():
                    self._there.pop(self._name(folder / place), None)
        return damaged

    def push(self, folder: Path, *, made: bool = True) -> None:
        """Send a finished stage's files that are not there yet, then new networks, then the stage's manifest.

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
                wanted.append(path)
        self._send(wanted)
        for result in self.folder.glob(f"networks/*/{NETWORK[-1]}"):
            network = [result.with_name(name) for name in NETWORK]
            if self.size(result) is None and all(path.is_file() for path in network):
                for path in network:
                    self._send([path])
        self._send([folder / MANIFEST])

    def bring_networks(self) -> None:
        """Every network that was trained anywhere: none is trained again. What makes it count comes last."""
        for is_last in (False, True):
            names = (name for name in self._there if name.startswith("networks/"))
            self._bring(name for name in names if name.endswith(f"/{NETWORK[-1]}") is is_last)

    def push_id(self) -> None:
        """Send the store's id, made now if there is none: before MLflow shows a run under it."""
        id_of(self.folder)
        self._send([self.folder / ID])

    def bring_tracking(self) -> None:
        """MLflow's files, if those there are newer than ours."""
        self._bring(name for name in self._there if name.split("/")[0] in TRACKING)

    def push_tracking(self) -> None:
        """MLflow's files that have changed."""
        for name in TRACKING:
            path = self.folder / name
            self._send([path] if path.is_file() else [inner for inner in sorted(path.rglob("*")) if inner.is_file()])

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _bring(self, names: Iterable[str]) -> None:
        """Copy files here that are missing or older here."""
        if self.remote is None:
            return
        wanted = {}
        for name in names:
            path, entry = self.folder / name, self._there[name]
            if not path.exists() or path.stat().st_mtime_ns < entry.changed_ns:
                wanted[name] = entry
        self.remote.copy_here(wanted)

    def _bring_missing(self, folder: Path, files: Files) -> None:
        """Copy a stage's files here that are missing here or have another size than listed. Raises DiskFull before."""
        wanted = {}
        for place, listed in files.items():
            path = folder / place
            entry = self._there.get(self._name(path))
            if entry is not None and not (path.is_file() and path.stat().st_size == listed["bytes"]):
                wanted[self._name(path)] = entry
        if self.remote is None or not wanted:
            return
        needed, what = sum(entry.size for entry in wanted.values()), f"{len(wanted)} files of {self._name(folder)}"
        check_room(self.folder, needed, what)
        say(f"fetching {what}, {size(needed)}")
        self.remote.copy_here(wanted)

    def _send(self, paths: Iterable[Path]) -> None:
        """Copy files there that are not there in this state, and note their time so that they are not sent again."""
        if self.remote is None:
            return
        if self.lease is not None:
            self.lease.check()
        new = [name for name in map(self._name, paths) if not self._is_there(name)]
        self.remote.send(new)
        self._there |= (sent := self.remote.look(new))
        for name, entry in sent.items():
            if not self._is_there(name):
                os.utime(self.folder / name, ns=(entry.changed_ns, entry.changed_ns))

    def _is_there(self, name: str) -> bool:
        """Whether the file there is ours as it is now. Of a piece that folders share an older one will do."""
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
            mirror.push_id()
            mirror.bring_tracking()
            try:
                yield mirror
            except BaseException:
                with suppress(RemoteError, StoreHeld):  # what ended the run is what has to be said
                    mirror.push_tracking()
                raise
            mirror.push_tracking()
