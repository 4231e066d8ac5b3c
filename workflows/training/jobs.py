"""One network to train as a job: its labels, its rows, and the hash under which the store keeps it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpe_core.data.rows import check_form, shard_files
from hpe_core.errors import check
from hpe_core.shipped import network_folder
from hpe_core.spec.data import CropSpec, DataSpec
from hpe_core.spec.network import MEANING, WEIGHTS, NetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import LabelSet, TrainSpec, no_start
from hpe_core.system.files import file_sha256, json_sha256
from workflows.engine.stage import StageRun
from workflows.storage.code import code_hashes
from workflows.training.stream import StreamedFaces

if TYPE_CHECKING:
    from hpe_core.data.batch import FaceData, TrainFaces

TRAINER = "workflows.training.networks"  # the module that trains a job, and with its imports all code that decides it


@dataclass(frozen=True, eq=False)
class Job:
    """One network to train: everything a worker needs."""

    key: str  # of its MLflow run
    name: str
    spec: TrainSpec
    data: DataSpec
    shards: Path
    labels: Path | None = None  # folder of the label set, beside the shards' names
    online: tuple[LabelSet, Path] | None = None  # labels to be written in the training step, by the teachers there
    depends: str = ""  # hashes of shards, labels and code, for the network's own hash

    @property
    def hash(self) -> str:
        return f"{self.name}-{json_sha256([to_dict(self.spec), self.depends])[:12]}"


def job_for(stage: StageRun, name: str, spec: TrainSpec) -> Job:
    """The job of one network of this stage, with soft labels where its spec distils."""
    labels, online, source = soft_labels(stage.spec, spec, stage.inputs)
    depends = [stage.hashes["shards"], *code_hashes(TRAINER).values()]
    depends += batching(stage.spec, stage.name).values()
    depends += [stage.hashes[source]] if source else []
    depends += weights({name: spec}, stage.spec.data.crop).values()
    return Job(
        f"{stage.key}/{name}", name, spec, stage.spec.data, stage.inputs["shards"], labels, online, json.dumps(depends)
    )


def soft_labels(
    pipeline: PipelineSpec, spec: TrainSpec, inputs: Mapping[str, Path]
) -> tuple[Path | None, tuple[LabelSet, Path] | None, str]:
    """Where a network's soft labels come from: (their folder, or the teachers to ask, and the stage of either)."""
    if spec.distill is None:
        return None, None, ""
    labels = pipeline.label_set(spec)
    if spec.distill.labels == "online":
        return None, (labels, inputs["teachers"]), "teachers"
    return inputs["labels"] / labels.name, None, "labels"


def weights(trained: Mapping[str, TrainSpec], crop: CropSpec) -> dict[str, str]:
    """What lies in the files of weights that networks start from: a file may change under its name.

    Raises SpecError as `wrong_weights` has it.
    """
    wrong = wrong_weights(trained, crop)
    check(not wrong, "; ".join(wrong))
    found = {}
    for spec in trained.values():
        if spec.net.pretrained not in ("none", "hub"):
            found[spec.net.pretrained] = file_sha256(Path(spec.net.pretrained))
        if spec.start:
            folder = network_folder(spec.start)
            found[spec.start] = " ".join(file_sha256(folder / name) for name in (WEIGHTS, MEANING))
    return found


def wrong_weights(trained: Mapping[str, TrainSpec], crop: CropSpec) -> list[str]:
    """A sentence for each file of weights that is not there, and each saved network that is none or is no start.

    `trained`: by the key that a sentence begins with. Reads no weights.
    """
    said = []
    for key, spec in trained.items():
        if spec.net.pretrained not in ("none", "hub") and not Path(spec.net.pretrained).is_file():
            said.append(f"{key}.net.pretrained: there is no weights file {spec.net.pretrained}")
        why_not = unfit_start(spec, crop) if spec.start else ""
        if why_not:
            said.append(f"{key}.start: {why_not}")
    return said


def unfit_start(spec: TrainSpec, crop: CropSpec) -> str:
    """Why the network's `start` is none, or ''."""
    folder = network_folder(spec.start)
    lacking = [name for name in (WEIGHTS, MEANING) if not (folder / name).is_file()]
    if lacking:
        return f"{spec.start} does not hold a saved network ({' and '.join(lacking)})"
    try:
        meaning = json.loads((folder / MEANING).read_text())
        net = build(NetSpec, {**meaning["net"], "pretrained": "none"})
        why_not = no_start(spec.net, crop, net, build(CropSpec, meaning["crop"]))
    except (ValueError, LookupError, TypeError) as error:
        return f"{spec.start} does not hold a saved network ({MEANING}: {error})"
    return f"{spec.start} cannot be begun with: {why_not}" if why_not else ""


def batching(spec: PipelineSpec, stage: str) -> dict[str, Any]:
    """Workers and the way to them decide which faces meet in a batch; of elastic ones, how few and many they may be."""
    fewest, most = spec.cluster.workers_of(stage)
    return {"workers": most if fewest == most else [fewest, most], **spec.data.batching}


def open_data(job: Job, readers: int = 1) -> "tuple[TrainFaces, FaceData]":
    """The training rows (with soft labels if there are any) and the validation rows. `readers` is for Ray Data.

    Raises ShardError where the soft labels have another form than the network reads.
    """
    from hpe_core.data.batch import FaceData, OwnFaces

    names = sorted(job.data.train)  # batches come from the order of files, and a network's hash knows no order of names
    files = [file for name in names for file in shard_files(job.shards, name, "train")]
    held_out = [file for name in names for file in shard_files(job.shards, name, "val")]
    landmarks = job.spec.net.landmarks
    labels = None if job.labels is None else [job.labels / file.parent.name / file.name for file in files]
    for label in labels or ():
        check_form(label, job.spec.net.form)
    train: TrainFaces
    if job.data.ingest == "ray_data":
        train = StreamedFaces(files, labels, job.data.stream_shards, readers, landmarks=landmarks)
    else:
        kind = OwnFaces if job.data.ingest == "own_shards" else FaceData
        train = kind(files, labels, landmarks=landmarks)
    return train, FaceData(held_out, landmarks=landmarks)


def online_teachers(job: Job, device: Any) -> Any:
    """The teachers that label each step's views, on the worker's device; None where labels are stored."""
    if job.online is None:
        return None
    from hpe_core.learning.ensemble import OnlineTeachers
    from hpe_core.networks.checkpoint import load_net

    labels, folder = job.online
    nets = {name: load_net(folder / name, device).net for name in labels.teachers}
    return OnlineTeachers(nets, job.data.crop.size, labels)
