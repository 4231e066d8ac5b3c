"""What goes from stage to stage: a frozen result each, which the stage's manifest holds as JSON.

Every result says its `metrics` (numbers for MLflow) and its `headline` (half a line for the console).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

from hpe_core.geometry.rotation import ANGLE_NAMES
from hpe_core.learning.calibration import Calibration
from hpe_core.learning.metrics import deciding
from hpe_core.spec.training import TrainSpec
from workflows.engine.exported import Exported
from workflows.tracking.facts import Model

SCHEMA_VERSION = 3  # of manifests; 1 held plain mappings, 2 knew validation errors as MAE alone


class Role(StrEnum):
    """What a network, or a mean over networks, is in a run. The values name folders and rows of tables."""

    BASE = "base"
    TEACHER = "teacher"
    TEACHERS = "teachers' ensemble"
    OFFSETS = "offset ensemble"
    COMBINED = "combined ensemble"
    HARD = "hard"
    DISTILLED = "distilled"


DEGREES = (*ANGLE_NAMES, "mae", "geodesic")  # of a row's scores what a table has
Epoch = dict[str, float]  # "epoch", "time_ms" (when it ended), and the epoch's figures


@dataclass(frozen=True)
class StageResult:
    """What all results have in common."""

    def metrics(self) -> dict[str, float]:
        return {}

    def headline(self) -> str:
        return ""


@dataclass(frozen=True)
class ShardFile:
    path: str  # below the stage's folder
    rows: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """One `<dataset>.<split>`: kept + quarantined + filtered = input."""

    input: int
    kept: int
    quarantined: dict[str, int]  # by reason
    filtered: dict[str, int]
    shards: tuple[ShardFile, ...]
    fingerprint: str  # of the shards' bytes


@dataclass(frozen=True)
class ShardsResult(StageResult):
    splits: dict[str, Split]
    input: int
    kept: int
    quarantined: int
    filtered: int
    unused: dict[str, int]
    groups: dict[str, int]
    fingerprint: str

    def metrics(self) -> dict[str, float]:
        return {
            f"{name}/{what}": float(getattr(split, what))
            for name, split in self.splits.items()
            for what in ("kept", "input")
        }

    def headline(self) -> str:
        return ", ".join(f"{name} {split.kept} of {split.input}" for name, split in self.splits.items())


@dataclass(frozen=True)
class NetworkResult:
    """One trained network: the validation error of the epoch that was kept, degrees, and all epochs."""

    val_error: float
    best_epoch: int
    epochs: int
    seconds: float
    history: tuple[Epoch, ...]

    @classmethod
    def of(cls, history: Sequence[Epoch], seconds: float) -> "NetworkResult":
        """The epoch with the smallest validation error is the network's, the first of equals."""
        key = deciding(history[0], "val/")
        best = min(history, key=lambda row: row[key])
        return cls(best[key], int(best["epoch"]), len(history), seconds, tuple(history))


def _errors(networks: Mapping[str, NetworkResult]) -> str:
    return "validation error " + ", ".join(f"{name} {network.val_error:.2f}" for name, network in networks.items())


@dataclass(frozen=True)
class TeachersResult(StageResult):
    networks: dict[str, NetworkResult]

    def metrics(self) -> dict[str, float]:
        return {f"{name}/val_error": network.val_error for name, network in self.networks.items()}

    def headline(self) -> str:
        return _errors(self.networks)


@dataclass(frozen=True)
class Finalist:
    name: str
    changes: dict[str, Any]  # dotted keys of `student`
    network: NetworkResult

    @property
    def val_error(self) -> float:
        return self.network.val_error


@dataclass(frozen=True)
class StudentResult(StageResult):
    """The student, its hard-label twin, the whole spec; the finalists, of which it was one, and their twins."""

    student: NetworkResult
    twin: NetworkResult
    spec: TrainSpec
    finalists: tuple[Finalist, ...] = ()
    twins: tuple[Finalist, ...] = ()  # that learnt; the changes are those of the first finalist that it belongs to

    @property
    def networks(self) -> dict[str, NetworkResult]:
        return {Role.DISTILLED: self.student, Role.HARD: self.twin}

    def metrics(self) -> dict[str, float]:
        return {f"{name}/val_error": network.val_error for name, network in self.networks.items()}

    def headline(self) -> str:
        rivals = ", ".join(f"{finalist.val_error:.2f}" for finalist in self.finalists)
        return _errors(self.networks) + (f" (best of the finalists {rivals})" if rivals else "")


@dataclass(frozen=True)
class LabelsResult(StageResult):
    """`train_mae`: degrees between each set's angles and the hard labels of the training faces."""

    sets: tuple[str, ...]
    teachers: tuple[str, ...]
    rows: int
    train_mae: dict[str, float]
    fingerprint: str

    def metrics(self) -> dict[str, float]:
        return {f"train_mae/{name}": mae for name, mae in self.train_mae.items()}

    def headline(self) -> str:
        if not self.sets:
            return "left out (nobody reads stored labels)"
        return "MAE on the training faces " + ", ".join(f"{name} {mae:.2f}" for name, mae in self.train_mae.items())


@dataclass(frozen=True)
class Trial:
    """One finished trial: what it changed in `student`, its best validation error, and its network's cost."""

    trial: str
    changes: dict[str, Any]
    configured: bool  # the student as it is configured
    best_val_error: float
    epochs: int
    seconds: float
    parameters: float = 0.0
    latency_ms: float = 0.0


@dataclass(frozen=True)
class SearchResult(StageResult):
    """Trials, the smallest validation error first."""

    trials: tuple[Trial, ...] = ()
    failed: int = 0

    @property
    def best(self) -> dict[str, Any]:
        """The best trial's changes to `student`; none where nothing was searched."""
        return self.trials[0].changes if self.trials else {}

    def metrics(self) -> dict[str, float]:
        found = {"trials": float(len(self.trials))}
        return found | ({"best_val_error": self.trials[0].best_val_error} if self.trials else {})

    def headline(self) -> str:
        if not self.trials:
            return "left out (search.trials=0)"
        chosen = ", ".join(f"{key.split('.')[-1]}={short(value)}" for key, value in self.best.items())
        died = f" ({self.failed} failed)" if self.failed else ""
        ended = f"{len(self.trials)} trial{'s' * (len(self.trials) > 1)}{died}"
        best = f"{self.trials[0].best_val_error:.2f}" + f" with {chosen}" * bool(chosen)
        return f"best of {ended} {best}"


def short(value: Any) -> str:
    """A searched value in a few letters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Row:
    """One network or ensemble on one test set; `scores` are the figures of `learning.metrics`, degrees."""

    test: str
    name: str
    role: Role
    what: str  # the role in words
    scores: dict[str, float]
    parameters: float
    latency_ms: float

    @property
    def mae(self) -> float:
        return self.scores["mae"]

    def as_json(self) -> dict[str, Any]:
        """One flat mapping, as scripts read it."""
        known = {"test": self.test, "name": self.name, "role": self.what, **self.scores}
        return known | {"parameters": self.parameters, "latency_ms": self.latency_ms}


@dataclass(frozen=True)
class Intervals:
    """Of one test set and LEVEL: the share of faces whose error the interval holds, by pitch, yaw and roll."""

    test: str
    level: float
    raw: tuple[float, float, float]  # normal intervals of the spread as the head gives it
    calibrated: tuple[float, float, float]


@dataclass(frozen=True)
class Sureness:
    """What the student's spreads are worth: made to hold on validation faces, tried on the test sets."""

    calibration: Calibration
    intervals: tuple[Intervals, ...]
    risk: dict[str, tuple[float, ...]]  # by test set: MAE of the surest 5 %, 10 % ... of the faces


@dataclass(frozen=True)
class UnderProtocol:
    """The protocol that was asked for, and the sentences in which the run deviates from it."""

    name: str
    hash: str
    deviations: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One (K, d) of the base teacher's offset ensemble."""

    K: int
    d: int
    mae: float


@dataclass(frozen=True)
class EvaluateResult(StageResult):
    rows: tuple[Row, ...]
    new_people: tuple[Row, ...]  # the same over faces of people who were not trained on, where some were
    boxes: dict[str, str]  # who drew the boxes of each test set
    drift: dict[str, dict[str, float]]
    heatmap: dict[str, tuple[Cell, ...]]
    protocol: UnderProtocol | None = None
    sureness: Sureness | None = None

    def row(self, role: Role, test: str = "") -> Row:
        """The row of a role on a test set, by default the first."""
        return next(row for row in self.rows if row.role is role and test in ("", row.test))

    def metrics(self) -> dict[str, float]:
        drift = {f"drift/{kind}/{key}": value for kind, row in self.drift.items() for key, value in row.items()}
        told = self.sureness.intervals if self.sureness else ()
        return drift | {f"coverage/{one.test}/{100 * one.level:g}": sum(one.calibrated) / 3 for one in told}


@dataclass(frozen=True)
class PublishResult(StageResult):
    """Files relative to the stage's folder, and what was measured of them."""

    onnx: str
    report: str
    exported: Exported
    figures: dict[str, float]
    registration: Model  # what the registry is told

    def metrics(self) -> dict[str, float]:
        return self.figures


# ---------------------------------------------------------------- all of a run


class Results(SimpleNamespace):
    """The results of the stages that have finished, by their names; of no other stage there is an attribute."""

    shards: ShardsResult
    teachers: TeachersResult
    labels: LabelsResult
    search: SearchResult
    student: StudentResult
    evaluate: EvaluateResult
    publish: PublishResult

    def __init__(self, found: Mapping[str, StageResult]) -> None:
        super().__init__(found=found, **found)
