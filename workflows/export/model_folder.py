"""The published folder: the student in every form that somebody may want to run, and what was measured of each.

Its ONNX file and the int8 form of it, the traced program for PyTorch, a folder for timm, the torch weights with their
meaning, and MLflow's MLmodel.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpe_core.datasets.readers.landmarks import LandmarkArchive
from hpe_core.datasets.registry import fit_to, reader_of, readers
from hpe_core.detection.fit import DetectorFit, mean_fit
from hpe_core.learning.calibration import Calibration
from hpe_core.predictor import CALIBRATION_NOTE, FIT_NOTE, noted_fit
from hpe_core.pyfunc import ONNX_FILE
from hpe_core.shipped import network_folder
from hpe_core.spec.data import DatasetSpec, DataSpec
from hpe_core.spec.network import MEANING
from hpe_core.spec.serde import to_dict
from hpe_core.system.files import read_json
from hpe_core.system.processor import cpu_name
from workflows.engine.exported import Exported, Int8
from workflows.engine.results import Role
from workflows.engine.stage import StageRun
from workflows.export.faces import Faces, spread_faces, together
from workflows.export.int8 import quantize_onnx, score_int8
from workflows.export.mlmodel import begin_folder
from workflows.export.onnx_file import export_network
from workflows.export.runtimes import has_openvino, latency_table, openvino_gap
from workflows.export.timm_folder import write_timm_folder

INT8_FILE, PROGRAM_FILE, TIMM_FOLDER = "student.int8.onnx", "student.pt2", "timm"


def export_student(stage: StageRun, model: Path, weight_terms: str) -> Exported:
    """Write all of the folder `model` anew. `weight_terms` says in a sentence what the weights may be used for."""
    begin_folder(model)
    evaluated = stage.results.evaluate.sureness
    calibration = None if evaluated is None else evaluated.calibration
    save_described(stage.inputs["student"] / Role.DISTILLED, model, detector_fit(stage), calibration)
    return export_files(stage, model, weight_terms)


def detector_fit(stage: StageRun) -> DetectorFit | None:
    """How YuNet's boxes become such as the training faces have on average; where nobody knows, as those had of the
    network that the student began with; else None."""
    data, splits, start = stage.spec.data, stage.results.shards.splits, stage.results.student.spec.start
    fits = [(fit_on_photographs(data.datasets[name]), splits[f"{name}.train"].kept) for name in data.train]
    began = read_json(network_folder(start) / MEANING) if start else None
    return mean_fit(fits) or (noted_fit(began["notes"]) if began else None)


def fit_on_photographs(spec: DatasetSpec) -> DetectorFit | None:
    """A dataset's own; for rendered heads that of archives whose boxes follow the same rule (`Box.of_face`): whoever
    asks the network has photographs, and YuNet boxes those a little otherwise (docs/datasets.md)."""
    drawn = not readers()[spec.reader].photographs and spec.detector is None
    return LandmarkArchive.detector_fit if drawn else fit_to(spec)


def save_described(network: Path, model: Path, fit: DetectorFit | None, calibration: Calibration | None) -> None:
    """The network once more in the folder `model`, with notes how a detector's boxes become those that it learnt, and
    what its spreads are worth."""
    from hpe_core.networks.checkpoint import load_net, save_net

    saved = load_net(network)
    notes = {FIT_NOTE: fit, CALIBRATION_NOTE: calibration}
    known = {name: to_dict(note) for name, note in notes.items() if note is not None}
    save_net(model, saved.net, saved.crop, saved.notes | known)


def export_files(stage: StageRun, model: Path, weight_terms: str) -> Exported:
    """Write every form of the network in the folder `model` beside it; returns what was measured of each."""
    wanted = stage.spec.publish.parity_crops
    scored = faces_of(stage, "test", wanted)
    missing = wanted - (len(scored.windows) if scored else 0)
    compared = together([scored, faces_of(stage, "val", missing)])  # parity asks no label, so validation faces fill up
    crops, opset = compared.windows if compared else None, stage.spec.export.opset
    traced = export_network(model, model / ONNX_FILE, model / PROGRAM_FILE, crops, opset)
    timm = write_timm_folder(model, model / TIMM_FOLDER, weight_terms)
    int8 = export_int8(stage, model, scored)
    stage.reporter.progress("publishing", 1, 5, "steps, measuring latency")
    latency = latency_table(model, model / ONNX_FILE, model / INT8_FILE if int8 else None)
    return Exported(traced, timm, int8, latency, cpu_name())


def faces_of(stage: StageRun, split: str, wanted: int) -> Faces | None:
    """Faces of the test sets, or of the training datasets' validation people."""
    data = stage.spec.data
    names = data.test if split == "test" else data.train
    found = spread_faces(stage.inputs["shards"], names, split, wanted, data.crop.size)
    return found and found._replace(groups=people_of(data, found.groups))


def people_of(data: DataSpec, groups: NDArray[np.str_]) -> NDArray[np.str_]:
    """Whom groups such as `biwi/sequence02` show: one person may be several groups of a dataset."""
    used = {name: reader_of(spec) for name, spec in data.datasets.items()}
    parts = (group.split("/", 1) for group in groups.tolist())
    return np.array([f"{name}/{used[name].person_of(group)}" for name, group in parts])


def export_int8(stage: StageRun, model: Path, scored: Faces | None) -> Int8 | None:
    """Write the int8 file into the folder `model`; None where no faces to calibrate on are asked for, or there."""
    calibration = faces_of(stage, "val", stage.spec.publish.calibration_crops)
    if calibration is None:
        return None
    files = (model / ONNX_FILE, model / INT8_FILE)
    try:
        quantize_onnx(*files, calibration.windows)
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise RuntimeError(f"int8: {reason}; publish.calibration_crops=0 leaves that file out") from error
    score = score_int8(*files, scored) if scored else None
    apart = openvino_gap(files[1], calibration.windows) if has_openvino() else None
    return Int8(files[1].stat().st_size, len(calibration.windows), score, apart)
