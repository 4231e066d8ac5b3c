"""A recipe of the papers, whole, with its own networks: EHPNet's on a few rendered heads and a CPU."""

import json
import sys

import pytest

from hpe_core.learning.checkpoint import load_net
from tests.test_pipeline import call, environment, sound
from workflows.engine.config import load


@pytest.mark.ray
@pytest.mark.longer
@pytest.mark.timeout(1500)
def test_ehpnet_runs_with_its_own_teachers_and_student(tmp_path, monkeypatch):
    command = [sys.executable, "workflows/full_pipeline.py", "--json", "-c", "conf/scale/ehpnet.yaml"]
    words = [f"store={tmp_path}", "cluster.address=local", "mlflow.uri=none"]
    done = sound(call([*command, *words], environment()))
    rows = {row["name"]: row for row in json.loads(done.out)}
    monkeypatch.setenv("HPE_DATA", str(tmp_path))
    full, small = load(["conf/ehpnet.yaml"]), load(["conf/scale/ehpnet.yaml"])
    assert {name: teacher.net for name, teacher in full.teachers.items()} == {
        name: teacher.net for name, teacher in small.teachers.items()
    }, "the scale overlay trains the recipe's own networks"
    assert full.student.net == small.student.net and full.data.crop == small.data.crop
    for name, backbone in (("resnet101", "resnet101"), ("botnet101", "botnet101"), ("res2net101", "res2net101_26w_4s")):
        (folder,) = tmp_path.glob(f"teachers/*/{name}")
        net = load_net(folder).net
        assert net.spec.backbone == backbone and net.size == 112 and net.main_bins.count == 62
        assert rows[name]["parameters"] == net.parameter_count()
    assert rows["distilled"]["parameters"] < 0.3 * rows["resnet101"]["parameters"]
    assert all(0 < row["mae"] < 120 for row in rows.values())
