"""The whole configuration, `PipelineSpec`, and the keys of the search, the evaluation, publishing and MLflow."""

import operator
import re
from collections.abc import Mapping
from dataclasses import field
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from hpe_core.errors import SpecError, check, nearest
from hpe_core.spec.cluster import ClusterSpec
from hpe_core.spec.data import DataSpec, is_name
from hpe_core.spec.network import NetSpec
from hpe_core.spec.serde import Count, Natural, Text, at_least, at_most, build, checked, to_dict
from hpe_core.spec.training import LabelSet, OptimSpec, TrainSpec, canonical_offsets
from hpe_core.system.remote import Remote, is_remote

TAKEN = ("hard", "distilled", "offset ensemble", "combined ensemble")  # names of other rows in the tables
VARIANT = "distilled:"  # how the names of rows begin in a comparison of variants


@checked
class SearchSpace:
    """One searched key: either `choice`, or `low` and `high` (on a log scale if `log`)."""

    choice: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        said = "a search space is either choice: [...] or low: and high:"
        check(not ends if self.choice else len(ends) == 2, said)
        if self.low is not None and self.high is not None:
            check(self.low < self.high, f"a search space needs low < high, got {self.low} and {self.high}")
            check(not self.log or self.low > 0, "a log search space needs low > 0")

    def samples(self, whole: bool) -> tuple[Any, ...]:
        """Every choice, or the ends of a range and a value near the lower one: a key may take the ends alone."""
        if self.low is None or self.high is None:
            return self.choice
        near = self.low + (1 if whole else (self.high - self.low) / 1000)
        return self.low, min(near, self.high), self.high


@checked
class SearchSpec:
    """Ray Tune over the student. Keys of `space` are keys of `student`, e.g. `optim.lr`."""

    trials: Natural = 4  # 0 leaves the search out: the student is trained as it is configured
    concurrent: Count = 2  # a round: tried at once where there is room; the next is proposed when all of it has ended
    epochs: Count = 4
    grace_epochs: Count = 2  # no trial is stopped before this
    finalists: Count = 1  # trained to the end; validation chooses. Of several, one is yours if `space` holds its values
    space: dict[str, SearchSpace] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.grace_epochs <= self.epochs, f"grace_epochs {self.grace_epochs} exceeds epochs {self.epochs}")

    @property
    def tried(self) -> int:
        """How many trials there are: without a space all would be the same."""
        return self.trials if self.space else min(self.trials, 1)

    @property
    def ending(self) -> int:
        """How many settings are trained to the end: no more than were tried, and without a search the student's own."""
        return min(self.finalists, max(self.tried, 1))

    @property
    def learning(self) -> int:
        """Networks that the student stage trains at most: one for each of these settings, and its hard-label twin."""
        return 2 * self.ending


@checked
class EvaluateSpec:
    """What is scored beside the trained networks: the offset ensemble of `base` at each (K, d)."""

    base: str = ""  # the teacher that stands alone; empty is the first
    protocol: str = ""  # a name of datasets/protocols.py: published figures stand beside ours, deviations are said
    offset_radius: Natural = 4
    offset_step: Count = 2
    heatmap_radius: Natural = 0  # K and d of the heat map run to this; 0 leaves the picture out


@checked
class PublishSpec:
    model_name: Text = "head-pose"
    alias: Text = "champion"
    parity_crops: Natural = 500  # test faces on which torch, ONNX and int8 are compared; 0: noise, no score of int8
    calibration_crops: Natural = 256  # validation faces that set the ranges of the int8 file; 0 leaves that file out

    def __post_init__(self) -> None:
        alias = self.alias.lower()
        taken = alias in ("candidate", "latest") or re.fullmatch(r"v\d+", alias) is not None
        check(not taken, f"alias '{self.alias}' means something else in the registry; choose another")
        said = f"alias '{self.alias}' is not of letters, digits and -_"
        check(re.fullmatch(r"[\w-]{1,255}", alias) is not None, said)
        said = f"model_name '{self.model_name}' holds one of / : @ ', which names in the registry cannot have"
        check(re.search("[/:@']", self.model_name) is None, said)


@checked
class ExportSpec:
    """In which form of ONNX the student is written: the lower, the older the runtimes that load it."""

    opset: Annotated[int, at_least(18), at_most(21)] = 18  # IR version 8 to 10; docs/prediction.md: what loads which


@checked
class MlflowSpec:
    uri: str = ""  # empty: SQLite in the store; none: no tracking
    experiment: Text = "head-pose"


@checked
class PipelineSpec:
    """The whole run: one value of this type decides every stage."""

    name: Text
    data: DataSpec
    teachers: dict[str, TrainSpec]
    student: TrainSpec
    search: SearchSpec = SearchSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    publish: PublishSpec = PublishSpec()
    export: ExportSpec = ExportSpec()
    cluster: ClusterSpec = ClusterSpec()
    mlflow: MlflowSpec = MlflowSpec()
    store: Text = "runs"  # a folder, or an address such as s3://bucket/runs (workflows/storage/mirror.py)

    def __post_init__(self) -> None:
        check(bool(self.teachers), "teachers names no network")
        check(self.student.distill is not None, "student.distill is missing: the student learns from soft labels")
        for name, teacher in self.teachers.items():
            check(teacher.distill is None, f"teachers.{name}.distill: a teacher learns from hard labels")
            self._check_labels(teacher.net, self.student.net, f"teachers.{name}.net")
        for who, spec in {**{f"teachers.{k}": v for k, v in self.teachers.items()}, "student": self.student}.items():
            stage = who.partition(".")[0]
            limit, jitter = spec.net.farthest, spec.augment.jitter_px
            said = f"{who}.net.limit_deg {limit} is smaller than data.limit_deg {self.data.limit_deg}"
            check(limit >= self.data.limit_deg, said)
            said = f"{who}.augment.jitter_px {jitter} exceeds data.crop.margin_px"
            check(jitter <= self.data.crop.margin_px, said)
            self._check_batch(spec.optim, f"{who}.optim", stage)
        for name in self.teachers:
            good = is_name(name) and re.fullmatch(r"[\w.:@=, -]{1,100}", name) is not None
            good = good and name.strip() not in TAKEN and not name.strip().startswith(VARIANT)
            said = "a name is made of letters, digits, spaces and .:@=,-_ (100 at most), does not begin with a dot"
            check(good, f"teachers.{name}: {said}, does not begin with '{VARIANT}', and is none of {', '.join(TAKEN)}")
        self._check_search()
        base = self.evaluate.base
        check(not base or base in self.teachers, f"evaluate.base '{base}' is no teacher ({', '.join(self.teachers)})")
        self.label_sets()
        margin = self.data.crop.margin_px
        for key in ("offset_radius", "heatmap_radius"):
            value = getattr(self.evaluate, key)
            check(value <= margin, f"evaluate.{key} {value} exceeds data.crop.margin_px {margin}")

    def _check_batch(self, optim: OptimSpec, key: str, stage: str) -> None:
        """Equal parts for all workers (their gradients weigh the same), of two faces at least (batch statistics).

        Elastic workers have parts that differ by a face wherever their number does not divide the batch.
        """
        (fewest, most), size = self.cluster.workers_of(stage), optim.batch_size
        if optim.batch_scaling == "scale":
            return  # it is a worker's own
        check(fewest < most or size % most == 0, f"{key}.batch_size {size} is no multiple of cluster.workers {most}")
        parts = most * optim.accumulate
        check(size >= 2 * parts, f"{key}.batch_size {size} leaves less than two faces for each of {parts} parts")

    def _check_search(self) -> None:
        """Every searched value makes a student that can be trained: said now, not by a trial that dies."""
        for key, entry in self.search.space.items():
            student_with(self.student, {key: None}, check_only=True)
            own = own_value(self.student, key)
            check(not isinstance(own, dict), f"search.space.{key} is a group of keys; search those in it that you mean")
            check(key not in ("net.pretrained", "start"), f"search.space.{key}: weights files are not searched")
            said = "search.space.net.backbone: a student with a start keeps the backbone that it starts from"
            check(key != "net.backbone" or not self.student.start, said)
            check(key != "optim.epochs", "search.space.optim.epochs: every trial has search.epochs epochs")
            for value in entry.samples(isinstance(own, int)):
                changed = self._tried({key: value}, f"search.space.{key}")
                self._check_batch(changed.optim, f"search.space.{key}: student.optim", "student")
                margin = self.data.crop.margin_px
                said = f"search.space.{key}: {value} exceeds data.crop.margin_px {margin}"
                check(changed.augment.jitter_px <= margin, said)
                for teacher in self.teachers.values():
                    self._check_labels(teacher.net, changed.net, f"search.space.{key}")
        ends = {"optim.batch_size": min, "optim.accumulate": max}  # the smallest parts that a trial may ask for
        space = {key: self.search.space[key].samples(True) for key in ends if key in self.search.space}
        searched = {key: ends[key](values) for key, values in space.items()}
        if searched:
            self._check_batch(self._tried(searched, "search.space").optim, "search.space: student.optim", "student")

    def _tried(self, changes: Mapping[str, Any], key: str) -> TrainSpec:
        """The student with these changes. Raises SpecError that names the key of the search."""
        try:
            return student_with(self.student, changes)
        except SpecError as error:
            raise SpecError(f"{key}: {error}") from None

    @staticmethod
    def _check_labels(teacher: NetSpec, student: NetSpec, key: str) -> None:
        """A student of bins reads the teachers' bins; one of rotations mean rotations, from teachers of any head."""
        if student.form == "rotations":
            return
        said = f"{key}: a student with bins learns from teachers with bins, not from head {teacher.head};"
        check(teacher.form == "bins", f"{said} give the student head sixd or fisher")
        grids = [(net.limit_deg, min(net.bin_widths)) for net in (teacher, student)]
        said = f"{key}: soft labels need the same limit_deg and narrowest bin width for teachers and student"
        check(grids[0] == grids[1], said)

    def label_set(self, student: TrainSpec) -> LabelSet:
        """The soft labels that a student asks for, its teachers in the order of the configuration."""
        distill = student.distill
        assert distill is not None
        for name in distill.teachers:
            if name not in self.teachers:
                raise SpecError(f"distill.teachers: '{name}' is no teacher{nearest(name, [*self.teachers])}")
        chosen = tuple(name for name in self.teachers if name in distill.teachers or not distill.teachers)
        offsets = canonical_offsets(distill.offset_radius, distill.offset_step)
        return LabelSet(chosen, *offsets, distill.mirrored, student.net.form)

    def label_sets(self) -> tuple[LabelSet, ...]:
        """Every label set that the student or a trial may read: what the labels stage has to write."""
        distilled = ("offset_radius", "offset_step", "mirrored", "teachers", "labels")
        keys = tuple(f"distill.{key}" for key in distilled)
        searched = {key: self.search.space[key].choice for key in keys if key in self.search.space}
        for key, values in searched.items():
            check(bool(values), f"search.space.{key} takes choice: [...] only")
        if jitter := self.search.space.get("augment.jitter_px"):
            searched["augment.jitter_px"] = jitter.choice or (jitter.high,)  # the farthest; no label set depends on it
        students = [self.student]
        for key, values in searched.items():
            students += [student_with(student, {key: value}) for student in students for value in values]
        found = set()
        for student in students:
            labels = self.label_set(student)
            assert student.distill is not None
            if student.distill.labels == "stored":
                found.add(labels)
            reach = student.augment.jitter_px if student.distill.labels == "online" else 0
            margin = self.data.crop.margin_px
            radius, farthest = student.distill.offset_radius, labels.radius + reach
            check(radius <= margin, f"an offset radius K of {radius} exceeds data.crop.margin_px {margin}")
            said = f"online labels look K + augment.jitter_px = {farthest} pixels aside"
            check(farthest <= margin, f"{said}, more than data.crop.margin_px {margin}")
        return tuple(sorted(found))

    @property
    def folder(self) -> Path:
        """The store on this machine: the store itself, or a remote one's counterpart."""
        return Remote(self.store).folder if is_remote(self.store) else Path(self.store)

    @property
    def tracking_uri(self) -> str:
        """MLflow's address: the configured one, or SQLite in the store."""
        return self.mlflow.uri or f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def base_teacher(self) -> str:
        return self.evaluate.base or next(iter(self.teachers))


def own_value(student: TrainSpec, key: str) -> Any:
    """The student's own value of a dotted key."""
    return reduce(operator.getitem, key.split("."), to_dict(student))


def student_with(student: TrainSpec, changes: Mapping[str, Any], *, check_only: bool = False) -> TrainSpec:
    """The student with dotted keys replaced, validated. `check_only` looks at the names alone."""
    tree = to_dict(student)
    for key, value in changes.items():
        place, parts = tree, key.split(".")
        for depth, part in enumerate(parts, start=1):
            known = list(place) if isinstance(place, dict) else []
            if part not in known:
                where = f"search.space: student.{'.'.join(parts[:depth])}"
                raise SpecError(f"{where} does not exist{nearest(part, known)}")
            if depth < len(parts):
                place = place[part]
        place[parts[-1]] = value
    return student if check_only else build(TrainSpec, tree, "student")
