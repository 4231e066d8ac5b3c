"""What became of every face: the quarantine file, the counts by reason, and when to stop the run.

The law, asserted in `summarise`: for every split, kept + quarantined + filtered = input.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from hpe_core.data.rows import write_table
from hpe_core.datasets.base import OUT_OF_RANGE, DatasetError
from hpe_core.datasets.files import printable
from hpe_core.datasets.plan import DatasetPlan
from hpe_core.spec.data import DataSpec
from workflows.engine.results import ShardFile, ShardsResult, Split
from workflows.storage.receipts import Receipt

QUARANTINE = "quarantine.parquet"
FEW = 20  # a smaller dataset is not stopped by its share of quarantined faces
Plans = Mapping[str, DatasetPlan]


class Broken(NamedTuple):
    """A row of the quarantine file. `path` is below the dataset's root; `detail` is a sentence."""

    dataset: str
    split: str
    sample_id: str
    path: str
    reason: str
    detail: str


def broken_faces(plans: Plans, receipts: Sequence[Receipt]) -> list[Broken]:
    """Every quarantined face, sorted."""
    found = []
    for receipt in receipts:
        dataset, split = receipt["job"].split("/")[0].rsplit(".", 1)
        found += [Broken(dataset, split, *entry) for entry in receipt["quarantined"]]
    for dataset, plan in plans.items():
        for split, ref in plan.repeated:
            path = printable(ref.key)
            detail = f"{ref.sample_id} is listed more than once, and {path} is not the first"
            found.append(Broken(dataset, split, ref.sample_id, path, "duplicate_id", detail))
    return sorted(found)


def write_quarantine(folder: Path, broken: Sequence[Broken]) -> None:
    """Write the quarantine file, also when it is empty."""
    columns = {name: pa.array([face[i] for face in broken], pa.string()) for i, name in enumerate(Broken._fields)}
    write_table(folder / QUARANTINE, pa.table(columns))


def summarise(plans: Plans, receipts: Sequence[Receipt], broken: Sequence[Broken]) -> ShardsResult:
    """Counts, shards and fingerprints, for every `<dataset>.<split>` and in all."""
    splits: dict[str, Split] = {}
    for dataset, plan in plans.items():
        for split in plan.wanted:
            mine = [r for r in receipts if r["job"].startswith(f"{dataset}.{split}/")]
            mine.sort(key=lambda r: str(r["job"]))
            repeated = sum(1 for other, _ in plan.repeated if other == split)
            reasons = Counter(face.reason for face in broken if (face.dataset, face.split) == (dataset, split))
            filtered = sum(len(r["filtered"]) for r in mine)
            shards = tuple(ShardFile(r["job"], r["kept"], r["sha256"]) for r in mine if r["kept"])
            total, kept = sum(r["input"] for r in mine) + repeated, sum(r["kept"] for r in mine)
            lost = total - kept - reasons.total() - filtered
            assert lost == 0, f"{dataset}.{split}: {lost} faces are neither kept nor quarantined nor filtered"
            splits[f"{dataset}.{split}"] = Split(
                input=total,
                kept=kept,
                quarantined=dict(sorted(reasons.items())),
                filtered={OUT_OF_RANGE: filtered} if filtered else {},
                shards=shards,
                fingerprint=_hash_of(sorted(shard.sha256 for shard in shards)),
            )
    return ShardsResult(
        splits=splits,
        input=sum(entry.input for entry in splits.values()),
        kept=sum(entry.kept for entry in splits.values()),
        quarantined=sum(sum(entry.quarantined.values()) for entry in splits.values()),
        filtered=sum(sum(entry.filtered.values()) for entry in splits.values()),
        unused={f"{name}.{split}": n for name, plan in plans.items() for split, n in plan.unused.items()},
        groups={name: plan.groups for name, plan in plans.items()},
        fingerprint=_hash_of([f"{name} {entry.fingerprint}" for name, entry in sorted(splits.items())]),
    )


def check_usable(plans: Plans, summary: ShardsResult, data: DataSpec, quarantine: Path) -> None:
    """Raises DatasetError where too much of a dataset is broken, or a split of it came out empty."""
    for name, plan in plans.items():
        mine = {split: summary.splits[f"{name}.{split}"] for split in plan.wanted}
        reasons: Counter[str] = Counter()
        for entry in mine.values():
            reasons.update(entry.quarantined)
        total, bad = sum(entry.input for entry in mine.values()), reasons.total()
        if total >= FEW and bad > data.max_bad_share * total:
            said = f"{bad} of {total} faces are quarantined, more than data.max_bad_share {data.max_bad_share:g} allows"
            raise DatasetError(f"dataset '{name}': {said} ({_listed(reasons)}); see {quarantine}")
        for split, entry in mine.items():
            if not entry.kept:
                fate = Counter({**entry.quarantined, **entry.filtered})
                said = f"dataset '{name}' has an empty {split} set: none of its {entry.input} faces is left"
                why = f"{_listed(fate)}; data.limit_deg is {data.limit_deg:g}"
                raise DatasetError(f"{said} ({why}); see {quarantine}")


def _listed(reasons: Counter[str]) -> str:
    """The three most frequent, as '12 truncated_picture, 3 no_box'."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))


def _hash_of(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
