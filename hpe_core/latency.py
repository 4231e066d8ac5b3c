"""What a network costs: the parameters that prediction uses, and the CPU time of one picture."""

import statistics
import time

import torch

from hpe_core.models import PoseNet


def cpu_cost(net: PoseNet, threads: int = 1, repeat: int = 50) -> dict[str, float]:
    """{'parameters', 'latency_ms'}: the median of `repeat` single pictures in eager PyTorch, after ten to warm up.

    The weights do not matter, and other work on the machine does: measure one network at a time.
    """
    torch.set_num_threads(threads)
    net = net.cpu().eval()
    picture = torch.zeros(1, net.size, net.size, 3, dtype=torch.uint8)
    seconds = []
    with torch.inference_mode():
        for _ in range(10 + repeat):
            began = time.perf_counter()
            net.angles(picture)
            seconds.append(time.perf_counter() - began)
    return {"parameters": float(net.parameter_count()), "latency_ms": 1e3 * statistics.median(seconds[10:])}
