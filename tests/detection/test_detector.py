"""Laws of the detector: boxes in the picture's own pixels, a dataset that takes them, a fetch that trusts nobody."""

import dataclasses
import hashlib
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hpe_core.datasets import detected
from hpe_core.datasets.base import DatasetError, Rejected
from hpe_core.datasets.detected import MIN_OVERLAP, Detected
from hpe_core.datasets.protocols import matches, protocol_named
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import Sandbox, load_directly
from hpe_core.detection import detector as module
from hpe_core.detection.detector import Detection, FaceDetector, cache_folder, detector_of, drawn_by, fetched
from hpe_core.detection.fit import TO_LANDMARKS
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Box, overlap
from hpe_core.spec.data import CropSpec, DatasetSpec, DetectorSpec
from tests.archives import write_aflw2000
from tests.servers import answering
from workflows.engine.config import load
from workflows.stages.shards import data_leaves

CROP = CropSpec(size=16, margin_px=2)


@pytest.fixture(scope="module")
def yunet(yunet: Path) -> DetectorSpec:
    return DetectorSpec(str(yunet))


@pytest.fixture(scope="module")
def photo(real_data: Path) -> np.ndarray:
    source = open_source(DatasetSpec("aflw2000", root=str(real_data / "aflw2000")))
    return source.load(min(source.refs()))[1]


def test_boxes_are_in_the_pictures_own_pixels_whatever_its_size(yunet, photo):
    find = FaceDetector(yunet)
    (face,) = find(photo)
    assert yunet.min_score < face.score <= 1
    height, width = photo.shape[:2]
    for across, down in ((3.0, 3.0), (0.5, 0.5), (2.0, 1.6)):  # larger than side_px, and stretched
        resized = cv2.resize(photo, (round(width * across), round(height * down)), interpolation=cv2.INTER_AREA)
        (found,) = find(resized)
        expected = Box(face.box.x1 * across, face.box.y1 * down, face.box.x2 * across, face.box.y2 * down)
        assert overlap(found.box, expected) > 0.8
    padded = np.zeros((height + 40, width + 900, 3), np.uint8)  # scaled, and moved
    padded[17 : 17 + height, 533 : 533 + width] = photo
    (moved,) = find(padded)
    assert overlap(moved.box, face.box.moved(533, 17)) > 0.8


def test_the_network_is_shown_every_pixel_of_a_picture_in_its_own_order_of_colours(yunet):
    """A picture is made smaller by means over its pixels: one in four of them would be another picture."""
    find = FaceDetector(yunet)

    class Shown:
        def setInputSize(self, size: tuple[int, int]) -> None:
            assert size == (640, 320)

        def detect(self, image: np.ndarray) -> tuple[int, np.ndarray]:
            assert image.shape == (320, 640, 3)
            assert np.abs(image.astype(int) - (30, 20, 110)).max() <= 1
            return 1, np.array([[64.0, 32, 128, 96, *[0] * 10, 0.75]], np.float32)

    checks = np.full((640, 1280, 3), (10, 20, 30), np.uint8)
    checks[::2, ::2, 0] = checks[1::2, 1::2, 0] = 210
    find._network = Shown()
    assert find(checks) == [Detection(Box(128, 64, 384, 256), 0.75)]


def test_a_file_far_larger_than_a_detector_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    (tmp_path / "film.onnx").write_bytes(bytes(1001))
    with pytest.raises(SpecError, match=r"film.onnx is no YuNet face detector: it has more than 1000 bytes"):
        FaceDetector(DetectorSpec(str(tmp_path / "film.onnx")))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 5000), (5000, 2), (33, 31)])
def test_no_shape_of_a_picture_is_an_error(yunet, shape):
    assert detector_of(yunet)(np.full((*shape, 3), 127, np.uint8)) == []


def test_the_surest_face_comes_first_and_unsure_ones_are_none(yunet, photo):
    beside = np.concatenate([cv2.GaussianBlur(photo, None, 9.0), photo], axis=1)
    scores = [face.score for face in FaceDetector(dataclasses.replace(yunet, min_score=0.3))(beside)]
    assert len(scores) >= 2 and scores == sorted(scores, reverse=True)
    (only,) = FaceDetector(dataclasses.replace(yunet, min_score=scores[0] - 0.01))(beside)
    assert only.score == scores[0] and only.box.center[0] > photo.shape[1]


def test_a_file_that_is_no_detector_is_one_sentence(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 64, 64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "other.onnx")
    (tmp_path / "text.onnx").write_text("a page that says 404")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, said in (("other", "no YuNet"), ("text", "no YuNet"), ("empty", "no YuNet"), ("none", "No such file")):
        with pytest.raises(SpecError, match=said) as caught:
            FaceDetector(DetectorSpec(str(tmp_path / f"{name}.onnx")))
        assert f"{name}.onnx" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"model": ""}, "no value"), ({"min_score": 1.0}, "less than 1"), ({"side_px": 8}, "at least 64")],
)
def test_settings_are_checked(keys, said):
    with pytest.raises(SpecError, match=said):
        DetectorSpec(**{"model": "yunet.onnx", **keys})


GOOD = b"the bytes of a detector" * 1000


@pytest.fixture
def site() -> Iterator[str]:
    def answer(path: str) -> tuple[int, bytes, int]:
        body = {"/page.onnx": b"<html>sign in</html>", "/gone.onnx": b""}.get(path, GOOD)
        sent = body[: len(body) // 2] if path == "/half.onnx" else body
        return (404 if path == "/gone.onnx" else 200), sent, len(body)

    with answering(answer) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_fetched_file_is_kept_and_not_fetched_again(site, tmp_path):
    sha = hashlib.sha256(GOOD).hexdigest()
    path = fetched(f"{site}/good.onnx", sha, tmp_path / "cache")
    assert path.read_bytes() == GOOD and list(path.parent.iterdir()) == [path]
    path.rename(path.with_name("gone.onnx"))
    assert fetched(f"{site}/gone.onnx", sha, path.parent).read_bytes() == GOOD  # the site would say 404
    path.write_bytes(GOOD[:99])  # damaged in the cache: fetched again
    assert fetched(f"{site}/good.onnx", sha, path.parent).read_bytes() == GOOD


@pytest.mark.parametrize(
    ("name", "said"), [("page", "not the face detector that was tested"), ("half", "broke off"), ("gone", "404")]
)
def test_what_is_not_the_tested_file_leaves_nothing_behind(site, tmp_path, name, said):
    with pytest.raises(SpecError, match=said) as caught:
        fetched(f"{site}/{name}.onnx", hashlib.sha256(GOOD).hexdigest(), tmp_path / "cache")
    assert f"{name}.onnx" in str(caught.value) and not list(tmp_path.rglob("*.onnx*"))


def test_without_a_network_the_sentence_says_what_to_do(tmp_path):
    with pytest.raises(SpecError, match="refused; give its file by path"):
        fetched("http://127.0.0.1:9/yunet.onnx", "0" * 64, tmp_path)


def test_the_word_fetch_means_the_file_that_was_tested(yunet, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_download", lambda url: pytest.fail("the cache holds it"))
    cache_folder().mkdir()
    shutil.copy(yunet.model, cache_folder() / module.URL.rpartition("/")[2])
    assert drawn_by(DetectorSpec("fetch")) == drawn_by(yunet) == f"yunet {module.SHA256[:12]}"
    assert FaceDetector(DetectorSpec("fetch"))(np.zeros((70, 70, 3), np.uint8)) == []


def archive(root: Path) -> DatasetSpec:
    write_aflw2000(root, "image00000")
    return DatasetSpec("aflw2000", root=str(root))


def test_a_face_takes_the_detection_that_is_its_own(tmp_path, monkeypatch):
    spec = archive(tmp_path)
    plain = open_source(spec)
    (ref,) = plain.refs()
    own, image = plain.load(ref)
    near, far = own.box.moved(0.2 * own.box.width, 0), own.box.moved(0.9 * own.box.width, 0)
    assert overlap(far, own.box) < MIN_OVERLAP < overlap(near, own.box)
    source = open_source(dataclasses.replace(spec, detector=DetectorSpec("unused.onnx")))
    assert isinstance(source, Detected) and source.reader.risky and list(source.refs()) == [ref]

    def finds(*boxes: Box) -> None:
        faces = [Detection(box, 0.9 - 0.1 * i) for i, box in enumerate(boxes)]
        monkeypatch.setattr(detected, "detector_of", lambda spec: lambda image: faces)

    finds(far, near)
    fitted = open_source(dataclasses.replace(spec, detector=DetectorSpec("unused.onnx", fit=True)))
    assert fitted.load(ref)[0].box == TO_LANDMARKS.of(near)
    annotation, same = source.load(ref)
    assert annotation.box == near and annotation.pose == own.pose and np.array_equal(same, image)
    assert np.array_equal(annotation.landmarks, own.landmarks)
    for boxes, said in (((), "finds no face"), ((far,), "largest overlap 0.05")):
        finds(*boxes)
        with pytest.raises(Rejected) as caught:
            source.load(ref)
        assert caught.value.reason == "no_box" and said in caught.value.detail and "image00000" in caught.value.detail


def test_every_sampled_face_of_aflw2000_is_found_in_the_sandbox(yunet, real_data):
    spec = DatasetSpec("aflw2000", root=str(real_data / "aflw2000"), detector=yunet)
    source = open_source(spec)
    assert len(pickle.dumps(source)) < 2000
    with Sandbox(source, CROP) as sandbox:
        faces = list(sandbox.load_many(sorted(source.refs())))
    assert len(faces) == 39 and not [face.detail for face in faces if isinstance(face, Rejected)]


def test_most_faces_of_pointing04_and_of_rendered_heads_are_found(yunet, real_data):
    """Profiles and bowed heads included; what is not found is no_box and nothing else."""
    pointing = DatasetSpec("pointing04", root=str(real_data / "pointing04"), detector=yunet)
    for spec, wanted in ((pointing, 0.95), (DatasetSpec("synthetic", count=40, detector=yunet), 0.75)):
        source = open_source(spec)
        refs = sorted(source.refs())
        faces = list(load_directly(source, CROP, refs[:: max(1, len(refs) // 40)]))
        lost = [face.reason for face in faces if isinstance(face, Rejected)]
        assert set(lost) <= {"no_box"} and 1 - len(lost) / len(faces) >= wanted


def test_shards_follow_the_detectors_bytes_and_settings_not_its_place(tmp_path):
    dataset, spec = archive(tmp_path / "a"), load(["demo"])

    def leaves(detector: DetectorSpec | None) -> dict[str, object]:
        datasets = {"it": dataclasses.replace(dataset, detector=detector)}
        data = dataclasses.replace(spec.data, datasets=datasets, train=("it",), test=("it",))
        return data_leaves(dataclasses.replace(spec, data=data), ["it"])

    files = {name: tmp_path / f"{name}.onnx" for name in ("first", "copy", "other")}
    for name, file in files.items():
        file.write_bytes(b"2" if name == "other" else b"1")
    first, copy, other = (DetectorSpec(str(file)) for file in files.values())
    assert leaves(first) == leaves(copy)
    changes = [None, other, dataclasses.replace(first, side_px=320), dataclasses.replace(first, min_score=0.7)]
    changes.append(dataclasses.replace(first, fit=True))
    assert all(leaves(first) != leaves(changed) for changed in changes)
    files["first"].unlink()
    with pytest.raises(DatasetError, match=r"dataset 'it': the detector's file .*first.onnx cannot be read"):
        leaves(first)


def test_a_protocol_names_the_detector_by_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("HPE_DATA", str(tmp_path))
    protocol, data = protocol_named("pointing04-people"), load(["pointing04"]).data
    assert matches(protocol, data) == []
    (tmp_path / "yunet.onnx").write_bytes(b"weights")
    (name,) = data.train
    dataset = dataclasses.replace(data.datasets[name], detector=DetectorSpec(str(tmp_path / "yunet.onnx")))
    (said,) = matches(protocol, dataclasses.replace(data, datasets=data.datasets | {name: dataset}))
    drawn = f"yunet {hashlib.sha256(b'weights').hexdigest()[:12]}"
    assert said == f"who draws the boxes of data.datasets.{name} is {drawn}, in pointing04-people it is archive"
    same = dataclasses.replace(protocol, boxes=dataclasses.replace(protocol.boxes, source=drawn))
    assert matches(same, dataclasses.replace(data, datasets=data.datasets | {name: dataset})) == []
    assert drawn_by(dataclasses.replace(dataset.detector, fit=True)) == f"{drawn} fitted"


def test_the_key_is_absolute_checked_and_excludes_a_file_of_boxes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "over.yaml").write_text("data: {datasets: {wild: {reader: aflw2000, root: a}}}\n")
    files, key = ["demo", "over.yaml"], "data.datasets.wild"

    def detector(*overrides: str) -> DetectorSpec | None:
        return load(files, overrides).data.datasets["wild"].detector

    assert detector() is None
    found = detector(f"{key}.detector.model=yunet.onnx", f"{key}.detector.side_px=320")
    assert found == DetectorSpec(str(tmp_path / "yunet.onnx"), side_px=320)
    assert detector(f"{key}.detector.model=fetch") == DetectorSpec("fetch")
    for overrides, said in (
        ([f"{key}.detector.modle=yunet.onnx"], "did you mean 'model'"),
        ([f"{key}.detector.side_px=320"], "detector.model is missing"),
        ([f"{key}.detector.model=y.onnx", f"{key}.boxes=b.json"], "drop one"),
    ):
        with pytest.raises(SpecError, match=said):
            detector(*overrides)
