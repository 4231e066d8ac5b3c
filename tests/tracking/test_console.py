"""Laws of the console: what a terminal shows in the end, how much a log gets, and rates and times that add up."""

import io
import re

import pytest

from workflows.tracking import console as showing
from workflows.tracking.console import Console


class Terminal(io.StringIO):
    """A screen: what was written, with returns, line feeds and moves upward obeyed."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for piece in re.findall(r"\r|\n|\x1b\[A|[^\r\n\x1b]+", self.getvalue()):
            if piece == "\r":
                column = 0
            elif piece == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif piece == "\x1b[A":
                row -= 1
            else:
                rows[row] = rows[row][:column].ljust(column) + piece + rows[row][column + len(piece) :]
                column += len(piece)
        return [line.rstrip() for line in rows if line.strip()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the console, for the test to move."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_terminal_shows_each_task_once_below_what_was_said(clock):
    screen = Terminal()
    console = Console(screen)
    console.enter("teachers 2/7")
    for step in range(9):
        console.progress("resnet", step * 10, 100, "faces")
        console.progress("botnet", step, 20, f"epochs, validation MAE {9 - step}.10")
        if step in (3, 5):
            console.say(f"said at {step}")
        clock[0] += 1
    assert screen.lines == [
        "said at 3",
        "said at 5",
        "[teachers 2/7] resnet: 80 of 100 faces (80 %), 10.00faces/s, 00:02 left",
        "[teachers 2/7] botnet: 8 of 20 epochs (40 %),  1.00epochs/s, 00:12 left, validation MAE 1.10",
    ]
    console.progress("resnet", 100, 100, "faces")
    console.enter("labels 3/7")
    console.say("labels begin")
    assert len(screen.lines) == 4 and screen.lines[-1] == "labels begin"
    assert screen.lines[2].startswith("[teachers 2/7] resnet: 100 of 100 faces (100 %)"), "a finished task stays"


def test_a_log_gets_a_line_now_and_then_and_no_control_letters(clock):
    log = io.StringIO()
    console = Console(log)
    for step in range(100):  # a hundred seconds
        console.progress("resnet", step * 10, 1000, "faces")
        console.progress("botnet", step, 1000, "faces")
        clock[0] += 1
    console.say("  indented")
    console.progress("resnet", 1000, 1000, "faces")
    text = log.getvalue()
    assert not re.search(r"[\r\x1b]", text)
    lines = text.splitlines()
    assert lines[0].startswith("resnet: 0 of 1,000 faces (0 %)"), "a task is seen when it begins"
    assert sum(line.startswith("botnet") for line in lines) == 100 / showing.LOG_EVERY_S
    assert lines[-2:] == ["  indented", "resnet: 1,000 of 1,000 faces (100 %) in 01:40"]


def test_rate_and_time_left_start_where_the_task_was_first_seen(clock):
    log = io.StringIO()
    console = Console(log)
    console.progress("resumed", 500, 1000, "faces")
    clock[0] += 10
    console.progress("resumed", 600, 1000, "faces")
    clock[0] += 10
    console.progress("resumed", 620, 1000, "faces")
    clock[0] += 10
    console.progress("resumed", 100, 1000, "faces")  # begins anew
    clock[0] += 10
    console.progress("resumed", 101, 1000, "faces")
    said = [line.partition("%)")[2].removeprefix(", ") for line in log.getvalue().splitlines()]
    assert said[:3] == ["", "10.00faces/s, 00:40 left", " 6.00faces/s, 01:03 left"]
    assert said[3:] == ["", "10.00s/faces, 2:29:50 left"]


def test_odd_totals_are_shown():
    log = io.StringIO()
    console = Console(log)
    console.progress("nothing", 0, 0)
    console.progress("more than all", 7, 5, "frames")
    console.progress("fractions", 0.5, 1.0, "steps, drawing")
    said = [line.partition(" (")[0].strip() for line in log.getvalue().splitlines()]
    assert said == ["nothing: 0 of 0", "more than all: 7 of 7 frames", "fractions: 0 of 1 steps"]
