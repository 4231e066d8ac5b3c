"""What tests of training share: a configuration, and the soft labels that its student learns from."""

from typing import Any

from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build, to_dict
from tests.faces import CROP

SIZES = {("heads", "train"): 24, ("others", "train"): 10, ("heads", "val"): 5, ("others", "val"): 2}
SIZES |= {("heads", "test"): 3, ("tested", "test"): 1}  # no two sums of them are equal
NET = {"backbone": "test_resnet"}


def pipeline(**changes: Any) -> PipelineSpec:
    """Trained on two datasets, tested on one of them and on another; `changes` are of its top level."""
    names = ("heads", "others", "tested")
    heads = {name: {"reader": "synthetic", "count": 9, "seed": i} for i, name in enumerate(names)}
    tree = {
        "name": "law",
        "data": {"datasets": heads, "train": ["heads", "others"], "test": ["heads", "tested"], "crop": to_dict(CROP)},
        "teachers": {"first": {"net": NET}, "second": {"net": NET}},
        "student": {"net": NET, "optim": {"epochs": 10, "warmup_epochs": 3}, "distill": {}},
        "search": {"epochs": 4, "space": {"optim.lr": {"low": 0.1, "high": 0.9}}},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return build(PipelineSpec, tree)


LABELS = pipeline().label_set(pipeline().student)
