"""Stage "publish": the champion in every form that somebody may want to run, a model card, the report, and the
registry.

The folder `model` is complete in itself: the ONNX file and its int8 form, the torch weights with their meaning, the
traced program, a folder for timm, the card, and MLflow's MLmodel (`workflows.export.mlmodel`), so that
`mlflow.pyfunc.load_model("models:/head-pose@champion")` works where this project is not installed.
"""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hpe_core.data.rows import read_shard, shard_files
from hpe_core.datasets.registry import fit_to
from hpe_core.detection.fit import mean_fit
from hpe_core.geometry.crop import Image, window
from hpe_core.predictor import FIT_NOTE
from hpe_core.pyfunc import ONNX_FILE
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import to_dict
from workflows.engine.config import REPO
from workflows.engine.exported import Exported, Int8
from workflows.engine.results import PublishResult, Registration, Role, Row
from workflows.engine.stage import StageRun
from workflows.export.int8 import quantize_onnx, score_int8
from workflows.export.mlmodel import begin_folder, version_of
from workflows.export.onnx_file import export_network
from workflows.export.runtimes import ONNX, cpu_name, latency_table
from workflows.export.timm_folder import write_hub
from workflows.report.card import int8_line, latency_lines, metrics_table, model_card, summary, weight_terms
from workflows.storage.manifest import finished
from workflows.tracking.facts import git_commit

INT8_FILE, PROGRAM_FILE, HUB_FOLDER, CARD_FILE = "student.int8.onnx", "student.pt2", "timm", "README.md"
VERSIONS = (
    "torch",
    "timm",
    "onnx",
    "onnxruntime",
    "openvino",
    "ray",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
)


class Faces(NamedTuple):
    """Windows (M, size, size, 3) uint8 and their labels (M, 3) degrees."""

    windows: Image
    angles: NDArray[np.float32]


def depends(spec: PipelineSpec) -> dict[str, Any]:
    """The run's name, and how its model is exported and registered."""
    return {"publish": to_dict(spec.publish), "name": spec.name}


def run(stage: StageRun) -> PublishResult:
    """Export, describe, report; says what the registry is to be told."""
    from workflows.report.build import build_report  # matplotlib, which --help does not need

    network, model = stage.inputs["student"] / Role.DISTILLED, stage.folder / "model"
    report = stage.reporter
    report.progress("publishing", 0, 5, "steps, exporting")
    begin_folder(model)
    save_described(stage, network, model)
    exported = export_all(stage, model, model)
    report.say(latency_lines(exported))
    facts = provenance(stage)
    rows = stage.results.evaluate.rows
    (model / CARD_FILE).write_text(model_card(stage.spec, stage.results, exported, facts))
    report.progress("publishing", 2, 5, "steps, drawing")
    page = build_report(stage, exported, facts, stage.folder / "report")
    report.progress("publishing", 5, 5, "steps, published")
    return PublishResult(
        onnx=f"model/{ONNX_FILE}",
        card=f"model/{CARD_FILE}",
        report=str(page.relative_to(stage.folder)),
        exported=exported,
        figures=figures(exported, rows),
        registration=Registration(
            name=stage.spec.publish.model_name,
            alias=stage.spec.publish.alias,
            contest=contest(stage),
            summary=summary(rows),
            description=metrics_table(rows),
            tags={
                "summary": summary(rows),
                "config": stage.spec.name,
                "backbone": stage.results.student.spec.net.backbone,
                "report": f"{page.parent.name}/{page.name}",
            },
        ),
    )


def save_described(stage: StageRun, network: Path, model: Path) -> None:
    """The network once more in the folder `model`, with the note how a detector's boxes become those it learnt from."""
    from hpe_core.learning.checkpoint import load_net, save_net

    data, splits = stage.spec.data, stage.results.shards.splits
    fit = mean_fit([(fit_to(data.datasets[name]), splits[f"{name}.train"].kept) for name in data.train])
    saved = load_net(network)
    save_net(model, saved.net, saved.crop, saved.notes | ({} if fit is None else {FIT_NOTE: to_dict(fit)}))


def export_all(stage: StageRun, network: Path, model: Path) -> Exported:
    """Write the network's files into the folder `model`; returns what was measured of each."""
    data, publish = stage.spec.data, stage.spec.publish
    scored = spread_faces(stage, data.test, "test", publish.parity_crops)
    missing = publish.parity_crops - (len(scored.windows) if scored else 0)
    more = spread_faces(stage, data.train, "val", missing)  # parity asks no label, so small test sets are no excuse
    compared = [faces.windows for faces in (scored, more) if faces]
    crops = np.concatenate(compared) if compared else None
    traced = export_network(network, model / ONNX_FILE, model / PROGRAM_FILE, crops)
    timm = write_hub(network, model / HUB_FOLDER, weight_terms(stage.spec, stage.results.student.spec))
    int8 = export_int8(stage, model, scored)
    stage.reporter.progress("publishing", 1, 5, "steps, measuring latency")
    latency = latency_table(network, model / ONNX_FILE, model / INT8_FILE if int8 else None)
    return Exported(traced, timm, int8, latency, cpu_name())


def export_int8(stage: StageRun, model: Path, scored: Faces | None) -> Int8 | None:
    """Write the int8 file into the folder `model`; None where no faces to calibrate on are asked for, or there."""
    calibration = spread_faces(stage, stage.spec.data.train, "val", stage.spec.publish.calibration_crops)
    if calibration is None:
        return None
    files = (model / ONNX_FILE, model / INT8_FILE)
    try:
        quantize_onnx(*files, calibration.windows)
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise RuntimeError(f"int8: {reason}; publish.calibration_crops=0 leaves that file out") from error
    score = score_int8(*files, scored.windows, scored.angles) if scored else None
    int8 = Int8(files[1].stat().st_size, len(calibration.windows), score)
    stage.reporter.say(int8_line(int8))
    return int8


def contest(stage: StageRun) -> tuple[str, float]:
    """What the student is compared by: validation faces and its error on them. The test set crowns nobody."""
    splits = stage.results.shards.splits
    faces = " ".join(splits[f"{name}.val"].fingerprint[:12] for name in sorted(stage.spec.data.train))
    return f"validation MAE on {faces}", stage.results.student.student.val_mae


def figures(exported: Exported, rows: Sequence[Row]) -> dict[str, float]:
    """What MLflow keeps as numbers."""
    onnx, int8 = exported.traced.onnx, exported.int8
    out = {f"onnx/parity_{name}_deg": gap for name, gap in onnx.parity.angles.items()}
    out |= {f"onnx/latency_{name.replace(' ', '_')}_ms": ms for name, ms in exported.latency_ms[ONNX].items()}
    out |= {"onnx/megabytes": onnx.bytes / 1e6}
    if int8:
        counts = {"bytes": int8.bytes, "calibrated_on": int8.calibrated_on}
        known = {**counts, **(to_dict(int8.score) if int8.score else {})}
        out |= {f"int8/{key}": float(value) for key, value in known.items() if value is not None}
    return out | {f"{row.test}/mae": row.mae for row in rows if row.role is Role.DISTILLED}


def spread_faces(stage: StageRun, datasets: Sequence[str], split: str, wanted: int) -> Faces | None:
    """Up to `wanted` faces of a split, evenly from the datasets, as far as each has them, and from the rows of each;
    None where there is none."""
    listed = {name: shard_files(stage.inputs["shards"], name, split) for name in datasets}
    sizes = {name: [pq.read_metadata(file).num_rows for file in files] for name, files in listed.items()}
    shares = fair_shares({name: sum(counts) for name, counts in sizes.items()}, wanted)
    parts: list[Faces] = []
    for name, files in listed.items():
        counts, start = sizes[name], 0
        picked = np.unique(np.linspace(0, sum(counts) - 1, shares[name]).round().astype(int))
        for file, count in zip(files, counts, strict=True):
            rows = picked[(picked >= start) & (picked < start + count)] - start
            start += count
            if len(rows):
                shard = read_shard(file)
                parts.append(Faces(window(shard.images[rows], stage.spec.data.crop.size), shard.angles[rows]))
    if not parts:
        return None
    windows, angles = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Faces(np.ascontiguousarray(windows), angles)


def fair_shares(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """How many of `wanted` each gives: as many as the others, or all that it has; together `wanted` or all there is."""
    shares, left = dict[str, int](), max(0, wanted)
    for place, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        shares[name] = min(sizes[name], -(-left // (len(sizes) - place)))
        left -= shares[name]
    return shares


def provenance(stage: StageRun) -> dict[str, str]:
    """Where this came from: the configuration's name, the commit, the folder hash of each stage, and
    versions."""
    facts = {"configuration": stage.spec.name, "commit": git_commit(REPO)}
    facts |= {f"stage {name}": folder.name for name, folder in stage.inputs.items()}
    facts |= {
        "stage publish": stage.folder.name,
        "finished": max(str(finished(f)["finished"]) for f in stage.inputs.values()),
    }
    facts |= {"python": platform.python_version()}
    return facts | {name: version for name in VERSIONS if (version := version_of(name))}
