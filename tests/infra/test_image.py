"""The Dockerfile without a container engine: its steps are parsed, and replayed in a folder and a fresh environment.

What a replay cannot show: the base image, the apt packages, the user's rights, and another package index (TORCH_INDEX).
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpe_core.system.quiet import SWITCHES
from workflows.engine.config import REPO

DOCKERFILE = REPO / "infra" / "Dockerfile"
KNOWN = {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "USER", "CMD"}


@dataclass(frozen=True)
class Step:
    """One instruction; continuation lines are joined as the builder joins them, comments are gone."""

    word: str
    rest: str


def steps() -> list[Step]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines)).splitlines()
    return [Step(*line.split(" ", 1)) for line in joined]


def copies() -> list[tuple[list[str], str]]:
    """(sources, destination) of each COPY."""
    split = [step.rest.split() for step in steps() if step.word == "COPY"]
    return [(words[:-1], words[-1]) for words in split]


PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["workflows"]]


def step_that(part: str) -> Step:
    [found] = [step for step in steps() if step.word == "RUN" and part in step.rest]
    return found


def test_steps_are_known_and_the_last_user_is_not_root():
    words = [step.word for step in steps()]
    assert set(words) <= KNOWN and words[0] == "FROM"
    users = [step.rest for step in steps() if step.word == "USER"]
    made = re.search(r"useradd --uid (\d+)", step_that("useradd").rest)
    assert made and users == [made[1]] and int(made[1]) > 0, "a number: Kubernetes cannot tell that a name is not root"
    assert words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")


def test_everything_that_is_installed_or_run_is_copied():
    copied = {source for sources, _ in copies() for source in sources}
    assert all((REPO / source).exists() for source in copied)
    assert {"hpe_core", "workflows", "conf", "pyproject.toml", "setup.py"} <= copied
    [command] = [step.rest for step in steps() if step.word == "CMD"]
    assert json.loads(command)[0] in PROJECT["scripts"]


def test_nothing_in_a_container_reports_to_anybody():
    told = dict(pair.split("=", 1) for step in steps() if step.word == "ENV" for pair in step.rest.split())
    assert SWITCHES.items() <= told.items()


def test_the_ignore_file_lets_every_copy_through_and_nothing_else():
    lines = (REPO / "infra" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    assert rules[0] == "*" and kept == {source for sources, _ in copies() for source in sources}
    assert any(fnmatch.fnmatch("hpe_core/__pycache__", rule) for rule in rules[1:])


def test_dependencies_come_before_the_code():
    """Else an edited line makes a layer of gigabytes again."""
    order = [step.rest for step in steps()]
    install = order.index(step_that("-r requirements.txt").rest)
    assert all(order.index(code) > install for code in ("hpe_core ./hpe_core", "workflows ./workflows"))


def in_a_folder(rest: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **variables}
    return subprocess.run(["bash", "-c", rest], cwd=folder, env=env, capture_output=True, text=True)


def test_an_unknown_device_ends_the_build_in_a_sentence_before_anything_is_installed(tmp_path):
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    done = in_a_folder(step_that("DEVICE").rest, tmp_path, DEVICE="tpu")
    assert done.returncode == 2 and done.stderr == "DEVICE is cpu or cuda, not tpu\n"
    assert (tmp_path / "requirements.txt").read_text().split("\n")[:-1] == REQUIREMENTS


def test_every_dependency_is_pinned():
    pinned = {line.split("==")[0].lower() for line in (REPO / "constraints.txt").read_text().splitlines()}
    for requirement in REQUIREMENTS:
        found = re.match(r"[\w-]+", requirement)
        assert found and found[0].lower() in pinned, f"{requirement} has no line in constraints.txt"
    assert "-c constraints.txt" in step_that("-r requirements.txt").rest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_replayed_in_a_fresh_environment_make_a_pipeline(tmp_path):
    """Every COPY and every pip step, DEVICE=cuda (the ordinary package index), then the commands of a user."""
    app, home = tmp_path / "app", tmp_path / "venv"
    app.mkdir()
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    variables = {"VIRTUAL_ENV": str(home), "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}", "DEVICE": "cuda"}
    variables["PYTHONPATH"] = ""  # this checkout must not stand in for a file that was not copied
    for step in steps():
        if step.word == "COPY":
            *sources, target = step.rest.split()
            for source in sources:
                if (REPO / source).is_dir():
                    shutil.copytree(REPO / source, app / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(REPO / source, app / target)
        elif step.word == "RUN" and "apt-get" not in step.rest:
            done = in_a_folder(step.rest, app, **variables)
            assert done.returncode == 0, done.stderr[-3000:]
    [command] = [step.rest for step in steps() if step.word == "CMD"]
    checks = [shlex.join(json.loads(command)), "python -m pip check"]
    checks += [f"hpe plan -c demo store={tmp_path / 'runs'}"]
    checks += [f"python workflows/full_pipeline.py plan -c conf/demo.yaml store={tmp_path / 'runs'}"]
    for check in [*checks, "ray --version", "mlflow --version"]:
        done = in_a_folder(check, app, **variables)
        assert done.returncode == 0, f"{check}\n{done.stderr[-3000:]}"
