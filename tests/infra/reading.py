"""Reading the files of infra/: their documents, the commands in their opening comments, Ray's view of a command."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpe_core.spec.pipeline import PipelineSpec
from workflows.engine.config import REPO, arguments, load

INFRA = REPO / "infra"
FILES = sorted(path for path in INFRA.iterdir() if path.is_file())
PROGRAMS = ("docker", "export", "hpe", "kubectl", "python", "ray")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((INFRA / name).read_text()))


def document(name: str) -> dict[str, Any]:
    [only] = documents(name)
    return only


def header(path: Path) -> str:
    """The comment that opens a file, lines that end in a backslash joined."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines).replace("\\\n", "")


def commands(path: Path) -> list[list[str]]:
    """The commands in a file's opening comment, as words."""
    lines = [line.partition("    ")[0] for line in header(path).splitlines()]
    return [shlex.split(line) for line in lines if line.split()[:1] and line.split()[0] in PROGRAMS]


def pipeline_words(words: list[str]) -> list[str] | None:
    """From `hpe` or `python` on, if these words run the pipeline."""
    pairs = enumerate(pairwise(words))
    starts = [i for i, (word, then) in pairs if word == "hpe" or (word == "python" and "workflows/" in then)]
    return words[starts[0] :] if starts else None


def pipelines() -> Iterator[tuple[str, list[str]]]:
    """Every pipeline command in infra/: those in comments, and the RayJob's entrypoint."""
    for path in FILES:
        for words in commands(path):
            found = pipeline_words(words)
            if found:
                yield path.name, found
    yield "rayjob.yaml", shlex.split(document("rayjob.yaml")["spec"]["entrypoint"])


def spec_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> PipelineSpec:
    """What the pipeline makes of its command line; only the name of the data folder is needed for that."""
    monkeypatch.setenv("HPE_DATA", "/shared/data")
    args = arguments(words[2:], "")
    return load(args.config, args.overrides)


def pinned() -> dict[str, str]:
    lines = (REPO / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@cache
def ray_command(*names: str) -> Any:
    from ray.scripts.scripts import cli

    command: Any = cli
    for name in names:
        assert name in command.commands, f"ray has no command {name}"
        command = command.commands[name]
    return command


def parsed(command: Any, words: list[str]) -> dict[str, Any]:
    """What a click command makes of its words; an unknown option fails here."""
    return command.make_context(command.name, list(words)).params


def filled(words: list[str]) -> list[str]:
    """Compose's `${NAME:-default}` replaced by the default."""
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in words]


def ray_starts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every `ray start` in infra/, as Ray reads it."""
    start = ray_command("start")
    for name, service in document("docker-compose.yml")["services"].items():
        if service["command"][:2] == ["ray", "start"]:
            yield name, parsed(start, filled(service["command"][2:]))
    cluster = document("cluster.yaml")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        words = shlex.split(cluster[key][-1])
        assert words[:2] == ["ray", "start"]
        yield key, parsed(start, words[2:])
    for group in groups(document("raycluster.yaml")["spec"]):
        options = [f"--{key}={value}" for key, value in group.get("rayStartParams", {}).items()]
        yield group.get("groupName", "headGroupSpec"), parsed(start, options)


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for group in groups(document("raycluster.yaml")["spec"]):
        yield group.get("groupName", "head"), group["template"]["spec"]
    for entry in documents("shared.yaml"):
        if entry["kind"] == "Deployment":
            yield entry["metadata"]["name"], entry["spec"]["template"]["spec"]
