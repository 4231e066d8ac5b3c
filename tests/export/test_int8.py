"""Laws of the int8 file: same contract, float head and decoder, a cost that is the difference of two scores."""

from pathlib import Path

import numpy as np
import pytest

from hpe_core.data.batch import FaceData
from hpe_core.data.rows import read_shard, write_shard
from hpe_core.datasets.base import FaceRow
from hpe_core.geometry.crop import canonical_crop, window
from hpe_core.networks.checkpoint import save_net
from hpe_core.predictor import HeadPosePredictor
from hpe_core.render.scene import render_head
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import AugmentSpec, OptimSpec, TrainSpec
from hpe_core.training.loop import fit
from tests.faces import NET_CROP, face_row, windows
from workflows.engine.exported import Int8
from workflows.export.faces import Faces
from workflows.export.int8 import head_and_decoder, quantize_onnx, score_int8
from workflows.export.onnx_file import export_network
from workflows.report.text import int8_sentence


@pytest.fixture(scope="module")
def files(exported_net: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Float and int8 file of one network."""
    small = tmp_path_factory.mktemp("int8") / "int8.onnx"
    quantize_onnx(exported_net / "student.onnx", small, windows(24))
    return exported_net / "student.onnx", small


def test_the_predictor_loads_the_int8_file_as_the_float_one(files):
    plain, small = (HeadPosePredictor.load(file) for file in files)
    assert small.crop == plain.crop == NET_CROP and small.convention == plain.convention
    faces = windows(9, first=24)
    before, after = plain.predict_windows(faces).angles, small.predict_windows(faces).angles
    spread_of_faces = before.std(0).mean()
    gap = np.abs(before - after).mean()
    assert 0 < gap < 0.3 * spread_of_faces, "int8 tells faces apart as float does, and is not float"
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size


def test_head_and_decoder_stay_float(files):
    import onnx

    plain, small = (onnx.load(file).graph for file in files)
    kept = set(head_and_decoder(plain))
    assert {"Softmax", "Gemm"} <= {node.op_type for node in plain.node if node.name in kept}
    made_by = {name: node for node in small.node for name in node.output}
    kinds = {"Conv": set[bool](), "Gemm": set[bool]()}
    for node in small.node:
        if node.op_type in kinds:
            sources = [made_by[name].op_type for name in node.input[:2] if name in made_by]
            kinds[node.op_type].add("DequantizeLinear" in sources)
    assert kinds == {"Conv": {True}, "Gemm": {False}}


def test_the_cost_is_the_difference_of_the_scores_and_nothing_for_the_same_file(files):
    truth = np.array([face_row(24 + i).pose for i in range(9)], np.float32)
    faces = Faces(windows(9, first=24), truth, np.array([*"aabbccdde"]))
    found = score_int8(*files, faces)
    assert found.cost_deg == pytest.approx(found.mae - found.float_mae) and found.faces == 9
    turned = score_int8(*files, faces._replace(angles=truth + 360))
    assert turned.float_mae == pytest.approx(found.float_mae, abs=1e-4), "errors are circular"
    truth[:4, 1] = 150
    ahead, some = score_int8(*files, Faces(*(column[4:] for column in faces))), score_int8(*files, faces)
    assert some == ahead and some.faces == 5, "no Euler angle of a head from behind is compared"
    alone = score_int8(*files, faces._replace(groups=np.arange(9).astype(str)))
    assert alone.margin_deg != some.margin_deg and alone.cost_deg == some.cost_deg, "people count"
    same = score_int8(files[0], files[0], faces)
    assert same.cost_deg == same.moved_deg == same.margin_deg == 0


@pytest.mark.parametrize(("apart", "warned"), [(None, False), (0.2, False), (3.0, True), (float("nan"), True)])
def test_the_card_warns_of_a_file_that_openvino_reads_as_another_network(apart, warned):
    said = int8_sentence(Int8(1000, 24, None, apart))
    assert ("do not run this file in OpenVINO" in said) == warned and ("OpenVINO" in said) == (apart is not None)


# Indices of heads; a person has six, so none is in two.
SPANS = {"train": (0, 2220), "val": (2220, 2520), "test": (2520, 3000)}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_int8_costs_a_trained_resnet18_at_most_a_twentieth_of_a_degree(tmp_path):
    """Eight minutes on a shared core: rendering, six epochs, and the cost on faces of other people."""
    crop = CropSpec(size=64, margin_px=6)
    files = {name: write(tmp_path / name, crop, *span) for name, span in SPANS.items()}
    optim = OptimSpec(epochs=6, batch_size=32, warmup_epochs=1, ema_decay=0.99)
    augment = AugmentSpec(flip=0.5, turn_deg=10, jitter_px=4)
    spec = TrainSpec(NetSpec("resnet18"), optim, augment, mse_weight=0.01)
    net = fit(spec, crop, FaceData(files["train"]), FaceData(files["val"]), on_epoch=lambda end: None)
    save_net(tmp_path, net.eval(), crop, {})
    export_network(tmp_path, tmp_path / "student.onnx", tmp_path / "student.pt2")
    (val,), (test,) = ([read_shard(file) for file in files[name]] for name in ("val", "test"))
    quantize_onnx(tmp_path / "student.onnx", tmp_path / "int8.onnx", window(val.images, crop.size))
    faces = Faces(np.ascontiguousarray(window(test.images, crop.size)), test.angles, np.array(test.groups))
    found = score_int8(tmp_path / "student.onnx", tmp_path / "int8.onnx", faces)
    print(found)
    assert found.float_mae < 12, "a network that has learnt nothing costs nothing"
    assert found.cost_deg <= 0.05


def write(folder: Path, crop: CropSpec, first: int, last: int) -> list[Path]:
    rows = []
    for index in range(first, last):
        head = render_head(1, index, size=112, heads_per_person=6)
        pixels = canonical_crop(head.image, head.box, crop)
        rows.append(FaceRow(head.sample_id, head.group, "", head.pose, pixels))
    write_shard(folder / "part-00000.parquet", rows, crop, "raw")
    return [folder / "part-00000.parquet"]
