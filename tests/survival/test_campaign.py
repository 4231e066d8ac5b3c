"""A campaign can fail: whatever is lost is noticed and named. What it touches is said, and only that."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpe_core.datasets.decoding.pictures import read_picture
from hpe_core.datasets.registry import open_source
from hpe_core.errors import SpecError
from hpe_core.spec.data import DatasetSpec
from hpe_core.system.files import file_sha256, write_json
from tests.reproduction.receipts import MADE_BY, manifests
from workflows import survive
from workflows.engine.config import REPO
from workflows.survival import listings
from workflows.survival.campaign import DRILLS, NAMES, Drill, drilled
from workflows.survival.compared import expect_same
from workflows.survival.ground import STAGES, Command, Ground, Lost, back_after, expect_untouched, kept, last
from workflows.survival.nodes import Cluster
from workflows.survival.told import HTML, JSON, Fault, Hit, Receipt, machine, write_receipt


def write_run(store: Path) -> Path:
    """A store in which every stage is finished, with files that are what the manifests say."""
    for stage, manifest in manifests().items():
        folder = store / stage / manifest["hash"]
        for name in manifest["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"{stage} {name}")
            manifest["files"][name] = {"bytes": 1, "sha256": file_sha256(folder / name)}
        write_json(folder / "manifest.json", manifest)
    return store


def weights_of(store: Path) -> Path:
    return store / "student" / "student-hash" / "student-net" / "model.safetensors"


def flipped(store: Path) -> None:
    weights_of(store).write_text("other weights")


def flipped_and_listed(store: Path) -> None:
    """The manifest agrees with the file, and both differ from the undisturbed run's."""
    flipped(store)
    file = store / "student" / "student-hash" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"]["student-net/model.safetensors"]["sha256"] = file_sha256(weights_of(store))
    write_json(file, manifest)


def unfinished(store: Path) -> None:
    (store / "labels" / "labels-hash" / "manifest.json").unlink()


def lost_file(store: Path) -> None:
    weights_of(store).unlink()


def left_over(store: Path) -> None:
    (store / "networks" / "n" / "ray-train").mkdir(parents=True)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flipped, "student-net/model.safetensors is not what its manifest says"),
        (flipped_and_listed, "student student-net: other weights"),
        (unfinished, "not finished: labels"),
        (lost_file, "is not what its manifest says"),
        (left_over, "left lying about: networks/n/ray-train"),
    ],
)
def test_whatever_is_lost_is_named(tmp_path, harm: Callable[[Path], None], said):
    calm, store = write_run(tmp_path / "calm"), write_run(tmp_path / "store")
    expect_same(store, calm, STAGES)
    harm(store)
    with pytest.raises(Lost, match=said):
        expect_same(store, calm, STAGES)


def test_finished_work_that_is_done_again_is_noticed(tmp_path):
    store = write_run(tmp_path)
    before = kept(store)
    assert len(before) == len(STAGES)
    expect_untouched(before)
    file = store / "labels" / "labels-hash" / "manifest.json"
    os.utime(file, ns=(1, 1))
    with pytest.raises(Lost, match="labels-hash/manifest.json was finished and was made again"):
        expect_untouched(before)
    file.unlink()
    with pytest.raises(Lost, match="is gone"):
        expect_untouched(before)


def test_back_is_the_first_file_that_is_newer(tmp_path):
    store = write_run(tmp_path)
    for path in store.rglob("*"):
        os.utime(path, (100, 100))
    assert back_after(store, 100) is None
    os.utime(weights_of(store), (130, 130))
    os.utime(store / "labels" / "labels-hash" / "manifest.json", (107, 107))
    assert back_after(store, 100) == 7


def test_the_lot_decides_moments_and_the_seed_the_lot(tmp_path, monkeypatch):
    ground = [Ground([], [], tmp_path, "", random.Random(seed), seconds={"labels": 100.0}) for seed in (3, 3, 5)]
    clock = [0.0]
    monkeypatch.setattr("workflows.survival.ground.time.monotonic", lambda: clock[0])

    def moment(one: Ground) -> int:
        reached, clock[0] = one.inside(tmp_path, "labels"), 0.0
        while not reached():
            clock[0] += 1
        return int(clock[0])

    (tmp_path / "labels" / "x").mkdir(parents=True)
    found = [moment(one) for one in ground]
    assert found[0] == found[1] != found[2] and all(10 <= second <= 81 for second in found)


def drill(run: Callable[[Ground, Cluster], object], **more: bool) -> Drill:
    return Drill("one", {"a": "what a is", "b": "what b is"}, run, **more)  # type: ignore[arg-type]


def test_what_a_drill_loses_is_a_result_and_silence_is_none(tmp_path):
    ground = Ground([], [], tmp_path, "", random.Random(0))
    theirs = Cluster("address", random.Random(0), nodes_allowed=False)

    def losing(ground: Ground, cluster: Cluster) -> list[Hit]:
        raise Lost(f"three rows of {ground.home}/x")

    told = [(f.state, f.lost) for f in drilled(drill(losing), ground, theirs)]
    assert told == [("failed", "three rows of STORE/survive/x")] * 2, "where the store lies is nobody else's business"

    def broken(ground: Ground, cluster: Cluster) -> list[Hit]:
        raise KeyError("node")

    assert {(f.state, f.lost) for f in drilled(drill(broken), ground, theirs)} == {("failed", "KeyError: 'node'")}
    half = drill(lambda ground, cluster: {"a": [Hit("m", "v", 1.0)]})
    assert [(f.name, f.state) for f in drilled(half, ground, theirs)] == [("a", "passed"), ("b", "failed")]
    (first, _) = drilled(drill(losing, harms_nodes=True), ground, theirs)
    assert first.state == "skipped" and "allow=nodes" in first.why
    ours = Cluster("address", random.Random(0), nodes_allowed=True)
    assert drilled(drill(losing, harms_nodes=True), ground, ours)[0].state == "failed"


def test_the_table_is_the_promised_one():
    faults = [fault for one in DRILLS for fault in one.faults]
    assert len(faults) == len(set(faults)) == 19, "eighteen, and the label actor"
    assert len(set(NAMES)) == len(NAMES)


def test_the_receipt_is_a_page_and_json_and_names_what_was_lost(tmp_path):
    faults = (
        Fault("worker", "a worker", "passed", (Hit("teachers", "<script>", 3.5),), 20.0),
        Fault("node", "a node", "skipped", why="not allowed"),
        Fault("disk full", "no room", "failed", lost="a shard"),
    )
    receipt = Receipt(7, "3 nodes", 80.0, faults, machine(3, 6.0, MADE_BY))
    write_receipt(receipt, tmp_path)
    page, tree = (tmp_path / HTML).read_text(), json.loads((tmp_path / JSON).read_text())
    assert receipt.verdict == tree["verdict"] == "1 of 2 faults survived with nothing lost, 1 left out"
    assert "&lt;script&gt;" in page and "<script>" not in page and "failed: a shard" in page
    assert tree["faults"][0]["hits"] == [{"moment": "teachers", "victim": "<script>", "back_s": 3.5}]
    assert "LOST: a shard" in receipt.text() and "back after 4 s" in receipt.text()
    assert str(tmp_path) not in json.dumps(tree), "where things lie is nobody else's business"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["only=wrker"], "no drill 'wrker'; did you mean 'worker'"),
        (["seed=x"], "seed=x is no whole number"),
        (["allow=all"], "only nodes can be allowed"),
        (["store=s3://bucket/runs"], "a folder that all nodes share"),
        (["cluster.adress=auto"], "adress"),
    ],
)
def test_bad_words_end_before_anything_starts(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=said):
        survive.main(words)
    assert not (tmp_path / "runs").exists()


def test_what_is_touched_is_said(tmp_path):
    assert "3 nodes of our own" in survive.touched("", True, tmp_path)
    assert "no node; writes below" in survive.touched("10.0.0.1:6379", False, tmp_path)
    assert "neither the head nor the driver's" in survive.touched("10.0.0.1:6379", True, tmp_path)


def test_the_bad_listing_holds_what_it_says(tmp_path):
    """Special pictures are read as what they show, the bomb is small, and every bad row has a fault of the table."""
    rejected = listings.write_listing(tmp_path, with_bad=True)
    faults = {fault for one in DRILLS for fault in one.faults}
    assert set(rejected.values()) <= faults and len(rejected) == len(listings.bad_rows())
    for name in ("bomb.png", "text.png", "endless.jpg"):
        assert (tmp_path / name).stat().st_size < 1_000_000, "small on the disk"
    plain = read_picture(tmp_path / "00.png").astype(float)
    for name, _, allowed in listings.special_rows():
        assert np.abs(read_picture(tmp_path / name) - plain).mean() <= allowed, name
    refs = list(open_source(DatasetSpec("manifest", root=str(tmp_path))).refs())
    assert len(refs) == listings.SOUND + len(rejected) + len(listings.special_rows()) + 1


def test_a_command_is_ended_with_its_ground(tmp_path):
    with Ground([], [], tmp_path, "", random.Random(0)) as ground:
        child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
        words = [sys.executable, "-c", f"{child}; print('begun', flush=True); time.sleep(99)"]
        command = ground.begin(words, tmp_path / "log")
        assert ground.until(command, lambda: "begun" in command.text)
    assert isinstance(command, Command) and not command.runs()
    assert last("one\n\n two \n\n") == "two"


@pytest.mark.slow
@pytest.mark.ray
def test_drills_of_listings_for_real(tmp_path):
    """Bad files through the real command on three nodes, and the receipt of it."""
    words = [sys.executable, "workflows/survive.py", f"store={tmp_path}", "only=listing,advice"]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(words, cwd=REPO, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    tree = json.loads((tmp_path / "survive" / JSON).read_text())
    assert [fault["state"] for fault in tree["faults"]] == ["passed"] * 6, tree["faults"]
    assert tree["verdict"] == "6 of 6 faults survived with nothing lost"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_whole_campaign(tmp_path, seed):
    words = [sys.executable, "workflows/survive.py", f"store={tmp_path}", f"seed={seed}"]
    done = subprocess.run(words, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-3000:]
