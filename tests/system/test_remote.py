"""Archives on S3, on Google's storage and on any filesystem of fsspec are the archives that they are on a disk."""

import dataclasses
import os
import pickle
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from hpe_core.datasets.base import DatasetError, Rejected
from hpe_core.datasets.files import _index
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.errors import SpecError
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from hpe_core.system.filesystems import open_filesystem
from hpe_core.system.remote import NO_TIME, Remote, RemoteError, can_lie_here
from tests.archives import write_manifest
from tests.datasets.reading import ROW
from tests.datasets.test_plan import READERS
from tests.faulty import Fault, FaultyServer
from tests.stages.sharding import CROP, build, check_law, pointing
from tests.stages.sharding import without_ray as without_ray
from workflows.stages import shards
from workflows.stages.shards import build_shards
from workflows.tracking.progress import Reporter

BOTH = pytest.mark.parametrize("bucket", ("s3", "gs"), indirect=True)


def scheme_of(address: str) -> str:
    return address.partition("://")[0]


def upload(folder: Path, address: str) -> None:
    """A folder's files, as somebody else would have put them there."""
    filesystem, base = open_filesystem(address)
    for path in folder.rglob("*"):
        if path.is_file():
            with filesystem.open_output_stream(f"{base}/{path.relative_to(folder).as_posix()}") as stream:
                stream.write(path.read_bytes())
    _index.cache_clear()


@BOTH
def test_files_come_here_once_and_again_when_they_change(bucket):
    remote = Remote(f"{bucket}/some/where")
    for name, content in (("a.txt", b"one"), ("deep/b.bin", bytes(3_000_000)), ("empty", b"")):
        remote.write(name, content)
    sizes = {name: entry.size for name, entry in remote.index().items()}
    assert sizes == {"a.txt": 3, "deep/b.bin": 3_000_000, "empty": 0}
    assert set(remote.index("deep")) == {"deep/b.bin"} and remote.read("a.txt") == b"one" and remote.read("no") is None
    assert remote.fetch(["a.txt", "deep/b.bin", "absent", "../../out"]) == 3_000_003
    assert remote.fetch(["a.txt", "deep/b.bin"]) == 0, "what is here is not copied again"
    assert sorted(path.name for path in remote.folder.rglob("*") if path.is_file()) == ["a.txt", "b.bin"]
    remote.write("a.txt", b"three")
    assert remote.fetch(["a.txt", "deep/b.bin"]) == 5 and (remote.folder / "a.txt").read_bytes() == b"three"
    remote.delete("a.txt")
    remote.delete("a.txt")
    assert remote.fetch(["a.txt"]) == 0 and not (remote.folder / "a.txt").exists(), "gone there is gone here"
    (remote.folder / "new").write_bytes(b"12345")
    assert remote.send(["new"]) == 5 and remote.read("new") == b"12345"
    assert pickle.loads(pickle.dumps(remote)) == remote


@pytest.mark.parametrize("address", ("memory://somewhere/else", "file://{}/a b#1 100% %20+ü 😀/else"))
def test_any_filesystem_of_fsspec_will_do(address, tmp_path, monkeypatch):
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    remote = Remote(address.format(tmp_path))
    remote.write("deep/a.txt", b"content")
    assert {name: entry.size for name, entry in remote.index().items()} == {"deep/a.txt": 7}
    assert remote.fetch(["deep/a.txt"]) == 7 and (remote.folder / "deep/a.txt").read_bytes() == b"content"
    assert remote.fetch(["deep/a.txt"]) == 0 and remote.read("deep/a.txt") == b"content"
    remote.write("deep/a.txt", b"changed")
    assert (remote.fetch(["deep/a.txt"]) == 7) is (remote.index()["deep/a.txt"].changed_ns != NO_TIME)
    remote.delete("deep/a.txt")
    assert remote.index() == {} and remote.read("deep/a.txt") is None


@BOTH
def test_addresses_that_cannot_be_used_are_one_sentence(bucket):
    for address, said in (
        ("nonsense://x/y", "no filesystem 'nonsense' here"),
        (f"{bucket}/x?region=eu", "AWS_ENDPOINT_URL"),
        (absent := f"{scheme_of(bucket)}://no-such-bucket-here/x", f"{absent}/a.txt cannot be written: "),
        ("gs:///x", "it names no bucket"),
        ("s3://KEY:SECRET@bucket/x", "AWS_ACCESS_KEY_ID"),
        (f"{bucket}/../x", r"'\.\.' leads nowhere"),
    ):
        with pytest.raises((SpecError, RemoteError), match=said) as caught:
            remote = Remote(address)
            assert remote.folder
            remote.write("a.txt", b"")
        assert "\n" not in str(caught.value) and "Request ID" not in str(caught.value)
        assert "error_info" not in str(caught.value) and len(str(caught.value)) < 300


@BOTH
def test_any_name_is_a_name(bucket):
    """In an address and below it: what a URI would take apart or decode is taken as it is written.

    Nor does a name's ending change what is in the file: Arrow would pack and unpack.
    """
    odd = "a b#1 100% %20+ü 😀"
    remote, other = Remote(f"{bucket}/{odd}/x"), Remote(f"{bucket}/{odd.replace('%20', ' ')}/x")
    names = [f"{odd}/{odd}", "n" * 255, "back\\slash", "q?=&.jpg", "table.csv.gz", "a.zst", "b.bz2", "c.lz4"]
    for name in names:
        remote.write(name, name.encode())
    assert set(remote.index()) == set(names) and other.index() == {}
    assert remote.folder.parts[-2] == odd and remote.fetch(names) > 0
    assert all((remote.folder / name).read_bytes() == name.encode() == remote.read(name) for name in names)
    assert remote.send(names) and all(entry.size == len(name.encode()) for name, entry in remote.index().items())
    remote.write("n" * 300, b"")
    assert remote.fetch(["n" * 300]) == 0, "a name that no disk takes is a matter of whoever reads it"
    outside = ("", ".", "/etc/passwd", "//etc/passwd", "../a", "a/../../b", "a//b", "a/", "a\0b", "d/" * 600 + "a")
    assert not any(map(can_lie_here, outside)) and can_lie_here("a/b..c/d")
    (remote.folder / "q?=&.jpg").unlink()
    (remote.folder / "q?=&.jpg").mkdir()
    with pytest.raises(RemoteError, match="cannot be copied here"):
        remote.fetch(["q?=&.jpg"])


@BOTH
def test_names_that_are_no_files_name_do_not_stop_a_copy(bucket):
    """They come from tables: a folder, what goes through a file, what no disk or no client takes."""
    remote = Remote(f"{bucket}/x")
    remote.write("im/a.jpg", b"one")
    assert remote.fetch(["im/a.jpg"]) == 3
    for name in ("im", "im/a.jpg/x", "im/", "im//a.jpg", "im/a\0b", "s3://x/y", ("d" * 200 + "/") * 30 + "a"):
        assert remote.fetch([name, "im/a.jpg"]) == 0, name
    assert (remote.folder / "im/a.jpg").read_bytes() == b"one"


def test_no_name_reaches_out_of_the_folder_here(tmp_path, monkeypatch):
    """What is gone there goes here: never a file of somebody else's. fsspec's filesystems take any name."""
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").write_bytes(b"mine")
    remote = Remote("memory://somewhere/else")
    remote.folder.mkdir(parents=True)
    for start in ("/", "//", "///", "../" * 40):
        assert remote.fetch([f"{start}{str(tmp_path / 'mine').lstrip('/')}"]) == 0
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_a_file_that_is_replaced_while_it_is_copied_is_not_taken_for_the_one_that_was_listed(bucket):
    remote = Remote(f"{bucket}/x")
    remote.write("a", b"old")
    listed = remote.index()
    remote.write("a", b"newer")
    with pytest.raises(RemoteError, match="5 bytes came, not 3"):
        remote.copy_here(listed)
    assert list(remote.folder.iterdir()) == []


@BOTH
def test_a_server_that_fails_is_asked_again(bucket, monkeypatch):
    """503 for an answer, half an answer, none, and on S3 one that takes longer than its client waits by itself."""
    remote, content = Remote(f"{bucket}/x"), bytes(range(256)) * 4000
    remote.write("a", content)
    variable = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}[scheme_of(bucket)]
    proxy = FaultyServer(os.environ[variable])
    monkeypatch.setenv(variable, proxy.address)
    open_filesystem.cache_clear()
    slow, reads = {"s3": (4.0, "/x/a"), "gs": (0.0, "alt=media")}[scheme_of(bucket)]
    for wanted in (("status", 503), ("cut", 0.0), ("drop", 0.0), ("slow", slow)):
        left = [wanted]

        def once(method: str, path: str, left: list[tuple[str, float]] = left) -> Fault:
            return left.pop() if method == "GET" and reads in path and left else None

        proxy.fault, proxy.faults = once, 0
        assert remote.copy_here(remote.index()) == len(content) and proxy.faults == 1, wanted
        assert (remote.folder / "a").read_bytes() == content
    proxy.fault = lambda method, path: ("status", 403)
    with pytest.raises(RemoteError, match="cannot be listed"):
        remote.index()
    proxy.shutdown()
    proxy.server_close()


@pytest.mark.parametrize(
    ("bucket", "make"), [*(("gs", make) for make in READERS), ("s3", READERS[0])], indirect=["bucket"]
)
def test_a_remote_archive_reads_as_a_local_one(tmp_path, bucket, make):
    """The same faces, and of a face nothing that it does not need is brought here."""
    spec, change, grow = make(tmp_path / "archive")
    upload(tmp_path, f"{bucket}/up")
    boxes = spec.boxes and f"{bucket}/up/boxes.json"
    there = dataclasses.replace(spec, root=f"{bucket}/up/archive", boxes=boxes)
    local, remote = open_source(spec), open_source(there)
    first, _ = refs = sorted(remote.refs())
    assert refs == sorted(local.refs())
    before, dataset = remote.states(refs), remote.fingerprint()
    remote.fetch([first])
    pictures = [path for path in Remote(bucket).folder.rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(pictures) == (0 if spec.reader == "manifest" else 1)
    remote.fetch(refs)
    offline = pickle.loads(pickle.dumps(remote))  # as a worker's sandbox has it
    crop = CropSpec(size=16, margin_px=2)
    for ours, theirs in zip(load_directly(offline, crop, refs), load_directly(local, crop, refs), strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, Rejected):
            assert isinstance(theirs, Rejected) and ours.reason == theirs.reason
        else:
            assert not isinstance(theirs, Rejected)
            assert ours.pose == theirs.pose and np.array_equal(ours.crop.pixels, theirs.crop.pixels)
    grow()
    upload_changes(tmp_path, f"{bucket}/up")
    assert remote.states(refs) == before and remote.fingerprint() != dataset
    change()
    upload_changes(tmp_path, f"{bucket}/up")
    after = remote.states(refs)
    assert after[0] == before[0] and after[1] != before[1]


def test_bad_rows_of_a_remote_manifest_are_those_of_a_local_one(tmp_path, bucket):
    """Each is a face in quarantine; none costs the others anything."""
    root = tmp_path / "archive"
    good = [{**ROW, "path": name} for name in ("im/a.png", "im//b.png", "./c.png")]
    write_manifest(root, good, "jsonl")
    bad = ("im", "im/", "im/a.png/x", "im/a\0.png", "//etc/passwd", "http://host/a.png", "no.png", "d/" * 3000 + "a")
    write_manifest(root, [*good, *({**ROW, "path": name} for name in bad)], "jsonl", pictures=False)
    upload(root, f"{bucket}/mine")
    spec = DatasetSpec("manifest", root=str(root))
    local, remote = open_source(spec), open_source(dataclasses.replace(spec, root=f"{bucket}/mine"))
    refs = list(remote.refs())
    remote.fetch(refs)
    faces = [list(load_directly(opened, CROP, refs)) for opened in (local, remote)]
    here, there = ([getattr(face, "reason", "kept") for face in each] for each in faces)
    assert here == there and len(here) - here.count("kept") == len(bad)
    assert sum("gone" in state for state in remote.states(refs)) == len(bad) - 1, "a row without a name has no file"


def upload_changes(folder: Path, address: str) -> None:
    """What differs there is replaced or removed; what does not is left with its time."""
    remote = Remote(address)
    here = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    here = {name: content for name, content in here.items() if not name.startswith("cache/")}
    for name in remote.index():
        if name not in here:
            remote.delete(name)
    changed = {name: content for name, content in here.items() if remote.read(name) != content}
    if scheme_of(address) == "s3":
        time.sleep(1.01 - time.time() % 1)  # tables may keep their size, and S3 keeps whole seconds
    for name, content in changed.items():
        remote.write(name, content)
    _index.cache_clear()


def test_biwi_without_its_outer_folder(tmp_path, bucket):
    spec, _, _ = READERS[3](tmp_path / "archive")
    upload(tmp_path / "archive" / "hpdb", f"{bucket}/hpdb")
    source = open_source(dataclasses.replace(spec, root=f"{bucket}/hpdb"))
    refs = sorted(source.refs())
    source.fetch(refs)
    assert [ref.key for ref in sorted(source.refs())] == [ref.key for ref in refs]
    assert all(not isinstance(face, Rejected) for face in load_directly(source, CROP, refs))


@BOTH
def test_an_archive_that_is_not_there_is_one_sentence(bucket):
    for root in (f"{bucket}/nowhere", f"{scheme_of(bucket)}://no-such-bucket-here/x"):
        said = {"pointing04": "no file", "biwi": "no file", "300w_lp": "none of", "aflw": "no aflw"}
        for reader in said:
            with pytest.raises(DatasetError, match=f"its root {root} .*{said[reader]}"):
                list(open_source(DatasetSpec(reader, root=root)).refs())
        with pytest.raises(DatasetError, match=f"its root {root}.csv is neither"):
            list(open_source(DatasetSpec("manifest", root=f"{root}.csv")).refs())


@pytest.mark.usefixtures("without_ray")
def test_shards_of_a_remote_archive_are_those_of_a_local_one(tmp_path, bucket, monkeypatch):
    """Decoding happens in the sandbox, which asks no server; a server that fails puts no face into quarantine.

    Room is asked for as much as is not here yet: once the shards are cut, nothing.
    """
    data = pointing(tmp_path / "archive", rows_per_shard=100)
    upload(tmp_path / "archive", f"{bucket}/heads")
    remote = dataclasses.replace(data.datasets["heads"], root=f"{bucket}/heads")
    there: DataSpec = dataclasses.replace(data, datasets={"heads": remote})
    asked: dict[str, int] = {}
    monkeypatch.setattr(shards, "check_room", lambda folder, needed, what: asked.__setitem__(what, needed))
    ours = build(there, tmp_path / "b")
    assert asked["files of dataset 'heads'"] == sum(e.size for e in Remote(f"{bucket}/heads").index().values())
    check_law(ours, tmp_path / "b")
    assert ours == build(data, tmp_path / "a") == build(there, tmp_path / "again")
    assert asked["files of dataset 'heads'"] == 0
    monkeypatch.setattr(Remote, "look", Mock(side_effect=RemoteError("the network is down")))
    with pytest.raises(RemoteError):
        build_shards(there, tmp_path / "apart" / "c", Reporter())
    assert list((tmp_path / "apart" / "c").iterdir()) == []
