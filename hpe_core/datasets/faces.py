"""References to faces, and listings of any length in order: sorted in runs on the disk, merged, read as a stream."""

import heapq
import json
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice, starmap
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")
RUN = 200_000  # faces that are sorted in memory at once; a hundred million take five hundred files
BLOCK = 500  # faces to a line of a file
LISTING = ".listing-"
ROW = attrgetter("sample_id", "group", "key", "split")
PLACE: Callable[[Any], Any] = itemgetter(0, 1, 2)


@dataclass(frozen=True, order=True, slots=True)
class FaceRef:
    """One face that a dataset lists, before any file is opened. `key` is the reader's own, e.g. a path."""

    sample_id: str
    group: str  # the person, or what stands for one: never split between training and test
    key: str
    # The split that the dataset itself prescribes, or "": then shares and named groups decide. It says where a face
    # goes, not which face it is, so it counts in no comparison.
    split: str = field(default="", compare=False)


def in_order(refs: Iterable[FaceRef]) -> Iterator[FaceRef]:
    """The faces sorted; equal ones in the order in which they came."""
    rest, runs = map(ROW, refs), list[Iterator[Sequence[str]]]()
    with ExitStack() as files:
        while run := sorted(islice(rest, RUN), key=PLACE):
            if len(run) < RUN and not runs:
                yield from starmap(FaceRef, run)
                return
            stream = files.enter_context(tempfile.TemporaryFile("w+"))
            stream.writelines(map(_line, in_blocks(run, BLOCK)))
            stream.seek(0)
            runs.append(chain.from_iterable(map(json.loads, stream)))
        yield from starmap(FaceRef, heapq.merge(*runs, key=PLACE))


def in_blocks(values: Iterable[Value], most: int) -> Iterator[list[Value]]:
    """In lists of at most so many."""
    rest = iter(values)
    while block := list(islice(rest, most)):
        yield block


def _line(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a line of ASCII, whatever they hold, also bytes that are no UTF-8."""
    return json.dumps(rows) + "\n"


class FaceFile:
    """Faces in a file, some to a line. The file goes with the object that made it; a pickled copy only reads it."""

    def __init__(self, folder: Path | None = None) -> None:
        """An empty file in the folder (None: that of temporary files)."""
        with tempfile.NamedTemporaryFile(prefix=LISTING, dir=folder, delete=False) as stream:
            self.path = Path(stream.name).absolute()
        weakref.finalize(self, self.path.unlink, missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[Callable[[Sequence[FaceRef]], int]]:
        """What writes faces as a line, and says at which byte it begins."""
        start = 0
        with open(self.path, "w") as stream:

            def write(refs: Sequence[FaceRef]) -> int:
                nonlocal start
                before, start = start, start + stream.write(_line(list(map(ROW, refs))))
                return before

            yield write

    def __iter__(self) -> Iterator[FaceRef]:
        with open(self.path) as stream:
            for line in stream:
                yield from starmap(FaceRef, json.loads(line))


def read_line(path: Path, start: int) -> tuple[FaceRef, ...]:
    """The faces of the line of a `FaceFile` that begins at a byte."""
    with open(path, "rb") as stream:
        stream.seek(start)
        return tuple(starmap(FaceRef, json.loads(stream.readline())))
