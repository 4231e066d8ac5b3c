"""What a stage is, and what it is given when it runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from hpe_core.spec.pipeline import PipelineSpec
from workflows.engine.results import Results, StageResult
from workflows.tracking.progress import Reporter

Leaves = Callable[[PipelineSpec], Mapping[str, Any]]


class StageFailed(RuntimeError):
    """A stage ended in an error; the message names the stage and says how to continue."""


@dataclass(frozen=True, eq=False)
class StageRun:
    """What a stage is given: its configuration, its own folder, the finished stages upstream, and a reporter."""

    name: str
    key: str  # '<stage>/<hash>': the name of this run in MLflow and in Ray's storage
    spec: PipelineSpec
    folder: Path
    inputs: Mapping[str, Path]  # folders of the upstream stages
    hashes: Mapping[str, str]  # of the upstream stages, or of the views of them that this stage depends on
    results: Results
    reporter: Reporter


@dataclass(frozen=True)
class Stage:
    """One stage: the function that runs it, the stages that it reads, and the keys and files that it depends on.

    An input written `shards:train` depends on that view of the stage only: another test set makes new shards, but
    retrains nobody. `artifacts` maps files and folders of the stage's folder to folders in MLflow; a stage that fails
    shows those that are there.
    """

    name: str
    run: Callable[[StageRun], StageResult]
    inputs: tuple[str, ...]
    depends: Leaves
    views: Mapping[str, Leaves] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)

    @property
    def upstream(self) -> list[str]:
        return [name.split(":")[0] for name in self.inputs]

    @property
    def result(self) -> type[StageResult]:
        """The type that the function returns."""
        kind: type[StageResult] = get_type_hints(self.run)["return"]
        return kind
