"""What every reader gives: references that cost nothing to list, and one annotated picture for a reference."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets.faces import FaceRef as FaceRef
from hpe_core.datasets.faces import in_blocks, in_order
from hpe_core.detection.fit import DetectorFit
from hpe_core.errors import UserError, check
from hpe_core.geometry.crop import Box, FaceCrop, Image
from hpe_core.spec.data import DatasetSpec

SCHEMA_VERSION = 2  # of a shard's rows
AT_ONCE = 50_000  # faces whose states are asked for at once: a source may scan a table for them
Pose = tuple[float, float, float]  # pitch, yaw, roll, degrees


def pose_of(degrees: Iterable[float]) -> Pose:
    """Three numbers of an array as a pose."""
    pitch, yaw, roll = map(float, degrees)
    return pitch, yaw, roll


# Every reason for which a face is quarantined, from the file inwards. A face that is sound but not wanted
# (its pose lies beyond `data.limit_deg`) is filtered instead, as OUT_OF_RANGE, and counted apart.
Reason = Literal[
    "unreadable_file",  # missing, a folder, no permission
    "outside_root",  # its path or a link leaves the dataset's folder
    "not_a_picture",  # empty, HTML, a format or pixel type that is not read
    "truncated_picture",  # ends before its last row
    "damaged_picture",  # decodes only by guessing
    "too_large",  # declared size or memory beyond the limit
    "bad_annotation",  # cannot be parsed, or numbers missing
    "nan_pose",
    "no_box",
    "box_degenerate",  # thinner than a pixel
    "box_outside",  # too little of it lies inside the picture
    "duplicate_id",
    "decoder_crashed",  # took its process down, twice
    "decoder_hung",  # did not answer in time, twice
    "reader_failed",  # an exception that the reader did not expect
]
OUT_OF_RANGE = "out_of_range"


class Rejected(Exception):
    """A face that cannot be used: a short reason code for counting, and a sentence that names what is wrong."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True, eq=False)
class Annotation:
    """A face in a picture: where it is and how it is turned.

    `pose` is (pitch, yaw, roll) in degrees; landmarks (68, 2) in image pixels and visible (68,), 1 or 0, are
    optional; NaN in either says that nobody knows (`geometry/landmarks.py`). In place of `box` may stand why there is
    none: whoever draws other boxes may still find the face, if the picture shows no other. A reader that cannot know
    that rejects the face itself.
    """

    box: Box | Rejected
    pose: Pose
    landmarks: NDArray[np.float32] | None = None
    visible: NDArray[np.generic] | None = None

    def known_box(self) -> Box:
        """Raises Rejected where there is none."""
        if isinstance(self.box, Rejected):
            raise Rejected(self.box.reason, f"{self.box.detail} (the keys boxes or detector take others)")
        return self.box


@dataclass(frozen=True, eq=False)
class FaceRow:
    """One face as it is stored. `landmarks` is (68, 3): x, y in window pixels, and whether it is seen."""

    sample_id: str
    group: str
    path: str
    pose: Pose
    crop: FaceCrop
    landmarks: NDArray[np.float32] | None = None


class DatasetError(UserError):
    """A dataset as a whole cannot be used; one sentence for the user."""


@contextmanager
def naming(dataset: str) -> Iterator[None]:
    """A DatasetError of the block says which dataset it is about."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"dataset '{dataset}': {error}") from None


@dataclass(frozen=True)
class Terms:
    """Who made a dataset, and what its owners allow."""

    title: str
    allowed: str
    research_only: bool
    cite: str = ""


UNKNOWN = Terms("", "ask its owners; until then, treat it as research only", True)


class Source(ABC):
    """The faces of one dataset. Sources are small, picklable and open nothing when they are made."""

    spec: DatasetSpec

    @property
    @abstractmethod
    def reader(self) -> "Reader":
        """The reader itself, behind whatever stands before it."""

    @abstractmethod
    def refs(self) -> Iterable[FaceRef]:
        """Every face that the dataset lists, in any order. Raises DatasetError where there is no such dataset."""

    @abstractmethod
    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        """The picture (H, W, 3 uint8 RGB) and its annotation. Raises Rejected."""

    @abstractmethod
    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        """For each face a text that changes when what decides it does, and only then: its files, its row of a table.

        Opens no picture. A shard is made again when a state of its own faces changes, not when the dataset grows.
        """

    @abstractmethod
    def fetch(self, refs: Sequence[FaceRef]) -> None:
        """Bring what `load` will read to this machine. Raises RemoteError: then no picture is to blame."""

    def fingerprint(self) -> str:
        """A hash that changes when a face comes, goes or changes. Opens no picture. Raises DatasetError."""
        digest = hashlib.sha256()
        for refs in in_blocks(in_order(self.refs()), AT_ONCE):
            for ref, state in zip(refs, self.states(refs), strict=True):
                digest.update(json.dumps([ref.sample_id, ref.group, ref.key, ref.split, state]).encode())
        return digest.hexdigest()


class Reader(Source):
    """One format: all that is known of it stands in its class. `registry.py` finds it by `name`, the key `reader`."""

    name: ClassVar[str]
    terms: ClassVar[Terms] = UNKNOWN
    risky: ClassVar[bool] = True  # its files are other people's, so the sandbox decodes them
    photographs: ClassVar[bool] = True  # its pictures show real people
    labels_from_landmarks: ClassVar[bool] = False  # its poses are solved from its landmarks, which cannot check them
    has_sequences: ClassVar[bool] = False  # takes group_by=sequence: one person may be several groups, see `person_of`
    whole: int | None = None  # faces of the whole archive, where that is known
    own_boxes: str | None = None  # who draws the boxes, as a protocol names it; None: anybody
    detector_fit: DetectorFit | None = None  # from YuNet's box to the format's own; None: nobody has measured it

    def __init__(self, spec: DatasetSpec) -> None:
        self.spec = spec

    @property
    def reader(self) -> "Reader":
        return self

    def check(self) -> None:
        """Raises SpecError for a key that the format needs and lacks, or has and cannot take."""
        by = self.spec.group_by
        check(by == "person" or self.has_sequences, f"group_by: {by} is for archives of sequences, not {self.name}")

    def fetch(self, refs: Sequence[FaceRef]) -> None:
        """Nothing: what is read lies here."""

    def person_of(self, group: str) -> str:
        """Who a group shows."""
        return group

    def recording_of(self, sample_id: str) -> str:
        """The part of a dataset in which the head's axes were fixed once: all of it."""
        return ""

    def missing_parts(self, refs: Sequence[FaceRef]) -> list[str]:
        """Which parts of its archive a dataset with these faces lacks. Raises DatasetError."""
        return []

    def origin(self, spec: DatasetSpec) -> object:
        """Where a dataset of this format takes its faces from, in one spelling."""
        return PurePath(spec.root)

    def shares_faces(self, other: DatasetSpec) -> bool:
        """Whether this dataset holds faces of the other one, too; either of the two may know it."""
        return other.reader == self.name and self.origin(other) == self.origin(self.spec)


class Wrapped(Source):
    """A source that stands before another one and changes some of what it gives; all else is the other's."""

    def __init__(self, source: Source) -> None:
        self.source, self.spec = source, source.spec

    @property
    def reader(self) -> Reader:
        return self.source.reader

    def refs(self) -> Iterable[FaceRef]:
        return self.source.refs()

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        return self.source.load(ref)

    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        return self.source.states(refs)

    def fetch(self, refs: Sequence[FaceRef]) -> None:
        self.source.fetch(refs)


def lacking(found: Mapping[str, int], known: Mapping[str, int]) -> list[str]:
    """Each part with less than it is known to hold: 'HELEN (10 of 37,676)', or its name alone where all is missing."""
    return [
        f"{part} ({found[part]:,} of {whole:,})" if found.get(part) else part
        for part, whole in known.items()
        if found.get(part, 0) < whole
    ]


def census(source: Source, found: int | None = None) -> str:
    """How much of its archive a dataset holds, as a sentence, from a listing (or `found`). Raises DatasetError."""
    found = sum(1 for _ in source.refs()) if found is None else found
    whole = source.reader.whole
    counted = f"{found:,} {'face' if found == 1 else 'faces'}"
    if whole is None:
        return counted
    verdict = {-1: ": this is a part", 0: "", 1: ": this is more"}[(found > whole) - (found < whole)]
    return f"{counted}; the whole archive has {whole:,}{verdict}"


def place_of(group: str, seed: int) -> int:
    """64 bits that depend on the group and the seed alone: the group's place in the split."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:8], "big")


def share_of(group: str, seed: int) -> float:
    """`place_of` as a number in [0, 1)."""
    return place_of(group, seed) / 2**64
