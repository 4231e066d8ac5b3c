"""What Ray offers to nobody and we need all the same, as it was seen in Ray 2.60. A new release is looked at here."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ANSWER_S = 5.0


def tidy_raylet_messages(*, none: bool = False) -> None:
    """What raylets have to say goes to standard error: Ray prints it among the results, which may be JSON.

    Several networks on few cores start many workers; a warning about it, which tells the user nothing, is dropped.
    `none`: who kills workers and nodes on purpose needs no word at all. Ray has no switch for any of it, so its printer
    of these messages is wrapped; where a release moves it, nothing happens.
    """
    from ray._private import worker

    inner = getattr(worker, "print_to_stdstream", None)
    if inner is None or hasattr(inner, "wrapped"):
        return

    def printer(data: dict[str, Any], *args: Any, **options: Any) -> None:
        counted = any("worker processes have been started" in str(line) for line in data.get("lines", ()))
        if not (none or counted):
            inner({**data, "is_err": True}, *args, **options)

    printer.wrapped = inner  # type: ignore[attr-defined]
    worker.print_to_stdstream = printer


@contextmanager
def no_dashboard_process() -> Iterator[None]:
    """Around `ray.init(include_dashboard=False)`: Ray would start the dashboard's process all the same.

    That process asks the network which cloud this is, also with RAY_USAGE_STATS_ENABLED=0, and keeps 120 MB. Ray has no
    switch for it, so the function that starts it is put aside; where a release moves it, nothing happens.
    """
    from ray._private import services

    start = vars(services).get("start_api_server")
    services.start_api_server = lambda *_, **__: (None, None)  # what Ray itself returns where the process fails
    try:
        yield
    finally:
        services.start_api_server = start


@contextmanager
def on_loopback() -> Iterator[None]:
    """Around `ray.init(address="local")`: its processes listen to this machine alone.

    Else whoever reaches one of their ports may run code as the user. Ray does so by itself on macOS and Windows; its
    variable for it, which is read when Ray is imported, would also keep a machine from joining a cluster.
    """
    from ray._private import ray_constants

    before = vars(ray_constants).get("ENABLE_RAY_CLUSTER")
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def noted_address() -> str | None:
    """The address that `ray start` noted on this machine; the cluster may be gone since."""
    from ray._private.services import find_bootstrap_address

    address: str | None = find_bootstrap_address(None)
    return address or None


def session_folder() -> Path:
    """Where Ray keeps, and leaves, the logs and sockets of this machine's part of the connected cluster."""
    from ray._private.worker import global_worker

    return Path(global_worker.node.get_session_dir_path())


def dashboard_address(cluster: str, timeout_s: float) -> str | None:
    """host:port of the dashboard, as the cluster itself says it; None where it does not."""
    from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD

    return _asked(cluster, DASHBOARD_ADDRESS.encode(), KV_NAMESPACE_DASHBOARD, timeout_s)


def cluster_versions(cluster: str, timeout_s: float) -> dict[str, str] | None:
    """{"Ray": ..., "Python": ...} of a cluster, which is not joined; None where it does not say."""
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER

    known = json.loads(_asked(cluster, b"CLUSTER_METADATA", KV_NAMESPACE_CLUSTER, timeout_s) or "{}")
    versions = {"Ray": known.get("ray_version"), "Python": known.get("python_version")}
    return versions if all(versions.values()) else None


def _asked(cluster: str, key: bytes, namespace: bytes, timeout_s: float) -> str | None:
    """What a cluster has noted under this key; None where it has not, or does not answer."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.exceptions import RayError

    try:
        known = GcsClient(address=cluster).internal_kv_get(key, namespace, timeout=timeout_s)
    except RayError:
        return None
    return known.decode() if known else None


def actors_of(driver_pid: int) -> list[dict[str, str | int]]:
    """The living actors of the job whose driver is this process of this machine, in the cluster that we have joined.

    Each with "class", "node" (its id) and "pid". The state API that Ray offers for it needs the dashboard's process.
    """
    from ray._private import state
    from ray.util import get_node_ip_address

    ours = (driver_pid, get_node_ip_address())  # on another machine the same number is somebody else
    jobs = {
        job["JobID"] for job in state.jobs() if (job["DriverPid"], job["DriverIPAddress"]) == ours and not job["IsDead"]
    }
    known = [actor for actor in state.actors().values() if actor["JobID"] in jobs and actor["State"] == "ALIVE"]
    return [
        {"class": actor["ActorClassName"], "node": actor["Address"]["NodeID"], "pid": actor["Pid"]} for actor in known
    ]
