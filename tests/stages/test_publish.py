"""Laws of publishing: the registry gets a folder that loads, and is told who is compared with whom."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from hpe_core.geometry.crop import canonical_crop, window
from hpe_core.networks.checkpoint import load_net, save_net
from hpe_core.networks.models import PoseNet
from hpe_core.predictor import HeadPosePredictor
from hpe_core.render.scene import render_head
from hpe_core.spec.data import DatasetSpec, DataSpec
from hpe_core.spec.pipeline import student_with
from hpe_core.spec.serde import to_dict
from hpe_core.system.files import file_sha256
from tests.report.fakes import CROP, TESTS, finished_run
from workflows.engine.results import PublishResult, Results, Role, Split
from workflows.engine.stage import StageRun
from workflows.export.model_folder import detector_fit
from workflows.report import page
from workflows.report.markdown import escaped
from workflows.report.origin import without_folders
from workflows.stages import publish
from workflows.tracking.progress import Event

TIGHT = dataclasses.replace(CROP, box_scale=0.87)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageRun, PublishResult, list[Event]]:
    """Of a student whose backbone the search chose, in tighter boxes than the datasets'."""
    stage, events = finished_run(tmp_path_factory.mktemp("store"))
    chosen = student_with(stage.spec.student, {"net.backbone": "test_byobnet"})
    student = dataclasses.replace(stage.results.student, spec=chosen)
    stage = dataclasses.replace(stage, results=Results({**stage.results.found, "student": student}))
    torch.manual_seed(0)
    network = PoseNet(chosen.net, CROP.size)
    save_net(stage.inputs["student"] / Role.DISTILLED, network.eval(), TIGHT, {})
    return stage, publish.run(stage), events


def test_the_registry_gets_a_folder_that_loads_anywhere(published, tmp_path):
    import mlflow.pyfunc
    import pandas

    stage, result, events = published
    told = result.registration
    assert (told.name, told.alias) == ("head-pose", "champion")
    assert told.contest[1] == stage.results.student.student.val_error != 8.9, "the student's error, not its twin's"
    assert all(escaped(test) in told.description for test in TESTS)
    assert told.summary == f"MAE {stage.results.evaluate.row(Role.DISTILLED).mae:.2f}"
    assert told.tags["backbone"] == "test_byobnet" and (stage.folder / told.tags["report"]).is_file()
    source = stage.folder / "model"
    files = {"student.onnx", "student.int8.onnx", "student.pt2", "model.safetensors", "model.json", "README.md"}
    assert files <= {f.name for f in source.iterdir()}
    assert [text for kind, (text, *_) in events if kind == "say" and "int8: MAE" in text], "the cost of int8 is printed"
    picture = render_head(9, 1, size=64)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR))
    assert done
    (tmp_path / "face.png").write_bytes(encoded.tobytes())
    box = dict(zip(("x1", "y1", "x2", "y2"), map(float, vars(picture.box).values()), strict=True))
    rows = [{"image": encoded.tobytes(), **box}, {"path": str(tmp_path / "face.png"), **box}]
    found = mlflow.pyfunc.load_model(str(source))
    answers = found.predict(pandas.DataFrame(rows, index=["bytes", "path"]))
    expected = HeadPosePredictor.load(stage.folder / result.onnx).predict(picture.image, [picture.box])
    for name in ("bytes", "path"):
        degrees = answers.loc[name, ["pitch", "yaw", "roll"]].to_numpy(float)
        np.testing.assert_allclose(degrees, expected.angles[0], atol=1e-4)
    assert list(found.predict(found.input_example).columns) == found.metadata.signature.outputs.input_names()
    int8 = result.exported.int8
    assert result.exported.traced.onnx.parity.crops == 6 and int8.score.faces == 6
    assert int8.calibrated_on == result.figures["int8/calibrated_on"] == 14


def test_every_form_of_the_model_sees_a_box_as_the_network_did_and_knows_what_its_spreads_are_worth(published):
    """Torch, ONNX and integers: the scale of the boxes, a detector's fit, and what validation faces said of spreads."""
    stage, result, _ = published
    model, said = stage.folder / "model", stage.results.evaluate.sureness
    head = render_head(9, 1, size=64)
    saved = load_net(stage.inputs["student"] / Role.DISTILLED)
    crop = canonical_crop(head.image, head.box.scaled(TIGHT.box_scale), CROP).pixels[None]
    with torch.inference_mode():
        answers = saved.net.predict(torch.from_numpy(np.ascontiguousarray(window(crop, CROP.size))))
    spread = saved.net.form.spread(answers).numpy() * said.calibration.one_sd
    for path in (model, model / "student.onnx", model / "student.int8.onnx"):
        predictor = HeadPosePredictor.load(path)
        assert predictor.crop == TIGHT and predictor.calibration == said.calibration
        assert predictor.detector_fit == detector_fit(stage) == result.exported.traced.detector_fit is not None
        if path != model / "student.int8.onnx":
            found = predictor.predict(head.image, [head.box])
            np.testing.assert_allclose(found.angles, saved.net.form.decode(answers).numpy(), atol=1e-2)
            np.testing.assert_allclose(found.spread, spread, rtol=1e-3)
            fitted = predictor.predict(head.image, [head.box], detected=True)
            np.testing.assert_array_equal(
                fitted.angles, predictor.predict(head.image, [predictor.detector_fit.of(head.box)]).angles
            )


def test_a_contest_is_named_after_the_validation_faces_alone(published):
    """Those of every dataset that is trained on, in any order: whoever was judged on others is no rival."""

    stage, _, _ = published

    def name(train: tuple[str, ...], **changed: str) -> str:
        names = [f"{dataset}_{split}" for dataset in "abc" for split in ("train", "val", "test")]
        splits = {each.replace("_", "."): Split(1, 1, {}, {}, (), changed.get(each, each)) for each in names}
        datasets = {dataset: DatasetSpec("synthetic", count=1, seed=i) for i, dataset in enumerate("abc")}
        spec = dataclasses.replace(stage.spec, data=DataSpec(datasets, train, ("c",), CROP))
        shards = dataclasses.replace(stage.results.shards, splits=splits)
        results = Results({**stage.results.found, "shards": shards})
        return publish.contest(dataclasses.replace(stage, spec=spec, results=results))[0]

    before = name(("a", "b"))
    assert before == name(("b", "a")) == name(("a", "b"), a_train="x", a_test="x", c_val="x", c_test="x")
    assert len({before, name(("a", "b"), a_val="x"), name(("a", "b"), b_val="x"), name(("a",)), name(("b",))}) == 5


def test_a_receipt_says_what_the_model_was_made_of_and_not_where(published):
    stage, _, _ = published
    model = stage.folder / "model"
    said = json.loads((model / publish.RECEIPT_FILE).read_text())
    assert {"student.onnx", "model.safetensors", "README.md"} <= set(said["files"])
    assert said["files"] == {name: file_sha256(model / name) for name in said["files"]}
    assert {test: row["mae"] for test, row in said["scores"].items()} == {
        test: stage.results.evaluate.row(Role.DISTILLED, test).mae for test in TESTS
    }
    assert said["configuration"]["student"] == without_folders(to_dict(stage.results.student.spec))
    assert not {"store", "mlflow", "cluster"} & set(said["configuration"])
    assert str(stage.spec.folder.parent) not in json.dumps(said)
    hidden = ["/home/me/y", "s3://bucket/y", "http://me:secret@host/y", "sqlite:////home/me/y", "file:///me/y", "~/y"]
    assert without_folders({"a": [*hidden, "b/c", 3], "d": "http://me:secret@host"}) == {
        "a": ["y"] * len(hidden) + ["b/c", 3],
        "d": "host",
    }


def test_a_published_folder_carries_no_data_of_the_library(published):
    """Megabytes that no answer needs."""
    library = published[0].folder / "model" / "code" / "hpe_core"
    assert (library / "predictor.py").is_file() and (library / "shipped" / "__init__.py").is_file()
    for file in (path for path in library.rglob("*") if path.is_file()):
        file.read_text("utf-8")  # weights and the anatomy are no text


def test_mlflow_gets_the_students_scores(published):
    stage, result, _ = published
    mae = {test: stage.results.evaluate.row(Role.DISTILLED, test).mae for test in TESTS}
    assert {test: result.figures[f"{test}/mae"] for test in TESTS} == mae
    onnx, latency = result.exported.traced.onnx, result.exported.latency_ms["ONNX Runtime"]
    assert result.figures["onnx/megabytes"] == onnx.bytes / 1e6
    assert {name: result.figures[f"onnx/parity_{name}_deg"] for name in onnx.parity.angles} == onnx.parity.angles
    assert [result.figures[f"onnx/latency_batch_{count}_ms"] for count in (1, 32)] == [*latency.values()]


def test_other_words_on_a_page_publish_anew(published, monkeypatch, tmp_path):
    """Templates are no code, so the code's hash does not see them."""
    stage, _, _ = published
    before = publish.depends(stage.spec)
    assert before == publish.depends(stage.spec)
    shutil.copytree(page.TEMPLATES, tmp_path / "templates")
    monkeypatch.setattr(page, "TEMPLATES", tmp_path / "templates")
    assert before == publish.depends(stage.spec)
    with (tmp_path / "templates" / "samples.html.j2").open("a") as template:
        template.write("more")
    assert before != publish.depends(stage.spec)
