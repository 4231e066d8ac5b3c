"""Live progress and metrics from anywhere in the cluster to the driver.

Workers call a `Reporter` (small, picklable); it sends to one `Board` actor without waiting. The driver drains the
board a few times a second, prints progress lines (stage, rate, what is left) and hands metrics to the tracker. So
only the driver talks to MLflow, a slow tracker cannot stall a worker, and a worker on any node needs no address.

On a terminal the line of a task is redrawn in place; in a job log a line is printed at most every few seconds.
"""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = tuple[str, Any]
LOG_EVERY_S = 5.0
DRAW_EVERY_S = 0.5


def now_ms() -> int:
    return int(time.time() * 1000)


class Reporter:
    """Sends progress and metrics; made by the driver, copied into workers. Never raises and never waits."""

    def __init__(self, actor: Any = None) -> None:
        self._actor = actor

    def _send(self, event: Event) -> None:
        if self._actor is not None:
            self._actor.put.remote(event)

    def progress(self, task: str, done: float, total: float, unit: str = "") -> None:
        """`task` has done so much of `total`; the driver works out rate and time left."""
        self._send(("progress", (task, float(done), float(total), unit, time.time())))

    def metrics(self, key: str, values: Mapping[str, float], step: int, when_ms: int | None = None) -> None:
        """Figures of the MLflow run `key` at a step; sent again with the same time they count once."""
        self._send(("metrics", (key, dict(values), step, now_ms() if when_ms is None else when_ms)))

    def started(self, key: str, name: str, parent: str, params: Mapping[str, Any]) -> None:
        """A child run begins (or goes on)."""
        self._send(("started", (key, name, parent, dict(params))))

    def ended(self, key: str, status: str = "FINISHED") -> None:
        self._send(("ended", (key, status)))

    def say(self, text: str) -> None:
        """One line for the user."""
        self._send(("say", text))

    def artifact(self, key: str, path: Path, folder: str = "") -> None:
        """A file or folder (on storage that the driver sees) for the MLflow run `key`."""
        self._send(("artifact", (key, str(path), folder)))

    def register(
        self,
        key: str,
        model_name: str,
        artifact_folder: str,
        alias: str,
        contest: tuple[str, float],
        description: str,
        tags: Mapping[str, str],
    ) -> None:
        """A registry version from the run's artifacts; it gets the alias unless the holder won the same contest."""
        self._send(("register", (key, model_name, artifact_folder, alias, contest, description, dict(tags))))


class LocalReporter(Reporter):
    """A reporter inside the driver's own process: events go straight to a function."""

    def __init__(self, sink: Callable[[Event], None]) -> None:
        super().__init__()
        self._sink = sink

    def _send(self, event: Event) -> None:
        self._sink(event)


class Board:
    """The actor: a list of events that the driver empties."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)

    def drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events


@dataclass
class _Task:
    began: float
    first: float
    done: float
    total: float
    unit: str
    shown: float = 0.0
    last: float = field(default=0.0)


class Console:
    """Prints progress lines for people (terminal) and for logs. One instance a process."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
        self._live = bool(getattr(self._stream, "isatty", lambda: False)())
        self._tasks: dict[str, _Task] = {}
        self._drawn = False
        self._lock = threading.Lock()
        self.stage = ""

    def enter(self, stage: str) -> None:
        """Progress lines from now on belong to this stage."""
        with self._lock:
            self.stage = stage
            self._tasks.clear()

    def say(self, text: str) -> None:
        with self._lock:
            self._wipe()
            print(text, file=self._stream, flush=True)

    def progress(self, task: str, done: float, total: float, unit: str, when: float) -> None:
        with self._lock:
            entry = self._tasks.get(task)
            if entry is None or done < entry.done:
                entry = self._tasks[task] = _Task(when, done, done, total, unit)
            entry.done, entry.total, entry.unit, entry.last = done, total, unit, when
            finished = done >= total
            due = time.monotonic() - entry.shown >= (DRAW_EVERY_S if self._live else LOG_EVERY_S)
            if due or finished:
                entry.shown = time.monotonic()
                self._show(self._line(task, entry), finished)
            if finished:
                del self._tasks[task]

    def _line(self, task: str, entry: _Task) -> str:
        seconds = entry.last - entry.began
        rate = (entry.done - entry.first) / seconds if seconds > 0.2 else 0.0
        left = f", {clock((entry.total - entry.done) / rate)} left" if rate > 0 and entry.done < entry.total else ""
        speed = f" at {rate:,.0f}/s" if rate >= 10 else f" at {rate:.2g}/s" if rate > 0 else ""
        prefix = f"[{self.stage}] " if self.stage else ""
        share = 100 * entry.done / entry.total if entry.total else 100
        return f"{prefix}{task}: {entry.done:,.0f} of {entry.total:,.0f} {entry.unit} ({share:.0f} %){speed}{left}"

    def _show(self, line: str, finished: bool) -> None:
        if not self._live:
            print(line, file=self._stream, flush=True)
            return
        self._wipe()
        print(line[:150], end="\n" if finished else "", file=self._stream, flush=True)
        self._drawn = not finished

    def _wipe(self) -> None:
        if self._drawn:
            print("\r\x1b[2K", end="", file=self._stream)
            self._drawn = False


def clock(seconds: float) -> str:
    """75 -> '1:15'."""
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


class Pump:
    """Drains the board in a thread of the driver and feeds console and tracker, until closed."""

    def __init__(self, actor: Any, handle: Callable[[Event], None], every_s: float = 0.5) -> None:
        self._actor, self._handle, self._every_s = actor, handle, every_s
        self._stop = threading.Event()
        self._draining = threading.Lock()
        self._pending: Any = None  # a drain that has not answered yet: it has emptied the board, or will
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            if not self.flush():
                return

    def flush(self) -> bool:
        """Take what is on the board now; False when the board is gone."""
        import ray

        with self._draining:  # events are handled in the order in which they came
            try:
                self._pending = self._pending or self._actor.drain.remote()
                events = ray.get(self._pending, timeout=20)
                self._pending = None
            except ray.exceptions.GetTimeoutError:
                return True  # the machine is busy; the next call waits for the same answer
            except ray.exceptions.RayError:
                return False  # the board's node is gone: progress ends, the work does not
            for event in events:
                self._handle(event)
        return True

    def close(self) -> None:
        """Stop the thread and take what is still on the board."""
        self._stop.set()
        self._thread.join(timeout=25)
        self.flush()


def start_board() -> tuple[Any, Reporter]:
    """The board actor (no CPU of its own) and a reporter to it. On the driver's node, so that losing another costs it
    nothing."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    return actor, Reporter(actor)
