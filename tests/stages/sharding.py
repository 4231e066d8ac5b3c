"""What tests of the shards stage share: small datasets, the stage without Ray, and the conservation law."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hpe_core.data.rows import read_shard, shard_files
from hpe_core.datasets.base import Source
from hpe_core.datasets.plan import Job
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from tests.archives import write_pointing04
from tests.reporting import LocalReporter
from workflows.engine.results import ShardsResult
from workflows.sharding.accounts import QUARANTINE
from workflows.stages import shards
from workflows.stages.shards import BuildShard, build_shards
from workflows.storage.receipts import Receipt
from workflows.tracking.progress import Event

CROP = CropSpec(size=16, margin_px=2)
SPLITS = ("train", "val", "test")


def build(data: DataSpec, folder: Path, workers: int = 2) -> ShardsResult:
    events = list[Event]()
    try:
        return build_shards(data, folder, LocalReporter(events.append), workers=workers)
    finally:
        calls = [body for kind, body in events if kind == "progress"]
        assert {(task, unit) for task, _, _, unit in calls} <= {("shards", "faces")}
        done = [number for _, number, _, _ in calls]
        assert done == sorted(done) and done[-1:] == [total for _, _, total, _ in calls[:1]]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same jobs, done in this process: for tests that are not about Ray."""

    def run_jobs(
        jobs: Sequence[Job], sources: dict[str, Source], data: DataSpec, folder: Path, workers: int
    ) -> Iterator[Receipt]:
        do = BuildShard(sources, data, folder, 20.0)
        for job in reversed(jobs):
            yield json.loads(do(shards._job_row(job))["receipt"])

    monkeypatch.setattr(shards, "_run_jobs", run_jobs)


def archive(root: Path, people: int = 6, faces: int = 6) -> DatasetSpec:
    """A small Pointing'04: people 1 ... n, the last one for testing, the one before for validation."""
    for person in range(1, people + 1):
        for number in range(faces):
            write_pointing04(root, person, number, -15 + 15 * (number % 3), -30 + 15 * number)
    val, test = ((f"Person{person:02d}",) for person in (people - 1, people))
    return DatasetSpec("pointing04", str(root), val_groups=val, test_groups=test)


def pointing(root: Path, **changes: Any) -> DataSpec:
    data = DataSpec(datasets={"heads": archive(root)}, train=("heads",), test=("heads",), crop=CROP, rows_per_shard=5)
    return dataclasses.replace(data, **changes)


def wild(root: Path, **changes: Any) -> DataSpec:
    """An AFLW2000 folder as the one test set, beside rendered heads for training."""
    drawn = DatasetSpec("synthetic", count=6, image_px=32, heads_per_person=1, val=0.5, test=0.0, seed=1)
    datasets = {"wild": DatasetSpec("aflw2000", root=str(root)), "drawn": drawn}
    data = DataSpec(datasets=datasets, train=("drawn",), test=("wild",), crop=CROP, max_bad_share=1.0)
    return dataclasses.replace(data, **changes)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def quarantine(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / QUARANTINE).to_pylist()
    assert rows == sorted(rows, key=lambda row: tuple(row.values()))
    assert all(row["detail"] and "\n" not in row["detail"] for row in rows)
    return {row["path"]: row["reason"] for row in rows}


def check_law(summary: ShardsResult, folder: Path) -> None:
    """kept + quarantined + filtered = input, and the files say the same as the counts."""
    for name, entry in summary.splits.items():
        broken, filtered = sum(entry.quarantined.values()), sum(entry.filtered.values())
        assert entry.kept + broken + filtered == entry.input
        loaded = [read_shard(path) for path in shard_files(folder, *name.rsplit(".", 1))]
        ids = [sample_id for shard in loaded for sample_id in shard.sample_ids]
        assert len(ids) == entry.kept == len(set(ids)) and ids == sorted(ids)
        assert [len(shard) for shard in loaded] == [shard.rows for shard in entry.shards]
    rows = pq.read_table(folder / QUARANTINE).to_pylist()
    counted = {k: dict(e.quarantined) for k, e in summary.splits.items() if e.quarantined}
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(f"{row['dataset']}.{row['split']}", Counter())[row["reason"]] += 1
    assert counted == {name: dict(reasons) for name, reasons in found.items()}
