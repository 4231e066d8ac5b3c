"""A store on a server."""

from collections.abc import Iterator

import pytest

import workflows.storage.lease


@pytest.fixture
def store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a store, with a lease whose clock runs fast."""
    for name, seconds in (("BEAT_S", 0.2), ("STALE_S", 1.5), ("SETTLE_S", 0.05)):
        monkeypatch.setattr(workflows.storage.lease, name, seconds)
    yield f"{bucket}/runs"
