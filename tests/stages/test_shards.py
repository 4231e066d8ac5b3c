"""The shards stage on tiny archives: every kind of bad input, the conservation law, equal bytes, and going on."""

import csv
import dataclasses
import errno
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.data import rows
from hpe_core.data.rows import read_shard, row_bytes, shard_files
from hpe_core.datasets.base import Annotation, DatasetError, FaceRef, Rejected, Source, Wrapped
from hpe_core.datasets.plan import Job, plan_dataset
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.geometry.crop import Box
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from hpe_core.system import disk as room
from hpe_core.system.disk import DiskFull, disk_is_full
from tests.archives import write_aflw2000, write_pointing04
from tests.datasets.test_sandbox import Trouble
from tests.reporting import LocalReporter
from workflows.engine.results import ShardsResult
from workflows.full_pipeline import STAGES
from workflows.sharding.accounts import QUARANTINE, Broken
from workflows.sharding.quarantine import SHEET, TABLE, chosen
from workflows.stages import shards
from workflows.stages.shards import BuildShard, build_shards
from workflows.storage.receipts import Receipt
from workflows.tracking.progress import Event, Reporter

CROP = CropSpec(size=16, margin_px=2)
SPLITS = ("train", "val", "test")


def build(data: DataSpec, folder: Path, workers: int = 2) -> ShardsResult:
    events = list[Event]()
    try:
        return build_shards(data, folder, LocalReporter(events.append), workers=workers)
    finally:
        calls = [body for kind, body in events if kind == "progress"]
        assert {(task, unit) for task, _, _, unit in calls} <= {("shards", "faces")}
        done = [number for _, number, _, _ in calls]
        assert done == sorted(done) and done[-1:] == [total for _, _, total, _ in calls[:1]]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same jobs, done in this process: for tests that are not about Ray."""

    def run_jobs(
        jobs: Sequence[Job], sources: dict[str, Source], data: DataSpec, folder: Path, workers: int
    ) -> Iterator[Receipt]:
        do = BuildShard(sources, data, folder, 20.0)
        for job in reversed(jobs):
            yield json.loads(do(shards._job_row(job))["receipt"])

    monkeypatch.setattr(shards, "_run_jobs", run_jobs)


def archive(root: Path, people: int = 6, faces: int = 6) -> DatasetSpec:
    """A small Pointing'04: people 1 ... n, the last one for testing, the one before for validation."""
    for person in range(1, people + 1):
        for number in range(faces):
            write_pointing04(root, person, number, -15 + 15 * (number % 3), -30 + 15 * number)
    val, test = ((f"Person{person:02d}",) for person in (people - 1, people))
    return DatasetSpec("pointing04", str(root), val_groups=val, test_groups=test)


def pointing(root: Path, **changes: Any) -> DataSpec:
    data = DataSpec(datasets={"heads": archive(root)}, train=("heads",), test=("heads",), crop=CROP, rows_per_shard=5)
    return dataclasses.replace(data, **changes)


def wild(root: Path, **changes: Any) -> DataSpec:
    """An AFLW2000 folder as the one test set, beside rendered heads for training."""
    drawn = DatasetSpec("synthetic", count=6, image_px=32, heads_per_person=1, val=0.5, test=0.0, seed=1)
    datasets = {"wild": DatasetSpec("aflw2000", root=str(root)), "drawn": drawn}
    data = DataSpec(datasets=datasets, train=("drawn",), test=("wild",), crop=CROP, max_bad_share=1.0)
    return dataclasses.replace(data, **changes)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def quarantine(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / QUARANTINE).to_pylist()
    assert rows == sorted(rows, key=lambda row: tuple(row.values()))
    assert all(row["detail"] and "\n" not in row["detail"] for row in rows)
    return {row["path"]: row["reason"] for row in rows}


def check_law(summary: ShardsResult, folder: Path) -> None:
    """kept + quarantined + filtered = input, and the files say the same as the counts."""
    for name, entry in summary.splits.items():
        broken, filtered = sum(entry.quarantined.values()), sum(entry.filtered.values())
        assert entry.kept + broken + filtered == entry.input
        loaded = [read_shard(path) for path in shard_files(folder, *name.rsplit(".", 1))]
        ids = [sample_id for shard in loaded for sample_id in shard.sample_ids]
        assert len(ids) == entry.kept == len(set(ids)) and ids == sorted(ids)
        assert [len(shard) for shard in loaded] == [shard.rows for shard in entry.shards]
    rows = pq.read_table(folder / QUARANTINE).to_pylist()
    counted = {k: dict(e.quarantined) for k, e in summary.splits.items() if e.quarantined}
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(f"{row['dataset']}.{row['split']}", Counter())[row["reason"]] += 1
    assert counted == {name: dict(reasons) for name, reasons in found.items()}


@pytest.mark.usefixtures("ray_cluster")
def test_same_bytes_for_any_workers_and_listing_order(tmp_path, monkeypatch):
    data = pointing(tmp_path / "archive")
    first = build(data, tmp_path / "one", workers=1)
    check_law(first, tmp_path / "one")
    assert [first.splits[f"heads.{split}"].kept for split in SPLITS] == [24, 6, 6] and len(first.splits) == 3
    assert len(shard_files(tmp_path / "one", "heads", "train")) >= 5
    for shard in [read_shard(p) for p in shard_files(tmp_path / "one", "heads", "test")]:
        assert set(shard.groups) == {"Person06"} and shard.images.shape[1:] == (20, 20, 3)
    monkeypatch.setattr(shards, "open_source", lambda spec: Shuffled(open_source(spec)))
    for workers in (2, 4):
        assert build(data, tmp_path / str(workers), workers=workers) == first
        assert content(tmp_path / str(workers)) == content(tmp_path / "one")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Dataset and people of every shard that is cut from now on."""
    seen, original = list[tuple[str, list[str]]](), BuildShard.build

    def noting(self: BuildShard, dataset: str, refs: Sequence[FaceRef], *rest: Any) -> Receipt:
        seen.append((dataset, [ref.group for ref in refs]))
        return original(self, dataset, refs, *rest)

    monkeypatch.setattr(BuildShard, "build", noting)
    return seen


class Shuffled(Wrapped):
    """A source that lists its faces in another order every time."""

    def refs(self) -> Iterator[FaceRef]:
        listed = list(self.source.refs())
        random.shuffle(listed)
        yield from listed


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
    said = " ".join(body for kind, body in events if kind == "say")
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


@pytest.mark.usefixtures("without_ray")
def test_every_kind_of_bad_face_is_quarantined_with_its_reason(tmp_path):
    root, folder = tmp_path / "archive", tmp_path / "out"
    paths = [write_aflw2000(root, f"image{i:05d}", (1.0 * i, -2.0 * i, 0.5), seed=i) for i in range(20)]
    half = paths[0].read_bytes()
    paths[0].write_bytes(half[: len(half) // 2])
    paths[1].write_bytes(half[:-2000] + b"\xff\xd9")
    paths[2].write_bytes(b"<html><body>quota exceeded</body></html>")
    paths[3].write_bytes(b"")
    paths[4].unlink()
    paths[4].mkdir()
    paths[5].with_suffix(".mat").unlink()
    paths[6].with_suffix(".mat").write_bytes(b"MATLAB 5.0 MAT-file, cut")
    center = np.array([[60.0], [60.0], [0.0]])
    spread = np.random.default_rng(0).uniform(-30, 30, (3, 68))
    write_aflw2000(root, "image00007", Pose_Para=np.array([[np.nan, 0, 0, 0, 0, 0, 1]]))
    write_aflw2000(root, "image00008", pt3d_68=center + spread + 500)  # outside
    write_aflw2000(root, "image00009", pt3d_68=center + 0 * spread)  # no area
    write_aflw2000(root, "image00010", pt3d_68=None)
    (root / "image00011.JPEG").write_bytes(half)  # a second image00011
    write_aflw2000(root, "image00012", (10.0, 351.0, 0.0))
    write_aflw2000(root, "image00013", (-714.0, 0.0, 0.0))
    summary = build(wild(root), folder)
    check_law(summary, folder)
    reasons = ["truncated_picture", "damaged_picture", *["not_a_picture"] * 2, *["unreadable_file"] * 2]
    reasons += ["bad_annotation", "nan_pose", "box_outside", "box_degenerate", "bad_annotation", "duplicate_id"]
    names = [f"image{i:05d}.{'mat' if i == 4 else 'jpg'}" for i in range(12)]
    assert quarantine(folder) == dict(zip(names, reasons, strict=True))
    with open(folder / TABLE, newline="") as stream:
        assert list(csv.DictReader(stream)) == pq.read_table(folder / QUARANTINE).to_pylist()
    sheet = cv2.imread(str(folder / SHEET))
    for left in range(8, 900, 152):
        assert sheet[8:152, left : left + 144].std() > 20, "what is left of a picture is shown"
    entry = summary.splits["wild.test"]
    assert (entry.input, entry.kept, entry.filtered) == (21, 7, {"out_of_range": 2})
    ids = [sample_id for path in shard_files(folder, "wild", "test") for sample_id in read_shard(path).sample_ids]
    assert ids == ["image00011", *[f"image{i:05d}" for i in range(14, 20)]]


def test_a_common_reason_hides_no_rare_one():
    broken = [Broken("it", "train", f"face{i:03d}", "", "no_box", "") for i in range(100)]
    broken += [Broken("it", "train", f"other{i}", "", "nan_pose", "") for i in range(3)]
    shown = chosen(broken, 10)
    assert Counter(face.reason for face in shown) == {"no_box": 7, "nan_pose": 3}
    assert chosen([], 10) == [] and len(chosen(broken, 1000)) == len(broken)


@pytest.mark.usefixtures("ray_cluster")
def test_faces_that_kill_or_stop_the_decoder(tmp_path, monkeypatch):
    root = tmp_path / "archive"
    root.mkdir()
    fates = ["ok", "segfault", "ok", "exit", "hang", "ok", "memory", "raise", "ok", "exit"]
    for i, fate in enumerate(fates):
        (root / f"face{i}").write_text(fate)
    monkeypatch.setattr(shards, "FACE_TIMEOUT_S", 1.0)
    troubled = {"aflw2000": lambda spec: Trouble(root)}
    monkeypatch.setattr(shards, "open_source", lambda spec: troubled.get(spec.reader, open_source)(spec))
    summary = build(wild(root, rows_per_shard=1), tmp_path / "out")
    check_law(summary, tmp_path / "out")
    entry = summary.splits["wild.test"]
    assert entry.kept == 4
    assert entry.quarantined == {"decoder_crashed": 3, "decoder_hung": 1, "reader_failed": 1, "too_large": 1}
    receipts = [json.loads(p.read_text()) for p in sorted((tmp_path / "out" / "wild.test").glob("*.json"))]
    assert [receipt["kept"] for receipt in receipts] == [int(fate == "ok") for fate in fates]
    assert len(shard_files(tmp_path / "out", "wild", "test")) == 4, "where nothing is kept there is only the receipt"


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


class Posed(Trouble):
    """Faces have the poses that it is made with; a face without one is rejected."""

    risky = False

    def __init__(self, poses: Sequence[tuple[float, float, float] | None]) -> None:
        super().__init__(Path("nowhere"))
        self.poses = poses

    def load(self, ref: FaceRef) -> tuple[Annotation, np.ndarray]:
        pose = self.poses[int(ref.key)]
        if pose is None:
            raise Rejected("no_box", "nobody drew one")
        return Annotation(ref, Box(1, 1, 19, 19), pose), np.full((20, 20, 3), int(ref.key), np.uint8)


@given(
    st.lists(st.tuples(*[st.sampled_from([0.0, 69.9, 70.0, 70.1, -70.0, -70.1, -180.0])] * 3) | st.none(), max_size=12)
)
def test_a_face_is_kept_filtered_or_quarantined_and_the_limit_itself_is_inside(poses):
    """Each once, in the order of the sample ids; who is beyond the limit by any angle is filtered, not quarantined."""
    data = DataSpec({"posed": Posed([]).spec}, ("posed",), ("posed",), CROP, limit_deg=70.0)
    refs = [FaceRef(f"id{i:02d}", f"person{i}", str(i)) for i in range(len(poses))]
    with TemporaryDirectory() as folder:
        do = BuildShard({"posed": Posed(poses)}, data, Path(folder), 20.0)
        receipt = do.build("posed", refs, Path(folder, "part.parquet"), "hash")
        shard = read_shard(Path(folder, "part.parquet")) if receipt["kept"] else None
        assert Path(folder, "part.parquet").exists() == bool(receipt["kept"])
    far = [ref.sample_id for ref, pose in zip(refs, poses, strict=True) if pose and max(map(abs, pose)) > 70]
    assert receipt["filtered"] == far
    lost = [ref.sample_id for ref, pose in zip(refs, poses, strict=True) if pose is None]
    assert [row[0] for row in receipt["quarantined"]] == lost
    kept = [(ref, pose) for ref, pose in zip(refs, poses, strict=True) if pose and ref.sample_id not in far]
    assert receipt["kept"] + len(far) + len(receipt["quarantined"]) == receipt["input"] == len(poses)
    assert receipt["kept"] == len(kept) and (shard is not None) == bool(kept)
    if shard is not None:
        assert shard.sample_ids == [ref.sample_id for ref, _ in kept] == sorted(shard.sample_ids)
        assert shard.groups == [ref.group for ref, _ in kept]
        np.testing.assert_allclose(shard.angles, [pose for _, pose in kept], rtol=1e-6)
        assert [int(image.max()) for image in shard.images] == [int(ref.key) for ref, _ in kept], "its own picture"


def sentence(data: DataSpec, folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        build(data, folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_listings_that_cannot_work_stop_before_any_decoding(tmp_path):
    """No cluster is needed: the listing alone shows it."""
    (tmp_path / "empty").mkdir()
    assert "'wild' is empty" in sentence(wild(tmp_path / "empty"), tmp_path / "out")
    assert "'wild': its root" in sentence(wild(tmp_path / "absent"), tmp_path / "out")
    data = pointing(tmp_path / "archive")
    for change, words in (
        ({"test_groups": ("Person60",)}, "test_groups names 'Person60'"),
        ({"val_groups": (), "val": 0.0}, "empty val set"),
        ({"test_groups": (), "test": 0.0}, "empty test set"),
        ({"val_groups": tuple(f"Person{i:02d}" for i in range(1, 6))}, "empty train set"),
    ):
        heads = dataclasses.replace(data.datasets["heads"], **change)
        text = sentence(dataclasses.replace(data, datasets={"heads": heads}), tmp_path / "out")
        assert words in text and "'heads'" in text


@pytest.mark.usefixtures("without_ray")
def test_a_split_that_comes_out_empty_is_a_sentence(tmp_path):
    data = pointing(tmp_path / "archive", max_bad_share=1.0)
    for path in (tmp_path / "archive" / "Person05").glob("*.jpg"):
        path.write_bytes(b"")
    text = sentence(data, tmp_path / "out")
    assert "empty val set" in text and "6 not_a_picture" in text and TABLE in text
    assert set(quarantine(tmp_path / "out").values()) == {"not_a_picture"}


@pytest.mark.usefixtures("without_ray")
def test_too_much_broken_stops_and_mending_goes_on(tmp_path):
    data, folder = pointing(tmp_path / "archive", max_bad_share=0.1), tmp_path / "out"
    texts = sorted((tmp_path / "archive" / "Person01").glob("*.txt"))
    sound = {path: path.read_text() for path in texts}
    for path in texts[:5]:
        path.write_text("no such thing")
    text = sentence(data, folder)
    assert "5 of 36" in text and "5 no_box" in text and str(folder / TABLE) in text
    assert len(quarantine(folder)) == 5 and (folder / SHEET).is_file(), "now somebody wants to see them"
    assert set(next(stage for stage in STAGES if stage.name == "shards").artifacts) == {TABLE, SHEET}
    allowed = build(dataclasses.replace(data, max_bad_share=0.2), folder)
    assert (allowed.kept, allowed.quarantined) == (31, 5)
    for path, words in sound.items():
        path.write_text(words)
    assert build(data, folder).kept == 36 and quarantine(folder) == {} and not (folder / SHEET).exists()


@given(st.integers(0, 10_000), *[st.floats(0.05, 0.45)] * 2, st.integers(1, 4), st.integers(3, 20))
def test_people_stand_on_one_side_and_a_test_set_changes_nothing_for_the_others(seed, val, test, heads, persons):
    """Every face is in one shard of one split, sorted; a share of few people is at least one person.

    Who is trained on does not depend on who is tested on.
    """
    count = heads * persons
    spec = DatasetSpec("synthetic", count=count, seed=seed, heads_per_person=heads, val=val, test=test)
    other = dataclasses.replace(spec, seed=seed + 1)
    data = DataSpec({"heads": spec, "other": other}, ("heads",), ("heads", "other"), rows_per_shard=7)
    source = open_source(spec)
    jobs = plan_dataset("heads", source, data).jobs
    faces = [ref for job in jobs for ref in job.refs]
    assert sorted(faces) == sorted(source.refs()) and len(faces) == count
    people = {split: {ref.group for job in jobs if job.split == split for ref in job.refs} for split in SPLITS}
    assert all(people.values()) and sum(map(len, people.values())) == len({ref.group for ref in faces})
    for split in SPLITS:
        ids = [ref.sample_id for job in jobs if job.split == split for ref in job.refs]
        assert ids == sorted(ids)
    untested = plan_dataset("heads", source, dataclasses.replace(data, test=("other",)))
    assert list(untested.jobs) == [job for job in jobs if job.split != "test"]
    assert untested.unused == {"test": count - sum(len(job.refs) for job in untested.jobs)}
    never_trained_on = plan_dataset("other", open_source(other), data)
    assert {job.split for job in never_trained_on.jobs} == {"test"}
    assert sum(len(job.refs) for job in never_trained_on.jobs) == count


def test_count_draws_from_everybody(tmp_path):
    spec = dataclasses.replace(archive(tmp_path, people=10, faces=8), count=40)
    data = DataSpec(datasets={"heads": spec}, train=("heads",), test=("heads",))
    refs = [ref for job in plan_dataset("heads", open_source(spec), data).jobs for ref in job.refs]
    assert len(refs) == 40 and len({ref.group for ref in refs}) >= 9
