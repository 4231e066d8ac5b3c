"""Laws of the way from workers to the driver: nothing is lost, nothing twice, in order, and nobody waits."""

import threading
from typing import Any

import pytest

from workflows.tracking.progress import Board, Event, LocalReporter, Pump, Reporter, handler


class Listener:
    """Notes which method was called with what."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.heard.append((name, args))


def test_lines_and_progress_go_to_the_console_and_all_else_to_mlflow():
    console, live = Listener(), Listener()
    reporter = LocalReporter(handler(console, live))
    reporter.progress("resnet", 1, 2, "faces")
    reporter.say("hello")
    reporter.started("a/1", "a", "a", {"lr": 1})
    reporter.metrics("a/1", {"loss": 1.0}, 3, 5)
    reporter.ended("a/1")
    assert console.heard == [("progress", ("resnet", 1.0, 2.0, "faces")), ("say", ("hello",))]
    assert live.heard == [
        ("started", ("a/1", "a", "a", {"lr": 1})),
        ("metrics", ("a/1", {"loss": 1.0}, 3, 5)),
        ("ended", ("a/1", "FINISHED")),
    ]
    Reporter().say("to nobody")


class Remote:
    """An actor's method, in this process."""

    def __init__(self, method: Any) -> None:
        self.remote = method


class Actor:
    def __init__(self) -> None:
        board = Board()
        self.put, self.drain = Remote(board.put), Remote(board.drain)


def test_every_event_is_handled_once_and_in_order_though_the_board_answers_late(monkeypatch: pytest.MonkeyPatch):
    import ray

    actor, heard, asked = Actor(), list[Event](), [0]

    def get(answer: Any, timeout: float) -> Any:
        asked[0] += 1
        if asked[0] % 3:  # two of three times the machine is too busy
            raise ray.exceptions.GetTimeoutError
        return answer

    monkeypatch.setattr(ray, "get", get)
    pump = Pump(actor, heard.append, every_s=0.001)
    reporter = Reporter(actor)
    for number in range(300):
        reporter.say(str(number))
    pump.close()
    for _ in range(3):
        assert pump.flush()
    assert [body for _, body in heard] == [str(number) for number in range(300)]
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_a_board_that_is_gone_ends_progress_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    import ray

    def get(answer: Any, timeout: float) -> Any:
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray, "get", get)
    pump = Pump(Actor(), lambda event: None, every_s=0.001)
    pump._thread.join(10)
    assert not pump._thread.is_alive()
    pump.close()
