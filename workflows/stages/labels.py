"""Stage "labels": the teachers' ensemble over offset windows, written beside the training shards.

For every label set (teachers, K, d) that the student or the search may ask for, a row's soft label is the mean answer
over those teachers and all windows of that grid (EHPNet eq. 4 with offsets eqs. 5 and 6; `mirrored` sets add each
window's mirror image): probabilities, as fp16 logarithms, or for a student of rotations the mean rotation in float32.
One actor holds the teachers, so a shard is decoded once, and all sets come from one pass over the union of their
windows. A student of online labels asks for none.

Each set of a shard is a piece of its own (`storage/receipts.py`), named by the shard's bytes, its teachers' weights and
its windows. So a search over one more (K, d) computes that set alone: the others are taken over from earlier runs.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpe_core.data.rows import Shard, read_shard, write_soft_labels
from hpe_core.learning.metrics import PoseSums
from hpe_core.spec.network import MEANING, WEIGHTS, FormName, NetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.training import LabelSet
from hpe_core.system.disk import check_room
from hpe_core.system.files import file_sha256, json_sha256, write_json
from workflows.engine.cluster.connection import capacity, worker_device
from workflows.engine.cluster.placement import placed
from workflows.engine.results import LabelsResult
from workflows.engine.stage import StageRun
from workflows.storage.code import code_hashes
from workflows.storage.receipts import Receipt, adopt, fitting_receipt, is_claimed, receipt_file

if TYPE_CHECKING:
    from torch import Tensor

IN_HAND = 3  # shards of an actor: one is read, one is looked at, one is written


def depends(spec: PipelineSpec) -> dict[str, Any]:
    """The label sets that are asked for."""
    return {"sets": [labels.name for labels in spec.label_sets()]}


def run(stage: StageRun) -> LabelsResult:
    """Label every training shard; returns the label sets and how far the ensemble's angles lie from the hard labels."""
    import ray
    import ray.data

    spec = stage.spec
    sets = spec.label_sets()
    asked = {name for labels in sets for name in labels.teachers}
    teachers = {name: stage.inputs["teachers"] / name for name in spec.teachers if name in asked}
    if not sets:
        return LabelsResult((), (), 0, {}, "")
    splits = [stage.results.shards.splits[f"{name}.train"] for name in spec.data.train]
    shards = {stage.inputs["shards"] / shard.path: shard for split in splits for shard in split.shards}
    code = code_hashes(__name__)
    weights = {name: [file_sha256(folder / part) for part in (WEIGHTS, MEANING)] for name, folder in teachers.items()}
    jobs = {
        (file, labels): job_hash(file, shard.sha256, labels, weights, code)
        for file, shard in shards.items()
        for labels in sets
    }
    wanted = {job: stage.folder / place(*piece) for piece, job in jobs.items()}
    adopted = adopt(wanted, stage.folder.parent.glob("*/*/*/part-*.json"))
    if adopted:
        stage.reporter.say(f"  {adopted} of {len(wanted)} files of soft labels are taken over from earlier runs")
    new = sum(shards[piece[0]].rows for piece, job in jobs.items() if not is_claimed(stage.folder / place(*piece), job))
    check_room(stage.folder, new * row_bytes(spec.student.net), f"soft labels of {new:,} faces")
    receipts: list[Receipt] = []
    at = placed(spec, stage.name, capacity(spec.cluster))
    rows = [{"shard": str(file), "jobs": json.dumps([jobs[file, labels] for labels in sets])} for file in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=len(shards)).map_batches(
        LabelShard,
        fn_constructor_args=(
            {name: str(folder) for name, folder in teachers.items()},
            str(stage.folder),
            [tuple(labels) for labels in sets],
            at.threads,
        ),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=max(1, min(len(shards), at.at_once)),
            max_tasks_in_flight_per_actor=IN_HAND + 1,
            max_concurrent_calls_per_actor=IN_HAND,
            enable_true_multi_threading=True,
        ),
        **at.options,
    )
    done = 0
    for row in dataset.iter_rows():
        receipts += (found := json.loads(row["receipts"]))
        done += found[0]["rows"]
        stage.reporter.progress("soft labels", done, sum(shard.rows for shard in shards.values()), "faces")
    assert sorted(r["hash"] for r in receipts) == sorted(wanted), "every shard is labelled once for every set"
    return LabelsResult(
        sets=tuple(labels.name for labels in sets),
        teachers=tuple(teachers),
        rows=done,
        train_mae={labels.name: mean_error(receipts, labels) for labels in sets},
        fingerprint=fingerprint(receipts),
    )


def place(shard: Path, labels: LabelSet) -> Path:
    """Of a shard's soft labels, below the stage's folder."""
    return Path(labels.name) / shard.parent.name / shard.name


def job_hash(
    shard: Path, sha256: str, labels: LabelSet, weights: Mapping[str, Sequence[str]], code: Mapping[str, str]
) -> str:
    """Over everything that decides the soft labels of one shard; `sha256` is of its bytes, as its receipt says."""
    made_by = [weights[name] for name in labels.teachers]
    return json_sha256([str(place(shard, labels)), sha256, made_by, code])


def row_bytes(net: NetSpec) -> int:
    """How much of a file of soft labels a face takes: the label and its name."""
    from hpe_core.networks.heads import label_bytes

    return label_bytes(net) + 100


def mean_error(receipts: Sequence[Receipt], labels: LabelSet) -> float:
    """MAE of a set's angles against the hard labels, over the faces of all shards, degrees."""
    ordered = sorted(receipts, key=lambda receipt: str(receipt["shard"]))  # sums in another order have other last bits
    own = [receipt["errors"] for receipt in ordered if receipt["set"] == labels.name]
    return replace(PoseSums.empty(), table=np.sum(own, axis=0)).summary()["mae"]


def fingerprint(receipts: Sequence[Receipt]) -> str:
    """Hash over the label files' hashes."""
    return json_sha256(sorted((receipt["set"], receipt["shard"], receipt["sha256"]) for receipt in receipts))[:16]


class LabelShard:
    """A labelling actor: all teachers in memory, one shard a call.

    Calls overlap: while one has the teachers, the next reads its shard and the last writes its labels. So pixels stay
    in the process that needs them (docs/cluster.md says what it costs to send them through Ray).
    """

    def __init__(
        self,
        teachers: Mapping[str, str],
        folder: str,
        sets: Sequence[tuple[tuple[str, ...], int, int, bool, FormName]],
        threads: int,
    ) -> None:
        import torch

        from hpe_core.networks.checkpoint import load_net

        self.device, self.threads, self.turn = worker_device(threads), threads, threading.Lock()
        saved = {name: load_net(Path(path), self.device) for name, path in teachers.items()}
        self.nets, first = {name: entry.net for name, entry in saved.items()}, next(iter(saved.values()))
        self.crop = first.crop
        self.sets = [LabelSet(*labels) for labels in sets]
        self.folder = Path(folder)
        if self.device.type == "cuda":
            for net in self.nets.values():
                net.to(memory_format=torch.channels_last)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows of a shard's path and its jobs' hashes, one a set -> rows of its receipts."""
        asked = zip(batch["shard"], batch["jobs"], strict=True)
        return {"receipts": [json.dumps(self.label(Path(str(shard)), json.loads(jobs))) for shard, jobs in asked]}

    def label(self, shard_file: Path, hashes: Sequence[str]) -> list[Receipt]:
        """Soft labels of one shard for every set that lacks them; returns the receipts of all."""
        from hpe_core.learning.ensemble import form_of

        jobs = dict(zip(self.sets, hashes, strict=True))
        pieces = {labels: self.folder / place(shard_file, labels) for labels in self.sets}
        found = {labels: fitting_receipt(pieces[labels], jobs[labels]) for labels in self.sets}
        receipts = {labels: receipt for labels, receipt in found.items() if receipt is not None}
        missing = [labels for labels in self.sets if labels not in receipts]
        if not missing:
            return [receipts[labels] for labels in self.sets]
        shard = read_shard(shard_file)
        with self.turn:
            ensembles = self.ensembles(shard, missing)
        for labels, answers in ensembles.items():
            form = form_of(self.nets, labels)
            soft = form.labels(answers).to(form.stored).numpy()
            receipts[labels] = {
                "hash": jobs[labels],
                "set": labels.name,
                "shard": f"{shard_file.parent.name}/{shard_file.name}",
                "rows": len(shard),
                "errors": PoseSums.of(form.decode(answers).numpy(), shard.angles).table.tolist(),
                "sha256": write_soft_labels(pieces[labels], shard.sample_ids, soft, labels.name),
            }
            write_json(receipt_file(pieces[labels]), receipts[labels])
        return [receipts[labels] for labels in self.sets]

    def ensembles(self, shard: Shard, sets: Sequence[LabelSet]) -> dict[LabelSet, "Tensor"]:
        """Mean answers of every set, all from one pass over the union of their windows: (M, 3, N)."""
        import torch

        from hpe_core.learning.ensemble import ensemble_probs, forward_rows, on_device

        torch.set_num_threads(self.threads)  # a count that torch keeps for each thread
        rows, half = forward_rows(self.device), self.device.type == "cuda"
        parts: dict[LabelSet, list[Any]] = {labels: [] for labels in sets}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            for start in range(0, len(shard), rows):
                crops = on_device(shard.images[start : start + rows], self.device)
                for labels, answers in ensemble_probs(self.nets, crops, self.crop.size, sets).items():
                    parts[labels].append(answers)
        return {labels: torch.cat(answers).cpu() for labels, answers in parts.items()}
