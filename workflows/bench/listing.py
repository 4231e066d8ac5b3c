"""Memory and time of a plan over so many listed faces, whose pictures are never opened.

    python -m workflows.bench.listing 1000000 5000000        a line of docs/large.md for each number

Each number is planned in a process of its own: what the shards stage does before it cuts, then the fingerprint that
every run takes. People have three faces each.
"""

import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.registry import open_source
from hpe_core.spec.data import DatasetSpec, DataSpec
from workflows.engine.config import tell


def planned(count: int) -> dict[str, float]:
    """{"plan_s", "plan_mb", "fingerprint_s", "mb"}: CPU seconds, and the process's peak over what it began with."""
    spec = DatasetSpec("synthetic", count=count, heads_per_person=3)
    data, source, began = DataSpec({"heads": spec}, ("heads",), ("heads",)), open_source(spec), peak()
    times = [time.process_time()]
    plan = plan_dataset("heads", source, data)
    assert sum(job.count for job in plan.jobs) == count
    times.append(time.process_time())
    found = {"plan_s": times[1] - times[0], "plan_mb": (peak() - began) / 1e6}
    source.fingerprint()
    return found | {"fingerprint_s": time.process_time() - times[1], "mb": (peak() - began) / 1e6}


def peak() -> int:
    """Of this process's memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(counts: list[int]) -> None:
    tell("| faces | CPU seconds, plan | CPU seconds, fingerprint | peak | a face |\n|--:|--:|--:|--:|--:|")
    for count in counts:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            row = pool.submit(planned, count).result()
        times, memory = f"{row['plan_s']:.0f} | {row['fingerprint_s']:.0f}", f"{row['mb']:.0f} MB"
        tell(f"| {count:,} | {times} | {memory} | {row['mb'] * 1e6 / count:.0f} B |")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
