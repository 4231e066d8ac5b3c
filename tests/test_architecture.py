"""The walls of the house: imports point downward, the library is free of Ray and MLflow, commands answer at once."""

import ast
import subprocess
import sys
import time

import pytest

from hpe_core.errors import SpecError
from workflows.engine.commandline import EXIT_STOPPED
from workflows.engine.config import REPO
from workflows.full_pipeline import stage_named

LAYERS = [
    {"allocator", "rotation", "plain", "remote", "spec"},
    {"bins", "crop", "backbones", "detector", "detector_fit", "protocols", "convention"},
    {"rows", "sources", "draw"},
    {"shares"},
    {"batch", "sandbox", "convention_check"},
    {"augment", "models", "metrics"},
    {"losses", "checkpoint", "ensemble", "latency"},
    {"task", "predictor", "drift"},
    {"loop", "pyfunc"},
]
FOREIGN = {"ray", "mlflow", "omegaconf", "workflows", "optuna"}
COMMANDS = sorted(p.stem for p in (REPO / "workflows").glob("*.py") if '__name__ == "__main__"' in p.read_text())
WITHOUT_JSON = {"tracking"}  # its exit code says all there is


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def layer_of(room):
    return next(i for i, layer in enumerate(LAYERS) if room in layer)


@pytest.mark.parametrize("path", sorted((REPO / "hpe_core").rglob("*.py")), ids=lambda p: p.stem)
def test_the_library_imports_downward_only(path):
    room = path.relative_to(REPO / "hpe_core").parts[0].removesuffix(".py")
    for name in imports(path):
        assert name.split(".")[0] not in FOREIGN, f"{path.name} imports {name}"
        parts = name.split(".")
        if parts[0] == "hpe_core" and len(parts) > 1 and room != "__init__" and parts[1] != room:
            assert layer_of(parts[1]) <= layer_of(room), f"{room} imports {parts[1]} from above"


def test_the_exit_code_of_a_stopped_command_has_one_owner():
    owners = [
        path.name
        for path in sorted((REPO / "workflows").glob("*.py"))
        if any(
            isinstance(node, ast.Constant) and node.value == EXIT_STOPPED
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert owners == ["commandline.py"]


def test_stage_modules_do_not_import_each_other():
    stages = {"shards", "train", "labels", "tune", "evaluate", "publish"}
    for name in stages:
        path = REPO / "workflows" / f"{name}.py"
        tree = ast.parse(path.read_text())
        top = {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module}
        others = {m.split(".")[1] for m in top if m.startswith("workflows.")} & (stages - {name})
        assert others <= ({"train"} if name == "tune" else set()), f"{name} imports {others}"


def test_importing_the_library_leaves_ray_and_mlflow_out():
    code = (
        "import sys, pkgutil, importlib, hpe_core\n"
        "for m in pkgutil.walk_packages(hpe_core.__path__, 'hpe_core.'): importlib.import_module(m.name)\n"
        "print(sorted({'ray', 'mlflow', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_heavy_import(command):
    """Seconds are not asserted (machines differ); what costs them is: torch, Ray and MLflow are not imported."""
    code = (
        f"import sys, runpy; sys.argv = ['{command}.py', '--help']\n"
        "try:\n    runpy.run_path(r'workflows/" + command + ".py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'timm', 'matplotlib'} & set(sys.modules)\nassert not heavy, heavy"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    usage, said, example = done.stdout.split("\n\n")[:3]
    assert usage.startswith("usage: ") and said.endswith("."), "a sentence says what the command does"
    assert example.startswith(f"    python workflows/{command}.py"), "examples come next"
    assert done.stdout.splitlines()[-1].startswith("exit codes: 0 "), "exit codes come last"
    assert ("--json" in done.stdout) == (command not in WITHOUT_JSON)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["plna"], 2, "did you mean 'plan'"),
        (["student.optim.lrr=3"], 2, "did you mean 'lr'"),
        (["-c", "conf/nothing.yaml"], 2, "no configuration file"),
        (["plan", "data.datasets.heads.reader=biwii"], 2, "allowed:"),
        (["--jsno"], 2, "did you mean '--json'"),
        (["--store", "runs"], 2, "a key is written store=VALUE"),
    ],
)
def test_a_typo_ends_with_one_sentence_and_code_2(words, code, said):
    done = subprocess.run(
        [sys.executable, "workflows/full_pipeline.py", *words], capture_output=True, text=True, cwd=REPO
    )
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "stage", "left"),
    [
        ([], "teachers", []),
        (["student", "plan"], "student", ["plan"]),
        (["plan"], "teachers", ["plan"]),
        (["store=here"], "teachers", ["store=here"]),
        (["-c", "demo"], "teachers", ["-c", "demo"]),
    ],
)
def test_a_module_of_two_stages_is_told_which_by_the_first_word(words, stage, left):
    assert stage_named(["teachers", "student"], words) == (stage, left)


def test_a_stage_that_is_none_is_named():
    with pytest.raises(SpecError, match="unknown stage 'techers'; did you mean 'teachers'"):
        stage_named(["teachers", "student"], ["techers"])
