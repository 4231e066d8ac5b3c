"""Live progress and figures from anywhere in the cluster to the driver.

Workers call a `Reporter` (small, picklable); it sends to one `Board` actor without waiting. The driver drains the board
a few times a second. So a worker on any node needs no address, and nothing that the driver does can stall it.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from workflows.tracking.facts import Status

Event = tuple[str, tuple[Any, ...]]  # a method of the console or of `Live`, and what it is called with


def now_ms() -> int:
    return int(time.time() * 1000)


class Reporter:
    """Sends progress and figures; made by the driver, copied into workers. Never raises and never waits."""

    def __init__(self, actor: Any = None) -> None:
        self._actor = actor

    def _send(self, event: Event) -> None:
        if self._actor is not None:
            self._actor.put.remote(event)

    def progress(self, task: str, done: float, total: float, unit: str = "") -> None:
        """`task` has done so much of `total`; the console works out rate and time left."""
        self._send(("progress", (task, float(done), float(total), unit)))

    def say(self, text: str) -> None:
        """One line for the user."""
        self._send(("say", (text,)))

    def metrics(self, key: str, values: Mapping[str, float], step: int, when_ms: int) -> None:
        """Figures of the run `key` at a step. What the stage returns says them with the same time: they count once."""
        self._send(("metrics", (key, dict(values), step, when_ms)))

    def started(self, key: str, name: str, parent: str, params: Mapping[str, Any]) -> None:
        """A child run begins (or goes on)."""
        self._send(("started", (key, name, parent, dict(params))))

    def ended(self, key: str, status: Status = "FINISHED") -> None:
        self._send(("ended", (key, status)))


class Board:
    """The actor: a list of events that the driver empties."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)

    def drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events


class Pump:
    """Drains the board in a thread of the driver and hands each event to `handle`, until closed."""

    def __init__(self, actor: Any, handle: Callable[[Event], None], every_s: float = 0.5) -> None:
        self._actor, self._handle, self._every_s = actor, handle, every_s
        self._stop, self._draining = threading.Event(), threading.Lock()
        self._pending: Any = None  # a drain that has not answered yet: it has emptied the board, or will
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s) and self.flush():
            pass

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
    """The board actor, which takes no CPU, and a reporter to it. On the driver's node: losing another costs nothing."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    return actor, Reporter(actor)
