"""What a run has to say, as plain values that lie in the store. MLflow shows them (`sync.py`); nothing here knows it.

The runner writes, and `projection.facts_of` reads, below the store:

- `pipeline/<hash>/run.json`: `RunFacts.to_json()` of the whole run, "stages" (keys in order, as "shards/<hash>"),
  "reused" (those that were finished before), "pid" and "host"; beside it `config.yaml`, which `-c` takes as it is.
- `<stage>/<hash>/manifest.json`: "told" (`RunFacts.to_json()` of the stage) and "children" (its networks or trials).
- `<stage>/<hash>/failed.json`, until the stage starts again: "error" (one sentence), "time_ms" and "told".
"""

import dataclasses
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Point(NamedTuple):
    """A figure at a step. Sent again with the same time, it counts once."""

    name: str
    value: float
    step: int
    time_ms: int


class Artifact(NamedTuple):
    """A file below the run's folder, kept as `folder/name`; of a directory the files, in `folder` or its own name."""

    path: str
    folder: str = ""


@dataclass(frozen=True)
class Model:
    """The artifacts in `folder` become a version of the registered model `name`.

    `description` is markdown, `summary` a few letters like 'MAE 4.10'. `contest` is (what was measured on, error): who
    holds the alias keeps it where that was the same and its error is smaller. The tag "report" names the page.
    """

    name: str
    folder: str
    alias: str
    contest: tuple[str, float]
    description: str = ""
    summary: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """One run of MLflow; `params` are nested plain values. Raises ValueError for a key with odd letters."""

    key: str
    name: str
    parent: str | None = None
    status: Status = "RUNNING"
    started_ms: int = 0
    ended_ms: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    model: Model | None = None
    home: Path = Path()  # the folder of the artifacts: where the file was read, so it is no part of the JSON

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w./:@+=, -]{1,250}", self.key):
            raise ValueError(f"a run's key is made of letters, digits and ./:@+=,-_ and not {self.key!r}")

    def to_json(self) -> dict[str, Any]:
        tree = dataclasses.asdict(self)
        del tree["home"]
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], home: Path) -> "RunFacts":
        """What `to_json` wrote; other keys are left alone."""
        known = {f.name: tree[f.name] for f in dataclasses.fields(cls) if f.name in tree}
        known["points"] = tuple(Point(*row) for row in tree.get("points", ()))
        known["artifacts"] = tuple(Artifact(*row) for row in tree.get("artifacts", ()))
        if model := tree.get("model"):
            known["model"] = Model(**{**model, "contest": tuple(model["contest"])})
        return cls(**known | {"home": home})


def points_of(values: Mapping[str, float], step: int, time_ms: int) -> tuple[Point, ...]:
    """Figures of one moment."""
    return tuple(Point(name, float(value), step, time_ms) for name, value in values.items())


def git_commit(root: Path) -> str:
    """The commit of the checkout `root`, with `-dirty` when tracked files differ; `unknown` where it is none."""
    if not (root / ".git").exists():
        return "unknown"

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--verify", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
