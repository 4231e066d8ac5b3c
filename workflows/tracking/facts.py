"""What a run has to say, as plain values that lie in the store. MLflow shows them (`sync.py`); nothing here knows it.

Files that the runner writes, and that `projection.facts_of` reads:

- `<store>/pipeline/<hash>/run.json`, at the start, after each stage and at the end: `RunFacts.to_json()` of the whole
  run, and beside its keys "stages" (keys of this run's stages in order, such as "shards/<hash>"), "reused" (those of
  them that were finished before), "pid" and "host". The configuration is `config.yaml` beside it, an `Artifact` like
  others, which `-c` takes as it is.
- `<store>/<stage>/<hash>/manifest.json`: entries "told" (`RunFacts.to_json()` of the stage) and "children" (a list of
  the same: networks with their epochs, trials with theirs).
- `<store>/<stage>/<hash>/failed.json`, of a stage that failed: "error" (one sentence), "time_ms", and where there is
  something to show all the same, "told" and "children". The runner removes it when the stage starts again.
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

    `description` is markdown, `summary` a few letters like 'MAE 4.10'. `contest` is (what was measured on, error): the
    holder of the alias keeps it where it was measured on the same and its error is smaller. The tag "report" names the
    page among the artifacts that shows the model.
    """

    name: str
    folder: str
    alias: str
    contest: tuple[str, float]
    description: str = ""
    summary: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """One run of MLflow. Raises ValueError for a key with other letters than those of names and paths.

    `params` are nested plain values. The tag "commit" is the code's; `mlflow.note.content` would be the page's text.
    """

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
    """The commit of the checkout `root`, with `-dirty` when tracked files differ, or `unknown`.

    A folder inside somebody's repository, as site-packages may be, is no checkout of ours.
    """
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
