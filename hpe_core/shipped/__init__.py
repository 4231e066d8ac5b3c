"""The networks that come with this package, each a folder with its weights and their meaning.

`student` is what `HeadPosePredictor.load()` and `hpe predict` use where nothing is said: its ONNX file, its model card
(README.md) and its receipt (receipt.json: commit, configuration, seeds, scores, hashes). `teacher` is a teacher of the
same run, which `start:` may begin with. docs/models.md is about them.
"""

import os
from pathlib import Path

from hpe_core.errors import check, nearest

SHIPPED = "shipped"  # the word for the student, and the folder before a name: shipped/teacher
NAMES = ("student", "teacher")
STUDENT_FILE = Path(__file__).parent / "student" / "student.onnx"


def model_path(model: str | Path) -> Path:
    """What a predictor loads: `shipped` is the student's file, shipped/NAME a folder, else a path. Raises SpecError."""
    return STUDENT_FILE if model == SHIPPED else network_folder(os.path.expanduser(model))


def network_folder(start: str) -> Path:
    """The folder of the network that a training begins with: a path, or shipped/NAME. Raises SpecError."""
    return shipped_folder(start) or Path(start)


def shipped_folder(name: str) -> Path | None:
    """The folder that `shipped/NAME` means; None for a path of another kind. Raises SpecError for an unknown name."""
    folder, _, rest = name.partition("/")
    if folder != SHIPPED:
        return None
    check(rest in NAMES, f"{name} is no network of this package{nearest(rest, list(NAMES))}")
    return Path(__file__).parent / rest
