"""A package that is missing is one sentence that says what brings it."""

import sys
from importlib import metadata
from unittest.mock import Mock

import pytest

from hpe_core.errors import UserError
from hpe_core.predictor import HeadPosePredictor
from hpe_core.system.packages import EXTRA, missing, requirements
from workflows.engine.config import EXIT_BAD_INPUT, guarded

LINES = ["torch>=2.6", "onnx-tools", 'ray[data,tune]<3,>=2.55; extra == "workflows"', "ruff; extra == 'dev'"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: LINES)


def test_each_extra_adds_its_own(asked):
    assert requirements() == LINES[:2]
    assert requirements(EXTRA) == ["ray[data,tune]<3,>=2.55"] and requirements("dev") == ["ruff"]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("ray.data", "ray is not installed; pip install 'head-pose-distillation[workflows]' brings it"),
        ("torch", "torch is not installed; pip install 'torch>=2.6' brings it"),
    ],
)
def test_the_sentence_names_what_brings_it(asked, capsys, module, said):
    error = ModuleNotFoundError(name=module)
    assert str(missing(error)) == said and guarded(Mock(side_effect=error)) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize("module", ["hpe_core.nothing", "ruff", "rayon", "onnx", None])
def test_what_nothing_brings_keeps_its_traceback(asked, module):
    error = ModuleNotFoundError(name=module)
    assert missing(error) is error
    with pytest.raises(ModuleNotFoundError):
        guarded(Mock(side_effect=error))


def test_code_that_is_not_installed_asks_for_nothing(monkeypatch):
    monkeypatch.setattr("hpe_core.system.packages.DISTRIBUTION", "no-such-distribution")
    error = ModuleNotFoundError(name="ray")
    assert requirements() == [] and missing(error) is error


def test_an_onnx_file_without_onnx_runtime_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["onnxruntime>=1.20"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"^onnxruntime is not installed; pip install 'onnxruntime>=1.20' brings it$"):
        HeadPosePredictor.load(tmp_path / "student.onnx")
