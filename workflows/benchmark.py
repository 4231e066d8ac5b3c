"""Measures each idea of the project against its plain rival, in the same run.

    python workflows/benchmark.py                    all of them, about 6 minutes on 2 cores
    python workflows/benchmark.py windows read       only these
    python workflows/benchmark.py gpu                none of these, but the check of a GPU (docs/gpu.md)

    render      heads from their number, against reading JPEG files
    windows     offset windows of the stored crop, against a warp of the picture for each offset
    augment     the photometric chains in batches, against albumentations
    ensemble    the offset ensemble, against bare forwards of ready batches
    read        batches from shards, against a DataLoader over image files, and a memory-mapped file
    write       shards, by one process and by Ray, against decoding the same JPEG files
    memory      the peak of the shards stage, against that on a tenth of the pictures
    stream      batches through Ray Data, against rows that the worker reads itself
    train       the training loop under Ray, against the same loop in a plain process

The table gives medians over the repeats, and the ratio of the two sides, pair by pair, with its range. Everything runs
on one thread a process unless the row says otherwise, in wall-clock time, with files in the page cache. Before it times
a pair, the command checks that both sides do the same work (equal pixels, equal shards, equal training curves); a
benchmark whose sides differ fails.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hpe_core.errors import check, nearest, say
from hpe_core.system.packages import check_extra
from workflows.bench.shared.lab import Lab
from workflows.engine.commandline import CommandParser
from workflows.engine.config import EXIT_BAD_INPUT, EXIT_FAILED, guarded, tell

if TYPE_CHECKING:
    from workflows.bench.shared.common import Row

    Benchmarks = Mapping[str, Callable[[Lab], list[Row]]]


def benchmarks() -> "Benchmarks":
    """Every benchmark by name, in the order in which they run. Loads torch."""
    from workflows.bench import augment, crops, reading, training, writing

    alone = {"render": crops.render, "windows": crops.windows, "augment": augment.augment}
    alone |= {"ensemble": crops.ensemble, "read": reading.read}
    # Those that start Ray come last: an idle cluster takes a few percent of a core from whatever runs beside it.
    with_ray = {"write": writing.write, "memory": writing.memory, "stream": reading.stream, "train": training.train}
    return {**alone, **with_ray}


def chosen(names: Sequence[str]) -> "Benchmarks":
    """The benchmarks named, or all. Raises SpecError for an unknown name."""
    known = benchmarks()
    for name in names:
        check(name in known, f"unknown benchmark '{name}'{nearest(name, list(known))}")
    return {name: run for name, run in known.items() if name in names or not names}


def measure(wanted: "Benchmarks", faces: int, repeat: int) -> "list[Row]":
    """Run benchmarks one after the other in a temporary folder."""
    from workflows.bench.shared.common import one_thread

    rows = []
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started from here
    with tempfile.TemporaryDirectory(prefix="hpe-benchmark-") as folder, ExitStack() as stack, one_thread():
        lab = Lab(Path(folder), faces, repeat, stack)
        for name, run in wanted.items():
            began = time.perf_counter()
            made = run(lab)
            rows += made
            say(f"{name}: {time.perf_counter() - began:.0f} s")
            for row in made:  # so that a run that is cut off has not measured in vain
                say(f"  {row.name} / {row.rival_is}: {row.ratio_text}")
    return rows


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["gpu"]:  # it needs less than the others
        from workflows.bench import gpu

        return gpu.main(argv[1:])
    parser = CommandParser(__doc__ or "", "", {0: "done", EXIT_FAILED: "two sides differ", EXIT_BAD_INPUT: "bad input"})
    parser.add_argument("names", nargs="*", metavar="NAME", help="a benchmark of the list above; none is all")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")
    parser.add_argument("--faces", type=int, default=1024, metavar="N", help="pictures in the archive (default 1024)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="pairs, half for long ones (default 5)")
    args = parser.parse_intermixed_args(argv)
    check(args.faces >= 16, f"--faces must be at least 16, got {args.faces}")
    check(args.repeat >= 1, f"--repeat must be at least 1, got {args.repeat}")
    check_extra()
    wanted = chosen(args.names)
    from workflows.bench.shared.common import machine, machine_line, markdown

    load, began = os.getloadavg()[0], time.perf_counter()
    rows = measure(wanted, args.faces, args.repeat)
    report = {
        "machine": machine(),
        "load": [load, os.getloadavg()[0]],
        "settings": {"names": list(wanted), "faces": args.faces, "repeat": args.repeat},
        "seconds": time.perf_counter() - began,
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }
    tell(json.dumps(report, indent=1) if args.json else f"{markdown(rows)}\n\n{machine_line(report)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
