"""What the doctor says of this machine: packages, store, memory, GPU, networks and published files."""

import os
from collections.abc import Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpe_core.errors import SpecError
from hpe_core.spec.cluster import ClusterSpec
from hpe_core.spec.data import DatasetSpec
from hpe_core.spec.network import MEANING, WEIGHTS
from tests.faces import write_onnx
from workflows import doctor
from workflows.checks import machine, models
from workflows.checks.data import Examined
from workflows.checks.machine import (
    bytes_needed,
    compare_packages,
    look_at_gpu,
    look_at_memory,
    look_at_networks,
    look_at_store,
)
from workflows.checks.models import published_in
from workflows.engine.config import load
from workflows.export import runtimes
from workflows.stages import search, teachers
from workflows.training import jobs


def test_packages_are_compared_with_what_is_asked_for():
    wanted = ["ray[data]>=2.55,<3", "albumentations==2.0.8", "timm>=1", "mlflow>=3.5"]
    good = {"ray": "2.60.0", "albumentations": "2.0.8", "timm": "1.0.31+cpu", "mlflow": "3.17.2"}
    assert compare_packages("3.11.7", ">=3.11", wanted, good).findings == ()
    bad = compare_packages("3.10.2", ">=3.11", wanted, {"ray": "2.56.0", "albumentations": "2.0.9"})
    assert [finding.level for finding in bad.findings] == ["error"] * 3
    said = " ".join(finding.text for finding in bad.findings)
    assert "3.10.2 is too old" in said and "albumentations 2.0.9 is installed; albumentations==2.0.8 is needed" in said
    assert "not installed: timm, mlflow; pip install 'head-pose-distillation[workflows]'" in said
    assert "ray 2.56.0, torch missing" in bad.said


def demo(store: Path, *words: str) -> Any:
    return load(["demo"], [f"store={store}", *words])


def three_teachers(store: Path, *words: str) -> Any:
    third = store / "third.yaml"
    third.write_text("teachers: {efficientnet: {net: {backbone: test_efficientnet}}}")
    return load(["demo", str(third)], [f"store={store}", *words])


def heads(train: int, row_bytes: float) -> Examined:
    return Examined("heads", DatasetSpec("synthetic", count=1), (), splits={"train": train}, row_bytes=row_bytes)


def test_the_store_is_to_be_writable_and_large_enough(tmp_path, monkeypatch):
    assert look_at_store(tmp_path / "not" / "yet", 1e6).findings == () and not (tmp_path / "not").exists()
    assert look_at_store(tmp_path, 1e6).findings == () and list(tmp_path.iterdir()) == []
    assert "are needed" in look_at_store(tmp_path, 1e18).findings[0].text
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=500))
    for run in "abc":
        (tmp_path / "shards" / run / "heads.train").mkdir(parents=True)
        (tmp_path / "shards" / run / "heads.train" / "part-00000.parquet").write_bytes(bytes(1000))
    assert look_at_store(tmp_path, 1500).findings == (), "one run's shards may be taken over"
    assert "are needed" in look_at_store(tmp_path, 1501).findings[0].text, "not those of three runs"
    (tmp_path / "file").write_text("")
    assert "is a file" in look_at_store(tmp_path / "file" / "runs", 1.0).findings[0].text


def test_needed_bytes_are_those_of_rows_and_label_sets(tmp_path):
    spec = demo(tmp_path)
    labels = 1000 * len(spec.label_sets()) * 3 * 66 * 2
    assert spec.student.net.limit_deg == 99 and min(spec.student.net.bin_widths) == 3
    assert bytes_needed(spec, [heads(1000, 500.0)]) == 1000 * 500.0 + labels


def test_rows_are_compared_with_memory_and_with_temporary_files(tmp_path, monkeypatch):
    small, large = heads(10, 1.0), heads(10**9, 1.0)
    assert look_at_memory(demo(tmp_path), [small]).findings == ()
    (finding,) = look_at_memory(demo(tmp_path), [large]).findings
    assert finding.level == "error" and "TMPDIR" in finding.text
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**15))
    assert look_at_memory(demo(tmp_path), [large]).findings[0].level == "warning"
    assert look_at_memory(demo(tmp_path, "data.ingest=ray_data"), [large]).findings == ()

    def said(*words):
        return look_at_memory(three_teachers(tmp_path, *words), [heads(1000, 1.0)]).said.split("; ")[1]

    assert said() == said("cluster.workers=2") == said("search.trials=8"), "they share the rows"
    # Of the widest stage: three teachers, or finalists and their twins.
    for finalists, networks in [(1, 3), (2, 4), (5, 10), (99, 16)]:
        streamed = said("data.ingest=ray_data", f"search.finalists={finalists}", "search.trials=8")
        assert f"streams of {networks} networks" in streamed


def test_a_gpu_that_is_asked_for_has_to_be_there():
    import torch

    asked = look_at_gpu(ClusterSpec(gpus_per_worker=1), joins=False)
    assert bool(asked.findings) != torch.cuda.is_available()
    assert look_at_gpu(ClusterSpec(gpus_per_worker=1), joins=True).findings == ()


def test_networks_that_a_run_would_refuse_are_errors(tmp_path, monkeypatch):
    def unknown(names: Set[str]) -> list[str]:  # what asks timm in a process of its own has a test of its own
        return ["net.backbone 'resnet81' is no timm model"] * ("resnet81" in names)

    monkeypatch.setattr(machine, "unknown_backbones", unknown)
    for files in (machine, jobs):  # a look reads no weights
        monkeypatch.setattr(files, "file_sha256", None, raising=False)
    words = [f"student.net.pretrained={tmp_path / 'no.safetensors'}", f"teachers.resnet.start={tmp_path / 'nobody'}"]
    words += ["teachers.efficientnet.start=shipped/teacher", f"teachers.turned.start={tmp_path}"]
    for name, content in ((WEIGHTS, "none"), (MEANING, '{"net": {"backbone": "test_resnet"}}')):
        (tmp_path / name).write_text(content)
    wrong = three_teachers(tmp_path, "student.net.backbone=resnet81", *words)
    found = look_at_networks(wrong).findings
    assert [one.level for one in found] == ["error"] * 5, "all of them, and each once"
    places = [
        "net.backbone 'resnet81' is no",
        f"teachers.resnet.start: {tmp_path}/nobody does not hold a saved network",
        f"teachers.turned.start: {tmp_path} does not hold a saved network (model.json: 'crop')",
        "teachers.efficientnet.start: shipped/teacher cannot be begun with: its backbone is test_resnet, not test_eff",
        f"student.net.pretrained: there is no weights file {tmp_path}/no.safetensors",
    ]
    assert {place for one in found for place in places if one.text.startswith(place)} == set(places)
    for stage, count in ((teachers, 3), (search, 1)):  # what a run asks before anything is made says the same
        with pytest.raises(SpecError) as caught:
            stage.depends(wrong)
        assert sum(place in str(caught.value) for place in places[1:]) == count
    assert look_at_networks(demo(tmp_path)).findings == ()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A store whose publish stage has finished twice; the older one's file is none."""
    for name in ("b-older", "a-newer"):
        folder = tmp_path / "publish" / name
        (folder / "model").mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        write_onnx(folder / "model" / "student.int8.onnx")
    (tmp_path / "publish" / "b-older" / "model" / "student.int8.onnx").write_bytes(b"")
    os.utime(tmp_path / "publish" / "b-older", (1, 1))
    return tmp_path


@pytest.mark.parametrize(("off", "code"), [(0.4, 0), (1.5, 2), (float("nan"), 2), (None, 0)])
def test_a_published_file_that_openvino_reads_as_another_network_is_an_error(published, monkeypatch, capsys, off, code):
    monkeypatch.setattr(models, "has_openvino", lambda: off is not None)
    monkeypatch.setattr(
        runtimes, "openvino_call", lambda file: lambda faces: [runtimes.onnx_call(file)(faces)[0] + off]
    )
    (file,) = published_in(published)
    assert file.parts[-3] == "a-newer"
    assert doctor.main([f"model={file.parent}"]) == code
    told = capsys.readouterr().out
    assert ("error: model: OpenVINO reads" in told and "run the float file" in told) == (code == 2)
    assert ("0.40 degrees" in told) == (off == 0.4) and ("is not installed" in told) == (off is None)


def test_a_model_that_cannot_be_loaded_is_an_error(published, capsys):
    assert doctor.main([f"model={published / 'publish' / 'b-older' / 'model'}"]) == 2
    assert "error: model: " in capsys.readouterr().out
    assert published_in(published / "publish") == []
