"""300W's reader: landmarks as they are written, and poses solved from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.datasets.base import Rejected
from hpe_core.datasets.readers.aflw2000 import Aflw2000
from hpe_core.datasets.readers.w300 import read_pts
from hpe_core.geometry.rotation import euler_to_matrix, geodesic_deg
from hpe_core.render.person.anatomy import landmark_targets
from hpe_core.spec.data import DatasetSpec
from tests.archives import JPEG, pts_text, write_300w
from tests.datasets.reading import load_reason, loaded, rejected, source


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.floats(-60, 60), st.floats(-80, 80), st.floats(-90, 90)))
def test_the_pose_is_that_of_the_head_whose_landmarks_are_written(tmp_path_factory, pose):
    root = tmp_path_factory.mktemp("w300")
    points = 0.5 * (landmark_targets() @ euler_to_matrix(pose).T)[:, :2] + [60, 50]
    write_300w(root, "01_Indoor/indoor_001", points)
    face = loaded(source("300w", root))["01_Indoor/indoor_001"]
    assert geodesic_deg(euler_to_matrix(face.pose), euler_to_matrix(pose)) < 0.01
    np.testing.assert_allclose(face.landmarks, points, atol=1e-3)
    spread = np.ptp(points, axis=0)
    assert (face.known_box().width, face.known_box().height) == pytest.approx(tuple(spread * 1.4), rel=1e-4)


def test_poses_of_real_landmarks_lie_near_the_archive_s_own(tmp_path, real_data):
    archive = Aflw2000(DatasetSpec("aflw2000", root=str(real_data / "aflw2000")))
    told = {}
    for ref in archive.refs():
        annotation, _ = archive.load(ref)
        told[ref.sample_id] = annotation.pose
        write_300w(tmp_path, ref.sample_id, annotation.landmarks)
    read = loaded(source("300w", tmp_path))
    assert read.keys() == told.keys()
    away = [geodesic_deg(euler_to_matrix(read[name].pose), euler_to_matrix(told[name])) for name in told]
    assert np.mean(away) < 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no list of 68 points"),
        (pts_text(np.ones((5, 2)), 5), "is no list of 68 points"),
        (pts_text(np.ones((67, 2))), "does not hold 68 points of a picture"),
        (pts_text(np.full((68, 2), np.nan)), "is no list of 68 points"),
        (pts_text(np.full((68, 2), 1e308)), "does not hold 68 points of a picture"),
        (pts_text(np.ones((68, 2))).replace("68", "6" * 5000), "is no list of 68 points"),
        (pts_text(np.ones((68, 2))).replace("1.0", "1_0"), "is no list of 68 points"),
        (pts_text(np.ones((68, 2))).replace("1.0", "one", 1), "is no list of 68 points"),
        (pts_text(np.ones((68, 2))).replace("1.0", "1.0.0", 1), "could not convert string to float: '1.0.0'"),
        (pts_text(np.random.default_rng(0).uniform(0, 99, (68, 2))), "its landmarks fit no head"),
        (pts_text(np.ones((68, 2)))[:-4], "is no list of 68 points"),
    ],
)
def test_bad_landmarks_name_their_file(tmp_path, text, said):
    write_300w(tmp_path, "a", np.ones((68, 2))).with_suffix(".pts").write_text(text)
    reason, sentence = rejected(source("300w", tmp_path))
    assert reason == "bad_annotation" and "a.pts" in sentence and said in sentence


def test_what_is_half_there_is_listed_and_a_mirror_is_its_original_s_person(tmp_path):
    head = 0.5 * landmark_targets()[:, :2] + [60, 50]
    for name in ("afw/1_1", "afw/1_1_mirror", "afw/2_1"):
        write_300w(tmp_path, name, head)
    (tmp_path / "afw" / "2_1.jpg").unlink()
    (tmp_path / "afw" / "alone.jpg").write_bytes(JPEG)
    opened = source("300w", tmp_path)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    assert {name: ref.group for name, ref in refs.items()} == {
        "afw/1_1": "afw/1_1", "afw/1_1_mirror": "afw/1_1", "afw/2_1": "afw/2_1", "afw/alone": "afw/alone"
    }  # fmt: skip
    assert load_reason(opened, refs["afw/2_1"]) == load_reason(opened, refs["afw/alone"]) == "unreadable_file"


def test_points_are_counted_from_the_first_pixel_s_corner(tmp_path):
    file = tmp_path / "a.pts"
    file.write_text(pts_text(np.arange(136).reshape(68, 2) + 1.0))
    assert read_pts(file)[0].tolist() == [0.5, 1.5]
    file.write_text("x" * 100_000)
    with pytest.raises(Rejected, match="at most 65536"):
        read_pts(file)
