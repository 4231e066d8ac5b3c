"""AFLW2000 against independent readings of the same files."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from scipy.spatial.transform import Rotation

from tests.archives import JPEG, write_aflw2000
from tests.datasets.reading import load_reason, source


def test_aflw2000_reads_pose_box_and_landmarks(tmp_path):
    write_aflw2000(tmp_path, "image00002", (12.0, -34.5, 7.25))
    opened = source("aflw2000", tmp_path)
    (ref,) = opened.refs()
    assert (ref.sample_id, ref.group, ref.key) == ("image00002", "image00002", "image00002.jpg")
    annotation, image = opened.load(ref)
    assert annotation.pose == pytest.approx((12.0, -34.5, 7.25), abs=1e-4)
    points = scipy.io.loadmat(tmp_path / "image00002.mat")["pt3d_68"][:2].T
    assert annotation.landmarks == pytest.approx(points) and annotation.visible is None
    spread = points.max(0) - points.min(0)
    assert (annotation.box.width, annotation.box.height) == pytest.approx(tuple(spread * 1.4), rel=1e-5)
    assert image.shape == (120, 120, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Pose_Para": None}, "bad_annotation"),
        ({"Pose_Para": np.array([[np.nan, 0, 0, 0, 0, 0, 1]])}, "nan_pose"),
        ({"Pose_Para": np.array([[0, np.inf, 0]])}, "nan_pose"),
        ({"Pose_Para": np.array([[0.1, 0.2]])}, "bad_annotation"),
        ({"Pose_Para": "left"}, "bad_annotation"),
        ({"Pose_Para": np.array([[1j, 2, 3]])}, "bad_annotation"),
        ({"Pose_Para": {"pitch": 1.0}}, "bad_annotation"),
        ({"pt3d_68": None}, "bad_annotation"),
        ({"pt3d_68": np.zeros((3, 0))}, "no_box"),
        ({"pt3d_68": np.full((3, 68), np.nan)}, "bad_annotation"),
        ({"pt3d_68": np.zeros((68, 3))}, "no_box"),
    ],
)
def test_aflw2000_bad_annotations(tmp_path, change, reason):
    write_aflw2000(tmp_path, "image00002", **change)
    opened = source("aflw2000", tmp_path)
    assert load_reason(opened, next(iter(opened.refs()))) == reason


def test_aflw2000_lists_what_is_half_there(tmp_path):
    for i in range(3):
        write_aflw2000(tmp_path, f"image0000{i}")
    (tmp_path / "image00000.mat").unlink()
    (tmp_path / "image00001.jpg").unlink()
    (tmp_path / ".hidden.jpg").write_bytes(JPEG)
    (tmp_path / "notes.txt").write_text("mine")
    opened = source("aflw2000", tmp_path)
    refs = sorted(opened.refs())
    assert [ref.sample_id for ref in refs] == ["image00000", "image00001", "image00002"]
    assert [load_reason(opened, ref) for ref in refs[:2]] == ["unreadable_file", "unreadable_file"]
    for content in (b"", b"not matlab", bytes(200), (tmp_path / "image00002.mat").read_bytes()[:300]):
        (tmp_path / "image00002.mat").write_bytes(content)
        assert load_reason(opened, refs[2]) == "bad_annotation"


def test_aflw2000_code_is_no_face(tmp_path):
    """The archive holds .mat files of its face model in a folder of their own."""
    write_aflw2000(tmp_path, "image00002")
    opened = source("aflw2000", tmp_path)
    before = opened.fingerprint()
    for name in ("Model_Exp", "ModelGeneration/Model_Shape"):
        write_aflw2000(tmp_path / "Code" / Path(name).parent, Path(name).name).unlink()
    assert [ref.key for ref in opened.refs()] == ["image00002.jpg"] and opened.fingerprint() == before


def test_aflw2000_labels_turn_its_own_landmarks(real_data):
    """All 39 samples, read without our code: the rotation that carries the 3D landmarks of the most frontal face
    to those of another is the quotient of the two labels, to 3.1 degrees at worst."""
    points, labels = [], []
    opened = source("aflw2000", real_data / "aflw2000")
    refs = sorted(opened.refs())
    assert len(refs) == 39 == len({ref.group for ref in refs})
    for ref in refs:
        cloud = scipy.io.loadmat((real_data / "aflw2000" / ref.key).with_suffix(".mat"))["pt3d_68"].T
        points.append((cloud - cloud.mean(0)) * [1, 1, -1])  # their z points at the camera, ours away from it
        labels.append(opened.load(ref)[0].pose)
    angles = np.array(labels)
    stated = Rotation.from_euler("XYZ", angles * [-1, 1, 1], degrees=True)
    frontal = int(np.abs(angles).sum(1).argmin())
    for i in range(len(points)):
        fitted, _ = Rotation.align_vectors(*(points[at] / np.linalg.norm(points[at]) for at in (i, frontal)))
        assert np.degrees((fitted * (stated[i] * stated[frontal].inv()).inv()).magnitude()) < 4
    # And in plain words: positive yaw moves the nose along the eye line to the left of the picture.
    for cloud, (_, yaw, _) in zip(points, labels, strict=True):
        if abs(yaw) > 9:
            left, right, nose = cloud[36:42, :2].mean(0), cloud[42:48, :2].mean(0), cloud[30, :2]
            assert np.sign((nose - (left + right) / 2) @ (left - right)) == np.sign(yaw)
