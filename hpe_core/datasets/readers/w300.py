"""300W (Sagonas et al. 2013) and whatever else keeps 68 landmarks as 300W does: pictures with a .pts of the same name.

    01_Indoor/indoor_001.png    01_Indoor/indoor_001.pts     (or HELEN, LFPW, AFW, IBUG, as they unpack)

A .pts is text: `version: 1`, `n_points: 68`, and 68 lines `x y` between braces: pixels, the first one's centre at 1.

Nobody published poses of these faces. Ours is solved from the landmarks (`render/person/anatomy.solve_pose`); on
AFLW2000 such poses lie 3.0 degrees, as rotations, from the archive's own (docs/datasets.md). Papers that print errors
on 300W solved theirs with heads of their own. A face whose landmarks fit no head is rejected.

Mirror pictures (`_mirror`) belong to the person of their original.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets import files
from hpe_core.datasets.base import Annotation, FaceRef, Rejected, Terms, pose_of
from hpe_core.datasets.decoding.pictures import read_bytes, read_picture
from hpe_core.datasets.readers.landmarks import LandmarkArchive
from hpe_core.geometry.crop import Box, Image
from hpe_core.geometry.landmarks import LANDMARKS
from hpe_core.geometry.rotation import matrix_to_euler
from hpe_core.render.person.anatomy import solve_pose
from hpe_core.spec.data import DatasetSpec

POINTS = re.compile(rf"n_points:\s*{LANDMARKS}\s*\{{(?P<numbers>[-+.0-9eE\s]*)\}}\s*$")
MIRROR = re.compile(r"_mirror$", re.IGNORECASE)
MAX_TEXT = 1 << 16
FARTHEST = 1e6  # pixels


class W300(LandmarkArchive):
    """The archive unpacked under `spec.root`, as many of its folders as are there."""

    name, ending = "300w", ".pts"
    labels_from_landmarks = True
    terms = Terms(
        "300W",
        "research only",
        research_only=True,
        cite="C. Sagonas, G. Tzimiropoulos, S. Zafeiriou, M. Pantic, 300 Faces in-the-Wild Challenge: The first facial "
        "landmark localization Challenge, ICCV Workshops 2013",
    )

    def refs(self) -> Iterator[FaceRef]:
        """One per picture, and one per .pts that lacks its picture; `load` rejects whatever is half there."""
        for path in self.paired():
            stem = str(Path(path).with_suffix(""))
            yield FaceRef(files.printable(stem), files.printable(MIRROR.sub("", stem)), path)

    def shares_faces(self, other: DatasetSpec) -> bool:
        """300W-LP is made of 300W's faces. Named test groups say that others are meant."""
        return super().shares_faces(other) or (other.reader == "300w_lp" and not self.spec.test_groups)

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        path, pts_path = self.places(ref)
        landmarks = read_pts(pts_path)
        rotation = solve_pose(landmarks)
        if rotation is None:
            raise Rejected("bad_annotation", f"{files.printable(str(pts_path))}: its landmarks fit no head")
        pose = pose_of(matrix_to_euler(rotation))
        return Annotation(Box.of_face(landmarks), pose, landmarks.astype(np.float32)), read_picture(path)


def read_pts(path: Path) -> NDArray[np.float64]:
    """(68, 2) pixels, the first one's corner at 0. Raises Rejected."""
    name, text = files.printable(str(path)), read_bytes(path, MAX_TEXT).decode("ascii", "replace")
    match = POINTS.search(text)
    if match is None:
        raise Rejected("bad_annotation", f"{name} is no list of {LANDMARKS} points")
    try:
        points = np.array([float(number) for number in match["numbers"].split()])
    except ValueError as error:
        raise Rejected("bad_annotation", f"{name}: {error}") from None
    if points.size != 2 * LANDMARKS or np.abs(points).max() > FARTHEST:
        raise Rejected("bad_annotation", f"{name} does not hold {LANDMARKS} points of a picture")
    return points.reshape(LANDMARKS, 2) - 0.5
