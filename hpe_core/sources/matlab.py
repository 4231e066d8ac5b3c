"""MATLAB 5 files as the 300W-LP family stores them: a named variable as numbers, or a `Rejected` that says why not."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpe_core.rows import Pose
from hpe_core.sources import files
from hpe_core.sources.base import Rejected
from hpe_core.sources.pictures import read_bytes

MAX_MAT = 1 << 24  # a .mat of these archives has about 5 kB


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The named variables of a MATLAB 5 file. Raises Rejected.

    On a damaged file the parser may also take the process down, so call it in a sandbox.
    """
    import scipy.io  # takes time that a listing need not pay

    read_bytes(path, MAX_MAT)  # for the reasons why it may not be readable at all
    name = files.printable(str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return scipy.io.loadmat(path, variable_names=list(names))
    except Exception as error:  # a damaged file raises nearly anything from deep inside the parser
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise Rejected("bad_annotation", f"{name} is not a readable .mat file: {said}") from None


def numbers(mat: dict[str, Any], key: str, name: str) -> NDArray[np.float64]:
    """The variable `key` of the file called `name`. Raises Rejected where it holds no real numbers."""
    value = mat.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise Rejected("bad_annotation", f"{name} has no numbers named {key}")
    return np.asarray(value, dtype=np.float64)


def pose_para(mat: dict[str, Any], name: str) -> Pose:
    """`Pose_Para`, (pitch, yaw, roll) in radians and more, as our degrees: the same convention. Raises Rejected."""
    radians = numbers(mat, "Pose_Para", name).ravel()[:3]
    if radians.size < 3:
        raise Rejected("bad_annotation", f"{name}: Pose_Para has fewer than three numbers")
    if not np.isfinite(radians).all():
        raise Rejected("nan_pose", f"{name}: Pose_Para is not finite")
    pitch, yaw, roll = (float(value) for value in np.degrees(radians))
    return pitch, yaw, roll
