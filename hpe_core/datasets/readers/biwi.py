"""BIWI Kinect Head Pose (Fanelli et al. 2013): 24 sequences of 20 people before a Kinect, 640 x 480.

    hpdb/01/frame_00003_rgb.png    hpdb/01/frame_00003_pose.txt    hpdb/01/rgb.cal      (root: hpdb, or its parent)

Copies that hold the pictures as .jpg are read, too.

pose.txt is a 3 x 3 rotation R, then the head's centre in millimetres, both in the frame of the depth camera. R is our
R_cam as it stands: 01/frame_00501 is pitch -54.92, yaw -52.38, roll 41.55. Old loaders decode it without the transpose
and get (-41.50, -62.06, -12.80). The colour camera is turned by 1.0 degrees against the depth camera (01/rgb.cal); the
published labels ignore that, and so do we. rgb.cal is, in numbers: intrinsics (9), distortion (4, zero), R (9) and
T (3, mm) with x_rgb = R x_depth + T, width and height (checked against a detector: docs/datasets.md).

There are no boxes. Ours is a square of `BOX_MM` about the projected centre, at its depth: 200 mm hold the face from any
side. It comes from the annotation, which no detector has: for the papers' tables import a file of published `boxes`.
Copies without rgb.cal have no box, and need published boxes or a detector.

15,678 frames; the papers have 15,677, without 01/frame_00003. Four people were recorded twice: 15 = 03, 18 = 05,
21 = 02, 22 = 07. `group_by: person` keeps a person's sequences together, as person03; `sequence` does not, for protocol
3, whose split puts sequences of one person on both sides: 1,902 of its 5,065 test frames (15, 18, 21) show people that
are trained on. The leak-free rest of it are 3,163 frames: test_groups person06, person07, person10 and person13. Groups
are words because YAML reads a plain 06 as the number 6.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets import files
from hpe_core.datasets.base import Annotation, FaceRef, Rejected, Terms, pose_of
from hpe_core.datasets.decoding.pictures import read_bytes, read_picture
from hpe_core.detection.fit import DetectorFit
from hpe_core.geometry.crop import Box, Image
from hpe_core.geometry.rotation import is_rotation, matrix_to_euler
from hpe_core.spec.data import DatasetSpec

SEQUENCES = 24
SAME_PERSON = {"15": "03", "18": "05", "21": "02", "22": "07"}
BOX_MM = 200.0
FRAME = re.compile(r"(?P<frame>frame_\d+)_(?:rgb\.(?:png|jpg)|pose\.txt)", re.IGNORECASE)
PICTURES = ("_rgb.png", "_rgb.jpg")
MAX_TEXT = 1 << 16


class Biwi(files.Archive):
    """The archive unpacked under `spec.root`; as many sequences as are there."""

    name = "biwi"
    terms = Terms(
        "BIWI Kinect Head Pose",
        "non-commercial research only",
        research_only=True,
        cite="G. Fanelli, M. Dantone, J. Gall, A. Fossati, L. Van Gool, Random Forests for Real Time 3D Face Analysis, "
        "IJCV 2013",
    )
    has_sequences = True
    whole = 15_678
    own_boxes = "projected centre"
    detector_fit = DetectorFit(1.44, 1.08, 0.07)  # one frame

    def refs(self) -> Iterator[FaceRef]:
        """One per frame that has a picture or a pose; `load` rejects what lacks the other."""
        keys: dict[str, str] = {}  # of each frame, its picture; of a pose without one, the picture that should be there
        for path in sorted(self.listing((*PICTURES, "_pose.txt"), self._inner())):
            if match := FRAME.fullmatch(Path(path).name):
                frame = str(Path(path).with_name(match["frame"]))
                if path.lower().endswith(PICTURES):
                    keys[frame] = path
                else:
                    keys.setdefault(frame, f"{frame}_rgb.png")
        for frame, key in keys.items():
            group = f"sequence{files.printable(Path(key).parent.name)}"
            if self.spec.group_by == "person":
                group = self.person_of(group)
            yield FaceRef(files.printable(frame), group, key)

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        path, pose_path, calibration = (files.within(self.root, name, self.spec.links) for name in self.files_of(ref))
        rotation, center = read_pose(pose_path)
        missing = Rejected("no_box", f"{files.printable(str(calibration))} is missing")
        box = head_box(center, calibration) if os.path.exists(calibration) else missing
        return Annotation(box, pose_of(matrix_to_euler(rotation))), read_picture(path)

    def person_of(self, group: str) -> str:
        """sequence21 -> person02, who is also sequence02."""
        sequence = group.removeprefix("sequence").removeprefix("person")
        return f"person{SAME_PERSON.get(sequence, sequence)}"

    def recording_of(self, sample_id: str) -> str:
        """The sequence: each was tracked with a template of its own, and nobody made those agree on a head's axes."""
        return sample_id.rpartition("/")[0]

    def missing_parts(self, refs: Sequence[FaceRef]) -> list[str]:
        """Sequences of which no frame is there."""
        found = {ref.sample_id.split("/")[-2] for ref in refs if "/" in ref.sample_id}
        names = (f"{sequence:02d}" for sequence in range(1, SEQUENCES + 1))
        return [name for name in names if name not in found]

    def files_of(self, ref: FaceRef) -> tuple[str, ...]:
        path = Path(self._inner(), ref.key)
        pose = path.with_name(path.name.rpartition("_")[0] + "_pose.txt")
        return str(path), str(pose), str(path.with_name("rgb.cal"))

    def origin(self, spec: DatasetSpec) -> PurePath:
        """The archive may be named with or without hpdb."""
        root = PurePath(spec.root)
        return root.parent if root.name == "hpdb" else root

    def _inner(self) -> str:
        """Where in the root the sequences lie, hpdb or itself. What was fetched shows it, so `load` asks no remote."""
        fetched = self.remote is not None and self.root.is_dir()
        there = (self.root / "hpdb").is_dir() if fetched else self.has_folder("hpdb")
        return "hpdb" if there else ""


def read_pose(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3, 3) rotation and (3,) centre in mm of a pose.txt. Raises Rejected."""
    name, values = files.printable(str(path)), _numbers(path)
    if values.size != 12:
        raise Rejected("bad_annotation", f"{name} holds {values.size} numbers, not a 3 x 3 rotation and a centre")
    rotation, center = values[:9].reshape(3, 3), values[9:]
    if not np.isfinite(rotation).all():
        raise Rejected("nan_pose", f"{name}: its rotation is not finite")
    if not is_rotation(rotation):
        raise Rejected("bad_annotation", f"{name}: its matrix is no rotation")
    return rotation, center


def head_box(center_mm: NDArray[np.float64], calibration: Path) -> Box:
    """The picture of a `BOX_MM` square that faces the colour camera at the head's centre. Raises Rejected."""
    name, values = files.printable(str(calibration)), _numbers(calibration)
    if values.size < 25 or not np.isfinite(values[:25]).all():
        raise Rejected("no_box", f"{name} does not hold intrinsics, distortion, rotation and translation")
    intrinsics, turn, shift = values[:9].reshape(3, 3), values[13:22].reshape(3, 3), values[22:25]
    x, y, z = turn @ center_mm + shift
    if not np.isfinite([x, y, z]).all() or z <= 0:
        raise Rejected("no_box", f"{name} puts the head's centre at ({x:g}, {y:g}, {z:g}) mm, not before the camera")
    scale_x, scale_y = float(intrinsics[0, 0] / z), float(intrinsics[1, 1] / z)
    place = (float(intrinsics[0, 2] + scale_x * x), float(intrinsics[1, 2] + scale_y * y))
    return Box.around(place, BOX_MM * scale_x, BOX_MM * scale_y)


def _numbers(path: Path) -> NDArray[np.float64]:
    """All numbers of a small text file, in order. Raises Rejected."""
    words = read_bytes(path, MAX_TEXT).decode("ascii", "replace").split()
    try:
        return np.array([float(word) for word in words])
    except ValueError:
        raise Rejected("bad_annotation", f"{files.printable(str(path))} holds more than numbers") from None
