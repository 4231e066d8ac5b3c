"""Keys of `data`: which datasets, how their faces are cut, and how the rows reach those who learn."""

import re
from typing import Annotated, Any, Literal

from hpe_core.errors import check
from hpe_core.spec.cluster import ClusterSpec
from hpe_core.spec.network import Degrees
from hpe_core.spec.serde import Count, Natural, NotNegative, Positive, Share, Text, at_least, at_most, below, checked


def is_name(text: str) -> bool:
    """Whether a dataset's or teacher's name can be a folder and a metric."""
    return re.fullmatch(r"[^./\\][^/\\]*", text) is not None


@checked
class CropSpec:
    """The canonical crop. `margin_px` bounds offsets, jitter and what a turn can show, in network pixels."""

    size: Annotated[int, at_least(16)] = 64
    margin_px: Natural = 8
    shape: Literal["square", "stretch"] = "square"
    box_scale: Annotated[float, at_least(0.2), at_most(5)] = 1.0

    @property
    def stored_size(self) -> int:
        return self.size + 2 * self.margin_px

    @property
    def seen(self) -> dict[str, object]:
        """The keys that decide what a network sees of a face."""
        return {"size": self.size, "shape": self.shape, "box_scale": self.box_scale}


FETCH = "fetch"


@checked
class DetectorSpec:
    """A face detector, YuNet (`hpe_core/detection`)."""

    model: Text  # its ONNX file, or `fetch`: downloaded once from where it is published, and checked
    min_score: Annotated[Positive, below(1)] = 0.6  # faces that the detector is less sure of are no faces
    side_px: Annotated[int, at_least(64)] = 640  # faces are looked for in a copy whose longer side is at most this
    fit: bool = False  # boxes become such as those of landmarks, which the shipped networks know


Sign = Literal[1, -1]


@checked
class ConventionSpec:
    """How an archive's labels differ from our convention (`rotation.py`); as it stands, not at all.

    For archives whose labels are not what their reader expects: the doctor finds the keys, `geometry/convention.py`
    applies them, from the top down.
    """

    unit: Literal["as_read", "radians_as_degrees", "degrees_as_radians"] = "as_read"  # what was taken for what
    range: Literal["as_read", "wrapped"] = "as_read"  # wrapped: 350 becomes -10, the same rotation; for 0 ... 360
    order: Literal[  # which angles the three are that the reader calls pitch, yaw, roll
        "pitch_yaw_roll", "pitch_roll_yaw", "yaw_pitch_roll", "yaw_roll_pitch", "roll_pitch_yaw", "roll_yaw_pitch"
    ] = "pitch_yaw_roll"
    pitch_sign: Sign = 1
    yaw_sign: Sign = 1
    roll_sign: Sign = 1
    rotation: Literal["xyz", "xzy", "yxz", "yzx", "zxy", "zyx"] = "xyz"  # factors of R from left to right
    transposed: bool = False  # R is camera frame to head frame


Links = Literal["inside", "anywhere"]


@checked
class DatasetSpec:
    """One dataset and how its people are split: named groups win over shares, which are drawn per group."""

    reader: str  # a name of datasets/readers
    root: str = ""
    count: Natural = 0  # synthetic: how many heads; archives: at most this many faces, 0 is all
    seed: Natural = 0  # synthetic: which heads; all: which groups fall into which share
    image_px: Annotated[int, at_least(32)] = 128  # synthetic: side of the rendered picture
    heads_per_person: Count = 6  # synthetic
    poses: Literal["ahead", "around"] = "ahead"  # synthetic: within 99 degrees, or from everywhere, behind and above
    val: Annotated[NotNegative, below(1)] = 0.1
    test: Annotated[NotNegative, below(1)] = 0.15
    val_groups: tuple[str, ...] = ()
    test_groups: tuple[str, ...] = ()
    boxes: str = ""  # archives: a JSON file of published boxes, taken instead of the reader's own
    links: Links = "inside"  # archives: whether a link may lead out of root
    detector: DetectorSpec | None = None  # draws the boxes instead of the reader
    group_by: Literal["person", "sequence"] = "person"  # biwi: sequence is the published, leaking way to split
    convention: ConventionSpec = ConventionSpec()  # archives whose labels are not what their reader expects

    def __post_init__(self) -> None:
        check(self.val + self.test < 1, f"val + test leave nothing to train on: {self.val} + {self.test}")
        check(not self.boxes or self.detector is None, "boxes and detector both say whose boxes are taken; drop one")
        both = sorted(set(self.val_groups) & set(self.test_groups))
        check(not both, f"groups in both val_groups and test_groups: {', '.join(both)}")


STREAM_DEPTH = 2  # for each task that reads for a worker, its own group of shards and one that waits


@checked
class DataSpec:
    """Which datasets are trained on and tested on, the form of their shards, and how faces reach those who learn.

    `ingest` is the way of the training rows to the workers of a network (`cluster.workers`); whichever it is, the order
    of rows is fixed by the network's seed and the epoch, and a run that was cut off goes on with the batches that it
    would have seen:

    all_shards  every worker takes its part of each batch, which is the one that a single worker would see
    own_shards  every worker reads its own equal part of the rows; a batch holds as many rows of each part
    ray_data    nobody keeps rows: tasks of Ray Data, on any CPUs of the cluster (`cluster.readers_per_worker` for
                each worker), read, decode and shuffle, `stream_shards` shards at a time. For more rows than a machine
                holds, or GPU machines with few CPUs; slower while rows fit (docs/benchmarks.md)

    In the first two, rows lie once on each machine, in files that all workers and trials there share.
    """

    datasets: dict[str, DatasetSpec]
    train: tuple[str, ...]
    test: tuple[str, ...]
    crop: CropSpec = CropSpec()
    limit_deg: Degrees = 99.0  # poses beyond are filtered and counted
    encoding: Literal["raw", "jpeg"] = "raw"
    rows_per_shard: Count = 512  # at most; half as many at least
    max_bad_share: Share = 0.2  # more quarantined rows than this stop the run
    resident_gb: Positive = 4.0  # of a training device's memory that rows may take; it changes no batch
    ingest: Literal["all_shards", "own_shards", "ray_data"] = "all_shards"
    stream_shards: Count = 8  # ray_data: so many shards, drawn anew in each epoch, are read and shuffled together

    def __post_init__(self) -> None:
        check(bool(self.train), "data.train names no dataset")
        for role, names in (("train", self.train), ("test", self.test)):
            for name in names:
                check(names.count(name) == 1, f"data.{role} names '{name}' twice: each of its faces would count twice")
                said = f"data.{role} names '{name}', which data.datasets does not define"
                check(name in self.datasets, f"{said} (defined: {', '.join(self.datasets) or 'none'})")
        for name in self.datasets:
            check(is_name(name), f"data.datasets.{name}: a name has no slash and does not begin with a dot")

    @property
    def batching(self) -> dict[str, Any]:
        """The keys that decide, beside the number of workers, which faces meet in a batch."""
        if self.ingest == "ray_data":
            return {"ingest": self.ingest, "stream_shards": self.stream_shards}
        return {} if self.ingest == "all_shards" else {"ingest": self.ingest}

    def machine_bytes(self, faces: float, cluster: "ClusterSpec") -> float:
        """Bytes of pixels of so many faces on a machine with all workers of a network: its rows, or their streams."""
        row, own = 3.0 * self.crop.stored_size**2, faces / cluster.fewest_workers
        if self.ingest == "ray_data":
            groups = STREAM_DEPTH * cluster.readers_per_worker * self.stream_shards * self.rows_per_shard
            return row * cluster.most_workers * min(own, groups)
        return row * faces
