"""A reporter without Ray."""

from collections.abc import Callable

from workflows.tracking.progress import Event, Reporter


class LocalReporter(Reporter):
    """A reporter inside the driver's own process: events go straight to a function."""

    def __init__(self, sink: Callable[[Event], None]) -> None:
        self._sink = sink

    def _send(self, event: Event) -> None:
        self._sink(event)
