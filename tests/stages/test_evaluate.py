"""What the evaluate stage says beside the tables: who was trained on, and in which recordings faces were labelled."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from hpe_core.data.rows import write_shard
from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.protocols import protocol_named
from hpe_core.datasets.registry import open_source
from hpe_core.geometry.crop import BOX_RULE
from hpe_core.spec.data import ConventionSpec, DatasetSpec, DataSpec
from tests.archives import write_biwi, write_boxes
from tests.datasets.reading import one
from tests.faces import CROP, NET_CROP, face_row, save_untrained
from workflows.stages.evaluate import drawn_by, drift, new_people

PUBLISHED = protocol_named("offsets-3").split.test_groups
LEAK_FREE = ("person06", "person07", "person10", "person13")


def planned(spec: DatasetSpec, folder: Path, **more: DatasetSpec) -> tuple[DataSpec, dict[str, list[str]]]:
    """Shards of BIWI's people (with a rendered head for each face), and the groups of the test faces."""
    data = DataSpec(datasets={"biwi": spec, **more}, train=("biwi",), test=("biwi", *more), crop=CROP)
    plan = plan_dataset("biwi", open_source(spec), data)
    groups: list[str] = []
    for job in plan.jobs:
        rows = [dataclasses.replace(face_row(0), sample_id=ref.sample_id, group=ref.group) for ref in job.refs]
        write_shard(folder / job.path, rows, CROP, "raw")
        groups += [ref.group for ref in job.refs] if job.split == "test" else []
    return data, {"biwi": groups}


def archive(root: Path) -> DatasetSpec:
    for sequence in range(1, 25):
        write_biwi(root, sequence, 3)
    return DatasetSpec("biwi", root=str(root), val=0.1)


def test_whose_boxes_a_test_set_has_is_named(tmp_path):
    def named(reader: str, **keys: Any) -> str:
        return drawn_by(open_source(DatasetSpec(reader, root="" if reader == "synthetic" else str(tmp_path), **keys)))

    assert named("synthetic", count=3) == named("300w_lp") == BOX_RULE
    assert named("manifest") == "manifest"
    boxes = write_boxes(tmp_path / "b.json", {"a.jpg": one((1, 2, 3, 4))})
    first = named("aflw2000", boxes=boxes)
    assert first == f"file b.json {hashlib.sha256(Path(boxes).read_bytes()).hexdigest()[:12]}"
    write_boxes(tmp_path / "b.json", {"a.jpg": one((1, 2, 3, 5))})
    assert named("aflw2000", boxes=boxes) != first


def test_labels_are_judged_under_each_motion_of_the_students_augmentation_alone(tmp_path):
    folders = {"one": str(save_untrained(tmp_path / "net"))}
    write_shard(tmp_path / "faces.parquet", [face_row(i, NET_CROP) for i in range(8)], NET_CROP, "raw")
    still = {"flip": 0.0, "photometric": "none"}
    each = {"flip": {"flip": 0.5}, "turn": {"turn_deg": 20.0, "turn_gain": 0.0}, "zoom": {"zoom": 0.5}}

    def found(change: dict[str, float]) -> dict[str, dict[str, float]]:
        return drift(folders, [str(tmp_path / "faces.parquet")], still | change, False, "bins")

    assert not found({})
    rows = {motion: found(change) for motion, change in each.items()}
    for motion, part in rows.items():
        assert part and all(
            name.startswith(f"{motion}, yaw") and row["unmoved_deg"] > 1e-3 for name, row in part.items()
        )
        assert sum(row["faces"] for row in part.values()) == 8
    assert found(each["flip"] | each["turn"] | each["zoom"]) == rows["flip"] | rows["turn"] | rows["zoom"]


def test_protocol_3_has_a_part_whose_people_were_not_trained_on(tmp_path):
    spec = dataclasses.replace(archive(tmp_path / "hpdb"), group_by="sequence", test_groups=PUBLISHED)
    data, groups = planned(spec, tmp_path / "shards")
    found = new_people(data, tmp_path / "shards", groups)["biwi"]
    new = {group for group, is_new in zip(groups["biwi"], found, strict=True) if is_new}
    assert new == {"sequence06", "sequence07", "sequence10", "sequence13", "sequence22"}
    assert len(groups["biwi"]) == 8


def test_where_nobody_is_on_both_sides_nothing_is_said(tmp_path):
    spec = dataclasses.replace(archive(tmp_path / "hpdb"), test_groups=LEAK_FREE)
    data, groups = planned(spec, tmp_path / "shards")
    assert new_people(data, tmp_path / "shards", groups) == {}


def test_another_datasets_people_are_not_compared(tmp_path):
    """Groups of two archives may be spelt alike and are other people."""
    heads = DatasetSpec("synthetic", count=3)
    data, groups = planned(archive(tmp_path / "hpdb"), tmp_path / "shards", heads=heads)
    groups["heads"] = ["person01", "person-0-00001"]
    assert "heads" not in new_people(data, tmp_path / "shards", groups)


def test_biwi_is_aligned_by_sequence_and_the_others_as_a_whole(tmp_path):
    spec = archive(tmp_path / "hpdb")
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"01/frame_00003_rgb.png": [{"bbox": [1, 2, 90, 90], "type": "test"}]}')
    for changes in ({}, {"boxes": str(boxes)}, {"convention": ConventionSpec(yaw_sign=-1)}):
        source = open_source(dataclasses.replace(spec, **changes))
        refs = sorted(source.refs())
        assert len({source.reader.recording_of(ref.sample_id) for ref in refs}) == 24
        assert source.reader.person_of("sequence21") == source.reader.person_of("person02") == "person02"
    heads = open_source(DatasetSpec("synthetic", count=4, heads_per_person=2))
    refs = sorted(heads.refs())
    assert len({heads.reader.recording_of(ref.sample_id) for ref in refs}) == 1
    assert np.unique([heads.reader.person_of(ref.group) for ref in refs]).size == 2
