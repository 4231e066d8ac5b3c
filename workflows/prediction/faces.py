"""Where the faces of a picture are: by a detector, by a file of boxes, or the whole picture."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets.base import DatasetError, Rejected
from hpe_core.datasets.boxes import open_boxes
from hpe_core.datasets.files import printable
from hpe_core.datasets.sandbox import check_box
from hpe_core.detection.detector import FaceDetector, cached
from hpe_core.detection.look import Detect, find_faces, needs_tiles, turned_image
from hpe_core.errors import SpecError, check
from hpe_core.geometry.crop import Box, Image
from hpe_core.geometry.landmarks import LANDMARKS
from hpe_core.geometry.rotation import turn
from hpe_core.predictor import HeadPosePredictor, Poses
from hpe_core.spec.data import DetectorSpec
from workflows.prediction.keys import WHOLE, PredictSpec
from workflows.prediction.media.frames import Frame, Media

SURE = 0.9  # YuNet is at least as sure of nine upright faces of ten, and of none that lies on its side
NOTED = 0.8  # what is seen in a turned picture with a lower score may be no face
LOOKS = 20  # of a run without turns=4, to find out whether faces lie on their side


@dataclass(frozen=True)
class Face:
    """A face's box in pixels of the frame's image, and how sure a detector is of it (0 to 1; None without a detector).

    It stands upright after the picture is turned clockwise by `quarters` of a whole turn.
    """

    box: Box
    score: float | None = None
    quarters: int = 0


Points = NDArray[np.float32]
FindFaces = Callable[[Frame], list[Face]]
Say = Callable[[str], None]


def face_finder(spec: PredictSpec, media: Media, say: Say) -> FindFaces:
    """The function that finds the faces of a frame. Raises SpecError that names the detector or the file of boxes."""
    if not spec.boxes:
        return _Detected(spec, say)
    if spec.boxes == WHOLE:
        return lambda frame: [Face(frame.in_image(Box(0.0, 0.0, *map(float, frame.file_size))))]
    check(media.noun == "picture", f"boxes={spec.boxes} is for pictures; {media.names[0]} needs a detector")
    file = Path(os.path.expanduser(spec.boxes))
    try:
        boxes = open_boxes(file)
        boxes.check_names(file, media.names)
        if not any(map(boxes.entry, media.names)):
            first = f"its first entry is '{next(iter(boxes.boxes))}', the first picture {printable(media.names[0])}"
            raise DatasetError(f"none of its entries is of a picture that was named: {first}")
    except DatasetError as error:
        raise SpecError(f"boxes={spec.boxes}: {error}") from None
    return lambda frame: [Face(frame.in_image(box)) for box in boxes.of(frame.name)]


class _Detected:
    """The detector's faces. Says once that it looks at tiles, and once that faces lie on their side, if so."""

    def __init__(self, spec: PredictSpec, say: Say) -> None:
        self._detect: Detect = FaceDetector(DetectorSpec(spec.detector or _at_hand(), spec.min_score, spec.side_px))
        self._spec, self._say = spec, say
        self._told_tiles, self._looks = False, LOOKS if spec.turns == 1 else 0

    def __call__(self, frame: Frame) -> list[Face]:
        image, side = frame.image, self._spec.side_px
        if self._spec.tiles and not self._told_tiles and needs_tiles(image, side):
            self._told_tiles = True
            size = "{} x {} pixels".format(*frame.file_size)
            self._say(f"{printable(frame.name)} has {size}: the detector looks at overlapping tiles of it, too")
        found = find_faces(self._detect, image, side, tiles=self._spec.tiles, turns=self._spec.turns)
        if self._looks and (not found or min(face.score for face in found) < SURE):
            self._looks -= 1
            self._look_around(frame)
        return [Face(face.box, face.score, face.quarters) for face in found]

    def _look_around(self, frame: Frame) -> None:
        """A note if the detector is surer of a face after the picture is turned: YuNet's landmarks do not tell."""
        found = find_faces(self._detect, frame.image, self._spec.side_px, tiles=False, turns=4)
        lying = [face for face in found if face.quarters and face.score >= NOTED]
        if lying:
            self._looks = 0
            where = frame.in_file(lying[0].box).center
            how = "upside down" if lying[0].quarters == 2 else "on its side"
            self._say(
                f"{printable(frame.name)}: the face at ({where[0]:.0f}, {where[1]:.0f}) seems to lie {how}, "
                "and its pose will be wrong; turns=4 looks at the turned picture, too"
            )


def _at_hand() -> str:
    """The detector that was fetched before. Raises SpecError that says how to fetch it."""
    found = cached()
    if found is None:
        raise SpecError(
            "there is no face detector here: detector=fetch downloads one, YuNet (0.3 MB), once and for all; "
            "or name its file, detector=FILE; or say where the faces are, boxes=FILE.json or boxes=whole"
        )
    return str(found)


def _upright(face: Face, image: Image, spec: PredictSpec) -> Box:
    """The face's box as the predictor gets it: in the picture turned so that the face stands upright, and scaled."""
    height, width = image.shape[:2]
    return face.box.turned(face.quarters, width, height).scaled(spec.box_scale)


def _by_quarters(
    image: Image, faces: list[Face], spec: PredictSpec
) -> Iterator[tuple[int, list[int], Image, list[Box]]]:
    """The faces that stand upright after so many quarters: their numbers, the picture turned so, their boxes there."""
    for quarters in sorted({face.quarters for face in faces}):
        which = [number for number, face in enumerate(faces) if face.quarters == quarters]
        boxes = [_upright(faces[number], image, spec) for number in which]
        yield quarters, which, turned_image(image, quarters) if quarters else image, boxes


def poses_of(predictor: HeadPosePredictor, image: Image, faces: list[Face], spec: PredictSpec) -> Poses:
    """The faces' poses in the picture as it is. A face that was found in the turned picture is seen there, then its
    pose is turned back; the spreads of pitch and yaw change places with a quarter turn, as the axes do."""
    angles, spread = np.zeros((len(faces), 3), np.float32), np.zeros((len(faces), 3), np.float32)
    for quarters, which, turned, boxes in _by_quarters(image, faces, spec):
        found = predictor.predict(turned, boxes, detected=spec.fits)
        angles[which] = turn(found.angles, -90.0 * quarters) if quarters else found.angles
        spread[which] = found.spread[:, [1, 0, 2]] if quarters % 2 else found.spread
    return Poses(angles, spread)


def landmarks_of(predictor: HeadPosePredictor, image: Image, faces: list[Face], spec: PredictSpec) -> Points | None:
    """(M, 68, 3) in pixels of the picture as it is, of a network that answers landmarks; else None."""
    if not predictor.has_landmarks:
        return None
    marks = np.zeros((len(faces), LANDMARKS, 3), np.float32)
    for quarters, which, turned, boxes in _by_quarters(image, faces, spec):
        found = predictor.landmarks(turned, boxes, detected=spec.fits)
        rows, columns = turned.shape[:2]
        for _ in range(-quarters % 4):  # a quarter clockwise
            x, y, seen = np.moveaxis(found, -1, 0)
            found, (rows, columns) = np.stack([rows - y, x, seen], -1), (columns, rows)
        marks[which] = found
    return marks


def why_unusable(face: Face, frame: Frame, predictor: HeadPosePredictor, spec: PredictSpec) -> str:
    """Why the picture does not show this box, a detector's as it is fitted for the network, by the rule of the shards;
    '' for a box that it shows."""
    name = printable(frame.name)
    try:
        if not spec.fits:
            check_box(frame.in_file(face.box), *frame.file_size, name)
        name += f", decoded at 1/{frame.scale} (max_pixels)" * (frame.scale > 1)  # the network is shown fewer pixels
        columns, rows = frame.image.shape[1::-1] if face.quarters % 2 == 0 else frame.image.shape[:2]
        shown = predictor.fitted(_upright(face, frame.image, spec), spec.fits)
        check_box(shown, columns, rows, name, predictor.crop.box_scale)
    except Rejected as rejected:
        return rejected.detail
    return ""
