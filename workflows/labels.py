"""Stage "labels": the teachers' ensemble over offset windows, written beside the training shards.

For every label set (teachers, K, d) that the student or the search may ask for, a row's soft label is the mean softmax
over those teachers and all windows of that grid (EHPNet eq. 4 with offsets eqs. 5 and 6), as fp16 log-probabilities.
One actor holds the teachers, so a shard is decoded once, and all sets come from one pass over the union of their
windows. A student of online labels asks for none.

Each shard gives one file a set and then a receipt; a shard whose receipt exists is not computed again.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpe_core.rows import file_sha256, shard_files
from hpe_core.spec import LabelSet
from workflows.progress import Reporter
from workflows.stages import StageRun, read_json, write_json

BATCH = 64  # rows a forward pass; memory does not depend on the number of windows


def run(stage: StageRun) -> dict[str, Any]:
    """Label every training shard; returns the label sets and how far the ensemble's angles lie from the hard labels."""
    import ray
    import ray.data

    spec = stage.spec
    sets = spec.label_sets()
    asked = {name for labels in sets for name in labels.teachers}
    teachers = {name: stage.inputs["teachers"] / name for name in spec.teachers if name in asked}
    if not sets:
        return {"sets": [], "teachers": [], "rows": 0, "train_mae": {}, "fingerprint": ""}
    files = [file for name in spec.data.train for file in shard_files(stage.inputs["shards"], name, "train")]
    todo = [{"shard": str(file)} for file in files]
    actors = max(1, min(len(files), actor_count(spec.cluster)))
    receipts: list[dict[str, Any]] = []
    rows_done = 0
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
        LabelShard,
        fn_constructor_args=(
            {name: str(folder) for name, folder in teachers.items()},
            str(stage.folder),
            [tuple(labels) for labels in sets],
            stage.reporter,
            spec.cluster.threads_per_worker,
        ),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=spec.cluster.cpus_per_worker,
        num_gpus=spec.cluster.gpus_per_worker,
    )
    total = sum(count_rows(file) for file in files)
    for row in dataset.iter_rows():
        receipts.append({"shard": row["shard"], "rows": int(row["rows"]), "mae": [float(v) for v in row["mae"]]})
        rows_done += int(row["rows"])
        stage.reporter.progress("soft labels", rows_done, total, "faces")
    assert sorted(r["shard"] for r in receipts) == sorted(map(str, files)), "every shard is labelled once"
    mae = {labels.name: sum(r["mae"][i] * r["rows"] for r in receipts) / rows_done for i, labels in enumerate(sets)}
    return {
        "sets": [labels.name for labels in sets],
        "teachers": list(teachers),
        "rows": rows_done,
        "train_mae": mae,
        "fingerprint": fingerprint(stage.folder, sets),
    }


def actor_count(cluster: Any) -> int:
    """As many labelling actors as the cluster has GPUs for, else on half of its CPUs.

    Half, because a local cluster counts more CPUs than there are cores, and each actor holds every teacher.
    """
    import ray

    have = ray.cluster_resources()
    if cluster.gpus_per_worker:
        return int(have.get("GPU", 0) / cluster.gpus_per_worker)
    return int(have.get("CPU", 1) / cluster.cpus_per_worker / 2)


def count_rows(file: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(file).num_rows)


def fingerprint(folder: Path, sets: Sequence[LabelSet]) -> str:
    """Hash over the label files' hashes."""
    files = sorted(path for labels in sets for path in (folder / labels.name).glob("*/*.parquet"))
    return hashlib.sha256("\n".join(file_sha256(path) for path in files).encode()).hexdigest()[:16]


class LabelShard:
    """A labelling actor: all teachers in memory, one shard a call."""

    def __init__(
        self,
        teachers: Mapping[str, str],
        folder: str,
        sets: Sequence[tuple[tuple[str, ...], int, int]],
        reporter: Reporter,
        threads: int,
    ) -> None:
        import torch

        from hpe_core.checkpoint import load_net

        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        saved = {name: load_net(Path(path), self.device) for name, path in teachers.items()}
        self.nets, self.crop = {name: entry.net for name, entry in saved.items()}, next(iter(saved.values())).crop
        self.sets = [LabelSet(tuple(names), radius, step) for names, radius, step in sets]
        self.folder, self.reporter = Path(folder), reporter

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        results = [self.label(Path(str(shard))) for shard in batch["shard"]]
        return {
            "shard": [r["shard"] for r in results],
            "rows": [r["rows"] for r in results],
            "mae": [r["mae"] for r in results],
        }

    def label(self, shard_file: Path) -> dict[str, Any]:
        """Soft labels of one shard for every set; returns the receipt."""
        import numpy as np
        import torch

        from hpe_core.ensemble import ensemble_probs, log_labels
        from hpe_core.metrics import PoseSums
        from hpe_core.rows import read_shard, write_soft_labels

        place = Path(shard_file.parent.name) / shard_file.name
        receipt_file = self.folder / "receipts" / place.with_suffix(".json")
        receipt = read_json(receipt_file)
        if receipt is not None and receipt["shard"] == str(shard_file):
            return receipt
        shard = read_shard(shard_file)
        parts: dict[LabelSet, list[Any]] = {labels: [] for labels in self.sets}
        for start in range(0, len(shard), BATCH):
            crops = torch.from_numpy(shard.images[start : start + BATCH].copy()).to(self.device)
            for labels, probs in ensemble_probs(self.nets, crops, self.crop.size, self.sets).items():
                parts[labels].append(probs.cpu())
        bins, mae = next(iter(self.nets.values())).main_bins, []
        for labels in self.sets:
            together = torch.cat(parts[labels])
            mae.append(PoseSums.of(bins.decode(together).numpy(), shard.angles).summary()["mae"])
            logs = log_labels(together).numpy().astype(np.float16)
            write_soft_labels(self.folder / labels.name / place, shard.sample_ids, logs, labels.name)
        receipt = {"shard": str(shard_file), "rows": len(shard), "mae": mae}
        write_json(receipt_file, receipt)
        return receipt


if __name__ == "__main__":
    from workflows.full_pipeline import stage_command

    sys.exit(stage_command("labels", __doc__ or "", sys.argv[1:]))
