"""The doctor's look at what a run would talk to: a Ray cluster with its dashboard, and MLflow.

Nothing waits longer than `TIMEOUT_S` for anybody's answer.
"""

import contextlib
import os
import platform
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from hpe_core.spec.cluster import ClusterSpec
from workflows.checks.findings import Finding, Look, error, warning
from workflows.engine.cluster.ray_private import cluster_versions, dashboard_address
from workflows.tracking.server import public

TIMEOUT_S = 3.0
DASHBOARD_PORT = 8265
DASHBOARD_RISK = "whoever reaches it can run code; start Ray with RAY_AUTH_MODE=token or --dashboard-host=127.0.0.1"


def look_at_ray(cluster: ClusterSpec, address: str) -> Look:
    """Which cluster a run would use, and whether others can reach its dashboard without a token."""
    if not address:
        cpus = cluster.local_cpus or max(4, os.cpu_count() or 1)
        return Look("Ray", f"no cluster is joined; a run starts a local one of {cpus} logical CPUs, without dashboard")
    if not answers(address):
        silent = "nobody answers there: start the cluster, or mend cluster.address or RAY_ADDRESS"
        return Look("Ray", f"joins {address}", error("Ray", f"a run would join the cluster {address}, and {silent}"))
    wrong = version_findings(address)
    host = address.removeprefix("ray://").rsplit(":", 1)[0]
    with contextlib.suppress(OSError):  # a name that cannot be resolved answers nothing below
        host = socket.gethostbyname(host)
    own, port = own_addresses(), dashboard_port(address)
    state = dashboard_state(own if host in own else [host], port)
    said = {
        "none": f"no dashboard answers at port {port}",
        "local": "its dashboard answers this machine only",
        "token": "its dashboard asks for a token",
        "open": "its dashboard answers without a token",
    }[state]
    found = warning("Ray", f"the dashboard of {host} is open to the network: {DASHBOARD_RISK}")
    return Look("Ray", f"joins {address}; {said}", wrong + (found if state == "open" else ()))


def version_findings(address: str) -> tuple[Finding, ...]:
    """Ray lets nobody join whose release, or whose Python to the last digit, is not the cluster's.

    A cluster behind ray:// is not asked: its proxy has no such answer.
    """
    known = None if "://" in address else cluster_versions(address, TIMEOUT_S)
    here = {"Ray": metadata.version("ray"), "Python": platform.python_version()}
    if known is None or known == here:
        return ()
    there, ours = (" and ".join(f"{name} {version}" for name, version in one.items()) for one in (known, here))
    text = f"the cluster {address} runs {there}, this environment has {ours}: Ray lets only the same versions join"
    return error("Ray", f"{text}; install the cluster's here, or start it from this environment")


def answers(address: str) -> bool:
    """Whether anybody listens at host:port; of an address of another form nobody here can tell, so it may stand."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return True
    try:
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True


def dashboard_port(address: str) -> int:
    """The port that the cluster itself says its dashboard has; the usual one where it does not say."""
    if "://" in address or not answers(address):  # behind ray:// is a proxy; Ray would try a dead one for 40 s
        return DASHBOARD_PORT
    known = dashboard_address(address, TIMEOUT_S)
    return int(known.rpartition(":")[2]) if known else DASHBOARD_PORT


def dashboard_state(hosts: Sequence[str], port: int) -> Literal["none", "local", "token", "open"]:
    """Asks each host's dashboard for its jobs, as anybody could. A loopback address shows nothing to the network."""
    state: Literal["none", "local", "token", "open"] = "none"
    for host in hosts:
        try:
            _ask(f"http://{host}:{port}/api/jobs/")
            if not host.startswith("127."):
                return "open"
            state = "local"
        except urllib.error.HTTPError as answer:
            if answer.code in (401, 403):
                state = "token"
        except OSError:
            continue
    return state


def own_addresses() -> list[str]:
    """IPv4 addresses of this machine, loopback included."""
    import psutil

    found = [one.address for cards in psutil.net_if_addrs().values() for one in cards if one.family == socket.AF_INET]
    return sorted({*found, "127.0.0.1"})


def _ask(url: str) -> None:
    """Returns where the address answers, without a proxy. Raises HTTPError for a refusal, OSError for no answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=TIMEOUT_S).close()
    except HTTPException:
        raise OSError("what answers there speaks no HTTP") from None


def look_at_mlflow(uri: str) -> Look:
    """Whether the tracking store answers and is of the installed MLflow's schema. A run goes on without it."""
    said = public(uri)
    if uri == "none":
        return Look("MLflow", "no tracking (mlflow.uri=none)")
    if uri.startswith("sqlite:"):
        file = Path(uri.removeprefix("sqlite:///"))
        if not file.exists():
            return Look("MLflow", f"{said}, made by the first run")
        return _look_at_sqlite(file, said)
    try:
        _ask(f"{said.rstrip('/')}/health")  # MLflow asks nobody's name there, and urllib takes one for the host's
        return Look("MLflow", f"{said} answers")
    except (OSError, ValueError) as failed:
        silent = f"{said} does not answer ({getattr(failed, 'reason', failed)})"
        later = "a run goes on, and the next one or `hpe sync` sends what MLflow has missed"
        return Look("MLflow", silent, warning("MLflow", f"{silent}; {later}"))


def _look_at_sqlite(file: Path, said: str) -> Look:
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=TIMEOUT_S)) as database:
            (revision,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except (sqlite3.Error, TypeError) as failed:
        return Look("MLflow", said, error("MLflow", f"{file} cannot be read as MLflow's database: {failed}"))
    known = mlflow_revisions()
    if revision == known[0]:
        return Look("MLflow", f"{said}, schema up to date")
    if revision in known:
        return Look("MLflow", f"{said}, of an older schema, which the next run brings up to date")
    text = f"{file} has the schema {revision}, which MLflow {metadata.version('mlflow')} does not know: it is newer"
    return Look("MLflow", said, error("MLflow", text))


def mlflow_revisions() -> list[str]:
    """Schema revisions of the installed MLflow, the newest first."""
    from alembic.script import ScriptDirectory

    package = util.find_spec("mlflow")
    assert package is not None and package.submodule_search_locations
    scripts = ScriptDirectory(str(Path(package.submodule_search_locations[0]) / "store" / "db_migrations"))
    return [script.revision for script in scripts.walk_revisions()]
