"""300W-LP, AFLW, BIWI, manifests and published boxes: archives of the exact layout, and samples of the real ones."""

import csv
import dataclasses
import itertools
import json
import pickle
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from hpe_core.convention_check import POINTS
from hpe_core.crop import Box
from hpe_core.plain import SpecError
from hpe_core.rotation import euler_to_matrix, geodesic_deg, is_rotation, matrix_to_euler
from hpe_core.sandbox import Sandbox, load_directly
from hpe_core.sources import aflw, biwi
from hpe_core.sources.base import Annotation, DatasetError, FaceRef, Rejected, Source, census
from hpe_core.sources.boxes import overlap
from hpe_core.sources.plan import plan_dataset
from hpe_core.sources.registry import open_source
from hpe_core.sources.w300lp import MIRROR_68
from hpe_core.spec import CropSpec, DatasetSpec, DataSpec, Reader
from tests.archives import picture, write_300w_lp, write_aflw, write_aflw2000, write_biwi
from workflows.card import TERMS
from workflows.config import load
from workflows.full_pipeline import data_leaves

RNG = np.random.default_rng(11)
MARKS = RNG.uniform([30, 10], [70, 70], (68, 2))


def source(reader: str, root: Path, **more: object) -> Source:
    return open_source(DatasetSpec(reader=reader, root=str(root), **more))  # type: ignore[arg-type]


def loaded(opened: Source) -> dict[str, Annotation]:
    return {ref.sample_id: opened.load(ref)[0] for ref in opened.refs()}


def only(opened: Source) -> FaceRef:
    (ref,) = opened.refs()
    return ref


def rejected(opened: Source, ref: FaceRef | None = None) -> tuple[str, str]:
    """(reason, sentence) of a face, by default the only one."""
    with pytest.raises(Rejected) as caught:
        opened.load(ref or only(opened))
    assert "\n" not in caught.value.detail
    return caught.value.reason, caught.value.detail


def refusal(use: Callable[[], object]) -> str:
    with pytest.raises(DatasetError) as caught:
        use()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def corners(box: Box) -> tuple[float, float, float, float]:
    return box.x1, box.y1, box.x2, box.y2


def splits(spec: DatasetSpec, *, train: bool = True, test: bool = True) -> dict[str, str]:
    """Key of each face -> the split that the plan puts it into."""
    named = {"it": spec, "other": DatasetSpec("synthetic", count=4)}
    data = DataSpec(named, ("it",) if train else ("other",), ("it",) if test else ())
    plan = plan_dataset("it", open_source(spec), data)
    return {ref.key: job.split for job in plan.jobs for ref in job.refs}


# ---------------------------------------------------------------- 300W-LP


def test_300w_lp_takes_the_box_from_landmarks_and_not_from_pt2d(tmp_path: Path) -> None:
    write_300w_lp(tmp_path, "AFW", "AFW_134212_1_3", (12.0, -34.5, 7.25), MARKS)
    opened = source("300w_lp", tmp_path, landmark_box_scale=1.5)
    ref = only(opened)
    assert (ref.sample_id, ref.group) == ("AFW/AFW_134212_1_3", "AFW/AFW_134212_1")
    annotation, image = opened.load(ref)
    assert annotation.pose == pytest.approx((12.0, -34.5, 7.25), abs=1e-4) and image.shape == (80, 100, 3)
    assert annotation.landmarks == pytest.approx(MARKS - 0.5, abs=1e-4)
    low, high = MARKS.min(0) - 0.5, MARKS.max(0) - 0.5
    center, half = (low + high) / 2, (high - low) / 2 * 1.5
    assert corners(annotation.box) == pytest.approx((*(center - half), *(center + half)))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**20), width=st.integers(60, 140), variant=st.integers(0, 17))
def test_300w_lp_mirror_is_the_mirrored_face(tmp_path_factory: Any, seed: int, width: int, variant: int) -> None:
    root = tmp_path_factory.mktemp("lp")
    marks = np.random.default_rng(seed).uniform([5, 5], [width - 5, 75], (68, 2))
    name = f"HELEN_1_{variant}"
    write_300w_lp(root, "HELEN", name, (10.0, 30.0, 5.0), marks, width=width)
    write_300w_lp(root, "HELEN", name, (10.0, -30.0, -5.0), flip=True, width=width)
    both = loaded(source("300w_lp", root))
    first, second = both[f"HELEN/{name}"], both[f"HELEN_Flip/{name}"]
    assert corners(second.box) == pytest.approx(corners(first.box.mirrored(width)), abs=1e-6)
    assert first.landmarks is not None and second.landmarks is not None
    apart = cdist(second.landmarks, first.landmarks * [-1, 1] + [width, 0])
    assert max(apart.min(0).max(), apart.min(1).max()) < 1e-3  # the same points, whatever their numbers
    assert second.landmarks[36] == pytest.approx([width - first.landmarks[45, 0], first.landmarks[45, 1]], abs=1e-3)
    assert second.pose == pytest.approx((10.0, -30.0, -5.0), abs=1e-4)


def test_mirror_numbering_swaps_left_and_right_along_every_contour() -> None:
    assert sorted(MIRROR_68) == list(range(68)) and np.array_equal(MIRROR_68[MIRROR_68], np.arange(68))
    assert [i for i in range(68) if MIRROR_68[i] == i] == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    for left, right in (
        (0, 16),
        (17, 26),
        (31, 35),
        (36, 45),
        (39, 42),
        (37, 44),
        (41, 46),
        (48, 54),
        (59, 55),
        (60, 64),
    ):
        assert MIRROR_68[left] == right
    lines = ((0, 17), (17, 22), (22, 27), (27, 31), (31, 36), (48, 55), (55, 60), (60, 65), (65, 68))
    for start, end in lines:
        assert set(np.abs(np.diff(MIRROR_68[start:end]))) == {1}


def test_mirror_numbering_fits_real_heads(real_data: Path) -> None:
    """A head is symmetric: its 3-D points, turned to the front and mirrored, lie on themselves when renumbered."""
    for path in sorted((real_data / "aflw2000").glob("*.mat"))[::5]:
        mat = scipy.io.loadmat(path)
        points = (mat["pt3d_68"].T * [1, 1, -1]) @ euler_to_matrix(np.degrees(mat["Pose_Para"][0, :3]))
        points -= points.mean(0)
        mirrored = points * [-1, 1, 1]
        error = np.linalg.norm(mirrored[MIRROR_68] - points, axis=1).mean() / np.ptp(points[:, 0])
        assert error < 0.06 < np.linalg.norm(mirrored - points, axis=1).mean() / np.ptp(points[:, 0])


def test_300w_lp_without_landmarks_trusts_the_unrotated_variant_alone(tmp_path: Path) -> None:
    for flip, variant in itertools.product((False, True), (0, 1, 10)):
        write_300w_lp(tmp_path, "IBUG", f"IBUG_image_003_1_{variant}", flip=flip)
    opened = source("300w_lp", tmp_path, landmark_box_scale=1.0)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    points = scipy.io.loadmat(tmp_path / "IBUG" / "IBUG_image_003_1_0.mat")["pt2d"].T - 0.5
    for folder in ("IBUG", "IBUG_Flip"):  # the mirror's own pt2d is mirrored already
        annotation, _ = opened.load(refs[f"{folder}/IBUG_image_003_1_0"])
        assert corners(annotation.box) == pytest.approx((*points.min(0), *points.max(0)))
        assert annotation.landmarks is not None
        assert annotation.landmarks[0] == pytest.approx(points[16 if "Flip" in folder else 0], abs=1e-4)
        for variant in (1, 10):
            reason, said = rejected(opened, refs[f"{folder}/IBUG_image_003_1_{variant}"])
            assert reason == "no_box" and "/landmarks is missing" in said and "unrotated" in said
    (tmp_path / "landmarks").mkdir()
    reason, said = rejected(opened, refs["IBUG_Flip/IBUG_image_003_1_1"])
    assert reason == "no_box" and "landmarks/IBUG/IBUG_image_003_1_1_pts.mat is missing" in said


def test_300w_lp_keeps_a_face_its_variants_and_mirrors_together(tmp_path: Path) -> None:
    faces = [("AFW", f"AFW_{n}_1") for n in range(8)] + [("HELEN", f"HELEN_{n}_{m}") for n in range(6) for m in (1, 2)]
    for (subset, base), variant, flip in itertools.product(faces, (0, 3, 12), (False, True)):
        write_300w_lp(tmp_path, subset, f"{base}_{variant}", flip=flip)
    write_300w_lp(tmp_path, "AFW", "AFW_0_1_Flip_5", flip=True)  # the flip may stand in the name, too
    spec = DatasetSpec("300w_lp", root=str(tmp_path), val=0.25, test=0.25)
    placed = splits(spec)
    assert len(placed) == len(faces) * 6 + 1 and set(placed.values()) == {"train", "val", "test"}
    where: dict[str, set[str]] = {}
    for key, split in placed.items():
        where.setdefault(Path(key).stem.replace("_Flip", "").rsplit("_", 1)[0], set()).add(split)
    assert len(where) == len(faces) and all(len(found) == 1 for found in where.values())
    refs = list(open_source(spec).refs())
    assert len({ref.sample_id for ref in refs}) == len(refs) and len({ref.group for ref in refs}) == len(faces)
    write_300w_lp(tmp_path, "LFPW", "AFW_0_1_0")  # of another subset: somebody else
    assert len({ref.group for ref in open_source(spec).refs()}) == len(faces) + 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Pose_Para": None}, "bad_annotation"),
        ({"Pose_Para": np.array([[0.1, np.nan, 0]])}, "nan_pose"),
        ({"Pose_Para": np.array([[0.1, 0.2]])}, "bad_annotation"),
        ({"pt2d": None}, "bad_annotation"),
        ({"pt2d": np.zeros((2, 21))}, "no_box"),
        ({"pt2d": np.full((2, 68), np.inf)}, "bad_annotation"),
    ],
)
def test_300w_lp_bad_annotations(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    write_300w_lp(tmp_path, "LFPW", "LFPW_image_test_0001_0", **change)  # type: ignore[arg-type]
    found, said = rejected(source("300w_lp", tmp_path))
    assert found == reason and "LFPW_image_test_0001_0.mat" in said


def test_300w_lp_wild_labels_pass_and_halves_are_rejected(tmp_path: Path) -> None:
    write_300w_lp(tmp_path, "AFW", "AFW_1_1_0", (-714.0, 351.0, 2.0))
    opened = source("300w_lp", tmp_path)
    assert opened.load(only(opened))[0].pose == pytest.approx((-714.0, 351.0, 2.0), abs=1e-3)
    before = opened.fingerprint()
    (tmp_path / "AFW" / "AFW_1_1_0.mat").rename(tmp_path / "AFW" / "AFW_2_1_0.mat")
    reasons = {ref.sample_id: rejected(opened, ref)[0] for ref in opened.refs()}
    assert reasons == {"AFW/AFW_1_1_0": "unreadable_file", "AFW/AFW_2_1_0": "unreadable_file"}
    assert opened.fingerprint() != before
    assert "none of the folders AFW, HELEN" in refusal(lambda: list(source("300w_lp", tmp_path / "AFW").refs()))


def test_300w_lp_fingerprint_sees_the_landmarks(tmp_path: Path) -> None:
    write_300w_lp(tmp_path, "AFW", "AFW_1_1_0", marks=MARKS)
    opened = source("300w_lp", tmp_path)
    before = opened.fingerprint()
    assert before == opened.fingerprint()
    (tmp_path / "landmarks" / "AFW" / "AFW_1_1_0_pts.mat").unlink()
    assert opened.fingerprint() != before


def test_300w_lp_sample(real_data: Path) -> None:
    """What the module says of the sample, read without our code where that is possible."""
    root = real_data / "300W_LP"
    mats = {path: scipy.io.loadmat(path) for path in sorted(root.rglob("*.mat"))}
    for folder, sign in (("HELEN", 1.0), ("HELEN_Flip", -1.0)):
        first, turned = (mats[root / folder / f"HELEN_232194_1_{k}.mat"] for k in (0, 1))
        assert np.array_equal(first["pt2d"], turned["pt2d"])  # the trap
        assert np.sign(first["Pose_Para"][0, 1]) == -sign
    across = (
        mats[root / "HELEN" / "HELEN_232194_1_0.mat"]["pt2d"],
        mats[root / "HELEN_Flip" / "HELEN_232194_1_0.mat"]["pt2d"],
    )
    assert across[0][0] + across[1][0] == pytest.approx(np.full(68, 451.0)) and np.array_equal(
        across[0][1], across[1][1]
    )
    for k in (0, 1):
        here, there = (cv2.imread(str(root / f / f"HELEN_232194_1_{k}.jpg")) for f in ("HELEN", "HELEN_Flip"))
        assert here is not None and there is not None
        mirror = here[:, ::-1].astype(int)
        assert np.abs(mirror - there).mean() < 2.5 < np.abs(np.roll(mirror, 1, axis=1) - there).mean()
    opened = source("300w_lp", root)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    assert len(refs) == 4 and len({ref.group for ref in refs.values()}) == 1
    first, second = (opened.load(refs[f"{f}/HELEN_232194_1_0"])[0] for f in ("HELEN", "HELEN_Flip"))
    assert corners(second.box) == pytest.approx(corners(first.box.mirrored(450)))
    assert second.pose == pytest.approx(np.array(first.pose) * [1, -1, -1], abs=1.5)
    for folder in ("HELEN", "HELEN_Flip"):
        assert rejected(opened, refs[f"{folder}/HELEN_232194_1_1"])[0] == "no_box"


# ---------------------------------------------------------------- AFLW

FACES = [
    {"face": 39341, "file": "image00002.jpg", "rect": (10, 20, 60, 50), "pose": (0.1, -0.5, 0.25)},
    {"face": 39342, "file": "image00002.jpg", "rect": (70, 5, 40, 45), "pose": (-0.2, 1.0, -1.5)},
    {"face": 7, "file": "image00013.jpg", "rect": (-5, 0, 90, 95), "pose": (6.0, 0.0, 0.0)},
]


def test_aflw_reads_every_face_of_a_picture(tmp_path: Path) -> None:
    place = write_aflw(tmp_path, FACES)
    content = place.read_bytes()
    opened = source("aflw", tmp_path)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    assert {ref.group for ref in refs.values()} == {"image00002", "image00013"} and len(refs) == 3
    assert refs["face39341"].group == refs["face39342"].group == "image00002"
    assert {ref.key for ref in refs.values()} == {"data/flickr/2/image00002.jpg", "data/flickr/2/image00013.jpg"}
    for face in FACES:
        annotation, image = opened.load(refs[f"face{face['face']}"])
        x, y, width, height = face["rect"]  # type: ignore[misc]
        assert corners(annotation.box) == (x, y, x + width, y + height) and image.shape == (90, 130, 3)
        pitch, yaw, roll = np.degrees(face["pose"])  # type: ignore[arg-type]
        assert annotation.pose == pytest.approx((pitch, yaw, -roll)) and annotation.landmarks is None
    assert place.read_bytes() == content and sorted(p.name for p in tmp_path.iterdir()) == ["aflw.sqlite", "data"]
    place.rename(tmp_path / "data" / "aflw.sqlite")
    assert {ref.sample_id for ref in opened.refs()} == set(refs)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rect": None}, "no_box"),
        ({"pose": None}, "bad_annotation"),
        ({"pose": (None, 0.1, 0.2)}, "bad_annotation"),
        ({"pose": (float("inf"), 0.1, 0.2)}, "nan_pose"),
        ({"rect": (1, "left", 3, 4)}, "bad_annotation"),
        ({"listed": False}, "bad_annotation"),
    ],
)
def test_aflw_rejects_faces_that_lack_something(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    face = {key: value for key, value in {**FACES[0], **change}.items() if value is not None}
    write_aflw(tmp_path, [face, FACES[2]])
    opened = source("aflw", tmp_path)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    found, said = rejected(opened, refs["face39341"])
    assert found == reason and "face39341" in said
    opened.load(refs["face7"])
    (tmp_path / "data" / "flickr" / "2" / "image00013.jpg").unlink()
    assert rejected(opened, refs["face7"])[0] == "unreadable_file"


def test_aflw_gives_the_landmarks_that_are_among_the_68(tmp_path: Path) -> None:
    marks = {feature: (float(feature), 2.0 * feature) for feature in range(1, 22)}
    write_aflw(tmp_path, [{**FACES[0], "marks": marks}, FACES[2]])
    faces = loaded(source("aflw", tmp_path))
    first, other = faces["face39341"], faces["face7"]
    assert first.landmarks is not None and first.visible is not None
    assert set(np.flatnonzero(first.visible)) == set(POINTS), "those that the doctor solves poses from"
    assert first.landmarks[8].tolist() == [21, 42] and first.landmarks[54].tolist() == [20, 40]
    assert other.landmarks is None and other.visible is None
    for folder, place in (("words", ("left", 3)), ("infinite", (np.inf, 3.0))):
        write_aflw(tmp_path / folder, [{**FACES[0], "marks": {15: place}}])
        assert rejected(source("aflw", tmp_path / folder))[0] == "bad_annotation"
    write_aflw(tmp_path / "without", FACES, leave_out="FeatureCoords")
    assert all(face.landmarks is None for face in loaded(source("aflw", tmp_path / "without")).values())


@pytest.mark.parametrize("table", ["FaceImages", "Faces", "FaceRect", "FacePose"])
def test_aflw_without_a_table_is_one_sentence(tmp_path: Path, table: str) -> None:
    write_aflw(tmp_path, FACES, leave_out=table)
    assert f"no such table: {table}" in refusal(lambda: list(source("aflw", tmp_path).refs()))


def test_aflw_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    opened = source("aflw", tmp_path / "here")
    assert "here is not a folder" in refusal(lambda: list(opened.refs()))
    (tmp_path / "here").mkdir()
    assert "holds no aflw.sqlite" in refusal(opened.fingerprint)
    place = write_aflw(tmp_path / "here", FACES)
    whole = place.read_bytes()
    for content in (b"not a database at all" * 200, b"", whole[:2000], whole[:100] + bytes(len(whole) - 100)):
        place.write_bytes(content)
        assert "aflw.sqlite cannot be read as AFLW's SQLite file" in refusal(lambda: list(opened.refs()))
    place.write_bytes(whole)
    place.with_name("aflw.sqlite-journal").write_bytes(b"half")
    assert "aflw.sqlite-journal shows that a program is writing" in refusal(lambda: list(opened.refs()))


def test_aflw_does_not_wait_for_a_lock(tmp_path: Path) -> None:
    place = write_aflw(tmp_path, FACES)
    other = sqlite3.connect(place)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(place, timeout=0).execute("SELECT * FROM Faces")
    opened = source("aflw", tmp_path)
    assert len(list(opened.refs())) == len(loaded(opened)) == 3
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        aflw.connect(place).execute("DELETE FROM Faces")
    other.close()


def test_aflw_fingerprint_sees_database_and_pictures(tmp_path: Path) -> None:
    place = write_aflw(tmp_path, FACES)
    opened = source("aflw", tmp_path)
    seen = [opened.fingerprint(), opened.fingerprint()]
    (tmp_path / "data" / "flickr" / "2" / "image00013.jpg").unlink()
    seen.append(opened.fingerprint())
    place.write_bytes(place.read_bytes() + bytes(4096))
    seen.append(opened.fingerprint())
    assert seen[0] == seen[1] and len(set(seen)) == 3


# ---------------------------------------------------------------- BIWI

FIXTURE = [[0.45684, -0.404949, -0.792031], [-0.103806, 0.860022, -0.499587], [0.883471, 0.310449, 0.350856]]


def test_biwi_fixture(tmp_path: Path) -> None:
    write_biwi(tmp_path / "hpdb", 1, 501, np.array(FIXTURE))
    opened = source("biwi", tmp_path)
    pose = opened.load(only(opened))[0].pose
    assert pose == pytest.approx((-54.92, -52.38, 41.55), abs=0.01)
    assert matrix_to_euler(np.array(FIXTURE).T) != pytest.approx(pose, abs=5)  # the old loaders' reading


@settings(max_examples=15, deadline=None)
@given(
    pose=st.tuples(st.floats(-99, 99), st.floats(-85, 85), st.floats(-99, 99)),
    center=st.tuples(st.floats(-200, 200), st.floats(-150, 150), st.floats(700, 1300)),
)
def test_biwi_pose_and_box_follow_the_files(tmp_path_factory: Any, pose: Any, center: Any) -> None:
    """The box against OpenCV's projection of its middle and of two points half its size beside it."""
    root = tmp_path_factory.mktemp("biwi")
    write_biwi(root, 4, 10, euler_to_matrix(pose), center)
    opened = source("biwi", root)
    annotation, image = opened.load(only(opened))
    assert geodesic_deg(euler_to_matrix(annotation.pose), euler_to_matrix(pose)) < 0.01
    assert image.shape == (480, 640, 3)
    values = np.array([float(word) for word in (root / "04" / "rgb.cal").read_text().split()])
    turn, shift = values[13:22].reshape(3, 3), values[22:25]
    written = np.array([float(f"{value:g}") for value in center])
    spread = (
        turn.T @ np.array([[0, 0, 0], [100, 0, 0], [0, 100, 0]], float).T
    )  # beside it, as the colour camera sees it
    corner, _ = cv2.Rodrigues(turn)
    points, _ = cv2.projectPoints((written[:, None] + spread).T.copy(), corner, shift, values[:9].reshape(3, 3), None)
    middle, right, below = points[:, 0]
    assert annotation.box.center == pytest.approx(tuple(middle), abs=0.01)
    assert annotation.box.width / 2 == pytest.approx(right[0] - middle[0], abs=0.01)
    assert annotation.box.height / 2 == pytest.approx(below[1] - middle[1], abs=0.01)


def test_biwi_sample(real_data: Path) -> None:
    """YuNet finds the nose tip at (343.0, 274.9), and the face at (301.7, 210.8) ... (384.8, 321.9)."""
    for root in (real_data / "biwi", real_data / "biwi" / "hpdb"):
        opened = source("biwi", root)
        ref = only(opened)
        assert (ref.sample_id, ref.group) == ("01/frame_00003", "person01")
        annotation, image = opened.load(ref)
        assert image.shape == (480, 640, 3)
        assert np.hypot(*np.subtract(annotation.box.center, (343.0, 274.9))) < 2
        assert overlap(annotation.box, Box(301.7, 210.8, 384.8, 321.9)) > 0.6
        assert annotation.pose == pytest.approx((7.607, 3.291, -1.567), abs=0.001)
        (face,) = load_directly(opened, CropSpec(), [ref])
        assert not isinstance(face, Rejected)
    assert census(opened) == "1 face; the whole archive has 15,678: this is a part"


def test_biwi_splits_by_person_or_as_published(tmp_path: Path) -> None:
    for sequence in range(1, 25):
        write_biwi(tmp_path / "hpdb", sequence, 3)
    spec = DatasetSpec("biwi", root=str(tmp_path), test_groups=biwi.LEAK_FREE_TEST_GROUPS, val=0.1)

    def people(key: str) -> str:
        return {"15": "03", "18": "05", "21": "02", "22": "07"}.get(key[:2], key[:2])

    placed = splits(spec)
    sides: dict[str, set[str]] = {}
    for key, split in placed.items():
        sides.setdefault(people(key), set()).add(split)
    assert len(sides) == 20 and all(len(found) == 1 for found in sides.values())
    assert sorted(key[:2] for key, split in placed.items() if split == "test") == ["06", "07", "10", "13", "22"]
    assert set(placed.values()) == {"train", "val", "test"}

    published = dataclasses.replace(spec, group_by="sequence", test_groups=biwi.PUBLISHED_TEST_GROUPS)
    placed = splits(published)
    tested = {key[:2] for key, split in placed.items() if split == "test"}
    assert tested == {"06", "07", "10", "13", "15", "18", "21", "22"} and len(placed) == 24
    trained = {people(key) for key, split in placed.items() if split == "train" or split == "val"}
    assert {name for name in tested if people(name) in trained} == {"15", "18", "21"}  # the leak
    groups = {ref.key[:2]: ref.group for ref in open_source(spec).refs()}
    assert groups == {f"{i:02d}": f"person{people(f'{i:02d}')}" for i in range(1, 25)}

    assert "did you mean 'person" in refusal(lambda: splits(dataclasses.replace(spec, test_groups=("person15",))))
    with pytest.raises(SpecError, match="group_by: sequence is for reader biwi"):
        DatasetSpec("aflw2000", root="a", group_by="sequence")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 0 0\n0 1 0\n0 0 1\n\n0 0 900\n", None),
        ("1 0 0 0 1 0 0 0 1 0 0 900", None),
        ("1 0 0\n0 1 0\n0 0 1\n", "bad_annotation"),
        ("1 0 0\n0 1 0\n0 0 one\n\n0 0 900\n", "bad_annotation"),
        ("1 0 0\n0 nan 0\n0 0 1\n\n0 0 900\n", "nan_pose"),
        ("1 0 0\n0 1 0\n0 0 -1\n\n0 0 900\n", "bad_annotation"),
        ("2 0 0\n0 1 0\n0 0 1\n\n0 0 900\n", "bad_annotation"),
        ("1 0 0\n0 1 0\n0 0 1\n\n0 0 -900\n", "no_box"),
        ("1 0 0\n0 1 0\n0 0 1\n\n0 nan 900\n", "no_box"),
        (" ", "bad_annotation"),
    ],
)
def test_biwi_texts(tmp_path: Path, text: str, reason: str | None) -> None:
    write_biwi(tmp_path, 2, 9, text=text)
    opened = source("biwi", tmp_path)
    if reason is None:
        assert opened.load(only(opened))[0].pose == pytest.approx((0, 0, 0), abs=1e-9)
    else:
        found, said = rejected(opened)
        assert found == reason and "/02/" in said


def test_biwi_lists_what_is_half_there(tmp_path: Path) -> None:
    for frame in (1, 2, 3):
        write_biwi(tmp_path, 2, frame)
    (tmp_path / "02" / "frame_00001_rgb.png").unlink()
    (tmp_path / "02" / "frame_00002_pose.txt").unlink()
    (tmp_path / "02" / "frame_00003_depth.bin").write_bytes(b"0")
    opened = source("biwi", tmp_path)
    refs = sorted(opened.refs())
    assert [ref.sample_id for ref in refs] == ["02/frame_00001", "02/frame_00002", "02/frame_00003"]
    assert [rejected(opened, ref)[0] for ref in refs[:2]] == ["unreadable_file"] * 2
    opened.load(refs[2])
    before = opened.fingerprint()
    (tmp_path / "02" / "rgb.cal").write_text("517 0 320")
    assert opened.fingerprint() != before and rejected(opened, refs[2])[0] == "no_box"
    (tmp_path / "02" / "rgb.cal").unlink()
    assert rejected(opened, refs[2])[0] == "unreadable_file"
    assert "is not a folder" in refusal(lambda: list(source("biwi", tmp_path / "nowhere").refs()))


@settings(deadline=None)
@given(pose=st.tuples(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180)), axis=st.integers(0, 2))
def test_a_mirror_or_a_scaled_matrix_is_no_rotation(pose: Any, axis: int) -> None:
    rotation = euler_to_matrix(pose)
    flipped = rotation.copy()
    flipped[axis] *= -1
    assert is_rotation(rotation) and is_rotation(np.round(rotation, 3))
    assert not is_rotation(flipped) and not is_rotation(rotation * 1.05)


# ---------------------------------------------------------------- manifests

ROW: dict[str, Any] = {
    "path": "pictures/a.png",
    "pitch": 10.0,
    "yaw": -20.5,
    "roll": 3.0,
    "x1": 5,
    "y1": 6.5,
    "x2": 50,
    "y2": 60,
}


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


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_manifests_of_all_kinds_say_the_same(tmp_path: Path, kind: str) -> None:
    points = RNG.uniform(0, 60, (68, 2)).tolist()
    rows = [
        {**ROW, "group": "anna", "id": "a-1", "landmarks": points},
        {**ROW, "path": "pictures/b.png", "yaw": 351.0, "group": "bert", "id": "b-1", "landmarks": None},
    ]
    path = write_manifest(tmp_path, rows, kind)
    for root in (tmp_path, path):
        opened = source("manifest", root)
        refs = sorted(opened.refs())
        assert [(r.sample_id, r.group, r.key) for r in refs] == [
            ("a-1", "anna", "pictures/a.png"),
            ("b-1", "bert", "pictures/b.png"),
        ]
        (first, image), (second, _) = (opened.load(ref) for ref in refs)
        assert first.pose == (10.0, -20.5, 3.0) and second.pose[1] == 351.0 and image.shape == (70, 90, 3)
        assert corners(first.box) == (5, 6.5, 50, 60)
        assert first.landmarks == pytest.approx(np.array(points), abs=1e-4) and second.landmarks is None


@settings(max_examples=15, deadline=None)
@given(pose=st.tuples(st.floats(-170, 170), st.floats(-89, 89), st.floats(-170, 170)))
def test_a_matrix_in_a_manifest_is_the_pose(tmp_path_factory: Any, pose: Any) -> None:
    matrix = euler_to_matrix(pose)
    row = {key: value for key, value in ROW.items() if key not in ("pitch", "yaw", "roll")}
    row |= {f"r{i}{j}": float(matrix[i, j]) for i in range(3) for j in range(3)}
    opened = source("manifest", write_manifest(tmp_path_factory.mktemp("m"), [row], "jsonl"))
    assert opened.load(only(opened))[0].pose == pytest.approx(pose, abs=1e-5)


def test_manifest_defaults_keep_a_picture_together(tmp_path: Path) -> None:
    write_manifest(tmp_path, [ROW, {**ROW, "x1": 30}, {**ROW, "path": "c.png"}])
    opened = source("manifest", tmp_path)
    refs = list(opened.refs())
    assert [ref.sample_id for ref in refs] == ["pictures/a.png", "pictures/a.png#2", "c.png"]
    assert [ref.group for ref in refs] == ["pictures/a.png", "pictures/a.png", "c.png"]
    assert [opened.load(ref)[0].box.x1 for ref in refs] == [5, 30, 5]


def test_manifest_rows_of_one_id_are_not_mixed_up(tmp_path: Path) -> None:
    """The plan keeps the first of a repeated id in its own order: that face must load as its own row."""
    write_manifest(
        tmp_path, [{**ROW, "id": "x", "path": "z.png", "yaw": 1}, {**ROW, "id": "x", "path": "b.png", "yaw": 2}]
    )
    opened = source("manifest", tmp_path)
    assert {ref.key: opened.load(ref)[0].pose[1] for ref in opened.refs()} == {"z.png": 1.0, "b.png": 2.0}


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"yaw": "left"}, "bad_annotation", "yaw is left"),
        ({"yaw": ""}, "bad_annotation", "yaw is empty"),
        ({"yaw": "nan"}, "nan_pose", "pose"),
        ({"roll": "inf"}, "nan_pose", "pose"),
        ({"x1": "", "y1": "", "x2": "", "y2": ""}, "no_box", "no box"),
        ({"x2": ""}, "bad_annotation", "x2 is empty"),
        ({"path": "../outside.png"}, "unreadable_file", "outside the manifest's folder"),
        ({"path": "pictures/../../outside.png"}, "unreadable_file", "outside the manifest's folder"),
        ({"path": "linked/outside.png"}, "unreadable_file", "outside the manifest's folder"),
        ({"path": "link.png"}, "unreadable_file", "outside the manifest's folder"),
        ({"path": "loop.png"}, "unreadable_file", "loop"),
        ({"path": ""}, "bad_annotation", "names no picture"),
        ({"path": "a\0b.png"}, "bad_annotation", "names no picture"),
        ({"landmarks": "[[1, 2], [3, 4]]"}, "bad_annotation", "68 pairs"),
        ({"landmarks": "[[1, 2"}, "bad_annotation", "68 pairs"),
        ({"landmarks": json.dumps([[1, float("nan")]] * 68)}, "bad_annotation", "68 pairs"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_bad_rows_are_rejected_by_file_and_row(
    tmp_path: Path, kind: str, change: dict[str, Any], reason: str, said: str
) -> None:
    root, outside = tmp_path / "mine", tmp_path / "outside.png"
    write_manifest(root, [{**ROW, "landmarks": ""}, {**ROW, "path": "b.png", **change}], kind, pictures=False)
    for place in (root / "pictures" / "a.png", root / "b.png", outside):
        place.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(place), picture(1))
    (root / "linked").symlink_to(tmp_path)
    (root / "link.png").symlink_to(outside)
    (root / "loop.png").symlink_to("loop.png")
    opened = source("manifest", root)
    first, second = opened.refs()
    opened.load(first)
    found, detail = rejected(opened, second)
    assert found == reason and said in detail
    assert f"manifest.{kind}, row 2" in detail or change["path"] == "loop.png"
    assert opened.fingerprint() == opened.fingerprint()


def test_matrices_that_are_none_are_rejected(tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key not in ("pitch", "yaw", "roll")}
    eye: dict[str, Any] = {f"r{i}{j}": float(i == j) for i in range(3) for j in range(3)}
    write_manifest(
        tmp_path, [row | eye | {"r22": -1.0}, row | eye | {"r00": float("nan")}, row | eye | {"r01": None}], "jsonl"
    )
    opened = source("manifest", tmp_path)
    answers = [rejected(opened, ref) for ref in opened.refs()]
    assert [reason for reason, _ in answers] == ["bad_annotation", "nan_pose", "bad_annotation"]
    assert [f"row {i}" in said for i, (_, said) in enumerate(answers, start=1)] == [True] * 3


def test_rows_that_are_no_rows_are_counted_in_their_place(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [ROW, {**ROW, "path": "b.png"}])
    path.write_text(path.read_text().replace("\nb.png,", "\nshort\n\nb.png,") + "c.png" + ",1" * 20 + "\n")
    opened = source("manifest", tmp_path)
    refs = list(opened.refs())
    assert [ref.sample_id for ref in refs] == ["pictures/a.png", "row 2", "b.png", "row 4"]
    assert "row 2 has 1 values for 8 columns" in rejected(opened, refs[1])[1]
    opened.load(refs[2])
    path.unlink()
    path = write_manifest(tmp_path, [ROW], "jsonl")
    path.write_text('{"path": \n[1]\n\n' + path.read_text())
    refs = list(opened.refs())
    assert [ref.sample_id for ref in refs] == ["row 1", "row 2", "pictures/a.png"]
    assert rejected(opened, refs[1])[0] == "bad_annotation"
    opened.load(refs[2])


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        ({"yaw": "yawn"}, "no column 'yaw'; did you mean 'yawn'?"),
        ({"path": "file"}, "no column 'path'; known: file"),
        ({"x2": "r22"}, "angles and matrices"),
        ({"group": "groups"}, "a column 'groups', which is unknown; did you mean 'group'?"),
        ({"split": "splits"}, "did you mean 'split'?"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_wrong_columns_are_one_sentence(tmp_path: Path, kind: str, rename: dict[str, str], said: str) -> None:
    row = {**ROW, "group": "anna", "split": "train", "weather": "fine"}
    write_manifest(tmp_path, [row], kind)
    opened = source("manifest", tmp_path)
    only(opened)
    (tmp_path / f"manifest.{kind}").unlink()
    write_manifest(tmp_path, [{rename.get(key, key): value for key, value in row.items()}], kind, pictures=False)
    sentence = refusal(lambda: list(opened.refs()))
    assert said in sentence and f"manifest.{kind}" in sentence


def test_manifests_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    opened = source("manifest", tmp_path / "m")
    assert "neither a file nor a folder" in refusal(lambda: list(opened.refs()))
    path = write_manifest(tmp_path / "m", [ROW])
    good = path.read_bytes()
    contents = {
        b"": "no column 'path'",
        b"\xff\xfe\x00a": "not text in UTF-8",
        good + b'"never closed': "is no CSV, line",
        good.replace(b"pitch", b"yaw"): "two columns 'yaw'",
    }
    for content, said in contents.items():
        path.write_bytes(content)
        assert said in refusal(lambda: list(opened.refs()))
    path.write_bytes(b"\xef\xbb\xbf" + good)
    assert only(opened).key == "pictures/a.png"
    write_manifest(tmp_path / "m", [ROW], "parquet")
    assert "manifest.csv and manifest.parquet, not one" in refusal(opened.fingerprint)
    path.unlink()
    (tmp_path / "m" / "manifest.parquet").write_bytes(b"PAR1 no PAR1")
    assert "not a readable Parquet file" in refusal(lambda: list(opened.refs()))
    (tmp_path / "m" / "manifest.parquet").rename(tmp_path / "m" / "manifest.txt")
    assert "no manifest.csv" in refusal(lambda: list(opened.refs()))
    assert "must end in .csv" in refusal(lambda: list(source("manifest", tmp_path / "m" / "manifest.txt").refs()))
    (tmp_path / "m" / "manifest.json").write_text(json.dumps([ROW]))
    assert "is a JSON list" in refusal(lambda: list(opened.refs()))


def test_manifest_fingerprint_sees_labels_and_pictures(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "a", [ROW])
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with the files' times
    opened = source("manifest", tmp_path / "a")
    seen = [opened.fingerprint(), source("manifest", tmp_path / "b").fingerprint()]
    (tmp_path / "a" / "notes.txt").write_text("mine")
    seen.append(opened.fingerprint())
    path.write_text(path.read_text().replace("-20.5", "-21.5"))
    seen.append(opened.fingerprint())
    (tmp_path / "a" / "pictures" / "a.png").unlink()
    seen.append(opened.fingerprint())
    assert seen[0] == seen[1] == seen[2] and len(set(seen)) == 3


def people(*said: tuple[str, str]) -> list[dict[str, Any]]:
    """Rows of (group, split), a picture each."""
    return [{**ROW, "path": f"{i}.png", "group": group, "split": split} for i, (group, split) in enumerate(said)]


def test_the_split_column_decides(tmp_path: Path) -> None:
    said = [
        ("anna", "train"),
        ("anna", "train"),
        ("bert", "val"),
        ("cleo", "test"),
        ("dora", "train"),
        ("emil", "test"),
    ]
    write_manifest(tmp_path, people(*said))
    spec = DatasetSpec("manifest", root=str(tmp_path), test=0.9, val=0.05)
    expected = {f"{i}.png": split for i, (_, split) in enumerate(said)}
    assert splits(spec) == expected
    assert splits(spec, test=False) == {key: split for key, split in expected.items() if split != "test"}
    assert splits(spec, train=False) == {key: split for key, split in expected.items() if split == "test"}
    without = dataclasses.replace(spec, test=0.0, val=0.5)
    assert splits(without) == expected  # no share moves anybody
    opened = open_source(spec)
    for ref in opened.refs():
        opened.load(FaceRef(ref.sample_id, ref.group, ref.key))  # as it comes out of a job, which carries no split


def test_val_is_drawn_from_train_where_no_row_says_val(tmp_path: Path) -> None:
    said = [(f"person{i}", "test" if i % 3 == 0 else "train") for i in range(30)]
    write_manifest(tmp_path, people(*said), pictures=False)
    spec = DatasetSpec("manifest", root=str(tmp_path), val=0.3)
    placed = splits(spec)
    assert {key for key, split in placed.items() if split == "test"} == {f"{i}.png" for i in range(0, 30, 3)}
    assert 2 <= list(placed.values()).count("val") <= 12
    named = splits(dataclasses.replace(spec, val_groups=("person4",)))
    assert [key for key, split in named.items() if split == "val"] == ["4.png"]
    tiny = splits(
        dataclasses.replace(spec, val=0.0001)
    )  # a share that draws nobody still gets one, and not a test face
    assert list(tiny.values()).count("val") == 1 and list(tiny.values()).count("test") == 10
    write_manifest(
        tmp_path, people(*[(name, "train" if name in "ab" else "test") for name in "abcdefgh"]), pictures=False
    )
    few = splits(dataclasses.replace(spec, val=0.0001))  # also where most of them are test faces
    assert sorted(few[key] for key in ("0.png", "1.png")) == ["train", "val"] and list(few.values()).count("test") == 6


@pytest.mark.parametrize(
    ("said", "change", "sentence"),
    [
        ([("anna", "train"), ("anna", "test")], {}, "puts the group 'anna' into train and test"),
        ([("anna", "train"), ("bert", "tset")], {}, "row 2 has the split 'tset'; did you mean 'test'?"),
        ([("anna", "train"), ("bert", "")], {}, "row 2 has the split ''"),
        ([("anna", "train"), ("bert", "test")], {"test_groups": ("anna",)}, "so test_groups cannot"),
        ([("anna", "train"), ("bert", "val"), ("cleo", "test")], {"val_groups": ("anna",)}, "so val_groups cannot"),
        ([("anna", "train"), ("bert", "train")], {}, "empty test set"),
        ([("anna", "test"), ("bert", "val")], {}, "empty train set"),
    ],
)
def test_splits_that_contradict_are_one_sentence(
    tmp_path: Path, said: list[tuple[str, str]], change: dict[str, Any], sentence: str
) -> None:
    write_manifest(tmp_path, people(*said), pictures=False)
    assert sentence in refusal(lambda: splits(DatasetSpec("manifest", root=str(tmp_path), **change)))


def test_a_row_without_a_split_that_can_be_read_is_still_accounted_for(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, people(("anna", "train"), ("bert", "val"), ("cleo", "test")))
    path.write_text(path.read_text() + "short\n")
    assert len(splits(DatasetSpec("manifest", root=str(tmp_path)))) == 4


# ---------------------------------------------------------------- published boxes

EDGE = st.integers(0, 12)


@settings(deadline=None)
@given(st.tuples(EDGE, EDGE, EDGE, EDGE), st.tuples(EDGE, EDGE, EDGE, EDGE))
def test_overlap_counts_pixels(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    a, b = (Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in (first, second))
    painted = np.zeros((2, 12, 12), bool)
    for layer, box in zip(painted, (a, b), strict=True):
        layer[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = True
    union = painted.any(0).sum()
    assert overlap(a, b) == overlap(b, a) == pytest.approx(painted.all(0).sum() / union if union else 0.0)


def write_boxes(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def one(*boxes: Sequence[float]) -> list[dict[str, Any]]:
    return [{"bbox": list(box), "type": "train"} for box in boxes]


def test_published_boxes_replace_the_readers_own_and_nothing_else(tmp_path: Path) -> None:
    for i in range(3):
        write_aflw2000(tmp_path / "a", f"image0000{i}")
    plain = loaded(source("aflw2000", tmp_path / "a"))
    own = plain["image00000"].box
    near, far, other = corners(own.moved(3, 2)), corners(own.moved(25, 0)), (0, 0, 4, 4)
    file = write_boxes(
        tmp_path / "boxes.json",
        {"image00000.jpg": one(far, near, other), "image00001.jpg": one(other), "elsewhere.jpg": one(near)},
    )
    opened = source("aflw2000", tmp_path / "a", boxes=file)
    refs = sorted(opened.refs())
    assert refs == sorted(source("aflw2000", tmp_path / "a").refs()) and opened.risky
    annotation, _ = opened.load(refs[0])
    assert corners(annotation.box) == pytest.approx(near)
    assert annotation.pose == plain["image00000"].pose
    assert np.array_equal(annotation.landmarks, plain["image00000"].landmarks)  # type: ignore[arg-type]
    assert rejected(opened, refs[1])[0] == "no_box" and "touches" in rejected(opened, refs[1])[1]
    reason, said = rejected(opened, refs[2])
    assert reason == "no_box" and "image00002.jpg" in said and "boxes.json" in said
    assert census(opened) == "3 faces; the whole archive has 2,000: this is a part"


def test_each_face_of_a_picture_gets_its_own_box(tmp_path: Path) -> None:
    write_aflw(tmp_path, FACES)
    first, second = (12.0, 22.0, 66.0, 68.0), (72.0, 8.0, 108.0, 47.0)
    file = write_boxes(tmp_path / "b.json", {"2/image00002.jpg": one(second, first), "image00013.jpg": []})
    opened = source("aflw", tmp_path, boxes=file)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    assert corners(opened.load(refs["face39341"])[0].box) == first
    assert corners(opened.load(refs["face39342"])[0].box) == second
    assert rejected(opened, refs["face7"])[0] == "no_box"


def test_names_agree_over_the_folders_that_both_name(tmp_path: Path) -> None:
    for sequence in (1, 2):
        write_biwi(tmp_path / "hpdb", sequence, 3)
    box = (280.0, 200.0, 400.0, 330.0)
    for names in (
        ["01/frame_00003_rgb.png", "02/frame_00003_rgb.png"],
        ["hpdb/01/frame_00003_rgb.png", "./hpdb/02/frame_00003_rgb.png"],
        ["x\\hpdb\\01\\frame_00003_rgb.png", "02/frame_00003_rgb.png"],
    ):
        file = write_boxes(tmp_path / "b.json", {name: one(np.add(box, i)) for i, name in enumerate(names)})
        opened = source("biwi", tmp_path, boxes=file)
        assert {r.sample_id[:2]: opened.load(r)[0].box.x1 for r in opened.refs()} == {"01": 280.0, "02": 281.0}
    file = write_boxes(tmp_path / "b.json", {"frame_00003_rgb.png": one(box)})
    said = refusal(lambda: list(source("biwi", tmp_path, boxes=file).refs()))
    assert "01/frame_00003_rgb.png" in said and "02/frame_00003_rgb.png" in said
    shutil.rmtree(tmp_path / "hpdb" / "02")  # now the bare name is unique
    opened = source("biwi", tmp_path, boxes=file)
    assert corners(opened.load(only(opened))[0].box) == box
    wrong = {"03/frame_00003_rgb.png": one(box)}
    doubtful = {"a/01/frame_00003_rgb.png": one(box), "b/01/frame_00003_rgb.png": one(box)}
    for content in (wrong, doubtful):
        file = write_boxes(tmp_path / "b.json", content)
        assert rejected(source("biwi", tmp_path, boxes=file))[0] == "no_box"


def test_the_box_of_a_picture_is_not_that_of_its_mirror(tmp_path: Path) -> None:
    for flip in (False, True):
        write_300w_lp(tmp_path, "HELEN", "HELEN_1_1_0", marks=MARKS, flip=flip)
    file = write_boxes(tmp_path / "b.json", {"HELEN/HELEN_1_1_0.jpg": one((20, 10, 70, 70))})
    opened = source("300w_lp", tmp_path, boxes=file)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    assert opened.load(refs["HELEN/HELEN_1_1_0"])[0].box.x1 == 20
    assert rejected(opened, refs["HELEN_Flip/HELEN_1_1_0"])[0] == "no_box"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a mapping"),
        ("{}", "is not a mapping"),
        ({"a.jpg": {"bbox": [1, 2, 3, 4]}}, "the entry 'a.jpg' is no list"),
        ({"a.jpg": [[1, 2, 3, 4]]}, "the entry 'a.jpg' is no list"),
        ({"a.jpg": [{"bbox": [1, 2, 3]}]}, "the entry 'a.jpg' is no list"),
        ({"a.jpg": [{"bbox": [1, 2, 3, "4"]}]}, "the entry 'a.jpg' is no list"),
        ({"a.jpg": [{"box": [1, 2, 3, 4]}]}, "the entry 'a.jpg' is no list"),
        ({"a.jpg": [], "./a.jpg": []}, "two entries for 'a.jpg'"),
    ],
)
def test_malformed_files_of_boxes_are_one_sentence(tmp_path: Path, content: Any, said: str) -> None:
    write_aflw2000(tmp_path / "a", "image00000")
    opened = source("aflw2000", tmp_path / "a", boxes=write_boxes(tmp_path / "b.json", content))
    for use in (lambda: list(opened.refs()), opened.fingerprint):
        sentence = refusal(use)
        assert said in sentence and "b.json" in sentence


def test_files_of_boxes_count_by_content_and_not_by_place(tmp_path: Path) -> None:
    write_aflw2000(tmp_path / "a", "image00000")
    with pytest.raises(SpecError, match="boxes are for archives"):
        DatasetSpec("synthetic", count=3, boxes="b.json")
    missing = source("aflw2000", tmp_path / "a", boxes=str(tmp_path / "b.json"))
    assert "b.json cannot be read: No such file" in refusal(lambda: list(missing.refs()))

    def leaves(boxes: str) -> dict[str, Any]:
        spec = load(["demo"])
        dataset = DatasetSpec("aflw2000", root=str(tmp_path / "a"), boxes=boxes)
        data = dataclasses.replace(spec.data, datasets={"it": dataset}, train=("it",), test=("it",))
        return data_leaves(dataclasses.replace(spec, data=data), ["it"])

    first = leaves(write_boxes(tmp_path / "b.json", {"image00000.jpg": one((1, 2, 30, 40))}))
    moved = leaves(shutil.copy(tmp_path / "b.json", tmp_path / "c.json"))
    changed = leaves(write_boxes(tmp_path / "b.json", {"image00000.jpg": one((1, 2, 30, 41))}))
    assert first == moved and first != changed and leaves("") not in (first, changed)


def test_the_path_of_a_file_of_boxes_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "over.yaml").write_text("data: {datasets: {wild: {reader: aflw2000, root: a, boxes: b.json}}}\n")
    spec = load(["demo", "over.yaml"])
    assert spec.data.datasets["wild"].boxes == str(tmp_path / "b.json") and spec.data.datasets["heads"].boxes == ""


# ---------------------------------------------------------------- all of them


def test_sources_travel_light_and_load_in_the_sandbox(tmp_path: Path) -> None:
    write_300w_lp(tmp_path / "lp", "AFW", "AFW_1_1_0", marks=MARKS)
    write_aflw(tmp_path / "aflw", FACES[:1])
    write_biwi(tmp_path / "biwi", 1, 3)
    write_manifest(tmp_path / "mine", [{**ROW, "path": f"{i}.png"} for i in range(200)], pictures=False)
    cv2.imwrite(str(tmp_path / "mine" / "0.png"), picture(0))
    boxes = write_boxes(tmp_path / "b.json", {f"{i}.png": one((4, 5, 60, 70)) for i in range(200)})
    opened = [
        source("300w_lp", tmp_path / "lp"),
        source("aflw", tmp_path / "aflw"),
        source("biwi", tmp_path / "biwi"),
        source("manifest", tmp_path / "mine", boxes=boxes),
    ]
    for each in opened:
        listed = list(each.refs())
        assert len(pickle.dumps(each)) < 2000  # also after it was used: tables stay where they were read
        with Sandbox(each, CropSpec(size=16, margin_px=2)) as sandbox:
            (face,) = sandbox.load_many([FaceRef(listed[0].sample_id, listed[0].group, listed[0].key)])
        assert not isinstance(face, Rejected), face.detail
        assert face.crop.pixels.shape == (20, 20, 3)


def test_every_archive_is_under_its_own_terms() -> None:
    """A model card must not call a research archive's terms unknown; what a manifest holds only its owner knows."""
    assert set(get_args(Reader)) - set(TERMS) == {"manifest"} and set(TERMS) <= set(get_args(Reader))
    assert {name for name, terms in TERMS.items() if not terms.research_only} == {"synthetic", "pointing04"}


def test_census_compares_with_the_whole_archive(tmp_path: Path) -> None:
    write_300w_lp(tmp_path / "lp", "AFW", "AFW_1_1_0")
    assert census(source("300w_lp", tmp_path / "lp")) == "1 face; the whole archive has 122,450: this is a part"
    write_manifest(tmp_path / "mine", [ROW])
    assert census(source("manifest", tmp_path / "mine")) == "1 face"
    opened = source("300w_lp", tmp_path / "lp")
    opened.whole = 1  # type: ignore[attr-defined]
    assert census(opened) == "1 face; the whole archive has 1"
    opened.whole = 0  # type: ignore[attr-defined]
    assert census(opened) == "1 face; the whole archive has 0: this is more"
