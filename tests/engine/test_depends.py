"""What each key, file and module decides: which stages run again when it changes, and which stay.

The table names every key of the configuration. A key that is added and stands in no row fails the first test.
"""

import json
import os
import shutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from hpe_core.augment.augment import Augment
from hpe_core.data.batch import FaceData
from hpe_core.data.rows import write_shard
from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.readers.biwi import Biwi
from hpe_core.datasets.registry import reader_modules
from hpe_core.errors import SpecError
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.crop import canonical_crop, window
from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.learning.ensemble import ensemble_probs
from hpe_core.learning.losses import ehpnet_loss
from hpe_core.learning.metrics import PoseSums
from hpe_core.learning.models import PoseNet
from hpe_core.learning.task import PoseTask
from hpe_core.render.scene import render_head
from hpe_core.spec.cluster import Share, StageShares
from hpe_core.spec.network import MEANING, WEIGHTS
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build
from hpe_core.training.loop import fit
from tests.archives import write_aflw2000, write_biwi, write_pointing04
from workflows.checks.convention import check_labels
from workflows.engine import plan as planning
from workflows.engine.plan import plan
from workflows.export.onnx_file import export_network
from workflows.full_pipeline import STAGES
from workflows.stages import shards
from workflows.storage.code import code_hashes

NAMES = ("shards", "teachers", "labels", "search", "student", "evaluate", "publish")
ALL, TAUGHT, LABELS, SEARCH, STUDENT, EVALUATE, PUBLISH = (NAMES[start:] for start in range(len(NAMES)))
TESTED = ("shards", "evaluate", "publish")  # another test set makes new shards and retrains nobody
NOTHING: tuple[str, ...] = ()
SHARED_KEYS = [field.name for field in fields(Share)]
SHARED = [field.name for field in fields(StageShares)]

# Keys of one network and its training, each with another value; of a teacher and of the student.
NETWORK: dict[str, Any] = {
    "net.backbone": "test_convnext",
    "net.pretrained": "OTHER",
    "net.bin_widths": [3, 11],
    "net.regression_head": True,
    "net.landmarks": True,
    "net.decoder_width": 8,
    "net.decoder_stride": 4,
    "hard_loss": "ce",
    "mse_weight": 0.5,
    "label_sd": 2.0,
    "mae_weight": 0.5,
    "heatmap_weight": 0.5,
    "landmark_weight": 0.5,
    "visibility_weight": 0.5,
    "start": "OTHER",
    "seed": 5,
    "optim.epochs": 9,
    "optim.batch_size": 24,
    "optim.batch_scaling": "scale",
    "optim.lr_scaling": "linear",
    "optim.lr": 0.5,
    "optim.weight_decay": 0.1,
    "optim.optimizer": "sgd",
    "optim.schedule": "constant",
    "optim.warmup_epochs": 0.5,
    "optim.clip_norm": 1,
    "optim.ema_decay": 0.5,
    "optim.accumulate": 2,
    "optim.amp": False,
    "optim.channels_last": False,
    "optim.step": "compiled",
    "optim.deterministic": True,
    "augment.flip": 0.25,
    "augment.turn_deg": 3,
    "augment.turn_gain": 0,
    "augment.jitter_px": 1,
    "augment.photometric": "none",
    "augment.strength": 0.5,
    "augment.backend": "albumentations",
}
DISTILL = {"temperature": (2, SEARCH), "hard_weight": (0.5, SEARCH), "scale": (0.5, SEARCH)}
DISTILL |= {"offset_radius": (1, LABELS), "offset_step": (4, LABELS), "mirrored": (True, LABELS)}
DISTILL |= {"distrust": (1.0, SEARCH)}
DISTILL |= {"teachers": (["second"], LABELS), "labels": ("online", LABELS)}
# Keys of a dataset, by the kind of dataset (see `House`) that has them, and other values.
DATASET: dict[str, dict[str, Any]] = {
    "boxed": {"reader": "pointing04", "boxes": "OTHER", "links": "anywhere"},
    "found": {"root": "LARGER", "detector.model": "OTHER", "detector.min_score": 0.7, "detector.side_px": 320},
    "drawn": {
        "count": 41,
        "seed": 90,
        "image_px": 96,
        "heads_per_person": 5,
        "poses": "around",
        "val": 0.2,
        "test": 0.2,
    },
    "frames": {"val_groups": ["person01"], "test_groups": ["person01"], "group_by": "sequence"}
    | {f"convention.{name}_sign": -1 for name in ("pitch", "yaw", "roll")}
    | {"convention.unit": "radians_as_degrees", "convention.range": "wrapped", "convention.order": "yaw_pitch_roll"}
    | {"convention.rotation": "zyx", "convention.transposed": True},
}
DATASETS = [(kind, key) for kind, keys in DATASET.items() for key in keys]
# Every other key: another value, and the stages that run again.
TABLE: dict[str, tuple[Any, tuple[str, ...]]] = {
    "name": ("other", PUBLISH),
    "data.train": (["learnt drawn", "learnt frames", "learnt boxed"], ALL),
    "data.test": (["tested drawn", "tested frames", "tested boxed", "tested found"], TESTED),
    "data.crop.size": (40, ALL),
    "data.crop.margin_px": (9, ALL),
    "data.crop.shape": ("stretch", ALL),
    "data.crop.box_scale": (1.1, ALL),
    "data.limit_deg": (60, ALL),
    "data.encoding": ("jpeg", ALL),
    "data.rows_per_shard": (100, ALL),
    "data.max_bad_share": (0.9, NOTHING),  # decides whether a run stops
    "data.resident_gb": (1, NOTHING),  # where rows lie
    "data.ingest": ("own_shards", TAUGHT),
    "data.stream_shards": (3, NOTHING),  # of streams alone, see below
    "search.trials": (9, SEARCH),
    "search.concurrent": (7, SEARCH),
    "search.epochs": (9, SEARCH),
    "search.grace_epochs": (1, SEARCH),
    "search.finalists": (2, STUDENT),
    "search.space.*.choice": (["test_resnet"], SEARCH),
    "search.space.*.low": (0.0005, SEARCH),
    "search.space.*.high": (0.2, SEARCH),
    "search.space.*.log": (True, SEARCH),
    "evaluate.base": ("second", EVALUATE),
    "evaluate.protocol": ("rendered-heads", EVALUATE),
    "evaluate.offset_radius": (2, EVALUATE),
    "evaluate.offset_step": (1, EVALUATE),
    "evaluate.latency_threads": (2, EVALUATE),
    "evaluate.heatmap_radius": (1, EVALUATE),
    "publish.model_name": ("other", PUBLISH),
    "publish.alias": ("best", PUBLISH),
    "publish.parity_crops": (7, PUBLISH),
    "publish.calibration_crops": (7, PUBLISH),
    "export.opset": (20, PUBLISH),
    "cluster.address": ("local", NOTHING),
    "cluster.local_cpus": (9, NOTHING),
    "cluster.workers": (2, TAUGHT),
    "cluster.cpus_per_worker": (2, NOTHING),
    "cluster.gpus_per_worker": (1, NOTHING),
    **{f"cluster.stages.{stage}.{key}": (2, NOTHING) for stage in SHARED for key in SHARED_KEYS},
    "cluster.stages.teachers.workers": (2, TAUGHT),
    "cluster.stages.student.workers": (2, STUDENT),
    "cluster.stages.labels.workers": (2, NOTHING),
    "cluster.stages.evaluate.workers": (2, NOTHING),
    "cluster.threads_per_worker": (2, NOTHING),
    "cluster.memory_gb_per_worker": (2, NOTHING),
    "cluster.readers_per_worker": (2, NOTHING),
    "cluster.max_failures": (9, NOTHING),
    "cluster.checkpoint_s": (1, NOTHING),
    "cluster.max_cpus": (9, NOTHING),
    "cluster.max_gpus": (9, NOTHING),
    "mlflow.uri": ("none", NOTHING),
    "mlflow.experiment": ("other", NOTHING),
    "store": ("OTHER", NOTHING),
    "student.net.limit_deg": (120, TAUGHT),  # soft labels need one grid of bins, so the teachers' changes with it
    "teachers.*.net.limit_deg": (120, TAUGHT),
    "student.net.head": ("fisher", LABELS),  # with its loss; the labels become mean rotations
    "teachers.*.net.head": ("fisher", TAUGHT),
}
TABLE |= {f"teachers.*.{key}": (value, TAUGHT) for key, value in NETWORK.items()}
TABLE |= {f"student.{key}": (value, SEARCH) for key, value in NETWORK.items()}
TABLE |= {f"student.distill.{key}": row for key, row in DISTILL.items()}
REFUSED = {f"teachers.*.distill.{key}" for key in DISTILL}  # teachers learn from hard labels

# The entry that stands for `*`.
PICKED = {"teachers": "first", "search.space.*.choice": "net.backbone"}
PICKED |= {f"search.space.*.{key}": "optim.lr" for key in ("low", "high", "log")}
ROLES = {"learnt": ALL, "tested": TESTED, "spare": NOTHING}


class House:
    """A configuration with every kind of dataset in every role, and the files that it names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for seed, role in enumerate(ROLES):
            write_biwi(root / role / "frames" / "hpdb", 1, 3)
            write_aflw2000(root / role / "boxed", "image00001")
            write_pointing04(root / role / "boxed", 1, 0, 0, 15)
            for folder in ("found", "found LARGER"):
                write_pointing04(root / role / folder, 1, 0, 0, 15)
            write_pointing04(root / role / "found LARGER", 2, 0, 0, 15)
            for name, side in (("boxes", 9), ("boxes OTHER", 8)):
                text = json.dumps({"image00001.jpg": [{"bbox": [0, 0, 9, side + seed / 8]}]})
                (root / role / f"{name}.json").write_text(text)
            for name in ("detector", "detector OTHER"):
                (root / role / name).write_bytes(f"{role} {name}".encode())
        for name in ("teacher", "student", "weights OTHER"):
            (root / name).write_bytes(name.encode())
        (root / "start OTHER").mkdir()
        for name in (WEIGHTS, MEANING):
            (root / "start OTHER" / name).write_bytes(b"saved")

    def dataset(self, role: str, kind: str) -> dict[str, Any]:
        folder = self.root / role
        return {
            "drawn": {"reader": "synthetic", "count": 40, "seed": 10 + list(ROLES).index(role)},
            "frames": {"reader": "biwi", "root": f"{folder}/frames"},
            "boxed": {"reader": "aflw2000", "root": f"{folder}/boxed", "boxes": f"{folder}/boxes.json"},
            "found": {"reader": "pointing04", "root": f"{folder}/found", "detector": {"model": f"{folder}/detector"}},
        }[kind]

    def tree(self) -> dict[str, Any]:
        """The configuration, as YAML gives it."""
        kinds = ("drawn", "frames", "boxed", "found")
        net = {"backbone": "test_byobnet", "bin_widths": [3, 9]}
        train = {"optim": {"batch_size": 32}, "augment": {"jitter_px": 2}}
        student = net | {"pretrained": str(self.root / "student")}
        space = {"optim.lr": {"low": 0.001, "high": 0.1}, "net.backbone": {"choice": ["test_byobnet", "test_resnet"]}}
        datasets = {f"{role} {kind}": self.dataset(role, kind) for role in ROLES for kind in kinds}
        tested = ["learnt drawn", *(f"tested {kind}" for kind in kinds)]
        first = {"net": net | {"pretrained": str(self.root / "teacher")}, **train}
        distill = {"offset_radius": 4, "offset_step": 2}
        return {
            "name": "base",
            "store": str(self.root / "store"),
            "data": {"datasets": datasets, "train": [f"learnt {kind}" for kind in kinds], "test": tested},
            "teachers": {"first": first, "second": {"net": net, **train}},
            "student": {"net": student, **train, "distill": distill},
            "search": {"space": space},
            **{name: {} for name in ("evaluate", "publish", "cluster", "mlflow")},
        }

    def other(self, key: str, value: Any, role: str = "") -> Any:
        """A value that names a file of this house."""
        if value not in ("OTHER", "LARGER"):
            return value
        words = {"root": "found LARGER", "boxes": "boxes OTHER.json", "model": "detector OTHER", "start": "start OTHER"}
        return str(self.root / role / words.get(key.split(".")[-1], f"weights {value}"))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


def put(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a tree with other values. `a.*.b` is the entry of `a` that PICKED names; a name may hold dots."""
    tree = json.loads(json.dumps(tree))  # not a deep copy: parts that are one object would stay one
    for key, value in changes.items():
        before, star, after = key.partition(".*.")
        place, rest = tree, key
        if star:
            for part in before.split("."):
                place = place[part]
            place, rest = place[PICKED.get(key, PICKED.get(before, ""))], after
        *parents, last = rest.split(".")
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def hashes(tree: dict[str, Any]) -> dict[str, str]:
    return {entry.stage.name: entry.hash for entry in plan(STAGES, build(PipelineSpec, tree))}


def changed(before: dict[str, str], tree: dict[str, Any]) -> tuple[str, ...]:
    """The stages that would run again."""
    return tuple(name for name, found in hashes(tree).items() if found != before[name])


@pytest.fixture(scope="module")
def base(house: House) -> dict[str, str]:
    return hashes(house.tree())


def keys_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a spec, dotted; `*` stands for a name that the user chooses."""
    for name, hint in typing.get_type_hints(kind).items():
        parts = [hint, *typing.get_args(hint)]
        inner = next((part for part in parts if is_dataclass(part)), None)
        if inner is None:
            yield prefix + name
        else:
            yield from keys_of(inner, f"{prefix}{name}." + ("*." if typing.get_origin(hint) is dict else ""))


def test_every_key_says_where_it_belongs():
    written = {*TABLE, *REFUSED, *(f"data.datasets.*.{key}" for _, key in DATASETS)}
    assert set(keys_of(PipelineSpec)) == written


@pytest.mark.parametrize("key", TABLE)
def test_a_key_reruns_exactly_the_stages_that_depend_on_it(house, base, key):
    value, expected = TABLE[key]
    changes = {key: house.other(key, value)}
    if key.endswith("net.limit_deg"):
        tree = put(house.tree(), {"student.net.limit_deg": value})
        for teacher in tree["teachers"].values():
            teacher["net"]["limit_deg"] = value
    elif key.endswith("net.head"):  # not without a loss that fits it, and the student with the first that changes
        fisher = {"student.net.head": value, "student.hard_loss": "fisher"}
        if key.startswith("teachers"):
            base = hashes(put(house.tree(), fisher))
            fisher |= {key: value, "teachers.*.hard_loss": "fisher"}
        tree = put(house.tree(), fisher)
    elif key.endswith("start"):  # not beside other weights, nor while backbones are searched
        lr = {"optim.lr": {"low": 0.001, "high": 0.1}}
        free = put(house.tree(), {key.removesuffix("start") + "net.pretrained": "none", "search.space": lr})
        base, tree = hashes(free), put(free, changes)
    else:
        tree = put(house.tree(), changes)
    assert changed(base, tree) == expected


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("kind", "key"), DATASETS)
def test_a_dataset_counts_where_it_is_used(house, base, kind, key, role):
    value = DATASET[kind][key]
    tree = house.tree()
    name = f"{role} {kind}"
    tree["data"]["datasets"][name] = put(tree["data"]["datasets"][name], {key: house.other(key, value, role)})
    assert changed(base, tree) == ROLES[role]


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_teacher_has_no_soft_labels(house, key):
    with pytest.raises(SpecError, match=r"teachers\.first\.distill"):
        build(PipelineSpec, put(house.tree(), {key: DISTILL[key.split(".")[-1]][0]}))


# A key that counts only beside another: what is set on both sides, what is changed, and the stages that run again.
BESIDE: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "a stream's groups": ({"data.ingest": "ray_data"}, {"data.stream_shards": 3}, TAUGHT),
    "a stream's readers": ({"data.ingest": "ray_data"}, {"cluster.readers_per_worker": 2}, NOTHING),
    "no search: its length": ({"search.trials": 0}, {"search.epochs": 9, "search.grace_epochs": 1}, NOTHING),
    "no search: its space": ({"search.trials": 0}, {"search.space.*.low": 0.0005}, NOTHING),
    "searched offsets": ({}, {"search.space": {"distill.offset_radius": {"choice": [0, 4]}}}, LABELS),
    "the first teacher is the base anyway": ({}, {"evaluate.base": "first"}, NOTHING),
    "one window, whatever K": (
        {"student.distill.offset_step": 4, "student.distill.offset_radius": 1},
        {"student.distill.offset_radius": 3},
        SEARCH,
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_key_may_count_only_beside_another(house, name):
    both, change, expected = BESIDE[name]
    assert changed(hashes(put(house.tree(), both)), put(house.tree(), both | change)) == expected


def reordered(tree: dict[str, Any], *parents: str) -> dict[str, Any]:
    *above, last = parents
    place = tree
    for part in above:
        place = place[part]
    old = place[last]
    return put(tree, {".".join(parents): dict(reversed(old.items())) if isinstance(old, dict) else old[::-1]})


@pytest.mark.parametrize(
    ("what", "setting", "expected"),
    [
        ("data.test", {}, EVALUATE),  # the first one's score is shown as the student's
        ("teachers", {}, LABELS),  # a label set is named after its teachers
        ("teachers", {"student.distill.teachers": ["second"]}, EVALUATE),  # the first teacher is the base
        ("teachers", {"student.distill.teachers": ["second"], "evaluate.base": "first"}, NOTHING),
        ("data.datasets", {}, NOTHING),
        ("data.train", {}, NOTHING),
    ],
)
def test_an_order_counts_where_it_decides_something(house, what, setting, expected):
    tree = put(house.tree(), setting)
    assert changed(hashes(tree), reordered(tree, *what.split("."))) == expected


@pytest.mark.parametrize(
    ("file", "trials", "expected"),
    [
        ("teacher", 4, TAUGHT),
        ("student", 4, SEARCH),
        ("student", 0, SEARCH),
        *[(f"{role}/{name}", 4, stages) for role, stages in ROLES.items() for name in ("boxes.json", "detector")],
        *[(f"{role}/frames/hpdb/01/rgb.cal", 4, stages) for role, stages in ROLES.items()],
        *[(f"{role}/boxed/image00001.jpg", 4, stages) for role, stages in ROLES.items()],
    ],
)
def test_a_file_that_changes_under_its_name_is_another(house, file, trials, expected):
    tree = put(house.tree(), {"search.trials": trials})
    before, path = hashes(tree), house.root / file
    whole, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    try:
        path.write_bytes(whole.replace(b"9", b"7") + b" ")
        assert changed(before, tree) == expected
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=times)


def test_what_moved_is_the_same(house, base, tmp_path):
    moved = Path(shutil.copytree(house.root, tmp_path / "moved"))  # keeps the times
    tree = json.loads(json.dumps(house.tree()["data"]).replace(str(house.root), str(moved)))
    for entry in tree["datasets"].values():
        if "boxes" in entry:
            entry["boxes"] = str(Path(entry["boxes"]).rename(Path(entry["boxes"]).with_name("renamed.json")))
    assert changed(base, house.tree() | {"data": tree}) == NOTHING


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_code_of_a_stage_counts_from_there_on(house, base, stage, monkeypatch):
    module = stage.run.__module__
    other = {module: "edited"}
    monkeypatch.setattr(planning, "code_hashes", lambda name: code_hashes(name) | (other if name == module else {}))
    assert changed(base, house.tree()) == NAMES[NAMES.index(stage.name) :]


@pytest.mark.parametrize("role", ROLES)
def test_the_code_of_a_reader_counts_where_its_datasets_are_used(house, role, monkeypatch):
    """No import statement leads to a reader: the shards ask for its code, and for that of what it imports."""
    tree = house.tree()
    for part in ("train", "test"):
        tree["data"][part] = [name for name in tree["data"][part] if "frames" not in name or role in name]
    before, edited = hashes(tree), Biwi.__module__
    other = {edited: "edited"}
    monkeypatch.setattr(shards, "code_hashes", lambda *m: code_hashes(*m) | (other if edited in m else {}))
    assert changed(before, tree) == ROLES[role]


# What decides a stage's result, by the things themselves, wherever they are written.
DECIDES: dict[str, tuple[Callable[..., Any], ...]] = {
    "shards": (canonical_crop, write_shard, plan_dataset, euler_to_matrix),
    "teachers": (fit, FaceData, Augment, PoseTask, ehpnet_loss, PoseNet, AngleBins, PoseSums, window),
    "labels": (ensemble_probs, PoseNet, AngleBins, window),
    "search": (fit, FaceData, Augment, PoseTask, ehpnet_loss, PoseNet, ensemble_probs),
    "evaluate": (ensemble_probs, PoseNet, AngleBins, PoseSums, window),
    "publish": (export_network, PoseNet, window),
}


@pytest.mark.parametrize("name", DECIDES)
def test_the_code_that_decides_a_result_is_counted(house, name):
    (entry,) = [entry for entry in plan(STAGES, build(PipelineSpec, house.tree())) if entry.stage.name == name]
    assert {thing.__module__ for thing in DECIDES[name]} <= set(entry.code)
    assert check_labels.__module__ not in entry.code, "the doctor decides nothing"
    assert render_head.__module__ in code_hashes(*reader_modules(["synthetic"])), "a reader's code is more than itself"
