"""Laws of predict: the angles of evaluation, nothing lost to a bad picture, and one sentence for every mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pil
from PIL import ImageOps

from hpe_core.data.rows import read_shard, write_shard
from hpe_core.datasets.base import FaceRow, Source
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.detection.detector import Detection, cache_folder
from hpe_core.errors import SpecError, UserError
from hpe_core.geometry.crop import Box, window
from hpe_core.networks.checkpoint import load_net
from hpe_core.predictor import HeadPosePredictor
from hpe_core.spec.data import DatasetSpec, DetectorSpec
from hpe_core.spec.network import MEANING, WEIGHTS
from tests.archives import picture, write_aflw2000
from tests.faces import FIT, NET_CROP, save_untrained, write_onnx
from tests.prediction.asking import angles, refusal, save, table, write_video
from workflows import predict
from workflows.engine.config import REPO, load
from workflows.prediction.media.pictures import turned
from workflows.prediction.output import TABLE
from workflows.prediction.resolve import loadable, model_files


def evaluated(source: Source, folder: Path, net: Path) -> dict[str, np.ndarray]:
    """File -> angles, the way of the stages: crops into a shard, its windows through the saved network."""
    import torch

    rows = [face for face in load_directly(source, NET_CROP, sorted(source.refs())) if isinstance(face, FaceRow)]
    write_shard(folder / "part-00000.parquet", rows, NET_CROP, "raw")
    shard = read_shard(folder / "part-00000.parquet")
    with torch.inference_mode():
        found = load_net(net).net.angles(window(torch.from_numpy(shard.images.copy()), NET_CROP.size)).numpy()
    return dict(zip(shard.paths, found, strict=True))


def check_against_evaluation(root: Path, net: Path, faces: int) -> None:
    source = open_source(DatasetSpec("aflw2000", root=str(root)))
    own = {ref.key: source.load(ref)[0].box for ref in source.refs()}
    entries = {key: [{"bbox": [box.x1, box.y1, box.x2, box.y2], "type": "test"}] for key, box in own.items()}
    Path("boxes.json").write_text(json.dumps(entries))
    expected = evaluated(source, Path("shards"), net)
    assert predict.main([str(root), f"model={net}", "boxes=boxes.json", "draw=false"]) == 0
    rows = table()
    assert [row["file"] for row in rows] == sorted(expected) and len(rows) == faces
    assert np.ptp(angles(rows), axis=0).min() > 0.5  # a network that says the same of every face would prove nothing
    np.testing.assert_allclose(angles(rows), np.array([expected[row["file"]] for row in rows]), atol=1e-3)


def test_angles_are_those_of_evaluation(here, net):
    for i in range(5):
        write_aflw2000(here / "a", f"image{i:05d}", seed=i)
    check_against_evaluation(here / "a", net, 5)


def test_angles_are_those_of_evaluation_on_aflw2000(here, net, real_data):
    check_against_evaluation(real_data / "aflw2000", net, 39)


def test_a_box_scale_is_the_box_grown(here, onnx):
    save(here / "a.png", picture(1))
    small, grown = [30.0, 40.0, 70.0, 90.0], [20.0, 27.5, 80.0, 102.5]
    for name, box in (("small", small), ("grown", grown)):
        Path(f"{name}.json").write_text(json.dumps({"a.png": [{"bbox": box}]}))
    predict.main(["a.png", onnx, "boxes=small.json", "box_scale=1.5", "out=one"])
    predict.main(["a.png", onnx, "boxes=grown.json", "out=two"])
    one, two = table(Path("one")), table(Path("two"))
    np.testing.assert_array_equal(angles(one), angles(two))
    assert float(one[0]["x1"]) == 30.0 and float(two[0]["x1"]) == 20.0  # the box as it was found


def test_neither_torch_nor_ray_nor_mlflow_is_imported_for_an_onnx_file(here, onnx):
    save(here / "a.png", picture(1))
    code = (
        "import sys\nfrom workflows.predict import main\n"
        f"assert main(['a.png', {onnx!r}, 'boxes=whole', '--json']) == 0\n"
        "print(sorted({'torch', 'timm', 'pyarrow', 'ray', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    )
    how = {"capture_output": True, "text": True, "env": {"PYTHONPATH": str(REPO)}, "check": True}
    done = subprocess.run([sys.executable, "-c", code], **how)
    row, loaded = done.stdout.splitlines()
    assert loaded == "[]" and json.loads(row)["file"] == "a.png" and "1 picture, 1 face" in done.stderr


def test_a_bad_picture_is_named_and_counted_and_the_others_go_on(here, onnx, capsys):
    for i, name in enumerate(("a.jpg", "sub/b.png", "z.bmp")):
        save(here / "in" / name, picture(i))
    whole = (here / "in" / "a.jpg").read_bytes()
    (here / "in" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (here / "in" / "page.jpg").write_text("<html>not found</html>")
    (here / "in" / "gone.png").symlink_to(here / "nowhere.png")
    (here / "in" / "notes.txt").write_text("no picture, and no business of ours")
    assert predict.main(["in", onnx, "boxes=whole"]) == 2
    said = capsys.readouterr()
    assert {row["file"] for row in table()} == {"a.jpg", "sub/b.png", "z.bmp"}
    for name in ("cut.jpg is cut off", "page.jpg is not a picture", "gone.png cannot be read"):
        assert name in said.err
    assert "3 pictures, 3 faces, 3 unusable" in said.out and "pictures/s" in said.out
    drawn = {str(path.relative_to("poses")) for path in Path("poses").rglob("*") if path.is_file()}
    assert drawn == {"a.jpg", "sub/b.png", "z.bmp", TABLE}


def test_drawn_copies_differ_by_the_axes_and_nothing_else(here, onnx):
    image = np.full((90, 200, 3), 100, np.uint8)
    save(here / "a.png", image)
    Path("b.json").write_text(json.dumps({"a.png": [{"bbox": [10, 10, 60, 60]}, {"bbox": [120, 20, 170, 80]}]}))
    assert predict.main(["a.png", onnx, "boxes=b.json"]) == 0
    changed = (cv2.imread("poses/a.png")[..., ::-1] != image).any(2)
    assert changed[20:50, 20:50].any() and changed[30:70, 130:160].any() and not changed[:, 75:105].any()
    assert [row["face"] for row in table()] == ["0", "1"] and table()[0]["score"] == ""


def test_an_earlier_run_is_not_looked_at_and_no_picture_is_written_over_itself(here, onnx):
    save(here / "in" / "a.png", picture(0))
    before = (here / "in" / "a.png").read_bytes()
    for _ in range(2):
        assert predict.main(["in", onnx, "boxes=whole", "out=in/poses"]) == 0
        assert [row["file"] for row in table(Path("in/poses"))] == ["a.png"]
    assert "would be written over" in refusal("in/a.png", onnx, "boxes=whole", "out=in")
    save(here / "other" / "a.png", picture(1))
    assert predict.main(["in/a.png", "in/a.png", onnx, "boxes=whole"]) == 0 and len(table()) == 1  # named twice
    assert "both be written as" in refusal("in/a.png", "other/a.png", onnx, "boxes=whole")
    assert (here / "in" / "a.png").read_bytes() == before


def test_where_nothing_is_drawn_no_copy_is_in_the_way(here, onnx):
    """The table may lie beside its pictures, and a picture beside one that is named like its copy."""
    for name in ("a.png", "b.gif.jpg"):
        save(here / name, picture(0))
    Pil.fromarray(picture(1)).save("b.gif")
    write_video(here / "in.mp4", frames=2)
    for words in (["a.png", "out=."], ["in.mp4", "out=."], ["b.gif", "b.gif.jpg"]):
        assert "written" in refusal(*words, onnx, "boxes=whole")
        assert predict.main([*words, onnx, "boxes=whole", "draw=false"]) == 0
    assert [row["file"] for row in table()] == ["b.gif", "b.gif.jpg"]
    save(here / "other" / "a.png", picture(1))
    assert "both be written as" in refusal("a.png", "other/a.png", onnx, "boxes=whole", "draw=false")


def test_boxes_that_are_none_are_told_and_pictures_without_one_are_counted(here, onnx, capsys):
    for name in ("a.png", "b.png", "c.png"):
        save(here / "in" / name, picture(0))
    boxes = {"a.png": [{"bbox": [9, 9, 80, 80]}, {"bbox": [500, 9, 580, 80]}], "b.png": []}
    Path("b.json").write_text(json.dumps(boxes))
    assert predict.main(["in", onnx, "boxes=b.json"]) == 2
    said = capsys.readouterr()
    assert "a.png: box (500, 9, 580, 80) lies outside" in said.err
    assert "3 pictures, 1 face, 2 without a face, 1 unusable" in said.out
    assert Path("poses/c.png").is_file()  # seen, and nothing was on it


@pytest.mark.parametrize("way", range(9))
def test_upright_is_what_exif_means(way):
    image = picture(3, 20, 30)
    held = Pil.fromarray(image)
    held.getexif()[0x0112] = way
    np.testing.assert_array_equal(turned(image, way), np.asarray(ImageOps.exif_transpose(held)))


def test_a_picture_lies_upright_unless_boxes_refer_to_the_stored_pixels(here, onnx):
    image = picture(4, 60, 100)
    exif = Pil.Exif()
    exif[0x0112] = 6
    Pil.fromarray(image).save("phone.png", exif=exif)
    Pil.fromarray(np.rot90(image, -1)).save("turned.png")
    Pil.fromarray(image).save("stored.png")
    Path("b.json").write_text(json.dumps({n: [{"bbox": [0, 0, 100, 60]}] for n in ("phone.png", "stored.png")}))
    predict.main(["phone.png", "turned.png", onnx, "boxes=whole", "out=up"])
    predict.main(["phone.png", "stored.png", onnx, "boxes=b.json", "out=as_stored"])
    (up, turned), (phone, stored) = angles(table(Path("up"))), angles(table(Path("as_stored")))
    np.testing.assert_array_equal(up, turned)
    np.testing.assert_array_equal(phone, stored)
    assert np.abs(up - phone).max() > 0.1 and cv2.imread("up/phone.png").shape == (100, 60, 3)


def test_a_folder_s_other_files_are_counted_by_their_endings(here, onnx, capsys):
    save(here / "in" / "a.png", picture(0))
    for name in ("b.MP4", "c.mp4", "deeper/notes.txt", "README", ".hidden"):
        (here / "in" / name).parent.mkdir(exist_ok=True)
        (here / "in" / name).write_text("x")
    for _ in range(2):  # what the first run wrote is none of them
        assert predict.main(["in", onnx, "boxes=whole", "out=in/poses"]) == 0
        assert "no pictures that are read: 2 .mp4, 1 .txt, 1 none" in capsys.readouterr().err


class Finds:
    """Stands in for YuNet: one face, always there."""

    def __init__(self, spec: DetectorSpec) -> None:
        self.box = Box(30.0, 40.0, 70.0, 90.0)

    def __call__(self, image: np.ndarray) -> list[Detection]:
        return [Detection(self.box, 0.9)]


def test_a_detected_box_becomes_such_as_the_network_was_taught_with(here, net, monkeypatch):
    """The angles of the fitted box, of the saved network and of its ONNX file alike; the table keeps the found one."""
    monkeypatch.setattr("workflows.prediction.faces.FaceDetector", Finds)
    save(here / "a.png", picture(1))
    fitted = FIT.of(Finds(DetectorSpec("y.onnx")).box)
    Path("b.json").write_text(json.dumps({"a.png": [{"bbox": [fitted.x1, fitted.y1, fitted.x2, fitted.y2]}]}))
    by_model = []
    for file in ("student.onnx", "model.safetensors"):
        model = f"model={net / file}"
        ways = {"found": ["detector=y.onnx"], "raw": ["detector=y.onnx", "fit=false"], "annotated": ["boxes=b.json"]}
        for out, words in ways.items():
            assert predict.main(["a.png", model, *words, f"out={out}"]) == 0
        found, raw, annotated = (table(Path(out))[0] for out in ways)
        assert float(found["x1"]) == 30.0 and float(found["y2"]) == 90.0
        np.testing.assert_allclose(angles([found]), angles([annotated]), atol=1e-3)
        assert np.abs(angles([found]) - angles([raw])).max() > 0.1
        by_model.append(angles([annotated]))
    np.testing.assert_allclose(*by_model, atol=1e-3)
    assert HeadPosePredictor.load(save_untrained(here / "plain", notes={})).detector_fit is None


def test_the_detector_is_asked_as_the_keys_say(here, monkeypatch):
    asked, model = list[DetectorSpec](), f"model={write_onnx(here / 'a.onnx')}"
    monkeypatch.setattr("workflows.prediction.faces.FaceDetector", lambda spec: asked.append(spec) or Finds(spec))
    save(here / "a.png", picture(1))
    for words in ([], ["min_score=0.75", "side_px=320"]):
        assert predict.main(["a.png", model, "detector=y.onnx", "draw=false", *words]) == 0
    assert asked == [DetectorSpec("y.onnx"), DetectorSpec("y.onnx", 0.75, 320)]


def test_faces_of_photographs_are_found_and_an_empty_picture_is_no_error(here, onnx, real_data, yunet, capsys):
    photos = sorted((real_data / "aflw2000").glob("*.jpg"))[:3]
    for path in photos:
        shutil.copyfile(path, here / path.name)
    save(here / "wall.png", np.full((300, 300, 3), 180, np.uint8))
    cached = cache_folder() / "yunet_n_dynamic.onnx"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(yunet.read_bytes() + b"damaged")
    assert "detector=fetch" in refusal(".", onnx), "another file is no detector"
    shutil.copyfile(yunet, cached)  # as detector=fetch leaves it; from then on nothing need be said
    assert predict.main([".", onnx]) == 0
    rows = table()
    assert [row["file"] for row in rows] == [path.name for path in photos]
    assert all(float(row["score"]) > 0.6 and float(row["x2"]) - float(row["x1"]) > 40 for row in rows)
    assert "4 pictures, 3 faces, 1 without a face" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["boxes=whole"], "name a picture"),
        (["a.png", "", "boxes=whole"], "name a picture"),
        (["9" * 30, "boxes=whole"], f"camera {'9' * 30} cannot be opened"),
        (["a.png"], "detector=fetch downloads one, YuNet (0.3 MB), once and for all"),
        (["a.png", "boxes=whole", "detector=y.onnx"], "drop one of them"),
        (["a.png", "detektor=y.onnx"], "did you mean 'detector'"),
        (["a.png", "boxes=whole", "draw=no_thanks"], "allowed: true, false"),
        (["a.png", "boxes=whole", "mlflow.url=x"], "did you mean 'uri'"),
        (["b.png", "boxes=whole"], "there is no b.png; did you mean 'a.png'"),
        (["notes.txt", "boxes=whole"], "no picture by its content or its ending"),
        (["a.png", "in.mp4", "boxes=whole"], "a video is looked at alone"),
        (["a.png", "rtsp://127.0.0.1:1/x", "boxes=whole"], "a stream is looked at alone"),
        (["empty", "boxes=whole"], "holds no picture"),
        (["97", "boxes=whole"], "camera 97 cannot be opened"),
        (["a.png", "detector=none.onnx"], "none.onnx cannot be read"),
        (["a.png", "detector=fech"], "did you mean 'fetch'"),
        (["a.png", "boxes=none.json"], "none.json cannot be read"),
        (["in.mp4", "boxes=none.json"], "in.mp4 needs a detector"),
        (["a.png", "boxes=whole", "model=studnt.onnx"], "there is no such file; did you mean 'student.onnx'"),
        (["a.png", "boxes=whole", "model=empty"], "holds no model"),
        (["a.png", "boxes=whole", "model=notes.txt"], "is no model"),
        (["a.png", "boxes=whole", "model=champion"], "there is no registry"),
        (["a.png", "boxes=whole", "model=Shiped"], "there is no registry"),
        (["a.png", "boxes=whole", "model=Shiped"], "did you mean 'shipped'"),
        (["a.png", "boxes=whole", "model=shipped/techer"], "no network of this package; did you mean 'teacher'"),
        (["a.png", "boxes=whole", "model=champion", "mlflow.uri=none"], "leaves no registry"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(here, words, said):
    save(here / "a.png", picture(0))
    for name in ("notes.txt", "student.onnx"):
        Path(name).write_text("x")
    Path("empty").mkdir()
    if "in.mp4" in words:
        write_video(here / "in.mp4", frames=2)
    assert said in refusal(*words)
    assert not Path("poses").exists()


def test_a_file_that_cannot_be_written_is_named(here, onnx):
    save(here / "a.png", picture(0))
    Path("poses").write_text("a file where the folder should be")
    assert "poses" in refusal("a.png", onnx, "boxes=whole")
    assert "a.png cannot be written" in refusal("a.png", onnx, "boxes=whole", "--json")


def test_of_a_folder_the_onnx_file_is_taken(tmp_path):
    for name in ("model.safetensors", "a.onnx"):
        (tmp_path / name).write_bytes(b"")
    assert loadable(tmp_path) == tmp_path / "a.onnx"
    (tmp_path / "b.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"several models: a.onnx, b.onnx"):
        loadable(tmp_path)
    (tmp_path / "student.onnx").write_bytes(b"")
    assert loadable(tmp_path) == tmp_path / "student.onnx"


def test_weights_of_another_name_are_not_taken_for_those_beside_them(tmp_path):
    for name in (WEIGHTS, "old.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert loadable(tmp_path / WEIGHTS) == tmp_path
    with pytest.raises(SpecError, match=f"old.safetensors is no saved network: .* as {WEIGHTS} beside {MEANING}"):
        loadable(tmp_path / "old.safetensors")


def test_aliases_versions_and_runs_are_the_registrys(here, net, fresh_database):
    import mlflow

    store, folder = here / "runs", here / "model"
    store.mkdir()
    folder.mkdir()
    for name in ("student.onnx", WEIGHTS, MEANING):
        shutil.copyfile(net / name, folder / name)
    shutil.copyfile(fresh_database, store / "mlflow.db")
    uri = f"sqlite:///{store}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.create_experiment("head-pose", artifact_location=(store / "artifacts").as_uri())
    whole = client.create_run(experiment).info.run_id
    tags = {"stage": "publish", "mlflow.parentRunId": whole}
    published = client.create_run(experiment, tags=tags).info.run_id
    client.log_artifacts(published, str(folder), "model")
    client.create_registered_model("head-pose")
    client.create_model_version("head-pose", f"runs:/{published}/model", published)
    client.set_registered_model_alias("head-pose", "champion", "1")
    content = (folder / "student.onnx").read_bytes()
    for model in ("champion", "1", "models:/head-pose@champion", "models:/head-pose/1", published, whole):
        with model_files(model, uri, "head-pose") as path:
            assert path.read_bytes() == content
    assert (folder / "student.onnx").is_file()
    save(here / "a.png", picture(0))
    assert predict.main(["a.png", "boxes=whole", "model=champion"]) == 0 and len(table()) == 1  # of ./runs
    words = ["teachers.resnet.start=models:/head-pose@champion", f"store={store}"]
    kept = Path(load(["demo"], words).teachers["resnet"].start)  # what a training begins with outlives the alias
    assert (kept / WEIGHTS).read_bytes() == (net / WEIGHTS).read_bytes() and kept.is_relative_to(store)
    with pytest.raises(SpecError, match="^student.start: .* has no version 7; known: 1"):
        load(["demo"], ["student.start=models:/head-pose/7", "search.trials=0", "search.space=null", f"store={store}"])
    for model, said in (
        ("champoin", "did you mean 'champion'"),
        ("7", "no version 7; known: 1"),
        ("models:/head-poze@champion", "did you mean 'head-pose'"),
        ("models:/head-pose", "is not models:/NAME@ALIAS"),
        ("0" * 32, "does not hand it out"),
    ):
        assert said in refusal("a.png", "boxes=whole", f"model={model}")
    assert not [path for path in Path("poses").iterdir() if path.suffix == ".onnx"]
