"""Laws of rows that a machine's processes share: one whole file, whoever builds it, and nothing left behind."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hpe_core.data import node_rows as module
from hpe_core.data.node_rows import node_rows
from hpe_core.data.rows import ShardError, write_shard
from hpe_core.data.shares import read_pieces, share, whole_shards
from hpe_core.spec.data import CropSpec
from hpe_core.system import disk
from hpe_core.system.disk import DiskFull
from hpe_core.system.shared import shared_home
from tests.faces import CROP, exchanged, face_row, marked_labels, write_heads

PIXELS = 3 * CROP.stored_size**2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_heads(tmp_path_factory.mktemp("shards"), 60)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shared files lie in a test and the processes that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return shared_home()


def left_in(home: Path) -> list[Path]:
    return sorted(home.rglob("*")) if home.exists() else []


class Reader:
    """Another process: it runs `code`, which may say a line, and goes on when it is told."""

    def __init__(self, files: list[Path], code: str) -> None:
        head = "import os, sys, time\nfrom pathlib import Path\nfrom hpe_core.data import node_rows as module\n"
        head += "from hpe_core.data.node_rows import node_rows\nfrom hpe_core.data.shares import whole_shards\n"
        head += "pieces = whole_shards([Path(name) for name in sys.argv[1:]])\n"
        head += "def say(word): print(word, flush=True)\ndef wait(): sys.stdin.readline()\n"
        command = [sys.executable, "-c", head + code, *map(str, files)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> int:
        self.go_on()
        return self.process.wait()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def reader(files: list[Path]) -> Iterator[Callable[..., Reader]]:
    """Starts readers, and kills those that a failed test has left."""
    started = []

    def start(code: str, of: list[Path] = files) -> Reader:
        started.append(Reader(of, code))
        return started[-1]

    yield start
    for one in started:
        one.kill()


READS = "rows = node_rows(pieces)\nimport hashlib\nsay(hashlib.sha256(rows.images.tobytes()).hexdigest())\nwait()"
NOTES = """
write = module._write
def noted(folder, parts):
    Path(os.environ["TMPDIR"], f"built-{os.getpid()}").touch()
    time.sleep(0.5)
    write(folder, parts)
module._write = noted
"""
STUCK = """
def stuck(folder, parts):
    (folder / "images").write_bytes(b"half")
    say("building")
    wait()
module._write = stuck
node_rows(pieces)
"""


@pytest.mark.parametrize("rotations", [False, True])
def test_the_rows_are_those_of_the_shards(files, home, tmp_path, rotations):
    labels = marked_labels(files, tmp_path / "labels", rotations=rotations)
    for pieces in (whole_shards(files, labels), share(whole_shards(files, labels), 1, 7), whole_shards(files)):
        mapped, plain = node_rows(pieces), read_pieces(pieces)
        for name in ("images", "angles", "scales"):
            np.testing.assert_array_equal(getattr(mapped, name), getattr(plain, name))
            assert not getattr(mapped, name).flags.writeable, "a write would change everybody's rows"
        assert (mapped.soft is None) == (plain.soft is None)
        if mapped.soft is not None and plain.soft is not None:
            np.testing.assert_array_equal(mapped.soft, plain.soft)
            assert mapped.soft.dtype == plain.soft.dtype


def test_label_sets_share_the_pictures(files, home, tmp_path):
    sets = [marked_labels(files, tmp_path / name) for name in ("one", "two")]
    held = [node_rows(whole_shards(files, labels)) for labels in (*sets, None)]
    large = [path for path in left_in(home) if path.is_file() and path.stat().st_size >= 60 * PIXELS]
    assert len(large) == 1 and len(list(home.glob("*/soft"))) == len(sets)
    del held
    assert left_in(home) == []


def test_two_that_build_at_once_make_one_file_and_the_last_to_leave_removes_it(reader, home, tmp_path):
    first, second = reader(NOTES + READS), reader(NOTES + READS)
    assert first.hear() == second.hear() != ""
    assert len(list(tmp_path.glob("built-*"))) == 1
    assert first.end() == 0 and left_in(home) != []
    assert second.end() == 0 and left_in(home) == []


def test_a_killed_builder_leaves_nothing_that_is_taken_for_whole(reader, files, home):
    stuck = reader(STUCK)
    assert stuck.hear() == "building"
    waiting = reader(READS)
    time.sleep(0.5)
    stuck.kill()
    rows = read_pieces(whole_shards(files))
    assert waiting.hear() == hashlib.sha256(rows.images.tobytes()).hexdigest()
    assert waiting.end() == 0 and left_in(home) == []


def test_the_next_comer_removes_what_killed_readers_and_builders_left(reader, files, home):
    for code in (READS, STUCK):
        killed = reader(code)
        assert killed.hear()
        killed.kill()
        assert left_in(home) != []
        other = node_rows(whole_shards(files[:1]))
        assert len(list(home.glob("*.lock"))) == 1, "only the sets in use are there"
        del other
        assert left_in(home) == []


def test_a_whole_set_that_a_killed_reader_left_is_used_again(reader, files, home):
    killed = reader(READS)
    assert killed.hear()
    (left,) = home.glob("*/images")
    killed.kill()
    before = left.stat().st_ino
    rows = node_rows(whole_shards(files))
    assert left.stat().st_ino == before and len(rows) == 60


def test_a_set_of_a_living_reader_stays(reader, files, home):
    living = reader("rows = node_rows(pieces)\nsay('has')\nwait()\nsay(int(rows.images.sum()))\n")
    assert living.hear() == "has"
    before = left_in(home)
    node_rows(whole_shards(files[:1]))
    assert left_in(home) == before
    living.go_on()
    assert int(living.hear()) == int(read_pieces(whole_shards(files)).images.sum())


def test_a_damaged_shard_is_the_same_error_and_nothing_stays(files, home, tmp_path):
    bad = tmp_path / "part-00000.parquet"
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    pieces = whole_shards([bad])
    with pytest.raises(ShardError) as plain:
        read_pieces(pieces)
    with pytest.raises(ShardError) as found:
        node_rows(pieces)
    assert str(found.value) == str(plain.value) and left_in(home) == []


def test_labels_of_other_rows_are_an_error_and_nothing_stays(files, home, tmp_path):
    wrong = exchanged(marked_labels(files, tmp_path / "labels"), tmp_path / "wrong")
    with pytest.raises(ShardError, match="do not belong"):
        node_rows(whole_shards(files, wrong))
    assert left_in(home) == []


def test_a_shard_that_is_written_anew_is_read_anew(home, tmp_path):
    (file,) = write_heads(tmp_path, 6)
    before = node_rows(whole_shards([file]))
    write_heads(tmp_path, 6, first=6)
    after = node_rows(whole_shards([file]))
    assert not (before.images == after.images).all()
    np.testing.assert_array_equal(after.images[0], face_row(6).crop.pixels)


def test_too_little_room_is_said_before_anything_is_written(files, home, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DiskFull, match=r"^rows of 60 faces, .*TMPDIR.* need 0\.4\d MB in .*, where 0\.00 MB are free"):
        node_rows(whole_shards(files))
    assert left_in(home) == []


def test_a_disk_that_fills_meanwhile_is_one_sentence(files, home, monkeypatch):
    def full(folder: Path, parts: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(DiskFull, match="TMPDIR"):
        node_rows(whole_shards(files))
    assert left_in(home) == []


def test_rows_outlive_a_fork(files, home):
    rows = node_rows(whole_shards(files))
    child = os.fork()
    if not child:
        del rows  # the child's last reference
        os._exit(0)
    os.waitpid(child, 0)
    assert left_in(home) != [] and len(rows) == 60
    del rows
    assert left_in(home) == []


def pss(process: int) -> int:
    """Proportional set size in bytes: pages that n processes share count one n-th in each."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux counts shared pages")
def test_four_readers_keep_one_copy(reader, home, tmp_path):
    """Of 189 MB: one copy, and what reading shards leaves in the process that has built it."""
    large = CropSpec(size=240, margin_px=8)
    faces, count = [face_row(i, large) for i in range(24)], 40
    write_shard(tmp_path / "one.parquet", faces, large, "raw")
    copies = [tmp_path / f"part-{i:05d}.parquet" for i in range(count)]
    for copy in copies:
        copy.hardlink_to(tmp_path / "one.parquet")
    size = count * len(faces) * 3 * large.stored_size**2
    code = "say('')\nwait()\nrows = node_rows(pieces)\nsay(int(rows.images.sum()))\nwait()"
    readers = [reader(code, copies) for _ in range(4)]
    assert [one.hear() for one in readers] == [""] * 4
    before = sum(pss(one.process.pid) for one in readers)
    for one in readers:
        one.go_on()
    assert len({one.hear() for one in readers}) == 1
    grown = sum(pss(one.process.pid) for one in readers) - before
    print(f"rows {size / 1e6:.0f} MB; four processes grew by {grown / 1e6:.0f} MB")
    assert size * 0.9 < grown < size * 1.6, "four copies would be four times as much"
