"""Laws of a local cluster's end: none of its processes stays, whatever they do; others are let be."""

import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from hpe_core.spec.cluster import ClusterSpec
from workflows.engine.cluster import connection

# A node whose worker hears no SIGTERM, as one that hangs in Ray's own exit.
NODE = """
import signal, subprocess, sys, time
if sys.argv[1:]:
    subprocess.Popen([sys.executable, *sys.orig_argv[1:3]])
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""


def started(*more: str) -> psutil.Process:
    """A child that is up, and with a word more a child of it."""
    child = subprocess.Popen([sys.executable, "-c", NODE, *more], stdout=subprocess.PIPE)
    assert child.stdout is not None
    for _ in range(1 + len(more)):
        assert child.stdout.readline() == b"up\n"
    return psutil.Process(child.pid)


@pytest.mark.parametrize("fault", [None, KeyboardInterrupt])
def test_a_worker_that_hangs_on_its_way_out_is_killed(monkeypatch, fault):
    """Ray stops its node and leaves a worker behind; our own children are no part of the cluster."""
    import ray

    nodes: list[psutil.Process] = []
    monkeypatch.setattr(connection, "LEAVING_S", 0.5)
    monkeypatch.setattr(ray, "init", lambda **_: nodes.append(started("with a worker")))
    monkeypatch.setattr(ray, "shutdown", lambda: nodes[0].terminate())
    handler = signal.getsignal(signal.SIGTERM)
    ours = started()
    try:
        with suppress(KeyboardInterrupt), connection.connected(ClusterSpec(address="local")):
            (node,) = nodes
            (worker,) = node.children()
            if fault is not None:
                raise fault
        assert psutil.wait_procs([node, worker], timeout=20)[1] == []
        assert ours.is_running() and ours.status() != psutil.STATUS_ZOMBIE
    finally:
        ours.kill()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_cluster_that_was_joined_goes_on(monkeypatch):
    """Its processes may well be children of this one: whoever runs `ray start` from a script has them so."""
    import ray

    running = started()
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: type("Context", (), {"gcs_address": "here:1"}))
    monkeypatch.setattr(connection, "LEAVING_S", 0.5)
    try:
        with connection.connected(ClusterSpec(address="here:1")):
            pass
        assert running.is_running() and running.status() != psutil.STATUS_ZOMBIE
    finally:
        running.kill()
