"""Several nodes, for real, on one machine: workers that are spread over them, and one that dies under elastic workers.

`hpe survive only=node` loses three under the whole road. The nodes share the store, as they would over a network file
system. Runs on demand (`make slow`): it takes minutes.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests import road
from tests.test_killed import calm as calm
from tests.test_killed import killed as killed

pytestmark = pytest.mark.timeout(1800)
CPUS = 2  # of each node: two networks are trained at once, so every node has work to lose


@dataclass(eq=False)
class Nodes:
    """A head, where the driver lives, and other nodes that come and go."""

    cluster: Any
    others: list[Any]


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
        assert summary["val_error"] == pytest.approx(theirs[name]["val_error"], abs=1.5), name
