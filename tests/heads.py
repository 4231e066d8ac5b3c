"""Heads and label sources at equal budget, landmarks beside the pose at equal cost: the program of docs/heads.md.

    python -m tests.heads heads OUT SEED... [FOLDER_OF_AFLW2000 YUNET.onnx]    bins, 6D, matrix Fisher; students, twins
    python -m tests.heads sources OUT SEED... [FOLDER_OF_AFLW2000 YUNET.onnx]  students by what their labels are made of
    python -m tests.heads mnn OUT SEED... [FOLDER_OF_AFLW2000 YUNET.onnx]      MNN, and the same without landmarks
    python -m tests.heads table OUT                                            mean and sd of what is there

It renders its heads once into OUT, trains on one core what is not there yet, and adds a line of JSON to
OUT/results.jsonl for each network that has none there. With the two paths it also scores on the ruler's part to look
at, in YuNet's boxes. `table` measures latencies, so let it have the machine for itself.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpe_core.data.batch import FaceData
from hpe_core.data.marks import Marks
from hpe_core.data.rows import read_shard, write_shard, write_soft_labels
from hpe_core.datasets.base import FaceRow
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.detection.fit import TO_LANDMARKS
from hpe_core.geometry.crop import Image, canonical_crop, window
from hpe_core.learning.ensemble import ensemble_probs, form_of
from hpe_core.learning.metrics import RANGE_NAMES, PoseSums
from hpe_core.networks.checkpoint import load_net, save_net
from hpe_core.networks.models import PoseNet
from hpe_core.predictor import FIT_NOTE
from hpe_core.spec.data import CropSpec, DatasetSpec
from hpe_core.spec.network import FormName, HeadName, NetSpec
from hpe_core.spec.serde import to_dict
from hpe_core.spec.training import AugmentSpec, DistillSpec, LabelSet, OptimSpec, TrainSpec
from hpe_core.training.latency import cpu_cost
from hpe_core.training.loop import fit
from tests.ruler import faces_of

CROP = CropSpec(size=64, margin_px=8)
HEADS = DatasetSpec("synthetic", seed=21, count=5900, image_px=128, heads_per_person=3)
PARTS = {"train": (0, 5000), "val": (5000, 5300), "test": (5300, 5900)}
ROWS, BATCH = 500, 64
OPTIM = OptimSpec(epochs=8, batch_size=64, lr=0.002, optimizer="adamw", weight_decay=0.02, warmup_epochs=1)
AUGMENT = AugmentSpec(turn_deg=15, turn_gain=0, jitter_px=4, photometric="light")
STUDENTS = AugmentSpec(turn_deg=10, turn_gain=2, jitter_px=4, photometric="light")
DISTRUST = 30.0  # a face whose labels scatter by ten degrees counts half
LOSS: dict[HeadName, Any] = {"bins": "dldl", "fisher": "fisher", "sixd": "geodesic"}
SECONDS = "core_seconds"  # that a training took
Photographs = tuple[Image, NDArray[np.float64]]  # canonical crops, angles


def shards(out: Path) -> dict[str, list[Path]]:
    """Rendered where they are not there yet."""
    source, files = open_source(HEADS), dict[str, list[Path]]()
    refs = sorted(source.refs(), key=lambda ref: int(ref.key))
    for part, (first, last) in PARTS.items():
        files[part] = [out / f"heads.{part}" / f"part-{start:05d}.parquet" for start in range(first, last, ROWS)]
        for start, file in zip(range(first, last, ROWS), files[part], strict=True):
            if not file.exists():
                loaded = load_directly(source, CROP, refs[start : min(start + ROWS, last)])
                write_shard(file, [row for row in loaded if isinstance(row, FaceRow)], CROP, "raw")
    return files


def photographs(paths: Sequence[str]) -> Photographs | None:
    if not paths:
        return None
    root, yunet = map(Path, paths)
    faces = faces_of(root, yunet, "look")
    crops = [canonical_crop(image, TO_LANDMARKS.of(box), CROP).pixels for image, box in faces.pictures]
    return np.stack(crops), faces.angles


class Laboratory:
    """What all trainings of a run share."""

    def __init__(self, out: Path, seen: Photographs | None) -> None:
        torch.set_num_threads(1)
        self.out, self.files, self.seen = out, shards(out), seen

    def trained(self, name: str, spec: TrainSpec, labels: list[Path] | None = None) -> PoseNet:
        """The network of this name, read back if it is there."""
        folder, marks = self.out / name, spec.net.landmarks
        if not (folder / "model.json").exists():
            began = time.process_time()
            train = FaceData(self.files["train"], labels, landmarks=marks)
            net = fit(spec, CROP, train, FaceData(self.files["val"], landmarks=marks), on_epoch=lambda end: None)
            notes = {FIT_NOTE: to_dict(TO_LANDMARKS), SECONDS: round(time.process_time() - began)}
            save_net(folder, net, CROP, notes)
        saved = load_net(folder)
        if name not in {row["name"] for row in rows_of(self.out)}:
            row = {"name": name, SECONDS: saved.notes.get(SECONDS), **self.scores(saved.net)}
            with open(self.out / "results.jsonl", "a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        return saved.net

    def scores(self, net: PoseNet) -> dict[str, Any]:
        """On test heads and photographs, by the middle window and over nine windows and their mirror images."""
        found: dict[str, Any] = {}
        test = [read_shard(file) for file in self.files["test"]]
        sets = {"heads": (np.concatenate([s.images for s in test]), np.concatenate([s.angles for s in test]))}
        sets |= {} if self.seen is None else {"photographs": self.seen}
        for name, (images, truth) in sets.items():
            for how, windows in (("", (0, 1)), (", windows", (4, 4))):
                asked = LabelSet(("",), *windows, mirrored=bool(how), form=net.form.name)
                answers = self.answers({"": net}, images, asked)
                sums = PoseSums.of(net.form.decode(answers).numpy(), truth)
                geodesic = sums.table[:, 4] / np.maximum(1, sums.table[:, 0])
                ranges = zip(RANGE_NAMES, geodesic.tolist(), strict=False)
                found[name + how] = sums.summary() | {f"geodesic, {name}": value for name, value in ranges}
        if net.spec.landmarks:
            marks = [Marks(self.marks(net, shard.images), shard.landmarks, shard.scales) for shard in test]
            found["landmarks"] = Marks.joined(marks).scores()
        return found

    @staticmethod
    def marks(net: PoseNet, images: Image) -> NDArray[np.float32]:
        windows = torch.from_numpy(np.asarray(window(images, CROP.size)).copy()).split(BATCH)
        with torch.inference_mode():
            said = [net.answered(part)[1] for part in windows]
        return torch.cat([one.marks_BL3 for one in said if one is not None]).numpy()

    @staticmethod
    def answers(nets: Mapping[str, PoseNet], images: Image, asked: LabelSet) -> torch.Tensor:
        parts = [torch.from_numpy(images[start : start + BATCH].copy()) for start in range(0, len(images), BATCH)]
        return torch.cat([ensemble_probs(nets, part, CROP.size, [asked])[asked] for part in parts])

    def labels(self, name: str, nets: Mapping[str, PoseNet], asked: LabelSet) -> list[Path]:
        """Soft labels of the training heads, by these teachers of one head, in the form that is asked for."""
        folder, form = self.out / f"labels-{name}-{asked.form}", form_of(nets, asked)
        for file in self.files["train"]:
            if not (folder / file.name).exists():
                shard = read_shard(file)
                told = form.labels(self.answers(nets, shard.images, asked)).to(form.stored)
                folder.mkdir(exist_ok=True)
                write_soft_labels(folder / file.name, shard.sample_ids, told.numpy(), name)
        return [folder / file.name for file in self.files["train"]]


def teacher_of(lab: Laboratory, head: HeadName, seed: int) -> PoseNet:
    spec = TrainSpec(NetSpec("test_resnet", head=head), OPTIM, AUGMENT, hard_loss=LOSS[head], seed=seed)
    return lab.trained(f"{head}-{seed}", spec)


def student_of(head: HeadName, seed: int, distill: DistillSpec | None) -> TrainSpec:
    net, optim = NetSpec("test_byobnet", head=head), replace(OPTIM, lr=0.003)
    return TrainSpec(net, optim, STUDENTS, hard_loss=LOSS[head], seed=seed, distill=distill)


def compare_heads(lab: Laboratory, seeds: Sequence[int]) -> None:
    pairs: list[tuple[HeadName, HeadName]] = [
        ("bins", "bins"),
        ("fisher", "fisher"),
        ("fisher", "bins"),
        ("sixd", "sixd"),
    ]
    for seed in seeds:
        teachers = {head: teacher_of(lab, head, seed) for head in LOSS}
        for head, taught_by in pairs:
            asked = LabelSet(("",), 4, 4, mirrored=True, form="bins" if head == "bins" else "rotations")
            labels = lab.labels(f"{taught_by}-{seed}", {"": teachers[taught_by]}, asked)
            spec = student_of(head, seed, DistillSpec(offset_radius=4, offset_step=4, mirrored=True))
            lab.trained(f"student-{head}-of-{taught_by}-{seed}", spec, labels)
        for head in LOSS:
            lab.trained(f"twin-{head}-{seed}", student_of(head, seed, None))


def compare_sources(lab: Laboratory, seeds: Sequence[int]) -> None:
    """Students of bins and of matrix Fisher by label source; the ensemble are the teachers of all the seeds.

    What `heads` trains are the two ends: no soft labels, and the offsets of one teacher.
    """
    heads: tuple[HeadName, HeadName] = ("bins", "fisher")
    for head in heads:
        form: FormName = "bins" if head == "bins" else "rotations"
        teachers = {f"{seed}": teacher_of(lab, head, seed) for seed in seeds}
        everyone, windows = tuple(teachers), DistillSpec(offset_radius=4, offset_step=4, mirrored=True)
        ensemble = lab.labels(f"{head}-ensemble", teachers, LabelSet(everyone, 0, 1, form=form))
        combined = lab.labels(f"{head}-combined", teachers, LabelSet(everyone, 4, 4, mirrored=True, form=form))
        for seed in seeds:
            alone = {f"{seed}": teachers[f"{seed}"]}
            one = lab.labels(f"{head}-{seed}-one", alone, LabelSet((f"{seed}",), 0, 1, form=form))
            sources: dict[str, tuple[DistillSpec, list[Path]]] = {
                "one": (DistillSpec(), one),
                "ensemble": (DistillSpec(), ensemble),
                "combined": (windows, combined),
                f"combined, distrust {DISTRUST}": (replace(windows, distrust=DISTRUST), combined),
            }
            for source, (distill, labels) in sources.items():
                lab.trained(f"student-{head}-by-{source}-{seed}", student_of(head, seed, distill), labels)


def compare_landmarks(lab: Laboratory, seeds: Sequence[int]) -> None:
    """Ten epochs with the decoder take about as long as twelve without."""
    optim, distill = replace(OPTIM, epochs=10), DistillSpec(offset_radius=4, offset_step=4)
    for seed in seeds:
        student = TrainSpec(NetSpec("test_resnet"), optim, STUDENTS, hard_loss="dldl", seed=seed, distill=distill)
        for name, landmarks, epochs in (("mnn", True, 10), ("plain", False, 12)):
            net = NetSpec("resnet10t", landmarks=landmarks, decoder_stride=4)
            spec = TrainSpec(net, replace(OPTIM, epochs=epochs), AUGMENT, hard_loss="dldl", seed=seed)
            teacher = lab.trained(f"{name}-{seed}", spec)
            labels = lab.labels(f"{name}-{seed}", {"": teacher}, LabelSet(("",), 4, 4))
            lab.trained(f"student-of-{name}-{seed}", student, labels)


def tables(out: Path) -> str:
    """Two tables of Markdown, mean and sd of each network over its seeds: MAE with the geodesic error in brackets; both
    by yaw range, parameters, and latency on one core."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(out):
        found.setdefault(re.sub(r"-\d+$", "", row["name"]), []).append(row)
    sets = [faces for faces in ("heads", "photographs") if all(faces in row for rows in found.values() for row in rows)]
    parts = [f"{faces}{how}" for faces in sets for how in ("", ", windows")]
    ranges = [(faces, name) for faces in sets for name in RANGE_NAMES[:3]]
    errors = [["network", "seeds", *parts]]
    details = [["network", *(f"{faces}, {name}" for faces, name in ranges), "parameters", "ms"]]
    for name, rows in found.items():
        cost = cpu_cost(load_net(out / rows[0]["name"]).net)
        both = [f"{over_seeds(rows, part, 'mae')} ({over_seeds(rows, part, 'geodesic')})" for part in parts]
        errors.append([name, f"{len(rows)}", *both])
        details.append([name])
        for faces, part in ranges:
            geodesic = over_seeds(rows, faces, f"geodesic, {part}").split()[0]
            details[-1].append(f"{over_seeds(rows, faces, part)} ({geodesic})")
        details[-1] += [f"{cost['parameters']:,.0f}", f"{cost['latency_ms']:.2f}"]
    return "\n\n".join(markdown(lines) for lines in (errors, details))


def rows_of(out: Path) -> list[dict[str, Any]]:
    file = out / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def over_seeds(rows: Sequence[Mapping[str, Any]], part: str, value: str) -> str:
    values = np.array([row[part][value] for row in rows])
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def markdown(lines: Sequence[Sequence[str]]) -> str:
    ruled = [lines[0], ["---", *["--:"] * (len(lines[0]) - 1)], *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


TRIALS: dict[str, Callable[[Laboratory, Sequence[int]], None]] = {
    "heads": compare_heads,
    "sources": compare_sources,
    "mnn": compare_landmarks,
}

if __name__ == "__main__":
    verb, folder, *words = sys.argv[1:]
    if verb == "table":
        print(tables(Path(folder)))
    else:
        numbers, paths = [int(word) for word in words if word.isdecimal()], [w for w in words if not w.isdecimal()]
        TRIALS[verb](Laboratory(Path(folder), photographs(paths)), numbers)
