"""Where shards end, and what they depend on: a dataset that grows keeps the shards that it had."""

import dataclasses
import json
import pickle
import random
import shutil
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.datasets import base as base_module
from hpe_core.datasets import faces as faces_module
from hpe_core.datasets import plan as plan_module
from hpe_core.datasets.base import FaceRef
from hpe_core.datasets.faces import FaceFile, in_blocks, in_order, read_line
from hpe_core.datasets.plan import DatasetPlan, Job, cut, plan_dataset
from hpe_core.datasets.registry import open_source
from hpe_core.spec.data import ConventionSpec, CropSpec, DatasetSpec, DataSpec
from tests.archives import write_300w_lp, write_aflw, write_aflw2000, write_biwi, write_pointing04
from workflows.stages import shards


def faces(count: int, prefix: str = "person") -> list[FaceRef]:
    return [FaceRef(f"{prefix}{i // 7:05d}/{i:06d}", "", "") for i in range(count)]


@given(st.integers(0, 300), st.integers(1, 40))
def test_runs_are_the_faces_in_order_and_neither_too_long_nor_too_short(count, most):
    refs = faces(count)
    runs = list(cut(refs, most))
    assert [ref for run in runs for ref in run] == refs
    assert all((most + 1) // 2 <= len(run) <= most for run in runs[:-1]) and len(runs[-1]) <= most


@pytest.mark.parametrize("seed", range(5))
def test_new_neighbours_change_few_runs(seed):
    """Wherever they are added; cuts at every n-th face would move all that come after."""
    dice = random.Random(seed)
    refs = faces(6000)
    before = {tuple(run) for run in cut(refs, 100)}
    changed = []
    for _ in range(20):
        place = dice.randrange(len(refs))
        new = [FaceRef(f"{refs[place].sample_id}-{i:03d}", "", "") for i in range(30)]
        after = {tuple(run) for run in cut(sorted(refs + new), 100)}
        changed.append(len(after - before))
    assert len(before) > 60 and sorted(changed)[10] <= 4 and max(changed) <= 15


def test_faces_at_the_end_change_the_last_run_alone():
    before, after = list(cut(faces(1000), 100)), list(cut(faces(1100), 100))
    assert after[: len(before) - 1] == before[:-1]


def only_row(place: Path, statement: str) -> None:
    with closing(sqlite3.connect(place)) as database:
        database.execute(statement)
        database.commit()


Made = tuple[DatasetSpec, Callable[[], object], Callable[[], object]]  # two faces, how the second changes, one more


def pointing(root: Path) -> Made:
    for number in (1, 2):
        write_pointing04(root, 1, number, 0, 15)
    (text,) = (root / "Person01").glob("*102*.txt")
    spec = DatasetSpec("pointing04", str(root))
    return spec, lambda: text.write_text("Face 1 2 3 4"), lambda: write_pointing04(root, 2, 1, 0, 15)


def aflw2000(root: Path) -> Made:
    for i in (1, 2):
        write_aflw2000(root, f"image0000{i}")
    spec = DatasetSpec("aflw2000", str(root))
    return spec, lambda: (root / "image00002.mat").unlink(), lambda: write_aflw2000(root, "image00009")


def w300(root: Path) -> Made:
    marks = np.random.default_rng(0).uniform(10, 60, (68, 2))
    for i in (1, 2):
        write_300w_lp(root, "AFW", f"AFW_{i}_1", marks=marks)
    spec, place = DatasetSpec("300w_lp", str(root)), root / "landmarks" / "AFW" / "AFW_2_1_pts.mat"
    return spec, place.unlink, lambda: write_300w_lp(root, "HELEN", "HELEN_1_0", marks=marks)


def biwi(root: Path) -> Made:
    write_biwi(root / "hpdb", 1, 3)
    write_biwi(root / "hpdb", 2, 3)
    spec, place = DatasetSpec("biwi", str(root)), root / "hpdb" / "02" / "rgb.cal"
    return spec, lambda: place.write_text("other"), lambda: write_biwi(root / "hpdb", 4, 1)


def aflw(root: Path) -> Made:
    more = [{"face": i, "file": f"image{i}.jpg", "rect": (1, 2, 30, 40), "pose": (0.1, 0.2, 0.3)} for i in (1, 2)]
    place = write_aflw(root, more)
    change = "UPDATE FacePose SET yaw = 0.5 WHERE face_id = 2"
    grow = "INSERT INTO Faces VALUES (3, 'image1.jpg', 'flickr')"
    return DatasetSpec("aflw", str(root)), partial(only_row, place, change), partial(only_row, place, grow)


def manifest(root: Path) -> Made:
    root.mkdir(exist_ok=True)
    lines = ["path,pitch,yaw,roll,x1,y1,x2,y2", "a.jpg,1,2,3,0,0,9,9", "b.jpg,1,2,3,0,0,9,9"]
    (root / "manifest.csv").write_text("\n".join(lines))
    other, more = [*lines[:2], "b.jpg,1,2,4,0,0,9,9"], [lines[0], "0.jpg,1,2,3,0,0,9,9", *lines[1:]]
    rewrite = (root / "manifest.csv").write_text
    return DatasetSpec("manifest", str(root)), partial(rewrite, "\n".join(other)), partial(rewrite, "\n".join(more))


def boxes(root: Path) -> Made:
    spec, _, more_pictures = aflw2000(root)
    file = root.parent / "boxes.json"

    def write(second: int, *more: str) -> None:
        corners = {"image00001.jpg": 9, "image00002.jpg": second} | dict.fromkeys(more, 9)
        file.write_text(json.dumps({name: [{"bbox": [0, 0, 9, corner]}] for name, corner in corners.items()}))

    write(9)
    spec = dataclasses.replace(spec, boxes=str(file))
    return spec, lambda: write(8), lambda: (write(9, "image00009.jpg"), more_pictures())


READERS = [pointing, aflw2000, w300, biwi, aflw, manifest, boxes]


@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_a_face_depends_on_its_own_files_and_rows_alone(tmp_path, make):
    """The second face is changed and only its state is; a face more changes nobody's; yet the dataset is another."""
    spec, change, grow = make(tmp_path / "archive")
    source = open_source(spec)
    first, second = sorted(source.refs())
    before, dataset = source.states([first, second]), source.fingerprint()
    assert source.states([second, first]) == before[::-1]
    grow()
    assert source.states([first, second]) == before and (grown := source.fingerprint()) != dataset
    change()
    after = source.states([first, second])
    assert after[0] == before[0] and after[1] != before[1] and source.fingerprint() not in (dataset, grown)


def test_more_rendered_heads_keep_the_shards_of_the_first():
    spec = DatasetSpec(reader="synthetic", count=300, heads_per_person=3)

    def hashes(count: int, **more: int) -> list[str]:
        grown = dataclasses.replace(spec, count=count, **more)
        data = DataSpec(datasets={"heads": grown}, train=("heads",), test=("heads",), rows_per_shard=16)
        return [job.hash for job in plan_dataset("heads", open_source(grown), data).jobs]

    before, after = hashes(300), hashes(400)
    assert len(before) > 20 and len(set(before) - set(after)) <= 3, "the last shard of each split"
    assert not set(before) & set(hashes(300, image_px=96))


# Each key that decides a shard's bytes, with another value; every other key of `data` leaves finished shards alone.
CONVENTION = {
    "unit": "radians_as_degrees",
    "range": "wrapped",
    "order": "yaw_pitch_roll",
    "rotation": "zyx",
    "transposed": True,
}
DECIDES: dict[str, dict[str, Any]] = {
    "data": {"limit_deg": 98.5, "encoding": "jpeg"},
    "crop": {"size": 65, "margin_px": 9, "shape": "stretch", "box_scale": 1.5},
    "dataset": {"links": "anywhere"},
    "convention": CONVENTION | {"pitch_sign": -1, "yaw_sign": -1, "roll_sign": -1},
}
LEAVES_ALONE: dict[str, dict[str, Any]] = {
    "data": {"max_bad_share": 0.9, "resident_gb": 1.0, "ingest": "own_shards", "stream_shards": 3},
    "dataset": {"root": "moved", "count": 3, "val": 0.3, "test": 0.3, "heads_per_person": 3, "image_px": 99},
}


def planned(root: Path, part: str = "", /, **change: Any) -> set[str]:
    """Hashes of an archive's shards, one a person, with a key of `data`, its crop, the dataset or its convention."""
    dataset = DatasetSpec("pointing04", str(root))
    if part == "convention":
        dataset = dataclasses.replace(dataset, convention=dataclasses.replace(dataset.convention, **change))
    elif part == "dataset":
        dataset = dataclasses.replace(dataset, **change)
    data = DataSpec({"heads": dataset}, ("heads",), (), rows_per_shard=1)
    if part == "crop":
        data = dataclasses.replace(data, crop=dataclasses.replace(data.crop, **change))
    elif part == "data":
        data = dataclasses.replace(data, **change)
    return {job.hash for job in plan_dataset("heads", open_source(dataset), data).jobs}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("people") / "archive"
    for person in (1, 2, 3, 4):
        write_pointing04(root, person, 0, 0, 15)
    return root


@pytest.mark.parametrize(("part", "key"), [(part, key) for part, keys in DECIDES.items() for key in keys])
def test_a_key_that_decides_a_shards_bytes_makes_it_another(people, part, key):
    assert not planned(people) & planned(people, part, **{key: DECIDES[part][key]})


@pytest.mark.parametrize(("part", "key"), [(part, key) for part, keys in LEAVES_ALONE.items() for key in keys])
def test_a_key_that_does_not_leaves_it_alone(people, tmp_path, part, key):
    value = LEAVES_ALONE[part][key]
    if key == "root":
        value = str(shutil.copytree(people, tmp_path / "moved"))  # keeps the times
    found = planned(people, part, **{key: value})
    assert found and found <= planned(people)
    assert found == planned(people) or key in ("count", "test"), "fewer faces, or fewer that are trained on"


def test_every_key_of_a_crop_and_of_a_convention_decides():
    for part, kind in (("crop", CropSpec), ("convention", ConventionSpec)):
        assert set(DECIDES[part]) == {field.name for field in dataclasses.fields(kind)}


def test_a_shards_code_and_the_names_of_its_faces_are_part_of_its_hash(monkeypatch):
    job = Job("heads", "train", 0, 0, "hash", FaceFile(), 0)
    jobs = [job, dataclasses.replace(job, hash="other")]
    found = {each.hash for reader in ("biwi", "manifest") for each in shards.with_code(jobs, reader)}
    monkeypatch.setattr(shards, "code_hashes", lambda *modules: {"module": "edited"})
    found |= {each.hash for each in shards.with_code([job], "biwi")}
    assert len(found) == 5


@pytest.mark.parametrize("key", ["sample_id", "group", "key"])
def test_a_face_under_another_name_makes_another_shard(key):
    heads, drawn = (DatasetSpec("synthetic", count=9, seed=seed) for seed in (0, 1))
    data = DataSpec({"heads": heads, "drawn": drawn}, ("drawn",), ("heads",))

    def hash_of(*refs: FaceRef) -> str:
        source: Any = SimpleNamespace(spec=heads, refs=lambda: refs, states=lambda asked: [""] * len(asked))
        (job,) = plan_dataset("heads", source, data).jobs
        return job.hash

    first, second = FaceRef("a", "person", "0"), FaceRef("b", "person", "1")
    other = dataclasses.replace(second, **{key: getattr(second, key) + "x"})
    assert hash_of(first, second) == hash_of(second, first) != hash_of(first, other)


NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=127) | st.just("\udc80"), max_size=4)
REFS = st.lists(st.builds(FaceRef, NAMES, NAMES, NAMES, st.sampled_from(["", "test"])), max_size=60)


@given(REFS, st.integers(1, 9))
def test_a_listing_that_is_sorted_on_the_disk_is_the_sorted_listing(refs, run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces_module, "RUN", run)
        found = list(in_order(refs))
    assert found == sorted(refs) and [ref.split for ref in found] == [ref.split for ref in sorted(refs)]


@given(REFS, st.integers(1, 5))
def test_a_file_of_faces_holds_them_line_by_line_and_goes_with_its_owner(refs, most):
    file, lines = FaceFile(), list(in_blocks(refs, most))
    with file.writing() as write:
        starts = [write(line) for line in lines]
    copy = pickle.loads(pickle.dumps(file))
    assert list(file) == list(copy) == refs
    assert [list(read_line(file.path, start)) for start in starts] == lines
    path = file.path
    del copy
    assert path.exists()
    del file
    assert not path.exists()


def planned_heads(count: int) -> DatasetPlan:
    spec = DatasetSpec("synthetic", count=count, heads_per_person=1)
    return plan_dataset("heads", open_source(spec), DataSpec({"heads": spec}, ("heads",), ("heads",)))


def test_runs_on_the_disk_change_no_shard(monkeypatch):
    before = planned_heads(2000)
    monkeypatch.setattr(faces_module, "RUN", 300)
    after = planned_heads(2000)
    assert before == after and [job.refs for job in before.jobs] == [job.refs for job in after.jobs]


@pytest.mark.longer
def test_the_driver_holds_at_most_a_hundred_bytes_a_face(monkeypatch):
    """Groups of one face each: the worst case. A face as an object takes five times as much."""
    for module, name, value in (
        (faces_module, "RUN", 4000),
        (faces_module, "BLOCK", 10),
        (base_module, "AT_ONCE", 500),
        (plan_module, "RUNS", 1),
    ):
        monkeypatch.setattr(module, name, value)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            plan = planned_heads(count)
            open_source(DatasetSpec("synthetic", count=count)).fingerprint()
            assert len(plan.jobs) > count / 512
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = 8_000, 20_000
    grown = (peak(many) - peak(few)) / (many - few)
    assert grown < 100, f"{grown:.0f} bytes a face"
