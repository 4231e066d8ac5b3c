"""Laws of publishing: the report stands alone and shows every figure, and the registry gets a folder that
loads."""

import base64
import dataclasses
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.data.rows import read_shard, write_shard
from hpe_core.datasets.base import FaceRow
from hpe_core.datasets.protocols import matches, protocol_named
from hpe_core.geometry.crop import canonical_crop
from hpe_core.learning.checkpoint import save_net
from hpe_core.learning.metrics import PoseSums, aligned_summary
from hpe_core.learning.models import PoseNet
from hpe_core.render.scene import render_head
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import EvaluateSpec, MlflowSpec, PipelineSpec, PublishSpec
from hpe_core.spec.training import DistillSpec, TrainSpec
from hpe_core.system.files import write_json
from workflows.engine.results import (
    Cell,
    EvaluateResult,
    LabelsResult,
    NetworkResult,
    PublishResult,
    Results,
    Role,
    Row,
    SearchResult,
    ShardsResult,
    Split,
    StudentResult,
    TeachersResult,
    Trial,
    UnderProtocol,
)
from workflows.engine.stage import StageRun
from workflows.report.build import WORST, paired_gain, read_predictions, section_papers
from workflows.report.html import FIRST, file_name, table, whole_page
from workflows.sharding.accounts import Broken, write_quarantine
from workflows.sharding.quarantine import SHEET
from workflows.stages import publish
from workflows.stages.evaluate import write_predictions
from workflows.tracking.progress import Event, LocalReporter

CROP = CropSpec(size=32, margin_px=4)
TESTS = ("heads", "other <set>")
NETS = {"base": Role.BASE, "second": Role.TEACHER} | {
    role.value: role for role in (Role.HARD, Role.DISTILLED, Role.TEACHERS, Role.OFFSETS, Role.COMBINED)
}


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
        mlflow=MlflowSpec(uri="https://name:secret@mlflow.example"),
        store=str(store),
    )


def write_faces(folder: Path, name: str, split: str, seed: int) -> tuple[list[str], np.ndarray]:
    heads = [render_head(seed, index, size=64) for index in range(14)]
    rows = [FaceRow(h.sample_id, h.group, "", h.pose, canonical_crop(h.image, h.box, CROP)) for h in heads]
    write_shard(folder / f"{name}.{split}" / "part-00000.parquet", rows, CROP, "raw")
    return [head.sample_id for head in heads], np.array([head.pose for head in heads])


def fake_results(spec: PipelineSpec, inputs: dict[str, Path]) -> Results:
    """What the stages before publish leave behind, in their own shapes, without training anything."""
    random = np.random.default_rng(0)
    write_faces(inputs["shards"], "heads", "train", 2)
    write_faces(inputs["shards"], "heads", "val", 3)
    faces = {name: write_faces(inputs["shards"], name, "test", i) for i, name in enumerate(TESTS)}
    ids, truth = ({name: pair[part] for name, pair in faces.items()} for part in (0, 1))
    predictions = {
        net: {test: truth[test] + random.normal(0, 3 + i, truth[test].shape) for test in TESTS}
        for i, net in enumerate(reversed(NETS))
    }
    write_predictions(inputs["evaluate"] / "predictions.parquet", ids, truth, predictions)
    rows = tuple(
        Row(
            test=test,
            name=net,
            role=role,
            what="what it is",
            scores=PoseSums.of(predictions[net][test], truth[test]).summary()
            | aligned_summary(predictions[net][test], truth[test]),
            parameters=4e5,
            latency_ms=3.0,
        )
        for test in TESTS
        for net, role in NETS.items()
    )
    cells = tuple(Cell(k, d, 5.0 - 0.1 * k) for k in range(3) for d in (1, 2))
    history = [{"epoch": e, "train/loss": 9.0 / e, "val/mae": 20.0 / e, "lr": 1e-3} for e in (1, 2, 3)]
    network = NetworkResult.of(history, 1.0)
    twin = dataclasses.replace(network, val_mae=8.9)
    split = Split(16, 14, {"truncated_picture": 1}, {"out_of_range": 1}, (), "0123456789abcdef")
    splits = {f"{name}.test": split for name in TESTS} | {"heads.train": split, "heads.val": split}
    broken = [Broken("heads", "test", "a<b>", "a<b>.jpg", "truncated_picture", "it is cut off " + "x" * 400)]
    write_quarantine(inputs["shards"], broken)
    cv2.imwrite(str(inputs["shards"] / SHEET), np.zeros((40, 60, 3), np.uint8))
    return Results(
        {
            "shards": ShardsResult(splits, 32, 28, 2, 2, {}, {}, "fedcba"),
            "teachers": TeachersResult({"base": network, "second": network}),
            "labels": LabelsResult(("base-K0-d1",), ("base",), 14, {"base-K0-d1": 5.0}, "abc"),
            "search": SearchResult((Trial("a", {"optim.lr": 0.00123}, False, 7.1, 3, 2.0, 4e5, 3.0),)),
            "student": StudentResult(network, twin, spec.student),
            "evaluate": EvaluateResult(
                rows=rows,
                new_people=tuple(
                    dataclasses.replace(row, scores=row.scores | {"n": 7}) for row in rows if row.test == TESTS[0]
                ),
                boxes=dict.fromkeys(TESTS, "renderer"),
                drift={"turn, yaw below 60": {"moved_deg": 1.25, "unmoved_deg": 2.5, "kl": 0.125, "faces": 14}},
                heatmap=dict.fromkeys(TESTS, cells),
            ),
        }
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageRun, PublishResult, list[Event]]:
    store = tmp_path_factory.mktemp("store")
    spec = pipeline_spec(store)
    names = ("shards", "teachers", "labels", "search", "student", "evaluate")
    inputs = {name: store / name / f"hash-of-{name}" for name in names}
    results = fake_results(spec, inputs)
    manifest = {"seconds": 7200.0, "machinery": {"cpus": 3.0, "gpus": 0.5}, "finished": "2030-01-01 00:00:00"}
    for folder in inputs.values():
        write_json(folder / "manifest.json", manifest)
    torch.manual_seed(0)
    save_net(inputs["student"] / "distilled", PoseNet(spec.student.net, CROP.size).eval(), CROP, {})
    events: list[Event] = []
    place, reporter = store / "publish" / "123", LocalReporter(events.append)
    stage = StageRun("publish", "publish/123", spec, place, inputs, {}, results, reporter)
    return stage, publish.run(stage), events


def test_the_report_stands_alone_and_shows_every_figure(published: Any) -> None:
    stage, result, _ = published
    report = stage.folder / result.report
    page = report.read_text()
    pictures = sorted(report.parent.glob("*.png"))
    assert len(pictures) == page.count("<img ") == (6 + WORST) * len(TESTS) + 2 + 2 + 1 + 1
    for picture in pictures:
        assert base64.b64encode(picture.read_bytes()).decode() in page, picture.name
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert re.findall(r"""(?:src|href)=(?!["']?(?:data:|#s))|url\(|@import|<script|<link""", text) == []
    assert [address for address in re.findall(r"https?://\S+", text) if "mlflow.example" not in address] == []
    assert "secret" not in text


def test_the_report_names_what_it_shows(published: Any) -> None:
    stage, result, _ = published
    page = (stage.folder / result.report).read_text()
    for name in (
        "heads",
        "other &lt;set&gt;",
        "fake &amp; small",
        "truncated_picture",
        "0.00123",
        "hash-of-search",
        "a&lt;b&gt;.jpg",
        "0123456789ab",
        '>6.000</td><td data-name="GPU hours">1.000</td>',  # CPU and GPU hours
        '>36.000</td><td data-name="GPU hours">6.000</td>',  # of all six stages
        "heads 0, other &lt;set&gt; 1, base 0, second 0, student 0",
        "7 faces of people who were not trained on",
    ):
        assert name in page, name
    for row in stage.results.evaluate.rows:
        assert f"{row.mae:.2f}" in page
    assert "<set>" not in page and "a<b>" not in page and "x" * 200 not in page
    assert (stage.folder / "report" / f"{file_name('worst_other <set>_1')}.png").is_file()


def test_every_cell_of_a_wide_table_names_its_column() -> None:
    """On a telephone the head is not shown."""
    line = '<tr class="ours"><th>a<small>b</small></th><td>1</td><td>–</td><td class=text>x</td></tr>'
    page = table(["name", "n < 2", "m", "said"], [line])
    assert '<th data-name="name" scope=row>a' in page and '<td data-name="n &lt; 2">1<' in page
    assert '<td data-name="said" class=text>x<' in page and "<th scope=col class=text>said<" in page
    assert "data-name" not in table(["name", "n"], ["<tr><th>a</th><td>1</td></tr>"])
    assert "<table" in table(["name", "n", "m", "said"], [])


def test_a_table_that_is_cut_off_keeps_its_numbers_below_each_other() -> None:
    """As many columns as `FIRST` are left on a telephone; none becomes a card."""
    line = f"<tr><th>a</th>{'<td>9.99</td>' * 7}</tr>"
    page = table(["name", *"abcdefg"], [line], first=True)
    assert 'class="first"' in page and "data-name" not in page and page.count("9.99") == 7
    assert f":nth-child(n + {FIRST + 1})" in whole_page("t", "", []), "the rest is hidden by the style alone"


def test_links_lead_to_the_sections_that_have_a_heading() -> None:
    page = whole_page(
        "t", "<h1>t</h1>", ["<section><h2>A &amp; b</h2>x</section>", "", "<section><h2>C</h2></section>"]
    )
    targets = re.findall(r'<a href="#(\w+)">(.*?)</a>', page)
    assert [name for _, name in targets] == ["A &amp; b", "C"]
    for target, name in targets:
        assert f'<section id="{target}"><h2>{name}</h2>' in page


def test_the_registry_gets_a_folder_that_loads_anywhere(published: Any, tmp_path: Path) -> None:
    import mlflow.pyfunc
    import pandas

    stage, result, events = published
    told = result.registration
    assert (told.name, told.alias) == ("head-pose", "champion")
    assert told.contest[1] == stage.results.student.student.val_mae != 8.9, "the student's error, not its twin's"
    assert all(test in told.description for test in TESTS) and told.summary.startswith("MAE ")
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
    from hpe_core.predictor import HeadPosePredictor

    expected = HeadPosePredictor.load(stage.folder / result.onnx).predict(picture.image, [picture.box])
    for name in ("bytes", "path"):
        degrees = answers.loc[name, ["pitch", "yaw", "roll"]].to_numpy(float)
        np.testing.assert_allclose(degrees, expected.angles[0], atol=1e-4)
    assert list(found.predict(found.input_example).columns) == found.metadata.signature.outputs.input_names()
    int8 = result.exported.int8
    assert result.exported.traced.onnx.parity.crops == 6 and int8.score.faces == 6
    assert int8.calibrated_on == result.figures["int8/calibrated_on"] == 14


def test_a_contest_is_named_after_the_validation_faces_alone(published: Any) -> None:
    """Those of every dataset that is trained on, in any order: whoever was judged on others is no rival."""

    stage, _, _ = published

    def name(train: tuple[str, ...], **changed: str) -> str:
        splits = {
            f"{dataset}.{split}": Split(
                1, 1, {}, {}, (), changed.get(f"{dataset}_{split}", f"{dataset} {split} as it was")
            )
            for dataset in ("a", "b", "c")
            for split in ("train", "val", "test")
        }
        datasets = {dataset: DatasetSpec("synthetic", count=1, seed=i) for i, dataset in enumerate("abc")}
        spec = dataclasses.replace(stage.spec, data=DataSpec(datasets, train, ("c",), CROP))
        shards = dataclasses.replace(stage.results.shards, splits=splits)
        results = Results({**stage.results.found, "shards": shards})
        return publish.contest(dataclasses.replace(stage, spec=spec, results=results))[0]

    before = name(("a", "b"))
    assert before == name(("b", "a")) == name(("a", "b"), a_train="x", a_test="x", c_val="x", c_test="x")
    assert len({before, name(("a", "b"), a_val="x"), name(("a", "b"), b_val="x"), name(("a",)), name(("b",))}) == 5


def test_int8_is_calibrated_on_validation_faces(
    published: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ranges that were set on test faces would make their score look better than it is."""
    stage, _, _ = published
    seen: list[Any] = []

    def quantize(source: Path, target: Path, windows: Any) -> None:
        seen.append(windows)
        target.write_bytes(b"")

    monkeypatch.setattr(publish, "export_network", lambda *words: seen.append(words[-1]))
    monkeypatch.setattr(publish, "write_hub", lambda *_: None)
    monkeypatch.setattr(publish, "latency_table", lambda *_: {})
    monkeypatch.setattr(publish, "quantize_onnx", quantize)
    monkeypatch.setattr(publish, "score_int8", lambda *words: seen.extend(words[2:]))
    asked = PublishSpec(parity_crops=30, calibration_crops=99)
    publish.export_all(
        dataclasses.replace(stage, spec=dataclasses.replace(stage.spec, publish=asked)), tmp_path, tmp_path
    )
    parity, calibration, scored, angles = seen
    tests, val = (
        publish.spread_faces(stage, names, split, 99) for names, split in ((TESTS, "test"), (("heads",), "val"))
    )
    assert tests is not None and val is not None
    np.testing.assert_array_equal(calibration, val.windows)
    np.testing.assert_array_equal(scored, tests.windows)
    np.testing.assert_array_equal(angles, tests.angles)
    np.testing.assert_array_equal(parity, np.concatenate([tests.windows, val.windows[[0, 13]]]))


def test_mlflow_gets_the_students_scores(published: Any) -> None:
    stage, result, _ = published
    mae = {test: stage.results.evaluate.row(Role.DISTILLED, test).mae for test in TESTS}
    assert {test: result.figures[f"{test}/mae"] for test in TESTS} == mae
    assert result.figures["onnx/megabytes"] == result.exported.traced.onnx.bytes / 1e6


def test_faces_are_spread_over_all_rows_and_none_is_taken_twice(published: Any) -> None:
    stage, _, _ = published
    labels = [read_shard(stage.inputs["shards"] / f"{name}.test" / "part-00000.parquet").angles for name in TESTS]
    every = publish.spread_faces(stage, TESTS, "test", 1000)
    assert every is not None and every.windows.shape == (28, CROP.size, CROP.size, 3)
    np.testing.assert_array_equal(every.angles, np.concatenate(labels))
    some = publish.spread_faces(stage, TESTS, "test", 6)
    assert some is not None
    np.testing.assert_array_equal(some.angles, np.concatenate([angles[[0, 6, 13]] for angles in labels]))
    assert publish.spread_faces(stage, TESTS, "test", 0) is None


@given(st.dictionaries(st.text("abcd", min_size=1, max_size=2), st.integers(0, 40), max_size=5), st.integers(-3, 120))
def test_shares_are_fair_and_nothing_that_is_there_is_left_out(sizes: dict[str, int], wanted: int) -> None:
    """A small test set does not make the sample smaller while another has faces to spare."""
    shares = publish.fair_shares(sizes, wanted)
    assert sum(shares.values()) == min(max(0, wanted), sum(sizes.values()))
    assert all(0 <= shares[name] <= size for name, size in sizes.items())
    spare = [shares[name] for name, size in sizes.items() if shares[name] < size]
    assert not spare or max(shares.values()) <= min(spare) + 1


def test_parity_is_measured_on_as_many_crops_as_asked_also_beyond_a_small_test_set(
    published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, _, _ = published
    seen: list[Any] = []

    monkeypatch.setattr(publish, "export_network", lambda *words: seen.append(words[-1]))
    monkeypatch.setattr(publish, "write_hub", lambda *_: None)
    monkeypatch.setattr(publish, "latency_table", lambda *_: {})
    asked = PublishSpec(parity_crops=30, calibration_crops=0)
    publish.export_all(dataclasses.replace(stage, spec=dataclasses.replace(stage.spec, publish=asked)), Path(), Path())
    assert len(seen[0]) == 30, "28 test faces and two of validation"


def test_a_network_that_cannot_be_quantized_names_the_way_out(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, _, _ = published

    def refuses(*_: Any) -> None:
        raise TypeError("no such\noperator")

    monkeypatch.setattr(publish, "quantize_onnx", refuses)
    with pytest.raises(RuntimeError, match="int8: TypeError: no such operator; publish.calibration_crops=0 leaves"):
        publish.export_int8(stage, stage.folder, None)


def test_the_papers_stand_beside_ours_with_a_mark_where_protocols_differ(published: Any) -> None:
    stage, _, _ = published
    assert section_papers(stage) == "", "no protocol was asked for"
    protocol, data = protocol_named("offsets-1"), stage.spec.data
    photos = DatasetSpec("aflw2000", root="/photos")
    data = dataclasses.replace(data, datasets={**data.datasets, "photos": photos}, test=("photos",))
    row = dataclasses.replace(stage.results.evaluate.row(Role.DISTILLED), test="photos")
    evaluated = dataclasses.replace(
        stage.results.evaluate,
        rows=(row,),
        boxes={"photos": "yunet 0123"},
        protocol=UnderProtocol(protocol.name, protocol.hash, tuple(matches(protocol, data))),
    )
    other = dataclasses.replace(
        stage,
        spec=dataclasses.replace(stage.spec, data=data),
        results=Results({**stage.results.found, "evaluate": evaluated}),
    )
    page = section_papers(other)
    assert "Boxes: photos by yunet 0123." in page
    assert protocol.hash in page and "data.crop.size is 32, in offsets-1 it is 224" in page
    ours, *papers = re.findall(r"<tr.*?</tr>", page)[1:]
    assert f"{row.mae:.2f}" in ours and "other protocol" in ours
    same = [line for line in papers if "other protocol" not in line]
    assert same and all("offsets, table" in line for line in same) and len(same) < len(papers)


def test_the_paired_gain_is_the_difference_of_the_table(published: Any) -> None:
    stage, _, _ = published
    predictions = read_predictions(stage.inputs["evaluate"] / "predictions.parquet")
    for test in TESTS:
        hard, distilled = (stage.results.evaluate.row(role, test) for role in (Role.HARD, Role.DISTILLED))
        gain, margin = paired_gain(predictions[test][Role.DISTILLED], predictions[test][Role.HARD])
        assert gain == pytest.approx(hard.mae - distilled.mae, abs=1e-4) and margin > 0
