"""Laws of the table predictor and the latency table, on one exported network."""

import importlib.util

import cv2
import numpy as np
import pandas
import pytest
import torch

from hpe_core.errors import SpecError
from hpe_core.networks.checkpoint import load_net
from hpe_core.predictor import HeadPosePredictor
from hpe_core.pyfunc import COLUMNS, CORNERS, ONNX_FILE, TablePredictor
from tests.faces import CROP, head, noise, save_untrained, write_onnx
from workflows.export.runtimes import EAGER, ONNX, ONNX_INT8, OPENVINO, calls, latency_table


def png(index: int) -> bytes:
    done, encoded = cv2.imencode(".png", cv2.cvtColor(head(index).image, cv2.COLOR_RGB2BGR))
    assert done
    return encoded.tobytes()


def test_a_row_is_the_predictors_answer_for_its_picture_and_box(exported_net, tmp_path):
    (tmp_path / "face.png").write_bytes(png(1))
    box = head(0).box
    corners = dict(zip(CORNERS, (box.x1, box.y1, box.x2, box.y2), strict=True))
    rows = [{"image": png(0), **corners}, {"path": str(tmp_path / "face.png")}]
    found = TablePredictor(exported_net / ONNX_FILE).predict(pandas.DataFrame(rows, index=[7, 3]))
    assert tuple(found.columns) == COLUMNS and list(found.index) == [7, 3]
    predictor = HeadPosePredictor.load(exported_net / ONNX_FILE)
    for row, (picture, box_of_row) in enumerate([(head(0).image, box), (head(1).image, (0, 0, 64, 64))]):
        expected = np.concatenate(predictor.predict(picture, [box_of_row]), axis=1)
        np.testing.assert_allclose(found.iloc[row].to_numpy(float), expected[0], atol=1e-4)
    assert TablePredictor(exported_net / ONNX_FILE).predict(pandas.DataFrame({"image": []})).shape == (0, len(COLUMNS))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"path": "none.jpg"}, "row 1: none.jpg cannot be read"),
        ({"image": png(0)[:300]}, "row 1: the picture is cut off"),
        ({"image": png(0), "path": "face.png"}, "row 1: either 'image'"),
        ({"x1": 3.0}, "row 1: either 'image'"),
        ({"image": png(0), "x1": 3.0}, "row 1: a box needs all of x1, y1, x2, y2"),
        ({"image": png(0), "x1": 9.0, "y1": 9.0, "x2": 9.0, "y2": 20.0}, "row 1: box .* is thinner than a pixel"),
    ],
)
def test_a_bad_row_is_named(exported_net, row, said):
    with pytest.raises(SpecError, match=said):
        TablePredictor(exported_net / ONNX_FILE).predict(pandas.DataFrame([{"image": png(0)}, row]))


@pytest.mark.parametrize("count", [1, 64, 65, 131])
def test_every_window_has_its_own_answer_however_many_there_are(tmp_path, count):
    for path in (save_untrained(tmp_path / "net"), write_onnx(tmp_path / ONNX_FILE)):
        predictor, faces = HeadPosePredictor.load(path), noise(count, seed=3)
        found = predictor.predict_windows(faces)
        assert found.angles.shape == found.spread.shape == (count, 3)
        for place in {0, count // 2, count - 1}:
            alone = predictor.predict_windows(faces[place : place + 1])
            np.testing.assert_allclose(found.angles[place], alone.angles[0], atol=1e-3)


def test_a_table_without_pictures_is_no_empty_answer(exported_net):
    with pytest.raises(SpecError, match="neither a column 'image' nor 'path'"):
        TablePredictor(exported_net / ONNX_FILE).predict(pandas.DataFrame())


def test_the_latency_table_has_every_runtime_that_is_here_and_they_agree(exported_net):
    before = torch.get_num_threads()
    table = latency_table(exported_net, exported_net / ONNX_FILE, exported_net / ONNX_FILE)
    assert torch.get_num_threads() == before, "the measurement's thread is not everybody's"
    here = [OPENVINO] if importlib.util.find_spec("openvino") else []
    assert list(table) == [EAGER, ONNX, ONNX_INT8, *here]
    assert all(0 < row["batch 1"] < row["batch 32"] for row in table.values())
    images = np.random.default_rng(0).integers(0, 256, (5, CROP.size, CROP.size, 3), dtype=np.uint8)
    runtimes = calls(load_net(exported_net).net, exported_net / ONNX_FILE, None)
    answers = [np.asarray(call(images)[0]) for call in runtimes.values()]
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], atol=1e-3)
