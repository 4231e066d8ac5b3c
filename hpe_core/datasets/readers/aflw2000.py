"""AFLW2000-3D (Zhu et al. 2016): a flat folder of imageNNNNN.jpg, each with a .mat of the same name.

`Pose_Para` is (pitch, yaw, roll) in radians, then translation and scale; in degrees it is our convention as it is. Wild
labels (yaw 351) are given as published and filtered later by `data.limit_deg`: 31 of the 2000 faces lie beyond +-99.
Every image is a person of its own. The folder `Code` holds .mat files that are no faces, and is left out.

No box fits the 450 x 450 crops (`roi` refers to the original AFLW image): ours is that of the 68 landmarks `pt3d_68`,
brow to chin, grown as `Box.of_face` says. (Hopenet's loader grows the box of `pt2d`, which marks
invisible points as -1.) Coordinates are MATLAB's, used as published: half a pixel of 450 from ours.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpe_core.datasets import files
from hpe_core.datasets.base import Annotation, FaceRef, Rejected, Terms
from hpe_core.datasets.decoding.matlab import numbers, pose_para, read_mat
from hpe_core.datasets.decoding.pictures import read_picture
from hpe_core.datasets.readers.landmarks import PAPER, LandmarkArchive
from hpe_core.geometry.crop import Box, Image

CODE = "Code"


class Aflw2000(LandmarkArchive):
    """The archive unpacked under `spec.root`."""

    name, ending = "aflw2000", ".mat"
    terms = Terms("AFLW2000-3D", "research only", research_only=True, cite=PAPER)
    whole = 2_000

    def refs(self) -> Iterator[FaceRef]:
        """One per picture, and one per .mat that lacks its picture; `load` rejects whatever is half there."""
        for path in self.paired():
            if CODE not in Path(path).parts[:-1]:
                stem = files.printable(Path(path).stem)
                yield FaceRef(stem, stem, path)

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        path, mat_path = self.places(ref)
        name = files.printable(str(mat_path))
        mat = read_mat(mat_path, ("Pose_Para", "pt3d_68"))
        pose = pose_para(mat, name)
        points = numbers(mat, "pt3d_68", name)
        if points.shape not in ((3, 68), (2, 68)):
            raise Rejected("no_box", f"{name}: pt3d_68 has shape {points.shape}, not (3, 68)")
        landmarks = points[:2].T
        if not np.isfinite(landmarks).all():
            raise Rejected("bad_annotation", f"{name}: pt3d_68 is not finite")
        box = Box.of_face(landmarks)
        return Annotation(box, pose, landmarks.astype(np.float32)), read_picture(path)
