"""Heads and label sources at equal budget, landmarks beside the pose at equal cost: the program of docs/heads.md.

    python -m tests.heads heads OUT SEED... [FOLDER_OF_AFLW2000 YUNET.onnx]    bins, 6D, matrix Fisher; students, twins
    python -m tests.heads mnn OUT SEED... [FOLDER_OF_AFLW2000 YUNET.onnx]      MNN, and the same without landmarks

It renders its heads once into OUT, trains on one core what is not there yet, and adds a line of JSON a network to
OUT/results.jsonl. With the two paths it also scores on the ruler's part to look at, in YuNet's boxes.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpe_core.data.batch import FaceData
from hpe_core.data.rows import read_shard, write_shard, write_soft_labels
from hpe_core.datasets.base import FaceRow
from hpe_core.datasets.readers.landmarks import LandmarkArchive
from hpe_core.datasets.registry import fit_to, open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.detection.fit import DetectorFit
from hpe_core.geometry.crop import Image, canonical_crop
from hpe_core.learning.checkpoint import load_net, save_net
from hpe_core.learning.ensemble import ensemble_probs
from hpe_core.learning.metrics import PoseSums
from hpe_core.learning.models import PoseNet
from hpe_core.predictor import FIT_NOTE
from hpe_core.spec.data import CropSpec, DatasetSpec
from hpe_core.spec.network import HeadName, NetSpec
from hpe_core.spec.serde import to_dict
from hpe_core.spec.training import AugmentSpec, DistillSpec, LabelSet, OptimSpec, TrainSpec
from hpe_core.training.latency import cpu_cost
from hpe_core.training.loop import fit, validate
from tests.ruler import faces_of, ruler

CROP = CropSpec(size=64, margin_px=8)
HEADS = DatasetSpec("synthetic", seed=21, count=5900, image_px=128, heads_per_person=3)
PARTS = {"train": (0, 5000), "val": (5000, 5300), "test": (5300, 5900)}
ROWS, BATCH = 500, 64
OPTIM = OptimSpec(epochs=8, batch_size=64, lr=0.002, optimizer="adamw", weight_decay=0.02, warmup_epochs=1)
AUGMENT = AugmentSpec(turn_deg=15, turn_gain=0, jitter_px=4, photometric="light")
STUDENTS = AugmentSpec(turn_deg=10, turn_gain=2, jitter_px=4, photometric="light")
LOSS: dict[HeadName, Any] = {"bins": "dldl", "fisher": "fisher", "sixd": "geodesic"}
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
    faces, boxes = faces_of(root, yunet, "look"), fit_to(ruler(root)[0].spec) or DetectorFit()
    crops = [canonical_crop(image, boxes.of(box), CROP).pixels for image, box in faces.pictures]
    return np.stack(crops), faces.angles


class Laboratory:
    """What all trainings of a run share."""

    def __init__(self, out: Path, seen: Photographs | None) -> None:
        torch.set_num_threads(1)
        self.out, self.files, self.seen = out, shards(out), seen

    def trained(self, name: str, spec: TrainSpec, labels: list[Path] | None = None) -> PoseNet:
        """The network of this name, read back if it is there."""
        folder, marks = self.out / name, spec.net.landmarks
        if (folder / "model.json").exists():
            return load_net(folder).net
        began = time.process_time()
        train = FaceData(self.files["train"], labels, landmarks=marks)
        net = fit(spec, CROP, train, FaceData(self.files["val"], landmarks=marks), on_epoch=lambda end: None).eval()
        seconds = time.process_time() - began
        save_net(folder, net, CROP, {FIT_NOTE: to_dict(LandmarkArchive.detector_fit)})
        row = {"name": name, "core_seconds": round(seconds), **self.scores(net), **cpu_cost(net, 1)}
        with open(self.out / "results.jsonl", "a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        return net

    def scores(self, net: PoseNet) -> dict[str, Any]:
        """On test heads and photographs, by the middle window and over nine windows and their mirror images."""
        found: dict[str, Any] = {}
        test = [read_shard(file) for file in self.files["test"]]
        sets = {"heads": (np.concatenate([s.images for s in test]), np.concatenate([s.angles for s in test]))}
        sets |= {} if self.seen is None else {"photographs": self.seen}
        for name, (images, truth) in sets.items():
            for how, windows in (("", (0, 1)), (", windows", (4, 4))):
                asked = LabelSet(("",), *windows, mirrored=bool(how), form=net.form.name)
                answers = self.answers(net, images, asked)
                found[name + how] = PoseSums.of(net.form.decode(answers).numpy(), truth).summary()
        if net.spec.landmarks:
            test_faces = FaceData(self.files["test"], landmarks=True)
            found["nme"] = validate(net, test_faces, CROP, BATCH).summary()["nme"]
        return found

    @staticmethod
    def answers(net: PoseNet, images: Image, asked: LabelSet) -> torch.Tensor:
        parts = [torch.from_numpy(images[start : start + BATCH].copy()) for start in range(0, len(images), BATCH)]
        return torch.cat([ensemble_probs({"": net}, part, CROP.size, [asked])[asked] for part in parts])

    def labels(self, name: str, net: PoseNet, asked: LabelSet) -> list[Path]:
        """Soft labels of the training heads, in the form that is asked for."""
        folder = self.out / f"labels-{name}-{asked.form}"
        for file in self.files["train"]:
            if not (folder / file.name).exists():
                shard = read_shard(file)
                said = self.answers(net, shard.images, asked)
                told = net.form.labels(said).half() if asked.form == "bins" else said.float()
                folder.mkdir(exist_ok=True)
                write_soft_labels(folder / file.name, shard.sample_ids, told.numpy(), name)
        return [folder / file.name for file in self.files["train"]]


def compare_heads(lab: Laboratory, seed: int) -> None:
    teachers = {}
    for head in LOSS:
        spec = TrainSpec(NetSpec("test_resnet", head=head), OPTIM, AUGMENT, hard_loss=LOSS[head], seed=seed)
        teachers[head] = lab.trained(f"{head}-{seed}", spec)
    distill = DistillSpec(offset_radius=4, offset_step=4, mirrored=True)
    pairs: list[tuple[HeadName, HeadName]] = [
        ("bins", "bins"),
        ("fisher", "fisher"),
        ("fisher", "bins"),
        ("sixd", "sixd"),
    ]
    plain = {
        head: TrainSpec(
            NetSpec("test_byobnet", head=head), replace(OPTIM, lr=0.003), STUDENTS, hard_loss=LOSS[head], seed=seed
        )
        for head in LOSS
    }
    for head, taught_by in pairs:
        asked = LabelSet(("",), 4, 4, mirrored=True, form="bins" if head == "bins" else "rotations")
        labels = lab.labels(f"{taught_by}-{seed}", teachers[taught_by], asked)
        lab.trained(f"student-{head}-of-{taught_by}-{seed}", replace(plain[head], distill=distill), labels)
    for head in LOSS:
        lab.trained(f"twin-{head}-{seed}", plain[head])


def compare_landmarks(lab: Laboratory, seed: int) -> None:
    """Ten epochs with the decoder take about as long as twelve without."""
    for name, landmarks, epochs in (("mnn", True, 10), ("plain", False, 12)):
        net = NetSpec("resnet10t", landmarks=landmarks, decoder_stride=4)
        spec = TrainSpec(net, replace(OPTIM, epochs=epochs), AUGMENT, hard_loss="dldl", seed=seed)
        teacher = lab.trained(f"{name}-{seed}", spec)
        labels = lab.labels(f"{name}-{seed}", teacher, LabelSet(("",), 4, 4))
        student = TrainSpec(NetSpec("test_resnet"), replace(OPTIM, epochs=10), STUDENTS, hard_loss="dldl", seed=seed)
        distill = DistillSpec(offset_radius=4, offset_step=4)
        lab.trained(f"student-of-{name}-{seed}", replace(student, distill=distill), labels)


if __name__ == "__main__":
    verb, folder, *words = sys.argv[1:]
    seeds, paths = [word for word in words if word.isdecimal()], [word for word in words if not word.isdecimal()]
    laboratory = Laboratory(Path(folder), photographs(paths))
    for number in map(int, seeds):
        (compare_landmarks if verb == "mnn" else compare_heads)(laboratory, number)
