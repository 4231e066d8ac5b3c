"""Fresh processes and what they do. They import this module, so it loads neither torch nor Ray."""

import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from hpe_core.data.rows import write_shard
from hpe_core.datasets.base import FaceRow
from hpe_core.datasets.plan import Job as ShardJob
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.geometry.crop import Image
from hpe_core.spec.data import DataSpec
from hpe_core.system.memory import keep_freed_memory
from workflows.tracking.progress import Reporter
from workflows.training.jobs import Job, open_data


def alone(processes: int, *, keep: bool = False) -> ProcessPoolExecutor:
    """Fresh processes with one thread each; with `keep` they keep their freed memory."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), set_up, (keep,))


def set_up(keep: bool) -> None:
    cv2.setNumThreads(1)
    if keep:
        keep_freed_memory()


def read_rgb(path: Path | str) -> Image:
    """The bare read: no check of the file, as most loaders do."""
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), dtype=np.uint8)


def decode_all(paths: Sequence[str]) -> int:
    return sum(1 for path in paths if read_rgb(path).size)


def write_here(jobs: Sequence[ShardJob], data: DataSpec, folder: Path) -> int:
    """Does the jobs of the shards stage in this process, without its sandbox; returns how many faces it wrote."""
    source, count = open_source(data.datasets["heads"]), 0
    for job in jobs:
        kept = [face for face in load_directly(source, data.crop, job.refs) if isinstance(face, FaceRow)]
        write_shard(folder / job.path, kept, data.crop, data.encoding)
        count += len(kept)
    return count


def train_here(job: Job, notes: Path) -> None:
    """Trains as a worker of Ray Train does: a checkpoint after each epoch, and its figures into `notes`."""
    import torch

    from hpe_core.training.loop import EpochEnd, fit

    def on_epoch(end: EpochEnd) -> None:
        note(notes, time.time(), end.metrics)
        end.save(notes.parent)

    torch.set_num_threads(1)
    fit(job.spec, job.data.crop, *open_data(job), on_epoch=on_epoch)


class Noting(Reporter):
    """Takes the figures of a training worker's epochs down in a file on this machine, and reports to nobody."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self._notes = notes

    def metrics(self, key: str, values: Mapping[str, float], step: int, when_ms: int | None = None) -> None:
        assert when_ms is not None, "training says when an epoch ended"
        note(self._notes, when_ms / 1000, values)


def note(notes: Path, when: float, values: Mapping[str, float]) -> None:
    """One line an epoch: when it ended, its figures, and the CPU seconds of this process with all its threads."""
    with open(notes, "a") as stream:
        stream.write(json.dumps([when, {**values, "cpu_seconds": time.process_time()}]) + "\n")
