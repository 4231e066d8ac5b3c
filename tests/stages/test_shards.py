"""The shards stage on tiny archives: every kind of bad input, the conservation law, splits and equal bytes."""

import csv
import dataclasses
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.data.rows import read_shard, shard_files
from hpe_core.datasets.base import Annotation, DatasetError, FaceRef, Rejected, Wrapped
from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.registry import open_source
from hpe_core.geometry.crop import Box
from hpe_core.spec.data import DatasetSpec, DataSpec
from tests.archives import write_aflw2000
from tests.datasets.test_leaks import LEARNT, table
from tests.datasets.test_sandbox import Trouble
from tests.stages.sharding import CROP, SPLITS, archive, build, check_law, content, pointing, quarantine, wild
from tests.stages.sharding import without_ray as without_ray
from workflows.full_pipeline import STAGES
from workflows.sharding.accounts import FEW, QUARANTINE, Broken
from workflows.sharding.quarantine import SHEET, TABLE, chosen
from workflows.stages import shards
from workflows.stages.shards import BuildShard


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


class Shuffled(Wrapped):
    """A source that lists its faces in another order every time."""

    def refs(self) -> Iterator[FaceRef]:
        listed = list(self.source.refs())
        random.shuffle(listed)
        yield from listed


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


@pytest.mark.usefixtures("without_ray")
def test_a_test_picture_that_another_is_trained_on_stops_the_run_before_a_shard_is_cut(tmp_path):
    learnt = table(tmp_path / "train.csv", LEARNT)
    asked = table(tmp_path / "test.csv", {"b.png": "test"}, pictures=False)
    data = DataSpec({"learnt": learnt, "asked": asked}, train=("learnt",), test=("asked",), crop=CROP)
    with pytest.raises(DatasetError, match=r"'asked' is tested on \S*/b.png, which dataset 'learnt' is trained on"):
        build(data, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


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
    summary = build(wild(root, rows_per_shard=1), tmp_path / "out", workers=1)
    check_law(summary, tmp_path / "out")
    entry = summary.splits["wild.test"]
    assert entry.kept == 4
    assert entry.quarantined == {"decoder_crashed": 3, "decoder_hung": 1, "reader_failed": 1, "too_large": 1}
    receipts = [json.loads(p.read_text()) for p in sorted((tmp_path / "out" / "wild.test").glob("*.json"))]
    assert [receipt["kept"] for receipt in receipts] == [int(fate == "ok") for fate in fates]
    assert len(shard_files(tmp_path / "out", "wild", "test")) == 4, "where nothing is kept there is only the receipt"


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
        return Annotation(Box(1, 1, 19, 19), pose), np.full((20, 20, 3), int(ref.key), np.uint8)


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
def test_a_handful_is_not_stopped_by_its_share_of_broken_faces(tmp_path):
    """Five of 20 are more than a fifth; of 19 nobody counts a share."""
    paths = [write_aflw2000(tmp_path / "archive", f"image{i:05d}", seed=i) for i in range(FEW)]
    for path in paths[:5]:
        path.write_bytes(b"")
    strict = wild(tmp_path / "archive", max_bad_share=0.2)
    assert "5 of 20 faces are quarantined" in sentence(strict, tmp_path / "out")
    paths[-1].unlink()
    paths[-1].with_suffix(".mat").unlink()
    assert build(strict, tmp_path / "out").splits["wild.test"].kept == FEW - 6


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
