"""MLflow bookkeeping that can never stop or stall training.

Only the driver talks to MLflow. Every call on a `Tracker` appends one JSON line to a journal,
`<store>/mlflow-spool/<session>/events.jsonl`, and returns; a daemon thread reads the journal and talks to
MLflow. The journal is the spool: when the server is slow or dead, when SQLite is locked, or when the driver
is killed, the lines that MLflow has not confirmed lie there, in order, and the next `Tracker.open` on the
store (or `replay`, below) sends them first. Good days and bad ones take one path, so the bad one is tested
all day.

    python workflows/tracking.py replay store=/data/hpe [uri=http://127.0.0.1:5000]

Exactly once. The byte offset of the confirmed lines is renamed into place after each batch, so a crash
resends at most one batch, and every event may be applied twice without a trace: a run is looked up by its
tag `hpe.key` before it is created; a metric's time is taken when it is called, and MLflow's primary key is
(run, key, step, timestamp, value), so the database drops a second copy; params, tags and artifacts overwrite
themselves; a model version is reused when its run and folder are the same. A session is held under `flock`
while its process lives, so nobody replays a journal that is still being written. (The module is long because
journal, backend and tracker share this one rule, and none of them is of use without the others.)

Facts, seen with MLflow 3.17 and Chromium:
- A fresh SQLite schema takes 2-5 s; `import mlflow` 2-4 s; `log_batch` about 20 ms. A locked database raises
  after 20-34 s, the default HTTP retries take minutes: here one try, 10 s a request, and the journal waits.
- A model version's source `runs:/<run id>/<folder>` works for SQLite and for a server alike (which refuses
  paths outside the run's artifacts). The version's page shows its source run, alias and description;
  a folder with an `MLmodel` file loads as `models:/head-pose@champion`, a plain one is listed all the same.
- MLflow stores inf as 1.8e308, which ruins a chart's axis: here it is NaN plus a tag `nonfinite.<metric>`.
- Params cannot change. A resumed run keeps the first value; the new one becomes a tag `param.<name>`.
- A fresh browser opens MLflow in its "GenAI" view, which hides runs and models and ignores the experiment's
  kind. So `register` writes the champion into the experiment's tags and description, and the best student is
  found in two clicks: "Model training", then the experiment, whose first line links the version and its run.
  The start page shows the tag with no click at all. The registry's list (also two clicks) lies under a
  promotion on the first visit. `/#/models/head-pose` opens the champion's table directly.
- The list of runs shows about 16 letters of a name, the start page about 15 of a tag: the score goes first.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import fcntl
import getpass
import json
import logging
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Status = Literal["FINISHED", "FAILED", "KILLED"]
Event = dict[str, Any]

KEY_TAG = "hpe.key"
DEADLINE_S = 10.0  # a call without an answer for so long counts as a slow server
OPEN_WAIT_S = 5.0  # what `open` waits for a server at most
COPY_BYTES = 16 << 20  # larger artifacts are hard-linked into the spool: a copy would stall the caller
BATCH = 256  # events read at once; halved after each failure, so a slow server still gets them all
PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}


class Refused(Exception):
    """MLflow will never take this event, however often it is sent."""


def _say(text: str) -> None:
    print(f"tracking: {text}", file=sys.stderr, flush=True)


def _write_atomic(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _public(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)  # a password in the address stays out of messages


def _cause(error: BaseException) -> str:
    """Return what lies at the bottom: MLflow wraps 'connection refused' in 500 letters of other errors."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return " ".join(f"{type(error).__name__}: {error}".split())


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _name(text: str) -> str:
    """Return `text` in the letters that MLflow allows in the names of params, metrics and tags."""
    clean = re.sub(r"/{2,}", "/", re.sub(r"[^\w\-. :/]", "_", text)).strip("/. ") or "_"
    return _clip(clean.replace("../", "_"), 200)


def flatten(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return nested mappings, dataclasses and lists of them as `a.b.0.c -> text`; plain lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if isinstance(value, list | tuple) and any(
            isinstance(v, Mapping) or dataclasses.is_dataclass(v) for v in value
        ):
            value = {str(i): v for i, v in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat.update(flatten({str(k): v for k, v in value.items()}, f"{name}."))
        elif isinstance(value, Mapping | list | tuple):
            flat[_name(name)] = _clip(json.dumps(value, default=str), 6000)
        else:
            flat[_name(name)] = _clip(str(value), 6000)
    return flat


def git_commit(root: Path) -> str:
    """Return the commit of `root`, with `-dirty` when tracked files differ, or `unknown` without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=5)
        done.check_returncode()
        return done.stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--verify", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def ui_command(uri: str) -> str:
    """Return the command that shows the store in a browser; for a server, its address; '' for `none`."""
    if uri.startswith("sqlite:"):
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)} --port 5000"
    return "" if uri in ("", "none") else _public(uri)


class _Journal:
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
    def create(cls, spool: Path, header: Event) -> _Journal:
        name = f"{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        hidden = spool / f".{name}"  # locked before it gets its real name: nobody can adopt it half made
        (hidden / "files").mkdir(parents=True)
        lock = _flock(hidden / "lock")
        assert lock is not None
        _write_atomic(hidden / "about.json", json.dumps(header))
        hidden.rename(spool / name)
        return cls(spool / name, lock)

    @classmethod
    def leftovers(cls, spool: Path) -> Iterator[_Journal]:
        """Yield the journals of processes that are gone, oldest first, locked for us."""
        for folder in sorted(spool.glob("[0-9]*")):
            if folder.suffix == ".done":
                shutil.rmtree(folder, ignore_errors=True)
            elif (folder / "about.json").exists() and (lock := _flock(folder / "lock")) is not None:
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
        _write_atomic(self.folder / "sent", str(offset))
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


def _flock(path: Path, wait: bool = False) -> int | None:
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


class _Backend:
    """The one place that imports mlflow: applies events, each of them safe to apply twice."""

    def __init__(self, uri: str, experiment: str, store: Path, artifact_root: Path | None) -> None:
        self.uri, self.experiment, self.store, self.artifact_root = uri, experiment, store, artifact_root
        self.ids: dict[str, str] = {}  # keys seen in MLflow by this process
        self.client: Any = None
        self.experiment_id = ""

    def prepare(self) -> None:
        """Import mlflow, quietly and with no network but the tracking server."""
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(DEADLINE_S)))
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow  # noqa: F401

        for name in ("mlflow.store.db.utils", "mlflow.utils.rest_utils", "urllib3.connectionpool", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # we say it once, in our own words

    def connect(self) -> None:
        """Open the client and the experiment; create or migrate a SQLite schema, one process at a time."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        lock = None
        if self.uri.startswith("sqlite:"):
            lock = _flock(self.store / "mlflow-spool" / "migrate.lock", wait=True)
        try:
            try:
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                found = client.get_experiment_by_name(self.experiment)
            except MlflowException as error:
                if lock is None or "out-of-date" not in str(error):
                    raise
                from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine_with_retry

                _say("bringing the MLflow database to the schema of the installed version")
                _upgrade_db(create_sqlalchemy_engine_with_retry(self.uri))  # what `mlflow db upgrade` calls
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                found = client.get_experiment_by_name(self.experiment)
            if found is None:
                folder = re.sub(r"[^\w-]", "_", self.experiment)
                root = self.artifact_root and (self.artifact_root / folder).as_uri()
                self.experiment_id = client.create_experiment(self.experiment, artifact_location=root)
            else:
                if found.lifecycle_stage == "deleted":
                    client.restore_experiment(found.experiment_id)
                self.experiment_id = found.experiment_id
        finally:
            if lock is not None:
                os.close(lock)
        self.common = {
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": Path(sys.argv[0] or "python").name,
            "mlflow.source.git.commit": git_commit(Path(__file__).resolve().parents[1]),
        }
        with contextlib.suppress(Exception):
            self.common["mlflow.user"] = getpass.getuser()
        self.client = client

    def _map_key(self) -> str:
        return f"{_public(self.uri)} {self.experiment}"

    def _read_map(self) -> dict[str, dict[str, str]]:
        try:
            return dict(json.loads((self.store / "mlflow-runs.json").read_text()))
        except (OSError, ValueError):
            return {}  # only a short cut: the tag on the run is the truth

    def find(self, key: str) -> str | None:
        """Return the run id of `key`: from memory, the map, or MLflow's tags; None when there is no run."""
        if key in self.ids:
            return self.ids[key]
        from mlflow.exceptions import MlflowException

        known = self._read_map().get(self._map_key(), {}).get(key)
        if known:
            try:
                run = self.client.get_run(known)
                if run.info.lifecycle_stage == "active" and run.data.tags.get(KEY_TAG) == key:
                    self.ids[key] = known
                    return known
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        runs = self.client.search_runs(
            [self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1, order_by=["start_time ASC"]
        )
        if runs:
            self._remember(key, runs[0].info.run_id)
        return self.ids.get(key)

    def _remember(self, key: str, run_id: str) -> None:
        self.ids[key] = run_id
        runs = self._read_map()
        runs.setdefault(self._map_key(), {})[key] = run_id
        _write_atomic(self.store / "mlflow-runs.json", json.dumps(runs, indent=1, sort_keys=True))

    def need(self, key: str) -> str:
        run_id = self.find(key)
        if run_id is None:
            raise Refused(f"there is no run with the key {key!r}")
        return run_id

    def apply(self, events: list[Event], folder: Path) -> str | None:
        """Send events of one kind (several only for metrics). Raises `Refused` for what cannot work."""
        from mlflow.exceptions import MlflowException

        try:
            if events[0]["op"] == "metrics":
                self._metrics(events)
                return None
            result: str | None = getattr(self, "_" + events[0]["op"])(events[0], folder)
            return result
        except MlflowException as error:
            if error.error_code in PERMANENT:
                raise Refused(str(error)) from error
            raise
        except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error

    def _run(self, event: Event, _: Path) -> None:
        tags = self.common | event["tags"] | {KEY_TAG: event["key"]}
        if event["parent"]:
            tags["mlflow.parentRunId"] = self.need(event["parent"])
        run_id = self.find(event["key"])
        if run_id is None:
            run = self.client.create_run(self.experiment_id, event["time"], tags, event["name"])
            self._remember(event["key"], run.info.run_id)
        else:  # resumed: the same run goes on
            self._set_tags(run_id, tags)
            self.client.update_run(run_id, status="RUNNING", name=event["name"])

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        rows = [RunTag(_name(k), _clip(v, 8000)) for k, v in tags.items()]
        for i in range(0, len(rows), 100):
            self.client.log_batch(run_id, tags=rows[i : i + 100])

    def _tags(self, event: Event, _: Path) -> None:
        self._set_tags(self.need(event["key"]), event["tags"])

    def _params(self, event: Event, _: Path) -> None:
        from mlflow.entities import Param

        run_id = self.need(event["key"])
        old = self.client.get_run(run_id).data.params
        new = [Param(k, v) for k, v in event["params"].items() if k not in old]
        for i in range(0, len(new), 100):
            self.client.log_batch(run_id, params=new[i : i + 100])
        changed = {f"param.{k}": v for k, v in event["params"].items() if old.get(k, v) != v}
        if changed:
            self._set_tags(run_id, changed)

    def _metrics(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        for key, group in groupby(sorted(events, key=lambda e: str(e["key"])), key=lambda e: str(e["key"])):
            run_id, rows, odd = self.need(key), [], {}
            for e in group:
                for name, value in e["metrics"].items():
                    if not math.isfinite(value):
                        odd[f"nonfinite.{name}"] = f"{value} at step {e['step']}"
                        value = math.nan
                    rows.append(Metric(name, value, e["time"], e["step"]))
            for i in range(0, len(rows), 1000):
                self.client.log_batch(run_id, metrics=rows[i : i + 1000])
            if odd:
                self._set_tags(run_id, odd)

    def _artifact(self, event: Event, folder: Path) -> None:
        run_id, path = self.need(event["key"]), folder / event["file"]
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), event["folder"] or path.name)
        else:
            self.client.log_artifact(run_id, str(path), event["folder"] or None)

    def _finish(self, event: Event, _: Path) -> None:
        self.client.set_terminated(self.need(event["key"]), event["status"], event["time"])

    def _register(self, event: Event, _: Path) -> str:
        run_id, name = self.need(event["key"]), event["model"]
        if not self.client.list_artifacts(run_id, event["folder"]):
            raise Refused(f"the run {event['key']!r} has no artifacts in {event['folder']!r} to register")
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        source = f"runs:/{run_id}/{event['folder']}"
        versions = self.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        version = next((v.version for v in versions if v.source == source), None)
        if version is None:
            version = self.client.create_model_version(
                name, source, run_id, event["tags"], description=event["description"], await_creation_for=0
            ).version
        else:
            for tag, value in event["tags"].items():
                self.client.set_model_version_tag(name, version, tag, value)
            self.client.update_model_version(name, version, event["description"])
        if event["alias"]:
            self.client.set_registered_model_alias(name, event["alias"], version)
            self._show(event["alias"], event, run_id, version)
        return str(version)

    def _show(self, alias: str, event: Event, run_id: str, version: str) -> None:
        """Put the champion where a visitor looks first: start page, experiment, page of the model."""
        name, about = event["model"], event["description"]
        run = self.client.get_run(run_id).info.run_name
        self.client.update_registered_model(name, f"**{alias}: version {version}**\n\n{about}")
        note = (
            f"**{alias}: [{name} version {version}](#/models/{name}/versions/{version})"
            f"{' · ' if event['summary'] else ''}{event['summary']}**, from the run "
            f"[{run}](#/experiments/{self.experiment_id}/runs/{run_id})\n\n{about}"
        )
        short = " · ".join(part for part in (event["summary"], f"{name} v{version}") if part)
        for tag, value in ((alias, short), ("mlflow.note.content", note)):
            self.client.set_experiment_tag(self.experiment_id, tag, _clip(value, 5000))


class Tracker:
    """Writes runs to MLflow from one process. Thread-safe; no method waits for MLflow or raises for it.

    Use it as a context manager: an exception ends every open run as FAILED (Ctrl-C: KILLED). A process that
    ends without `close` counts as failed; the runs of one that was shot are ended as KILLED by the next
    `open` or `replay`, unless they are resumed.
    """

    def __init__(self, backend: _Backend | None, journal: _Journal | None, before: list[_Journal]) -> None:
        self._backend, self._journal, self._before = backend, journal, before
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._began: float | None = None  # when the call to MLflow that is going on started
        self._open: set[str] = set()
        self._said: set[str] = set()
        self._results: dict[str, str | None] = {}
        self._stop = self._closed = self.spooling = False
        self._thread: threading.Thread | None = None

    @classmethod
    def open(cls, uri: str, experiment: str, store: Path, *, artifact_root: Path | None = None) -> Tracker:
        """Start tracking into `uri`: `sqlite:////absolute/mlflow.db`, `http(s)://...`, or `none`.

        A SQLite schema is created and migrated here. A server is waited for 5 s at most; after that the
        events stay in the spool until it answers. What earlier runs left in the spool for `uri` goes first.

        Raises: ValueError for another address or a relative SQLite path, OSError when `store` is read-only.
        """
        if uri in ("", "none"):
            return cls(None, None, [])
        local = uri.startswith("sqlite:")
        if not re.match(r"sqlite:////[^/]|https?://[^/]", uri):
            raise ValueError(
                f"uri must be 'sqlite:////absolute/path/mlflow.db', 'http://host:port' or 'none', not {uri!r}"
            )
        store = store.resolve()
        spool = store / "mlflow-spool"
        spool.mkdir(parents=True, exist_ok=True)
        if artifact_root is None and local:
            artifact_root = store / "mlartifacts"
        backend = _Backend(uri, experiment, store, artifact_root and artifact_root.resolve())
        before = []
        for old in _Journal.leftovers(spool):
            if old.about() == {"uri": uri, "experiment": experiment}:
                before.append(old)
            else:
                old.release()
        self = cls(backend, _Journal.create(spool, {"uri": uri, "experiment": experiment}), before)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()
        atexit.register(self.close, "FAILED")
        self._ready.wait(15.0 if local else OPEN_WAIT_S)  # a migration is worth a wait
        return self

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("FINISHED" if kind is None else "KILLED" if interrupted else "FAILED")

    # -- events ------------------------------------------------------------------------------------------

    def run(self, key: str, *, name: str, parent: str | None = None, tags: Mapping[str, str] = {}) -> str:
        """Start the run `key`, or go on with it: the same key is the same MLflow run in every process.

        Calling it again renames the run and adds tags, e.g. to put the best score into the parent's name.

        Raises: ValueError for a key with other letters than those of names and paths.
        """
        if not re.fullmatch(r"[\w./:@+=, -]{1,250}", key):
            raise ValueError(f"a run's key is made of letters, digits and ./:@+=,-_ and not {key!r}")
        with self._changed:
            self._open.add(key)
            tags = {k: str(v) for k, v in tags.items()}
            self._put({"op": "run", "key": key, "name": _clip(name, 250), "parent": parent, "tags": tags})
        return key

    def params(self, key: str, params: Mapping[str, object]) -> None:
        """Log nested `params` flattened with dots; a value that a resumed run changes becomes a tag."""
        self._put({"op": "params", "key": key, "params": flatten(params)})

    def metrics(self, key: str, metrics: Mapping[str, float], step: int, timestamp_ms: int | None = None) -> None:
        """Log numbers at `step`; NaN stays NaN, inf becomes NaN, both leave a tag `nonfinite.<metric>`."""
        numbers = {}
        for name, value in metrics.items():
            try:
                numbers[_name(name)] = float(value)
            except (TypeError, ValueError, RuntimeError):
                self._say_once(f"the metric {name!r} is left out: {type(value).__name__} is not a number")
        if numbers:
            event = {"op": "metrics", "key": key, "metrics": numbers, "step": int(step)}
            self._put(event if timestamp_ms is None else event | {"time": int(timestamp_ms)})

    def tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Set tags; `mlflow.note.content` is the description on the run's page, in markdown."""
        self._put({"op": "tags", "key": key, "tags": {k: str(v) for k, v in tags.items()}})

    def artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Keep a file as `folder/name`, or a directory's files in `folder` (default: its own name).

        The content is taken now, and `path` may go away; above 16 MiB it is a hard link, so such a file must
        be replaced and never rewritten in place.
        """
        if self._journal is None:
            return
        try:
            file = self._journal.stage(path)
        except OSError as error:
            self._say_once(f"the artifact {path} is left out: {error}")
        else:
            self._put({"op": "artifact", "key": key, "file": file, "folder": folder, "from": str(path)})

    def text(self, key: str, text: str, name: str) -> None:
        """Keep `text` as the artifact `name`, a relative path."""
        if self._journal is None:
            return
        folder = "" if str(Path(name).parent) == "." else str(Path(name).parent)
        try:
            place, target = self._journal.place(Path(name).name)
            target.write_text(text)
        except OSError as error:
            self._say_once(f"the artifact {name} is left out: {error}")
        else:
            self._put({"op": "artifact", "key": key, "file": place, "folder": folder, "from": name})

    def finish(self, key: str, status: Status = "FINISHED") -> None:
        """End the run; `run` with the same key opens it again."""
        with self._changed:
            self._open.discard(key)
            self._put({"op": "finish", "key": key, "status": status})

    def register(
        self,
        key: str,
        model_name: str,
        artifact_folder: str,
        *,
        alias: str = "champion",
        tags: Mapping[str, str] = {},
        description: str = "",
        summary: str = "",
        timeout_s: float = 30.0,
    ) -> str | None:
        """Make the run's `artifact_folder` a version of `model_name` and move `alias` to it.

        One run's folder is one version: registering it again updates that version. `description` is markdown,
        `summary` a few letters like 'MAE 4.10'; with an alias both are shown on the pages of the model and
        of the experiment. Returns the version; None when MLflow refused it, when there is no MLflow, or when
        it waits in the spool (it is then done at replay).
        """
        event: Event = {"op": "register", "key": key, "model": model_name, "alias": alias}
        event |= {"folder": artifact_folder.strip("/"), "tags": {k: str(v) for k, v in tags.items()}}
        event |= {"description": description, "summary": summary, "id": uuid.uuid4().hex}
        self._put(event)
        self._wait(lambda: event["id"] in self._results, timeout_s)
        return self._results.get(event["id"])

    # -- state -------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Events that MLflow has not confirmed yet, with those of earlier sessions."""
        return sum(j.pending for j in [*self._before, self._journal] if j is not None)

    def run_id(self, key: str) -> str | None:
        """Return MLflow's id of the run, or None while it waits in the spool (`flush` first)."""
        return None if self._backend is None else self._backend.ids.get(key)

    def url(self, key: str) -> str | None:
        """Return the run's page; for SQLite the one that `ui_command` opens."""
        run_id = self.run_id(key)
        if self._backend is None or run_id is None:
            return None
        uri = self._backend.uri
        base = "http://127.0.0.1:5000" if uri.startswith("sqlite:") else _public(uri).rstrip("/")
        return f"{base}/#/experiments/{self._backend.experiment_id}/runs/{run_id}?workflowType=machine_learning"

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until all is in MLflow or the server counts as dead or slow and all is in the spool.

        Returns False when the time is up while events still flow; nothing is lost then either.
        """
        return self._wait(lambda: self.pending == 0, timeout_s) or self.spooling

    def close(self, status: Status = "FINISHED", timeout_s: float = 30.0) -> None:
        """End every open run with `status`, send what can be sent, and stop. Safe to call twice."""
        with self._changed:
            if self._closed or self._journal is None or self._thread is None:
                return
            for key in sorted(self._open, reverse=True):
                self.finish(key, status)
            self._closed = True
        atexit.unregister(self.close)
        self.flush(timeout_s)
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join(2.0)  # a call that hangs keeps its lock and dies with the process
        if self.pending:
            spool = self._journal.folder.parent
            _say(
                f"{self.pending} events wait in {spool} and are sent by the next run, or by: "
                f"python workflows/tracking.py replay store={shlex.quote(str(spool.parent))}"
            )

    # -- inside ------------------------------------------------------------------------------------------

    def _say_once(self, text: str) -> None:
        if text not in self._said and len(self._said) < 50:
            self._said.add(text)
            _say(text)

    def _put(self, event: Event) -> None:
        if self._journal is None:
            return None
        with self._changed:
            if self._closed:
                return self._say_once("events after close() are dropped")
            try:
                self._journal.append({"time": int(time.time() * 1000)} | event)
            except (OSError, TypeError, ValueError) as error:
                self._say_once(f"an event is lost, the spool cannot be written: {error}")
            self._look_at_clock()
            self._changed.notify_all()

    def _wait(self, done: Any, timeout_s: float) -> bool:
        if self._journal is None:
            return True
        end = time.monotonic() + timeout_s
        with self._changed:
            while not done():
                self._look_at_clock()
                if self.spooling or time.monotonic() > end:
                    return bool(done())
                self._changed.wait(0.2)
        return True

    def _look_at_clock(self) -> None:
        """Callers notice a hanging call: the thread that made it cannot."""
        if self._began is not None and time.monotonic() - self._began > DEADLINE_S:
            self._down(f"no answer for {DEADLINE_S:.0f} s")

    def _down(self, reason: str) -> None:
        with self._changed:
            if not self.spooling and self._backend is not None and self._journal is not None:
                self.spooling = True
                _say(
                    f"MLflow at {_public(self._backend.uri)} is dead or slow ({_clip(reason, 200)}); nothing "
                    f"waits for it, events are kept in {self._journal.folder.parent} and sent when it answers"
                )
            self._changed.notify_all()

    def _work(self) -> None:
        """The thread: send batches in order, back off while MLflow fails, leave when closed and empty."""
        assert self._backend is not None and self._journal is not None
        pause, failures, stubborn = 0.5, 0, 0
        while True:
            with self._changed:
                while self._backend.client is not None and not self._before and not self._journal.pending:
                    if self._stop:
                        self._journal.retire()
                        return
                    self._changed.wait(1.0)
            try:
                self._step(max(1, BATCH >> failures), give_up=stubborn >= 3)
            except Exception as error:  # whatever it was: training goes on, the event stays where it is
                failures += 1
                stubborn = stubborn + 1 if self._answers() else 0
                self._began = None
                if failures > 1:  # one lost connection is not worth a sentence
                    self._down(_cause(error))
                self._ready.set()
                with self._changed:
                    if not self._stop:
                        self._changed.wait_for(lambda: self._stop, pause)
                    if self._stop:
                        for journal in [*self._before, self._journal]:
                            journal.release() if journal.pending else journal.retire()
                        return
                pause = min(30.0, pause * 2)
            else:
                self._began, pause, failures, stubborn = None, 0.5, 0, 0
                self._ready.set()
                with self._changed:
                    if self.spooling:
                        self.spooling = False
                        address = _public(self._backend.uri)
                        _say(f"MLflow at {address} answers again; {self.pending} events to go")
                    self._changed.notify_all()

    def _answers(self) -> bool:
        """Tell a dead server from one that is well and fails on this one event."""
        try:
            assert self._backend is not None
            self._backend.client.get_experiment(self._backend.experiment_id)
            return True
        except Exception:
            return False

    def _step(self, limit: int, give_up: bool) -> None:
        """Connect, or send one group of events from the oldest journal that has some."""
        backend, own = self._backend, self._journal
        assert backend is not None and own is not None
        if backend.client is None:
            backend.prepare()
            self._began = time.monotonic()  # the import above is slow, but it is not the server
            return backend.connect()
        journal = self._before[0] if self._before else own
        batch = journal.read(limit)
        for op, group in groupby(batch, key=lambda pair: str(pair[0]["op"])):
            pairs = list(group)
            for part in [pairs] if op == "metrics" else [[pair] for pair in pairs]:
                self._began = time.monotonic()
                self._send(journal, part, give_up)
        if journal is not own and not journal.pending:
            for end in journal.left_open():
                with contextlib.suppress(Refused):
                    backend.apply([end], journal.folder)
            self._before.pop(0)
            journal.retire()

    def _send(self, journal: _Journal, pairs: list[tuple[Event, int]], give_up: bool) -> None:
        assert self._backend is not None
        events = [event for event, _ in pairs]
        result = None
        try:
            result = self._backend.apply(events, journal.folder)
        except Exception as error:
            busy = getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"  # e.g. a locked database
            if not isinstance(error, Refused) and (busy or not give_up):
                raise
            if len(pairs) > 1:
                for pair in pairs:  # find the one that MLflow does not take
                    self._send(journal, [pair], give_up)
                return
            refused = journal.folder.parent / "refused.jsonl"
            with open(refused, "a") as file:
                file.write(json.dumps({"error": str(error), "event": events[0]}) + "\n")
            self._say_once(f"MLflow refused an event, it is kept in {refused}: {_clip(str(error), 200)}")
        journal.commit(events, pairs[-1][1])
        with self._changed:
            journal.pending -= len(events)
            if "id" in events[0]:
                self._results[events[0]["id"]] = result
            self._changed.notify_all()


def replay(store: Path, uri: str | None = None, timeout_s: float = 600.0) -> int:
    """Send everything that earlier runs left in the spool of `store`; return how many events still wait.

    Journals of living processes are left to them. `uri` sends them elsewhere than where they were meant for.
    """
    spool = store.resolve() / "mlflow-spool"
    targets = []
    for journal in _Journal.leftovers(spool):
        about = journal.about()
        journal.release()
        if about not in targets:
            targets.append(about)
        if uri is not None and about["uri"] != uri:
            _write_atomic(journal.folder / "about.json", json.dumps(about | {"uri": uri}))
    left = 0
    for experiment, address in dict.fromkeys((t["experiment"], uri or t["uri"]) for t in targets):
        tracker = Tracker.open(address, experiment, store)
        waiting = tracker.pending
        tracker.flush(timeout_s)
        tracker.close(timeout_s=0.0)
        left += tracker.pending
        print(f"{waiting - tracker.pending} of {waiting} events sent to {_public(address)} ({experiment})")
    return left


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Send MLflow events that were kept while the server was slow or dead.",
        epilog="example: python workflows/tracking.py replay store=/data/hpe uri=http://127.0.0.1:5000",
    )
    parser.add_argument("command", choices=["replay"])
    parser.add_argument("settings", nargs="+", metavar="store=... [uri=...]")
    args = parser.parse_args(argv)
    settings = dict(word.partition("=")[::2] for word in args.settings)
    if unknown := set(settings) - {"store", "uri"}:
        parser.error(f"unknown setting {sorted(unknown)[0]!r}; there are store and uri")
    if not settings.get("store"):
        parser.error("store=<folder> is missing")
    if not Path(settings["store"]).is_dir():
        parser.error(f"there is no folder {settings['store']}")
    return 1 if replay(Path(settings["store"]), settings.get("uri")) else 0


if __name__ == "__main__":
    sys.exit(main())
