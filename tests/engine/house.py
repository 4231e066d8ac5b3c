"""A configuration with every kind of dataset in every role, and what reruns when something in it changes."""

import json
from pathlib import Path
from typing import Any

from hpe_core.spec.network import MEANING, WEIGHTS
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build
from tests.archives import write_aflw2000, write_biwi, write_pointing04
from workflows.engine.plan import plan
from workflows.full_pipeline import STAGES

NAMES = ("shards", "teachers", "labels", "search", "student", "evaluate", "publish")
ALL, TAUGHT, LABELS, SEARCH, STUDENT, EVALUATE, PUBLISH = (NAMES[start:] for start in range(len(NAMES)))
TESTED = ("shards", "evaluate", "publish")  # another test set makes new shards and retrains nobody
NOTHING: tuple[str, ...] = ()

BACKBONE = "test_byobnet"
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
        (root / "start OTHER" / WEIGHTS).write_bytes(b"saved")
        meaning = {"net": {"backbone": BACKBONE}, "crop": {}}
        (root / "start OTHER" / MEANING).write_text(json.dumps(meaning))

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
        net = {"backbone": BACKBONE, "bin_widths": [3, 9]}
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
