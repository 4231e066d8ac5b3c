"""Every key of the configuration, as frozen dataclasses that are validated when they are built.

`conf/*.yaml` holds values; this file says which keys exist, their types, units and allowed values; `plain.build` turns
a mapping into a spec. Nothing here does work at import, and nothing here imports torch. (The module is long because
every key of the project stands in it, once.)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from hpe_core.plain import SpecError, build, check, nearest, to_dict
from hpe_core.remote import Remote, is_remote


def is_name(text: str) -> bool:
    """Whether a dataset's or teacher's name can be a folder and a metric."""
    return re.fullmatch(r"[^./\\][^/\\]*", text) is not None


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class CropSpec:
    """The canonical crop. `margin_px` bounds offsets, jitter and what a turn can show, in network pixels."""

    size: int = 64
    margin_px: int = 8
    shape: Literal["square", "stretch"] = "square"
    box_scale: float = 1.0

    def __post_init__(self) -> None:
        check(self.size >= 16, f"crop.size must be at least 16 pixels, got {self.size}")
        check(self.margin_px >= 0, f"crop.margin_px must not be negative, got {self.margin_px}")
        check(0.2 <= self.box_scale <= 5, f"crop.box_scale must lie in 0.2 ... 5, got {self.box_scale}")

    @property
    def stored_size(self) -> int:
        return self.size + 2 * self.margin_px


FETCH = "fetch"


@dataclass(frozen=True)
class DetectorSpec:
    """A face detector, YuNet (`hpe_core/detector.py`)."""

    model: str  # its ONNX file, or `fetch`: downloaded once from where it is published, and checked
    min_score: float = 0.6  # faces that the detector is less sure of are no faces
    side_px: int = 640  # the longer side of a larger picture is scaled down to this before faces are looked for

    def __post_init__(self) -> None:
        check(bool(self.model), "detector.model names no file")
        check(0 < self.min_score < 1, f"detector.min_score must lie between 0 and 1, got {self.min_score}")
        check(self.side_px >= 64, f"detector.side_px must be at least 64 pixels, got {self.side_px}")


Sign = Literal[1, -1]


@dataclass(frozen=True)
class ConventionSpec:
    """How an archive's labels differ from our convention (`rotation.py`); as it stands, not at all.

    For archives whose labels are not what their reader expects: `workflows/doctor.py` finds the keys, `convention.py`
    applies them, from the top down.
    """

    unit: Literal["as_read", "radians_as_degrees", "degrees_as_radians"] = "as_read"  # what was taken for what
    order: Literal[  # which angles the three are that the reader calls pitch, yaw, roll
        "pitch_yaw_roll", "pitch_roll_yaw", "yaw_pitch_roll", "yaw_roll_pitch", "roll_pitch_yaw", "roll_yaw_pitch"
    ] = "pitch_yaw_roll"
    pitch_sign: Sign = 1
    yaw_sign: Sign = 1
    roll_sign: Sign = 1
    rotation: Literal["xyz", "xzy", "yxz", "yzx", "zxy", "zyx"] = "xyz"  # factors of R from left to right
    transposed: bool = False  # R is camera frame to head frame


Links = Literal["inside", "anywhere"]
Reader = Literal["synthetic", "pointing04", "aflw2000", "300w_lp", "aflw", "biwi", "manifest"]


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset and how its people are split. Named groups win over shares; shares are drawn per group."""

    reader: Reader
    root: str = ""
    count: int = 0  # synthetic: how many heads; archives: at most this many faces, 0 is all
    seed: int = 0  # synthetic: which heads; all: which groups fall into which share
    image_px: int = 128  # synthetic: side of the rendered picture
    heads_per_person: int = 6  # synthetic
    val: float = 0.1
    test: float = 0.15
    val_groups: tuple[str, ...] = ()
    test_groups: tuple[str, ...] = ()
    landmark_box_scale: float = 1.2  # archives without boxes: the landmarks' box is grown by this
    boxes: str = ""  # archives: a JSON file of published boxes, taken instead of the reader's own
    links: Links = "inside"  # archives: whether a link may lead out of root
    detector: DetectorSpec | None = None  # draws the boxes instead of the reader
    group_by: Literal["person", "sequence"] = "person"  # biwi: sequence is the published, leaking way to split
    convention: ConventionSpec = ConventionSpec()  # archives whose labels are not what their reader expects

    def __post_init__(self) -> None:
        check(0 <= self.val < 1 and 0 <= self.test < 1, "shares val and test must lie in [0, 1)")
        check(self.val + self.test < 1, f"val + test leave nothing to train on: {self.val} + {self.test}")
        check(self.count >= 0, f"count must not be negative, got {self.count}")
        check(self.heads_per_person >= 1 and self.image_px >= 32, "heads_per_person must be >= 1 and image_px >= 32")
        check(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        check(self.reader != "synthetic" or self.count > 0, "a synthetic dataset needs count > 0")
        check(
            self.reader == "synthetic" or bool(self.root),
            f"reader {self.reader} needs root, the archive's folder (manifest: or file)",
        )
        check(self.reader != "synthetic" or not self.boxes, "boxes are for archives; rendered heads have exact ones")
        check(not self.boxes or self.detector is None, "boxes and detector both say whose boxes are taken; drop one")
        check(
            self.reader != "synthetic" or self.convention == ConventionSpec(),
            "convention is for archives; rendered heads have exact poses",
        )
        check(
            self.group_by == "person" or self.reader == "biwi",
            f"group_by: sequence is for reader biwi, not {self.reader}",
        )
        both = sorted(set(self.val_groups) & set(self.test_groups))
        check(not both, f"groups in both val_groups and test_groups: {', '.join(both)}")

    def shares_faces(self, other: "DatasetSpec") -> bool:
        """Whether both read the same archive or render the same heads; AFLW2000's pictures are AFLW's first 2000.

        AFLW with named test groups may stand beside AFLW2000: whoever names them keeps those pictures apart.
        """
        if {self.reader, other.reader} == {"aflw", "aflw2000"}:
            whole = self if self.reader == "aflw" else other
            return not whole.test_groups
        same = self.seed == other.seed if self.reader == "synthetic" else self.archive == other.archive
        return self.reader == other.reader and same

    @property
    def archive(self) -> str:
        """The root in one spelling: BIWI may be named with or without hpdb, a manifest by its folder or its file."""
        path = PurePath(self.root)
        inner = (self.reader == "biwi" and path.name == "hpdb") or (self.reader == "manifest" and path.suffix)
        return str(path.parent if inner else path)


STREAM_DEPTH = 2  # for each task that reads for a worker, its own group of shards and one that waits


@dataclass(frozen=True)
class DataSpec:
    """Which datasets are trained on and tested on, the form of their shards, and how faces reach those who learn.

    `ingest` is the way of the training rows to the workers of a network (`cluster.workers`); whichever it is, the order
    of rows is fixed by the network's seed and the epoch, and a run that was cut off goes on with the batches that it
    would have seen:

    all_shards  every worker reads every shard and takes its part of each batch. The workers see the batches that one
                worker would see, and each keeps every row.
    own_shards  every worker reads and keeps its own equal part of the rows, so memory and reading fall with the number
                of workers. A batch holds as many rows of each part.
    ray_data    workers keep nothing: tasks of Ray Data, on any CPUs of the cluster (`cluster.readers_per_worker` for
                each worker), read, check, decode and shuffle, `stream_shards` shards at a time. For more rows than fit
                into memory, or where the machines with the GPUs have too few CPUs to decode. Slower than the others
                while rows fit (README, "Measured").
    """

    datasets: dict[str, DatasetSpec]
    train: tuple[str, ...]
    test: tuple[str, ...]
    crop: CropSpec = CropSpec()
    limit_deg: float = 99.0  # poses beyond are filtered and counted
    encoding: Literal["raw", "jpeg"] = "raw"
    rows_per_shard: int = 512  # at most; half as many at least
    max_bad_share: float = 0.2  # more quarantined rows than this stop the run
    resident_gb: float = 4.0  # shards are kept in a worker's memory up to this; above it they are streamed
    ingest: Literal["all_shards", "own_shards", "ray_data"] = "all_shards"
    stream_shards: int = 8  # ray_data: so many shards, drawn anew in each epoch, are read and shuffled together

    def __post_init__(self) -> None:
        check(bool(self.train), "data.train names no dataset")
        for role, names in (("train", self.train), ("test", self.test)):
            for name in names:
                check(
                    name in self.datasets,
                    f"data.{role} names '{name}', which data.datasets does not define "
                    f"(defined: {', '.join(self.datasets) or 'none'})",
                )
        for name in self.datasets:
            check(is_name(name), f"data.datasets.{name}: a name has no slash and does not begin with a dot")
        for name in set(self.test) - set(self.train):
            for other in self.train:
                check(
                    not self.datasets[name].shares_faces(self.datasets[other]),
                    f"data.test names '{name}', which holds the same faces as '{other}' in data.train",
                )
        check(0 < self.limit_deg <= 180, f"data.limit_deg must lie in (0, 180], got {self.limit_deg}")
        check(self.rows_per_shard >= 1, "data.rows_per_shard must be at least 1")
        check(0 <= self.max_bad_share <= 1, "data.max_bad_share must lie in [0, 1]")
        check(self.resident_gb > 0, "data.resident_gb must be positive")
        check(self.stream_shards >= 1, f"data.stream_shards must be at least 1, got {self.stream_shards}")

    @property
    def batching(self) -> dict[str, Any]:
        """The keys that decide, beside the number of workers, which faces meet in a batch.

        The default says what it said before there was a choice, so that networks that are trained keep their names.
        """
        if self.ingest == "ray_data":
            return {"ingest": self.ingest, "stream_shards": self.stream_shards}
        return {"resident_gb": self.resident_gb} | ({} if self.ingest == "all_shards" else {"ingest": self.ingest})

    def wanted_bytes(self, faces: float, cluster: "ClusterSpec") -> float:
        """Bytes of pixels, of so many faces, that one worker keeps if it may; with ray_data, that are held for it.

        A stream holds the shards that its tasks are reading, and as many that wait (`workflows/stream.py`).
        """
        row, own = 3.0 * self.crop.stored_size**2, faces / cluster.workers
        if self.ingest == "ray_data":
            return row * min(own, STREAM_DEPTH * cluster.readers_per_worker * self.stream_shards * self.rows_per_shard)
        return row * (own if self.ingest == "own_shards" else faces)

    def kept_bytes(self, faces: float, cluster: "ClusterSpec") -> float:
        """`wanted_bytes` as far as `resident_gb` allows; a stream has its own bound."""
        wanted = self.wanted_bytes(faces, cluster)
        return wanted if self.ingest == "ray_data" else min(wanted, self.resident_gb * 1e9)


# ---------------------------------------------------------------- one network and its training


@dataclass(frozen=True)
class NetSpec:
    """A timm backbone with RvC heads; the narrowest head predicts, the others regularise (offsets 3.2)."""

    backbone: str = "resnet18"
    pretrained: str = "none"  # none | hub | path of a weights file
    bin_widths: tuple[float, ...] = (3.0,)
    limit_deg: float = 99.0
    regression_head: bool = False

    def __post_init__(self) -> None:
        check(bool(self.bin_widths), "net.bin_widths names no head")
        check(len(set(self.bin_widths)) == len(self.bin_widths), "net.bin_widths repeats a width")
        for width in self.bin_widths:
            check(0 < self.limit_deg <= 180, f"net.limit_deg must lie in (0, 180], got {self.limit_deg}")
            check(0 < width <= self.limit_deg, f"net.bin_widths: {width} does not fit +-{self.limit_deg} degrees")


@dataclass(frozen=True)
class OptimSpec:
    epochs: int = 10
    batch_size: int = 64  # over all workers
    lr: float = 1e-3
    weight_decay: float = 0.0
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0  # 0 is off
    ema_decay: float = 0.0  # 0 is off
    accumulate: int = 1  # each batch goes through the network in so many parts; batch statistics are those of a part
    amp: bool = False  # bfloat16 on a GPU; a CPU computes in float32 all the same (bfloat16 halves its speed)
    channels_last: bool = False
    compile: bool = False  # torch.compile; needs a C++ compiler on the worker

    def __post_init__(self) -> None:
        check(self.accumulate >= 1, f"optim.accumulate must be at least 1, got {self.accumulate}")
        check(
            self.batch_size >= 2 * self.accumulate,
            f"optim.accumulate {self.accumulate} leaves less than two faces of a batch of {self.batch_size}",
        )
        check(self.epochs >= 1, f"optim.epochs must be at least 1, got {self.epochs}")
        check(self.batch_size >= 2, f"optim.batch_size must be at least 2, got {self.batch_size}")
        check(self.lr > 0, f"optim.lr must be positive, got {self.lr}")
        check(0 <= self.ema_decay < 1, f"optim.ema_decay must lie in [0, 1), got {self.ema_decay}")
        check(0 <= self.warmup_epochs <= self.epochs, "optim.warmup_epochs must lie in 0 ... epochs")


@dataclass(frozen=True)
class AugmentSpec:
    """Pose-aware geometry first, then the papers' photometric chains (EHPNet 4.2, offsets 4.3)."""

    flip: float = 0.5
    turn_deg: float = 0.0  # in-plane turn drawn from +- this
    turn_gain: float = 2.0  # a face of which an angle would change by more than this times its turn stays; 0: none does
    jitter_px: int = 0  # window moved by up to this, inside the margin
    photometric: Literal["none", "light", "ehpnet", "offsets"] = "light"
    strength: float = 1.0  # scales the probability of the photometric chain

    def __post_init__(self) -> None:
        check(0 <= self.flip <= 1, f"augment.flip is a probability, got {self.flip}")
        check(0 <= self.turn_deg <= 45, f"augment.turn_deg must lie in 0 ... 45, got {self.turn_deg}")
        check(
            self.turn_gain == 0 or self.turn_gain >= 1,
            f"augment.turn_gain is 0 or at least 1 (roll itself changes by the turn), got {self.turn_gain}",
        )
        check(self.jitter_px >= 0, f"augment.jitter_px must not be negative, got {self.jitter_px}")
        check(0 <= self.strength <= 1, f"augment.strength must lie in [0, 1], got {self.strength}")


@dataclass(frozen=True)
class DistillSpec:
    """scale * (hard_weight * hard loss + T^2 KL(soft labels || student)); offsets eq. 7 is 0.05 and scale 0.5."""

    temperature: float = 1.0
    hard_weight: float = 0.05
    scale: float = 1.0
    offset_radius: int = 0  # K, network pixels
    offset_step: int = 1  # d, network pixels
    teachers: tuple[str, ...] = ()  # whose soft labels; empty is all
    labels: Literal["stored", "online"] = "stored"  # online: teachers see the augmented view in the training step

    def __post_init__(self) -> None:
        check(len(set(self.teachers)) == len(self.teachers), "distill.teachers repeats a name")
        check(self.temperature > 0, f"distill.temperature must be positive, got {self.temperature}")
        check(self.hard_weight >= 0, f"distill.hard_weight must not be negative, got {self.hard_weight}")
        check(self.scale > 0, f"distill.scale must be positive, got {self.scale}")
        check(self.offset_radius >= 0, f"distill.offset_radius (K) must not be negative, got {self.offset_radius}")
        check(self.offset_step >= 1, f"distill.offset_step (d) must be at least 1, got {self.offset_step}")


@dataclass(frozen=True)
class TrainSpec:
    """One network, from weights to the end of its training: a teacher, a trial or a student."""

    net: NetSpec = NetSpec()
    optim: OptimSpec = OptimSpec()
    augment: AugmentSpec = AugmentSpec()
    hard_loss: Literal["ehpnet", "offsets", "ce"] = "ehpnet"
    mse_weight: float = 1.0  # weight of EHPNet eq. 2 within eq. 3
    distill: DistillSpec | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.mse_weight >= 0, f"mse_weight must not be negative, got {self.mse_weight}")
        check(self.seed >= 0, f"seed must not be negative, got {self.seed}")


class LabelSet(NamedTuple):
    """Soft labels of one kind: which teachers, over which windows. Equal windows have one (radius, step)."""

    teachers: tuple[str, ...]
    radius: int
    step: int

    @property
    def offsets(self) -> tuple[int, int]:
        return self.radius, self.step

    @property
    def name(self) -> str:
        """Of its folder, e.g. resnet+regnet-K15-d5."""
        return f"{'+'.join(self.teachers)}-K{self.radius}-d{self.step}"


def canonical_offsets(radius: int, step: int) -> tuple[int, int]:
    """(K, d) pairs with the same windows share one name: K is cut to a multiple of d, K < d is (0, 1)."""
    reach = radius // step
    return (reach * step, step) if reach else (0, 1)


# ---------------------------------------------------------------- the pipeline


@dataclass(frozen=True)
class SearchSpace:
    """One searched key: either `choice`, or `low` and `high` (on a log scale if `log`)."""

    choice: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        ranged = self.low is not None and self.high is not None
        check(bool(self.choice) != ranged, "a search space is either choice: [...] or low: and high:")
        if self.low is not None and self.high is not None:
            check(self.low < self.high, f"a search space needs low < high, got {self.low} and {self.high}")
            check(not self.log or self.low > 0, "a log search space needs low > 0")


@dataclass(frozen=True)
class SearchSpec:
    """Ray Tune over the student. Keys of `space` are keys of `student`, e.g. `optim.lr`."""

    trials: int = 4  # 0 leaves the search out: the student is trained as it is configured
    concurrent: int = 2
    epochs: int = 4
    grace_epochs: int = 2  # ASHA never stops a trial before this
    finalists: int = 1  # trained to the end; validation chooses. Of several, one is yours if `space` holds its values
    space: dict[str, SearchSpace] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.trials >= 0, f"search.trials must not be negative, got {self.trials}")
        check(self.concurrent >= 1, "search.concurrent must be at least 1")
        check(1 <= self.grace_epochs <= self.epochs, "search.grace_epochs must lie in 1 ... search.epochs")
        check(self.finalists >= 1, f"search.finalists must be at least 1, got {self.finalists}")

    @property
    def ending(self) -> int:
        """How many settings are trained to the end: no more than were tried, and without a search the student's own."""
        return min(self.finalists, max(self.trials, 1))


@dataclass(frozen=True)
class EvaluateSpec:
    """What is scored beside the trained networks: the offset ensemble of `base` at each (K, d)."""

    base: str = ""  # the teacher that stands alone; empty is the first
    protocol: str = ""  # a name of hpe_core/protocols.py: published figures stand beside ours, deviations are said
    offset_radius: int = 4
    offset_step: int = 2
    latency_threads: int = 1
    heatmap_radius: int = 0  # K and d of the heat map run to this; 0 leaves the picture out

    def __post_init__(self) -> None:
        check(min(self.offset_radius, self.heatmap_radius) >= 0, "evaluate: a radius must not be negative")
        check(self.offset_step >= 1, f"evaluate.offset_step (d) must be at least 1, got {self.offset_step}")
        check(self.latency_threads >= 1, "evaluate.latency_threads must be at least 1")


@dataclass(frozen=True)
class PublishSpec:
    model_name: str = "head-pose"
    alias: str = "champion"
    parity_crops: int = 500  # test faces on which torch, ONNX and int8 are compared; 0: noise, and int8 has no score
    calibration_crops: int = 256  # validation faces that set the ranges of the int8 file; 0 leaves that file out

    def __post_init__(self) -> None:
        for key in ("parity_crops", "calibration_crops"):
            check(getattr(self, key) >= 0, f"publish.{key} must not be negative, got {getattr(self, key)}")
        taken = self.alias in ("candidate", "latest") or re.fullmatch(r"v\d+", self.alias) is not None
        check(not taken, f"publish.alias '{self.alias}' means something else in the registry; choose another")


@dataclass(frozen=True)
class ClusterSpec:
    """How Ray is found and shared. `address: auto` joins a running cluster and else starts a local one."""

    address: str = "auto"
    local_cpus: int = 0  # logical CPUs of a local cluster; 0 is max(4, cores): fewer can deadlock Ray Data
    workers: int = 1  # data-parallel workers of each network
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    threads_per_worker: int = 1
    readers_per_worker: int = 1  # data.ingest ray_data: tasks of one CPU each that read for a worker, beside it
    max_failures: int = 2
    max_cpus: int = 0  # of a cluster that scales: CPUs that it may grow to, nodes with GPUs not counted; 0: it does not
    max_gpus: int = 0  # the same for GPUs

    def __post_init__(self) -> None:
        check(self.workers >= 1, "cluster.workers must be at least 1")
        check(min(self.max_cpus, self.max_gpus) >= 0, "cluster.max_cpus and max_gpus must not be negative")
        check(self.cpus_per_worker > 0, "cluster.cpus_per_worker must be positive")
        check(self.gpus_per_worker >= 0, "cluster.gpus_per_worker must not be negative")
        check(self.threads_per_worker >= 1, "cluster.threads_per_worker must be at least 1")
        check(self.readers_per_worker >= 1, "cluster.readers_per_worker must be at least 1")


@dataclass(frozen=True)
class MlflowSpec:
    uri: str = ""  # empty: SQLite in the store; none: no tracking
    experiment: str = "head-pose"


@dataclass(frozen=True)
class PipelineSpec:
    """The whole run: one value of this type decides every stage."""

    name: str
    data: DataSpec
    teachers: dict[str, TrainSpec]
    student: TrainSpec
    search: SearchSpec = SearchSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    publish: PublishSpec = PublishSpec()
    cluster: ClusterSpec = ClusterSpec()
    mlflow: MlflowSpec = MlflowSpec()
    store: str = "runs"  # a folder, or an address such as s3://bucket/runs (workflows/mirror.py)

    def __post_init__(self) -> None:
        check(bool(self.teachers), "teachers names no network")
        check(self.student.distill is not None, "student.distill is missing: the student learns from soft labels")
        for name, teacher in self.teachers.items():
            check(teacher.distill is None, f"teachers.{name}.distill: a teacher learns from hard labels")
            check(
                teacher.net.limit_deg == self.student.net.limit_deg
                and min(teacher.net.bin_widths) == min(self.student.net.bin_widths),
                f"teachers.{name}.net: soft labels need the same limit_deg and narrowest bin width as the student",
            )
        for who, spec in {**{f"teachers.{k}": v for k, v in self.teachers.items()}, "student": self.student}.items():
            check(
                spec.net.limit_deg >= self.data.limit_deg,
                f"{who}.net.limit_deg {spec.net.limit_deg} is smaller than data.limit_deg {self.data.limit_deg}",
            )
            check(
                spec.augment.jitter_px <= self.data.crop.margin_px,
                f"{who}.augment.jitter_px {spec.augment.jitter_px} exceeds data.crop.margin_px",
            )
            self._check_batch(spec.optim, f"{who}.optim")
        for name in self.teachers:
            check(
                is_name(name) and "+" not in name and name not in ("hard", "distilled"),
                f"teachers.{name}: a name has no slash or plus, does not begin with a dot, is not hard or distilled",
            )
        self._check_search()
        base = self.evaluate.base
        check(not base or base in self.teachers, f"evaluate.base '{base}' is no teacher ({', '.join(self.teachers)})")
        self.label_sets()
        margin = self.data.crop.margin_px
        for key in ("offset_radius", "heatmap_radius"):
            value = getattr(self.evaluate, key)
            check(value <= margin, f"evaluate.{key} {value} exceeds data.crop.margin_px {margin}")

    def _check_batch(self, optim: OptimSpec, key: str) -> None:
        """Equal parts for all workers (their gradients weigh the same), of two faces at least (batch statistics)."""
        workers, size = self.cluster.workers, optim.batch_size
        check(size % workers == 0, f"{key}.batch_size {size} is no multiple of cluster.workers {workers}")
        parts = workers * optim.accumulate
        check(size >= 2 * parts, f"{key}.batch_size {size} leaves less than two faces for each of {parts} parts")

    def _check_search(self) -> None:
        """Every searched value makes a student that can be trained: said now, not by a trial that dies."""
        for key, entry in self.search.space.items():
            student_with(self.student, {key: None}, check_only=True)
            check(key != "net.pretrained", "search.space.net.pretrained: weights files are not searched")
            for value in entry.choice or (entry.low, entry.high):
                try:
                    changed = student_with(self.student, {key: value})
                except SpecError as error:
                    raise SpecError(f"search.space.{key}: {error}") from None
                self._check_batch(changed.optim, f"search.space.{key}: student.optim")
                check(
                    changed.augment.jitter_px <= self.data.crop.margin_px,
                    f"search.space.{key}: {value} exceeds data.crop.margin_px {self.data.crop.margin_px}",
                )
                check(
                    changed.net.limit_deg == self.student.net.limit_deg
                    and min(changed.net.bin_widths) == min(self.student.net.bin_widths),
                    f"search.space.{key}: soft labels need the teachers' limit_deg and narrowest bin width",
                )

    def label_set(self, student: TrainSpec) -> LabelSet:
        """The soft labels that a student asks for, its teachers in the order of the configuration."""
        distill = student.distill
        assert distill is not None
        for name in distill.teachers:
            check(name in self.teachers, f"distill.teachers: '{name}' is no teacher{nearest(name, [*self.teachers])}")
        chosen = tuple(name for name in self.teachers if name in distill.teachers or not distill.teachers)
        return LabelSet(chosen, *canonical_offsets(distill.offset_radius, distill.offset_step))

    def label_sets(self) -> tuple[LabelSet, ...]:
        """Every label set that the student or a trial may read: what the labels stage has to write."""
        keys = ("distill.offset_radius", "distill.offset_step", "distill.teachers", "distill.labels")
        searched = {key: self.search.space[key].choice for key in keys if key in self.search.space}
        for key, values in searched.items():
            check(bool(values), f"search.space.{key} takes choice: [...] only")
        jitter = self.search.space.get("augment.jitter_px", SearchSpace(choice=(self.student.augment.jitter_px,)))
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
            check(
                student.distill.offset_radius <= margin,
                f"an offset radius K of {student.distill.offset_radius} exceeds data.crop.margin_px {margin}",
            )
            check(
                labels.radius + reach <= margin,
                f"online labels look K + augment.jitter_px = {labels.radius + reach} pixels aside, "
                f"more than data.crop.margin_px {margin}",
            )
        return tuple(sorted(found))

    @property
    def folder(self) -> Path:
        """The store on this machine: the store itself, or a remote one's counterpart."""
        return Remote(self.store).folder if is_remote(self.store) else Path(self.store)

    @property
    def base_teacher(self) -> str:
        return self.evaluate.base or next(iter(self.teachers))


def student_with(student: TrainSpec, changes: Mapping[str, Any], *, check_only: bool = False) -> TrainSpec:
    """The student with dotted keys replaced, validated. `check_only` looks at the names alone."""
    tree = to_dict(student)
    for key, value in changes.items():
        node, *rest = key.split(".")
        place, parts = tree, [node, *rest]
        for depth, part in enumerate(parts):
            if not isinstance(place, dict) or part not in place:
                known = list(place) if isinstance(place, dict) else []
                where = "search.space: student." + ".".join(parts[: depth + 1])
                raise SpecError(f"{where} does not exist{nearest(part, known)}")
            if depth < len(parts) - 1:
                place = place[part]
        place[parts[-1]] = value
    return student if check_only else build(TrainSpec, tree, "student")
