"""Measures training and labelling on a GPU, in at most four minutes, and checks what must hold there.

    hpe benchmark gpu                       every part
    hpe benchmark gpu train labels          these parts
    hpe benchmark gpu --small               a few seconds on whatever there is: does it run?

    parity    loss, gradients and angles of the device beside those of the CPU, in fp32, TF32 and bf16
    train     three networks of the papers over three epochs, beside the same step on one batch that stands still
    labels    offset windows a second, beside bare forwards
    batch     the rate by batch size
    rows      the same batches from rows on the device, and from rows that are brought there; their rates
    sync      no step makes the host wait for the device, fresh and resumed, eager and captured
    bits      a training once more, and one that was cut off, to the last bit (optim.deterministic)
    augment   microseconds a face of every operation

A part that fails is a line of its own, and the others go on. Each line is said as soon as it is measured.

It needs torch, timm, numpy, pyarrow, opencv and safetensors alone, and no network: it draws its own faces. Whatever
else is missing it leaves out and says so. Without Ray and MLflow: python -m workflows.bench.gpu
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch

from hpe_core.errors import UserError, check, nearest, say
from hpe_core.training.place import Place
from workflows.bench.gpu_parts import PARTS, Bench, Line
from workflows.report.markdown import markdown_table

SECONDS = 210  # no measurement begins later: the last one has half a minute


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 1 where something that must hold does not."""
    parser = argparse.ArgumentParser(
        prog="hpe benchmark gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="none is all")
    parser.add_argument("--device", default="", help="cuda, cuda:1, cpu; by default the GPU that there is")
    parser.add_argument("--small", action="store_true", help="a small form of it, also on a CPU")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")
    args = parser.parse_intermixed_args(list(argv))
    for name in args.parts:
        check(name in PARTS, f"unknown part '{name}'{nearest(name, list(PARTS))}")
    place = place_of(args.device, args.small)
    bench, began = Bench(place, args.small), time.perf_counter()
    lines: list[Line] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for name in [name for name in PARTS if name in args.parts or not args.parts]:
            for line in measured(name, bench, began):
                lines.append(line)
                say("  ".join(cell for cell in cells(line) if cell))  # whatever ends this process, it was said
    report = {
        "device": bench.name,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "small": args.small,
        "seconds": time.perf_counter() - began,
        "left_out": bench.left_out,
        "warnings": sorted({str(entry.message) for entry in warned if entry.category is UserWarning}),
        "lines": [{**asdict(line), "ratio": line.ratio} for line in lines],
    }
    print(json.dumps(report, indent=1) if args.json else page(report, lines))
    return 1 if any(line.holds is False for line in lines) else 0


def measured(part: str, bench: Bench, began: float) -> Iterator[Line]:
    """A part's lines, while there is time. A part that fails says so in a line, and the others are measured."""
    found = PARTS[part](bench)
    try:
        while time.perf_counter() - began < SECONDS:
            if (line := next(found, None)) is None:
                return
            yield line
        bench.left_out.append(f"{part}, or what was left of it: {SECONDS} s are over")
    except Exception as error:
        traceback.print_exc()
        said = (str(error).splitlines() or [""])[0]
        yield Line(part, f"failed: {type(error).__name__}: {said}", "", 0.0, holds=False)


def place_of(device: str, small: bool) -> Place:
    """Where to measure. Raises SpecError where there is no GPU and nobody asked for less."""
    named = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if named.type == "cuda":
        check(torch.cuda.is_available(), f"--device {device}: torch {torch.__version__} finds no CUDA device here")
        torch.cuda.set_device(named.index or 0)
    else:
        check(small, "there is no GPU here; --small runs a small form of the check on the CPU")
    return Place(named, rows_bytes=1e12)


def page(report: dict, lines: Sequence[Line]) -> str:
    """The table, and under it what was left out."""
    head = ["part", "what", "value", "beside", "ratio", "holds"]
    rows = [cells(line) for line in lines]
    notes = [f"left out: {said}" for said in report["left_out"]] + [f"warning: {said}" for said in report["warnings"]]
    about = f"{report['device']}, torch {report['torch']}, {report['cores']} cores; {report['seconds']:.0f} s"
    return "\n".join([markdown_table("llllrl", head, rows), "", about + (", small" if report["small"] else ""), *notes])


def cells(line: Line) -> tuple[str, ...]:
    """The line in the table's columns."""
    return (
        line.part,
        line.what,
        f"{figure(line.value)} {line.unit}",
        "" if line.beside is None else f"{figure(line.beside)} ({line.beside_is})",
        "" if line.ratio is None else f"{line.ratio:.2f}",
        {None: "", True: "yes", False: "NO"}[line.holds],
    )


def figure(value: float) -> str:
    """Three digits, and thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        say(f"error: {error}")
        sys.exit(2)
