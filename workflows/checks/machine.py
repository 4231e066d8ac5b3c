"""The doctor's look at the machine that a run would start on: packages, GPU, store, memory, Ray, MLflow.

Each look returns a line of what is there and the findings. Requirements are read from pyproject.toml and the tested
versions from constraints.txt, so that neither is repeated here. Nothing is written but a file in the store that is gone
when the look ends, and nothing waits longer than `TIMEOUT_S` for anybody's answer.
"""

import contextlib
import os
import platform
import shutil
import socket
import sqlite3
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from hpe_core.spec.cluster import ClusterSpec
from hpe_core.spec.pipeline import PipelineSpec
from workflows.checks.findings import Finding
from workflows.engine.config import REPO
from workflows.tracking.server import public

if TYPE_CHECKING:
    from workflows.checks.data import Examined

TIMEOUT_S = 3.0
SHOWN = ("ray", "torch", "timm", "mlflow", "albumentations")
DASHBOARD_PORT = 8265
DASHBOARD_RISK = "whoever reaches it can run code; start Ray with RAY_AUTH_MODE=token or --dashboard-host=127.0.0.1"
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Look(NamedTuple):
    """One part of the machine."""

    part: str
    said: str
    findings: tuple[Finding, ...] = ()


def error(part: str, text: str) -> tuple[Finding, ...]:
    return (Finding("error", part, text),)


def warning(part: str, text: str) -> tuple[Finding, ...]:
    return (Finding("warning", part, text),)


def examine_machine(spec: PipelineSpec, seen: Sequence["Examined"]) -> list[Look]:
    """Every look but that at the packages; `seen` says how many faces the shards will hold and how large one is."""
    from workflows.engine.cluster import running_address
    from workflows.engine.runner import tracking_uri

    address = spec.cluster.address
    if address in ("auto", "local"):
        address = (running_address() or "") if address == "auto" else ""
    return [
        look_at_gpu(spec.cluster, joins=bool(address)),
        look_at_store(spec.folder, bytes_needed(spec, seen), complete=all(one.found for one in seen)),
        look_at_memory(spec, seen),
        look_at_ray(spec.cluster, address),
        look_at_mlflow(tracking_uri(spec)),
    ]


# ---------------------------------------------------------------- packages and GPU


def look_at_packages() -> Look:
    """Python and every package that pyproject.toml asks for."""
    import tomllib

    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["workflows"]]
    python, needed = platform.python_version(), project["requires-python"]
    return compare_packages(python, needed, wanted, installed(wanted), tested_versions())


def compare_packages(
    python: str, python_needed: str, wanted: Iterable[str], have: Mapping[str, str], tested: Mapping[str, str]
) -> Look:
    """Installed versions (name -> version) against requirements ('ray>=2.55,<3') and tested versions."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    findings: tuple[Finding, ...] = ()
    if Version(python) not in SpecifierSet(python_needed):
        findings += error("Python", f"version {python} is too old; {python_needed} is needed")
    for requirement in map(Requirement, wanted):
        version = have.get(requirement.name)
        if version is None:
            findings += error("packages", f"{requirement.name} is not installed; `make setup` installs everything")
        elif not requirement.specifier.contains(Version(version).public, prereleases=True):
            findings += error("packages", f"{requirement.name} {version} is installed; {requirement} is needed")
    said = [f"Python {python}"]
    for name in SHOWN:
        version, known = have.get(name, "missing"), tested.get(name, "")
        same = not known or version == "missing" or Version(version).public == known
        said.append(f"{name} {version}" + ("" if same else f" (tested: {known})"))
    return Look("packages", ", ".join(said), findings)


def installed(wanted: Iterable[str]) -> dict[str, str]:
    from packaging.requirements import Requirement

    found = {}
    for name in (Requirement(text).name for text in wanted):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def tested_versions() -> dict[str, str]:
    lines = (REPO / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def look_at_gpu(cluster: ClusterSpec, joins: bool) -> Look:
    """`joins`: a cluster is joined, so GPUs may be on other machines."""
    import torch

    cores = f"{os.cpu_count()} CPU cores"
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        said = f"{cores}; GPU " + ", ".join(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in found)
        unused = "it stays idle: cluster.gpus_per_worker is 0"
        return Look("compute", said, () if cluster.gpus_per_worker else warning("GPU", unused))
    if cluster.gpus_per_worker and not joins:
        asked = f"cluster.gpus_per_worker={cluster.gpus_per_worker:g}"
        return Look("compute", f"{cores}; no GPU", error("GPU", f"{asked}, but torch sees no GPU on this machine"))
    return Look("compute", f"{cores}; no GPU")


# ---------------------------------------------------------------- store and memory


def bytes_needed(spec: PipelineSpec, seen: Sequence["Examined"]) -> float:
    """Shards of every dataset that was listed, and soft labels of every set for those that are trained on."""
    from hpe_core.geometry.bins import AngleBins  # with torch

    shards = sum(sum(one.splits.values()) * one.row_bytes for one in seen)
    bins = AngleBins.covering(spec.student.net.limit_deg, min(spec.student.net.bin_widths)).count
    labels = _trained(spec, seen) * len(spec.label_sets()) * 3 * bins * 2  # fp16
    return shards + labels


def _trained(spec: PipelineSpec, seen: Sequence["Examined"]) -> int:
    """Faces in train splits."""
    return sum(one.splits.get("train", 0) for one in seen if one.name in spec.data.train)


def look_at_store(store: Path, needed: float, *, complete: bool = True) -> Look:
    """Writable, and with room for what the run will cut; shards that lie there already count as room.

    `complete`: every dataset was there to be counted.
    """
    place = next(path for path in (store, *store.parents) if path.exists())
    if not place.is_dir():
        return Look("store", str(store), error("store", f"{place} is a file, not a folder"))
    try:
        if place == store:
            with tempfile.NamedTemporaryFile(dir=store):
                pass
        elif not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(f"{place} allows no writing")
    except OSError as failed:
        return Look("store", str(store), error("store", f"{store} is not writable: {failed.strerror or failed}"))
    free = shutil.disk_usage(place).free
    there = sum(path.stat().st_size for path in (store / "shards").rglob("*.parquet"))
    said = f"{store}, writable, {gigabytes(free)} free; shards and soft labels take about {gigabytes(needed)}"
    said += "" if complete else " without the missing datasets"
    if there + free < needed:
        lacking = f"{gigabytes(needed)} are needed and {gigabytes(free)} are free on the disk of {store}"
        return Look("store", said, error("store", f"{lacking}: use data.encoding=jpeg, a smaller crop or another disk"))
    return Look("store", said)


def look_at_memory(spec: PipelineSpec, seen: Sequence["Examined"]) -> Look:
    """What networks that are trained at once keep resident, against what is free (and what a container allows)."""
    import psutil

    free = float(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        free = min(free, float(CGROUP_LIMIT.read_text()) - psutil.Process().memory_info().rss)
    faces = _trained(spec, seen)
    trials = spec.search.concurrent if spec.search.trials else 0
    at_once = max(len(spec.teachers), trials, spec.search.ending, 2)  # 2: a student and its twin
    kept, wanted = (bytes_of(faces, spec.cluster) for bytes_of in (spec.data.kept_bytes, spec.data.wanted_bytes))
    held = at_once * spec.cluster.workers * kept
    said = f"{gigabytes(free)} free; faces of {at_once} networks at once take {gigabytes(held)}"
    if wanted > kept:
        said += f", streamed: {gigabytes(wanted)} a worker exceed data.resident_gb {spec.data.resident_gb:g}"
    if held > free:
        text = f"faces of {at_once} networks at once may take {gigabytes(held)} of {gigabytes(free)} that are free"
        advice = "lower data.resident_gb, or spread them over nodes (data.ingest)"
        return Look("memory", said, warning("memory", f"{text}: {advice}"))
    return Look("memory", said)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


# ---------------------------------------------------------------- Ray and MLflow


def look_at_ray(cluster: ClusterSpec, address: str) -> Look:
    """Which cluster a run would use, and whether others can reach its dashboard without a token."""
    if not address:
        cpus = cluster.local_cpus or max(4, os.cpu_count() or 1)
        return Look("Ray", f"no cluster is joined; a run starts a local one of {cpus} logical CPUs, without dashboard")
    if not answers(address):
        silent = "nobody answers there: start the cluster, or mend cluster.address or RAY_ADDRESS"
        return Look("Ray", f"joins {address}", error("Ray", f"a run would join the cluster {address}, and {silent}"))
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
    return Look("Ray", f"joins {address}; {said}", found if state == "open" else ())


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
    from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.exceptions import RayError

    if "://" in address or not answers(address):  # behind ray:// is a proxy; Ray would try a dead one for 40 s
        return DASHBOARD_PORT
    try:
        known = GcsClient(address=address).internal_kv_get(
            DASHBOARD_ADDRESS.encode(), KV_NAMESPACE_DASHBOARD, timeout=TIMEOUT_S
        )
    except RayError:
        return DASHBOARD_PORT
    return int(known.rpartition(b":")[2]) if known else DASHBOARD_PORT


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
    opener.open(url, timeout=TIMEOUT_S).close()


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
        _ask(f"{uri.rstrip('/')}/health")
        return Look("MLflow", f"{said} answers")
    except (OSError, ValueError) as failed:
        silent = f"{said} does not answer ({getattr(failed, 'reason', failed)})"
        later = "a run goes on, and the next one or `full_pipeline.py sync` sends what MLflow has missed"
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
