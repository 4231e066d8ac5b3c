"""Several nodes, for real, on one machine: the whole road on three, and nodes that die while it is walked.

The nodes share the store, as they would over a network file system. Runs on demand (`make slow`): it takes minutes.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests import test_pipeline as road
from tests.test_pipeline import calm as calm

pytestmark = pytest.mark.timeout(1800)
CPUS = 2  # of each node: two networks are trained at once, so every node has work to lose


@dataclass(eq=False)
class Nodes:
    """A head, where the driver lives, and other nodes that come and go."""

    cluster: Any
    others: list[Any]

    def lose_one(self, chance: random.Random) -> None:
        """A node's processes are killed at once, and another node joins."""
        self.cluster.remove_node(self.others.pop(chance.randrange(len(self.others))), allow_graceful=False)
        self.others.append(self.cluster.add_node(num_cpus=CPUS))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    for name, value in road.environment().items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "include_dashboard": False})
    try:
        yield Nodes(cluster, [cluster.add_node(num_cpus=CPUS) for _ in range(2)])
    finally:
        cluster.shutdown()


@pytest.mark.parametrize("seed", [0, 1])
def test_nodes_that_die_in_three_stages_cost_no_row_and_no_byte(nodes, calm, tmp_path, seed):
    """One node is lost among the shards, one among the teachers, one among the labels; the run itself goes on."""
    store, log, chance = tmp_path / "store", tmp_path / "log", random.Random(seed)
    lost = []
    with open(log, "w") as stream, road.whole_tree() as start:
        command = road.words("run", store, f"cluster.address={nodes.cluster.address}")
        process = start(command, stdout=stream, stderr=stream)
        deadline = time.monotonic() + road.PATIENCE_S
        for name, moment in (("shards", road.has_shard), ("teachers", road.has_checkpoint), ("labels", road.has_label)):
            while not moment(store):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.02)
            if not list(store.glob(f"{name}/*/manifest.json")):
                lost.append(name)
            nodes.lose_one(chance)
        process.wait(timeout=road.PATIENCE_S)
    assert process.returncode == 0, log.read_text()[-3000:]
    assert "teachers" in lost, "a node was lost while the teachers were trained"
    for name in road.NAMES:
        assert (road.stage_folder(store, name) / "manifest.json").is_file(), name
    road.same_result(store, calm)
    rows = road.result_of(store, "shards")
    assert rows["kept"] + rows["quarantined"] + rows["filtered"] == rows["input"]


def test_elastic_workers_go_on_with_fewer_when_a_node_is_lost(nodes, tmp_path):
    """From the last checkpoint, and the whole length of the schedule; more epochs, so that there is time to lose it."""
    store, log = tmp_path / "store", tmp_path / "log"
    elastic = ["cluster.stages.teachers.workers=[1, 6]", "teachers.resnet=null", "teachers.byobnet.optim.epochs=30"]
    elastic += [f"cluster.address={nodes.cluster.address}", "teachers.byobnet.optim.batch_size=24"]
    road.sound(road.run("shards", store, *elastic, env=road.environment()))
    with open(log, "w") as stream, road.whole_tree() as start:
        process = start(road.words("teachers", store, *elastic), stdout=stream, stderr=stream)
        deadline = time.monotonic() + road.PATIENCE_S
        while not road.has_checkpoint(store):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        nodes.cluster.remove_node(nodes.others.pop(), allow_graceful=False)
        process.wait(timeout=road.PATIENCE_S)
    assert process.returncode == 0, log.read_text()[-3000:]
    assert "1 network, with 1 to 6 workers of 1 CPU and no GPU (there: 6 CPU)" in log.read_text()
    (network,) = road.result_of(store, "teachers")["networks"].values()
    workers = [row["workers"] for row in network["history"]]
    assert [row["epoch"] for row in network["history"]] == [*range(1, 31)]
    assert workers[0] > workers[-1] >= 1 and max(workers[-5:]) <= 4, workers


def test_two_data_parallel_workers_through_ray(nodes, calm, tmp_path):
    """`cluster.workers=2`: every network by two workers that may lie on two nodes; it learns what one worker learns.

    Equal to float tolerance they are in `test_parallel.py`; here faces meet in other batches.
    """
    store, address = tmp_path / "store", f"cluster.address={nodes.cluster.address}"
    road.sound(road.run("run", store, address, "cluster.workers=2", env=road.environment()))
    ours, theirs = (road.result_of(place, "teachers")["networks"] for place in (store, calm))
    for name, summary in ours.items():
        assert summary["epochs"] == 8
        assert summary["val_mae"] == pytest.approx(theirs[name]["val_mae"], abs=1.5), name
