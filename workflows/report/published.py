"""What the papers print (`published.yaml`), typed, and their rows beside ours in one table.

A row of another training set, test set, filter, box or split is marked. Errors are mean absolute errors in degrees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hpe_core.datasets.protocols import Protocol, listed, protocol_named
from hpe_core.errors import check
from hpe_core.geometry.rotation import ANGLE_NAMES
from hpe_core.spec.serde import build
from workflows.engine.results import Row

FILE = Path(__file__).with_name("published.yaml")
OURS = "ours"  # the source of our own rows
ROUNDING = 0.02  # degrees by which a printed mean may miss the mean of its printed angles


@dataclass(frozen=True)
class PublishedRow:
    """One method on one test set. None: not printed; in `train` and `protocol`: not stated."""

    source: str
    table: str
    test: str  # the name of its reader, like train
    method: str
    train: str | None = None
    protocol: str | None = None
    pitch: float | None = None
    yaw: float | None = None
    roll: float | None = None
    mae: float | None = None
    boxes: str | None = None  # where they are not known to be the protocol's
    split: str | None = None  # the same
    printed_mean_differs: bool = False

    def __post_init__(self) -> None:
        known = [value for value in (self.pitch, self.yaw, self.roll, self.mae) if value is not None]
        check(bool(known) and all(0 < e < 180 for e in known), f"errors lie between 0 and 180 degrees, got {known}")
        if self.protocol is not None:
            protocol_named(self.protocol)
        if len(known) == 4:
            mean = sum(known[:3]) / 3
            said = f"mae is {self.mae}, its angles' mean {mean:.3f}, printed_mean_differs {self.printed_mean_differs}"
            check((abs(mean - known[3]) > ROUNDING + 1e-9) == self.printed_mean_differs, said)


@dataclass(frozen=True)
class TableRow:
    """A line of a report: ours or published. `mark` is empty where it was measured under the protocol."""

    name: str
    source: str
    test: str
    mark: str
    pitch: float | None
    yaw: float | None
    roll: float | None
    mae: float | None


@cache
def published(file: Path = FILE) -> tuple[PublishedRow, ...]:
    """Rows of the papers' tables of results, in the file's order. Raises SpecError that names the entry."""
    import yaml

    tree, made = yaml.safe_load(file.read_text(encoding="utf-8")), []
    for group in tree["results"]:
        shared = {name: value for name, value in group.items() if name != "rows"}
        for values in ({**shared, **row} for row in group["rows"]):
            words = (values.get(name) for name in ("source", "table", "test", "method"))
            entry = f"{file.name}, results: {' '.join(str(word) for word in words if word is not None)}"
            check(values.get("source") in tree["sources"], f"{entry}: its source is not listed")
            made.append(build(PublishedRow, values, entry))
    return tuple(made)


def deviations(row: PublishedRow, wanted: Protocol) -> list[str]:
    """In what a row was measured otherwise than under a protocol."""
    if row.protocol is None:
        return ["not stated"]
    theirs = protocol_named(row.protocol)
    differ = {
        "train": row.train != listed(part.reader for part in wanted.train),
        "test": row.test not in [part.reader for part in wanted.test],
        "filter": theirs.filter_deg != wanted.filter_deg,
        "boxes": row.boxes is not None or theirs.boxes != wanted.boxes,
        "split": row.split is not None or theirs.split != wanted.split,
    }
    return [word for word, differs in differ.items() if differs]


def beside(
    ours: Sequence[Row], protocol: str, readers: Mapping[str, str] | None = None, deviates: Sequence[str] = ()
) -> list[TableRow]:
    """Our rows and the published ones of each test set: ours, the protocol's by error, the others'."""
    wanted, lines = protocol_named(protocol), []
    for test in dict.fromkeys(row.test for row in ours):
        reader = (readers or {}).get(test, test)
        other = list(deviates) + ["test"] * (reader not in [part.reader for part in wanted.test])
        for row in (row for row in ours if row.test == test):
            pitch, yaw, roll = (row.scores[name] for name in ANGLE_NAMES)
            lines.append(TableRow(row.name, OURS, test, mark(other), pitch, yaw, roll, row.mae))
        theirs = [(deviations(row, wanted), row) for row in published() if row.test == reader]
        theirs.sort(key=lambda pair: (bool(pair[0]), pair[1].mae or 180.0))
        for differs, printed in theirs:
            source, numbers = f"{printed.source}, table {printed.table}", (printed.pitch, printed.yaw, printed.roll)
            lines.append(TableRow(printed.method, source, test, mark(differs), *numbers, printed.mae))
    return lines


def mark(other: Sequence[str]) -> str:
    return f"other protocol: {', '.join(other)}" if other else ""
