"""What each key decides: which stages run again when it changes, and which stay.

The table names every key of the configuration. A key that is added and stands in no row fails the first test.
"""

import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from hpe_core.errors import SpecError
from hpe_core.spec.cluster import Share, StageShares
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build
from tests.engine.house import (
    ALL,
    EVALUATE,
    LABELS,
    NOTHING,
    PUBLISH,
    ROLES,
    SEARCH,
    STUDENT,
    TAUGHT,
    TESTED,
    changed,
    hashes,
    put,
)

SHARED_KEYS = [field.name for field in fields(Share)]
SHARED = [field.name for field in fields(StageShares)]

# Keys of one network and its training, each with another value; of a teacher and of the student.
NETWORK: dict[str, Any] = {
    "net.backbone": "test_convnext",
    "net.pretrained": "OTHER",
    "net.bin_widths": [3, 11],
    "net.regression_head": True,
    "net.mirrored": True,
    "net.looks": [1, 0.9],
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
    "augment.zoom": 0.1,
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
    "found": {"root": "LARGER"}
    | {"detector.model": "OTHER", "detector.min_score": 0.7, "detector.side_px": 320, "detector.fit": True},
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
TABLE["student.optim.epochs"] = (9, STUDENT)  # every trial has the search's
TABLE |= {f"student.distill.{key}": row for key, row in DISTILL.items()}
REFUSED = {f"teachers.*.distill.{key}" for key in DISTILL}  # teachers learn from hard labels


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
