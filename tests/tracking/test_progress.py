"""Laws of the way from workers to the driver: nothing is lost, nothing twice, in order, and nobody waits."""

import pickle
import threading
from typing import Any
from unittest.mock import Mock

from tests.tracking.places import until
from workflows.tracking.progress import Board, Event, Pump, Reporter


def test_a_reporter_to_nobody_travels_to_workers():
    Reporter().say("to nobody")
    assert pickle.loads(pickle.dumps(Reporter())) is not None


class Remote:
    """An actor's method, in this process."""

    def __init__(self, method: Any) -> None:
        self.remote = method


class Actor:
    def __init__(self) -> None:
        board = Board()
        self.put, self.drain = Remote(board.put), Remote(board.drain)


def test_every_event_is_handled_once_and_in_order_though_the_board_answers_late(monkeypatch):
    import ray

    actor, heard, asked = Actor(), list[Event](), list[Any]()

    def get(answer: Any, timeout: float) -> Any:
        asked.append(answer)
        if len(asked) % 3 and len(asked) < 30:  # two of three times the machine is too busy
            raise ray.exceptions.GetTimeoutError
        return answer

    monkeypatch.setattr(ray, "get", get)
    pump = Pump(actor, heard.append, every_s=0.001)
    reporter = Reporter(actor)
    for number in range(300):
        reporter.say(str(number))
    until(lambda: len(asked) > 40)
    pump.close()
    pump = Pump(actor, heard.append, every_s=60)
    reporter.say("300")
    pump.close()
    assert [text for _, (text,) in heard] == [str(number) for number in range(301)], "the last one is not left behind"
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_a_board_that_is_gone_ends_progress_and_nothing_else(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "get", Mock(side_effect=ray.exceptions.ActorDiedError))
    pump = Pump(Actor(), lambda event: None, every_s=0.001)
    pump._thread.join(10)
    assert not pump._thread.is_alive()
    pump.close()
