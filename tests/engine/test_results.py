"""Results come back from a manifest's JSON as they were."""

import json
from dataclasses import replace

import pytest

from hpe_core.learning.calibration import Calibration
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import TrainSpec
from workflows.engine import results as made
from workflows.engine.exported import Exported, NetworkFile, Parity, TimmFolder, TracedNetwork
from workflows.tracking.facts import Model

EPOCHS = ({"epoch": 1, "time_ms": 5, "val/mae": 3.0}, {"epoch": 2, "time_ms": 9, "val/mae": 4.0})
NETWORK = made.NetworkResult.of(EPOCHS, 1.5)
TWIN = replace(NETWORK, val_error=4.5)
ROW = made.Row("heads", "distilled", made.Role.DISTILLED, "student, distilled", {"n": 2.0, "mae": 3.25}, 4e5, 1.5)
PARITY = Parity({"pitch": 1e-5}, {"pitch": 2e-5}, 6, 1e-3)
FILE = NetworkFile(100, PARITY)
SPLIT = made.Split(
    3, 1, {"no_box": 1}, {"out_of_range": 1}, (made.ShardFile("heads.val/part-00000.parquet", 1, "ab"),), "cd"
)
ASKED = made.UnderProtocol("p", "h", ("d",))
TRACED = TracedNetwork(FILE, FILE, 18, 5, None)
EXPORTED = Exported(TRACED, TimmFolder("resnet18", True), None, {"onnx": {"batch 1": 1.0}}, "")
CHAMPION = Model("head-pose", "model", "champion", ("validation", 3.0), "table", "MAE 3.00", {"config": "demo"})
RESULTS: tuple[made.StageResult, ...] = (
    made.ShardsResult({"heads.val": SPLIT}, 3, 1, 1, 1, {"heads.test": 2}, {"heads": 3}, "ef"),
    made.TeachersResult({"resnet": NETWORK}),
    made.LabelsResult(("resnet-K0-d1",), ("resnet",), 3, {"resnet-K0-d1": 2.5}, "01"),
    made.SearchResult(
        (made.Trial("t1", {"optim.lr": 0.0123456, "distill.teachers": ["a"]}, True, 3.0, 2, 1.0, 4e5, 1.5),), 1
    ),
    made.StudentResult(NETWORK, TWIN, TrainSpec(), (made.Finalist("finalist-1", {"optim.lr": 0.1}, NETWORK),)),
    made.EvaluateResult(
        (ROW,), (), {"heads": "renderer"}, {"flip": {"kl": 0.5}}, {"heads": (made.Cell(2, 1, 3.0),)}, ASKED
    ),
    made.PublishResult("model/a.onnx", "report/report.html", EXPORTED, {"onnx/megabytes": 1.0}, CHAMPION),
)


def test_every_result_comes_back_as_it_was():
    for result in RESULTS:
        assert build(type(result), json.loads(json.dumps(to_dict(result)))) == result


def test_a_headline_ends_where_there_is_nothing_more_to_say():
    """Without a space a search changes nothing; where all students ask online, no labels are stored."""
    trial = made.Trial("001", {"optim.lr": 0.0123456}, True, 3.0, 2, 1.0)
    two = made.SearchResult((trial, replace(trial, trial="002")), 1)
    assert two.headline() == "best of 2 trials (1 failed) 3.00 with lr=0.0123"
    assert made.SearchResult((replace(trial, changes={}),)).headline() == "best of 1 trial 3.00"
    assert made.LabelsResult((), (), 0, {}, "").headline() == "left out (nobody reads stored labels)"
    assert all(result.headline() == result.headline().strip() for result in RESULTS)


def test_a_row_is_found_by_its_role():
    found = made.EvaluateResult((ROW,), (), {}, {}, {})
    assert found.row(made.Role.DISTILLED) is ROW and found.row(made.Role.DISTILLED, "heads").mae == 3.25


def test_mlflow_hears_how_often_the_intervals_hold_that_were_made_to():
    intervals = (made.Intervals("heads", 0.8, (0.1, 0.2, 0.3), (0.7, 0.8, 0.9)),)
    found = made.EvaluateResult(
        (ROW,), (), {}, {}, {}, None, made.Sureness(Calibration((1.0,) * 3, ((1.0,) * 3,) * 3, 9), intervals, {})
    )
    assert found.metrics() == {"coverage/heads/80": pytest.approx(0.8)}
    assert build(made.EvaluateResult, json.loads(json.dumps(to_dict(found)))) == found


def test_every_headline_and_figure_says_what_the_result_says():
    said = [result.headline() for result in RESULTS]
    assert said[:5] == [
        "heads.val 1 of 3",
        "validation error resnet 3.00",
        "MAE on the training faces resnet-K0-d1 2.50",
        "best of 1 trial (1 failed) 3.00 with lr=0.0123, teachers=['a']",
        "validation error distilled 3.00, hard 4.50 (best of the finalists 3.00)",
    ]
    assert replace(RESULTS[4], finalists=()).headline() == "validation error distilled 3.00, hard 4.50"
    assert replace(RESULTS[3], failed=0).headline().startswith("best of 1 trial 3.00 with")
    assert [result.metrics() for result in RESULTS] == [
        {"heads.val/kept": 1.0, "heads.val/input": 3.0},
        {"resnet/val_error": 3.0},
        {"train_mae/resnet-K0-d1": 2.5},
        {"trials": 1.0, "best_val_error": 3.0},
        {"distilled/val_error": 3.0, "hard/val_error": 4.5},
        {"drift/flip/kl": 0.5},
        {"onnx/megabytes": 1.0},
    ]
    nothing = made.SearchResult()
    assert (nothing.metrics(), nothing.headline(), nothing.best) == ({"trials": 0}, "left out (search.trials=0)", {})
