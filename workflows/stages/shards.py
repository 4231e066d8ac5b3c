"""Stage 1: from archives to padded Parquet shards, with every face accounted for.

Each dataset is listed without opening a file, split by person, sorted by sample id and cut into jobs of at most
`rows_per_shard` faces (`hpe_core.datasets.plan`). A job loads, crops and writes its own
`<dataset>.<split>/part-00000.parquet`, then a receipt beside it, and only the receipts travel back: who was kept, who
was quarantined and why, who was filtered (`workflows.sharding.accounts`). A job whose receipt fits it and whose shard
still has the SHA-256 on the receipt is not done again: that is how a killed run goes on. A shard that an earlier run
cut from the same faces in the same way is linked into the new folder. A job of which nothing is kept leaves a receipt
and no Parquet file, so a reader never meets an empty shard.
"""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpe_core.data.rows import row_bytes, write_shard
from hpe_core.datasets.base import FaceRef, FaceRow, Rejected, Source, census, naming
from hpe_core.datasets.faces import LISTING, read_line
from hpe_core.datasets.files import Archive, printable
from hpe_core.datasets.leaks import check_leaks
from hpe_core.datasets.plan import Job, plan_dataset, used_datasets
from hpe_core.datasets.registry import open_source, reader_modules
from hpe_core.datasets.sandbox import FACE_TIMEOUT_S, Sandbox, load_directly
from hpe_core.spec.data import DataSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.system.disk import check_room
from hpe_core.system.files import json_sha256, write_json
from hpe_core.system.memory import keep_freed_memory
from workflows.engine.cluster.connection import capacity, quiet_data
from workflows.engine.plan import leaves_of
from workflows.engine.results import ShardsResult
from workflows.engine.stage import StageRun
from workflows.sharding.accounts import QUARANTINE, broken_faces, check_usable, summarise, write_quarantine
from workflows.sharding.quarantine import TABLE, show_quarantine
from workflows.storage.code import code_hashes
from workflows.storage.receipts import Receipt, adopt, fitting_receipt, is_claimed, receipt_file
from workflows.tracking.progress import Reporter

# Keys of `data` that say when a run stops and how shards are read.
CHANGE_NO_FACE = ("max_bad_share", "resident_gb", "ingest", "stream_shards")


def depends(spec: PipelineSpec) -> dict[str, Any]:
    """Shards depend on every dataset that is named, on its role, and on the files it lists."""
    return data_leaves(spec, [*spec.data.train, *spec.data.test]) | {"test": sorted(spec.data.test)}


def train_depends(spec: PipelineSpec) -> dict[str, Any]:
    """What is learnt depends on the datasets that are trained on, not on the test sets."""
    return data_leaves(spec, spec.data.train)


def data_leaves(spec: PipelineSpec, names: Sequence[str]) -> dict[str, Any]:
    """The keys of `data` and the named datasets that decide a face; for a root, boxes or a detector what lies there."""
    used = {name: spec.data.datasets[name] for name in sorted(set(names))}
    return {
        "data": leaves_of(spec.data, "datasets", "train", "test", *CHANGE_NO_FACE),
        "train": sorted(spec.data.train),
        "datasets": {name: leaves_of(dataset, "root", "boxes", "detector") for name, dataset in used.items()},
        "readers": {dataset.reader: reader_code(dataset.reader) for dataset in used.values()},
        "files": {name: fingerprint(name, open_source(dataset)) for name, dataset in used.items()},
    }


def reader_code(reader: str) -> str:
    """Hash of the code of a reader, which no import statement leads to: editing one recuts its datasets alone."""
    return json_sha256(code_hashes(*reader_modules([reader])))[:12]


def fingerprint(name: str, source: Source) -> str:
    """Of a dataset's files. Raises DatasetError that names the dataset."""
    with naming(name):
        return source.fingerprint()


def run(stage: StageRun) -> ShardsResult:
    """The stage: shards of every dataset that `spec.data` trains or tests on, in the stage's folder."""
    there = capacity(stage.spec.cluster)
    workers = int(there.get("cores", there["CPU"]))
    return build_shards(stage.spec.data, stage.folder, stage.reporter, workers=workers)


def build_shards(data: DataSpec, folder: Path, reporter: Reporter, *, workers: int = 0) -> ShardsResult:
    """Build (or finish) the shards of `data` under `folder`, on the Ray that is connected.

    `workers` is the number of actors, 0 for one per CPU of the cluster; the bytes do not depend on it.
    Returns counts, shards with their SHA-256, and fingerprints. Raises DatasetError for data that cannot be
    used; by then the quarantine file has been written, unless the listing alone showed it. Raises DiskFull, before
    anything is decoded, where the shards that are not there yet will not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{LISTING}*"):  # by a run that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=LISTING, dir=folder.absolute()) as listings:
        return _build_listed(data, folder, Path(listings), reporter, workers)


def _build_listed(data: DataSpec, folder: Path, listings: Path, reporter: Reporter, workers: int) -> ShardsResult:
    """`build_shards` with a folder for the sorted faces, which actors on any node read."""
    sources = {name: open_source(data.datasets[name]) for name in used_datasets(data)}
    plans = {name: plan_dataset(name, source, data, listings) for name, source in sources.items()}
    check_leaks(plans, sources)
    jobs = [job for name, plan in plans.items() for job in with_code(plan.jobs, data.datasets[name].reader)]
    for name, source in sources.items():
        if source.reader.whole is not None:  # an archive of known size: a part of one is fine, and said
            reporter.say(f"  {name}: {census(source)}")
    adopted = adopt({job.hash: folder / job.path for job in jobs}, folder.parent.glob("*/*/part-*.json"))
    if adopted:
        reporter.say(f"  {adopted} of {len(jobs)} shards are taken over from earlier runs")
    check_rooms(folder, [job for job in jobs if not is_claimed(folder / job.path, job.hash)], sources, data)
    done, total = 0, sum(job.count for job in jobs)
    receipts: list[Receipt] = []
    reporter.progress("shards", done, total, "faces")
    for receipt in _run_jobs(jobs, sources, data, folder, workers):
        receipts.append(receipt)
        done += receipt["input"]
        reporter.progress("shards", done, total, "faces")
    assert len(receipts) == len(jobs), f"{len(jobs)} jobs gave {len(receipts)} receipts"
    _sweep(folder, jobs)
    broken = broken_faces(plans, receipts)
    write_quarantine(folder, broken)
    show_quarantine(folder, broken, plans, sources)
    summary = summarise(plans, receipts, broken)
    check_usable(plans, summary, data, folder / TABLE)
    return summary


def check_rooms(folder: Path, new: Sequence[Job], sources: Mapping[str, Source], data: DataSpec) -> None:
    """Raises DiskFull where the shards of these jobs, or the files of remote archives that they read, will not fit."""
    count = sum(job.count for job in new)
    check_room(folder, count * row_bytes(data.crop, data.encoding), f"shards of {count:,} faces")
    for name, source in sources.items():
        reader = source.reader
        if isinstance(reader, Archive) and reader.remote is not None:
            reader.folder.mkdir(parents=True, exist_ok=True)
            needed = reader.bytes_to_fetch(ref for job in new if job.dataset == name for ref in job.refs)
            check_room(reader.folder, needed, f"files of dataset '{name}'")


def with_code(jobs: Sequence[Job], reader: str) -> Iterator[Job]:
    """The jobs under hashes that also cover the code that cuts them: a shard outlives the run that made it."""
    code = code_hashes(__name__, *reader_modules([reader]))
    for job in jobs:
        yield dataclasses.replace(job, hash=json_sha256([job.hash, code]))


class BuildShard:
    """Does jobs, one after the other; keeps a decoding process per risky dataset between them."""

    def __init__(self, sources: dict[str, Source], data: DataSpec, folder: Path, timeout_s: float) -> None:
        self._sources, self._data, self._folder, self._timeout_s = sources, data, folder, timeout_s
        self._sandboxes: dict[str, Sandbox] = {}
        keep_freed_memory()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of `_job_row` -> a row with the job's receipt as JSON."""
        path = self._folder / row["path"]
        receipt = fitting_receipt(path, row["hash"])
        if receipt is None:
            refs = read_line(Path(row["listing"]), row["start"])
            receipt = self.build(row["dataset"], refs, path, row["hash"])
        return {"receipt": json.dumps({**receipt, "job": row["path"]})}

    def build(self, dataset: str, refs: Sequence[FaceRef], path: Path, job_hash: str) -> Receipt:
        """Load, crop and write one shard, then its receipt."""
        kept: list[FaceRow] = []
        quarantined, filtered = [], []
        for ref, face in zip(refs, self._load(dataset, refs), strict=True):
            if isinstance(face, Rejected):
                quarantined.append([ref.sample_id, printable(ref.key), face.reason, printable(face.detail)])
            elif max(map(abs, face.pose)) > self._data.limit_deg:
                filtered.append(ref.sample_id)
            else:
                kept.append(face)
        sha = write_shard(path, kept, self._data.crop, self._data.encoding) if kept else ""
        if not kept:
            path.unlink(missing_ok=True)
        receipt = {
            "hash": job_hash,
            "input": len(refs),
            "kept": len(kept),
            "quarantined": quarantined,
            "filtered": filtered,
            "sha256": sha,
        }
        write_json(receipt_file(path), receipt)
        return receipt

    def _load(self, dataset: str, refs: Sequence[FaceRef]) -> Iterator[FaceRow | Rejected]:
        source = self._sources[dataset]
        if not source.reader.risky:
            return load_directly(source, self._data.crop, refs)
        if dataset not in self._sandboxes:
            self._sandboxes[dataset] = Sandbox(source, self._data.crop, timeout_s=self._timeout_s)
        return self._sandboxes[dataset].load_many(refs)


def _run_jobs(
    jobs: Sequence[Job], sources: dict[str, Source], data: DataSpec, folder: Path, workers: int
) -> Iterator[Receipt]:
    """Receipts as they come in, in any order. Paths go out and receipts come back, never pictures."""
    import ray.data

    quiet_data()
    size = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(jobs))
    receipts = ray.data.from_items([_job_row(job) for job in jobs], override_num_blocks=len(jobs)).map(
        BuildShard,
        fn_constructor_args=(sources, data, folder.absolute(), FACE_TIMEOUT_S),
        compute=ray.data.ActorPoolStrategy(size=max(1, size)),
        num_cpus=1,
    )
    for row in receipts.iter_rows():
        yield json.loads(row["receipt"])


def _job_row(job: Job) -> dict[str, Any]:
    """What an actor needs; the faces it reads from the listing, which lies in the stage's folder as long as it runs."""
    listing = {"listing": str(job.file.path), "start": job.start}
    return {"dataset": job.dataset, "path": job.path, "hash": job.hash, **listing}


def _sweep(folder: Path, jobs: Sequence[Job]) -> None:
    """Remove parts of an earlier cut and what killed writers left: a stray part would be read as data."""
    expected = {folder / job.path for job in jobs}
    for path in [*folder.glob("*/part-*.parquet"), *folder.glob("*/part-*.json")]:
        if path.with_suffix(".parquet") not in expected:
            path.unlink(missing_ok=True)
    for path in [*folder.glob("*/.part-*.tmp"), *folder.glob(f".{QUARANTINE}.*.tmp")]:
        path.unlink(missing_ok=True)
