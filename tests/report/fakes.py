"""A run whose stages before publish have finished, without training anything: what reports and cards are made from."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np

from hpe_core.data.marks import MARKS_FILE, Marks, write_marks
from hpe_core.data.rows import write_shard
from hpe_core.datasets.base import FaceRow
from hpe_core.geometry.crop import canonical_crop
from hpe_core.learning.calibration import Calibration
from hpe_core.learning.metrics import PoseSums, aligned_summary
from hpe_core.render.scene import render_head
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import EvaluateSpec, MlflowSpec, PipelineSpec, PublishSpec
from hpe_core.spec.training import DistillSpec, TrainSpec
from hpe_core.system.files import write_json
from tests.reporting import LocalReporter
from workflows.engine import results as made
from workflows.engine.exported import Exported, Int8, Int8Score, NetworkFile, Parity, TimmFolder, TracedNetwork
from workflows.engine.stage import StageRun
from workflows.sharding.accounts import Broken, write_quarantine
from workflows.sharding.quarantine import SHEET
from workflows.stages.evaluate import write_predictions
from workflows.tracking.progress import Event

CROP = CropSpec(size=32, margin_px=4)
TESTS = ("heads", "other <set>")
NETS = {"base": made.Role.BASE, "second": made.Role.TEACHER} | {
    role.value: role
    for role in (made.Role.HARD, made.Role.DISTILLED, made.Role.TEACHERS, made.Role.OFFSETS, made.Role.COMBINED)
}
PARITY = Parity({"pitch": 2e-5, "yaw": 1e-5, "roll": 1e-5}, {}, 64, 1e-3)
EXPORTED = Exported(
    TracedNetwork(NetworkFile(2_000_000, PARITY), NetworkFile(3_000_000, PARITY), 20, 400_000, None),
    TimmFolder("test_resnet", True),
    Int8(600_000, 77, Int8Score(123, 6.25, 6.28, 0.03, 0.02, 0.25)),
    {"ONNX Runtime": {"batch 1": 0.51, "batch 32": 9.02}},
    "some processor",
)


def pipeline_spec(store: Path) -> PipelineSpec:
    datasets = {name: DatasetSpec("synthetic", count=40, seed=i) for i, name in enumerate(TESTS)}
    net = NetSpec(backbone="test_resnet")
    return PipelineSpec(
        name="fake & small",
        data=DataSpec(datasets, ("heads",), TESTS, CROP),
        teachers={"base": TrainSpec(net=net), "second": TrainSpec(net=net)},
        student=TrainSpec(net=net, distill=DistillSpec()),
        evaluate=EvaluateSpec(heatmap_radius=2),
        publish=PublishSpec(parity_crops=6),
        mlflow=MlflowSpec(uri="https://name:a@/secret@mlflow.example"),
        store=str(store),
    )


def write_faces(folder: Path, name: str, split: str, seed: int) -> tuple[list[str], np.ndarray]:
    heads = [render_head(seed, index, size=64) for index in range(14)]
    rows = [FaceRow(h.sample_id, h.group, "", h.pose, canonical_crop(h.image, h.box, CROP)) for h in heads]
    write_shard(folder / f"{name}.{split}" / "part-00000.parquet", rows, CROP, "raw")
    return [head.sample_id for head in heads], np.array([head.pose for head in heads])


def fake_results(spec: PipelineSpec, inputs: dict[str, Path]) -> made.Results:
    """What the stages before publish leave behind, in their own shapes, without training anything."""
    random = np.random.default_rng(0)
    write_faces(inputs["shards"], "heads", "train", 2)
    write_faces(inputs["shards"], "heads", "val", 3)
    faces = {name: write_faces(inputs["shards"], name, "test", i) for i, name in enumerate(TESTS)}
    ids, truth = ({name: pair[part] for name, pair in faces.items()} for part in (0, 1))
    predictions = {
        net: {test: true + random.normal(0, 3 + i, true.shape) for test, true in truth.items()}
        for i, net in enumerate(reversed(NETS))
    }
    people = {test: [str(row // 2) for row in range(len(own))] for test, own in ids.items()}
    write_predictions(inputs["evaluate"] / "predictions.parquet", ids, people, truth, predictions)
    marks = Marks(*(np.tile(np.float32([[5, -3, 0.7]]), (14, 68, 1)) for _ in range(2)), np.ones((14, 2), np.float32))
    write_marks(inputs["evaluate"] / MARKS_FILE, {("base", TESTS[0]): (ids[TESTS[0]], marks)})
    scores = {
        (test, net): PoseSums.of(found[test], truth[test]).summary() | aligned_summary(found[test], truth[test])
        for net, found in predictions.items()
        for test in TESTS
    }
    scores[TESTS[0], "base"] |= {"nme_box": 4.125, "nme_eyes": 6.5, "hidden_recall": 0.625}
    each = ((test, net, role) for test in TESTS for net, role in NETS.items())
    rows = tuple(made.Row(test, net, role, "what it is", scores[test, net], 4e5, 3.0) for test, net, role in each)
    cells = tuple(made.Cell(k, d, 5.0 - 0.1 * k) for k in range(3) for d in (1, 2))
    history = [{"epoch": e, "train/loss": 9.0 / e, "val/mae": 20.0 / e, "lr": 1e-3} for e in (1, 2, 3)]
    network = made.NetworkResult.of(history, 1.0)
    twin = dataclasses.replace(network, val_error=8.9)
    split = made.Split(17, 14, {"truncated_picture": 1}, {"out_of_range": 2}, (), "0123456789abcdef")
    splits = {f"{name}.test": split for name in TESTS} | {"heads.train": split, "heads.val": split}
    broken = [Broken("heads", "test", "a<b>", "a<b>.jpg", "truncated_picture", "it is cut off " + "x" * 400)]
    write_quarantine(inputs["shards"], broken)
    cv2.imwrite(str(inputs["shards"] / SHEET), np.zeros((40, 60, 3), np.uint8))
    return made.Results(
        {
            "shards": made.ShardsResult(splits, 32, 28, 2, 2, {}, {}, "fedcba"),
            "teachers": made.TeachersResult({"base": network, "second": network}),
            "labels": made.LabelsResult(("base-K0-d1",), ("base",), 14, {"base-K0-d1": 5.0}, "abc"),
            "search": made.SearchResult((made.Trial("a", {"optim.lr": 0.00123}, False, 7.1, 3, 2.0, 4e5, 3.0),)),
            "student": made.StudentResult(network, twin, spec.student),
            "evaluate": made.EvaluateResult(
                rows=rows,
                new_people=tuple(
                    dataclasses.replace(row, scores=row.scores | {"n": 7}) for row in rows if row.test == TESTS[0]
                ),
                boxes=dict.fromkeys(TESTS, "renderer"),
                drift={"turn, yaw below 60": {"moved_deg": 1.25, "unmoved_deg": 2.5, "kl": 0.125, "faces": 14}},
                heatmap=dict.fromkeys(TESTS, cells),
                sureness=made.Sureness(
                    Calibration((1.25, 1.5, 0.75), ((1.0, 1.0, 1.0),) * 3, 1234),
                    (made.Intervals(TESTS[0], 0.8, (0.701, 0.702, 0.703), (0.801, 0.802, 0.803)),),
                    {TESTS[0]: tuple(float(i) for i in range(1, 21))},
                ),
            ),
        }
    )


def finished_run(store: Path) -> tuple[StageRun, list[Event]]:
    """The publish stage of such a run, and what it will have reported."""
    spec, events = pipeline_spec(store), list[Event]()
    names = ("shards", "teachers", "labels", "search", "student", "evaluate")
    inputs = {name: store / name / f"hash-of-{name}" for name in names}
    results = fake_results(spec, inputs)
    manifest = {"seconds": 7200.0, "machinery": {"cpus": 3.0, "gpus": 0.5}, "finished": "2030-01-01 00:00:00"}
    for folder in inputs.values():
        write_json(folder / "manifest.json", manifest)
    place, reporter = store / "publish" / "123", LocalReporter(events.append)
    place.mkdir(parents=True)
    return StageRun("publish", "publish/123", spec, place, inputs, {}, results, reporter), events
