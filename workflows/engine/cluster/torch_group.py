"""How the workers of one network meet where all of them are processes of one machine without GPUs: over a file.

torch's own way is a server that writes down who called, by name, and asks a name server for the name even of
127.0.0.1. Workers on several machines, and those with GPUs, meet as Ray has it. Made of parts that Ray 2.60 offers to
nobody.
"""

import os
import uuid
from typing import Any

import psutil
import ray
from ray.train.torch.config import (
    TorchConfig,
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)

from workflows.engine.cluster.ray_private import session_folder


class FileBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if worker_group.get_resources_per_worker().get("GPU") or len(set(worker_group.execute(node))) > 1:
            super().on_start(worker_group, backend_config)
            return
        worker_group.execute(_set_torch_distributed_env_vars)
        worker_group.execute(stay)
        meeting = worker_group.execute_single(0, session_folder) / f"workers-{uuid.uuid4().hex}"
        group = {"backend": "gloo", "world_size": len(worker_group), "init_method": meeting.as_uri()}
        group["timeout_s"] = backend_config.timeout_s
        joining = [
            worker_group.execute_single_async(rank, _setup_torch_process_group, world_rank=rank, **group)
            for rank in range(len(worker_group))
        ]
        ray.get(joining)


class FileConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[FileBackend]:
        return FileBackend


def node() -> str:
    """The id of the machine that a worker is on."""
    return str(ray.get_runtime_context().get_node_id())


def stay() -> None:
    """Tell gloo, which carries the sums, to use this machine's loopback: it would look up the machine's own name."""
    cards = {name: [one.address for one in found] for name, found in psutil.net_if_addrs().items()}
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for name, addresses in cards.items() if "127.0.0.1" in addresses)
