"""What a network costs: the parameters that prediction uses, and the time of a call on a CPU."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from hpe_core.networks.models import PoseNet


def cpu_cost(net: PoseNet) -> dict[str, float]:
    """{'parameters', 'latency_ms'}: the median of single pictures in eager PyTorch, one network at a time."""
    net = net.cpu().eval()
    picture = torch.zeros(1, net.size, net.size, 3, dtype=torch.uint8)
    with torch_threads(1), torch.inference_mode():
        milliseconds = median_ms(lambda: net.angles(picture), 50, warmup=10)
    return {"parameters": float(net.parameter_count()), "latency_ms": milliseconds}


def median_ms(call: Callable[[], object], repeat: int, *, warmup: int = 2, budget_s: float = float("inf")) -> float:
    """Median milliseconds of `repeat` calls after `warmup` more; a spent budget ends it early, after three at least."""
    seconds: list[float] = []
    deadline = time.perf_counter() + budget_s
    for number in range(-warmup, repeat):
        if number >= 3 and time.perf_counter() > deadline:
            break
        began = time.perf_counter()
        call()
        if number >= 0:
            seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many CPU threads for torch inside the block; the setting is the process's, so it is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
