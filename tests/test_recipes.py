"""Recipes, whole, on few faces and a CPU: EHPNet's with its own networks, and fine-tuning of what ships."""

import json
import sys
from dataclasses import astuple

import pytest

from hpe_core.datasets.registry import open_source
from hpe_core.geometry.crop import encoded
from hpe_core.networks.checkpoint import load_net
from hpe_core.spec.data import DatasetSpec
from tests.road import call, environment, sound
from workflows.engine.config import load


def test_the_small_ehpnet_trains_the_recipes_own_networks(monkeypatch, tmp_path):
    monkeypatch.setenv("HPE_DATA", str(tmp_path))
    full, small = load(["conf/ehpnet.yaml"]), load(["conf/scale/ehpnet.yaml"])
    assert {name: teacher.net for name, teacher in full.teachers.items()} == {
        name: teacher.net for name, teacher in small.teachers.items()
    }
    assert full.student.net == small.student.net and full.data.crop == small.data.crop


def test_the_small_mnn_trains_the_recipes_own_networks(monkeypatch, tmp_path):
    monkeypatch.setenv("HPE_DATA", str(tmp_path))
    full, small = load(["conf/mnn.yaml"]), load(["conf/scale/mnn.yaml"])
    assert full.teachers["mnn"].net == small.teachers["mnn"].net and full.teachers["mnn"].net.landmarks
    assert full.student.net == small.student.net and full.data.crop == small.data.crop


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ehpnet_runs_with_its_own_teachers_and_student(tmp_path):
    command = [sys.executable, "workflows/full_pipeline.py", "--json", "-c", "conf/scale/ehpnet.yaml"]
    words = [f"store={tmp_path}", "cluster.address=local", "mlflow.uri=none"]
    done = sound(call([*command, *words], environment()))
    rows = {row["name"]: row for row in json.loads(done.out)}
    for name, backbone in (("resnet101", "resnet101"), ("botnet101", "botnet101"), ("res2net101", "res2net101_26w_4s")):
        (folder,) = tmp_path.glob(f"teachers/*/{name}")
        net = load_net(folder).net
        assert net.spec.backbone == backbone and net.size == 112 and net.form.count == 62
        assert rows[name]["parameters"] == net.parameter_count()
    assert rows["distilled"]["parameters"] < 0.3 * rows["resnet101"]["parameters"]
    assert all(0 < row["mae"] < 120 for row in rows.values())


@pytest.mark.ray
@pytest.mark.longer
def test_a_table_of_pictures_fine_tunes_the_shipped_networks(tmp_path):
    """One epoch at a rate that changes nothing: whoever did not begin with the shipped weights would know no pose."""
    source = open_source(DatasetSpec("synthetic", seed=77, count=40, image_px=112, heads_per_person=1))
    lines = ["path,pitch,yaw,roll,x1,y1,x2,y2,split"]
    for place, ref in enumerate(source.refs()):
        face, image = source.load(ref)
        box, name = face.known_box(), f"{place}.png"
        (tmp_path / name).write_bytes(encoded(image))
        split = ("train", "train", "val", "test")[place % 4]
        lines.append(",".join([name, *(f"{number:.3f}" for number in (*face.pose, *astuple(box))), split]))
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    slow = [f"{who}.optim.{key}" for who in ("teachers.teacher", "student") for key in ("epochs=1", "lr=1e-9")]
    slow += [f"{who}.optim.warmup_epochs=0" for who in ("teachers.teacher", "student")]
    command = [sys.executable, "workflows/full_pipeline.py", "--json", "-c", "conf/finetune.yaml", *slow]
    words = [f"store={tmp_path / 'runs'}", "cluster.address=local", "mlflow.uri=none"]
    done = sound(call([*command, *words], environment() | {"HPE_DATA": str(tmp_path)}))
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert all(rows[name]["mae"] < 12 for name in ("teacher", "distilled", "hard")), rows
    [card] = tmp_path.glob("runs/publish/*/model/README.md")
    assert "the student began with" in card.read_text()
