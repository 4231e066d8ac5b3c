"""Published boxes in place of a reader's own."""

import dataclasses
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.datasets.base import DatasetError, Rejected, census
from hpe_core.datasets.boxes import open_boxes
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Box, overlap
from hpe_core.spec.data import CropSpec, DatasetSpec
from tests.archives import write_300w_lp, write_aflw, write_aflw2000, write_biwi, write_boxes
from tests.datasets.reading import FACES, MARKS, corners, loaded, one, only, refusal, rejected, source
from workflows.engine.config import load
from workflows.stages.shards import data_leaves

EDGE = st.integers(0, 12)


@settings(deadline=None)
@given(st.tuples(EDGE, EDGE, EDGE, EDGE), st.tuples(EDGE, EDGE, EDGE, EDGE))
def test_overlap_counts_pixels(first, second):
    a, b = (Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in (first, second))
    painted = np.zeros((2, 12, 12), bool)
    for layer, box in zip(painted, (a, b), strict=True):
        layer[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = True
    union = painted.any(0).sum()
    assert overlap(a, b) == overlap(b, a) == pytest.approx(painted.all(0).sum() / union if union else 0.0)


def test_published_boxes_replace_the_readers_own_and_nothing_else(tmp_path):
    for i in range(3):
        write_aflw2000(tmp_path / "a", f"image0000{i}")
    plain = loaded(source("aflw2000", tmp_path / "a"))
    own = plain["image00000"].box
    near, far, other = corners(own.moved(3, 2)), corners(own.moved(25, 0)), (0, 0, 4, 4)
    entries = {"image00000.jpg": one(far, near, other), "image00001.jpg": one(other), "elsewhere.jpg": one(near)}
    file = write_boxes(tmp_path / "boxes.json", entries)
    opened = source("aflw2000", tmp_path / "a", boxes=file)
    refs = sorted(opened.refs())
    assert refs == sorted(source("aflw2000", tmp_path / "a").refs()) and opened.reader.risky
    annotation, _ = opened.load(refs[0])
    assert corners(annotation.box) == pytest.approx(near)
    assert annotation.pose == plain["image00000"].pose
    assert np.array_equal(annotation.landmarks, plain["image00000"].landmarks)
    assert rejected(opened, refs[1])[0] == "no_box" and "largest overlap 0.00" in rejected(opened, refs[1])[1]
    reason, said = rejected(opened, refs[2])
    assert reason == "no_box" and "image00002.jpg" in said and "boxes.json" in said
    assert census(opened) == "3 faces; the whole archive has 2,000: this is a part"


def test_each_face_of_a_picture_gets_its_own_box(tmp_path):
    write_aflw(tmp_path, FACES)
    first, second = (12.0, 22.0, 66.0, 68.0), (72.0, 8.0, 108.0, 47.0)
    file = write_boxes(tmp_path / "b.json", {"2/image00002.jpg": one(second, first), "image00013.jpg": []})
    opened = source("aflw", tmp_path, boxes=file)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    assert corners(opened.load(refs["face39341"])[0].box) == first
    assert corners(opened.load(refs["face39342"])[0].box) == second
    assert rejected(opened, refs["face7"])[0] == "no_box"


def test_the_box_of_a_neighbour_is_nobody_elses(tmp_path):
    """Faces of a crowd overlap a little; where a file lacks one, its neighbour's box would teach a wrong pose."""
    write_aflw(tmp_path, [{**FACES[0], "rect": (10, 20, 60, 50)}, {**FACES[1], "rect": (60, 25, 60, 50)}])
    first, second = (12.0, 22.0, 66.0, 68.0), (61.0, 26.0, 118.0, 74.0)
    for there, whose, other in ((first, "face39341", "face39342"), (second, "face39342", "face39341")):
        file = write_boxes(tmp_path / "b.json", {"2/image00002.jpg": one(there)})
        opened = source("aflw", tmp_path, boxes=file)
        refs = {ref.sample_id: ref for ref in opened.refs()}
        assert corners(opened.load(refs[whose])[0].known_box()) == there
        reason, said = rejected(opened, refs[other])
        assert reason == "no_box" and "0.2 is needed" in said


def test_names_agree_over_the_folders_that_both_name(tmp_path):
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
    whole = {f"hpdb/0{k}/frame_00003_rgb.png": one(np.add(box, k)) for k in (1, 2)}
    file = write_boxes(tmp_path / "b.json", whole | {"01/frame_00003_rgb.png": one(box)})  # its own path comes first
    opened = source("biwi", tmp_path, boxes=file)
    assert {r.sample_id[:2]: opened.load(r)[0].box.x1 for r in opened.refs()} == {"01": 280.0, "02": 282.0}
    shutil.rmtree(tmp_path / "hpdb" / "02")  # now the bare name is unique
    opened = source("biwi", tmp_path, boxes=file)
    assert corners(opened.load(only(opened))[0].box) == box
    wrong = {"03/frame_00003_rgb.png": one(box)}
    doubtful = {"a/01/frame_00003_rgb.png": one(box), "b/01/frame_00003_rgb.png": one(box)}
    for content in (wrong, doubtful):
        file = write_boxes(tmp_path / "b.json", content)
        assert rejected(source("biwi", tmp_path, boxes=file))[0] == "no_box"


def test_the_box_of_a_picture_is_not_that_of_its_mirror(tmp_path):
    for flip in (False, True):
        write_300w_lp(tmp_path, "HELEN", "HELEN_1_1_0", marks=MARKS, flip=flip)
    file = write_boxes(tmp_path / "b.json", {"HELEN/HELEN_1_1_0.jpg": one((20, 10, 70, 70))})
    opened = source("300w_lp", tmp_path, boxes=file)
    refs = {ref.sample_id: ref for ref in opened.refs()}
    assert opened.load(refs["HELEN/HELEN_1_1_0"])[0].box.x1 == 20
    assert rejected(opened, refs["HELEN_Flip/HELEN_1_1_0"])[0] == "no_box"


def test_a_face_without_a_box_of_its_own_takes_the_only_one(tmp_path):
    """A turned variant of 300W-LP without landmarks/: several boxes may be anybody's."""
    write_300w_lp(tmp_path, "AFW", "AFW_1_1_3")
    assert rejected(source("300w_lp", tmp_path))[0] == "no_box"
    first, second = (20.0, 10.0, 70.0, 70.0), (1.0, 2.0, 9.0, 12.0)
    file = write_boxes(tmp_path / "b.json", {"AFW_1_1_3.jpg": one(first)})
    opened = source("300w_lp", tmp_path, boxes=file)
    annotation, _ = opened.load(only(opened))
    assert corners(annotation.known_box()) == first and annotation.landmarks is None
    file = write_boxes(tmp_path / "b.json", {"AFW_1_1_3.jpg": one(first, second)})
    reason, said = rejected(source("300w_lp", tmp_path, boxes=file))
    assert reason == "no_box" and "2 other boxes" in said


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((70, 70, 20, 10), "box_degenerate"),
        ((20, 10, 20.5, 70), "box_degenerate"),
        ((float("nan"), 10, 70, 70), "bad_annotation"),
        ((20, 10, 70, float("inf")), "bad_annotation"),
    ],
)
def test_a_published_box_that_is_none_says_so_unless_there_is_another(tmp_path, box, reason):
    write_aflw2000(tmp_path / "a", "image00000")
    own = corners(loaded(source("aflw2000", tmp_path / "a"))["image00000"].known_box())
    alone = source("aflw2000", tmp_path / "a", boxes=write_boxes(tmp_path / "b.json", {"image00000.jpg": one(box)}))
    (face,) = load_directly(alone, CropSpec(), [only(alone)])
    assert isinstance(face, Rejected) and face.reason == reason
    both = write_boxes(tmp_path / "c.json", {"image00000.jpg": one(box, own)})
    opened = source("aflw2000", tmp_path / "a", boxes=both)
    assert corners(opened.load(only(opened))[0].known_box()) == own


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
        ({"a.jpg": [{"bbox": [True, 2, 3, 4]}]}, "the entry 'a.jpg' is no list"),
        ({"a.jpg": [{"bbox": [1, 2, 3, 10**400]}]}, "the entry 'a.jpg' is no list"),
        ({"a.jpg": [], "./a.jpg": []}, "two entries for 'a.jpg'"),
    ],
)
def test_malformed_files_of_boxes_are_one_sentence(tmp_path, content, said):
    write_aflw2000(tmp_path / "a", "image00000")
    opened = source("aflw2000", tmp_path / "a", boxes=write_boxes(tmp_path / "b.json", content))
    for use in (lambda: list(opened.refs()), opened.fingerprint):
        sentence = refusal(use)
        assert said in sentence and "b.json" in sentence


def test_a_picture_that_a_file_of_boxes_names_twice_is_told(tmp_path):
    """JSON itself keeps the last."""
    path = tmp_path / "b.json"
    path.write_text('{"a.jpg": [{"bbox": [1, 2, 3, 4]}], "b.jpg": [], "a.jpg": [{"bbox": [5, 6, 7, 8]}]}')
    with pytest.raises(DatasetError, match="b.json has two entries for 'a.jpg'"):
        open_boxes(path)


def test_files_of_boxes_count_by_content_and_not_by_place(tmp_path):
    write_aflw2000(tmp_path / "a", "image00000")
    with pytest.raises(SpecError, match="boxes are for archives"):
        open_source(DatasetSpec("synthetic", count=3, boxes="b.json"))
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


def test_the_path_of_a_file_of_boxes_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "over.yaml").write_text("data: {datasets: {wild: {reader: aflw2000, root: a, boxes: b.json}}}\n")
    spec = load(["demo", "over.yaml"])
    assert spec.data.datasets["wild"].boxes == str(tmp_path / "b.json") and spec.data.datasets["heads"].boxes == ""
