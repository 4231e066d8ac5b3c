"""MATLAB 5 files as the 300W-LP family stores them: a named variable as numbers, or a `Rejected` that says why not.

scipy stops at the last variable that it was asked for and compares no checksum, so a file with bytes missing can give
numbers that nobody wrote. `check_whole` reads every element to its end first: elements must follow each other up to the
last byte, and a compressed one must inflate to one whole variable under zlib's Adler-32. All 43 .mat files of the
samples are compressed. Of 600 mutations of such a file nothing wrong passes; uncompressed, 142 of 600 pass with
overwritten numbers, which the format has no means to show (`tests/test_fuzz.py`).
"""

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpe_core.rows import Pose
from hpe_core.sources import files
from hpe_core.sources.base import Rejected
from hpe_core.sources.pictures import read_bytes

MAX_MAT = 1 << 24  # a .mat of these archives has about 5 kB
MAX_INFLATED = 1 << 26  # of all its elements together: compressed zeros could be a thousand times the file
HEADER = 128
MATRIX, COMPRESSED = 14, 15  # miMATRIX and miCOMPRESSED, the two types of element at the top level


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The named variables of a MATLAB 5 file. Raises Rejected.

    On a damaged file the parser may also take the process down, so call it in a sandbox.
    """
    import scipy.io  # takes time that a listing need not pay

    name = files.printable(str(path))
    check_whole(read_bytes(path, MAX_MAT), name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return scipy.io.loadmat(path, variable_names=list(names))
    except Exception as error:  # a damaged file raises nearly anything from deep inside the parser
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise Rejected("bad_annotation", f"{name} is not a readable .mat file: {said}") from None


def check_whole(data: bytes, name: str) -> None:
    """Raises Rejected unless `data` is a MATLAB 5 header and whole elements up to the last byte."""
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise Rejected("bad_annotation", f"{name} is no MATLAB 5 file")
    place, inflated = HEADER, 0
    while place < len(data):
        kind, body, place = _element(data, place, order, name)
        if kind == COMPRESSED:
            stream = zlib.decompressobj()
            try:
                body = stream.decompress(body, MAX_INFLATED - inflated + 1)
            except zlib.error as error:
                raise Rejected("bad_annotation", f"{name} is damaged: {error}") from None
            inflated += len(body)
            if inflated > MAX_INFLATED:
                raise Rejected("too_large", f"{name} inflates to more than {MAX_INFLATED} bytes")
            if not stream.eof or stream.unused_data:
                raise Rejected("bad_annotation", f"{name} is damaged: a compressed variable is not whole")
            kind, _, end = _element(body, 0, order, name)
            if end != len(body):
                raise Rejected("bad_annotation", f"{name} is damaged: a compressed variable holds more than one")
        if kind != MATRIX:
            raise Rejected("bad_annotation", f"{name} is damaged: it holds an element of type {kind}")


def _element(data: bytes, place: int, order: str, name: str) -> tuple[int, bytes, int]:
    """(type, body, where the next one begins) of the element at `place`. Raises Rejected where it is cut off."""
    begin = place + 8
    if begin <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if begin + size <= len(data):
            return kind, data[begin : begin + size], begin + size
    raise Rejected("bad_annotation", f"{name} is cut off")


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
