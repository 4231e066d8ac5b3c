"""Manifests: tables of every kind, rows of every kind of badness, and splits that a table prescribes."""

import dataclasses
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hpe_core.datasets.base import FaceRef
from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.registry import open_source
from hpe_core.detection.detector import read_model
from hpe_core.errors import SpecError
from hpe_core.geometry.rotation import euler_error, euler_to_matrix
from hpe_core.spec.data import DatasetSpec, DataSpec
from tests.archives import picture, write_boxes, write_manifest
from tests.datasets.reading import ROW, corners, one, only, refusal, rejected, source, splits


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_manifests_of_all_kinds_say_the_same(tmp_path, kind):
    random = np.random.default_rng(11)
    points = np.concatenate([random.uniform(0, 60, (68, 2)), random.integers(0, 2, (68, 1))], 1).tolist()
    points[3], points[5][2] = [None, None, 0], None
    rows = [
        {**ROW, "group": "anna", "id": "a-1", "landmarks": points},
        {**ROW, "path": "pictures/b.png", "yaw": 351.0, "group": "bert", "id": "b-1", "landmarks": None},
    ]
    path = write_manifest(tmp_path, rows, kind)
    for root in (tmp_path, path):
        opened = source("manifest", root)
        refs = sorted(opened.refs())
        expected = [("a-1", "anna", "pictures/a.png"), ("b-1", "bert", "pictures/b.png")]
        assert [(ref.sample_id, ref.group, ref.key) for ref in refs] == expected
        (first, image), (second, _) = (opened.load(ref) for ref in refs)
        assert first.pose == (10.0, -20.5, 3.0) and second.pose[1] == 351.0 and image.shape == (70, 90, 3)
        assert corners(first.box) == (5, 6.5, 50, 60)
        known = np.array(points, float)
        assert first.landmarks == pytest.approx(known[:, :2], abs=1e-4, nan_ok=True) and second.landmarks is None
        assert first.visible == pytest.approx(known[:, 2], nan_ok=True) and second.visible is None


SIDES = st.one_of(st.floats(-89, 89), st.floats(91, 179), st.floats(-179, -91))
ANYWHERE = st.tuples(st.floats(-170, 170), SIDES, st.floats(-170, 170))


def assert_same_head(found: tuple[float, float, float], pose: tuple[float, float, float]) -> None:
    """A yaw beyond 90 stays one: no head stands on its crown instead."""
    assert euler_error(found, pose).max() < 1e-4 and abs(found[0]) + abs(found[2]) < 180 + 1e-6


@settings(max_examples=15, deadline=None)
@given(pose=ANYWHERE)
def test_a_matrix_in_a_manifest_is_the_pose(tmp_path_factory, pose):
    matrix = euler_to_matrix(pose)
    row = {key: value for key, value in ROW.items() if key not in ("pitch", "yaw", "roll")}
    row |= {f"r{i}{j}": float(matrix[i, j]) for i in range(3) for j in range(3)}
    opened = source("manifest", write_manifest(tmp_path_factory.mktemp("m"), [row], "jsonl"))
    assert_same_head(opened.load(only(opened))[0].pose, pose)


@settings(max_examples=15, deadline=None)
@given(pose=ANYWHERE, sign=st.sampled_from([1, -1]))
def test_a_quaternion_in_a_manifest_is_the_pose(tmp_path_factory, pose, sign):
    """q and -q are one rotation; the names say which number is which."""
    quaternion = sign * Rotation.from_matrix(euler_to_matrix(pose)).as_quat()
    row = {key: value for key, value in ROW.items() if key not in ("pitch", "yaw", "roll")}
    row |= dict(zip(("qx", "qy", "qz", "qw"), quaternion.tolist(), strict=True))
    folder = tmp_path_factory.mktemp("m")
    opened = source("manifest", write_manifest(folder, [row, {**row, "path": "b.png", "qw": 3.0}], "jsonl"))
    good, bad = opened.refs()
    assert_same_head(opened.load(good)[0].pose, pose)
    reason, said = rejected(opened, bad)
    assert reason == "bad_annotation" and "row 2: qw, qx, qy, qz have the length 3" in said


@pytest.mark.parametrize("size", [("w", "h"), ("width", "height")])
def test_a_box_may_be_a_corner_and_a_size(tmp_path, size):
    row = {key: value for key, value in ROW.items() if key not in ("x1", "y1", "x2", "y2")}
    write_manifest(tmp_path, [row | dict(zip(("x", "y", *size), (5, 6.5, 45, 53.5), strict=True))])
    opened = source("manifest", tmp_path)
    assert corners(opened.load(only(opened))[0].known_box()) == (5, 6.5, 50, 60)
    write_manifest(tmp_path / "both", [{**ROW, size[0]: 7}])
    opened = source("manifest", tmp_path / "both")
    assert corners(opened.load(only(opened))[0].known_box()) == (5, 6.5, 50, 60)
    (before,) = opened.states(list(opened.refs()))
    write_manifest(tmp_path / "both", [{**ROW, size[0]: 8}], pictures=False)
    assert opened.states(list(opened.refs())) == [before], "a column that is not read makes no shard anew"


def test_paths_of_windows_find_their_pictures(tmp_path):
    root = tmp_path / "mine"
    write_manifest(root, [{**ROW, "path": name} for name in ("pictures/a.png", "pictures/b.png", "c.PNG", "d.png")])
    names = [r"pictures\a.png", r".\pictures\b.PNG", "c.png", r"..\outside.png", r"C:\me\d.png"]
    write_manifest(root, [{**ROW, "path": name} for name in names], pictures=False)
    cv2.imwrite(str(tmp_path / "outside.png"), picture(1))
    opened = source("manifest", root)
    *inside, outside, drive = opened.refs()
    for ref in inside:
        opened.load(ref)
    assert all("gone" not in state for state in opened.states(inside)), "a changed picture makes its shard anew"
    assert rejected(opened, outside)[0] == "outside_root"
    assert "Windows drive" in rejected(opened, drive)[1]


def test_manifest_defaults_keep_a_picture_together(tmp_path):
    write_manifest(tmp_path, [ROW, {**ROW, "x1": 30}, {**ROW, "path": "c.png"}])
    opened = source("manifest", tmp_path)
    refs = list(opened.refs())
    assert [ref.sample_id for ref in refs] == ["pictures/a.png", "pictures/a.png#2", "c.png"]
    assert [ref.group for ref in refs] == ["pictures/a.png", "pictures/a.png", "c.png"]
    assert [opened.load(ref)[0].box.x1 for ref in refs] == [5, 30, 5]


def test_a_picture_is_one_however_its_path_is_written(tmp_path):
    """Else it could lie in two splits, and another face's box be taken for its own."""
    bare = {key: value for key, value in ROW.items() if key not in ("x1", "y1", "x2", "y2")}
    write_manifest(tmp_path, [bare])
    names = ["pictures/a.png", r"pictures\a.png", "./pictures//a.png"]
    write_manifest(tmp_path, [{**bare, "path": name} for name in names], pictures=False)
    file = write_boxes(tmp_path / "b.json", {"pictures/a.png": one((1, 2, 30, 40))})
    opened = source("manifest", tmp_path, boxes=file)
    refs = list(opened.refs())
    assert {ref.group for ref in refs} == {"pictures/a.png"} and len({ref.sample_id for ref in refs}) == len(names)
    assert all("other faces" in rejected(opened, ref)[1] for ref in refs)


def test_rows_of_one_picture_are_a_group_whatever_they_call_it(tmp_path):
    """Joined tables name pictures from several folders; two splits must not share one."""
    names = ["pictures/Zoë.png", "pictures/../pictures/Zoë.png", str(tmp_path / "pictures" / "Zoë.png")]
    names += ["pictures/Zoë.PNG", unicodedata.normalize("NFD", names[0]), "pictures/Zoe.png"]
    write_manifest(tmp_path, [{**ROW, "path": name} for name in names], pictures=False)
    refs = list(source("manifest", tmp_path).refs())
    assert [ref.group for ref in refs] == names[:1] * 5 + names[5:] and [ref.key for ref in refs] == names


def test_a_person_is_one_however_a_system_writes_accents(tmp_path):
    """Who looks the same in the table must not be trained on and tested on."""
    names = [unicodedata.normalize(form, "Zoë") for form in ("NFD", "NFC", "NFD")]
    rows = [{**ROW, "path": f"{i}.png", "group": name} for i, name in enumerate([*names, "Zoe"])]
    write_manifest(tmp_path, rows, pictures=False)
    assert [ref.group for ref in source("manifest", tmp_path).refs()] == [names[0]] * 3 + ["Zoe"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_that_stands_there_twice_is_one_face(tmp_path, kind):
    """Tables that were joined repeat rows. A face that counts twice weighs twice, in training and in the error."""
    bare = {key: value for key, value in ROW.items() if key not in ("x1", "y1", "x2", "y2")}
    file = write_boxes(tmp_path / "b.json", {"pictures/a.png": one((1, 2, 30, 40))})
    for row, others in ((ROW, [{**ROW, "yaw": 7.0}, {**ROW, "x1": 6}]), (bare, [])):
        write_manifest(tmp_path / "m", [row, *others, row, *others[:1]], kind)
        spec = DatasetSpec("manifest", root=str(tmp_path / "m"), boxes="" if others else file)
        data = DataSpec({"it": spec, "heads": DatasetSpec("synthetic", count=4)}, ("heads",), ("it",))
        plan = plan_dataset("it", open_source(spec), data)
        faces = [ref for job in plan.jobs for ref in job.refs]
        assert len({ref.sample_id for ref in faces}) == len(faces) == 1 + len(others)
        assert len(plan.repeated) == 1 + len(others[:1])
        for ref in faces:
            open_source(spec).load(ref)[0].known_box()


@pytest.mark.parametrize("boxed", [False, True])
def test_a_second_face_in_a_picture_changes_the_state_of_a_row_without_a_box(tmp_path, boxed):
    """Its one box may be that of the other: a shard that holds it must be cut anew."""
    row = ROW if boxed else {key: value for key, value in ROW.items() if key not in ("x1", "y1", "x2", "y2")}
    file, states = write_boxes(tmp_path / "b.json", {"pictures/a.png": one((1, 2, 30, 40))}), []
    for others in ([], [{**row, "id": "y", "group": "you"}]):
        write_manifest(tmp_path, [{**row, "id": "x", "group": "me"}, *others], pictures=not others)
        opened = source("manifest", tmp_path, boxes=file)
        states.append(opened.states([ref for ref in opened.refs() if ref.sample_id == "x"])[0])
    assert (states[0] == states[1]) == boxed


def test_manifest_rows_of_one_id_are_not_mixed_up(tmp_path):
    """The plan keeps the first of a repeated id in its own order: that face must load as its own row."""
    write_manifest(
        tmp_path, [{**ROW, "id": "x", "path": path, "yaw": yaw} for path, yaw in (("z.png", 1), ("b.png", 2))]
    )
    opened = source("manifest", tmp_path)
    assert {ref.key: opened.load(ref)[0].pose[1] for ref in opened.refs()} == {"z.png": 1.0, "b.png": 2.0}
    write_manifest(tmp_path, [{**ROW, "id": "x", "yaw": yaw} for yaw in (1, 2)])
    assert {opened.load(ref)[0].pose[1] for ref in opened.refs()} == {1.0}, "of one name and picture the first row"


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"yaw": "left"}, "bad_annotation", "yaw is left"),
        ({"yaw": ""}, "bad_annotation", "yaw is empty"),
        ({"yaw": "1_5"}, "bad_annotation", "yaw is 1_5, no number"),
        ({"yaw": "nan"}, "nan_pose", "pose"),
        ({"roll": "inf"}, "nan_pose", "pose"),
        ({"x1": "", "y1": "", "x2": "", "y2": ""}, "no_box", "no box"),
        ({"x2": ""}, "bad_annotation", "x2 is empty"),
        ({"path": "../outside.png"}, "outside_root", "outside the dataset's folder"),
        ({"path": "pictures/../../outside.png"}, "outside_root", "outside the dataset's folder"),
        ({"path": "linked/outside.png"}, "outside_root", "behind a link"),
        ({"path": "link.png"}, "outside_root", "behind a link"),
        ({"path": "loop.png"}, "unreadable_file", "loop"),
        ({"path": "y" * 300 + ".png"}, "unreadable_file", "name too long"),
        ({"path": "d/" * 3000 + "a.png"}, "unreadable_file", "name too long"),
        ({"yaw": True}, "bad_annotation", "yaw is True, no number"),
        ({"path": ""}, "bad_annotation", "names no picture"),
        ({"path": "a\0b.png"}, "bad_annotation", "names no picture"),
        ({"landmarks": "[[1, 2], [3, 4]]"}, "bad_annotation", "68 pairs"),
        ({"landmarks": "[[1, 2"}, "bad_annotation", "68 pairs"),
        ({"landmarks": json.dumps([[1, 2, 3]] * 68)}, "bad_annotation", "seen is 1 or 0"),
        ({"landmarks": json.dumps([[1, float("inf")]] * 68)}, "bad_annotation", "68 pairs"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_bad_rows_are_rejected_by_file_and_row(tmp_path, kind, change, reason, said):
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
    assert found == reason and said.lower() in detail.lower()
    assert f"manifest.{kind}, row 2" in detail or reason == "unreadable_file"
    assert opened.fingerprint() == opened.fingerprint()


def test_matrices_that_are_none_are_rejected(tmp_path):
    row = {key: value for key, value in ROW.items() if key not in ("pitch", "yaw", "roll")}
    eye: dict[str, Any] = {f"r{i}{j}": float(i == j) for i in range(3) for j in range(3)}
    bad = ({"r22": -1.0}, {"r00": float("nan")}, {"r01": None})
    write_manifest(tmp_path, [row | eye | change for change in bad], "jsonl")
    opened = source("manifest", tmp_path)
    answers = [rejected(opened, ref) for ref in opened.refs()]
    assert [reason for reason, _ in answers] == ["bad_annotation", "nan_pose", "bad_annotation"]
    assert [f"row {i}" in said for i, (_, said) in enumerate(answers, start=1)] == [True] * 3


def test_rows_that_are_no_rows_are_counted_in_their_place(tmp_path):
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


def people(*said: tuple[str, str]) -> list[dict[str, Any]]:
    """Rows of (group, split), a picture each."""
    return [{**ROW, "path": f"{i}.png", "group": group, "split": split} for i, (group, split) in enumerate(said)]


def test_the_split_column_decides(tmp_path):
    said = list(zip("aabcde", ("train", "train", "val", "test", "train", "test"), strict=True))
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


def test_val_is_drawn_from_train_where_no_row_says_val(tmp_path):
    said = [(f"person{i}", "test" if i % 3 == 0 else "train") for i in range(30)]
    write_manifest(tmp_path, people(*said), pictures=False)
    spec = DatasetSpec("manifest", root=str(tmp_path), val=0.3)
    placed = splits(spec)
    assert {key for key, split in placed.items() if split == "test"} == {f"{i}.png" for i in range(0, 30, 3)}
    assert 2 <= list(placed.values()).count("val") <= 12
    named = splits(dataclasses.replace(spec, val_groups=("person4",)))
    assert [key for key, split in named.items() if split == "val"] == ["4.png"]
    tiny = splits(dataclasses.replace(spec, val=0.0001))  # draws nobody, still gets one, and not a test face
    assert list(tiny.values()).count("val") == 1 and list(tiny.values()).count("test") == 10
    said = [(name, "train" if name in "ab" else "test") for name in "abcdefgh"]
    write_manifest(tmp_path, people(*said), pictures=False)
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
def test_splits_that_contradict_are_one_sentence(tmp_path, said, change, sentence):
    write_manifest(tmp_path, people(*said), pictures=False)
    assert sentence in refusal(lambda: splits(DatasetSpec("manifest", root=str(tmp_path), **change)))


def test_a_row_without_a_split_that_can_be_read_is_still_accounted_for(tmp_path):
    path = write_manifest(tmp_path, people(("anna", "train"), ("bert", "val"), ("cleo", "test")))
    path.write_text(path.read_text() + "short\n")
    assert len(splits(DatasetSpec("manifest", root=str(tmp_path)))) == 4


def test_a_comma_in_a_number_and_an_address_are_told_for_what_they_are(tmp_path):
    rows = [{**ROW, "yaw": "1,5"}, {**ROW, "path": "https://host/a.png"}, {**ROW, "path": "b.png", "yaw": "left"}]
    write_manifest(tmp_path, rows, pictures=False)
    opened = source("manifest", tmp_path)
    comma, address, other = (rejected(opened, ref)[1] for ref in opened.refs())
    assert comma.endswith("row 1: yaw is 1,5, no number; decimals have a point")
    assert "row 2: https://host/a.png begins with the scheme of an address" in address
    assert other.endswith("yaw is left, no number")


@pytest.mark.parametrize(("table", "disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_find_their_file_however_a_system_writes_them(tmp_path, table, disk):
    """A Mac's archive has them as letters and marks apart, a table that was typed has them as one."""
    names = [unicodedata.normalize(form, "Zoë/Jürgen.PNG") for form in (table, disk)]
    write_manifest(tmp_path, [{**ROW, "path": names[0].replace("PNG", "png")}], pictures=False)
    (tmp_path / names[1]).parent.mkdir()
    (tmp_path / names[1]).write_bytes(cv2.imencode(".png", picture(1))[1].tobytes())
    opened = source("manifest", tmp_path)
    opened.load(only(opened))
    assert "gone" not in opened.states(list(opened.refs()))[0]


def test_a_manifest_needs_no_boxes_where_others_draw_them(tmp_path):
    bare = {key: value for key, value in ROW.items() if key not in ("x1", "y1", "x2", "y2")}
    write_manifest(tmp_path, [bare, {**bare, "path": "b.png"}, {**bare, "path": "b.png", "yaw": 7.0}])
    assert "has no column 'x1'" in refusal(lambda: list(source("manifest", tmp_path).refs()))
    file = write_boxes(tmp_path / "b.json", {name: one((1, 2, 30, 40)) for name in ("pictures/a.png", "b.png")})
    opened = source("manifest", tmp_path, boxes=file)
    alone, *together = opened.refs()
    assert corners(opened.load(alone)[0].known_box()) == (1, 2, 30, 40)
    for ref in together:
        reason, said = rejected(opened, ref)
        assert reason == "no_box" and "other faces" in said


def test_what_is_no_plain_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "manifest.csv")
    assert "is not a plain file" in refusal(lambda: list(source("manifest", tmp_path).refs()))
    write_manifest(tmp_path / "b", [ROW])
    opened = source("manifest", tmp_path / "b", boxes=str(tmp_path / "manifest.csv"))
    assert "is not a plain file" in refusal(lambda: list(opened.refs()))
    with pytest.raises(SpecError, match="is not a plain file"):
        read_model(Path("/dev/zero"))
