"""Laws of the exported network: one answer from torch, from ONNX and from the predictor, for any batch size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Box
from hpe_core.geometry.rotation import CONVENTION
from hpe_core.learning.checkpoint import load_net
from hpe_core.predictor import CONTRACT_KEY, HeadPosePredictor, open_session
from hpe_core.render.scene import render_head
from hpe_core.spec.serde import to_dict
from tests.faces import NET_CROP, noise
from workflows.export import onnx_file as export
from workflows.export import parity

REPO = Path(__file__).resolve().parents[2]


def test_parity_is_measured_on_the_given_crops_and_holds_for_other_batch_sizes(exported):
    place, found = exported
    assert found.onnx.parity.crops == 35
    assert found.onnx.parity.worst <= 1e-3 and found.program.parity.worst <= 1e-3
    assert found.onnx.bytes == (place / "student.onnx").stat().st_size
    session = open_session(place / "student.onnx")
    program = torch.export.load(place / "student.pt2").module()
    net = load_net(place).net
    for count in (1, 5, 64):
        images = noise(count, seed=count)
        with torch.inference_mode():
            expected = net.angles(torch.from_numpy(images))
            traced = [part.numpy() for part in program(torch.from_numpy(images))]
        for angles, spread in (session.run(["angles", "spread"], {"images": images}), traced):
            assert angles.shape == spread.shape == (count, 3) and angles.dtype == spread.dtype == np.float32
            np.testing.assert_allclose(angles, expected, atol=1e-3)


def test_an_export_that_differs_is_an_error_and_leaves_no_file(exported_net, tmp_path, monkeypatch):
    import onnx

    traced = torch.export.load(exported_net / "student.pt2")
    monkeypatch.setattr(export, "_traced", lambda network, size: traced)
    monkeypatch.setattr(export, "_graph", lambda program: onnx.load(exported_net / "student.onnx"))
    monkeypatch.setattr(parity, "PARITY_DEG", -1.0)
    with pytest.raises(ValueError, match="ONNX and torch differ by .* degrees"):
        export.export_network(exported_net, tmp_path / "student.onnx", tmp_path / "student.pt2", noise(3))
    assert list(tmp_path.iterdir()) == []


def test_the_file_carries_its_contract_and_nothing_of_this_machine(exported_net):
    import onnx

    model = onnx.load(exported_net / "student.onnx")
    contract = json.loads({entry.key: entry.value for entry in model.metadata_props}[CONTRACT_KEY])
    assert contract["convention"] == CONVENTION and contract["crop"] == to_dict(NET_CROP)
    for name in ("student.onnx", "student.pt2"):
        content = (exported_net / name).read_bytes()
        assert str(REPO).encode() not in content and b"site-packages" not in content, name


def test_torch_and_onnx_predictors_agree(exported_net):
    head = render_head(0, 3, size=160)
    boxes = [head.box, head.box.moved(3.3, -2.7), Box(-20.5, 10.0, 70.25, 130.0)]
    by_torch, by_onnx = (HeadPosePredictor.load(path) for path in (exported_net, exported_net / "student.onnx"))
    assert by_torch.crop == by_onnx.crop == NET_CROP and by_torch.convention == by_onnx.convention == CONVENTION
    first, second = by_torch.predict(head.image, boxes), by_onnx.predict(head.image, boxes)
    np.testing.assert_allclose(first.angles, second.angles, atol=1e-3)
    np.testing.assert_allclose(first.spread, second.spread, atol=1e-3)
    corners = np.array([[box.x1, box.y1, box.x2, box.y2] for box in boxes])
    np.testing.assert_array_equal(by_onnx.predict(head.image, corners).angles, second.angles)
    assert by_onnx.predict(head.image, []).angles.shape == (0, 3)


def test_wrong_input_is_named(exported_net, tmp_path):
    predictor = HeadPosePredictor.load(exported_net / "student.onnx")
    with pytest.raises(ValueError, match="uint8 RGB"):
        predictor.predict(np.zeros((9, 9), np.uint8), [(0, 0, 5, 5)])
    with pytest.raises(ValueError, match="boxes must be"):
        predictor.predict(np.zeros((9, 9, 3), np.uint8), [(0, 0, 5)])
    with pytest.raises(ValueError, match="windows must be"):
        predictor.predict_windows(np.zeros((2, 9, 9, 3), np.uint8))
    (tmp_path / "empty.onnx").write_bytes(b"")
    for absent in (tmp_path / "empty.onnx", tmp_path / "none.onnx", tmp_path):
        with pytest.raises(SpecError, match=absent.name):
            HeadPosePredictor.load(absent)
