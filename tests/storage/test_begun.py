"""What was cut off is told until something of its stage is finished after it."""

import os
from pathlib import Path

from hpe_core.system.files import write_json
from workflows.storage.begun import BEGUN, cut_off, note_begun
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
