"""Laws of the networks that come with the package: they are what their cards and receipts say, and nothing need be
said to use them."""

import json
import re
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest

from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.registry import open_source, readers
from hpe_core.learning.metrics import RANGE_NAMES, PoseSums
from hpe_core.networks.checkpoint import load_net
from hpe_core.predictor import HeadPosePredictor
from hpe_core.shipped import NAMES, STUDENT_FILE, shipped_folder
from hpe_core.spec.data import DatasetSpec, DataSpec
from hpe_core.spec.network import MEANING, WEIGHTS
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import TrainSpec
from hpe_core.system.files import file_sha256
from tests.archives import picture
from tests.ruler import faces_of, scores
from workflows.engine.config import REPO
from workflows.prediction.resolve import model_files

FOLDER = STUDENT_FILE.parent


@pytest.fixture(scope="module")
def receipt() -> dict[str, Any]:
    return json.loads((FOLDER / "receipt.json").read_text())


def test_the_files_are_those_of_the_receipt(receipt):
    for name in ("student.onnx", "model.safetensors", "model.json", "README.md"):
        assert file_sha256(FOLDER / name) == receipt["files"][name], name
    assert STUDENT_FILE.stat().st_size <= 4e6
    assert sum(file.stat().st_size for file in shipped_folder("shipped/teacher").iterdir()) <= 20e6
    said = (FOLDER / "README.md").read_text()
    for test, row in receipt["scores"].items():
        assert f"{row['mae']:.2f} degrees on {test} (N = {row['n']:.0f})" in said
    assert receipt["origin"]["commit"][:12] in said and "dirty" not in receipt["origin"]["commit"]


def test_the_teacher_is_one_of_the_same_run(receipt):
    folder = shipped_folder("shipped/teacher")
    teacher = json.loads((folder / "receipt.json").read_text())
    assert {name: file_sha256(folder / name) for name in (WEIGHTS, MEANING)} == teacher["files"]
    name, shared = teacher["origin"].pop("teacher"), receipt["origin"]
    assert {"commit", "stage teachers"} <= teacher["origin"].keys()
    assert teacher["origin"] == {key: shared[key] for key in teacher["origin"]}
    taught = json.loads((folder / MEANING).read_text())["notes"]["train_spec"]
    filled = to_dict(build(TrainSpec, taught))  # keys that are younger than the teacher have their defaults
    assert filled == receipt["configuration"]["teachers"][name]


def test_nothing_of_it_forbids_a_product(receipt):
    """Every dataset it was taught with is free of research-only terms, and no network began with others' weights."""
    made = receipt["configuration"]
    for name in made["data"]["train"]:
        assert not readers()[made["data"]["datasets"][name]["reader"]].terms.research_only
    for net in (made["student"], *made["teachers"].values()):
        assert net["net"]["pretrained"] == "none" and not net["start"]


@pytest.mark.parametrize("name", NAMES)
def test_weights_can_be_begun_with_and_asked_by_name(name):
    saved = load_net(shipped_folder(f"shipped/{name}"))
    assert saved.crop == load_net(FOLDER).crop and saved.net.parameter_count() > 1e5
    image, box = picture(1), [(0, 0, *picture(1).shape[1::-1])]
    with model_files(f"shipped/{name}", "none", "") as file:
        asked = HeadPosePredictor.load(file).predict(image, box)
    np.testing.assert_allclose(
        asked.angles, HeadPosePredictor.load(f"shipped/{name}").predict(image, box).angles, atol=0.05
    )
    student = HeadPosePredictor.load("shipped").predict(image, box).angles
    assert np.allclose(asked.angles, student, atol=0.05) == (name == "student")


@pytest.mark.longer
def test_it_scores_on_rendered_heads_what_its_card_says(receipt):
    """The test heads of its own configuration, drawn again; a tenth is left to what the renderer learnt since."""
    made = receipt["configuration"]["data"]
    source, predictor, sums = open_source(build(DatasetSpec, made["datasets"]["heads"])), HeadPosePredictor.load(), []
    jobs = plan_dataset("heads", source, build(DataSpec, made)).jobs
    for ref in (ref for job in jobs if job.split == "test" for ref in job.refs):
        face, image = source.load(ref)
        if np.abs(face.pose).max() <= made["limit_deg"]:
            sums.append(PoseSums.of(predictor.predict(image, [face.known_box()]).angles, np.array([face.pose])))
    found = sum(sums, PoseSums.empty()).summary()
    assert found["n"] == receipt["scores"]["heads"]["n"] > 300
    assert found["mae"] == pytest.approx(receipt["scores"]["heads"]["mae"], rel=0.1)


def test_they_score_on_photographs_what_the_page_says(real_data, yunet):
    """The judges of the ruler, in the boxes of YuNet: every figure of the table."""
    faces, page = faces_of(real_data / "aflw2000_half", yunet, "judge"), (REPO / "docs" / "models.md").read_text()
    for name, path in (("shipped", STUDENT_FILE), ("shipped/teacher", shipped_folder("shipped/teacher"))):
        found = scores(HeadPosePredictor.load(path), faces)
        (row,) = re.findall(rf"^\| `{name}` \| (\d.*) \|$", page, re.MULTILINE)
        wanted = [float(number) for number in re.split(r" \| |, ", row)]
        ranges = [found[part] for part in RANGE_NAMES[:3]]
        same = [found["mae"], *ranges, found["easy"], found["geodesic"], found["aligned_mae"]]
        np.testing.assert_allclose(same, wanted, atol=0.011, err_msg=name)
        assert found["n"] == 198


def test_poses_need_no_word_about_a_model(tmp_path):
    """From an empty folder, with neither a store nor a registry: one line names the model, on standard error."""
    cv2.imwrite(str(tmp_path / "a.png"), picture(1)[..., ::-1])
    words = [sys.executable, "-m", "workflows.predict", "a.png", "boxes=whole", "--json", "draw=false"]
    done = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(REPO)}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines()[0].startswith("model: shipped, student.onnx")
    row = json.loads(done.stdout)
    angles = HeadPosePredictor.load().predict(picture(1), [(0, 0, *picture(1).shape[1::-1])]).angles[0]
    np.testing.assert_allclose([row["pitch"], row["yaw"], row["roll"]], angles, atol=0.01)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
