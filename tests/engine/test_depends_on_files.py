"""What each file, order and module decides: which stages run again when it changes, and which stay."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpe_core.augment.augment import Augment
from hpe_core.data.batch import FaceData
from hpe_core.data.rows import write_shard
from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.readers.biwi import Biwi
from hpe_core.datasets.registry import reader_modules
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.crop import canonical_crop, window
from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.learning.ensemble import ensemble_probs
from hpe_core.learning.losses import ehpnet_loss
from hpe_core.learning.metrics import PoseSums
from hpe_core.learning.task import PoseTask
from hpe_core.networks.models import PoseNet
from hpe_core.render.scene import render_head
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build
from hpe_core.training.loop import fit
from tests.engine.house import EVALUATE, LABELS, NAMES, NOTHING, ROLES, SEARCH, TAUGHT, changed, hashes, put
from workflows.checks.convention import check_labels
from workflows.engine import plan as planning
from workflows.engine.plan import plan
from workflows.export.onnx_file import export_network
from workflows.full_pipeline import STAGES
from workflows.stages import shards
from workflows.storage.code import code_hashes


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
