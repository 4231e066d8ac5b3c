"""BIWI: an archive of its exact layout, and a frame of the real one."""

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.datasets.base import Rejected, census
from hpe_core.datasets.protocols import protocol_named
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Box, overlap
from hpe_core.geometry.rotation import euler_to_matrix, geodesic_deg, is_rotation
from hpe_core.spec.data import CropSpec, DatasetSpec
from tests.archives import write_biwi, write_boxes
from tests.datasets.reading import corners, one, only, refusal, rejected, source, splits

PUBLISHED = protocol_named("offsets-3").split.test_groups
LEAK_FREE = ("person06", "person07", "person10", "person13")
FIXTURE = [[0.45684, -0.404949, -0.792031], [-0.103806, 0.860022, -0.499587], [0.883471, 0.310449, 0.350856]]


@settings(max_examples=15, deadline=None)
@given(
    pose=st.tuples(st.floats(-99, 99), st.floats(-85, 85), st.floats(-99, 99)),
    center=st.tuples(st.floats(-200, 200), st.floats(-150, 150), st.floats(700, 1300)),
)
def test_biwi_pose_and_box_follow_the_files(tmp_path_factory, pose, center):
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
    # beside it, as the colour camera sees it
    spread = turn.T @ np.array([[0, 0, 0], [100, 0, 0], [0, 100, 0]], float).T
    corner, _ = cv2.Rodrigues(turn)
    points, _ = cv2.projectPoints((written[:, None] + spread).T.copy(), corner, shift, values[:9].reshape(3, 3), None)
    middle, right, below = points[:, 0]
    assert annotation.box.center == pytest.approx(tuple(middle), abs=0.01)
    assert annotation.box.width / 2 == pytest.approx(right[0] - middle[0], abs=0.01)
    assert annotation.box.height / 2 == pytest.approx(below[1] - middle[1], abs=0.01)


def test_biwi_sample(real_data):
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


def test_biwi_splits_by_person_or_as_published(tmp_path):
    for sequence in range(1, 25):
        write_biwi(tmp_path / "hpdb", sequence, 3)
    spec = DatasetSpec("biwi", root=str(tmp_path), test_groups=LEAK_FREE, val=0.1)

    def people(key: str) -> str:
        return {"15": "03", "18": "05", "21": "02", "22": "07"}.get(key[:2], key[:2])

    placed = splits(spec)
    sides: dict[str, set[str]] = {}
    for key, split in placed.items():
        sides.setdefault(people(key), set()).add(split)
    assert len(sides) == 20 and all(len(found) == 1 for found in sides.values())
    assert sorted(key[:2] for key, split in placed.items() if split == "test") == ["06", "07", "10", "13", "22"]
    assert set(placed.values()) == {"train", "val", "test"}

    published = dataclasses.replace(spec, group_by="sequence", test_groups=PUBLISHED)
    placed = splits(published)
    tested = {key[:2] for key, split in placed.items() if split == "test"}
    assert tested == {"06", "07", "10", "13", "15", "18", "21", "22"} and len(placed) == 24
    trained = {people(key) for key, split in placed.items() if split == "train" or split == "val"}
    assert {name for name in tested if people(name) in trained} == {"15", "18", "21"}  # the leak
    groups = {ref.key[:2]: ref.group for ref in open_source(spec).refs()}
    assert groups == {f"{i:02d}": f"person{people(f'{i:02d}')}" for i in range(1, 25)}

    assert "did you mean 'person" in refusal(lambda: splits(dataclasses.replace(spec, test_groups=("person15",))))
    with pytest.raises(SpecError, match="group_by: sequence is for archives of sequences, not aflw2000"):
        open_source(DatasetSpec("aflw2000", root="a", group_by="sequence"))


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
def test_biwi_texts(tmp_path, text, reason):
    write_biwi(tmp_path, 2, 9, text=text)
    opened = source("biwi", tmp_path)
    if reason is None:
        assert opened.load(only(opened))[0].pose == pytest.approx((0, 0, 0), abs=1e-9)
    else:
        found, said = rejected(opened)
        assert found == reason and "/02/" in said


def test_biwi_lists_what_is_half_there(tmp_path):
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
    assert rejected(opened, refs[2])[0] == "no_box"


def test_biwi_copies_with_jpegs_and_without_calibration(tmp_path):
    """As some are handed on: the pose is all there, and the face where somebody else says."""
    path = write_biwi(tmp_path, 2, 1, np.array(FIXTURE))
    cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)))
    path.unlink()
    (tmp_path / "02" / "rgb.cal").unlink()
    plain = source("biwi", tmp_path)
    assert (only(plain).sample_id, only(plain).key) == ("02/frame_00001", "02/frame_00001_rgb.jpg")
    reason, said = rejected(plain)
    assert reason == "no_box" and "rgb.cal is missing" in said
    file = write_boxes(tmp_path / "b.json", {"02/frame_00001_rgb.jpg": one((10, 20, 90, 110))})
    boxed = source("biwi", tmp_path, boxes=file)
    annotation, _ = boxed.load(only(boxed))
    assert corners(annotation.known_box()) == (10, 20, 90, 110)
    assert annotation.pose == pytest.approx((-54.92, -52.38, 41.55), abs=0.01)


@settings(deadline=None)
@given(pose=st.tuples(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180)), axis=st.integers(0, 2))
def test_a_mirror_or_a_scaled_matrix_is_no_rotation(pose, axis):
    rotation = euler_to_matrix(pose)
    flipped = rotation.copy()
    flipped[axis] *= -1
    assert is_rotation(rotation) and is_rotation(np.round(rotation, 3))
    assert not is_rotation(flipped) and not is_rotation(rotation * 1.05)
