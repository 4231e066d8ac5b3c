"""MLflow bookkeeping that can never stop or stall training.

Only the driver talks to MLflow. Every call on a `Tracker` appends one JSON line to a journal,
`<store>/mlflow-spool/<session>/events.jsonl`, and returns; a daemon thread reads the journal and talks to
MLflow. The journal is the spool: when the server is slow or dead, when SQLite is locked, or when the driver
is killed, the lines that MLflow has not confirmed lie there, in order, and the next `Tracker.open` on the
store (or `replay`, below) sends them first. Good days and bad ones take one path, so the bad one is tested
all day.

    python workflows/tracking.py replay store=/data/hpe [uri=http://127.0.0.1:5000]

Exactly once. The byte offset of the confirmed lines is renamed into place after each batch (`spool.py`), so a crash
resends at most one batch, and every event may be applied twice without a trace (`mlflow_backend.py`).

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

import atexit
import contextlib
import dataclasses
import json
import re
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from hpe_core.errors import check, nearest
from hpe_core.system.files import write_atomic
from workflows.tracking.backend import (
    DEADLINE_S,
    Backend,
    Refused,
    Registered,
    clean_name,
    clip,
    git_commit,
    public,
    say,
)
from workflows.tracking.spool import Event, Journal

__all__ = ["Tracker", "flatten", "git_commit", "replay", "ui_command"]

Status = Literal["FINISHED", "FAILED", "KILLED"]
OPEN_WAIT_S = 5.0  # what `open` waits for a server at most
BATCH = 256  # events read at once; halved after each failure, so a slow server still gets them all


def _cause(error: BaseException) -> str:
    """Return what lies at the bottom: MLflow wraps 'connection refused' in 500 letters of other errors."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return " ".join(f"{type(error).__name__}: {error}".split())


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
            flat[clean_name(name)] = clip(json.dumps(value, default=str), 6000)
        else:
            flat[clean_name(name)] = clip(str(value), 6000)
    return flat


def ui_command(uri: str) -> str:
    """Return the command that shows the store in a browser; for a server, its address; '' for `none`."""
    if uri.startswith("sqlite:"):
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)} --port 5000"
    return "" if uri in ("", "none") else public(uri)


class Tracker:
    """Writes runs to MLflow from one process. Thread-safe; no method waits for MLflow or raises for it.

    Use it as a context manager: an exception ends every open run as FAILED (Ctrl-C: KILLED). A process that
    ends without `close` counts as failed; the runs of one that was shot are ended as KILLED by the next
    `open` or `replay`, unless they are resumed.
    """

    def __init__(self, backend: Backend | None, journal: Journal | None, before: list[Journal]) -> None:
        self._backend, self._journal, self._before = backend, journal, before
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._began: float | None = None  # when the call to MLflow that is going on started
        self._open: set[str] = set()
        self._said: set[str] = set()
        self._results: dict[str, Registered | None] = {}
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
        backend = Backend(uri, experiment, store, artifact_root and artifact_root.resolve())
        before = []
        for old in Journal.leftovers(spool):
            if old.about() == {"uri": uri, "experiment": experiment}:
                before.append(old)
            else:
                old.release()
        self = cls(backend, Journal.create(spool, {"uri": uri, "experiment": experiment}), before)
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
            self._put({"op": "run", "key": key, "name": clip(name, 250), "parent": parent, "tags": tags})
        return key

    def params(self, key: str, params: Mapping[str, object]) -> None:
        """Log nested `params` flattened with dots; a value that a resumed run changes becomes a tag."""
        self._put({"op": "params", "key": key, "params": flatten(params)})

    def metrics(self, key: str, metrics: Mapping[str, float], step: int, timestamp_ms: int | None = None) -> None:
        """Log numbers at `step`; NaN stays NaN, inf becomes NaN, both leave a tag `nonfinite.<metric>`."""
        numbers = {}
        for name, value in metrics.items():
            try:
                numbers[clean_name(name)] = float(value)
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
        contest: tuple[str, float] | None = None,
        timeout_s: float = 30.0,
    ) -> Registered | None:
        """Make the run's `artifact_folder` a version of `model_name`, and let it win `alias`.

        One run's folder is one version: registering it again updates that version. `description` is markdown,
        `summary` a few letters like 'MAE 4.10'; the alias' holder shows both on the pages of the model and
        of the experiment. `contest` is (what was measured on, error): a holder of the same contest with a smaller error
        keeps the alias; without one, or from another contest, the new version takes it. The alias `candidate` always
        goes to the new version. Returns None when MLflow refused it, when there is no MLflow, or when
        it waits in the spool (it is then done at replay).
        """
        event: Event = {"op": "register", "key": key, "model": model_name, "alias": alias, "contest": contest}
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
        base = "http://127.0.0.1:5000" if uri.startswith("sqlite:") else public(uri).rstrip("/")
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
            say(
                f"{self.pending} events wait in {spool} and are sent by the next run, or by: "
                f"python workflows/tracking.py replay store={shlex.quote(str(spool.parent))}"
            )

    # -- inside ------------------------------------------------------------------------------------------

    def _say_once(self, text: str) -> None:
        if text not in self._said and len(self._said) < 50:
            self._said.add(text)
            say(text)

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
                say(
                    f"MLflow at {public(self._backend.uri)} is dead or slow ({clip(reason, 200)}); nothing "
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
                        address = public(self._backend.uri)
                        say(f"MLflow at {address} answers again; {self.pending} events to go")
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

    def _send(self, journal: Journal, pairs: list[tuple[Event, int]], give_up: bool) -> None:
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
            self._say_once(f"MLflow refused an event, it is kept in {refused}: {clip(str(error), 200)}")
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
    for journal in Journal.leftovers(spool):
        about = journal.about()
        journal.release()
        if about not in targets:
            targets.append(about)
        if uri is not None and about["uri"] != uri:
            write_atomic(journal.folder / "about.json", json.dumps(about | {"uri": uri}))
    left = 0
    for experiment, address in dict.fromkeys((t["experiment"], uri or t["uri"]) for t in targets):
        tracker = Tracker.open(address, experiment, store)
        waiting = tracker.pending
        tracker.flush(timeout_s)
        tracker.close(timeout_s=0.0)
        left += tracker.pending
        print(f"{waiting - tracker.pending} of {waiting} events sent to {public(address)} ({experiment})")
    return left


HELP = """Send MLflow events that were kept while the server was slow or dead.

    python workflows/tracking.py replay store=runs                            where they were meant for
    python workflows/tracking.py replay store=runs uri=http://127.0.0.1:5000  to another server
"""


def main(argv: Sequence[str] | None = None) -> int:
    from workflows.engine.commandline import CommandParser
    from workflows.engine.config import EXIT_BAD_INPUT, EXIT_FAILED

    codes = {0: "everything is sent", EXIT_FAILED: "some of it still waits", EXIT_BAD_INPUT: "bad input"}
    parser = CommandParser(
        HELP, "keys: store=FOLDER of the run; uri=ADDRESS of a server, where it is another one", codes
    )
    parser.add_argument("words", nargs="*", metavar="replay | key=value", help="the verb, then keys")
    words = list(parser.parse_intermixed_args(argv).words)
    check(words[:1] == ["replay"], "say what is to be done: replay store=FOLDER")
    settings = dict(word.partition("=")[::2] for word in words[1:])
    for key in settings:
        check(key in ("store", "uri"), f"unknown key {key}{nearest(key, ['store', 'uri'])}")
    check(bool(settings.get("store")), "key store is missing: store=FOLDER of the run")
    check(Path(settings["store"]).is_dir(), f"store={settings['store']}: there is no such folder")
    return EXIT_FAILED if replay(Path(settings["store"]), settings.get("uri")) else 0


if __name__ == "__main__":
    from workflows.engine.config import guarded

    sys.exit(guarded(main))
