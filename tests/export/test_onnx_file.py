"""Laws of the exported network: one answer from torch, from ONNX and from the predictor, for any batch size."""

import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Box, Image, canonical_crop, window
from hpe_core.geometry.rotation import CONVENTION
from hpe_core.networks.checkpoint import load_net, save_net
from hpe_core.networks.models import PoseNet
from hpe_core.predictor import CONTRACT_KEY, HeadPosePredictor, open_session
from hpe_core.render.scene import render_head
from hpe_core.shipped import STUDENT_FILE
from hpe_core.spec.network import WEIGHTS, NetSpec
from hpe_core.spec.pipeline import ExportSpec
from hpe_core.spec.serde import to_dict
from tests.archives import picture
from tests.faces import CALIBRATION, NET_CROP, noise, save_untrained, windows
from workflows.engine.exported import OLDEST_RUNTIME, TracedNetwork
from workflows.export import onnx_file as export
from workflows.export import parity
from workflows.export.int8 import head_and_decoder, quantize_onnx
from workflows.export.runtimes import deployed, onnx_call, torch_call

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
    monkeypatch.setattr(export, "_graph", lambda program, opset: onnx.load(exported_net / "student.onnx"))
    monkeypatch.setattr(parity, "PARITY_DEG", -1.0)
    with pytest.raises(ValueError, match="ONNX and torch differ by .* degrees"):
        export.export_network(exported_net, tmp_path / "student.onnx", tmp_path / "student.pt2", noise(3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, 1, 17, 32, 33, 34])
@pytest.mark.parametrize("answer", ["angles", "landmarks"])
def test_one_crop_of_which_a_file_says_something_else_is_enough_wherever_it_stands(place, answer):
    crops = noise(35)
    bad = crops[place].tobytes()

    def ours(images: Image) -> list[np.ndarray]:
        angles = images[:, :1, :3, 0].reshape(-1, 3).astype(np.float32) / 4
        return [angles, angles, np.zeros((len(images), 68, 3), np.float32)]

    def theirs(images: Image) -> list[np.ndarray]:
        off = np.array([image.tobytes() == bad for image in images], np.float32)
        angles, spread, marks = ours(images)
        if answer == "angles":
            return [angles + 0.01 * off[:, None] * [0, 1, 0], spread, marks]
        return [angles, spread, marks + 0.02 * off[:, None, None] * [1, 0, 0]]

    assert parity.proved(ours, ours, crops, "itself").worst == 0
    said = {"angles": r"differ by 0\.01 degrees on 35 crops", "landmarks": r"0\.02 pixels apart; 0\.01 is allowed"}
    with pytest.raises(ValueError, match=said[answer]):
        parity.proved(ours, theirs, crops, "ONNX")


def test_a_head_without_any_doubt_has_the_least_spread_in_every_form():
    """A standard deviation of nothing would make a certainty of one answer."""

    class Certain(torch.nn.Module):
        form = SimpleNamespace(spread=lambda answers: 0 * answers, decode=lambda answers: answers)

        def answered(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
            return torch.zeros(len(images), 3), None

    images = torch.from_numpy(noise(2))
    _, spread = deployed(Certain(), CALIBRATION)(images)
    np.testing.assert_allclose(spread.numpy(), CALIBRATION.standard(np.zeros((2, 3))), rtol=1e-6)
    assert (spread > 0).all() and (deployed(Certain())(images)[1] == 0).all(), "as the head says it where nobody knows"


def test_the_file_carries_its_contract_and_nothing_of_this_machine(exported_net):
    import onnx

    model = onnx.load(exported_net / "student.onnx")
    contract = json.loads({entry.key: entry.value for entry in model.metadata_props}[CONTRACT_KEY])
    assert contract["convention"] == CONVENTION and contract["crop"] == to_dict(NET_CROP)
    for name in ("student.onnx", "student.pt2"):
        content = (exported_net / name).read_bytes()
        assert str(REPO).encode() not in content and b"site-packages" not in content, name


class MeanColour(torch.nn.Module):
    """The least network: its angles are the mean red, green and blue of the window."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        colour = images.float().mean((1, 2))
        return colour, colour + 1


def test_the_file_is_of_the_asked_opset_and_of_no_newer_ir_version_than_it_needs(exported, tmp_path):
    import onnx

    place, found = exported
    written = onnx.load(place / "student.onnx")
    assert found.opset == ExportSpec().opset == 18 and written.ir_version == 8, "ONNX Runtime 1.14 refuses more"
    network, images = MeanColour(), noise(5)
    program = export._traced(network, NET_CROP.size)
    model = export._graph(program, max(OLDEST_RUNTIME))
    assert [entry.version for entry in model.opset_import] == [21] and model.ir_version == 10
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    np.testing.assert_allclose(onnx_call(tmp_path / "other.onnx")(images), torch_call(network)(images), atol=1e-3)
    with pytest.raises(ValueError, match="export.opset=17"):  # the exporter would quietly write another one
        export._graph(program, 17)
    for opset in (min(OLDEST_RUNTIME) - 1, max(OLDEST_RUNTIME) + 1):
        with pytest.raises(SpecError, match="opset"):
            ExportSpec(opset)


def test_opencv_runs_the_file(exported_net):
    """It knows no product with a vector. One face at a time: OpenCV 4 errs on more, and says nothing."""
    images = noise(3)
    expected = onnx_call(exported_net / "student.onnx")(images)
    network = cv2.dnn.readNetFromONNX(str(exported_net / "student.onnx"))
    for place in range(len(images)):
        network.setInput(images[place : place + 1])
        for answer, wanted in zip(network.forward(["angles", "spread"]), expected, strict=True):
            np.testing.assert_allclose(answer, wanted[place : place + 1], atol=1e-2)


def test_nothing_in_the_graph_counts_the_rows_of_the_batch(exported_net):
    """OpenVINO 2026.4 loses the first convolution's bias in an int8 file whose pooling does: it was `as_strided`."""
    import onnx

    for file in (STUDENT_FILE, exported_net / "student.onnx"):
        kinds = {node.op_type for node in onnx.load(file).graph.node}
        assert "Conv" in kinds and kinds.isdisjoint({"Shape", "Range", "Gather"})
    net = PoseNet(NetSpec("test_resnet", mirrored=True, looks=(0.75,)), 64).eval()  # its last maps are no single pixel
    steps = {str(node.target) for node in export._traced(deployed(net), net.size).run_decompositions().graph.nodes}
    assert any("convolution" in step for step in steps) and not any("as_strided" in step for step in steps)


ELSEWHERE = """
import sys, numpy as np
images = np.load(sys.argv[1])
if sys.argv[2] == "onnxruntime":
    import onnxruntime
    answers = [onnxruntime.InferenceSession(file).run(["angles"], {"images": images})[0] for file in sys.argv[3:]]
else:
    import openvino
    as_written = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = [openvino.Core().compile_model(file, "CPU", as_written) for file in sys.argv[3:]]
    answers = [one([images])["angles"] for one in compiled]
np.save(sys.argv[1], answers)
"""

IN_NODE = """
const fs = require("fs"), ort = require("onnxruntime-web"), [faces, size, ...files] = process.argv.slice(1);
async function answers() {
  ort.env.wasm.numThreads = 1;
  const images = new ort.Tensor("uint8", new Uint8Array(fs.readFileSync(faces)), [32, +size, +size, 3]), found = [];
  for (const file of files) {
    const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(file)));
    found.push(Array.from((await session.run({ images })).angles.data));
  }
  console.log(JSON.stringify(found));
}
answers();
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.14.0", "latest"])
def test_the_shipped_network_is_the_same_in_a_browsers_runtime(version, tmp_path):
    """Float and int8, in Node, by WebAssembly."""
    if shutil.which("npm") is None:
        pytest.skip("no npm here")
    package = f"onnxruntime-web@{version}"
    done = subprocess.run(["npm", "install", "--prefix", tmp_path, package], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{package}: {done.stderr.strip()[-300:]}")
    faces, files = shipped_files(tmp_path)
    (tmp_path / "faces.bin").write_bytes(faces.tobytes())
    words = ["node", "-e", IN_NODE, str(tmp_path / "faces.bin"), str(faces.shape[1]), *map(str, files)]
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    expect_the_same(np.array(json.loads(said)).reshape(2, -1, 3), faces, files)


@pytest.mark.slow
@pytest.mark.parametrize("packages", [(f"onnxruntime=={OLDEST_RUNTIME[18]}", "onnxruntime<1.16"), ("openvino",)])
def test_the_shipped_network_is_the_same_in_other_runtimes(packages, tmp_path):
    """Float and int8, in an environment of its own with the first of the packages that pip finds for a Python here."""
    faces, files = shipped_files(tmp_path)
    python = environment_with(packages, tmp_path / "env")
    np.save(tmp_path / "faces.npy", faces)
    words = [str(tmp_path / "faces.npy"), packages[0].partition("=")[0], *map(str, files)]
    subprocess.run([python, "-c", ELSEWHERE, *words], check=True)
    expect_the_same(np.load(tmp_path / "faces.npy"), faces, files)


def shipped_files(folder: Path) -> tuple[Image, tuple[Path, Path]]:
    """32 faces, and the shipped network's file with its int8 copy, made by the look of 32 others."""
    net = load_net(STUDENT_FILE.parent)
    heads = [render_head(3, index, size=128) for index in range(64)]
    crops = [canonical_crop(head.image, head.box, net.crop).pixels for head in heads]
    faces = np.ascontiguousarray(window(np.stack(crops), net.crop.size))
    quantize_onnx(STUDENT_FILE, folder / "int8.onnx", faces[:32])
    return faces[32:], (STUDENT_FILE, folder / "int8.onnx")


def expect_the_same(there: np.ndarray, faces: Image, files: Sequence[Path]) -> None:
    plain, small = (onnx_call(file)(faces)[0] for file in files)
    np.testing.assert_allclose(there[0], plain, atol=1e-3)
    assert np.abs(there[1] - small).mean() < 0.5, "rounding, not another network"


def environment_with(packages: Sequence[str], folder: Path) -> Path:
    """A Python that has the first of the packages that any can have. Skips with pip's last words where none can."""
    said = "no Python"
    for package, version in itertools.product(packages, ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")):
        found = shutil.which(f"python{version}")
        if found is None or subprocess.run([found, "-m", "venv", "--clear", folder], capture_output=True).returncode:
            continue
        pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--only-binary=:all:", package, "numpy<2"]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode == 0:
            return folder / "bin" / "python"
        said = done.stderr.strip()
    pytest.skip(f"{' or '.join(packages)}: {said}")


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


def test_spreads_are_multiplied_by_what_validation_faces_said(exported_net, tmp_path):
    """In the file itself, so that whoever runs it has them; and the contract says so."""
    saved, faces = load_net(exported_net), windows(4)
    with torch.inference_mode():
        raw = saved.net.form.spread(saved.net.predict(torch.from_numpy(faces))).numpy()
    for path in (exported_net, exported_net / "student.onnx"):
        predictor = HeadPosePredictor.load(path)
        np.testing.assert_allclose(predictor.predict_windows(faces).spread, raw * CALIBRATION.one_sd, rtol=1e-4)
        assert predictor.calibration == CALIBRATION and not predictor.has_landmarks
    save_net(tmp_path / "bare", saved.net, saved.crop, {})
    bare = HeadPosePredictor.load(tmp_path / "bare")
    assert bare.calibration is None
    np.testing.assert_allclose(bare.predict_windows(faces).spread, raw, rtol=1e-6)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TracedNetwork]:
    """The exported files of a network that looks at a face closely and at its mirror image, and answers landmarks."""
    more = {"mirrored": True, "looks": (0.75,), "landmarks": True, "decoder_width": 8, "decoder_stride": 8}
    folder = save_untrained(tmp_path_factory.mktemp("mirrored"), **more)
    return folder, export.export_network(folder, folder / "student.onnx", folder / "student.pt2")


def test_landmarks_are_in_the_file_of_a_network_that_learnt_them(mirrored):
    import onnx

    place, found = mirrored
    by_torch, by_onnx = HeadPosePredictor.load(place), HeadPosePredictor.load(place / "student.onnx")
    image, boxes = picture(3, 90, 140), [Box(20, 15, 70, 75), Box(-3, 9, 50, 80)]
    marks = by_onnx.landmarks(image, boxes)
    assert marks.shape == (2, 68, 3) and np.ptp(marks[0, :, 0]) > 1
    np.testing.assert_allclose(marks, by_torch.landmarks(image, boxes), atol=1e-2)
    np.testing.assert_allclose(by_onnx.predict(image, boxes).angles, by_torch.predict(image, boxes).angles, atol=1e-3)
    assert found.onnx.parity.landmarks_px is not None and found.program.parity.landmarks_px is not None
    graph = onnx.load(place / "student.onnx").graph
    kept = set(head_and_decoder(graph))
    product = [node for node in graph.node if node.op_type == "Gemm"][-1]
    heads = [node.name for node in graph.node if product.input[1] in node.input]
    last = [node.name for node in graph.node if node.op_type == "Softmax"][-1]
    assert len(heads) == 2 and kept.issuperset([*heads, last]), "with integers inside, the head stays float"
    assert not kept.intersection(node.name for node in graph.node if node.op_type == "Conv")


def test_a_network_of_several_passes_is_quantized_as_its_plain_form_is(mirrored, tmp_path):
    """Passes of the same weights: they are stored once, and the integers cost what they cost the plain file."""
    place, _ = mirrored
    file, small, faces = place / "student.onnx", tmp_path / "int8.onnx", windows(24)
    quantize_onnx(file, small, faces)
    assert file.stat().st_size < 1.2 * (place / WEIGHTS).stat().st_size
    with torch.inference_mode():
        expected = load_net(place).net.angles(torch.from_numpy(faces)).numpy()
    plain, moved = (HeadPosePredictor.load(each).predict_windows(faces).angles for each in (file, small))
    np.testing.assert_allclose(plain, expected, atol=1e-3)
    flipped = HeadPosePredictor.load(small).predict_windows(np.ascontiguousarray(faces[:, :, ::-1])).angles
    assert np.abs(flipped * (1, -1, -1) - moved).mean() < 0.2, "each pass has ranges of its own"
    assert 0 < np.abs(moved - plain).mean() < 0.5


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        ("{no JSON", "that cannot be read"),
        ("[]", "that cannot be read"),
        ("{}", "that cannot be read"),
        ({"crop": {"size": "x"}}, "that cannot be used: size is 'x'; a whole number is needed"),
        ({"crop": None}, "that cannot be used: "),
        ({"detector_fit": 3}, "that cannot be used: "),
        ({"version": 9}, None),
        (None, None),
    ],
)
def test_a_contract_that_is_none_is_one_sentence_that_names_the_file(tmp_path, contract, said):
    import onnx

    path, model = tmp_path / "a.onnx", onnx.load(STUDENT_FILE)
    (entry,) = [entry for entry in model.metadata_props if entry.key == CONTRACT_KEY]
    if contract is None:
        model.metadata_props.remove(entry)
    else:
        entry.value = contract if isinstance(contract, str) else json.dumps(json.loads(entry.value) | contract)
    onnx.save(model, path)
    with pytest.raises(SpecError) as caught:
        HeadPosePredictor.load(path)
    expected = f"{path} carries a crop contract {said}" if said else f"{path} (has contract version 9|carries no crop)"
    assert re.match(re.escape(expected) if said else expected, str(caught.value)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", bytes(500), b"<html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_onnx_is_one_sentence(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(SpecError, match=r"a.onnx cannot be loaded as an ONNX file: [^\[\n]*$"):
        HeadPosePredictor.load(tmp_path / "a.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("pipe.onnx", "gone.onnx", "."):
        with pytest.raises(SpecError):
            HeadPosePredictor.load(tmp_path / name)


@pytest.mark.parametrize("none", [[], (), np.array([]), np.zeros((0, 4)), np.zeros((0, 0)), np.zeros((0, 4, 1), int)])
def test_of_no_boxes_there_are_no_poses(exported_net, none):
    for path in (exported_net / "student.onnx", exported_net):
        found = HeadPosePredictor.load(path).predict(np.zeros((9, 9, 3), np.uint8), none)
        assert found.angles.shape == found.spread.shape == (0, 3)


def test_wrong_input_is_named(exported_net, tmp_path):
    predictor = HeadPosePredictor.load(exported_net / "student.onnx")
    with pytest.raises(ValueError, match="uint8 RGB"):
        predictor.predict(np.zeros((9, 9), np.uint8), [(0, 0, 5, 5)])
    for boxes in ([(0, 0, 5)], [0, 0, 5, 5], np.zeros((3, 0)), 7.0):
        with pytest.raises(ValueError, match="boxes must be"):
            predictor.predict(np.zeros((9, 9, 3), np.uint8), boxes)
    with pytest.raises(ValueError, match="windows must be"):
        predictor.predict_windows(np.zeros((2, 9, 9, 3), np.uint8))
    (tmp_path / "empty.onnx").write_bytes(b"")
    for absent in (tmp_path / "empty.onnx", tmp_path / "none.onnx", tmp_path):
        with pytest.raises(SpecError, match=absent.name):
            HeadPosePredictor.load(absent)
