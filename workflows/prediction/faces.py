"""Where the faces of a picture are: by a detector, by a file of boxes, or the whole picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpe_core.datasets.base import DatasetError, Rejected
from hpe_core.datasets.boxes import open_boxes
from hpe_core.datasets.files import printable
from hpe_core.datasets.sandbox import check_box
from hpe_core.detection.detector import FaceDetector, cached
from hpe_core.errors import SpecError, check
from hpe_core.geometry.crop import Box
from hpe_core.spec.data import DetectorSpec
from workflows.prediction.keys import WHOLE, PredictSpec
from workflows.prediction.media import Frame, Media


@dataclass(frozen=True)
class Face:
    """A face's box in pixels of the picture, and how sure a detector is of it (0 to 1; None without a detector)."""

    box: Box
    score: float | None = None


FindFaces = Callable[[Frame], list[Face]]


def face_finder(spec: PredictSpec, media: Media) -> FindFaces:
    """The function that finds the faces of a frame. Raises SpecError that names the detector or the file of boxes."""
    if not spec.boxes:
        detect = FaceDetector(DetectorSpec(spec.detector or _at_hand(), spec.min_score, spec.side_px))
        return lambda frame: [Face(found.box, found.score) for found in detect(frame.image)]
    if spec.boxes == WHOLE:
        return lambda frame: [Face(Box(0.0, 0.0, float(frame.image.shape[1]), float(frame.image.shape[0])))]
    check(media.noun == "picture", f"boxes={spec.boxes} is for pictures; {media.names[0]} needs a detector")
    file = Path(spec.boxes).expanduser()
    try:
        boxes = open_boxes(file)
        boxes.check_names(file, media.names)
    except DatasetError as error:
        raise SpecError(f"boxes={spec.boxes}: {error}") from None
    return lambda frame: [Face(box) for box in boxes.of(frame.name)]


def _at_hand() -> str:
    """The detector that was fetched before. Raises SpecError that says how to fetch it."""
    found = cached()
    if found is None:
        raise SpecError(
            "there is no face detector here: detector=fetch downloads one, YuNet (0.3 MB), once and for all; "
            "or name its file, detector=FILE; or say where the faces are, boxes=FILE.json or boxes=whole"
        )
    return str(found)


def why_unusable(face: Face, frame: Frame) -> str:
    """Why the picture does not show this box, by the rule of the shards; '' for a box that it shows."""
    try:
        check_box(face.box, frame.image.shape[1], frame.image.shape[0], printable(frame.name))
    except Rejected as rejected:
        return rejected.detail
    return ""
