"""Laws of the faces by which exported files are judged, and of what happens where one cannot be made."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.data.rows import read_shard
from hpe_core.datasets.registry import fit_to
from hpe_core.detection.fit import DetectorFit
from hpe_core.networks.checkpoint import save_net
from hpe_core.networks.models import PoseNet
from hpe_core.predictor import FIT_NOTE
from hpe_core.spec.data import DatasetSpec, DetectorSpec
from hpe_core.spec.pipeline import PublishSpec
from tests.report.fakes import CROP, TESTS, finished_run
from workflows.engine.results import Results
from workflows.engine.stage import StageRun
from workflows.export import model_folder
from workflows.export.faces import fair_shares, spread_faces


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return finished_run(tmp_path_factory.mktemp("store"))[0]


def test_int8_is_calibrated_on_validation_faces_which_fill_up_those_of_the_parity(stage, monkeypatch, tmp_path):
    """Ranges that were set on test faces would make their score look better than it is. Parity asks for 30 faces:
    28 of the test sets, and two of validation."""
    seen: list[Any] = []

    def quantize(source: Path, target: Path, windows: Any) -> None:
        seen.append(windows)
        target.write_bytes(b"")

    monkeypatch.setattr(model_folder, "export_network", lambda *words: seen.append(words[3]))
    monkeypatch.setattr(model_folder, "write_timm_folder", lambda *_: None)
    monkeypatch.setattr(model_folder, "latency_table", lambda *_: {})
    monkeypatch.setattr(model_folder, "quantize_onnx", quantize)
    monkeypatch.setattr(model_folder, "score_int8", lambda *words: seen.extend(words[2:]))
    asked = PublishSpec(parity_crops=30, calibration_crops=99)
    spec = dataclasses.replace(stage.spec, publish=asked)
    model_folder.export_files(dataclasses.replace(stage, spec=spec), tmp_path, "terms")
    parity, calibration, scored = seen
    shards, size = stage.inputs["shards"], CROP.size
    tests, val = (spread_faces(shards, TESTS, "test", 99, size), spread_faces(shards, ["heads"], "val", 99, size))
    np.testing.assert_array_equal(calibration, val.windows)
    for column, own in zip(scored, tests, strict=True):
        np.testing.assert_array_equal(column, own)
    np.testing.assert_array_equal(parity, np.concatenate([tests.windows, val.windows[[0, 13]]]))


def test_heads_that_are_drawn_are_published_with_the_fit_of_photographs():
    """Whose boxes follow the same rule; what a detector draws, or another archive, keeps its own."""
    heads, photographs = DatasetSpec("synthetic", count=9), DatasetSpec("aflw2000", root="a")
    assert model_folder.fit_on_photographs(heads) == fit_to(photographs) != fit_to(heads)
    detected = dataclasses.replace(heads, detector=DetectorSpec("yunet.onnx"))
    for spec in (photographs, detected, DatasetSpec("pointing04", root="p")):
        assert model_folder.fit_on_photographs(spec) == fit_to(spec)


def test_a_network_that_cannot_be_quantized_names_the_way_out(stage, monkeypatch):
    monkeypatch.setattr(model_folder, "quantize_onnx", Mock(side_effect=TypeError("no such\noperator")))
    with pytest.raises(RuntimeError, match="int8: TypeError: no such operator; publish.calibration_crops=0 leaves"):
        model_folder.export_int8(stage, stage.folder, None)


def test_faces_are_spread_over_all_rows_and_none_is_taken_twice(stage, tmp_path):
    labels = [read_shard(stage.inputs["shards"] / f"{name}.test" / "part-00000.parquet").angles for name in TESTS]
    shards = stage.inputs["shards"]
    every = spread_faces(shards, TESTS, "test", 1000, CROP.size)
    assert every is not None and every.windows.shape == (28, CROP.size, CROP.size, 3)
    np.testing.assert_array_equal(every.angles, np.concatenate(labels))
    some = spread_faces(shards, TESTS, "test", 6, CROP.size)
    np.testing.assert_array_equal(some.angles, np.concatenate([angles[[0, 6, 13]] for angles in labels]))
    assert spread_faces(shards, TESTS, "test", 0, CROP.size) is None
    for number, name in enumerate(TESTS):  # two files of one dataset
        target = tmp_path / "both.test" / f"part-0000{number}.parquet"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(shards / f"{name}.test" / "part-00000.parquet", target)
    both = spread_faces(tmp_path, ["both"], "test", 1000, CROP.size)
    np.testing.assert_array_equal(both.windows, every.windows)


def test_who_was_filmed_twice_is_one_person_of_the_int8_score(stage):
    datasets = {**stage.spec.data.datasets, "heads": DatasetSpec("biwi", root="b")}
    data = dataclasses.replace(stage.spec.data, datasets=datasets)
    groups = np.array(["heads/sequence02", "heads/sequence21", "heads/sequence03", f"{TESTS[1]}/x/y"])
    found = model_folder.people_of(data, groups).tolist()
    assert found == ["heads/person02", "heads/person02", "heads/person03", f"{TESTS[1]}/x/y"]
    filmed = dataclasses.replace(stage, spec=dataclasses.replace(stage.spec, data=data))
    seen = model_folder.faces_of(filmed, "test", 99)
    assert seen is not None and {name.split("/")[1][:6] for name in seen.groups[:14]} == {"person"}


@given(st.dictionaries(st.text("abcd", min_size=1, max_size=2), st.integers(0, 40), max_size=5), st.integers(-3, 120))
def test_shares_are_fair_and_nothing_that_is_there_is_left_out(sizes, wanted):
    """A small test set does not make the sample smaller while another has faces to spare."""
    shares = fair_shares(sizes, wanted)
    assert sum(shares.values()) == min(max(0, wanted), sum(sizes.values()))
    assert all(0 <= shares[name] <= size for name, size in sizes.items())
    spare = [shares[name] for name, size in sizes.items() if shares[name] < size]
    assert not spare or max(shares.values()) <= min(spare) + 1


def test_the_fit_of_several_datasets_is_their_mean_by_the_faces_that_are_learnt_from(stage):
    """Neither those of validation nor those of a test set have a say."""
    archives = {name: DatasetSpec(name, root=name) for name in ("aflw2000", "pointing04")}
    data = dataclasses.replace(stage.spec.data, datasets=archives, train=tuple(archives), test=tuple(archives))
    split = next(iter(stage.results.shards.splits.values()))

    def fit(**kept: int) -> DetectorFit:
        splits = {f"{name}.{part}": split for name in archives for part in ("val", "test")}
        splits |= {f"{name}.train": dataclasses.replace(split, kept=count) for name, count in kept.items()}
        shards = dataclasses.replace(stage.results.shards, splits=splits)
        results = Results({**stage.results.found, "shards": shards})
        spec = dataclasses.replace(stage.spec, data=data)
        return model_folder.detector_fit(dataclasses.replace(stage, spec=spec, results=results))

    first, second = map(fit_to, archives.values())
    assert fit(aflw2000=5, pointing04=0) == first != second == fit(aflw2000=0, pointing04=5)
    mixed = fit(aflw2000=30, pointing04=10)
    assert mixed.width == pytest.approx(first.width**0.75 * second.width**0.25)
    assert mixed.height == pytest.approx(first.height**0.75 * second.height**0.25)
    assert mixed.down == pytest.approx(0.75 * first.down + 0.25 * second.down)


def test_who_was_fine_tuned_on_boxes_of_unknown_kind_keeps_the_fit_that_it_began_with(stage, tmp_path):
    table = {"own": DatasetSpec("manifest", root="t")}
    data = dataclasses.replace(stage.spec.data, datasets=table, train=("own",), test=("own",))
    split = next(iter(stage.results.shards.splits.values()))
    shards = dataclasses.replace(stage.results.shards, splits={"own.train": split})
    torch.manual_seed(0)
    net = PoseNet(stage.spec.student.net, CROP.size)
    save_net(tmp_path, net, CROP, {FIT_NOTE: {"width": 1.5, "height": 1.25, "down": 0.1}})

    def fit(start: str) -> DetectorFit | None:
        student = dataclasses.replace(stage.results.student, spec=dataclasses.replace(stage.spec.student, start=start))
        results = Results({**stage.results.found, "shards": shards, "student": student})
        return model_folder.detector_fit(
            dataclasses.replace(stage, spec=dataclasses.replace(stage.spec, data=data), results=results)
        )

    assert fit("") is None and fit(str(tmp_path)) == DetectorFit(1.5, 1.25, 0.1)
