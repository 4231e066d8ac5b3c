"""Laws of the whole command on faces that lie, on people in videos, and on what it says of them."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from hpe_core.datasets.registry import open_source
from hpe_core.detection.detector import Detection
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Box, canonical_crop, fault_of
from hpe_core.geometry.rotation import ANGLE_NAMES, euler_to_matrix, geodesic_deg, turn
from hpe_core.learning.calibration import confidence
from hpe_core.networks.checkpoint import save_net
from hpe_core.networks.models import PoseNet
from hpe_core.predictor import HeadPosePredictor
from hpe_core.spec.data import CropSpec, DatasetSpec
from hpe_core.spec.network import NetSpec
from tests.archives import picture
from tests.faces import FIT, NOTES
from tests.prediction.media.clips import write_clip
from workflows import predict
from workflows.engine.config import guarded
from workflows.prediction.faces import Face, landmarks_of, poses_of, why_unusable
from workflows.prediction.keys import PredictSpec
from workflows.prediction.media.frames import Frame
from workflows.prediction.output import TABLE, landmark_text


@pytest.fixture(scope="module")
def predictor() -> HeadPosePredictor:
    return HeadPosePredictor.load(threads=1)


def table(out: str = "poses") -> list[dict[str, str]]:
    with open(Path(out) / TABLE, newline="") as stream:
        return list(csv.DictReader(stream))


def angles(row: dict[str, Any]) -> list[float]:
    return [float(row[name]) for name in ANGLE_NAMES]


@pytest.mark.parametrize("quarters", range(4))
def test_a_face_that_lies_has_its_pose_turned_by_the_law_of_rotations(predictor, quarters):
    """Exactly: the network sees the same upright face, and its answer is turned back."""
    image, boxes = picture(3, 90, 140), [Box(20, 15, 70, 75), Box(80, 10, 130, 70)]
    spec = PredictSpec(boxes="whole", box_scale=1.1)
    upright = poses_of(predictor, image, [Face(box) for box in boxes], spec)
    lying = np.ascontiguousarray(np.rot90(image, quarters))  # counter-clockwise: to be turned back clockwise
    faces = [Face(box.turned(-quarters, 140, 90), 0.9, quarters) for box in boxes]
    found = poses_of(predictor, lying, faces, spec)
    expected = turn(upright.angles, -90.0 * quarters)
    assert geodesic_deg(euler_to_matrix(found.angles), euler_to_matrix(expected)).max() < 0.01
    order = [1, 0, 2] if quarters % 2 else [0, 1, 2]
    np.testing.assert_allclose(found.spread, upright.spread[:, order], atol=1e-4)


def photos(real_data: Path, count: int) -> list[tuple[str, np.ndarray]]:
    source = open_source(DatasetSpec("aflw2000", root=str(real_data / "aflw2000")))
    return [(Path(ref.key).stem, source.load(ref)[1]) for ref in sorted(source.refs())[:count]]


def test_photographs_that_lie_have_the_poses_of_those_that_stand(here, real_data, yunet, capsys):
    for name, image in photos(real_data, 2):
        for quarters in range(4):
            cv2.imwrite(f"{name}-{quarters}.png", np.rot90(image, quarters)[..., ::-1])
    words = [str(path) for path in sorted(here.glob("*.png"))]
    assert predict.main([*words, f"detector={yunet}", "turns=4", "draw=false"]) == 0
    assert "turns=4 looks" not in capsys.readouterr().err
    rows = table()
    assert [row["file"] for row in rows] == [Path(word).name for word in words]  # each once
    for start in (0, 4):
        for quarters in range(1, 4):
            expected = turn(angles(rows[start]), -90.0 * quarters)
            found = angles(rows[start + quarters])
            assert float(geodesic_deg(euler_to_matrix(found), euler_to_matrix(expected))) < 3
            box = Box(*(float(rows[start + quarters][name]) for name in ("x1", "y1", "x2", "y2")))
            back = box.turned(quarters, 450, 450)
            assert back.center == pytest.approx([float(rows[start][a]) / 2 + float(rows[start][b]) / 2
                                                 for a, b in (("x1", "x2"), ("y1", "y2"))], abs=4)  # fmt: skip


def test_without_the_key_a_note_says_that_a_face_lies_and_none_says_so_of_upright_ones(here, real_data, yunet, capsys):
    for name, image in photos(real_data, 3):
        cv2.imwrite(f"{name}.png", image[..., ::-1])
    assert predict.main([".", f"detector={yunet}", "draw=false"]) == 0
    assert "lie" not in capsys.readouterr().err.replace("model", "")
    for name, image in photos(real_data, 3):
        cv2.imwrite(f"{name}.png", np.rot90(image, 2)[..., ::-1])
    assert predict.main([".", f"detector={yunet}", "draw=false"]) == 0
    told = capsys.readouterr().err
    assert told.count("seems to lie upside down") == 1 and "turns=4" in told  # once


def test_of_a_panorama_small_faces_are_found_and_it_is_said_once(here, real_data, yunet, capsys):
    (name, image), *_ = photos(real_data, 1)
    wide = np.full((700, 5600, 3), 128, np.uint8)
    for x in (40, 3000, 5400):
        wide[300:420, x : x + 120] = cv2.resize(image, (120, 120), interpolation=cv2.INTER_AREA)
    for number in range(2):
        cv2.imwrite(f"{name}-{number}.png", wide[..., ::-1])
    assert predict.main([".", f"detector={yunet}", "draw=false"]) == 0
    assert len(table()) == 6 and capsys.readouterr().err.count("looks at overlapping tiles") == 1
    assert predict.main([".", f"detector={yunet}", "draw=false", "tiles=false"]) == 0
    assert len(table()) == 0


def test_rows_of_a_video_know_their_person_and_are_smoothed_if_that_is_wanted(here, capsys):
    write_clip(here / "a.mp4", "libx264", [0, 40, 80, 120, 160, 1200])
    for smooth in (0, 0.5):
        assert predict.main(["a.mp4", "boxes=whole", f"smooth={smooth}", "draw=false", f"out=out{smooth}"]) == 0
    plain, smoothed = table("out0"), table("out0.5")
    assert [row["track"] for row in plain] == ["0"] * 6 and [row["seconds"] for row in plain][-1] == "1.2"
    assert angles(plain[0]) == angles(smoothed[0])
    moved = [np.abs(np.diff([angles(row) for row in rows[:5]], axis=0)).sum() for rows in (plain, smoothed)]
    assert moved[1] < 0.7 * moved[0]
    capsys.readouterr()
    assert predict.main(["a.mp4", "boxes=whole", "draw=false", "--json", "frames=2"]) == 0
    assert [json.loads(line)["track"] for line in capsys.readouterr().out.splitlines()] == [0, 0]
    cv2.imwrite("a.png", picture(0))
    with pytest.raises(SpecError, match="smooth is for a video"):
        predict.main(["a.png", "boxes=whole", "smooth=1"])
    assert predict.main(["a.png", "boxes=whole", "draw=false"]) == 0 and "track" not in table()[0]


def test_the_library_refuses_a_box_that_the_picture_does_not_show_by_the_rule_of_the_shards(predictor):
    image = picture(0, 60, 80)
    for box, said in (
        ((500, 10, 560, 70), r"box \(500, 10, 560, 70\) lies outside the 80 x 60 picture"),
        ((79.9, 0, 179.9, 50), r"box \(79.9, 0, 179.9, 50\): only 0.10% of it lies inside"),
        ((10, 10, 10.5, 40), r"box \(10, 10, 10.5, 40\) is thinner than a pixel"),
        ((10, 10, float("nan"), 40), "is not finite"),
    ):
        with pytest.raises(ValueError, match=said):
            predictor.predict(image, [(10, 10, 50, 50), box])
    assert predictor.predict(image, [(-30, -30, 20, 20)]).angles.shape == (1, 3)  # a part of it is shown


def test_a_box_at_the_edge_of_the_rule_is_told_and_is_no_crash(here):
    """As it is the picture shows a little of it, and nothing of it once it has shrunk."""
    cv2.imwrite("a.png", picture(0, 60, 80))
    Path("b.json").write_text(json.dumps({"a.png": [{"bbox": [70, 10, 130, 50]}, {"bbox": [10, 10, 50, 50]}]}))
    assert predict.main(["a.png", "boxes=b.json", "box_scale=0.3", "draw=false"]) == 2
    assert len(table()) == 1


LONG = "x" * 300
NAMES = [[LONG, "boxes=whole"], ["a.png", f"boxes={LONG}.json"], ["a.png", "boxes=whole", f"model={LONG}.onnx"]]
NAMES += [["a.png", f"detector={LONG}"], ["a.png", "boxes=whole", f"out={LONG}"], ["~nobody9/a.png", "boxes=whole"]]
NAMES += [
    ["a.png", "boxes=whole", "model=~nobody9/a.onnx"],
    ["a.png", "boxes=loop"],
    ["a.png", "boxes=whole", "out=loop"],
]
NAMES += [["a.png", "boxes=pipe.json"], ["a.png", "detector=pipe.json"], ["a.png", "boxes=whole", "model=pipe.json"]]
NAMES += [["a.png", "boxes=."], ["a.png", "detector=."], ["a.png/b.png", "boxes=whole"], ["loop", "boxes=whole"]]


@pytest.mark.parametrize("words", NAMES, ids=lambda words: " ".join(words)[:30])
def test_a_name_that_nothing_can_have_is_one_sentence(here, words, capsys):
    cv2.imwrite("a.png", picture(0))
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe.json")
    assert guarded(lambda: predict.main(words)) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert any(name in said for name in (LONG, "nobody9", "loop", "pipe", "boxes=.", "file .", "a.png/b.png"))


@pytest.fixture
def nobody(here: Path) -> Iterator[None]:
    """Who may not read everything, as the superuser may."""
    superuser = os.geteuid() == 0
    if superuser:
        for folder in (here, *here.parents[:3]):
            folder.chmod(0o777)
        os.seteuid(65_534)
    yield
    if superuser:
        os.seteuid(0)


def test_what_may_not_be_read_is_named(here, nobody, capsys):
    for name in ("in/a.png", "in/b.png", "shut/a.png"):
        (here / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(name, picture(0))
    (here / "in" / "b.png").chmod(0)
    assert guarded(lambda: predict.main(["in", "boxes=whole", "draw=false"])) == 2
    assert "b.png cannot be read: Permission denied" in capsys.readouterr().err and len(table()) == 1
    (here / "shut").chmod(0)
    for word in ("shut", "shut/a.png"):
        assert guarded(lambda word=word: predict.main([word, "boxes=whole"])) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "shut" in said and "Permission denied" in said
    (here / "shut").chmod(0o700)


def test_the_detectors_boxes_are_fitted_also_if_it_is_not_named(here, real_data, yunet):
    ((_, image),) = photos(real_data, 1)
    cv2.imwrite("a.png", image[..., ::-1])
    cache = here / "cache" / "head-pose-distillation" / "yunet_n_dynamic.onnx"
    cache.parent.mkdir(parents=True)
    cache.write_bytes(yunet.read_bytes())
    found = []
    for words in ([f"detector={yunet}"], [], ["fit=false"]):
        assert predict.main(["a.png", "draw=false", *words]) == 0
        found.append(angles(table()[0]))
    assert found[0] == found[1] != found[2]


def test_canonical_crops_of_turned_boxes_are_the_turned_crops(predictor):
    image = picture(5, 90, 140)
    box = Box(20.5, 15.25, 70, 75)
    straight = canonical_crop(image, box, predictor.crop).pixels
    turned = canonical_crop(np.ascontiguousarray(np.rot90(image, -1)), box.turned(1, 140, 90), predictor.crop).pixels
    assert np.abs(np.rot90(straight, -1).astype(int) - turned).max() <= 1


@pytest.fixture(scope="module")
def with_landmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved network that has learnt nothing, and answers landmarks."""
    folder = tmp_path_factory.mktemp("mnn")
    torch.manual_seed(0)
    net = PoseNet(NetSpec("test_byobnet", landmarks=True, decoder_width=8), 32).eval()
    torch.nn.init.normal_(net.decoder.regression[-1].weight, std=0.02)
    save_net(folder, net, CropSpec(32, 4, box_scale=0.87), NOTES)
    return folder


@pytest.mark.parametrize("quarters", range(4))
def test_landmarks_are_in_pixels_of_the_picture_also_of_a_face_that_lies(with_landmarks, quarters):
    predictor = HeadPosePredictor.load(with_landmarks)
    image, box = picture(3, 90, 140), Box(20, 15, 70, 75)
    (upright,) = predictor.landmarks(image, [box])
    assert upright.shape == (68, 3) and predictor.has_landmarks
    window = canonical_crop(image, box, predictor.crop)
    (seen,) = predictor._runner.landmarks(window.pixels[None, 4:-4, 4:-4])
    x, y = window.box.center
    np.testing.assert_allclose(upright[:, 0], seen[:, 0] * window.scale_x + x, atol=1e-3)
    np.testing.assert_allclose(upright[:, 1], seen[:, 1] * window.scale_y + y, atol=1e-3)
    lying = np.ascontiguousarray(np.rot90(image, quarters))
    face = Face(box.turned(-quarters, 140, 90), 0.9, quarters)
    (found,) = landmarks_of(predictor, lying, [face], PredictSpec(boxes="whole"))
    for mark, (x, y, sure) in zip(found, upright, strict=True):
        place = Box(x, y, x, y).turned(-quarters, 140, 90)
        np.testing.assert_allclose(mark, [place.x1, place.y1, sure], atol=0.01)


def test_landmarks_of_a_detected_face_are_those_of_its_fitted_box(with_landmarks):
    """In pixels of the picture, as its pose is that of the fitted box; and unfitted where that is wanted."""
    predictor, image, box = HeadPosePredictor.load(with_landmarks), picture(3, 90, 140), Box(20, 15, 70, 75)
    for keys, own in (({}, FIT.of(box)), ({"fit": False}, box), ({"box_scale": 1.2}, FIT.of(box.scaled(1.2)))):
        spec = PredictSpec(detector="y.onnx", **keys)
        marks = landmarks_of(predictor, image, [Face(box, 0.9)], spec)
        np.testing.assert_allclose(marks, predictor.landmarks(image, [own]), atol=1e-3)
        found = poses_of(predictor, image, [Face(box, 0.9)], spec)
        np.testing.assert_allclose(found.angles, predictor.predict(image, [own]).angles, atol=1e-3)


def test_landmarks_are_told_in_pixels_of_the_file_as_the_box_is():
    """Of a large JPEG the network is shown a smaller picture."""
    frame = Frame("a.jpg", 0, picture(3, 20, 30), scale=4, size=(120, 80))
    marks = np.array([[3.0, 5.0, 0.75], [7.5, 11.25, 0.25]])
    for (x, y, seen), (own_x, own_y, own_seen) in zip(json.loads(landmark_text(frame, marks)), marks, strict=True):
        box = frame.in_file(Box(own_x, own_y, own_x + 1, own_y + 1))
        assert (x, y, seen) == (box.x1, box.y1, own_seen)


def test_landmarks_stand_in_the_table_and_on_the_copy(here, with_landmarks):
    cv2.imwrite("face.png", picture(3, 90, 140))
    assert predict.main(["face.png", "boxes=whole", f"model={with_landmarks}"]) == 0
    (row,) = table()
    marks = np.array(json.loads(row["landmarks"]))
    predictor = HeadPosePredictor.load(with_landmarks)
    image = cv2.cvtColor(cv2.imread("face.png"), cv2.COLOR_BGR2RGB)
    np.testing.assert_allclose(marks, predictor.landmarks(image, [Box(0, 0, 140, 90)])[0], atol=0.01)
    drawn = cv2.imread("poses/face.png")
    assert all((drawn[int(y), int(x)] != cv2.imread("face.png")[int(y), int(x)]).any() for x, y, _ in marks[:5])
    with pytest.raises(ValueError, match="no landmarks"):
        HeadPosePredictor.load(threads=1).landmarks(image, [Box(0, 0, 140, 90)])


def test_faces_of_which_the_network_is_too_unsure_are_dropped_and_counted(here, capsys):
    for number in range(4):
        cv2.imwrite(f"{number}.png", picture(number, 90, 90))
    names = [f"{number}.png" for number in range(4)]
    assert predict.main([*names, "boxes=whole", "draw=false"]) == 0
    sure = {row["file"]: float(row["confidence"]) for row in table()}
    spreads = [[float(row[f"{name}_spread"]) for name in ANGLE_NAMES] for row in table()]
    np.testing.assert_allclose(list(sure.values()), confidence(spreads), atol=2e-4)
    edge = (sorted(sure.values())[1] + sorted(sure.values())[2]) / 2
    assert predict.main([*names, "boxes=whole", "draw=false", f"min_confidence={edge}"]) == 0
    assert {row["file"] for row in table()} == {name for name, value in sure.items() if value >= edge}
    assert "4 pictures, 2 faces, 2 below min_confidence" in capsys.readouterr().out


def test_of_several_faces_in_a_picture_those_that_stay_keep_their_own_figures(here):
    cv2.imwrite("a.png", picture(3, 120, 160))
    boxes = [[10, 10, 60, 60], [40, 30, 110, 100], [80, 5, 150, 75], [5, 50, 70, 115], [60, 60, 120, 120]]
    Path("b.json").write_text(json.dumps({"a.png": [{"bbox": box} for box in boxes]}))
    assert predict.main(["a.png", "boxes=b.json", "draw=false"]) == 0
    every = {(row["x1"], row["y1"]): row for row in table()}
    for edge in sorted(float(row["confidence"]) for row in every.values())[1:]:
        assert predict.main(["a.png", "boxes=b.json", "draw=false", f"min_confidence={edge - 1e-4}"]) == 0
        rows = table()
        assert [row["face"] for row in rows] == [str(place) for place in range(len(rows))] and 0 < len(rows) < 5
        assert all(row == every[row["x1"], row["y1"]] | {"face": row["face"]} for row in rows)


@pytest.mark.parametrize("scale", [0.2, 0.87])
def test_a_box_of_which_a_tighter_network_sees_nothing_is_told_and_never_answered(here, scale):
    """At the edge the picture shows a strip of the box, and none of what the network's window shows of it."""
    torch.manual_seed(0)
    save_net(here / "net", PoseNet(NetSpec("test_byobnet"), 32).eval(), CropSpec(32, 4, box_scale=scale), {})
    image = picture(0, 100, 120)
    cv2.imwrite("a.png", image[..., ::-1])
    inside, shown = Box(10, 10, 60, 60), 0.9 * (1 - scale) / 2
    strip = Box(120 - 50 * shown, 20, 170 - 50 * shown, 70)
    predictor = HeadPosePredictor.load(here / "net")
    assert canonical_crop(image, strip, predictor.crop).pixels[4:-4, 4:-4].max() == 0, "an empty window"
    with pytest.raises(ValueError, match="lies outside"):
        predictor.predict(image, [strip])
    boxes = [{"bbox": [box.x1, box.y1, box.x2, box.y2]} for box in (strip, inside)]
    Path("b.json").write_text(json.dumps({"a.png": boxes}))
    assert predict.main(["a.png", "boxes=b.json", "model=net", "draw=false"]) == 2
    (row,) = table()
    np.testing.assert_allclose(angles(row), predictor.predict(image, [inside]).angles[0], atol=1e-3)


@pytest.mark.parametrize("quarters", range(4))
def test_of_a_detected_face_the_fitted_box_is_judged_in_the_picture_turned_as_it_stands(here, quarters, monkeypatch):
    """At its chin the picture shows a strip of the detector's box, and none of the fitted one, which lies lower."""
    torch.manual_seed(0)
    save_net(here / "net", PoseNet(NetSpec("test_byobnet"), 32).eval(), CropSpec(32, 4, box_scale=0.87), NOTES)
    predictor, spec = HeadPosePredictor.load(here / "net"), PredictSpec(detector="y.onnx", turns=4)
    upright, kept = np.full((100, 120, 3), 255, np.uint8), []
    image = np.ascontiguousarray(np.rot90(upright, quarters))
    for shown in np.linspace(0.5, 40, 80):
        box = Box(30, 100 - shown, 70, 150 - shown)
        face = Face(box.turned(-quarters, 120, 100), 0.9, quarters)
        light = canonical_crop(upright, FIT.of(box), predictor.crop).pixels[4:-4, 4:-4].max()
        why = why_unusable(face, Frame("a.png", 0, image), predictor, spec)
        if why:
            with pytest.raises(ValueError, match=r"lies (outside|inside)"):
                predictor.predict(upright, [box], detected=True)
        else:
            assert light > 0, "a black window is answered"
            poses_of(predictor, image, [face], spec)
            kept.append(shown)
    assert 2 < min(kept) < 10 and len(kept) > 50, "judged by what the network sees, and by no more"
    found = [Detection(Box(30, 100 - shown, 70, 150 - shown).turned(-quarters, 120, 100), 0.9) for shown in (2, 40)]
    looked = [Detection(face.box, face.score, quarters) for face in found]
    monkeypatch.setattr("workflows.prediction.faces.FaceDetector", lambda spec: None)
    monkeypatch.setattr("workflows.prediction.faces.find_faces", lambda *args, **how: looked)
    cv2.imwrite("a.png", image)
    assert predict.main(["a.png", "detector=y.onnx", "turns=4", "model=net", "draw=false"]) == 0 and len(table()) == 1


@pytest.mark.parametrize("edge", ["top", "bottom", "left", "right"])
def test_of_detected_faces_those_are_answered_that_the_library_answers(here, edge):
    """At the forehead the picture may show nothing of the detector's box, and a part of the fitted one."""
    torch.manual_seed(0)
    save_net(here / "net", PoseNet(NetSpec("test_byobnet"), 32).eval(), CropSpec(32, 4), NOTES)
    predictor, spec, image = HeadPosePredictor.load(here / "net"), PredictSpec(detector="y.onnx"), picture(0, 100, 120)
    answered, raw = [], []
    for shown in np.linspace(-12, 12, 97):
        x, y = {"left": (shown - 40, 30), "right": (120 - shown, 30)}.get(edge, (30, 100 - shown))
        box = Box(x, shown - 50 if edge == "top" else y, 0, 0)
        box = Box(box.x1, box.y1, box.x1 + 40, box.y1 + 50)
        said = why_unusable(Face(box, 0.9), Frame("a.png", 0, image), predictor, spec)
        try:
            predictor.predict(image, [box], detected=True)
        except ValueError as error:
            assert said == f"a.png: {error}"
        else:
            assert not said
            answered.append(shown)
            raw += [shown] * (fault_of(box, 120, 100) is not None)
    assert 0 < len(answered) < 97 and bool(raw) == (edge != "bottom")
