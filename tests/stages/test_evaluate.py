"""What the evaluate stage says beside the tables: who was trained on, and in which recordings faces were labelled."""

import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hpe_core.data.rows import count_rows, read_table, shard_files, write_shard
from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.protocols import protocol_named
from hpe_core.datasets.registry import open_source
from hpe_core.geometry.crop import BOX_RULE
from hpe_core.networks.checkpoint import save_net
from hpe_core.networks.models import PoseNet
from hpe_core.spec.data import ConventionSpec, DatasetSpec, DataSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import EvaluateSpec, PipelineSpec
from hpe_core.spec.training import AugmentSpec, DistillSpec, TrainSpec
from tests.archives import write_biwi, write_boxes
from tests.datasets.reading import one
from tests.faces import CROP, NET_CROP, face_row, save_untrained, write_heads
from tests.reporting import LocalReporter
from workflows.engine.results import NetworkResult, Results, StudentResult
from workflows.engine.stage import StageRun
from workflows.scoring.seen import Predictions, predict_files
from workflows.stages import evaluate
from workflows.stages.evaluate import drawn_by, drift, new_people

PUBLISHED = protocol_named("offsets-3").split.test_groups
LEAK_FREE = ("person06", "person07", "person10", "person13")


def planned(spec: DatasetSpec, folder: Path, **more: DatasetSpec) -> tuple[DataSpec, dict[str, list[str]]]:
    """Shards of BIWI's people (with a rendered head for each face), and the groups of the test faces."""
    data = DataSpec(datasets={"biwi": spec, **more}, train=("biwi",), test=("biwi", *more), crop=CROP)
    plan = plan_dataset("biwi", open_source(spec), data)
    groups: list[str] = []
    for job in plan.jobs:
        faces = (face_row(i % 6) for i in range(len(job.refs)))
        rows = [
            dataclasses.replace(face, sample_id=ref.sample_id, group=ref.group)
            for face, ref in zip(faces, job.refs, strict=True)
        ]
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
    assert found(each["turn"] | {"turn_gain": 1.0}) != rows["turn"], "faces that the student never sees turned stay"


def test_labels_are_judged_apart_for_heads_that_look_far_to_either_side(tmp_path):
    folders = {"one": str(save_untrained(tmp_path / "net"))}
    still = {"flip": 1.0, "photometric": "none", "turn_deg": 0.0, "zoom": 0.0}

    def found(name: str, yaws: list[float]) -> dict[str, dict[str, float]]:
        rows = [dataclasses.replace(face_row(i, NET_CROP), pose=(0.0, yaw, 0.0)) for i, yaw in enumerate(yaws)]
        write_shard(tmp_path / name, rows, NET_CROP, "raw")
        return drift(folders, [str(tmp_path / name)], still, False, "bins")

    mixed = found("mixed.parquet", [-80.0, 70.0, 10.0, -75.0, -59.0, 60.0, 0.0])
    assert {name: row["faces"] for name, row in mixed.items()} == {
        "flip, yaw below 60": 3,
        "flip, yaw beyond 60": 4,
    }
    assert set(found("near.parquet", [-59.0, 5.0])) == {"flip, yaw below 60"}
    assert set(found("far.parquet", [-61.0])) == {"flip, yaw beyond 60"}


def test_validation_faces_come_in_one_order_however_datasets_are_named(tmp_path):
    """The stage's hash does not know the order either, and drift is measured on the first of them."""
    for name in ("a.val", "b.val", "a.train", "c.val"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part-00000.parquet").touch()
    for names in (("a", "b"), ("b", "a")):
        stage: Any = SimpleNamespace(
            inputs={"shards": tmp_path}, spec=SimpleNamespace(data=SimpleNamespace(train=names))
        )
        found = [Path(file).parent.name for file in evaluate.validation(stage)]
        assert found == ["a.val", "b.val"]


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


def test_the_stage_keeps_test_sets_people_and_networks_apart(tmp_path, monkeypatch):
    """The map is the base teacher's, new people are those of BIWI alone, and every training set's validation faces say
    what the student's spreads are worth."""
    import ray

    biwi = dataclasses.replace(archive(tmp_path / "hpdb"), group_by="sequence", test_groups=PUBLISHED)
    heads = DatasetSpec("synthetic", count=9)
    data, groups = planned(biwi, tmp_path / "shards", heads=heads)
    data = dataclasses.replace(data, train=("biwi", "heads"))
    for split in ("val", "test"):
        write_heads(tmp_path / "shards", 5, split=split)
    net = TrainSpec(net=NetSpec("test_resnet"))
    scored = EvaluateSpec(base="second", offset_radius=2, offset_step=2, heatmap_radius=1)
    student = dataclasses.replace(net, distill=DistillSpec(), augment=AugmentSpec(flip=0.0))
    spec = PipelineSpec("law", data, {"first": net, "second": net}, student, evaluate=scored, store=str(tmp_path))
    inputs = {name: tmp_path / name for name in ("shards", "teachers", "student")}
    for seed, folder in enumerate(evaluate.networks_of(spec, inputs).values()):
        torch.manual_seed(seed)
        network = PoseNet(net.net, CROP.size)
        torch.nn.init.normal_(network.heads[0].weight, std=0.5)
        save_net(folder, network, CROP, {})
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: SimpleNamespace(remote=function))
    monkeypatch.setattr(ray, "get", lambda found: found)
    monkeypatch.setattr(evaluate, "capacity", lambda cluster: {"CPU": 1.0, "GPU": 0.0})
    monkeypatch.setattr(evaluate, "cost", lambda folder: {"parameters": 1.0, "latency_ms": 1.0})
    ended = NetworkResult(1.0, 1, 1, 1.0, ())
    results = Results({"student": StudentResult(ended, ended, student)})
    folder = tmp_path / "evaluate"
    folder.mkdir()
    run = StageRun("evaluate", "evaluate/1", spec, folder, inputs, {}, results, LocalReporter(lambda event: None))
    found = evaluate.run(run)

    assert {test: drawn_by(open_source(data.datasets[test])) for test in data.test} == found.boxes
    (file,) = shard_files(tmp_path / "shards", "heads", "test")
    alone = Predictions.of({"heads": predict_files(str(inputs["teachers"] / "second"), [str(file)], (0, 1), 1)})
    assert found.heatmap["heads"] == alone.kd["heads"] and set(found.heatmap) == set(data.test)
    new = new_people(data, tmp_path / "shards", groups)["biwi"]
    assert {(row.test, row.scores["n"]) for row in found.new_people} == {("biwi", float(new.sum()))}
    assert [row.name for row in found.new_people] == [row.name for row in found.rows if row.test == "biwi"]
    held_out = [file for name in data.train for file in shard_files(tmp_path / "shards", name, "val")]
    assert found.sureness.calibration.faces == sum(map(count_rows, held_out)) > 5
    people = {row["person"] for row in read_table(folder / "predictions.parquet").to_pylist() if row["test"] == "biwi"}
    assert people and all(name.startswith("person") for name in people)
