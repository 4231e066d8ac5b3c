"""Keys of `cluster`: how Ray is found and shared."""

from dataclasses import dataclass

from hpe_core.errors import check


@dataclass(frozen=True)
class ClusterSpec:
    """How Ray is found and shared. `address: auto` joins a running cluster and else starts a local one."""

    address: str = "auto"
    local_cpus: int = 0  # logical CPUs of a local cluster; 0 is max(4, cores): fewer can deadlock Ray Data
    workers: int = 1  # data-parallel workers of each network
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    threads_per_worker: int = 1
    readers_per_worker: int = 1  # data.ingest ray_data: tasks of one CPU each that read for a worker, beside it
    max_failures: int = 2
    max_cpus: int = 0  # of a cluster that scales: CPUs that it may grow to, nodes with GPUs not counted; 0: it does not
    max_gpus: int = 0  # the same for GPUs

    def __post_init__(self) -> None:
        check(self.workers >= 1, "cluster.workers must be at least 1")
        check(min(self.max_cpus, self.max_gpus) >= 0, "cluster.max_cpus and max_gpus must not be negative")
        check(self.cpus_per_worker > 0, "cluster.cpus_per_worker must be positive")
        check(self.gpus_per_worker >= 0, "cluster.gpus_per_worker must not be negative")
        check(self.threads_per_worker >= 1, "cluster.threads_per_worker must be at least 1")
        check(self.readers_per_worker >= 1, "cluster.readers_per_worker must be at least 1")
