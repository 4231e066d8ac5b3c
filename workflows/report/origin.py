"""Where a model comes from."""

import platform

from workflows.engine.config import REPO
from workflows.engine.stage import StageRun
from workflows.export.mlmodel import version_of
from workflows.storage.manifest import finished
from workflows.tracking.facts import git_commit

PACKAGES = (
    "torch",
    "timm",
    "onnx",
    "onnxruntime",
    "openvino",
    "ray",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
)


def origin(stage: StageRun) -> dict[str, str]:
    """The configuration's name, the commit, the folder hash of each stage, and versions, as names and values."""
    facts = {"configuration": stage.spec.name, "commit": git_commit(REPO)}
    facts |= {f"stage {name}": folder.name for name, folder in stage.inputs.items()}
    facts["stage publish"] = stage.folder.name
    facts["finished"] = max(str(finished(folder)["finished"]) for folder in stage.inputs.values())
    facts["python"] = platform.python_version()
    return facts | {name: version for name in PACKAGES if (version := version_of(name))}
