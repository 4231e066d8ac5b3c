"""Timing in turns, and the table of what was timed.

The two sides of a comparison run in turn (A B, B A, A B ...), so that a busy machine slows both. What counts is the
ratio of each pair, as median and range over the repeats.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2

from hpe_core.system.packages import version_of
from hpe_core.system.processor import cpu_name
from hpe_core.training.latency import torch_threads
from workflows.engine.stage import StageFailed
from workflows.report.markdown import markdown_table

PACKAGES = {"torch": "torch", "ray": "ray", "opencv": "opencv-python-headless", "pyarrow": "pyarrow", "numpy": "numpy"}
Figures = dict[str, list[float]]  # a figure's name -> its value in each repeat
Work = Callable[[int], int]  # number of the repeat -> how many faces, windows ... were done
Side = Callable[[int], Mapping[str, float]]  # number of the repeat -> figures of one side


@dataclass(frozen=True)
class Row:
    """One line of the table. `ours` and `rival` hold one value a repeat; the ratio is ours / rival, pair by pair."""

    name: str
    unit: str
    ours: list[float]
    rival: list[float]
    rival_is: str
    counted: str

    @property
    def ratio(self) -> dict[str, float]:
        ratios = [a / b for a, b in zip(self.ours, self.rival, strict=True)]
        return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}

    @property
    def ratio_text(self) -> str:
        median, low, high = map(number, self.ratio.values())
        return f"{median} ({low}..{high})"


def interleaved(sides: Sequence[Side], repeat: int, *, warm: bool = True) -> Figures:
    """Every side `repeat` times in turn, the order reversed each time; a first, uncounted turn warms caches."""
    if warm:
        for side in sides:
            side(-1)
    found: Figures = {}
    for turn in range(repeat):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            for name, value in side(turn).items():
                found.setdefault(name, []).append(value)
    return found


def rate(name: str, work: Work) -> Side:
    """A side whose figure is what `work` returns, divided by the seconds that it took."""

    def timed(turn: int) -> dict[str, float]:
        began = time.perf_counter()
        count = work(turn)
        return {name: count / (time.perf_counter() - began)}

    return timed


def compared(name: str, unit: str, ours: Work, rival: Work, repeat: int, rival_is: str, counted: str) -> Row:
    """The row of two rates."""
    found = interleaved([rate("ours", ours), rate("rival", rival)], repeat)
    return Row(name, unit, found["ours"], found["rival"], rival_is, counted)


def rows_of(found: Figures, lines: Sequence[tuple[str, str, str, str, str, str]]) -> list[Row]:
    """Rows from lines of (name, unit, our figure, the rival's figure, what the rival is, what is counted)."""
    return [Row(name, unit, found[ours], found[rival], *words) for name, unit, ours, rival, *words in lines]


def must_agree(same: bool, what: str) -> None:
    """A ratio between sides that did different work means nothing. Raises StageFailed."""
    if not same:
        raise StageFailed(f"the two sides of a benchmark did not do the same work: {what}")


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for OpenCV and torch in this process."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with torch_threads(1):
            yield
    finally:
        cv2.setNumThreads(before)


def number(value: float) -> str:
    """Three figures: 12,300; 456; 7.89; 0.0123."""
    return f"{round(value, 3 - len(str(int(value)))):,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(rows: Sequence[Row]) -> str:
    """The table: medians, and the ratio's median with its range."""
    lines = []
    for row in rows:
        ours, rival = (f"{number(statistics.median(side))} {row.unit}" for side in (row.ours, row.rival))
        counted = f"{row.counted}; {len(row.ours)} repeats"
        lines.append((row.name, ours, f"{rival} ({row.rival_is})", row.ratio_text, counted))
    return markdown_table("lllll", ["benchmark", "ours", "rival", "ratio", "what is counted"], lines)


def machine() -> dict[str, Any]:
    """Cores, processor and versions: what a reader needs to judge the rates. No name of the machine."""
    versions = {name: version_of(package) or "unknown" for name, package in PACKAGES.items()}
    versions = {"python": platform.python_version(), **versions}
    return {"cores": os.cpu_count(), "cpu": cpu_name() or platform.machine(), "versions": versions}


def machine_line(report: Mapping[str, Any]) -> str:
    about = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    load = f"load {report['load'][0]:.1f} before and {report['load'][1]:.1f} after"
    return f"{about['cores']} cores, {about['cpu']}; {versions}; {load}; {report['seconds']:.0f} s in all."
