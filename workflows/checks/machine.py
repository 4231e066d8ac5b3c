"""The doctor's look at the machine that a run would start on: packages, GPU, room in the store, memory.

Each look returns a line of what is there and the findings. Nothing is written but a file in the store that is gone when
the look ends.
"""

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from hpe_core.spec.cluster import STAGES, ClusterSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.system.packages import DISTRIBUTION, EXTRA, name_of, requirements, versions
from workflows.checks.data import Examined
from workflows.checks.findings import Finding, Look, error, warning
from workflows.checks.services import look_at_mlflow, look_at_ray
from workflows.engine.cluster.connection import running_address
from workflows.engine.pipeline import backbones_of, unknown_backbones
from workflows.training.jobs import wrong_weights

SHOWN = ("ray", "torch", "timm", "mlflow", "albumentations")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def examine_machine(spec: PipelineSpec, seen: Sequence[Examined]) -> list[Look]:
    """Every look but that at the packages; `seen` says how many faces the shards will hold and how large one is."""
    address = spec.cluster.address
    if address in ("auto", "local"):
        address = (running_address() or "") if address == "auto" else ""
    return [
        look_at_networks(spec),
        look_at_gpu(spec.cluster, joins=bool(address)),
        look_at_store(spec.folder, bytes_needed(spec, seen), complete=all(one.found for one in seen)),
        look_at_memory(spec, seen),
        look_at_ray(spec.cluster, address),
        look_at_mlflow(spec.tracking_uri),
    ]


# ---------------------------------------------------------------- packages and GPU


def look_at_packages() -> Look:
    """Python, and every package that this installation with its extra asks for."""
    wanted, python = [*requirements(), *requirements(EXTRA)], platform.python_version()
    if not wanted:
        return Look("packages", f"Python {python}; the code is not installed, so nothing says what it asks for")
    return compare_packages(
        python, metadata.metadata(DISTRIBUTION)["Requires-Python"], wanted, versions([name_of(one) for one in wanted])
    )


def compare_packages(python: str, python_needed: str, wanted: Sequence[str], have: Mapping[str, str]) -> Look:
    """Installed versions (name -> version) against requirements ('ray>=2.55,<3')."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    findings: tuple[Finding, ...] = ()
    if Version(python) not in SpecifierSet(python_needed):
        findings += error("Python", f"version {python} is too old; {python_needed} is needed")
    asked = [Requirement(text) for text in wanted]
    if lacking := ", ".join(one.name for one in asked if one.name not in have):
        findings += error("packages", f"not installed: {lacking}; pip install '{DISTRIBUTION}[{EXTRA}]' brings them")
    for one in asked:
        version = have.get(one.name)
        if version is not None and not one.specifier.contains(Version(version).public, prereleases=True):
            findings += error("packages", f"{one.name} {version} is installed; {one} is needed")
    said = ", ".join([f"Python {python}", *(f"{name} {have.get(name, 'missing')}" for name in SHOWN)])
    return Look("packages", said, findings)


def look_at_networks(spec: PipelineSpec) -> Look:
    """What a run would refuse: each backbone that timm does not know, weights and networks that are not there."""
    trained = {f"teachers.{name}": teacher for name, teacher in spec.teachers.items()} | {"student": spec.student}
    said = ", ".join(dict.fromkeys(train.net.backbone for train in trained.values()))
    wrong = [*unknown_backbones(backbones_of(spec)), *wrong_weights(trained, spec.data.crop)]
    return Look("networks", said, tuple(Finding("error", "networks", text) for text in wrong))


def look_at_gpu(cluster: ClusterSpec, joins: bool) -> Look:
    """`joins`: a cluster is joined, so GPUs may be on other machines."""
    import torch

    cores = f"{os.cpu_count()} CPU cores"
    shares = {stage: cluster.share_of(stage).gpus for stage in STAGES}
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        said = f"{cores}; GPU " + ", ".join(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in found)
        unused = "it stays idle: cluster.gpus_per_worker is 0"
        return Look("compute", said, () if any(shares.values()) else warning("GPU", unused))
    named = [stage for stage, gpus in shares.items() if gpus and gpus != "auto"]
    if named and not joins:
        asked = f"cluster asks for {shares[named[0]]:g} GPUs a worker in {', '.join(named)}"
        return Look("compute", f"{cores}; no GPU", error("GPU", f"{asked}, but torch sees no GPU on this machine"))
    return Look("compute", f"{cores}; no GPU")


# ---------------------------------------------------------------- store and memory


def bytes_needed(spec: PipelineSpec, seen: Sequence[Examined]) -> float:
    """Shards of every dataset that was listed, and soft labels of every set for those that are trained on."""
    from hpe_core.networks.heads import label_bytes  # with torch

    shards = sum(sum(one.splits.values()) * one.row_bytes for one in seen)
    labels = _trained(spec, seen) * len(spec.label_sets()) * label_bytes(spec.student.net)
    return shards + labels


def _trained(spec: PipelineSpec, seen: Sequence[Examined]) -> int:
    """Faces in train splits."""
    return sum(one.splits.get("train", 0) for one in seen if one.name in spec.data.train)


def look_at_store(store: Path, needed: float, *, complete: bool = True) -> Look:
    """Writable, and with room for the run. Shards of another run may be taken over, where its faces are these: of all
    that lie there the largest run's count. `complete`: every dataset was counted."""
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
    sizes = ([path.stat().st_size for path in run.rglob("*.parquet")] for run in (store / "shards").glob("*"))
    there = max(map(sum, sizes), default=0)
    said = f"{store}, writable, {gigabytes(free)} free; shards and soft labels take about {gigabytes(needed)}"
    said += "" if complete else " without the missing datasets"
    if there + free < needed:
        lacking = f"{gigabytes(needed)} are needed and {gigabytes(free)} are free on the disk of {store}"
        return Look("store", said, error("store", f"{lacking}: use data.encoding=jpeg, a smaller crop or another disk"))
    return Look("store", said)


def look_at_memory(spec: PipelineSpec, seen: Sequence[Examined]) -> Look:
    """Rows, which lie once on a machine (streams once a network), against what memory and temporary files may take.

    What a container allows counts as free. Rows beyond the memory are read from the temporary files in each epoch.
    """
    import psutil

    free = float(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        free = min(free, float(CGROUP_LIMIT.read_text()) - psutil.Process().memory_info().rss)
    rows, streamed = spec.data.machine_bytes(_trained(spec, seen), spec.cluster), spec.data.ingest == "ray_data"
    trials = spec.search.concurrent if spec.search.trials else 0
    at_once = max(len(spec.teachers), trials, spec.search.learning) if streamed else 1
    held, whose = at_once * rows, f"streams of {at_once} networks" if streamed else "rows, shared by all networks,"
    said = f"{gigabytes(free)} free; {whose} take {gigabytes(held)}"
    temporary = Path(tempfile.gettempdir())
    room = shutil.disk_usage(temporary).free
    if not streamed and held > room:
        text = f"{whose} take {gigabytes(held)} of {gigabytes(room)} that are free in {temporary}"
        return Look("memory", said, error("memory", f"{text}: set TMPDIR to a folder of a larger disk"))
    if held > free:
        text = f"{whose} take {gigabytes(held)} of {gigabytes(free)} that are free"
        advice = "lower data.stream_shards" if streamed else "they are read again in each epoch"
        return Look("memory", said, warning("memory", f"{text}: {advice}"))
    return Look("memory", said)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
