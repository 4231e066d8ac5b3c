"""What this distribution asks for, as its metadata say, and the sentence where a package of it is missing."""

import re
from collections.abc import Sequence
from importlib import metadata, util

from hpe_core.errors import UserError

DISTRIBUTION = "head-pose-distillation"
EXTRA = "workflows"
# What can change a result's bits, or reads or writes it.
MAKERS = (
    *("torch", "timm", "numpy", "opencv-python-headless", "albumentations", "optuna", "ray", "pyarrow", "mlflow"),
    *("onnx", "onnxruntime", "openvino"),
)


def requirements(extra: str = "") -> list[str]:
    """What is always asked for, or what an extra adds, as `ray[data]>=2.55,<3`. Nothing where the code is not
    installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    parts = [line.partition(";") for line in lines]
    ending = f'extra == "{extra}"' if extra else ""
    return [asked.strip() for asked, _, marker in parts if marker.strip().replace("'", '"') == ending]


def version_of(package: str) -> str:
    """The installed version, or '' where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def versions(packages: Sequence[str] = MAKERS) -> dict[str, str]:
    """Name -> version of those that are installed."""
    return {name: version for name in packages if (version := version_of(name))}


def name_of(asked: str) -> str:
    """`ray[data]>=2.55` -> `ray`, which is the module's name, too, for all of the extra."""
    return re.split(r"[^\w.-]", asked)[0]


def missing(error: ModuleNotFoundError) -> Exception:
    """A sentence that says what brings the missing package, or the error itself where that is not known."""
    name = (error.name or "").partition(".")[0]
    for extra in ("", EXTRA):
        for asked in requirements(extra):
            if name_of(asked) == name:
                wanted = f"{DISTRIBUTION}[{extra}]" if extra else asked
                return UserError(f"{name} is not installed; pip install '{wanted}' brings it")
    return error


def check_extra() -> None:
    """Before anything begins that needs all of the extra. Raises UserError where one of its packages is missing."""
    for asked in requirements(EXTRA):
        if util.find_spec(name_of(asked)) is None:
            raise missing(ModuleNotFoundError(name=name_of(asked)))
