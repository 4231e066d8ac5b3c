"""The cluster of a campaign, and hands on its nodes that kill what they are told to.

Without an address: three nodes on this machine, which are ours. With one: somebody's cluster, of which only processes
of our own jobs are touched, and a node only where that was allowed.
"""

import contextlib
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from workflows.engine.cluster.connection import join, living, our_signals, quiet_ray, worker_environment
from workflows.engine.cluster.ray_private import actors_of, no_dashboard_process
from workflows.survival.ground import Command, Lost

NODES, CPUS = 3, 2  # of a cluster of our own
COME_S = 90.0  # for a victim to show itself


class Hand:
    """On a node: ends processes there. Ray starts every worker from the node's own process, the raylet."""

    def end(self, pid: int) -> bool:
        """Only a worker of this node: a number that has been given to somebody else since is left alone."""
        with contextlib.suppress(psutil.Error):
            victim = psutil.Process(pid)
            if victim.ppid() == os.getppid():
                victim.kill()
                return True
        return False

    def end_node(self) -> None:
        raylet = psutil.Process(os.getppid())
        if raylet.name().startswith("raylet"):
            raylet.kill()


@dataclass(eq=False)
class Cluster:
    """The joined cluster; `own` is Ray's helper where its nodes are ours."""

    address: str
    dice: random.Random
    own: Any = None
    nodes_allowed: bool = True
    hands: dict[str, Any] = field(default_factory=dict)
    joined: list[Any] = field(default_factory=list)  # nodes of our own, the head apart
    lost: set[str] = field(default_factory=set)  # nodes that we ended: Ray notices a little later

    @property
    def told(self) -> str:
        """For the receipt."""
        nodes, cpus = self.size
        return f"{nodes} nodes of {'one machine' if self.own is not None else 'a cluster'} with {cpus:g} places"

    @property
    def size(self) -> tuple[int, float]:
        """(living nodes, CPUs that Ray counts)."""
        import ray

        return len(living()), float(ray.cluster_resources().get("CPU", 0))

    def reach(self) -> None:
        """A hand on every living node: a process that is there already kills at once."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = {node["NodeID"] for node in living()} - self.lost
        self.hands = {node: hand for node, hand in self.hands.items() if node in alive}
        for node in alive - set(self.hands):
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            self.hands[node] = ray.remote(num_cpus=0)(Hand).options(scheduling_strategy=there).remote()
        for node, hand in list(self.hands.items()):
            try:
                ray.get(hand.__ray_ready__.remote(), timeout=COME_S)
            except ray.exceptions.RayError:
                del self.hands[node]  # a node that is going

    def victim(self, command: Command, kind: str) -> dict[str, Any] | None:
        """By lot one of the living actors of the command's own job whose class has `kind` in its name; else None."""
        found = [actor for actor in actors_of(command.process.pid) if kind in str(actor["class"])]
        found = [actor for actor in found if actor["node"] in self.hands]
        return self.dice.choice(sorted(found, key=lambda actor: actor["pid"])) if found else None

    def kill(self, victim: dict[str, Any]) -> float | None:
        """SIGKILL; returns when, or None where it had gone."""
        import ray

        try:
            hit = ray.get(self.hands[victim["node"]].end.remote(victim["pid"]), timeout=COME_S)
        except ray.exceptions.RayError:
            return None
        return time.time() if hit else None

    def lose_node(self) -> float:
        """A node by lot, neither the head nor the driver's, is gone at once; of our own another joins."""
        import ray

        if self.own is not None:
            node = self.joined.pop(self.dice.randrange(len(self.joined)))
            self.lost.add(node.node_id)
            self.own.remove_node(node, allow_graceful=False)
            hit = time.time()
            with our_signals():
                self.joined.append(self.own.add_node(num_cpus=CPUS))
            self.reach()
            return hit
        ours = ray.get_runtime_context().get_node_id()
        heads = {node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]}
        others = sorted(set(self.hands) - {ours} - heads)
        if not others:
            raise Lost("the cluster has no node beside the head and the driver's")
        chosen = self.dice.choice(others)
        self.lost.add(chosen)
        self.hands.pop(chosen).end_node.remote()
        hit = time.time()
        while any(node["NodeID"] == chosen for node in living()):
            if time.time() > hit + COME_S:
                raise Lost("a node that was ended is still there")
            time.sleep(0.2)
        return hit


@contextmanager
def joined(address: str, dice: random.Random, *, nodes_allowed: bool) -> Iterator[Cluster]:
    """The cluster at `address`, or one of our own, which is stopped at the end."""
    quiet_ray(and_all_else=True)
    import ray

    own, others, place = None, [], ""
    try:
        if not address:
            from ray.cluster_utils import Cluster as LocalCluster

            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            # A folder of its own: else Ray notes the nodes as this machine's cluster, and other runs would join them.
            place = os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="hpe-")
            with no_dashboard_process(), our_signals():
                head = {"num_cpus": CPUS, "include_dashboard": False}
                own = LocalCluster(initialize_head=True, head_node_args=head)
                others = [own.add_node(num_cpus=CPUS) for _ in range(NODES - 1)]
            address = own.address
        runtime_env = {"env_vars": worker_environment()}
        with our_signals():
            join(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
        found = Cluster(address, dice, own, nodes_allowed or own is not None, joined=others)
        found.reach()
        yield found
    finally:
        ray.shutdown()
        if own is not None:
            own.shutdown()
        if place:
            shutil.rmtree(place, ignore_errors=True)
