"""The package as a wheel, in fresh environments that see other packages but not this checkout, from another folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement

from tests.archives import write_aflw2000
from tests.faces import write_onnx
from workflows.engine.config import EXIT_BAD_INPUT, REPO

pytestmark = pytest.mark.longer
SOURCES = ("conf", "hpe_core", "workflows", "pyproject.toml", "setup.py", "README.md", "LICENSE")
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
EXTRA = PROJECT["optional-dependencies"]["workflows"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing an earlier build left in the checkout gets into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "-w", str(out), str(source)], capture_output=True, text=True, cwd=source)
    assert done.returncode == 0, done.stderr
    [built] = out.glob("*.whl")
    return built


class Installed:
    """An environment with the wheel, and with links to the packages of this one but for those that are `hidden`."""

    def __init__(self, folder: Path, wheel: Path, hidden: list[str]) -> None:
        venv.create(folder / "venv")
        self.bin, self.elsewhere, self.home = folder / "venv" / "bin", folder / "elsewhere", folder / "home"
        links = folder / "links"
        for made in (self.elsewhere, self.home, links):
            made.mkdir()
        for shared in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(shared).iterdir():
                name = entry.name.partition("-")[0].partition(".")[0].lower()
                ours = name.startswith(("__editable__", "head_pose_distillation", "hpe_core", "workflows"))
                if not ours and name not in hidden:
                    (links / entry.name).symlink_to(entry)
        [site] = (folder / "venv").glob("lib/python*/site-packages")
        (site / "links.pth").write_text(str(links))
        self("python", "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel), code=0)

    def __call__(self, program: str, *words: str, code: int) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
        command = [str(self.bin / program), *words]
        done = subprocess.run(command, env=env, cwd=self.elsewhere, capture_output=True, text=True, timeout=900)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr[-3000:]
        return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("whole"), wheel, [])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    """`pip install head-pose-distillation`, without the extra."""
    return Installed(tmp_path_factory.mktemp("base"), wheel, [Requirement(line).name for line in EXTRA])


def test_the_wheel_holds_what_the_checkout_holds(wheel):
    here = {
        str(path.relative_to(REPO))
        for room in ("hpe_core", "workflows", "conf")
        for path in (REPO / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        [about] = [name for name in archive.namelist() if name.endswith("METADATA")]
        asked = HeaderParser().parsestr(archive.read(about).decode()).get_all("Requires-Dist")
    assert held == {f"workflows/{name}" if name.startswith("conf/") else name for name in here}
    lines = [*PROJECT["dependencies"], *(f"{line}; extra == 'workflows'" for line in EXTRA)]
    assert {Requirement(line) for line in lines} <= {Requirement(line) for line in asked or ()}


def test_commands_run_from_any_folder(whole, tmp_path):
    assert "hpe run -c demo" in whole("hpe", "--help", code=0).stdout
    own = tmp_path / "own.yaml"
    own.write_text("name: mine\nsearch: {trials: 0}\n")
    for words in (["-c", "demo"], ["-c", "scale/ehpnet"], ["-c", "conf/demo.yaml", "-c", str(own)], []):
        planned = json.loads(whole("hpe", "plan", "--json", *words, code=0).stdout)
        assert len(planned) == 7 and {row["action"] for row in planned} == {"run"}
    assert "'scale/ehpnet'" in whole("hpe", "plan", "-c", "scale/ehpnt", code=EXIT_BAD_INPUT).stderr
    said = whole("hpe", "plan", "-c", "pointing04", code=EXIT_BAD_INPUT).stderr
    assert "HPE_DATA, which is not set" in said and said.count("\n") == 1
    assert "did you mean 'model'" in whole("hpe", "predict", "x.jpg", "modl=a", code=EXIT_BAD_INPUT).stderr
    assert not list(whole.elsewhere.iterdir()), "a look changes nothing"


def test_the_doctor_knows_the_machine_without_a_checkout(whole, tmp_path):
    for i in range(6):
        write_aflw2000(tmp_path / "faces", f"image{i:05d}", (5.0, 20.0 - i, -3.0), seed=i)
    words = ("doctor", "reader=aflw2000", f"root={tmp_path / 'faces'}", "--json")
    tree = json.loads(whole("hpe", *words, code=0).stdout)
    assert tree["datasets"]["aflw2000"]["found"] == 6 and "ray 2" in tree["machine"]["packages"]


def test_without_the_extra_faces_are_still_looked_at(base, tmp_path):
    model, picture = write_onnx(tmp_path / "small.onnx"), tmp_path / "grey.png"
    cv2.imwrite(str(picture), np.full((40, 40, 3), 9, np.uint8))
    done = base("hpe", "predict", str(picture), f"model={model}", "boxes=whole", "--json", "draw=false", code=0)
    assert json.loads(done.stdout)["yaw"] == pytest.approx(9, abs=0.1)
    code = f"from hpe_core.predictor import HeadPosePredictor; print(HeadPosePredictor.load({str(model)!r}).crop.size)"
    assert base("python", "-c", code, code=0).stdout.strip() == "32"
    said = base(
        "hpe", "predict", str(picture), "boxes=whole", "--json", "draw=false", code=0
    )  # by the model that ships
    assert json.loads(said.stdout)["file"] == "grey.png" and "model: shipped" in said.stderr


@pytest.mark.parametrize(
    "words",
    [
        "run -c demo",
        "predict grey.png model=champion boxes=whole mlflow.uri=http://127.0.0.1:1",
        "doctor",
        "benchmark stream",
    ],
)
def test_whoever_needs_the_extra_is_told_its_name(base, words):
    cv2.imwrite(str(base.elsewhere / "grey.png"), np.full((40, 40, 3), 9, np.uint8))
    done = base("hpe", *words.split(), code=EXIT_BAD_INPUT)
    [line] = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("error:")]
    assert "pip install 'head-pose-distillation[workflows]'" in line
