"""What holds for every reader."""

import dataclasses
import errno
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hpe_core.datasets import files
from hpe_core.datasets.base import UNKNOWN, Annotation, DatasetError, FaceRef, FaceRow, Rejected, Source, census
from hpe_core.datasets.registry import open_source, readers
from hpe_core.datasets.sandbox import Sandbox, load_directly
from hpe_core.render.person.anatomy import landmark_targets
from hpe_core.spec.data import CropSpec, DatasetSpec
from tests import archives as archive
from tests.datasets.reading import FACES, MARKS, ROW, one, only, refusal, rejected, source


def test_fingerprint_follows_the_files_and_not_the_place(tmp_path):
    for place in ("a", "b"):
        for i in range(3):
            path = archive.write_aflw2000(tmp_path / place, f"image0000{i}", seed=i)
            for file in (path, path.with_suffix(".mat")):
                os.utime(file, ns=(0, 1_000_000_000))
    a, b = source("aflw2000", tmp_path / "a"), source("aflw2000", tmp_path / "b")
    first = a.fingerprint()
    assert first == b.fingerprint() == a.fingerprint()
    (tmp_path / "a" / "notes.txt").write_text("not read by the reader")
    assert a.fingerprint() == first
    os.utime(tmp_path / "a" / "image00001.mat", ns=(0, 2_000_000_000))
    second = a.fingerprint()
    (tmp_path / "a" / "image00002.jpg").unlink()
    assert len({first, second, a.fingerprint()}) == 3


def test_linked_folders_are_read_once_and_leave_the_root_only_when_told(tmp_path):
    archive.write_pointing04(tmp_path / "archive", 3, 7, 0, 30)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "Person03").symlink_to(tmp_path / "archive" / "Person03")
    (tmp_path / "archive" / "Person03" / "up").symlink_to(tmp_path / "archive" / "Person03")
    opened = source("pointing04", tmp_path / "here")
    reason, said = rejected(opened)
    assert reason == "outside_root" and "links=anywhere" in said
    told = source("pointing04", tmp_path / "here", links="anywhere")
    assert told.load(only(told))[0].pose == (0, 30, 0)
    (tmp_path / "there").symlink_to(tmp_path / "archive")  # the root itself may be a link
    linked = source("pointing04", tmp_path / "there")
    linked.load(only(linked))


def test_which_of_two_names_a_folder_is_listed_by_is_not_the_disks_choice(tmp_path, monkeypatch):
    """Nor does a link to a folder that holds the root show anything but the root."""
    archive.write_aflw2000(tmp_path / "outer" / "root" / "b", "image00002")
    archive.write_aflw2000(tmp_path / "outer", "stranger")
    root = tmp_path / "outer" / "root"
    for name, target in (("a", root / "b"), ("c", root / "b"), ("up", tmp_path), ("loop", root)):
        (root / name).symlink_to(target)
    walk, seen = os.walk, [sorted(files.listing(root, (".jpg",)))]

    def backwards(*arguments: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, inside, names in walk(*arguments, **options):
            inside.reverse()
            yield folder, inside, names

    monkeypatch.setattr(os, "walk", backwards)
    seen.append(sorted(files.listing(root, (".jpg",))))
    assert seen == [["a/image00002.jpg"]] * 2


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    archive.write_aflw2000(tmp_path, "image00002")
    archive.write_aflw2000(tmp_path / "shut", "image00004")
    scandir = os.scandir

    def refuses(path: Any) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    assert "shut cannot be listed: Permission denied" in refusal(lambda: list(source("aflw2000", tmp_path).refs()))


def archives(root: Path) -> dict[str, tuple[Source, list[Path]]]:
    """An archive of one face for every reader: the reader, and the files that its face is read from."""
    archive.write_300w_lp(root / "lp", "AFW", "AFW_1_1_0", marks=MARKS)
    archive.write_300w(root / "w300", "a", 0.5 * landmark_targets()[:, :2] + [60, 50])
    archive.write_aflw(root / "aflw", FACES[:1])
    archive.write_biwi(root / "biwi", 1, 3)
    archive.write_aflw2000(root / "aflw2000", "image00002")
    archive.write_pointing04(root / "pointing", 3, 7, 0, 30)
    archive.write_manifest(root / "mine", [ROW])
    boxes = archive.write_boxes(root / "boxes.json", {"image00002.jpg": one((20, 20, 100, 100))})
    kinds = {
        "lp": "300w_lp",
        "w300": "300w",
        "aflw": "aflw",
        "biwi": "biwi",
        "pointing": "pointing04",
        "mine": "manifest",
    }
    opened = {name: source(reader, root / name) for name, reader in kinds.items()}
    opened["aflw2000"] = source("aflw2000", root / "aflw2000", boxes=boxes)
    tables = ("aflw.sqlite", "manifest.csv")  # the dataset itself: it may lie where its owner likes
    files = {name: [path for path in sorted((root / name).rglob("*")) if path.is_file()] for name in opened}
    return {name: (each, [file for file in files[name] if file.name not in tables]) for name, each in opened.items()}


def test_no_file_of_a_face_lies_behind_a_link_that_leaves_the_root(tmp_path):
    for name, (opened, parts) in archives(tmp_path).items():
        ref = only(opened)
        opened.load(ref)
        assert parts, name
        for number, path in enumerate(parts):
            outside = path.rename(tmp_path / f"{name}-{number}{path.suffix}")
            path.symlink_to(outside)
            assert rejected(opened, ref)[0] == "outside_root", path
            path.unlink()
            inside = tmp_path / name / f"kept-{number}"  # a link that stays is nobody's business
            path.symlink_to(outside.rename(inside))
            opened.load(ref)


def test_endings_may_be_of_either_case(tmp_path):
    for name, (opened, parts) in archives(tmp_path).items():
        before, ref = opened.load(only(opened))[0], only(opened)
        for path in parts:
            path.rename(path.with_suffix(path.suffix.upper()))
        for again in (ref, only(opened)):  # as a table or an earlier listing named it, and as it is listed now
            assert opened.load(again)[0].pose == before.pose, name
            assert "gone" not in opened.states([again])[0], name


def test_a_face_and_its_dataset_change_with_each_of_its_files_and_with_no_other(tmp_path):
    for name, (opened, parts) in archives(tmp_path).items():
        (tmp_path / name / "notes.txt").write_text("mine")
        ref, before = only(opened), opened.fingerprint()
        (state,) = opened.states([ref])
        for path in parts:
            aside = path.rename(tmp_path / "aside")
            assert opened.fingerprint() != before and opened.states([ref]) != [state], path
            aside.rename(path)
            assert opened.fingerprint() == before and opened.states([ref]) == [state], path


def test_a_face_is_read_again_once_its_files_may_be_read(tmp_path, monkeypatch):
    """Permission changes neither size nor time: what was rejected for want of it would stay so for ever."""
    access, shut = os.access, set[Path]()
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) not in shut and access(place, mode))
    for name, (opened, parts) in archives(tmp_path).items():
        ref = only(opened)
        (state,), before = opened.states([ref]), opened.fingerprint()
        for path in parts:
            shut.add(path)
            assert opened.states([ref]) != [state] and opened.fingerprint() != before, (name, path)
            shut.clear()
        assert opened.states([ref]) == [state] and opened.fingerprint() == before


def test_names_that_climb_out_of_the_root_reach_nothing(tmp_path):
    """Whatever a table calls its pictures; the readers of folders are asked with a key of the same kind."""
    cv2.imwrite(str(tmp_path / "secret.jpg"), archive.picture(1))
    for name, (opened, _) in archives(tmp_path).items():
        ref = only(opened)
        up = "../" * (len(Path(ref.key).parts) + 2)
        for key in ("../secret.jpg", f"{Path(ref.key).parent}/{up}{tmp_path}/secret.jpg", str(tmp_path / "secret.jpg")):
            asked = dataclasses.replace(ref, key=key)
            if name == "mine":
                archive.write_manifest(tmp_path / name, [{**ROW, "path": key}], pictures=False)
                asked = only(opened)
            assert rejected(opened, asked)[0] == "outside_root", (name, key)


ODD_NAMES = [b"line\nbreak", b"esc\x1b[31m", b"b\xffld", b"x" * 251, b"<b> & 'q\"", b" "]


@pytest.mark.parametrize("name", [*ODD_NAMES, "ü".encode() * 120, "\u202egpj".encode()])
def test_any_name_becomes_one_line_of_text(tmp_path, name):
    archive.write_aflw2000(tmp_path, "plain")
    for suffix in (".jpg", ".mat"):
        (tmp_path / f"plain{suffix}").rename(tmp_path / (os.fsdecode(name) + suffix))
    opened = source("aflw2000", tmp_path)
    (face,) = load_directly(opened, CropSpec(size=16, margin_px=2), list(opened.refs()))
    assert isinstance(face, FaceRow)
    for text in (face.sample_id, face.path):
        assert text.isprintable() and text.encode()
    ref = only(opened)
    (tmp_path / ref.key).write_bytes(b"")
    (answer,) = load_directly(opened, CropSpec(size=16, margin_px=2), [ref])
    assert isinstance(answer, Rejected) and answer.detail.isprintable() and answer.reason == "not_a_picture"


@pytest.mark.parametrize("reader", ["aflw2000", "pointing04", "biwi", "aflw"])
def test_absent_root_is_a_sentence(tmp_path, reader):
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        list(source(reader, tmp_path / "nowhere").refs())
    (tmp_path / "AFLW.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match="AFLW.zip is not a folder but a file: unpack an archive"):
        list(source(reader, tmp_path / "AFLW.zip").refs())


def test_synthetic_names_are_those_of_the_renderer():
    spec = DatasetSpec(reader="synthetic", count=14, seed=5, image_px=48, heads_per_person=4)
    opened = open_source(spec)
    refs = list(opened.refs())
    assert len(refs) == 14 and [len(list(opened.refs()))] == [14]
    assert sorted(Counter(ref.group for ref in refs).values()) == [2, 4, 4, 4]
    annotation, image = opened.load(refs[6])  # asserts that the renderer agrees
    again, same = opened.load(refs[6])
    assert np.array_equal(image, same) and annotation.pose == again.pose and image.shape == (48, 48, 3)
    assert annotation.landmarks is not None and annotation.visible is not None
    assert opened.fingerprint() == open_source(spec).fingerprint()


def test_sources_travel_light_and_load_in_the_sandbox(tmp_path):
    archive.write_300w_lp(tmp_path / "lp", "AFW", "AFW_1_1_0", marks=MARKS)
    archive.write_aflw(tmp_path / "aflw", FACES[:1])
    archive.write_biwi(tmp_path / "biwi", 1, 3)
    archive.write_manifest(tmp_path / "mine", [{**ROW, "path": f"{i}.png"} for i in range(200)], pictures=False)
    cv2.imwrite(str(tmp_path / "mine" / "0.png"), archive.picture(0))
    boxes = archive.write_boxes(tmp_path / "b.json", {f"{i}.png": one((4, 5, 60, 70)) for i in range(200)})
    opened = [
        source(name, tmp_path / folder) for name, folder in (("300w_lp", "lp"), ("aflw", "aflw"), ("biwi", "biwi"))
    ]
    opened.append(source("manifest", tmp_path / "mine", boxes=boxes))
    for each in opened:
        listed = list(each.refs())
        assert len(pickle.dumps(each)) < 2000  # also after it was used: tables stay where they were read
        with Sandbox(each, CropSpec(size=16, margin_px=2)) as sandbox:
            (face,) = sandbox.load_many([FaceRef(listed[0].sample_id, listed[0].group, listed[0].key)])
        assert not isinstance(face, Rejected), face.detail
        assert face.crop.pixels.shape == (20, 20, 3)


def test_every_archive_is_under_its_own_terms():
    """A model card must not call a research archive's terms unknown; what a manifest holds only its owner knows."""
    assert {name for name, reader in readers().items() if reader.terms is UNKNOWN} == {"manifest"}
    free = {name for name, reader in readers().items() if not reader.terms.research_only}
    assert free == {"synthetic", "pointing04"}


def test_what_is_missing_of_an_archive_is_named(tmp_path):
    def missing(reader: str, root: Path) -> list[str]:
        opened = source(reader, root)
        return opened.reader.missing_parts(list(opened.refs()))

    for flip in (False, True):
        archive.write_300w_lp(tmp_path / "lp", "AFW", "AFW_1_1_0", flip=flip)
    said = missing("300w_lp", tmp_path / "lp")
    assert said[:3] == ["AFW (1 of 5,207)", "AFW_Flip (1 of 5,207)", "HELEN"] and said[-1] == "landmarks"
    archive.write_300w_lp(tmp_path / "lp", "AFW", "AFW_1_1_0", marks=MARKS)
    assert "landmarks" not in missing("300w_lp", tmp_path / "lp")
    archive.write_pointing04(tmp_path / "pointing", 3, 7, 0, 30)
    assert missing("pointing04", tmp_path / "pointing")[1:3] == ["Person02", "Person03 (1 of 186)"]
    for sequence in range(1, 24):
        archive.write_biwi(tmp_path / "biwi" / "hpdb", sequence, 3)
    assert missing("biwi", tmp_path / "biwi") == ["24"]
    archive.write_aflw(tmp_path / "aflw", FACES)
    assert missing("aflw", tmp_path / "aflw") == []
    (tmp_path / "aflw" / "data" / "flickr" / "2" / "image00013.jpg").unlink()
    assert missing("aflw", tmp_path / "aflw") == ["1 of 2 pictures, e.g. data/flickr/2/image00013.jpg"]
    archive.write_aflw2000(tmp_path / "aflw2000", "image00002")
    assert missing("aflw2000", tmp_path / "aflw2000") == []


def test_census_compares_with_the_whole_archive(tmp_path):
    archive.write_300w_lp(tmp_path / "lp", "AFW", "AFW_1_1_0")
    assert census(source("300w_lp", tmp_path / "lp")) == "1 face; the whole archive has 122,450: this is a part"
    archive.write_manifest(tmp_path / "mine", [ROW])
    assert census(source("manifest", tmp_path / "mine")) == "1 face"
    opened = source("300w_lp", tmp_path / "lp")
    opened.reader.whole = 1
    assert census(opened) == "1 face; the whole archive has 1"
    opened.reader.whole = 0
    assert census(opened) == "1 face; the whole archive has 0: this is more"


def test_heads_are_drawn_from_all_around_if_asked_for():
    """The pose as drawn, and the landmarks with it: a head seen from behind hides all of its face."""

    def drawn(poses: str, count: int) -> list[Annotation]:
        opened = open_source(DatasetSpec("synthetic", count=count, seed=5, image_px=48, poses=poses))
        return [opened.load(ref)[0] for ref in opened.refs()]

    ahead, around = drawn("ahead", 8), drawn("around", 16)
    assert max(abs(face.pose[1]) for face in ahead) <= 99
    behind = [face for face in around if abs(face.pose[1]) > 140]
    assert len(behind) >= 3
    assert all(not face.visible[27:60].any() for face in behind), "nose, eyes and mouth are on the other side"
