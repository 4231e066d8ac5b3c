"""Benchmarks of the shards stage: its rate against decoding alone, and its memory."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from functools import partial

import psutil

from hpe_core.datasets.plan import Job, plan_dataset
from hpe_core.datasets.registry import open_source
from hpe_core.errors import say
from hpe_core.spec.data import DataSpec
from hpe_core.system.files import file_sha256
from workflows.bench.shared.children import alone, decode_all, write_here
from workflows.bench.shared.common import Row, Side, Work, interleaved, must_agree, rate, rows_of
from workflows.bench.shared.lab import Encoding, Lab, data_of
from workflows.stages.shards import build_shards
from workflows.tracking.progress import Reporter

CORES = os.cpu_count() or 1


def write(lab: Lab) -> list[Row]:
    """Shards, in one process and by the whole stage, against decoding alone, without and with freed memory kept."""
    pictures = [str(path) for path in lab.pictures]
    parts = [pictures[i::CORES] for i in range(CORES)]
    with ExitStack() as stack:
        plain, kept = (stack.enter_context(alone(1, keep=keep)) for keep in (False, True))
        crowd = stack.enter_context(alone(CORES))

        def written(encoding: Encoding) -> Work:
            data = lab.data(encoding=encoding)
            jobs = jobs_of(data)
            return lambda _: whole(lab, kept.submit(write_here, jobs, data, lab.scratch()).result())

        sides = [
            rate("plain", lambda _: plain.submit(decode_all, pictures).result()),
            rate("kept", lambda _: kept.submit(decode_all, pictures).result()),
            rate("raw", written("raw")),
            rate("jpeg", written("jpeg")),
        ]
        found = interleaved(sides, lab.repeat)
        cluster = f"the cluster took {lab.cluster():.1f} s once"
        beside = rate("crowd", lambda _: sum(crowd.map(decode_all, parts)))
        beside(-1)
        found |= interleaved([beside, through_ray(lab)], lab.few, warm=False)
    say(f"  the stage took {statistics.median(found['start']):.1f} s to begin with its first shard")
    found["crowd seconds"] = [lab.faces / value for value in found["crowd"]]
    common = f"{lab.faces} faces: strict decode, .mat, crop 142 px, Parquet with checksums, SHA-256, rename"
    steady = f"{CORES} actors, each with its decoding child, from the first shard's receipt to the last"
    began = f"{lab.faces} faces with actors and children started; {cluster}"
    loop, keeping = "imread of the same JPEGs, one process", "the same loop, freed memory kept"
    many, unit = f"{CORES} such processes at once", "faces/s"
    lines = [
        ("write raw shards, one process", unit, "raw", "plain", loop, common),
        ("write raw shards, one process", unit, "raw", "kept", keeping, common),
        ("write JPEG shards, one process", unit, "jpeg", "plain", loop, common),
        ("write raw shards, Ray, steady", unit, "steady", "crowd", many, steady),
        ("write raw shards, Ray, whole stage", "s", "whole", "crowd seconds", many, began),
    ]
    return rows_of(found, lines)


def jobs_of(data: DataSpec) -> Sequence[Job]:
    """What the shards stage plans for the archive."""
    return plan_dataset("heads", open_source(data.datasets["heads"]), data).jobs


def whole(lab: Lab, count: int) -> int:
    must_agree(count == lab.faces, f"{count} of {lab.faces} faces written")
    return count


def through_ray(lab: Lab) -> Side:
    """build_shards: steady rate, seconds to the first shard and in all, by the receipts' times on disk."""
    data, expected = lab.data(), lab.scratch()
    jobs = jobs_of(data)
    whole(lab, write_here(jobs, data, expected))

    def built(turn: int) -> dict[str, float]:
        folder = lab.scratch() / "stage"  # alone in its parent: shards of a sibling would be taken over
        began, clock = time.time(), time.perf_counter()
        build_shards(data, folder, Reporter(), workers=CORES)
        spent = time.perf_counter() - clock
        done = sorted(((folder / job.path).with_suffix(".json").stat().st_mtime, job.count) for job in jobs)
        if turn == 0:
            same = all(file_sha256(folder / job.path) == file_sha256(expected / job.path) for job in jobs)
            must_agree(same, "shards written through Ray and without it have other bytes")
        steady = sum(count for _, count in done[1:]) / (done[-1][0] - done[0][0])
        return {"steady": steady, "whole": spent, "start": done[0][0] - began - CORES * done[0][1] / steady}

    return built


def memory(lab: Lab) -> list[Row]:
    """Peak memory of the whole shards stage on an archive, and on one ten times as large."""
    few, many = 2 * lab.faces, 20 * lab.faces
    lab.cluster()
    low, high = (peak_megabytes(partial(build, lab, count)) for count in (few, many))
    counted = "proportional set sizes of all processes, Ray's included, sampled every half second; one run each"
    return [Row(f"peak memory, {many:,} pictures", "MB", [high], [low], f"{few:,} pictures", counted)]


def build(lab: Lab, count: int) -> None:
    """The shards stage over so many faces: files of the archive under further names."""
    root = lab.scratch()
    for i in range(count):
        for suffix in (".jpg", ".mat"):
            os.link(lab.archive / f"image{i % lab.faces:05d}{suffix}", root / f"image{i:05d}{suffix}")
    result = build_shards(data_of(root, 256), lab.scratch() / "stage", Reporter(), workers=CORES)
    must_agree(result.kept == count, f"{result.kept} of {count} faces kept")


def peak_megabytes(work: Callable[[], None]) -> float:
    """The largest memory of this process and all below it while `work` runs."""
    with ThreadPoolExecutor(1) as pool:
        running, sizes = pool.submit(work), [megabytes()]
        while wait([running], timeout=0.5).not_done:
            sizes.append(megabytes())
        running.result()
    return max(sizes)


def megabytes() -> float:
    """The proportional set sizes of this process and all below it."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):  # it ended meanwhile
            total += process.memory_full_info().pss / 1e6
    return total
