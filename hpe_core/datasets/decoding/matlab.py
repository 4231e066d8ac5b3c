"""MATLAB 5 files as the 300W-LP family stores them: named real numbers, or a `Rejected` that says why not.

scipy's reader stops at the last variable that it was asked for and compares no checksum, and a damaged file can end the
process. Here elements must follow each other up to the last byte, and a compressed one must inflate to one whole
variable under zlib's Adler-32 (how much passes: docs/datasets.md). Tests hold this reader against scipy's. Format:
MAT-File Format, The MathWorks, version 5, chapter 1.
"""

import struct
import zlib
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets import files
from hpe_core.datasets.base import Pose, Rejected, pose_of
from hpe_core.datasets.decoding.pictures import read_bytes

MAX_MAT = 1 << 24  # a .mat of these archives has about 5 kB
MAX_INFLATED = 1 << 26  # of all its elements together: compressed zeros could be a thousand times the file
HEADER = 128
MATRIX, COMPRESSED = 14, 15  # miMATRIX and miCOMPRESSED, the two types of element at the top level
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # miINT8 ...
DOUBLE, UINT64 = 6, 15  # classes of arrays between mxDOUBLE_CLASS and mxUINT64_CLASS hold numbers
COMPLEX = 0x800
VERSIONS = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}  # 0x0100, then MI, in the byte order of the file
Variables = Mapping[str, NDArray[np.float64]]


def read_mat(path: Path, names: Container[str]) -> Variables:
    """The named variables of a MATLAB 5 file, those of them that hold real numbers. Raises Rejected."""
    name = files.printable(str(path))
    found: dict[str, NDArray[np.float64]] = {}
    for order, body in list(_matrices(read_bytes(path, MAX_MAT), name)):  # whole first, then understood
        try:
            variable = _variable(body, order, names)
        except (ValueError, struct.error):  # sizes that contradict each other
            raise Rejected("bad_annotation", f"{name} is damaged: it holds a variable that is not whole") from None
        if variable is not None:
            if variable[0] in found:
                raise Rejected("bad_annotation", f"{name} has {variable[0]} twice")
            found[variable[0]] = variable[1]
    return found


def _matrices(data: bytes, name: str) -> Iterator[tuple[str, memoryview]]:
    """(byte order, body) of each variable of a file of whole elements up to the last byte. Raises Rejected."""
    order = VERSIONS.get(data[HEADER - 4 : HEADER])
    if order is None:
        newer = data.startswith(b"MATLAB 7.3")
        raise Rejected("bad_annotation", f"{name} is {'MATLAB 7.3: save it with -v7' if newer else 'no MATLAB 5 file'}")
    place, inflated = HEADER, 0
    while place < len(data):
        kind, body, place = _element(data, place, order, name)
        if kind == COMPRESSED:
            stream = zlib.decompressobj()
            try:
                unpacked = stream.decompress(body, MAX_INFLATED - inflated + 1)
            except zlib.error as error:
                raise Rejected("bad_annotation", f"{name} is damaged: {error}") from None
            inflated += len(unpacked)
            if inflated > MAX_INFLATED:
                raise Rejected("too_large", f"{name} inflates to more than {MAX_INFLATED} bytes")
            if not stream.eof or stream.unused_data:
                raise Rejected("bad_annotation", f"{name} is damaged: a compressed variable is not whole")
            kind, body, end = _element(unpacked, 0, order, name)
            if end != len(unpacked):
                raise Rejected("bad_annotation", f"{name} is damaged: a compressed variable holds more than one")
        if kind != MATRIX:
            raise Rejected("bad_annotation", f"{name} is damaged: it holds an element of type {kind}")
        yield order, body


def _element(data: bytes, place: int, order: str, name: str) -> tuple[int, memoryview, int]:
    """(type, body, where the next one begins) of the element at `place`. Raises Rejected where it is cut off."""
    begin = place + 8
    if begin <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if begin + size <= len(data):
            return kind, memoryview(data)[begin : begin + size], begin + size
    raise Rejected("bad_annotation", f"{name} is cut off")


def _variable(body: memoryview, order: str, names: Container[str]) -> tuple[str, NDArray[np.float64]] | None:
    """(name, values) of a matrix element; None if not asked for, or no real numbers. Raises ValueError."""
    _, flags, place = _part(body, 0, order)
    (flag,) = struct.unpack_from(f"{order}I", flags)
    if not DOUBLE <= flag & 0xFF <= UINT64 or flag & COMPLEX:
        return None
    _, sizes, place = _part(body, place, order)
    _, label, place = _part(body, place, order)
    name = label.tobytes().decode("latin-1")
    if name not in names:
        return None
    kind, values, end = _part(body, place, order)
    if kind not in NUMBERS or end < len(body):
        raise ValueError(f"numbers of type {kind}, then {len(body) - end} bytes more")
    shape = np.frombuffer(sizes, f"{order}i4")
    if (shape < 0).any():
        raise ValueError("a negative size")
    stored: NDArray[np.generic] = np.frombuffer(values, order + NUMBERS[kind])
    return name, stored.astype(np.float64).reshape(shape, order="F")


def _part(body: memoryview, place: int, order: str) -> tuple[int, memoryview, int]:
    """(type, data, where the next part begins): parts are padded to 8 bytes, short ones lie in their own tag."""
    kind, size = struct.unpack_from(f"{order}II", body, place)
    if kind >> 16:
        kind, size, begin, after = kind & 0xFFFF, kind >> 16, place + 4, place + 8
    else:
        begin, after = place + 8, place + 8 + (size + 7) // 8 * 8
    if begin + size > len(body) or begin + size > after:
        raise ValueError("a part is cut off")
    return kind, body[begin : begin + size], after


def numbers(mat: Variables, key: str, name: str) -> NDArray[np.float64]:
    """The variable `key` of the file called `name`. Raises Rejected where it holds no real numbers."""
    if key not in mat:
        raise Rejected("bad_annotation", f"{name} has no numbers named {key}")
    return mat[key]


def pose_para(mat: Variables, name: str) -> Pose:
    """`Pose_Para`, (pitch, yaw, roll) in radians and more, as our degrees: the same convention. Raises Rejected."""
    radians = numbers(mat, "Pose_Para", name).ravel()[:3]
    if radians.size < 3:
        raise Rejected("bad_annotation", f"{name}: Pose_Para has fewer than three numbers")
    if not np.isfinite(radians).all():
        raise Rejected("nan_pose", f"{name}: Pose_Para is not finite")
    return pose_of(np.degrees(radians))
