"""300W-LP (Zhu et al. 2016): faces of 300W turned to large poses, 450 x 450, in four subsets and their mirrors.

    HELEN/HELEN_232194_1_0.jpg        the picture, with a .mat of the same name beside it
    HELEN/HELEN_232194_1_3.jpg        the same face, rendered at another yaw
    HELEN_Flip/HELEN_232194_1_3.jpg   its mirror picture, under the same name
    landmarks/HELEN/HELEN_232194_1_3_pts.mat   `pts_2d`, (68, 2); there are none for the mirrors

`Pose_Para` is (pitch, yaw, roll) in radians, our convention as it is; wild labels pass and are filtered later.

The trap is `pt2d` of the .mat beside a picture: every variant holds the landmarks of variant 0. Boxes therefore come
from landmarks/ (`Box.of_face`). Where that file is missing only variant 0 has a box and landmarks.

A mirror uses the landmarks of its original, mirrored by the width of the picture (docs/datasets.md) and renumbered left
for right. Coordinates are MATLAB's, the first pixel's centre at 1: half a pixel is taken off, which makes the mirror
exact. The person is the base name without variant and flip, so that neither leaks into another split.

300W-LPA (Hsu et al. 2019) is read by this reader where it is laid out like this, else by `manifest`.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets import files
from hpe_core.datasets.base import Annotation, DatasetError, FaceRef, Rejected, Terms, lacking
from hpe_core.datasets.decoding.matlab import numbers, pose_para, read_mat
from hpe_core.datasets.decoding.pictures import read_picture
from hpe_core.datasets.readers.landmarks import PAPER, LandmarkArchive
from hpe_core.geometry.crop import Box, Image
from hpe_core.geometry.landmarks import MIRROR_68, mirror_landmarks

SUBSETS = ("AFW", "HELEN", "IBUG", "LFPW")
KNOWN_COUNTS = {"AFW": 5_207, "HELEN": 37_676, "IBUG": 1_786, "LFPW": 16_556}  # and as many mirrors
NAME = re.compile(r"(?P<base>.+)_(?P<variant>\d+)")
FLIP = re.compile(r"_flip(?=_|$)", re.IGNORECASE)


class W300LP(LandmarkArchive):
    """The archive unpacked: the eight folders (as many as are there) and landmarks/ under `spec.root`."""

    name, ending = "300w_lp", ".mat"
    terms = Terms("300W-LP", "research only", research_only=True, cite=PAPER)
    whole = 2 * sum(KNOWN_COUNTS.values())

    def refs(self) -> Iterator[FaceRef]:
        """One per picture, and one per .mat that lacks its picture; `load` rejects whatever is half there."""
        for folder in self._folders():
            subset = FLIP.sub("", folder)
            for path in self.paired(folder):
                stem = Path(path).stem
                match = NAME.fullmatch(FLIP.sub("", stem))
                person = match["base"] if match else stem
                names = (files.printable(f"{folder}/{stem}"), files.printable(f"{subset}/{person}"))
                yield FaceRef(*names, str(Path(folder, path)))

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        path, mat_path, marks_path = self.places(ref)
        mat = read_mat(mat_path, ("Pose_Para", "pt2d"))
        pose = pose_para(mat, files.printable(str(mat_path)))
        image = read_picture(path)
        folder = Path(ref.key).parts[0]
        original = FLIP.sub("", path.stem)
        name = files.printable(str(marks_path))
        mirrored = bool(FLIP.search(folder))
        if os.path.exists(marks_path):
            points = _points(numbers(read_mat(marks_path, ("pts_2d",)), "pts_2d", name), name)
            if mirrored:
                points = mirror_landmarks(points, image.shape[1])
        elif original.endswith("_0"):
            name = files.printable(str(mat_path))
            points = _points(numbers(mat, "pt2d", name), name)
            if mirrored:
                points = points[MIRROR_68]
        else:
            there = marks_path.parent.parent.is_dir()
            what = name if there else f"the folder {files.printable(str(self.root))}/landmarks"
            said = f"{ref.sample_id}: {what} is missing, and pt2d of a rotated variant is that of the unrotated picture"
            return Annotation(Rejected("no_box", said), pose), image
        box = Box.of_face(points)
        return Annotation(box, pose, points.astype(np.float32)), image

    def files_of(self, ref: FaceRef) -> tuple[str, ...]:
        """Picture, annotation and landmarks; a mirror has the landmarks of its original."""
        key = Path(ref.key)
        marks = Path("landmarks", FLIP.sub("", key.parts[0]), f"{FLIP.sub('', key.stem)}_pts.mat")
        return *super().files_of(ref), str(marks)

    def missing_parts(self, refs: Sequence[FaceRef]) -> list[str]:
        known = {name + flip: count for name, count in KNOWN_COUNTS.items() for flip in ("", "_Flip")}
        found = Counter(Path(ref.key).parts[0] for ref in refs if not ref.key.lower().endswith(".mat"))
        return lacking(found, known) + ([] if self.has_folder("landmarks") else ["landmarks"])

    def _folders(self) -> list[str]:
        """Those of the eight that are there. Raises DatasetError where there is none."""
        wanted = [name + flip for name in SUBSETS for flip in ("", "_Flip")]
        found = [name for name in wanted if self.has_folder(name)]
        if not found:
            raise DatasetError(f"its root {self.place} has none of the folders {', '.join(SUBSETS)} of 300W-LP")
        return found


def _points(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """(68, 2) image points from MATLAB's, stored as (68, 2) or (2, 68). Raises Rejected."""
    points = values.T if values.shape == (2, 68) else values
    if points.shape != (68, 2):
        raise Rejected("no_box", f"{name}: its points have shape {values.shape}, not (68, 2)")
    if not np.isfinite(points).all():
        raise Rejected("bad_annotation", f"{name}: its points are not finite")
    return points - 0.5
