"""Progress lines for people: redrawn in place on a terminal; in a job log, a line at most every few seconds."""

import sys
import threading
from typing import Any

from tqdm import tqdm

LOG_EVERY_S = 5.0
DRAW_EVERY_S = 0.5
FIRST = "{desc}: {n:,.0f} of {total:,.0f} {unit} ({percentage:.0f} %)"
NEXT, LAST = FIRST + ", {rate_fmt}, {remaining} left{postfix}", FIRST + " in {elapsed}{postfix}"


class _Bar(tqdm):
    """One task. On a terminal tqdm draws it; in a log (`gui`: tqdm only counts) we print the same line."""

    monitor_interval = 0  # no thread that redraws

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        return print(self, file=self.fp, flush=True) if self.gui else super().display(msg, pos)

    def clear(self, nolock: bool = False) -> None:
        if not self.gui:
            super().clear(nolock)

    def close(self) -> None:
        self.clear()  # the cursor is at the start of a line then
        super().close()


class Console:
    """Shows tasks, several at once, and prints lines between them. Thread-safe; one instance a process."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
        self._live = bool(getattr(self._stream, "isatty", lambda: False)())
        self._bars: dict[str, _Bar] = {}
        self._lock = threading.Lock()
        self.stage = ""

    def enter(self, stage: str) -> None:
        """Progress lines from now on belong to this stage."""
        with self._lock:
            while self._bars:
                self._bars.popitem()[1].close()
            self.stage = stage

    def say(self, text: str) -> None:
        with self._lock:
            self._write(text)

    def _write(self, text: str) -> None:
        if self._live:
            _Bar.write(text, file=self._stream)  # above the tasks
        else:
            print(text, file=self._stream, flush=True)

    def progress(self, task: str, done: float, total: float, unit: str = "") -> None:
        """`task` has done so much of `total`; `unit` may go on after a comma: "epochs, validation MAE 4.10"."""
        unit, _, more = unit.partition(", ")
        with self._lock:
            if task in self._bars and done < self._bars[task].n:  # it begins anew
                self._bars.pop(task).close()
            if task not in self._bars:
                self._bars[task] = self._begin(task, done, total, unit)
            bar = self._bars[task]
            bar.total = max(total, done)
            bar.bar_format = NEXT if done < total else LAST
            bar.set_postfix_str(more, refresh=False)
            if done < total:
                bar.update(done - bar.n)
            else:
                bar.n = done
                self._bars.pop(task).close()
                self._write(str(bar))

    def _begin(self, task: str, done: float, total: float, unit: str) -> _Bar:
        bar = _Bar(
            desc=f"[{self.stage}] {task}" if self.stage else task,
            initial=done,
            total=total,
            unit=unit,
            bar_format=FIRST,
            file=self._stream,
            gui=not self._live,
            mininterval=DRAW_EVERY_S if self._live else LOG_EVERY_S,
            miniters=0,
            smoothing=0,  # the rate is the mean since the task began
            dynamic_ncols=True,
            leave=False,
        )
        if done < total:
            bar.refresh()
        return bar
