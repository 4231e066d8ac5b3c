"""What a .mat may do to its reader: sizes that lie, parts that are missing, other kinds of file."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hpe_core.datasets.base import Rejected
from hpe_core.datasets.decoding.matlab import HEADER, MAX_INFLATED, read_mat

POSE = np.arange(7.0)[None]


def written(path: Path, *, compressed: bool) -> bytes:
    scipy.io.savemat(path, {"Pose_Para": POSE, "other": "words"}, do_compression=compressed)
    return path.read_bytes()


def compressed(body: bytes) -> bytes:
    packed = zlib.compress(body)
    return struct.pack("<II", 15, len(packed)) + packed


def verdict(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(Rejected) as caught:
        read_mat(path, ("Pose_Para",))
    assert path.name in caught.value.detail and "\n" not in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("packed", [True, False])
def test_sound_files_are_read_in_either_byte_order(tmp_path, packed):
    data = written(tmp_path / "a.mat", compressed=packed)
    assert np.array_equal(read_mat(tmp_path / "a.mat", ("Pose_Para",))["Pose_Para"], POSE)
    body = struct.pack(">II", 6, 8) + struct.pack(">II", 6, 0) + struct.pack(">IIii", 5, 8, 1, 7)
    body += struct.pack(">II9s7x", 1, 9, b"Pose_Para") + struct.pack(">II7d", 9, 56, *POSE[0])
    element = struct.pack(">II", 14, len(body)) + body
    if packed:
        packed_element = zlib.compress(element)
        element = struct.pack(">II", 15, len(packed_element)) + packed_element
    (tmp_path / "b.mat").write_bytes(data[: HEADER - 4] + b"\x01\x00MI" + element)
    assert np.array_equal(read_mat(tmp_path / "b.mat", ("Pose_Para",))["Pose_Para"], POSE)


KINDS = ("f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


@given(
    variables=st.dictionaries(
        st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,30}", fullmatch=True),
        st.sampled_from(KINDS).flatmap(lambda kind: arrays(kind, array_shapes(min_dims=2, max_dims=3, max_side=6))),
        min_size=1,
        max_size=5,
    ),
    packed=st.booleans(),
)
def test_numbers_are_those_that_scipy_reads(tmp_path_factory, variables, packed):
    """What is no real number is none to either: words, complex numbers, cells, structures."""
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    others = {"w_": "words", "c_": np.array([[1 + 2j]]), "e_": np.array([[1, "a"]], object), "s_": {"inside": 1.0}}
    scipy.io.savemat(path, {**others, **variables}, do_compression=packed)
    ours, theirs = read_mat(path, {*variables, *others}), scipy.io.loadmat(path)
    assert set(ours) == set(variables)
    for name, values in ours.items():
        assert values.shape == theirs[name].shape
        assert np.array_equal(values, theirs[name].astype(np.float64), equal_nan=True)


def test_a_variable_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "a.mat"
    data = written(path, compressed=True)
    assert verdict(path, data + data[HEADER:]) == "bad_annotation"


@pytest.mark.parametrize("packed", [True, False])
def test_every_byte_is_accounted_for(tmp_path, packed):
    """Also where only the second variable is touched, which nobody asked for."""
    path = tmp_path / "a.mat"
    data = written(path, compressed=packed)
    for length in (0, 64, HEADER - 1, HEADER + 4, len(data) - 40, len(data) - 1):
        assert verdict(path, data[:length]) == "bad_annotation", length
    for more in (b"\0", bytes(8), data[:16]):
        assert verdict(path, data + more) == "bad_annotation", more


def test_what_is_compressed_is_one_whole_variable(tmp_path):
    path = tmp_path / "a.mat"
    plain = written(path, compressed=False)
    header, body = plain[:HEADER], plain[HEADER:]
    first = body[: 8 + struct.unpack("<I", body[4:8])[0]]
    path.write_bytes(header + compressed(first))
    assert np.array_equal(read_mat(path, ("Pose_Para",))["Pose_Para"], POSE)
    for inner in (body, first[:-8], b"", first + bytes(8)):
        assert verdict(path, header + compressed(inner)) == "bad_annotation"
    whole = compressed(first)
    assert verdict(path, header + whole[:-4] + bytes(4)) == "bad_annotation"  # another checksum
    assert verdict(path, header + struct.pack("<II", 15, len(whole)) + whole[8:] + bytes(8)) == "bad_annotation"


def test_bombs_are_refused_without_being_unpacked(tmp_path):
    path = tmp_path / "a.mat"
    header = written(path, compressed=False)[:HEADER]
    bomb = compressed(struct.pack("<II", 14, 4_000_000_000) + bytes(MAX_INFLATED))
    assert len(bomb) < MAX_INFLATED / 500
    assert verdict(path, header + bomb) == "too_large"
    half = compressed(struct.pack("<II", 14, 2 + MAX_INFLATED // 2) + bytes(2 + MAX_INFLATED // 2))
    assert verdict(path, header + half + half) == "too_large"


def test_other_kinds_of_mat_are_refused(tmp_path):
    scipy.io.savemat(tmp_path / "four.mat", {"Pose_Para": POSE}, format="4")
    hdf5 = b"MATLAB 7.3 MAT-file".ljust(HEADER - 4) + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n\x1a\n" + bytes(200)
    for data in ((tmp_path / "four.mat").read_bytes(), hdf5, b"<html>404</html>", bytes(1000)):
        assert verdict(tmp_path / "a.mat", data) == "bad_annotation"
