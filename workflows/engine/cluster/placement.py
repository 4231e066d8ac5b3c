"""What each stage gets of the cluster: how many workers at once, and the CPUs and GPUs that each of them holds.

The keys are those of `cluster` and `cluster.stages`; `gpus: auto` is worked out here, from what is there. None of it
enters a hash: it changes where and when something runs, never what comes out. The number of data-parallel workers of a
network does, and is taken as it is written.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpe_core.errors import SpecError
from hpe_core.spec.cluster import TRAINING, Pool
from hpe_core.spec.pipeline import PipelineSpec

POOLED = {"labels": "actor", "evaluate": "task"}  # units of the stages whose work is cut into pieces
KINDS = ("CPU", "GPU", "memory")  # of each machine, as Ray names them
MOST_ON_A_GPU = 4  # trials or tasks that `auto` lets share one: each brings torch and its kernels, and its own rows


@dataclass(frozen=True)
class Placement:
    """A stage on a cluster: `at_once` units (networks, trials ...) of so many workers, and what a worker holds."""

    stage: str
    unit: str
    at_once: int
    workers: tuple[int, int]  # of a unit: fewest and most
    cpus: float
    gpus: float
    threads: int
    memory: int  # bytes, its rows not counted
    readers: int  # CPUs beside each worker, that read for it
    there: Mapping[str, float]

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, as Ray names them."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {kind: amount for kind, amount in asked.items() if amount}

    @property
    def options(self) -> dict[str, float]:
        """The same, as tasks and actors are asked for."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory}

    @property
    def line(self) -> str:
        """For the user, e.g. `2 trials at once, each with 1 CPU and 0.5 GPU (there: 8 CPU, 1 GPU)`."""
        fewest, most = self.workers
        several = "" if most == 1 else f"{most} workers of " if fewest == most else f"{fewest} to {most} workers of "
        units = f"{self.at_once} {self.unit}" + ("s at once" if self.at_once > 1 else "")
        units = f"up to {units}" if self.stage in POOLED else units
        read = f" and {self.readers} CPU to read for it" if self.readers else ""
        each = "with" if self.at_once == 1 else "each with"
        held = f"{self.cpus:g} CPU and {f'{self.gpus:g} GPU' if self.gpus else 'no GPU'}"
        there = f"{self.there['CPU']:g} CPU" + (f", {self.there['GPU']:g} GPU" if self.there["GPU"] else "")
        return f"{units}, {each} {several}{held}{read} (there: {there})"


def placed(spec: PipelineSpec, stage: str, there: Mapping[str, float]) -> Placement:
    """The placement of one stage on a cluster of {"CPU", "GPU"} and what else `capacity` says. Raises SpecError where
    not even one unit fits."""
    share, workers = spec.cluster.share_of(stage), spec.cluster.workers_of(stage)
    assert share.cpus is not None and share.gpus is not None and share.threads is not None
    assert share.memory_gb is not None
    cpus, (unit, wanted) = share.cpus, units(spec, stage)
    sharing = min(wanted, len(spec.teachers) + 2) if stage == "evaluate" else wanted  # every network at once
    gpus = auto_gpus(stage, sharing, there["GPU"]) if isinstance(share.gpus, str) else share.gpus
    readers = spec.cluster.readers_per_worker if reads(spec, stage) else 0
    machines = machines_of(there)
    memory = fitting({"CPU": cpus, "GPU": gpus, "memory": share.memory_gb * 1e9}, machines, workers[0])
    worker = {"CPU": cpus, "GPU": gpus, "memory": memory}

    def room(count: int) -> int:
        """How many units of so many workers fit."""
        found = int(min(there["CPU"], 1e9) / ((cpus + readers) * count))
        if gpus:
            found = min(found, shares(there["GPU"], gpus) // count)
        if machines:
            found = min(found, slots(worker, machines) // count)
        return found

    fits = room(workers[1]) or min(1, room(workers[0]))  # elastic networks have the whole cluster, one after the other
    if not fits:
        asked = f"{workers[0]} workers of {cpus:g} CPU" + (f", {gpus:g} GPU" if gpus else "")
        asked += f" with {readers} CPU each to read for them (data.ingest=ray_data)" if readers else ""
        counted = [kind for kind in ("CPU", "GPU") if math.isfinite(there[kind]) and (gpus or kind == "CPU")]
        had = ", ".join(f"{there[kind]:g} {kind}" for kind in counted)
        had += f" on {len(machines)} machines" if machines[1:] else ""  # a worker lies on one of them
        raise SpecError(f"cluster: {stage}: {asked} do not fit into a cluster of {had}")
    if stage == "labels" and not gpus:
        fits = max(1, fits // 2)  # a local cluster counts more CPUs than cores
    if stage == "evaluate" and not gpus and fits > there.get("cores", math.inf):
        fits = int(there["cores"])  # each more would load torch for nothing
        cpus = there["CPU"] / fits
    at_once = int(min(fits, wanted))
    return Placement(stage, unit, at_once, workers, cpus, gpus, share.threads, memory, readers, there)


def machines_of(there: Mapping[str, float]) -> list[dict[str, float]]:
    """What each machine has, as `capacity` says it; none where nobody knows the machines."""
    numbers = dict.fromkeys(name.rpartition(" ")[2] for name in there if " " in name)
    return [{kind: there.get(f"{kind} {number}", math.inf) for kind in KINDS} for number in numbers]


def shares(gpus: float, each: float) -> int:
    """How many workers so many GPUs hold: a share lies on one of them."""
    gpus = min(gpus, 1e9)
    return int(gpus) * int(1 / each) if each < 1 else int(gpus / each)


def slots(worker: Mapping[str, float], machines: Sequence[Mapping[str, float]]) -> int:
    """How many such workers the machines hold, each of them whole on one."""
    found = 0
    for machine in machines:
        held = [machine[kind] / worker[kind] for kind in ("CPU", "memory") if worker[kind]]
        held += [shares(machine["GPU"], worker["GPU"])] if worker["GPU"] else []
        found += int(min(*held, 1e9))
    return found


def fitting(wanted: Mapping[str, float], machines: Sequence[Mapping[str, float]], workers: int) -> int:
    """Bytes that a worker asks for: what is wanted, or less where not even `workers` of them would fit. More would be
    waited for without end, and what a machine has left is an estimate."""
    memory = wanted["memory"]
    while machines and memory > 1e6 and slots({**wanted, "memory": memory}, machines) < workers:
        memory *= 0.9
    return int(memory) if memory > 1e6 else 0


def units(spec: PipelineSpec, stage: str) -> tuple[str, float]:
    """What a stage runs side by side, and how many of it there are at most."""
    own = getattr(spec.cluster.stages, stage)
    most = (own.workers if isinstance(own, Pool) else None) or math.inf
    if stage == "teachers":
        return "network", len(spec.teachers)
    if stage == "student":
        return "network", spec.search.learning
    if stage == "search":
        return "trial", max(1, min(spec.search.concurrent, spec.search.tried))
    return POOLED[stage], most


def auto_gpus(stage: str, wanted: float, there: float) -> float:
    """GPUs of a worker: none on a cluster without; a whole one to train, or to label; else a share of one, so that all
    that are wanted run at once."""
    if there < 1:
        return 0.0
    if stage in TRAINING or wanted == math.inf:
        return 1.0
    sharing = min(MOST_ON_A_GPU, max(1, math.ceil(wanted / int(there))))
    return math.floor(1e4 / sharing) / 1e4  # Ray counts to the fourth digit


def reads(spec: PipelineSpec, stage: str) -> bool:
    """Whether tasks of Ray Data read for the workers of this stage, on CPUs beside them."""
    return spec.data.ingest == "ray_data" and stage in (*TRAINING, "search")
