"""Laws of publishing: the registry gets a folder that loads, and is told who is compared with whom."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from hpe_core.learning.checkpoint import save_net
from hpe_core.learning.models import PoseNet
from hpe_core.predictor import HeadPosePredictor
from hpe_core.render.scene import render_head
from hpe_core.spec.data import DatasetSpec, DataSpec
from hpe_core.spec.serde import to_dict
from hpe_core.system.files import file_sha256
from tests.report.fakes import CROP, TESTS, finished_run
from workflows.engine.results import PublishResult, Results, Role, Split
from workflows.engine.stage import StageRun
from workflows.report import page
from workflows.report.markdown import escaped
from workflows.report.origin import without_folders
from workflows.stages import publish
from workflows.tracking.progress import Event


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageRun, PublishResult, list[Event]]:
    stage, events = finished_run(tmp_path_factory.mktemp("store"))
    torch.manual_seed(0)
    student = PoseNet(stage.spec.student.net, CROP.size)
    save_net(stage.inputs["student"] / Role.DISTILLED, student.eval(), CROP, {})
    return stage, publish.run(stage), events


def test_the_registry_gets_a_folder_that_loads_anywhere(published, tmp_path):
    import mlflow.pyfunc
    import pandas

    stage, result, events = published
    told = result.registration
    assert (told.name, told.alias) == ("head-pose", "champion")
    assert told.contest[1] == stage.results.student.student.val_error != 8.9, "the student's error, not its twin's"
    assert all(escaped(test) in told.description for test in TESTS) and told.summary.startswith("MAE ")
    source = stage.folder / "model"
    files = {"student.onnx", "student.int8.onnx", "student.pt2", "model.safetensors", "model.json", "README.md"}
    assert files <= {f.name for f in source.iterdir()}
    assert [body for kind, body in events if kind == "say" and "int8: MAE" in body], "the cost of int8 is printed"
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
    assert max(file.stat().st_size for file in library.rglob("*") if file.is_file()) < 100_000


def test_mlflow_gets_the_students_scores(published):
    stage, result, _ = published
    mae = {test: stage.results.evaluate.row(Role.DISTILLED, test).mae for test in TESTS}
    assert {test: result.figures[f"{test}/mae"] for test in TESTS} == mae
    assert result.figures["onnx/megabytes"] == result.exported.traced.onnx.bytes / 1e6


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
