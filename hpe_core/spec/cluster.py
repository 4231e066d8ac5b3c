"""Keys of `cluster`: how Ray is found and shared, and what a worker of each stage gets of it."""

from dataclasses import fields, replace
from typing import Literal

from hpe_core.errors import check
from hpe_core.spec.serde import Count, Natural, NotNegative, Positive, checked

Gpus = NotNegative | Literal["auto"]  # for one worker: a fraction shares a GPU, auto takes what is there
Workers = Count | tuple[Count, Count]  # of one network; [fewest, most] is elastic


@checked
class Share:
    """What one worker of a stage holds. A key that is not set is that of `cluster` (`cpus_per_worker` ...)."""

    cpus: Positive | None = None
    gpus: Gpus | None = None
    threads: Count | None = None  # of torch, on the CPU
    memory_gb: NotNegative | None = None  # beside the rows, which lie once on a machine


@checked
class Networks(Share):
    """Of a stage that trains networks, each by so many data-parallel workers: they alone decide batches and hashes."""

    workers: Workers | None = None


@checked
class Pool(Share):
    """Of a stage whose work is cut into pieces: so many workers at a time, or as many as there is room for."""

    workers: Count | None = None


@checked
class StageShares:
    """Trials have one worker each; `search.concurrent` says how many are tried at once."""

    teachers: Networks = Networks()
    search: Share = Share()
    labels: Pool = Pool()
    student: Networks = Networks()
    evaluate: Pool = Pool()


@checked
class ClusterSpec:
    """How Ray is found and shared. `address: auto` joins a running cluster and else starts a local one."""

    address: str = "auto"
    local_cpus: Natural = 0  # logical CPUs of a local cluster; 0 is max(4, cores): fewer can deadlock Ray Data
    workers: Workers = 1  # data-parallel workers of each network; [2, 8]: as many as there are, between 2 and 8
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: Gpus = "auto"  # auto: a GPU where the cluster has any, shared by trials and by tasks of evaluate
    threads_per_worker: Count = 1
    memory_gb_per_worker: NotNegative = 1.0  # asked of Ray, so that no machine gets more workers than it can hold
    stages: StageShares = StageShares()  # what a stage wants otherwise, e.g. `stages.search: {gpus: 0.25, cpus: 2}`
    readers_per_worker: Count = 1  # data.ingest ray_data: tasks of one CPU each that read for a worker, beside it
    max_failures: Natural = 2  # of a network's or a trial's workers, before it has failed
    checkpoint_s: NotNegative = 10.0  # an epoch that ends sooner after a checkpoint makes none, but for the last
    max_cpus: Natural = 0  # CPUs that a cluster may grow to, nodes with GPUs not counted; 0: it does not grow
    max_gpus: Natural = 0  # the same for GPUs

    def __post_init__(self) -> None:
        for stage in STAGES:
            gpus, (fewest, most) = self.share_of(stage).gpus, self.workers_of(stage)
            check(1 <= fewest <= most, f"cluster: workers [{fewest}, {most}] of {stage} are no range of at least one")
            if gpus is None or isinstance(gpus, str):
                continue
            said = f"cluster: {stage} asks for {gpus:g} GPUs a worker; a share is below 1, more than 1 is whole"
            check(gpus <= 1 or gpus == int(gpus), said)
            said = f"cluster: {most} workers of a network in {stage} with {gpus:g} GPUs each would meet on one GPU"
            said += ", where NCCL refuses them; give each a whole one (gpus: 1), or the network one worker"
            check(most == 1 or not 0 < gpus < 1, said)

    def share_of(self, stage: str) -> Share:
        """What a worker of this stage holds, every key set."""
        own: Share = getattr(self.stages, stage)
        every = Share(self.cpus_per_worker, self.gpus_per_worker, self.threads_per_worker, self.memory_gb_per_worker)
        said = {field.name: getattr(own, field.name) for field in fields(Share)}
        return replace(every, **{name: value for name, value in said.items() if value is not None})

    def workers_of(self, stage: str) -> tuple[int, int]:
        """(fewest, most) data-parallel workers of one network of this stage: equal, unless they are elastic."""
        own = getattr(self.stages, stage)
        if not isinstance(own, Networks):
            return 1, 1
        workers = self.workers if own.workers is None else own.workers
        return (workers, workers) if isinstance(workers, int) else workers

    @property
    def fewest_workers(self) -> int:
        """Of any network that is trained to the end: each of them may have to hold this part of the rows."""
        return min(self.workers_of(stage)[0] for stage in TRAINING)

    @property
    def most_workers(self) -> int:
        """Of any network that is trained to the end."""
        return max(self.workers_of(stage)[1] for stage in TRAINING)


STAGES = tuple(field.name for field in fields(StageShares))
TRAINING = ("teachers", "student")
