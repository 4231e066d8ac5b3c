"""The walls of the house hold, and whoever breaks one is told: imports, rooms, sizes; and commands answer at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import breaches
from workflows.engine.config import REPO

# A small house without a breach; each breach below changes one file of it.
SOUND = {
    "hpe_core/errors.py": "",
    "hpe_core/networks/models.py": "import torch\n",
    "hpe_core/training/loop.py": "from hpe_core.networks import models\n",
    "hpe_core/data/rows.py": "from hpe_core.errors import SpecError\n",
    "workflows/engine/stage.py": "from hpe_core.data.rows import read\n",
    "workflows/stages/shards.py": "from workflows.engine.stage import StageRun\n",
    "workflows/stages/labels.py": "def run():\n    from hpe_core.training.loop import fit\n",
    "workflows/full_pipeline.py": "from workflows.stages import labels, shards\n",
}
LOOP, ROWS, UP = "from hpe_core.training.loop import fit\n", "hpe_core/data/rows.py", "does not lie below it"
LABELS, INSIDE, READ = "workflows/stages/labels.py", "def run():\n    ", "from hpe_core.data.rows import read\n"
BREACHES = {
    "upward": (ROWS, LOOP, UP),
    "upward in a function": (ROWS, INSIDE + LOOP, UP),
    "upward for types": (ROWS, f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {LOOP}", UP),
    "a circle": ("hpe_core/networks/models.py", "from hpe_core.training import loop\n", "imports itself"),
    "a circle through a function": ("hpe_core/networks/models.py", f"import torch\n{INSIDE}{LOOP}", "imports itself"),
    "a stage imports a stage": (
        LABELS,
        "from workflows.stages.shards import run\n",
        "is a stage and imports the stage",
    ),
    "a stage imports the pipeline": (LABELS, INSIDE + "from workflows.full_pipeline import STAGES\n", UP),
    "Ray in the library": (ROWS, INSIDE + "import ray\n", "not in the library"),
    "templates in the library": ("hpe_core/errors.py", "from jinja2 import Template\n", "not in the library"),
    "a light import in a function": (LABELS, INSIDE + READ, "it is light"),
    "a light import for types": (LABELS, f"import typing\nif typing.TYPE_CHECKING:\n    {READ}", "it is light"),
    "a private part of Ray": (LABELS, "from ray._private import worker\n", "which is private"),
    "a long module": ("hpe_core/errors.py", "x = 1\n" * 401, "has 401 lines"),
    "no room": ("workflows/hall.py", "", "lies in no room"),
}


def built(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_house_has_no_breach():
    assert breaches(REPO) == []


def test_a_sound_house_has_none(tmp_path):
    assert breaches(built(tmp_path, SOUND)) == []


@pytest.mark.parametrize("kind", BREACHES)
def test_each_kind_of_breach_is_told(tmp_path, kind):
    file, text, said = BREACHES[kind]
    found = breaches(built(tmp_path, SOUND | {file: text}))
    assert any(said in sentence for sentence in found), found


def test_a_crowded_folder_is_told(tmp_path):
    found = breaches(built(tmp_path, {f"hpe_core/data/m{i}.py": "" for i in range(12)}))
    assert found == ["data holds 12 modules, more than 11"]


EVERY_MODULE = "import hpe_core, importlib, pkgutil\n[importlib.import_module(m.name) for m in "
LIGHT = {
    EVERY_MODULE + "pkgutil.walk_packages(hpe_core.__path__, 'hpe_core.')]\nimport workflows.bench.operations": {
        *("ray", "mlflow", "omegaconf", "pydantic", "albumentations")
    },
    "import workflows.tracking.live, workflows.tracking.projection": {"mlflow"},
    "import workflows.tracking.console, workflows.tracking.progress": {"ray", "torch", "mlflow", "numpy", "rich"},
    # Else they are part of what is measured.
    "import workflows.bench.shared.children": {"torch", "ray", "mlflow", "scipy"},
}


@pytest.mark.parametrize("code", LIGHT)
def test_what_has_to_start_at_once_imports_nothing_heavy(code):
    code += f"\nimport sys; print(sorted({LIGHT[code]} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout.strip() == "[]"
