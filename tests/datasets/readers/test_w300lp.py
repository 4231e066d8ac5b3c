"""300W-LP: an archive of its exact layout, and samples of the real one."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from hpe_core.datasets.registry import open_source
from hpe_core.geometry.crop import Box
from hpe_core.geometry.landmarks import MIRROR_68
from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.spec.data import DatasetSpec
from tests.archives import write_300w_lp
from tests.datasets.reading import MARKS, corners, loaded, only, refusal, rejected, source, splits


def test_300w_lp_takes_the_box_from_landmarks_and_not_from_pt2d(tmp_path):
    write_300w_lp(tmp_path, "AFW", "AFW_134212_1_3", (12.0, -34.5, 7.25), MARKS)
    opened = source("300w_lp", tmp_path)
    ref = only(opened)
    assert (ref.sample_id, ref.group) == ("AFW/AFW_134212_1_3", "AFW/AFW_134212_1")
    annotation, image = opened.load(ref)
    assert annotation.pose == pytest.approx((12.0, -34.5, 7.25), abs=1e-4) and image.shape == (80, 100, 3)
    assert annotation.landmarks == pytest.approx(MARKS - 0.5, abs=1e-4)
    low, high = MARKS.min(0) - 0.5, MARKS.max(0) - 0.5
    center, half = (low + high) / 2, (high - low) / 2 * 1.4
    assert corners(annotation.box) == pytest.approx((*(center - half), *(center + half)))


def mirrored(box: Box, width: int) -> Box:
    return Box(width - box.x2, box.y1, width - box.x1, box.y2)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**20), width=st.integers(60, 140), variant=st.integers(0, 17))
def test_300w_lp_mirror_is_the_mirrored_face(tmp_path_factory, seed, width, variant):
    root = tmp_path_factory.mktemp("lp")
    marks = np.random.default_rng(seed).uniform([5, 5], [width - 5, 75], (68, 2))
    name = f"HELEN_1_{variant}"
    write_300w_lp(root, "HELEN", name, (10.0, 30.0, 5.0), marks, width=width)
    write_300w_lp(root, "HELEN", name, (10.0, -30.0, -5.0), flip=True, width=width)
    both = loaded(source("300w_lp", root))
    first, second = both[f"HELEN/{name}"], both[f"HELEN_Flip/{name}"]
    assert corners(second.box) == pytest.approx(corners(mirrored(first.box, width)), abs=1e-6)
    apart = cdist(second.landmarks, first.landmarks * [-1, 1] + [width, 0])
    assert max(apart.min(0).max(), apart.min(1).max()) < 1e-3  # the same points, whatever their numbers
    assert second.landmarks[36] == pytest.approx([width - first.landmarks[45, 0], first.landmarks[45, 1]], abs=1e-3)
    assert second.pose == pytest.approx((10.0, -30.0, -5.0), abs=1e-4)


def test_mirror_numbering_swaps_left_and_right_along_every_contour():
    assert sorted(MIRROR_68) == list(range(68)) and np.array_equal(MIRROR_68[MIRROR_68], np.arange(68))
    assert [i for i in range(68) if MIRROR_68[i] == i] == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    pairs = {0: 16, 17: 26, 31: 35, 36: 45, 39: 42, 37: 44, 41: 46, 48: 54, 59: 55, 60: 64}
    assert all(MIRROR_68[left] == right for left, right in pairs.items())
    lines = ((0, 17), (17, 22), (22, 27), (27, 31), (31, 36), (48, 55), (55, 60), (60, 65), (65, 68))
    for start, end in lines:
        assert set(np.abs(np.diff(MIRROR_68[start:end]))) == {1}


def test_mirror_numbering_fits_real_heads(real_data):
    """A head is symmetric: its 3-D points, turned to the front and mirrored, lie on themselves when renumbered."""
    for path in sorted((real_data / "aflw2000").glob("*.mat"))[::5]:
        mat = scipy.io.loadmat(path)
        points = (mat["pt3d_68"].T * [1, 1, -1]) @ euler_to_matrix(np.degrees(mat["Pose_Para"][0, :3]))
        points -= points.mean(0)
        mirrored = points * [-1, 1, 1]
        error = np.linalg.norm(mirrored[MIRROR_68] - points, axis=1).mean() / np.ptp(points[:, 0])
        assert error < 0.06 < np.linalg.norm(mirrored - points, axis=1).mean() / np.ptp(points[:, 0])


def test_300w_lp_without_landmarks_trusts_the_unrotated_variant_alone(tmp_path):
    for flip, variant in itertools.product((False, True), (0, 1, 10)):
        write_300w_lp(tmp_path, "IBUG", f"IBUG_image_003_1_{variant}", flip=flip)
    opened = source("300w_lp", tmp_path)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    points = scipy.io.loadmat(tmp_path / "IBUG" / "IBUG_image_003_1_0.mat")["pt2d"].T - 0.5
    for folder in ("IBUG", "IBUG_Flip"):  # the mirror's own pt2d is mirrored already
        annotation, _ = opened.load(refs[f"{folder}/IBUG_image_003_1_0"])
        assert corners(annotation.box) == pytest.approx(corners(Box.of_face(points)))
        assert annotation.landmarks[0] == pytest.approx(points[16 if "Flip" in folder else 0], abs=1e-4)
        for variant in (1, 10):
            reason, said = rejected(opened, refs[f"{folder}/IBUG_image_003_1_{variant}"])
            assert reason == "no_box" and "/landmarks is missing" in said and "unrotated" in said
    (tmp_path / "landmarks").mkdir()
    reason, said = rejected(opened, refs["IBUG_Flip/IBUG_image_003_1_1"])
    assert reason == "no_box" and "landmarks/IBUG/IBUG_image_003_1_1_pts.mat is missing" in said


def test_300w_lp_keeps_a_face_its_variants_and_mirrors_together(tmp_path):
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
def test_300w_lp_bad_annotations(tmp_path, change, reason):
    write_300w_lp(tmp_path, "LFPW", "LFPW_image_test_0001_0", **change)
    found, said = rejected(source("300w_lp", tmp_path))
    assert found == reason and "LFPW_image_test_0001_0.mat" in said


def test_300w_lp_wild_labels_pass_and_halves_are_rejected(tmp_path):
    write_300w_lp(tmp_path, "AFW", "AFW_1_1_0", (-714.0, 351.0, 2.0))
    opened = source("300w_lp", tmp_path)
    assert opened.load(only(opened))[0].pose == pytest.approx((-714.0, 351.0, 2.0), abs=1e-3)
    before = opened.fingerprint()
    (tmp_path / "AFW" / "AFW_1_1_0.mat").rename(tmp_path / "AFW" / "AFW_2_1_0.mat")
    reasons = {ref.sample_id: rejected(opened, ref)[0] for ref in opened.refs()}
    assert reasons == {"AFW/AFW_1_1_0": "unreadable_file", "AFW/AFW_2_1_0": "unreadable_file"}
    assert opened.fingerprint() != before
    assert "none of the folders AFW, HELEN" in refusal(lambda: list(source("300w_lp", tmp_path / "AFW").refs()))


def test_300w_lp_sample(real_data):
    """What the module says of the sample, read without our code where that is possible."""
    root = real_data / "300W_LP"
    mats = {path: scipy.io.loadmat(path) for path in sorted(root.rglob("*.mat"))}
    for folder, sign in (("HELEN", 1.0), ("HELEN_Flip", -1.0)):
        first, turned = (mats[root / folder / f"HELEN_232194_1_{k}.mat"] for k in (0, 1))
        assert np.array_equal(first["pt2d"], turned["pt2d"])  # the trap
        assert np.sign(first["Pose_Para"][0, 1]) == -sign
    (x, y), (x_there, y_there) = (mats[root / f / "HELEN_232194_1_0.mat"]["pt2d"] for f in ("HELEN", "HELEN_Flip"))
    assert x + x_there == pytest.approx(np.full(68, 451.0)) and np.array_equal(y, y_there)
    for k in (0, 1):
        here, there = (cv2.imread(str(root / f / f"HELEN_232194_1_{k}.jpg")) for f in ("HELEN", "HELEN_Flip"))
        mirror = here[:, ::-1].astype(int)
        assert np.abs(mirror - there).mean() < 2.5 < np.abs(np.roll(mirror, 1, axis=1) - there).mean()
    opened = source("300w_lp", root)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    assert len(refs) == 4 and len({ref.group for ref in refs.values()}) == 1
    first, second = (opened.load(refs[f"{f}/HELEN_232194_1_0"])[0] for f in ("HELEN", "HELEN_Flip"))
    assert corners(second.box) == pytest.approx(corners(mirrored(first.box, 450)))
    assert second.pose == pytest.approx(np.array(first.pose) * [1, -1, -1], abs=1.5)
    for folder in ("HELEN", "HELEN_Flip"):
        assert rejected(opened, refs[f"{folder}/HELEN_232194_1_1"])[0] == "no_box"
