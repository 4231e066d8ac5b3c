"""Finding a Ray cluster, or starting a local one, and leaving it as it was found."""

import logging
import os
import platform
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from hpe_core.errors import SpecError
from hpe_core.spec.cluster import ClusterSpec
from hpe_core.system.memory import keep_freed_memory
from hpe_core.system.packages import versions
from hpe_core.system.processor import KIND, processor
from workflows.engine.cluster.placement import KINDS
from workflows.engine.cluster.ray_private import no_dashboard_process, noted_address, on_loopback, tidy_raylet_messages
from workflows.engine.stage import StageFailed

if TYPE_CHECKING:
    import psutil

QUIET = {
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives the cluster would start another, with a dashboard
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # else every actor pool of Ray Data prints a line of its internals
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # torch imports of several workers on few cores
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # one epoch is fetched each time: no network does more than that
    "RAY_TRAIN_CONTROLLER_FAILURE_LIMIT": "3",  # a worker group that cannot start is not retried for ever
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end the search as if it were finished, and eat the next Ctrl-C
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}


ANSWER_S = 60  # for a node's word about itself
LEAVING_S = 20  # for the processes of a cluster that was told to stop
# Ray gives a node 30 s to come up and has no key for it; a busy machine needs longer.
SLOW, TRIES = "timed out during startup", 6


def quiet_ray(*, and_all_else: bool = False) -> None:
    """For this process, before it imports Ray; `and_all_else`: its driver prints nothing of the raylets."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    tidy_raylet_messages(none=and_all_else)


def worker_environment() -> dict[str, str]:
    """What every worker's process needs: quiet libraries, and one BLAS thread unless a worker asks for more."""
    same = {KIND: os.environ[KIND]} if KIND in os.environ else {}
    return {**QUIET, **same, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def worker_device(threads: int = 1) -> Any:
    """Sets up the process of a worker that computes; returns the torch device that it computes on: the GPU that Ray has
    assigned to it, and the CPU where there is none, whatever else this machine has."""
    import ray
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    assigned = [str(gpu) for gpu in ray.get_gpu_ids()] if ray.is_initialized() else []
    if not assigned or not torch.cuda.is_available():
        return torch.device("cpu")
    # Workers of one network see the GPUs of all of them on their node: NCCL talks over those.
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    device = torch.device("cuda", seen.index(assigned[0]) if assigned[0] in seen else 0)
    torch.cuda.set_device(device)
    return device


def rows_bytes(resident_gb: float) -> float:
    """Bytes that the rows of this worker may take of its GPU: where several share one, each its part of them."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return 1e9 * resident_gb  # no worker: of a driver Ray refuses to tell
    assigned = ray.get_runtime_context().get_assigned_resources()
    return 1e9 * resident_gb * min(1.0, assigned.get("GPU", 1.0))


def machinery() -> dict[str, float]:
    """{"cpus", "gpus"} of the connected cluster; of one machine its cores, since a local cluster claims more."""
    import ray

    have = ray.cluster_resources()
    cpus = have.get("CPU", 0.0)
    return {"cpus": min(cpus, float(os.cpu_count() or 1)) if len(living()) == 1 else cpus, "gpus": have.get("GPU", 0.0)}


def living() -> list[dict[str, Any]]:
    """The nodes of the connected cluster that have not gone, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def processors() -> list[str]:
    """The processors and accelerators of the connected cluster, each kind once: what decides a result's last bits."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kinds, asked = set[str](), []
    for node in living():
        kinds |= {name.split(":")[1] for name in node["Resources"] if name.startswith("accelerator_type:")}
        if node["NodeManagerAddress"] == ray.util.get_node_ip_address():
            kinds.add(processor())
        else:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
            asked.append(ray.remote(num_cpus=0)(processor).options(scheduling_strategy=there).remote())
    answered, silent = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
    return sorted({*kinds, *ray.get(answered), *(["unknown"] if silent else [])})


def start_local(**options: Any) -> "list[psutil.Process]":
    """Start a cluster of our own; returns the processes that make it up. Raises StageFailed where Ray does not come up
    in time, however often it is tried."""
    import psutil
    import ray

    before = psutil.Process().children()
    for _ in range(TRIES):
        try:
            with no_dashboard_process(), on_loopback():
                ray.init(address="local", include_dashboard=False, **options)
            return [process for process in psutil.Process().children() if process not in before]
        except Exception as error:  # Ray has no type for it
            if SLOW not in str(error):
                raise
            ray.shutdown()
    raise StageFailed(
        f"Ray did not start, {TRIES} times for 30 s: this machine is too busy; the same command continues from here"
    )


def leave(started: "Sequence[psutil.Process]") -> None:
    """Leave the cluster. One of our own, which these processes make up, stops: a worker that hangs on its way out would
    stay for ever, so it is killed."""
    import psutil
    import ray

    everybody = list(started)
    for process in started:
        with suppress(psutil.NoSuchProcess):
            everybody += process.children(recursive=True)
    ray.shutdown()
    for process in psutil.wait_procs(everybody, timeout=LEAVING_S)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def join(address: str, **options: Any) -> None:
    """Join a cluster that runs. Raises SpecError where that cannot be."""
    import ray

    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first = " ".join(str(error).split())[:200]
        asked = os.environ.get("RAY_AUTH_MODE") == "token"
        token = "" if asked else " (a cluster with tokens needs RAY_AUTH_MODE=token)"
        raise SpecError(f"cluster.address {address}: no Ray cluster can be joined there{token}: {first}") from None


@contextmanager
def our_signals() -> Iterator[None]:
    """Ray sets a handler of SIGTERM that aborts the process; ours is put back."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if ours is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def made_by() -> dict[str, Any]:
    """What decides a result's last bits beside code and configuration."""
    return {"python": platform.python_version(), "processors": processors(), "packages": versions()}


@contextmanager
def connected(spec: ClusterSpec) -> Iterator[str]:
    """Join the running cluster (RAY_ADDRESS, a submitted job, or `ray start` on this machine) or start a local one.

    `auto` joins where there is one; `local` never joins; anything else is an address. Yields a line about what it is.
    A local cluster is stopped at the end; a joined one is only left. Raises SpecError where joining fails.
    """
    quiet_ray()
    import ray

    runtime_env = {"env_vars": worker_environment()}
    options = {"log_to_driver": False, "logging_level": logging.WARNING, "runtime_env": runtime_env}
    started: list[psutil.Process] = []
    address = None if spec.address == "local" else spec.address
    if spec.address == "auto":
        address = running_address()  # Ray's own "auto" would also find what other processes started for themselves
    if address is None:
        cores = os.cpu_count() or 1
        cpus = spec.local_cpus or max(4, cores)  # fewer than 4 can deadlock two actor pools and a read
        # Without a dashboard there is nothing to protect; a token would be written to the home folder all the same.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        with our_signals():
            started = start_local(num_cpus=cpus, **options)
        line = f"Ray: local cluster, {cpus} logical CPUs on {cores} cores"
    else:
        with our_signals():
            join(address, **options)
        have = ray.cluster_resources()
        gpus = f", {have['GPU']:.0f} GPUs" if have.get("GPU") else ""
        line = f"Ray: joined {ray.get_runtime_context().gcs_address}, {have.get('CPU', 0):.0f} CPUs{gpus}"
    logging.getLogger("ray").setLevel(logging.WARNING)
    for noisy in ("ray.train", "ray.tune"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    quiet_data()
    try:
        yield line
    finally:
        leave(started)


def quiet_data() -> None:
    """Stages report their own progress; Ray Data's bars and plans would be drawn over it. Of this process alone."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def capacity(spec: ClusterSpec) -> dict[str, float]:
    """CPUs and GPUs to plan for, in all and of each machine, and its memory: those of the connected cluster; CPUs and
    GPUs that it may grow to if that is more. "cores" is there where one machine counts more CPUs than it has.

    A cluster that scales from zero has no GPU until somebody asks for one. Ray 2.60 has a place for an autoscaler's
    limits (ClusterConfig in the GCS), but its own autoscaler leaves it empty, so the configuration names them.
    """
    import ray

    have = ray.cluster_resources()
    found = {"CPU": max(have.get("CPU", 0.0), spec.max_cpus), "GPU": max(have.get("GPU", 0.0), spec.max_gpus)}
    if spec.max_cpus or spec.max_gpus:  # nobody knows what the machines to come will have
        return found
    if (cores := machinery()["cpus"]) < found["CPU"]:
        found["cores"] = cores
    for number, node in enumerate(node["Resources"] for node in living()):
        found |= {f"{kind} {number}": node.get(kind, 0.0) for kind in KINDS}
    return found


def running_address() -> str | None:
    """RAY_ADDRESS, or the cluster that `ray start` left running here, or None."""
    if os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"]
    address = noted_address()
    if not address:
        return None
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return address
    except (OSError, ValueError):
        return None  # a note left by a cluster that is gone
