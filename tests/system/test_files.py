"""A file is the old one or the new one, whatever ends the process that writes it."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hpe_core.system.files import read_json, replacing, write_atomic, write_json


def test_a_file_is_replaced_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"b": 1, "a": [2]})
    assert read_json(path) == {"a": [2], "b": 1}
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert read_json(path) == {"a": [2], "b": 1}
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "old")
    for failure in (OSError("the disk is full"), KeyboardInterrupt()):
        with pytest.raises(type(failure)), replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise failure
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # a block that writes nothing
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    (folder := tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_atomic(folder, b"x")
    assert sorted(tmp_path.iterdir()) == [path, folder]


def test_a_killed_writer_leaves_the_old_file_and_a_name_that_can_be_swept(tmp_path):
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(b"old")
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom hpe_core.system.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'new'); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    left = set(tmp_path.iterdir()) - {path}
    assert len(left) == 1 and left == set(tmp_path.glob(".part-*.tmp"))


def test_the_bytes_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    path, flushed = tmp_path / "file", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append((os.fstat(descriptor).st_size, path.exists())))
    write_atomic(path, b"12345")
    assert flushed == [(5, False)]


def test_any_name_that_a_disk_takes_can_be_replaced(tmp_path):
    for name in ("n" * 255, "ü" * 127, "😀" * 63, os.fsdecode(b"\xff" * 255)):
        write_atomic(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
    assert len(list(tmp_path.iterdir())) == 4


def test_writers_of_one_file_do_not_mix_their_bytes(tmp_path):
    path, inside = tmp_path / "file", threading.Barrier(4)

    def write(letter: bytes) -> None:
        with replacing(path) as temporary, open(temporary, "wb", buffering=0) as stream:
            stream.write(letter * 1000)
            inside.wait(20)
            stream.write(letter * 1000)

    letters = (b"a", b"b", b"c", b"d")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, letters))
    assert path.read_bytes() in {letter * 2000 for letter in letters} and list(tmp_path.iterdir()) == [path]


def test_a_link_to_the_file_that_is_there_leaves_nothing_behind(tmp_path):
    """POSIX: renaming one link of a file to another one does nothing."""
    path = tmp_path / "piece"
    path.write_bytes(b"bytes")
    with replacing(path) as temporary:
        os.link(path, temporary)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"bytes"
