"""How good is a model on photographs? The ruler of docs/champion.md, as a command:

    python -m tests.ruler FOLDER_OF_AFLW2000 YUNET.onnx MODEL [look | choose | judge]

The faces within 99 degrees are drawn into three parts once, by name: to look at and learn from, to choose on, to judge.
Boxes are YuNet's, fitted by the model's own contract, as `hpe predict` does; a face that YuNet does not find is left
out and counted.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets.base import Source
from hpe_core.datasets.boxes import overlap
from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.registry import open_source
from hpe_core.detection.detector import FaceDetector
from hpe_core.geometry.crop import Box, Image
from hpe_core.learning.metrics import PoseSums, aligned_summary
from hpe_core.predictor import HeadPosePredictor
from hpe_core.spec.data import DatasetSpec, DataSpec, DetectorSpec

PARTS = {"look": "train", "choose": "val", "judge": "test"}
LIMIT = 99
FOUND = 0.2  # overlap from which on a detected box is the face's


@dataclass(frozen=True)
class Faces:
    """Pictures with YuNet's boxes and true angles (N, 3); how many faces it did not find."""

    pictures: list[tuple[Image, Box]]
    angles: NDArray[np.float64]
    missed: int


def ruler(root: Path) -> tuple[Source, DataSpec]:
    source = open_source(DatasetSpec("aflw2000", root=str(root), seed=1238, val=0.2, test=0.2))
    return source, DataSpec({"faces": source.spec}, ("faces",), ("faces",))


def faces_of(root: Path, yunet: Path, part: str) -> Faces:
    source, data = ruler(root)
    jobs = [job for job in plan_dataset("faces", source, data).jobs if job.split == PARTS[part]]
    detect, pictures, angles, missed = FaceDetector(DetectorSpec(str(yunet))), [], [], 0
    for ref in (ref for job in jobs for ref in job.refs):
        face, image = source.load(ref)
        if np.abs(face.pose).max() > LIMIT:
            continue
        own = face.known_box()
        best = max((one.box for one in detect(image)), key=lambda box, own=own: overlap(box, own), default=None)
        if best is None or overlap(best, own) < FOUND:
            missed += 1
        else:
            pictures.append((image, best))
            angles.append(face.pose)
    return Faces(pictures, np.array(angles, dtype=np.float64), missed)


def scores(predictor: HeadPosePredictor, faces: Faces) -> dict[str, float]:
    """Those of every report, degrees; `easy` is the MAE of faces with every angle below 30."""
    found = np.concatenate([predictor.predict(image, [box], detected=True).angles for image, box in faces.pictures])
    found = found.astype(np.float64)
    said = PoseSums.of(found, faces.angles).summary()
    said |= aligned_summary(found, faces.angles)
    easy = np.abs(faces.angles).max(axis=1) < 30
    said["easy"] = PoseSums.of(found[easy], faces.angles[easy]).summary()["mae"]
    return said | {"missed": float(faces.missed)}


if __name__ == "__main__":
    folder, yunet, model, *part = sys.argv[1:]
    told = scores(HeadPosePredictor.load(model), faces_of(Path(folder), Path(yunet), part[0] if part else "choose"))
    print("  ".join(f"{name} {value:.2f}" for name, value in told.items()))
