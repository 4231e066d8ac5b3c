"""Published boxes for any archive's reader: a JSON file `{file: [{"bbox": [x1, y1, x2, y2], "type": "train|test"}]}`.

Papers are comparable on one detector's boxes only, and some publish theirs. A face keeps its reader's pose, person and
landmarks and gets the published box: of several the one that overlaps the reader's own most (intersection over union).
Without an entry, or if none overlaps by `MIN_OVERLAP`, it is rejected as no_box: a neighbour's box would teach a wrong
pose. (That is low because boxes differ in what they mean: docs/datasets.md.) Where the reader has no box of its own a
picture's only box is the face's. `type` is not used: the dataset's own keys say who is tested on.

An entry belongs to a picture if their paths agree over the folders that both name: `01/frame_00003_rgb.png` fits
`hpdb/01/frame_00003_rgb.png`. It must fit one picture only: BIWI repeats its names in every sequence and 300W-LP in
every mirror, so a bare name would put a box onto other faces. Such a file is refused.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from hpe_core.datasets import files
from hpe_core.datasets.base import Annotation, DatasetError, FaceRef, Rejected, Source, Wrapped
from hpe_core.geometry.crop import Box, Image, overlap
from hpe_core.system.remote import Remote, is_remote

MIN_OVERLAP = 0.2  # of a face's own box with another one of it, intersection over union


@dataclass(frozen=True, eq=False)
class BoxFile:
    """A file of boxes in memory."""

    boxes: dict[str, tuple[Box, ...]]
    paths_of: dict[str, tuple[str, ...]]  # file name -> the entries of that name

    def entry(self, path: str) -> str | None:
        """The entry for a picture's path below its root; None where none fits, or several do."""
        path = tidy(path)
        if path in self.boxes:
            return path
        there = PurePosixPath(path)
        name = files.spelled(there.name, self.paths_of.__contains__)
        fitting = [entry for entry in self.paths_of.get(name, ()) if _agree(entry, str(there.parent / name))]
        return fitting[0] if len(fitting) == 1 else None

    def of(self, path: str) -> tuple[Box, ...]:
        """The boxes of a picture; none where no entry fits."""
        entry = self.entry(path)
        return () if entry is None else self.boxes[entry]

    def check_names(self, file: Path, paths: Iterable[str]) -> None:
        """Raises DatasetError for an entry that fits two of these pictures."""
        used: dict[str, str] = {}
        for path in map(tidy, paths):
            entry = self.entry(path)
            if entry is not None and used.setdefault(entry, path) != path:
                first, second = files.printable(used[entry]), files.printable(path)
                said = f"its entry '{entry}' fits {first} and {second}; give the folders, too"
                raise DatasetError(f"{files.printable(str(file))}: {said}")


class Boxed(Wrapped):
    """A source with the boxes of `spec.boxes` in place of its own. Keys must be paths, as those of archives are."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.address = str(source.spec.boxes)
        self.file = files.archive_root(self.address)

    def refs(self) -> Iterator[FaceRef]:
        """The reader's. Raises DatasetError, also for a file of boxes that is missing, malformed or ambiguous."""
        self._fetch_boxes()
        listed = list(self.source.refs())
        open_boxes(self.file).check_names(self.file, (ref.key for ref in listed))
        yield from listed

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        annotation, image = self.source.load(ref)
        boxes = open_boxes(self.file).of(ref.key)
        place = f"{files.printable(str(self.file))} for {files.printable(ref.key)}"
        if not boxes:
            raise Rejected("no_box", f"{ref.sample_id}: there is no box in {place}")
        # Boxes that are none come last: if there is no other, `check_box` says what is wrong with them.
        sound = [box for box in boxes if box.is_valid()]
        best, shared = best_match(sound or boxes, annotation.box)
        if sound and shared < MIN_OVERLAP:
            said = f"largest overlap {shared:.2f}; {MIN_OVERLAP:g} is needed"
            raise Rejected("no_box", f"{ref.sample_id}: no box in {place} is that of this face ({said})")
        return replace(annotation, box=best), image

    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        self._fetch_boxes()
        boxes = open_boxes(self.file)
        entries = (boxes.of(ref.key) for ref in refs)
        return [f"{state} {entry}" for state, entry in zip(self.source.states(refs), entries, strict=True)]

    def fetch(self, refs: Sequence[FaceRef]) -> None:
        self.source.fetch(refs)
        self._fetch_boxes()

    def _fetch_boxes(self) -> None:
        if is_remote(self.address):
            Remote(self.address).parent.fetch([self.file.name])


def open_boxes(file: Path) -> BoxFile:
    """A file of boxes, parsed once a process unless it changes. Raises DatasetError."""
    files.check_plain(file, "its file of boxes")
    try:
        status = file.stat()
    except OSError as error:
        raise DatasetError(f"its file of boxes {files.printable(str(file))} cannot be read: {error.strerror}") from None
    return _read_boxes(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _read_boxes(file: Path, size: int, changed_ns: int) -> BoxFile:
    """The file; size and time name its state on disk, so that a process reads it once. Raises DatasetError."""
    name = files.printable(str(file))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # JSON itself keeps the last
            ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise DatasetError(f"its file of boxes {name} has two entries for '{twice}'")
        return found

    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=once)
    except OSError as error:
        raise DatasetError(f"its file of boxes {name} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DatasetError(f"its file of boxes {name} is not JSON") from None
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"its file of boxes {name} is not a mapping of files to boxes")
    boxes: dict[str, tuple[Box, ...]] = {}
    paths_of: dict[str, tuple[str, ...]] = {}
    for path, entries in content.items():
        path = tidy(path)
        if path in boxes:
            raise DatasetError(f"its file of boxes {name} has two entries for '{path}'")
        boxes[path] = _parse(entries, f"its file of boxes {name}: the entry '{path}'")
        last = PurePosixPath(path).name
        paths_of[last] = (*paths_of.get(last, ()), path)
    return BoxFile(boxes, paths_of)


def best_match(boxes: Sequence[Box], own: Box | Rejected) -> tuple[Box, float]:
    """The box that overlaps the reader's own most, and by how much. Raises Rejected for several where it has none."""
    if isinstance(own, Box):
        best = max(boxes, key=lambda box: overlap(box, own))
        return best, overlap(best, own)
    if len(boxes) > 1:
        raise Rejected("no_box", f"{own.detail}; and there are {len(boxes)} other boxes, of whom is not known")
    return boxes[0], 1.0


def _parse(entries: Any, where: str) -> tuple[Box, ...]:
    found = []
    for entry in entries if isinstance(entries, list) else [None]:
        corners = entry.get("bbox") if isinstance(entry, dict) else None
        numbers = corners if isinstance(corners, list) and len(corners) == 4 else [None]
        try:
            if not all(type(number) in (int, float) for number in numbers):
                raise ValueError
            found.append(Box(*map(float, numbers)))
        except (ValueError, OverflowError):
            raise DatasetError(f'{where} is no list of {{"bbox": [x1, y1, x2, y2]}}') from None
    return tuple(found)


def tidy(path: str) -> str:
    """One spelling of a picture's path: 'im\\.\\a.jpg' and './im/a.jpg' are im/a.jpg."""
    return str(PurePosixPath(path.replace("\\", "/")))


def _agree(first: str, second: str) -> bool:
    """Whether two paths have the same end, as long as the shorter one is."""
    a, b = PurePosixPath(first).parts, PurePosixPath(second).parts
    shared = min(len(a), len(b))
    return a[-shared:] == b[-shared:]
