"""What was cut off is told until something of its stage is finished after it."""

import os
from pathlib import Path

from hpe_core.system.files import write_json
from workflows.storage.begun import BEGUN, cut_off, how_far, note_begun
from workflows.storage.contents import MANIFEST


def begun(stage: Path, name: str, at_s: float) -> None:
    note_begun(stage / name, {"leaves": {"lr": name}, "inputs": {}, "code": {}})
    os.utime(stage / name / BEGUN, (at_s, at_s))


def finished(stage: Path, name: str, at_s: float) -> None:
    write_json(stage / name / MANIFEST, {"stage": stage.name, "files": {}})
    os.utime(stage / name / MANIFEST, (at_s, at_s))


def test_the_last_of_what_was_cut_off_is_told_unless_a_later_run_was_finished(tmp_path):
    assert cut_off(tmp_path) is None
    finished(tmp_path, "first", 50)
    for name, at_s in (("older", 70), ("newer", 100), ("oldest", 60)):
        begun(tmp_path, name, at_s)
    found = cut_off(tmp_path)
    assert found is not None and (found.folder.name, found.parts["leaves"]) == ("newer", {"lr": "newer"})
    finished(tmp_path, "between", 90)
    still = cut_off(tmp_path)
    assert still is not None and still.folder == found.folder
    finished(tmp_path, "last", 150)
    assert cut_off(tmp_path) is None, "nobody waits any more for what was given up"


def test_what_an_earlier_go_has_trained_is_told_and_what_lay_there_before_is_not(tmp_path):
    begun(tmp_path / "teachers", "a", 0)
    first = cut_off(tmp_path / "teachers")
    assert first is not None and how_far(first) == ""
    for home, after_s in (("older-01", -60), ("resnet-02", 60), ("turned-03", 60)):
        files = {"ray-train/x/history.json": [{}, {}]} | ({} if home == "turned-03" else {"result.json": {}})
        for file, tree in files.items():
            write_json(tmp_path / "networks" / home / file, tree)
        os.utime(tmp_path / "networks" / home, (first.began_s + after_s,) * 2)
    begun(tmp_path / "teachers", "a", first.began_s + 900)  # it goes on
    again = cut_off(tmp_path / "teachers")
    assert again is not None and how_far(again) == "resnet trained, turned 2 epochs"
