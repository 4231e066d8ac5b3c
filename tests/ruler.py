"""How good is a model on photographs? The ruler of docs/champion.md, as a command:

    python -m tests.ruler score FOLDER_OF_AFLW2000 YUNET.onnx MODEL [look | choose | judge]
    python -m tests.ruler score FOLDER_OF_POINTING04 YUNET.onnx MODEL all pointing04
    python -m tests.ruler boxes FOLDER_OF_AFLW2000 YUNET.onnx MODEL look         the MAE in wider and tighter boxes
    python -m tests.ruler table FOLDER_OF_AFLW2000 YUNET.onnx OUT FACES          a folder for conf/finetune.yaml
    python -m tests.ruler strange FOLDER_OF_AFLW2000 YUNET.onnx MODEL            does it know what is no face?
    python -m tests.ruler people MODEL [COUNT]         for whom does it err more? rendered heads, each another person

The faces within 99 degrees are drawn into three parts once, by name: to look at and learn from, to choose on, to judge.
Boxes are YuNet's, fitted by the model's own contract, as `hpe predict` does; a face that YuNet does not find is left
out and counted. The table holds so many faces to look at (a sixth of them validates) and the judges to be tested on.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpe_core.datasets.base import Pose, Source, pose_of
from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.registry import open_source
from hpe_core.detection.detector import FaceDetector
from hpe_core.detection.fit import TO_LANDMARKS
from hpe_core.errors import check, one_of
from hpe_core.geometry.crop import Box, Image, overlap
from hpe_core.geometry.landmarks import landmark_errors
from hpe_core.geometry.rotation import angle_error, euler_to_matrix, geodesic_deg
from hpe_core.learning.calibration import LEVELS, calibrate, coverage
from hpe_core.learning.metrics import PoseSums, aligned_summary
from hpe_core.predictor import HeadPosePredictor, Poses
from hpe_core.render.person.style import HeadStyle, draw_style
from hpe_core.render.scene import render_head
from hpe_core.spec.data import DatasetSpec, DataSpec, DetectorSpec

PARTS = {"look": "train", "choose": "val", "judge": "test"}
LIMIT = 99
GROWN = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)  # by which factors `boxes` grows a box about its centre
PERSONS = 4096  # the data set of `people`; no network has seen it
FOUND = 0.2  # overlap from which on a detected box is the face's


@dataclass(frozen=True)
class Faces:
    """Files, pictures with YuNet's boxes, and true angles (N, 3); how many faces it did not find."""

    files: list[str]
    pictures: list[tuple[Image, Box]]
    angles: NDArray[np.float64]
    missed: int
    landmarks: list[NDArray[np.float32] | None]


def ruler(root: Path, reader: str = "aflw2000") -> tuple[Source, DataSpec]:
    source = open_source(DatasetSpec(reader, root=str(root), seed=1238, val=0.2, test=0.2))
    return source, DataSpec({"faces": source.spec}, ("faces",), ("faces",))


def faces_of(root: Path, yunet: Path, part: str, reader: str = "aflw2000") -> Faces:
    """Of a part, or of `all` three; archives of other readers have been no part of any choice."""
    check(part in (*PARTS, "all"), f"there is no part {one_of(part, [*PARTS, 'all'])}")
    source, data = ruler(root, reader)
    jobs = [job for job in plan_dataset("faces", source, data).jobs if part == "all" or job.split == PARTS[part]]
    detect, files, pictures, angles, missed = FaceDetector(DetectorSpec(str(yunet))), [], [], [], 0
    landmarks: list[NDArray[np.float32] | None] = []
    for ref in (ref for job in jobs for ref in job.refs):
        face, image = source.load(ref)
        if np.abs(face.pose).max() > LIMIT:
            continue
        own = face.known_box()
        best = max((one.box for one in detect(image)), key=lambda box, own=own: overlap(box, own), default=None)
        if best is None or overlap(best, own) < FOUND:
            missed += 1
        else:
            files.append(ref.key)
            pictures.append((image, best))
            angles.append(face.pose)
            landmarks.append(face.landmarks)
    return Faces(files, pictures, np.array(angles, dtype=np.float64), missed, landmarks)


def scores(predictor: HeadPosePredictor, faces: Faces) -> dict[str, float]:
    """Those of every report, degrees; `easy`: MAE of faces with every angle below 30; `nme`: of landmarks, % of box."""
    found = np.concatenate([predictor.predict(image, [box], detected=True).angles for image, box in faces.pictures])
    found = found.astype(np.float64)
    said = PoseSums.of(found, faces.angles).summary()
    said |= aligned_summary(found, faces.angles)
    easy = np.abs(faces.angles).max(axis=1) < 30
    said["easy"] = PoseSums.of(found[easy], faces.angles[easy]).summary()["mae"]
    if predictor.has_landmarks:
        marks = [predictor.landmarks(image, [box], detected=True)[0, :, :2] for image, box in faces.pictures]
        known = [np.full((68, 2), np.nan) if points is None else points for points in faces.landmarks]
        said["nme"] = float(np.nanmean(landmark_errors(marks, known, "box")))
    return said | {"missed": float(faces.missed)}


def boxes(predictor: HeadPosePredictor, faces: Faces) -> dict[str, float]:
    """The MAE where YuNet's boxes are so many times as wide."""
    told = {}
    for times in GROWN:
        grown = [(image, box.scaled(times)) for image, box in faces.pictures]
        told[f"x {times:g}"] = scores(predictor, replace(faces, pictures=grown))["mae"]
    return told


def strange(predictor: HeadPosePredictor, faces: Faces) -> dict[str, float]:
    """AUROC of the spread: faces against parts of their pictures that show none, and rendered heads within the range
    that was learnt against heads seen from behind. And how many of the photographs' errors lie within intervals that
    were made to hold on the rendered heads, in percent."""

    def said(image: Image, boxes: list[Box], detected: bool = False) -> Poses:
        return predictor.predict(image, boxes, detected=detected)

    faced, faceless, ahead, turned, poses = list[Poses](), list[Poses](), list[Poses](), list[Poses](), list[Pose]()
    for image, box in faces.pictures:
        faced.append(said(image, [box], detected=True))
        height, width = image.shape[:2]
        side = 0.7 * min(box.width, box.height)
        corners = [Box(x, y, x + side, y + side) for x in (0.0, width - side) for y in (0.0, height - side)]
        faceless.append(said(image, [corner for corner in corners if not overlap(corner, box)]))
    random = np.random.default_rng(0)
    for index in range(300):
        pose = pose_of(random.uniform(-1, 1, 3) * (40, 80, 40))
        poses.append(pose)
        behind = pose[0] / 2, float(np.sign(pose[1]) * random.uniform(130, 180)), pose[2] / 2
        for drawn, values in ((pose, ahead), (behind, turned)):
            head = render_head(99, index, size=128, pose=drawn)
            values.append(said(head.image, [head.box]))
    angles = [np.concatenate([one.angles for one in many]) for many in (ahead, faced)]
    spreads = [np.concatenate([one.spread for one in many]) for many in (ahead, faced, faceless, turned)]
    known, photographs, no_faces, behind_them = (np.sqrt(np.square(spread).mean(axis=1)) for spread in spreads)
    calibration = calibrate(angle_error(angles[0], poses), spreads[0])
    held = coverage(angle_error(angles[1], faces.angles), calibration.half_widths(spreads[1])).mean(axis=1)
    told = {"faces against none": auroc(photographs, no_faces), "heads against behind": auroc(known, behind_them)}
    told |= {f"held {100 * level:g} %": 100 * share for level, share in zip(LEVELS, held.tolist(), strict=True)}
    return told | {"faces": len(photographs), "no faces": len(no_faces)}


# Who is who, by the numbers of a person.
PEOPLE: dict[str, Callable[[HeadStyle], bool]] = {
    "all": lambda style: True,
    "fair skin": lambda style: float(np.mean(style.skin)) > 0.62,
    "skin between": lambda style: 0.42 < float(np.mean(style.skin)) <= 0.62,
    "dark skin": lambda style: float(np.mean(style.skin)) <= 0.42,
    "women": lambda style: style.female > 0.5 and style.age >= 18,
    "men": lambda style: style.female <= 0.5 and style.age >= 18,
    "younger than 18": lambda style: style.age < 18,
    "60 and older": lambda style: style.age >= 60,
    "long hair": lambda style: style.cut in ("long", "wavy", "bob"),
    "a hat or a cloth": lambda style: style.hat != "none",
    "glasses": lambda style: style.glasses == "clear",
    "sunglasses": lambda style: style.glasses == "sun",
    "a beard": lambda style: style.beard > 0,
    "a mask": lambda style: style.mask,
}


def people(predictor: HeadPosePredictor, count: int) -> dict[str, tuple[int, float, float]]:
    """Of each kind of PEOPLE among so many rendered persons, one picture each: how many, the mean geodesic error and
    its standard error. Angles apart would weigh profiles by how near they come to the gimbal."""
    errors, styles = [], []
    for index in range(count):
        head = render_head(PERSONS, index, size=128, heads_per_person=1)
        found = predictor.predict(head.image, [head.box]).angles[0]
        errors.append(geodesic_deg(euler_to_matrix(found), head.rotation))
        styles.append(draw_style(PERSONS, index))
    told = {}
    for name, among in PEOPLE.items():
        own = np.array([error for error, style in zip(errors, styles, strict=True) if among(style)])
        told[name] = (len(own), float(own.mean()), float(own.std() / np.sqrt(len(own))))
    return told


def auroc(ordinary: ArrayLike, strange: ArrayLike) -> float:
    """The chance that a strange one has a larger value than an ordinary one, ties halved (Mann and Whitney 1947)."""
    low, high = np.sort(np.ravel(ordinary)), np.ravel(strange)
    below, up_to = (np.searchsorted(low, high, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(low)))


def write_table(root: Path, yunet: Path, out: Path, count: int) -> None:
    """`out/manifest.csv` with the pictures beside it; boxes are YuNet's, made like those of rendered heads."""
    lines = ["path,pitch,yaw,roll,x1,y1,x2,y2,split"]
    out.mkdir(parents=True)
    for part, split in (("look", "train"), ("judge", "test")):
        faces = faces_of(root, yunet, part)
        chosen = np.random.default_rng(0).permutation(len(faces.files))[: count if part == "look" else None]
        for place, face in enumerate(chosen):
            box, name = TO_LANDMARKS.of(faces.pictures[face][1]), Path(faces.files[face]).name
            shutil.copyfile(root / faces.files[face], out / name)
            numbers = [*faces.angles[face], box.x1, box.y1, box.x2, box.y2]
            own = "val" if split == "train" and place % 6 == 0 else split
            lines.append(f"{name},{','.join(f'{number:.4f}' for number in numbers)},{own}")
    (out / "manifest.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["people"] and len(sys.argv) in (3, 4):
        count = int(sys.argv[3]) if len(sys.argv) == 4 else 2000
        for name, (number, mean, error) in people(HeadPosePredictor.load(sys.argv[2]), count).items():
            print(f"{name:<17}{number:>6}  {mean:.2f} ± {error:.2f}")
        sys.exit()
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    verb, folder, detector, *rest = sys.argv[1:]
    if verb == "table":
        write_table(Path(folder), Path(detector), Path(rest[0]), int(rest[1]))
    else:
        asked = faces_of(Path(folder), Path(detector), *(rest[1:] or ["choose"]))
        told = {"strange": strange, "boxes": boxes, "score": scores}[verb](HeadPosePredictor.load(rest[0]), asked)
        print(
            "  ".join(
                f"{name} {value:.3f}" if verb == "strange" else f"{name} {value:.2f}" for name, value in told.items()
            )
        )
