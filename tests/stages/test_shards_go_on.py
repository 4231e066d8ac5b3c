"""The shards stage goes on: what is finished stays, and what changed, is lost or does not fit costs only itself."""

import dataclasses
import errno
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpe_core.data import rows
from hpe_core.data.rows import row_bytes
from hpe_core.datasets.base import FaceRef
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.spec.data import CropSpec, DatasetSpec
from hpe_core.system import disk as room
from hpe_core.system.disk import DiskFull, disk_is_full
from tests.archives import write_aflw2000, write_pointing04
from tests.reporting import LocalReporter
from tests.stages.sharding import CROP, build, content, pointing
from tests.stages.sharding import without_ray as without_ray
from workflows.stages import shards
from workflows.stages.shards import BuildShard, build_shards
from workflows.storage.receipts import Receipt
from workflows.tracking.progress import Event, Reporter


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Dataset and people of every shard that is cut from now on."""
    seen, original = list[tuple[str, list[str]]](), BuildShard.build

    def noting(self: BuildShard, dataset: str, refs: Sequence[FaceRef], *rest: Any) -> Receipt:
        seen.append((dataset, [ref.group for ref in refs]))
        return original(self, dataset, refs, *rest)

    monkeypatch.setattr(BuildShard, "build", noting)
    return seen


@pytest.mark.parametrize(("there", "actors"), [({"CPU": 4.0, "cores": 2.0}, 2), ({"CPU": 8.0, "GPU": 1.0}, 8)])
def test_faces_are_cut_by_an_actor_a_core(tmp_path, monkeypatch, there, actors):
    """A local cluster counts more CPUs than cores; who shares a core only loads its libraries once more."""
    monkeypatch.setattr(shards, "capacity", lambda cluster: there)
    monkeypatch.setattr(shards, "build_shards", lambda data, folder, reporter, workers: (folder, workers))
    stage = SimpleNamespace(spec=SimpleNamespace(cluster=None, data=None), folder=tmp_path, reporter=None)
    assert shards.run(stage) == (tmp_path, actors)


@pytest.mark.usefixtures("without_ray")
def test_a_cut_off_run_goes_on_where_it_was(tmp_path):
    data, folder = pointing(tmp_path / "archive"), tmp_path / "out"
    whole = build(data, folder)
    before = content(folder)
    train = folder / "heads.train"
    (train / "part-00001.parquet").unlink()  # lost
    (train / "part-00002.json").unlink()  # killed before the receipt
    damaged = bytearray((train / "part-00003.parquet").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (train / "part-00003.parquet").write_bytes(damaged)
    (folder / "heads.val" / "part-00000.json").write_text('{"hash": ')
    (train / ".part-00004.parquet.77.tmp").write_bytes(b"half a shard")
    (train / "part-00009.parquet").write_bytes(b"of an earlier cut")
    redone = {"heads.train/part-00001", "heads.train/part-00002", "heads.train/part-00003", "heads.val/part-00000"}
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("part-*") if path.name != "part-00009.parquet"}
    assert build(data, folder) == whole
    assert content(folder) == before
    for path, time_ns in times.items():
        name = str(path.relative_to(folder).with_suffix(""))
        assert (path.stat().st_mtime_ns != time_ns) == (name in redone), path


@pytest.mark.usefixtures("without_ray")
def test_another_test_set_costs_only_its_own_shards(tmp_path, built):
    """Finished shards are shared with the sibling folder; a damaged one is cut anew and stays damaged there."""
    data = pointing(tmp_path / "archive")
    old, new = tmp_path / "shards" / "old", tmp_path / "shards" / "new"
    build(data, old)
    mine = sorted(path.relative_to(old) for path in old.glob("heads.*/part-*.parquet"))
    whole = {path: (old / path).read_bytes() for path in mine}
    (old / mine[0]).write_bytes(b"damaged")
    built.clear()
    for number in range(3):
        write_aflw2000(tmp_path / "others", f"image{number:05d}")
    more = DatasetSpec(reader="aflw2000", root=str(tmp_path / "others"))
    wider = dataclasses.replace(data, datasets={**data.datasets, "others": more}, test=("heads", "others"))
    events = list[Event]()
    build_shards(wider, new, LocalReporter(events.append), workers=1)
    said = " ".join(text for kind, (text, *_) in events if kind == "say")
    assert "others: 3 faces; the whole archive has 2,000: this is a part" in said and "shards are taken over" in said
    assert sorted(dataset for dataset, _ in built) == ["heads", "others"], "the damaged shard and the new set"
    assert {path: (new / path).read_bytes() for path in mine} == whole
    assert (old / mine[0]).read_bytes() == b"damaged"
    assert (old / mine[1]).stat().st_ino == (new / mine[1]).stat().st_ino
    recut = dataclasses.replace(data, crop=CropSpec(size=20, margin_px=2))
    built.clear()
    build(recut, tmp_path / "shards" / "recut")
    assert len(built) == len(mine), "another crop shares nothing"


@pytest.mark.usefixtures("without_ray")
def test_a_grown_archive_costs_only_the_shards_of_its_new_faces(tmp_path, built):
    """Another person between the others: what is taken over is byte for byte what a fresh run makes."""
    data = pointing(tmp_path / "archive", rows_per_shard=4)
    people = tmp_path / "archive"
    (people / "Person03").rename(tmp_path / "Person03")
    old, new, fresh = (tmp_path / "shards" / "old", tmp_path / "shards" / "new", tmp_path / "elsewhere")
    before = build(data, old)
    (tmp_path / "Person03").rename(people / "Person03")
    built.clear()
    grown = build(data, new)
    cut = [group for _, groups in built for group in groups]
    assert grown.kept == before.kept + 6 and cut.count("Person03") == 6
    assert len(cut) <= 15, "the new faces and a few neighbours of 24"
    assert build(data, fresh) == grown and content(fresh) == content(new)


@pytest.mark.usefixtures("without_ray")
def test_changed_files_and_changed_keys_are_not_skipped(tmp_path):
    data, folder = pointing(tmp_path / "archive", rows_per_shard=100), tmp_path / "out"
    first = build(data, folder)
    write_pointing04(tmp_path / "archive", 1, 0, -15, -30, text="Face 60 44 40 50")
    second = build(data, folder)
    assert first.splits["heads.train"].fingerprint != second.splits["heads.train"].fingerprint
    assert first.splits["heads.test"].fingerprint == second.splits["heads.test"].fingerprint
    third = build(dataclasses.replace(data, encoding="jpeg"), folder)
    assert third.fingerprint != second.fingerprint and third.kept == second.kept == 36
    moved = shutil.copytree(tmp_path / "archive", tmp_path / "moved")  # keeps the times
    elsewhere = {"heads": dataclasses.replace(data.datasets["heads"], root=str(moved))}
    assert build(dataclasses.replace(data, datasets=elsewhere), tmp_path / "again").fingerprint == second.fingerprint


def test_too_little_room_is_said_before_any_decoding(tmp_path, monkeypatch):
    data, folder = pointing(tmp_path / "archive"), tmp_path / "out"
    needed = 36 * row_bytes(CROP, "raw")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1000))
    said = r"shards of 36 faces need 0.08 MB in .*out.* 0.08 MB are free: 0.00 MB are missi"
    with pytest.raises(DiskFull, match=said):
        build(data, folder)
    assert list(folder.iterdir()) == []


def test_a_listing_that_a_killed_run_left_goes_and_none_stays(tmp_path, without_ray):
    left = tmp_path / "out" / f"{shards.LISTING}x" / "half"
    left.parent.mkdir(parents=True)
    left.touch()
    build(pointing(tmp_path / "archive"), tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.usefixtures("without_ray")
def test_a_disk_that_fills_loses_nothing_that_was_finished(tmp_path, monkeypatch):
    """The failed write leaves nothing behind, what is there needs no room again, and the run goes on."""
    data, folder = pointing(tmp_path / "archive"), tmp_path / "out"
    whole = build(data, folder)
    wanted = content(folder)
    shutil.rmtree(folder)
    original, written = rows.pq.write_table, []

    def until_full(table: Any, where: Path, **options: Any) -> None:
        original(table, where, **options)
        written.append(where)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rows.pq, "write_table", until_full)
        with pytest.raises(OSError) as caught:
            build_shards(data, folder, Reporter())
    assert disk_is_full(caught.value) and not disk_is_full(ValueError("no"))
    there = content(folder)
    assert len(there) == 4 and there.items() < wanted.items(), "two shards with their receipts, and no half one"
    done = sum(json.loads(text)["input"] for name, text in there.items() if name.endswith(".json"))
    enough = SimpleNamespace(free=(36 - done) * row_bytes(CROP, "raw"))
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: enough)
    assert build(data, folder) == whole and content(folder) == wanted


@pytest.mark.parametrize(("size", "encoding"), [(64, "raw"), (64, "jpeg"), (112, "jpeg")])
def test_the_estimate_holds_for_rendered_heads(tmp_path, size, encoding):
    source, crop = open_source(DatasetSpec(reader="synthetic", count=12)), CropSpec(size=size, margin_px=8)
    faces = [face for face in load_directly(source, crop, list(source.refs())) if isinstance(face, rows.FaceRow)]
    rows.write_shard(tmp_path / "part.parquet", faces, crop, encoding)
    taken, estimate = (tmp_path / "part.parquet").stat().st_size, 12 * row_bytes(crop, encoding)
    assert 0.5 * estimate < taken < 1.1 * estimate
