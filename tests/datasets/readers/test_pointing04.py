"""Pointing'04 against independent readings of the same files."""

import shutil
from collections import Counter

import pytest

from tests.archives import JPEG, write_pointing04
from tests.datasets.reading import load_reason, source


def test_pointing04_counts_people_and_poses(real_data):
    opened = source("pointing04", real_data / "pointing04")
    refs = sorted(opened.refs())
    groups = Counter(ref.group for ref in refs)
    assert set(groups.values()) == {186} and sorted(groups) == [f"Person{i:02d}" for i in range(1, 11)]
    for ref in refs:
        assert ref.key.startswith(ref.group + "/")
    for ref in refs[::97]:
        annotation, image = opened.load(ref)
        assert image.shape == (288, 384, 3)
        tail = ref.sample_id[len("person01100") :]
        split = max(tail.rfind("+"), tail.rfind("-"))
        assert annotation.pose == (float(tail[:split]), float(tail[split:]), 0.0)
        x, y, width, height = map(int, (real_data / "pointing04" / ref.key).with_suffix(".txt").read_text().split()[2:])
        box = annotation.box
        assert (*box.center, box.width, box.height) == (x, y, width, height)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x.jpg\r\n\r\nFace\r\n64\r\n48\r\n40\r\n50\r\n", None),
        ("x.jpg Face 64 48 40 50", None),
        ("\ufeffx.jpg\nface:\n64.0, 48, 40, 50", None),
        ("x.jpg\n\n64\n48\n40\n50\n", "no_box"),
        ("", "no_box"),
        ("x.jpg\nFace\n64\n48\n", "bad_annotation"),
        ("x.jpg\nFace\n64\n48\nwide\n50\n", "bad_annotation"),
    ],
)
def test_pointing04_texts(tmp_path, text, reason):
    path = write_pointing04(tmp_path, 14, 7, -15, 30, text or " ")
    path.with_suffix(".txt").write_bytes(text.encode())
    opened = source("pointing04", tmp_path)
    (ref,) = opened.refs()
    assert (ref.sample_id, ref.group) == ("person14107-15+30", "Person14")
    if reason is None:
        annotation, _ = opened.load(ref)
        assert annotation.pose == (-15.0, 30.0, 0.0)
        assert (*annotation.box.center, annotation.box.width, annotation.box.height) == (64, 48, 40, 50)
    else:
        assert load_reason(opened, ref) == reason


def test_a_person_is_whom_the_name_says_in_whatever_folder(tmp_path):
    """Else a copy in one folder, or in the folders of the other edition, would be another person of the split."""
    path = write_pointing04(tmp_path, 3, 7, 0, 30)
    shutil.copy(path, tmp_path / path.name.replace("person0310", "personne0310"))
    for name in ("personne03", "all"):
        (tmp_path / name).mkdir()
        shutil.copy(path, tmp_path / name / path.name)
    assert {ref.group for ref in source("pointing04", tmp_path).refs()} == {"Person03"}


def test_pointing04_extremes_and_strangers(tmp_path):
    write_pointing04(tmp_path, 15, 0, -90, 0)
    write_pointing04(tmp_path, 15, 92, 90, 0)
    (tmp_path / "Person15" / "holiday.jpg").write_bytes(JPEG)
    opened = source("pointing04", tmp_path)
    refs = sorted(opened.refs())
    assert [ref.group for ref in refs] == ["Person15"] * 3
    assert load_reason(opened, refs[0]) == "bad_annotation"
    assert sorted(opened.load(ref)[0].pose for ref in refs[1:]) == [(-90.0, 0.0, 0.0), (90.0, 0.0, 0.0)]


def test_pointing04_as_it_was_first_handed_out(tmp_path):
    """French names, two series, and a folder that repeats the pictures that look ahead."""
    for series in (1, 2):
        path = write_pointing04(tmp_path, 1, 46, 0, 0)
        name = f"personne01{series}46+0+0"
        path.with_suffix(".txt").rename(path.with_name(f"{name}.txt"))
        path = path.rename(path.with_name(f"{name}.jpg"))
        (tmp_path / "Front").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "Front")
    opened = source("pointing04", tmp_path)
    refs = sorted(opened.refs())
    names = {ref.sample_id: ref.group for ref in refs}
    assert names == dict.fromkeys(("personne01146+0+0", "personne01246+0+0"), "Person01") and len(refs) == 2
    assert [opened.load(ref)[0].known_box().center for ref in refs] == [(64, 48), (64, 48)]
    before = opened.fingerprint()
    shutil.rmtree(tmp_path / "Front")
    assert opened.fingerprint() == before
    (tmp_path / refs[0].key).with_suffix(".txt").unlink()
    assert opened.load(refs[0])[0].pose == (0, 0, 0) and load_reason(opened, refs[0]) == "no_box"
