"""AFLW: an SQLite file of its exact tables."""

import os
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from hpe_core.datasets.readers import aflw
from hpe_core.geometry.landmarks import MIRROR_68
from hpe_core.render.person.anatomy import SIXTEEN, landmark_targets
from tests.archives import write_aflw
from tests.datasets.reading import FACES, corners, loaded, refusal, rejected, source


def test_aflw_reads_every_face_of_a_picture(tmp_path):
    place = write_aflw(tmp_path, FACES)
    content = place.read_bytes()
    opened = source("aflw", tmp_path)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    assert {ref.group for ref in refs.values()} == {"image00002", "image00013"} and len(refs) == 3
    assert refs["face39341"].group == refs["face39342"].group == "image00002"
    assert {ref.key for ref in refs.values()} == {"data/flickr/2/image00002.jpg", "data/flickr/2/image00013.jpg"}
    for face in FACES:
        annotation, image = opened.load(refs[f"face{face['face']}"])
        x, y, width, height = face["rect"]
        assert corners(annotation.box) == (x, y, x + width, y + height) and image.shape == (90, 130, 3)
        pitch, yaw, roll = np.degrees(face["pose"])
        assert annotation.pose == pytest.approx((pitch, yaw, -roll)) and annotation.landmarks is None
    assert place.read_bytes() == content and sorted(p.name for p in tmp_path.iterdir()) == ["aflw.sqlite", "data"]
    place.rename(tmp_path / "data" / "aflw.sqlite")
    assert {ref.sample_id for ref in opened.refs()} == set(refs)


@pytest.mark.parametrize("folder", ["flickr", "."])
def test_aflw_is_read_however_its_parts_were_unpacked(tmp_path, folder):
    write_aflw(tmp_path, FACES)
    opened = source("aflw", tmp_path)
    before = loaded(opened)
    for path in (tmp_path / "data" / "flickr").iterdir():
        (tmp_path / folder).mkdir(exist_ok=True)
        path.rename(tmp_path / folder / path.name)
    (tmp_path / "data" / "flickr").rmdir()
    after = loaded(opened)
    assert {name: face.pose for name, face in after.items()} == {name: face.pose for name, face in before.items()}
    assert opened.states(sorted(opened.refs())) and len(opened.fingerprint()) == 64


def test_aflw_names_that_are_no_text_cost_only_themselves(tmp_path):
    place = write_aflw(tmp_path, FACES)
    with closing(sqlite3.connect(place)) as database:
        no_text = "CAST(X'322FFF2E6A7067' AS TEXT)"
        database.execute(f"UPDATE FaceImages SET filepath = {no_text} WHERE file_id LIKE '%13.jpg'")
        database.execute("UPDATE FaceImages SET filepath = 17.5 WHERE file_id LIKE '%02.jpg'")
        database.commit()
    picture = tmp_path / "data" / "flickr" / "2" / "image00013.jpg"
    picture.rename(picture.with_name(os.fsdecode(b"\xff.jpg")))
    opened = source("aflw", tmp_path)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    assert opened.load(refs["face7"])[1].shape == (90, 130, 3)
    assert rejected(opened, refs["face39341"])[0] == "unreadable_file"


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
def test_aflw_rejects_faces_that_lack_something(tmp_path, change, reason):
    face = {key: value for key, value in {**FACES[0], **change}.items() if value is not None}
    write_aflw(tmp_path, [face, FACES[2]])
    opened = source("aflw", tmp_path)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    found, said = rejected(opened, refs["face39341"])
    assert found == reason and "face39341" in said
    opened.load(refs["face7"])
    (tmp_path / "data" / "flickr" / "2" / "image00013.jpg").unlink()
    assert rejected(opened, refs["face7"])[0] == "unreadable_file"


def test_aflw_gives_the_landmarks_that_are_among_the_68(tmp_path):
    marks = {feature: (float(feature), 2.0 * feature) for feature in range(1, 22)}
    write_aflw(tmp_path, [{**FACES[0], "marks": marks}, FACES[2]])
    faces = loaded(source("aflw", tmp_path))
    first, other = faces["face39341"], faces["face7"]
    assert set(np.flatnonzero(first.visible == 1)) == set(SIXTEEN), "those that the doctor solves poses from"
    assert np.isnan(first.visible).sum() == np.isnan(first.landmarks).any(1).sum() == 68 - 16, (
        "of these nothing is known"
    )
    del marks[15]
    write_aflw(tmp_path / "hidden", [{**FACES[0], "marks": marks}])
    hidden = loaded(source("aflw", tmp_path / "hidden"))["face39341"]
    assert hidden.visible[30] == 0 and np.isnan(hidden.landmarks[30]).all(), "the nose's tip is hidden somewhere"
    assert first.landmarks[8].tolist() == [21, 42] and first.landmarks[54].tolist() == [20, 40]
    assert other.landmarks is None and other.visible is None
    for folder, place in (("words", ("left", 3)), ("infinite", (np.inf, 3.0))):
        write_aflw(tmp_path / folder, [{**FACES[0], "marks": {15: place}}])
        assert rejected(source("aflw", tmp_path / folder))[0] == "bad_annotation"
    write_aflw(tmp_path / "without", FACES, leave_out="FeatureCoords")
    assert all(face.landmarks is None for face in loaded(source("aflw", tmp_path / "without")).values())


def test_aflws_numbers_go_from_left_to_right_and_mirror_as_the_68_do():
    """In each of its rows: brows, eyes, nose, mouth; the chin is alone in its own (Koestinger et al., figure 3)."""
    middles = landmark_targets()
    for row in ((1, 2, 3, 4, 5, 6), (7, 9, 10, 12), (14, 15, 16), (18, 20), (21,)):
        places = [aflw.AMONG_68[feature] for feature in row]
        assert places == [MIRROR_68[place] for place in reversed(places)]
        assert (np.diff(middles[places, 0]) > 0).all()


@pytest.mark.parametrize("table", ["FaceImages", "Faces", "FaceRect", "FacePose"])
def test_aflw_without_a_table_is_one_sentence(tmp_path, table):
    write_aflw(tmp_path, FACES, leave_out=table)
    assert f"no such table: {table}" in refusal(lambda: list(source("aflw", tmp_path).refs()))


def test_aflw_files_that_cannot_be_read_are_one_sentence(tmp_path):
    opened = source("aflw", tmp_path / "here")
    (tmp_path / "here").mkdir()
    assert "holds no aflw.sqlite" in refusal(opened.fingerprint)
    place = write_aflw(tmp_path / "here", FACES)
    whole = place.read_bytes()
    for content in (b"not a database at all" * 200, b"", whole[:2000], whole[:100] + bytes(len(whole) - 100)):
        place.write_bytes(content)
        assert "aflw.sqlite cannot be read as AFLW's SQLite file" in refusal(lambda: list(opened.refs()))
    marks = [{**FACES[0], "marks": {feature: (1.0, 2.0) for feature in range(1, 22)}, "face": i} for i in range(400)]
    place = write_aflw(tmp_path / "large", marks)
    holed = bytearray(place.read_bytes())
    holed[-3 * 4096 : -4096] = bytes(2 * 4096)  # of FeatureCoords, which only states and single faces read
    place.write_bytes(holed)
    large = source("aflw", tmp_path / "large")
    refs = list(large.refs())
    assert "malformed" in refusal(lambda: large.states(refs))
    place = tmp_path / "here" / "aflw.sqlite"
    place.write_bytes(whole)
    place.with_name("aflw.sqlite-journal").write_bytes(b"half")
    assert "aflw.sqlite-journal shows that a program is writing" in refusal(lambda: list(opened.refs()))


def test_aflw_does_not_wait_for_a_lock(tmp_path):
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
