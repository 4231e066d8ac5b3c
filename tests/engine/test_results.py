"""Results come back from a manifest's JSON as they were."""

import json

from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import TrainSpec
from workflows.engine.exported import Exported, NetworkFile, Parity, TimmFolder, TracedNetwork
from workflows.engine.results import (
    Cell,
    EvaluateResult,
    Finalist,
    LabelsResult,
    NetworkResult,
    PublishResult,
    Role,
    Row,
    SearchResult,
    ShardFile,
    ShardsResult,
    Split,
    StageResult,
    StudentResult,
    TeachersResult,
    Trial,
    UnderProtocol,
)
from workflows.tracking.facts import Model

NETWORK = NetworkResult.of(
    [{"epoch": 1, "time_ms": 5, "val/mae": 3.0}, {"epoch": 2, "time_ms": 9, "val/mae": 4.0}], 1.5
)
ROW = Row("heads", "distilled", Role.DISTILLED, "student, distilled", {"n": 2.0, "mae": 3.25}, 4e5, 1.5)
PARITY = Parity({"pitch": 1e-5}, {"pitch": 2e-5}, 6, 1e-3)
FILE = NetworkFile(100, PARITY)
SPLIT = Split(3, 1, {"no_box": 1}, {"out_of_range": 1}, (ShardFile("heads.val/part-00000.parquet", 1, "ab"),), "cd")
RESULTS: tuple[StageResult, ...] = (
    ShardsResult({"heads.val": SPLIT}, 3, 1, 1, 1, {"heads.test": 2}, {"heads": 3}, "ef"),
    TeachersResult({"resnet": NETWORK}),
    LabelsResult(("resnet-K0-d1",), ("resnet",), 3, {"resnet-K0-d1": 2.5}, "01"),
    SearchResult((Trial("t1", {"optim.lr": 0.1, "distill.teachers": ["a"]}, True, 3.0, 2, 1.0, 4e5, 1.5),), 1),
    StudentResult(NETWORK, NETWORK, TrainSpec(), (Finalist("finalist-1", {"optim.lr": 0.1}, NETWORK),)),
    EvaluateResult(
        (ROW,),
        (),
        {"heads": "renderer"},
        {"flip": {"kl": 0.5}},
        {"heads": (Cell(2, 1, 3.0),)},
        UnderProtocol("p", "h", ("d",)),
    ),
    PublishResult(
        "model/a.onnx",
        "model/README.md",
        "report/report.html",
        Exported(
            TracedNetwork(FILE, FILE, 18, 5, None),
            TimmFolder("resnet18", True, 0.0),
            None,
            {"onnx": {"batch 1": 1.0}},
            "",
        ),
        {"onnx/megabytes": 1.0},
        Model("head-pose", "model", "champion", ("validation", 3.0), "table", "MAE 3.00", {"config": "demo"}),
    ),
)


def test_every_result_comes_back_as_it_was() -> None:
    for result in RESULTS:
        assert build(type(result), json.loads(json.dumps(to_dict(result)))) == result


def test_a_network_is_that_of_its_best_epoch_and_a_row_is_found_by_its_role() -> None:
    assert (NETWORK.val_mae, NETWORK.best_epoch, NETWORK.epochs) == (3.0, 1, 2)
    found = EvaluateResult((ROW,), (), {}, {}, {})
    assert found.row(Role.DISTILLED) is ROW and found.row(Role.DISTILLED, "heads").mae == 3.25


def test_every_headline_and_figure_says_what_the_result_says() -> None:
    said = [result.headline() for result in RESULTS]
    assert said[:5] == [
        "heads.val 1 of 3",
        "validation MAE resnet 3.00",
        "MAE on the training faces resnet-K0-d1 2.50",
        "best of 1 trials (1 failed) 3.00 with lr=0.1, teachers=['a']",
        "validation MAE distilled 3.00, hard 3.00 (best of the finalists 3.00)",
    ]
    figures = [result.metrics() for result in RESULTS]
    assert figures[0] == {"heads.val/kept": 1.0, "heads.val/input": 3.0}
    assert figures[3] == {"trials": 1.0, "best_val_mae": 3.0} and SearchResult().best == {}
    assert figures[4] == {"distilled/val_mae": 3.0, "hard/val_mae": 3.0}
