"""Keys of `cluster`: how Ray is found and shared."""

from hpe_core.spec.serde import Count, Natural, NotNegative, Positive, checked


@checked
class ClusterSpec:
    """How Ray is found and shared. `address: auto` joins a running cluster and else starts a local one."""

    address: str = "auto"
    local_cpus: Natural = 0  # logical CPUs of a local cluster; 0 is max(4, cores): fewer can deadlock Ray Data
    workers: Count = 1  # data-parallel workers of each network
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: NotNegative = 0.0
    threads_per_worker: Count = 1
    readers_per_worker: Count = 1  # data.ingest ray_data: tasks of one CPU each that read for a worker, beside it
    max_failures: int = 2
    max_cpus: Natural = 0  # CPUs that a cluster may grow to, nodes with GPUs not counted; 0: it does not grow
    max_gpus: Natural = 0  # the same for GPUs
