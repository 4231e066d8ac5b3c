"""Where shards end, and what they depend on: a dataset that grows keeps the shards that it had."""

import dataclasses
import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.datasets.base import FaceRef
from hpe_core.datasets.plan import cut, plan_dataset
from hpe_core.datasets.registry import open_source
from hpe_core.spec.data import DatasetSpec, DataSpec
from tests.archives import write_300w_lp, write_aflw, write_aflw2000, write_biwi, write_pointing04


def faces(count: int, prefix: str = "person") -> list[FaceRef]:
    return [FaceRef(f"{prefix}{i // 7:05d}/{i:06d}", "", "") for i in range(count)]


@given(st.integers(0, 300), st.integers(1, 40))
def test_runs_are_the_faces_in_order_and_neither_too_long_nor_too_short(count: int, most: int) -> None:
    refs = faces(count)
    runs = list(cut(refs, most))
    assert [ref for run in runs for ref in run] == refs
    assert all((most + 1) // 2 <= len(run) <= most for run in runs[:-1]) and len(runs[-1]) <= most


@pytest.mark.parametrize("seed", range(5))
def test_new_neighbours_change_few_runs(seed: int) -> None:
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


def test_faces_at_the_end_change_the_last_run_alone() -> None:
    before, after = list(cut(faces(1000), 100)), list(cut(faces(1100), 100))
    assert after[: len(before) - 1] == before[:-1]


# ---------------------------------------------------------------- what a shard depends on


def only_row(place: Path, statement: str) -> None:
    with closing(sqlite3.connect(place)) as database:
        database.execute(statement)
        database.commit()


def pointing(root: Path) -> tuple[DatasetSpec, Callable[[], object], Callable[[], object]]:
    for number in (1, 2):
        write_pointing04(root, 1, number, 0, 15)
    (text,) = (root / "Person01").glob("*102*.txt")
    return (
        DatasetSpec("pointing04", str(root)),
        lambda: text.write_text("Face 1 2 3 4"),
        lambda: write_pointing04(root, 2, 1, 0, 15),
    )


def aflw2000(root: Path) -> tuple[DatasetSpec, Callable[[], object], Callable[[], object]]:
    for i in (1, 2):
        write_aflw2000(root, f"image0000{i}")
    return (
        DatasetSpec("aflw2000", str(root)),
        lambda: (root / "image00002.mat").unlink(),
        lambda: write_aflw2000(root, "image00009"),
    )


def w300(root: Path) -> tuple[DatasetSpec, Callable[[], object], Callable[[], object]]:
    marks = np.random.default_rng(0).uniform(10, 60, (68, 2))
    for i in (1, 2):
        write_300w_lp(root, "AFW", f"AFW_{i}_1", marks=marks)
    return (
        DatasetSpec("300w_lp", str(root)),
        lambda: (root / "landmarks" / "AFW" / "AFW_2_1_pts.mat").unlink(),
        lambda: write_300w_lp(root, "HELEN", "HELEN_1_0", marks=marks),
    )


def biwi(root: Path) -> tuple[DatasetSpec, Callable[[], object], Callable[[], object]]:
    write_biwi(root / "hpdb", 1, 3)
    write_biwi(root / "hpdb", 2, 3)
    return (
        DatasetSpec("biwi", str(root)),
        lambda: (root / "hpdb" / "02" / "rgb.cal").write_text("other"),
        lambda: write_biwi(root / "hpdb", 4, 1),
    )


def aflw(root: Path) -> tuple[DatasetSpec, Callable[[], object], Callable[[], object]]:
    more = [{"face": i, "file": f"image{i}.jpg", "rect": (1, 2, 30, 40), "pose": (0.1, 0.2, 0.3)} for i in (1, 2)]
    place = write_aflw(root, more)
    return (
        DatasetSpec("aflw", str(root)),
        lambda: only_row(place, "UPDATE FacePose SET yaw = 0.5 WHERE face_id = 2"),
        lambda: only_row(place, "INSERT INTO Faces VALUES (3, 'image1.jpg', 'flickr')"),
    )


def manifest(root: Path) -> tuple[DatasetSpec, Callable[[], object], Callable[[], object]]:
    root.mkdir(exist_ok=True)
    lines = ["path,pitch,yaw,roll,x1,y1,x2,y2", "a.jpg,1,2,3,0,0,9,9", "b.jpg,1,2,3,0,0,9,9"]
    (root / "manifest.csv").write_text("\n".join(lines))
    return (
        DatasetSpec("manifest", str(root)),
        lambda: (root / "manifest.csv").write_text("\n".join([*lines[:2], "b.jpg,1,2,4,0,0,9,9"])),
        lambda: (root / "manifest.csv").write_text("\n".join([lines[0], "0.jpg,1,2,3,0,0,9,9", *lines[1:]])),
    )


def boxes(root: Path) -> tuple[DatasetSpec, Callable[[], object], Callable[[], object]]:
    spec, _, more_pictures = aflw2000(root)
    file = root.parent / "boxes.json"

    def write(second: int, *more: str) -> None:
        corners = {"image00001.jpg": 9, "image00002.jpg": second} | dict.fromkeys(more, 9)
        file.write_text(json.dumps({name: [{"bbox": [0, 0, 9, corner]}] for name, corner in corners.items()}))

    write(9)
    return (
        dataclasses.replace(spec, boxes=str(file)),
        lambda: write(8),
        lambda: (write(9, "image00009.jpg"), more_pictures()),
    )


READERS = [pointing, aflw2000, w300, biwi, aflw, manifest, boxes]


@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_a_face_depends_on_its_own_files_and_rows_alone(tmp_path: Path, make: Callable[[Path], tuple]) -> None:
    """The second face is changed and only its state is; a face more changes nobody's; yet the dataset is another."""
    spec, change, grow = make(tmp_path / "archive")
    source = open_source(spec)
    first, second = sorted(source.refs())
    before, dataset = source.states([first, second]), source.fingerprint()
    assert source.states([second, first]) == before[::-1]
    grow()
    assert source.states([first, second]) == before and source.fingerprint() != dataset
    change()
    after = source.states([first, second])
    assert after[0] == before[0] and after[1] != before[1]


def test_more_rendered_heads_keep_the_shards_of_the_first() -> None:
    spec = DatasetSpec(reader="synthetic", count=300, heads_per_person=3)

    def hashes(count: int, **more: int) -> list[str]:
        grown = dataclasses.replace(spec, count=count, **more)
        data = DataSpec(datasets={"heads": grown}, train=("heads",), test=("heads",), rows_per_shard=16)
        return [job.hash for job in plan_dataset("heads", open_source(grown), data).jobs]

    before, after = hashes(300), hashes(400)
    assert len(before) > 20 and len(set(before) - set(after)) <= 3, "the last shard of each split"
    assert not set(before) & set(hashes(300, image_px=96))
