"""The spool of the tracker: one folder a session, whose lines are what MLflow has not confirmed.

`events.jsonl` is only appended to; `sent` holds the byte offset of what MLflow has taken and is renamed into place; the
folder is held under `flock` while its process lives, so nobody replays a journal that is still being written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpe_core.system.files import write_atomic

Event = dict[str, Any]
COPY_BYTES = 16 << 20  # larger artifacts are hard-linked into the spool: a copy would stall the caller


def flock(path: Path, wait: bool = False) -> int | None:
    """Return a descriptor that holds the lock, or None when another process does."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(fd)
        return None
    return fd


class Journal:
    """One session's folder: `events.jsonl`, `sent` (confirmed bytes), `files/` (artifacts), `lock`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder, self._lock = folder, lock
        self._out = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        with contextlib.suppress(OSError):
            self._cut_torn_tail()
        sent = folder / "sent"
        self.offset = int(sent.read_text()) if sent.exists() else 0
        self.pending = sum(1 for _ in self._lines(self.offset))

    @classmethod
    def create(cls, spool: Path, header: Event) -> Journal:
        name = f"{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        hidden = spool / f".{name}"  # locked before it gets its real name: nobody can adopt it half made
        (hidden / "files").mkdir(parents=True)
        lock = flock(hidden / "lock")
        assert lock is not None
        write_atomic(hidden / "about.json", json.dumps(header))
        hidden.rename(spool / name)
        return cls(spool / name, lock)

    @classmethod
    def leftovers(cls, spool: Path) -> Iterator[Journal]:
        """Yield the journals of processes that are gone, oldest first, locked for us."""
        for folder in sorted(spool.glob("[0-9]*")):
            if folder.suffix == ".done":
                shutil.rmtree(folder, ignore_errors=True)
            elif (folder / "about.json").exists() and (lock := flock(folder / "lock")) is not None:
                yield cls(folder, lock)

    def about(self) -> Event:
        return dict(json.loads((self.folder / "about.json").read_text()))

    def _cut_torn_tail(self) -> None:
        """Drop an unfinished last line: the process died inside its write, the call never returned."""
        path = self.folder / "events.jsonl"
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)

    def _lines(self, offset: int) -> Iterator[bytes]:
        with open(self.folder / "events.jsonl", "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                yield line

    @staticmethod
    def _parse(line: bytes) -> Event:
        try:
            return dict(json.loads(line))
        except ValueError:  # a damaged disk: nobody can apply it, and it ends in refused.jsonl
            return {"op": "broken", "time": None, "line": line.decode(errors="replace")}

    def append(self, event: Event) -> None:
        os.write(self._out, json.dumps(event, default=str).encode() + b"\n")
        self.pending += 1

    def stage(self, path: Path) -> str:
        """Keep `path` (file or folder) inside the journal and return the relative name."""
        place, target = self.place(path.name)

        def keep(source: str, to: str) -> None:
            if os.path.getsize(source) > COPY_BYTES:
                with contextlib.suppress(OSError):  # another file system: copy after all
                    os.link(source, to)
                    return
            shutil.copyfile(source, to)

        if path.is_dir():
            shutil.copytree(path, target, copy_function=keep)
        else:
            keep(str(path), str(target))
        return place

    def place(self, name: str) -> tuple[str, Path]:
        """Return a new relative name in the journal that ends with `name`, and the path to write it to."""
        place = Path("files") / uuid.uuid4().hex / name
        (self.folder / place).parent.mkdir(parents=True)
        return str(place), self.folder / place

    def read(self, limit: int) -> list[tuple[Event, int]]:
        """Return up to `limit` unconfirmed events, each with the offset behind it."""
        out, end = [], self.offset
        for line in self._lines(self.offset):
            end += len(line)
            out.append((self._parse(line), end))
            if len(out) == limit:
                break
        return out

    def commit(self, events: list[Event], offset: int) -> None:
        write_atomic(self.folder / "sent", str(offset))
        self.offset = offset
        for event in events:
            if "file" in event:
                shutil.rmtree((self.folder / event["file"]).parent, ignore_errors=True)

    def left_open(self) -> list[Event]:
        """Return what ends the runs that a dead process left running, at the time of its last event."""
        runs: dict[str, bool] = {}
        event: Event = {}
        for line in self._lines(0):
            event = self._parse(line)
            if event["op"] in ("run", "finish"):
                runs[event["key"]] = event["op"] == "run"
        keys = [key for key, running in runs.items() if running]
        return [{"op": "finish", "key": key, "status": "KILLED", "time": event["time"]} for key in keys]

    def retire(self) -> None:
        """Remove the folder: renamed first, so that a crash in between cannot bring half of it back."""
        gone = self.folder.with_name(self.folder.name + ".done")
        self.folder.rename(gone)
        self.release()
        shutil.rmtree(gone, ignore_errors=True)

    def release(self) -> None:
        os.close(self._out)
        os.close(self._lock)
