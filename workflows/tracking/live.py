"""What a run shows in MLflow while it works. Best effort: whatever MLflow misses, the store says (`sync.py`)."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpe_core.errors import say as to_stderr
from workflows.tracking.facts import RunFacts, Status, points_of
from workflows.tracking.progress import now_ms
from workflows.tracking.server import check_address, public
from workflows.tracking.sync import Session, cause

ROOM = 2000  # events that wait at most; more are dropped
MEND = "full_pipeline.py sync"
PAUSE_S = 30.0  # after a failure MLflow is left alone for so long


class Live:
    """A thread that talks to MLflow, so that nobody waits for it: no method blocks (but `close`) or raises.

    `facts` reads the store; MLflow is brought up to it at the start, after each `sync` and in the end. Figures of runs
    that have not ended are sent as they come, with one try, and dropped while MLflow is dead or slow, which is said
    once. Raises SpecError for an address not absolute.
    """

    def __init__(
        self,
        store: Path,
        uri: str,
        experiment: str,
        facts: Callable[[], Sequence[RunFacts]],
        *,
        say: Callable[[str], None] = to_stderr,
    ) -> None:
        check_address(uri)
        self._place, self._facts, self._say = (store, uri, experiment), facts, say
        self._events: queue.Queue[Callable[[Session], None]] = queue.Queue(ROOM)
        self._closing, self._ended = threading.Event(), threading.Event()
        self._behind, self._said = "", set[str]()
        if uri != "none":
            threading.Thread(target=self._work, name="mlflow", daemon=True).start()

    def started(self, key: str, name: str, parent: str, params: Mapping[str, Any]) -> None:
        """Show a network or a trial whose stage has not ended."""
        now = now_ms()
        self._put(lambda session: session.begin(RunFacts(key, name, parent, started_ms=now, params=params)))

    def metrics(self, key: str, values: Mapping[str, float], step: int, when_ms: int) -> None:
        """Figures of a run that was shown. The store has to say them with the same time, so that they count once."""
        self._put(lambda session: session.log(session.run_id(key), points_of(values, step, when_ms)))

    def ended(self, key: str, status: Status) -> None:
        self._put(lambda session: session.end(key, status))

    def sync(self) -> None:
        """The store has news: a stage has begun or ended."""
        self._put(self._sync)

    def close(self, deadline_s: float = 30.0) -> str:
        """Bring MLflow up to the store within the deadline; returns a sentence to print where that failed, or ''."""
        if self._place[1] == "none":
            return ""
        self._closing.set()
        self._put(self._sync)  # wakes the thread
        behind = self._behind if self._ended.wait(deadline_s) else f"no answer in {deadline_s:g} s"
        return f"MLflow is behind ({behind}): `{MEND}` brings it up" if behind else ""

    def _put(self, event: Callable[[Session], None]) -> None:
        try:
            if self._place[1] != "none":
                self._events.put_nowait(event)
        except queue.Full:
            self._complain("it is slow")

    def _say_once(self, about: str, text: str) -> None:
        if about not in self._said:
            self._said.add(about)
            self._say(text)

    def _complain(self, why: str) -> None:
        trouble = f"MLflow at {public(self._place[1])} is dead or slow ({why})"
        self._say_once("trouble", f"{trouble}; nothing waits for it, the next run or `{MEND}` brings it up")

    def _work(self) -> None:
        session: Session | None = None
        event: Callable[[Session], None] | None = None
        quiet_until = 0.0
        while True:
            last = self._closing.is_set()
            if last or time.monotonic() >= quiet_until:
                try:
                    if session is None or last:  # in the end what waits does not matter: the store says it
                        session = session or Session(*self._place)
                        self._sync(session)
                    if event is not None and not last:
                        event(session)
                except Exception as error:
                    session, quiet_until, self._behind = None, time.monotonic() + PAUSE_S, cause(error)
                    self._complain(self._behind)
            if last:
                return self._ended.set()
            event = self._events.get()

    def _sync(self, session: Session) -> None:
        done = session.sync(self._facts())
        self._behind = "; ".join(f"it does not take all of {key}: {why}" for key, why in done.refused.items())
        for sentence in done.registered:
            self._say_once(sentence, sentence)
