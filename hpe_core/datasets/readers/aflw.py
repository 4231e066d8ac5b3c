"""AFLW (Koestinger et al. 2011): pictures from Flickr, often with several faces, annotated in an SQLite file.

    data/aflw.sqlite                    FaceImages.file_id = Faces.file_id; Faces.face_id = that of FaceRect, FacePose
    data/flickr/<0|2|3>/image00002.jpg  where FaceImages.filepath, e.g. `2/image00002.jpg`, says

The file may also lie in the root itself, and the pictures' folders in `flickr` or in the root.

FacePose is (roll, pitch, yaw) in radians, by POSIT on 21 landmarks; ours is (pitch, yaw, -roll) in degrees. FaceRect is
the left top corner and the size in pixels. Of the 21 landmarks (FeatureCoords; only what is seen has a row) sixteen are
among the 68, and are given as those for the doctor; a file without that table is read all the same.

No identities are known, so a group is a picture, named as in AFLW2000 without the ending: protocol 2 (the pictures of
AFLW2000 are the test set) is a list of `test_groups`. The paper counts 25,993 faces in 21,997 pictures; in the file
that public loaders read, 24,384 have both a rectangle and a pose. The others are listed and rejected.

The file is opened read-only and as immutable, so no lock is taken; what another program has not finished writing shows
by its journal, and is refused.
"""

import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets import files
from hpe_core.datasets.base import Annotation, DatasetError, FaceRef, Rejected, Terms
from hpe_core.datasets.decoding.pictures import read_picture
from hpe_core.geometry.crop import Box, Image
from hpe_core.spec.data import DatasetSpec

PICTURES = ("data/flickr", "flickr", "")  # the first of these folders that is there
PLACES = ("aflw.sqlite", "data/aflw.sqlite")
JOURNALS = ("-journal", "-wal")
FACES = (
    "SELECT Faces.face_id, Faces.file_id, FaceImages.filepath FROM Faces "
    "LEFT JOIN FaceImages ON FaceImages.file_id = Faces.file_id"
)
RECT = "SELECT x, y, w, h FROM FaceRect WHERE face_id = ? ORDER BY rowid"
POSE = "SELECT pitch, yaw, roll FROM FacePose WHERE face_id = ? ORDER BY rowid"
ALL_RECTS = "SELECT face_id, x, y, w, h FROM FaceRect ORDER BY rowid"
ALL_POSES = "SELECT face_id, pitch, yaw, roll FROM FacePose ORDER BY rowid"
MARKS = "SELECT feature_id, x, y FROM FeatureCoords WHERE face_id = ? ORDER BY rowid"
ALL_MARKS = "SELECT face_id, feature_id, x, y FROM FeatureCoords ORDER BY rowid"
HAS_MARKS = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND lower(name) = 'featurecoords'"
# feature_id -> index among the 68. Not there: 8 and 11 (middle of an eye), 13 and 17 (ears), 19 (middle of the mouth).
AMONG_68 = {1: 17, 2: 19, 3: 21, 4: 22, 5: 24, 6: 26, 7: 36, 9: 39, 10: 42, 12: 45, 14: 31, 15: 30, 16: 35, 18: 48}
AMONG_68 |= {20: 54, 21: 8}


class Aflw(files.Archive):
    """The archive unpacked under `spec.root`."""

    name = "aflw"
    terms = Terms(
        "AFLW",
        "research only",
        research_only=True,
        cite="M. Koestinger, P. Wohlhart, P. M. Roth, H. Bischof, Annotated Facial Landmarks in the Wild, "
        "BeFIT Workshop, ICCV 2011",
    )
    whole = 25_993
    own_boxes = "archive"

    def refs(self) -> Iterator[FaceRef]:
        """One per row of Faces. Raises DatasetError where the SQLite file is missing, damaged or of another kind."""
        self.fetch_tables()
        with listing_from(self._place()) as database:
            for query in (RECT, POSE):
                database.execute(query, (-1,)).fetchone()  # a missing table is one sentence, not 24,384 rejections
            rows = database.execute(FACES).fetchall()
        pictures = self._pictures()
        for face, file, path in rows:
            key = str(Path(pictures, str(path))) if path else ""
            yield FaceRef(f"face{face}", files.printable(Path(str(file)).stem), key)

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        if not ref.key:
            raise Rejected("bad_annotation", f"{ref.sample_id} belongs to {ref.group}, which FaceImages does not list")
        face = int(ref.sample_id.removeprefix("face"))
        try:
            with closing(connect(self._place())) as database:
                rect, pose = (database.execute(query, (face,)).fetchone() for query in (RECT, POSE))
                marks = database.execute(MARKS, (face,)).fetchall() if database.execute(HAS_MARKS).fetchone() else []
        except sqlite3.Error as error:
            raise Rejected("unreadable_file", f"{ref.sample_id}: the SQLite file cannot be read: {error}") from None
        if rect is None:
            raise Rejected("no_box", f"{ref.sample_id} has no row in FaceRect")
        if pose is None:
            raise Rejected("bad_annotation", f"{ref.sample_id} has no row in FacePose")
        path = files.within(self.root, ref.key, self.spec.links)
        x, y, width, height = _numbers(rect, f"{ref.sample_id}: FaceRect")
        pitch, yaw, roll = (math.degrees(value) for value in _numbers(pose, f"{ref.sample_id}: FacePose"))
        if not all(map(math.isfinite, (pitch, yaw, roll))):
            raise Rejected("nan_pose", f"{ref.sample_id}: FacePose is not finite")
        box = Box(x, y, x + width, y + height)
        landmarks, visible = _landmarks(marks, ref.sample_id)
        return Annotation(box, (pitch, yaw, -roll), landmarks, visible), read_picture(path)

    def files_of(self, ref: FaceRef) -> tuple[str, ...]:
        """The picture; of the SQLite file only its own rows decide a face, and `states` knows them."""
        return (ref.key,) if ref.key else ()

    def missing_parts(self, refs: Sequence[FaceRef]) -> list[str]:
        """Pictures that the SQLite file names and that are not there."""
        wanted, pictures = {ref.key for ref in refs if ref.key}, self._pictures()
        gone = wanted.difference(str(Path(pictures, path)) for path in self.listing(files.PICTURES, pictures))
        return [f"{len(gone):,} of {len(wanted):,} pictures, e.g. {files.printable(min(gone))}"] if gone else []

    def tables(self) -> tuple[str, ...]:
        return tuple(f"{place}{ending}" for place in PLACES for ending in ("", *JOURNALS))

    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        self.fetch_tables()
        found: dict[str, list[object]] = {ref.sample_id: [] for ref in refs}
        with listing_from(self._place()) as database:
            marks = [ALL_MARKS] if database.execute(HAS_MARKS).fetchone() else []
            for query in (ALL_RECTS, ALL_POSES, *marks):
                for face, *values in database.execute(query):
                    if f"face{face}" in found:
                        found[f"face{face}"].append(values)
        pictures = super().states(refs)
        return [f"{found[ref.sample_id]} {picture}" for ref, picture in zip(refs, pictures, strict=True)]

    def shares_faces(self, other: DatasetSpec) -> bool:
        """AFLW2000's pictures are among AFLW's, too. Named test groups, as protocol 2 has them, keep them apart."""
        return super().shares_faces(other) or (other.reader == "aflw2000" and not self.spec.test_groups)

    def _pictures(self) -> str:
        """The folder that FaceImages.filepath is named from."""
        return next((folder for folder in PICTURES[:-1] if self.has_folder(folder)), PICTURES[-1])

    def _place(self) -> Path:
        """Of the SQLite file. Raises DatasetError where it is not there, or where a program is at work on it."""
        if self.remote is None:
            files.must_be_folder(self.root)
        place = next((self.root / place for place in PLACES if (self.root / place).is_file()), None)
        if place is None:
            raise DatasetError(f"its root {self.place} holds no {PLACES[0]}")
        for ending in JOURNALS:
            journal = place.with_name(place.name + ending)
            if journal.is_file() and journal.stat().st_size:
                raise DatasetError(f"{files.printable(str(journal))} shows that a program is writing to {place.name}")
        return place


@contextmanager
def listing_from(place: Path) -> Iterator[sqlite3.Connection]:
    """The SQLite file, for what concerns all faces: damage to it, met inside, is raised as DatasetError."""
    try:
        with closing(connect(place)) as database:
            yield database
    except sqlite3.Error as error:
        raise DatasetError(f"{files.printable(str(place))} cannot be read as AFLW's SQLite file: {error}") from None


def connect(place: Path) -> sqlite3.Connection:
    """Read-only, without locks, also on a disk that allows no writing. Raises sqlite3.Error."""
    database = sqlite3.connect(f"{place.as_uri()}?mode=ro&immutable=1", uri=True)
    database.text_factory = os.fsdecode  # names of files may be no UTF-8; one of them must not cost the others
    return database


def _landmarks(
    rows: list[tuple[Any, ...]], name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | tuple[None, None]:
    """(68, 2) points and (68,) which are seen, or None and None for a face without any. Raises Rejected.

    Of the sixteen, one without a row is hidden, and nobody knows where it is; of the others nothing is known.
    """
    points, visible = np.full((68, 2), np.nan, np.float32), np.full(68, np.nan, np.float32)
    visible[list(AMONG_68.values())] = 0
    for feature, *place in rows:
        if feature in AMONG_68:
            points[AMONG_68[feature]] = x, y = _numbers(tuple(place), f"{name}: FeatureCoords")
            if not (math.isfinite(x) and math.isfinite(y)):
                raise Rejected("bad_annotation", f"{name}: FeatureCoords is not finite")
            visible[AMONG_68[feature]] = 1
    return (points, visible) if (visible == 1).any() else (None, None)


def _numbers(row: tuple[Any, ...], name: str) -> list[float]:
    """A row of the database as floats; SQLite lets any column hold text or nothing. Raises Rejected."""
    try:
        return [float(value) for value in row]
    except (TypeError, ValueError):
        raise Rejected("bad_annotation", f"{name} holds {row}, not numbers") from None
