"""Tiny archives in the real formats, for tests that run without the real ones."""

import csv
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from scipy.spatial.transform import Rotation

from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.render.person.anatomy import landmark_targets
from hpe_core.spec.data import ConventionSpec

Pose = tuple[float, float, float]


def picture(seed: int, height: int = 120, width: int = 120) -> np.ndarray:
    """(H, W, 3) uint8: smooth colours with some texture, so that a JPEG of it has something to lose."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


JPEG = cv2.imencode(".jpg", picture(3, 50, 70))[1].tobytes()


def write_mat(path: Path, pose: Pose, variables: dict[str, object]) -> None:
    """A .mat of 3DDFA: its pose, unless `variables` have another (None leaves one out)."""
    variables = {"Pose_Para": np.array([[*np.radians(pose), 1.0, 2.0, 3.0, 0.001]], np.float32)} | variables
    scipy.io.savemat(path, {key: value for key, value in variables.items() if value is not None})


def write_aflw2000(root: Path, name: str, pose: Pose = (5.0, 20.0, -3.0), *, seed: int = 0, **change: object) -> Path:
    """One image with its .mat; `change` replaces variables (None leaves one out). Returns the image's path."""
    root.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / f"{name}.jpg"), picture(seed))
    head = np.random.default_rng(7).uniform(-1, 1, (3, 68)) * np.array([[30.0], [38.0], [20.0]])
    points = euler_to_matrix(pose) @ head + np.array([[60.0], [60.0], [0.0]])
    write_mat(root / f"{name}.mat", pose, {"pt3d_68": points.astype(np.float32), "pt2d": -np.ones((2, 21))} | change)
    return root / f"{name}.jpg"


def write_average_heads(root: Path, poses: np.ndarray, labels: np.ndarray) -> None:
    """An AFLW2000 whose landmarks are those of the average head at `poses`, labelled as said."""
    for i, (pose, label) in enumerate(zip(poses, labels, strict=True)):
        points = (0.5 * landmark_targets() @ euler_to_matrix(pose).T + [60, 50, 0]).T
        write_aflw2000(root, f"image{i:05d}", tuple(label), seed=i, pt3d_68=points)


def pts_text(points: np.ndarray, count: int = 68) -> str:
    """A .pts of 300W; points (N, 2) as it writes them, the first pixel's centre at 1."""
    lines = "\n".join(f"{x} {y}" for x, y in points.tolist())
    return f"version: 1\nn_points:  {count}\n{{\n{lines}\n}}\n"


def write_300w(root: Path, name: str, points: np.ndarray) -> Path:
    """One image with its .pts; points (68, 2), pixels from the first one's corner. Returns the image's path."""
    path = root / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture(len(name)))
    path.with_suffix(".pts").write_text(pts_text(points + 0.5))
    return path


def write_pointing04(root: Path, person: int, number: int, tilt: int, pan: int, text: str = "") -> Path:
    """One image with its text; returns the image's path."""
    name = f"person{person:02d}1{number:02d}{tilt:+d}{pan:+d}"
    folder = root / f"Person{person:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{name}.jpg"), picture(number, 96, 128))
    (folder / f"{name}.txt").write_text(text or f"{name}.jpg\n\nFace\n64\n48\n40\n50\n")
    return folder / f"{name}.jpg"


def write_300w_lp(
    root: Path,
    subset: str,
    name: str,
    pose: Pose = (5.0, 20.0, -3.0),
    marks: np.ndarray | None = None,
    *,
    flip: bool = False,
    width: int = 100,
    **change: object,
) -> Path:
    """One picture (80 high) with its .mat, whose pt2d lies elsewhere than `marks`, the (68, 2) of landmarks/.

    The mirror writes no landmarks. `change` replaces variables of the .mat (None leaves one out).
    """
    folder = root / (f"{subset}_Flip" if flip else subset)
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{name}.jpg"), picture(len(name), 80, width))
    write_mat(folder / f"{name}.mat", pose, {"pt2d": np.random.default_rng(3).uniform(20, 50, (2, 68))} | change)
    if marks is not None and not flip:
        path = root / "landmarks" / subset / f"{name}_pts.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(path, {"pts_2d": marks, "pts_3d": marks + 1})
    return folder / f"{name}.jpg"


AFLW_TABLES = {
    "FaceImages": "image_id INTEGER PRIMARY KEY, db_id TEXT, file_id TEXT, filepath TEXT, bw, width, height",
    "Faces": "face_id INTEGER PRIMARY KEY, file_id TEXT, db_id TEXT",
    "FaceRect": "face_id INTEGER PRIMARY KEY, x INT, y INT, w INT, h INT, annot_type_id INT",
    "FacePose": "face_id INTEGER PRIMARY KEY, roll REAL, pitch REAL, yaw REAL, annot_type_id INT",
    "FeatureCoords": "face_id INTEGER, feature_id INTEGER, x REAL, y REAL, annot_type_id INTEGER",
}


def write_aflw(root: Path, faces: Sequence[dict[str, object]], *, leave_out: str = "") -> Path:
    """An AFLW: `faces` have face, file, and optionally rect (x, y, w, h), pose (pitch, yaw, roll radians) and marks
    (feature id -> (x, y)).

    Every named file gets a picture under data/flickr/2, unless `listed` is False. Returns the SQLite file.
    """
    folder = root / "data" / "flickr" / "2"
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Sequence[object]]] = {table: [] for table in AFLW_TABLES}
    for file in dict.fromkeys(str(face["file"]) for face in faces if face.get("listed", True)):
        cv2.imwrite(str(folder / file), picture(len(file), 90, 130))
        rows["FaceImages"].append((None, "flickr", file, f"2/{file}", 0, 130, 90))
    for face in faces:
        rows["Faces"].append((face["face"], face["file"], "flickr"))
        if "rect" in face:
            rows["FaceRect"].append((face["face"], *face["rect"], 1))
        if "pose" in face:
            pitch, yaw, roll = face["pose"]
            rows["FacePose"].append((face["face"], roll, pitch, yaw, 1))
        rows["FeatureCoords"] += [(face["face"], mark, *place, 1) for mark, place in face.get("marks", {}).items()]
    with closing(sqlite3.connect(root / "aflw.sqlite")) as database:
        for table in [name for name in AFLW_TABLES if name != leave_out]:
            database.execute(f"CREATE TABLE {table} ({AFLW_TABLES[table]})")
            for row in rows[table]:
                database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        database.commit()
    return root / "aflw.sqlite"


ROTATION = "0.999947 0.00432361 0.00929419\n-0.00446314 0.999877 0.0150443\n-0.009228 -0.015085 0.999844\n\n"
BIWI_CAL = f"517.679 0 320\n0 511.25 240.5\n0 0 1\n\n0 0 0 0\n\n{ROTATION}-24.0198 5.8896 -13.2308\n\n640 480\n"


def write_biwi(
    hpdb: Path,
    sequence: int,
    frame: int,
    rotation: np.ndarray | None = None,
    center: Sequence[float] = (50.0, 40.0, 900.0),
    *,
    text: str = "",
) -> Path:
    """One frame: picture, pose.txt (or `text`) and the sequence's rgb.cal. Returns the picture's path."""
    folder = hpdb / f"{sequence:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"frame_{frame:05d}_rgb.png"), picture(sequence, 480, 640))
    rows = np.eye(3) if rotation is None else rotation
    lines = [" ".join(f"{value:g}" for value in row) + " " for row in [*rows, [], center]]
    (folder / f"frame_{frame:05d}_pose.txt").write_text(text or "\n".join(lines) + "\n")
    (folder / "rgb.cal").write_text(BIWI_CAL)
    return folder / f"frame_{frame:05d}_rgb.png"


def as_stored(poses: np.ndarray, convention: ConventionSpec) -> np.ndarray:
    """(N, 3) poses in our convention -> the labels of an archive that `convention` turns back into them.

    Decoded by SciPy, so that the product is checked against somebody else's.
    """
    rotation = Rotation.from_matrix(euler_to_matrix(poses))
    stored = rotation.inv() if convention.transposed else rotation
    decoded = stored.as_euler(convention.rotation.upper(), degrees=True)
    turns = {axis: decoded[:, i] for i, axis in enumerate(convention.rotation)}
    signs = (-convention.pitch_sign, convention.yaw_sign, convention.roll_sign)
    named = {name: turns[axis] * sign for name, axis, sign in zip(("pitch", "yaw", "roll"), "xyz", signs, strict=True)}
    angles = np.stack([named[name] for name in convention.order.split("_")], axis=1)
    unit = {"as_read": 1.0, "radians_as_degrees": np.pi / 180, "degrees_as_radians": 180 / np.pi}
    return np.asarray(angles * unit[convention.unit])


def write_manifest(root: Path, rows: Sequence[dict[str, Any]], kind: str = "csv", *, pictures: bool = True) -> Path:
    """The rows as manifest.<kind>, with a picture for every path inside the folder."""
    root.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path = root / f"manifest.{kind}"
    if kind == "csv":
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{key: row.get(key) for key in columns} for row in rows]), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        place = str(row.get("path") or "")
        if pictures and place and not place.startswith(("/", "..")):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / place), picture(len(place), 70, 90))
    return path


def write_boxes(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)
