"""Where a model comes from: facts for the pages, and its receipt, by which anybody can check or repeat it."""

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpe_core.spec.serde import to_dict
from hpe_core.system.files import file_sha256
from hpe_core.system.packages import versions
from workflows.engine.config import REPO
from workflows.engine.results import Role
from workflows.engine.stage import StageRun
from workflows.storage.manifest import finished
from workflows.tracking.facts import git_commit

MACHINES = ("store", "mlflow", "cluster")  # keys that decide where a run takes place, and nothing of its result


def origin(stage: StageRun) -> dict[str, str]:
    """The configuration's name, the commit, the folder hash of each stage, and versions, as names and values."""
    facts = {"configuration": stage.spec.name, "commit": git_commit(REPO)}
    facts |= {f"stage {name}": folder.name for name, folder in stage.inputs.items()}
    facts["stage publish"] = stage.folder.name
    facts["finished"] = max(str(finished(folder)["finished"]) for folder in stage.inputs.values())
    if made_by := finished(stage.inputs["student"]).get("made_by"):
        facts["processor"] = ", ".join(made_by["processors"])
    facts["python"] = platform.python_version()
    return facts | versions()


def receipt(stage: StageRun, model: Path, facts: Mapping[str, str]) -> dict[str, Any]:
    """What the published folder `model` was made of and what it is worth: the whole configuration with its seeds, the
    facts of `origin`, the student's scores, and the SHA-256 of its files.

    Where things lie is nobody else's business: of paths and addresses only the last name is kept, and the keys that
    name machines are left out.
    """
    student = to_dict(stage.results.student.spec)  # the search may have chosen another than was configured
    made = {key: value for key, value in to_dict(stage.spec).items() if key not in MACHINES}
    rows = [row for row in stage.results.evaluate.rows if row.role is Role.DISTILLED]
    return {
        "origin": dict(facts),
        "configuration": without_folders(made | {"student": student}),
        "scores": {row.test: row.scores for row in rows},
        "files": {file.name: file_sha256(file) for file in sorted(model.iterdir()) if file.is_file()},
    }


def without_folders(value: Any) -> Any:
    """The same tree; of every absolute path and address in it the last name."""
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(entry) for entry in value]
    placed = isinstance(value, str) and (value.startswith(("/", "~")) or ":/" in value)
    return re.split(r"[/@]", value)[-1] if placed else value
