"""Stage "publish": the champion as an ONNX file with measured parity, a model card, the report, and the
registry.

The folder `model` is complete in itself: the ONNX file, the torch weights with their meaning, the card, and
an MLmodel file of MLflow's ONNX flavour, so that `mlflow.pyfunc.load_model("models:/head-pose@champion")`
works where this project is not installed. MLflow is told through the reporter: a dead tracking server does
not stop publishing.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hpe_core.crop import Image
from hpe_core.rows import read_shard, shard_files
from workflows.card import metrics_table, model_card, summary
from workflows.export import export_onnx
from workflows.stages import StageRun, finished

CHAMPION = "distilled"
ONNX_FILE, CARD_FILE = "student.onnx", "README.md"
VERSIONS = (
    "torch",
    "timm",
    "onnx",
    "onnxruntime",
    "ray",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
)
NEEDED = ("onnxruntime", "onnx", "numpy")  # what the MLflow model needs to run


def run(stage: StageRun) -> dict[str, Any]:
    """Export, describe, report, register; returns the files (relative to the stage's folder), parity and
    latency."""
    from workflows.report import build_report  # matplotlib, which --help does not need

    network, model = stage.inputs["student"] / CHAMPION, stage.folder / "model"
    report = stage.reporter
    report.progress("publishing", 0, 4, "steps, exporting")
    exported = export_onnx(network, model / ONNX_FILE, parity_windows(stage))
    for name in ("model.safetensors", "model.json"):
        shutil.copyfile(network / name, model / name)
    facts = provenance(stage)
    rows, splits = stage.results["evaluate"]["rows"], stage.results["shards"]["splits"]
    faces = {name: int(entry["kept"]) for name, entry in splits.items()}
    card = model_card(stage.spec, stage.results["student"]["spec"], stage.spec.data.crop, rows, exported, faces, facts)
    (model / CARD_FILE).write_text(card)
    write_mlmodel(model, stage.spec.data.crop.size)
    report.progress("publishing", 1, 4, "steps, drawing")
    page = build_report(stage, exported, facts, stage.folder / "report")
    report.progress("publishing", 3, 4, "steps, handing over")
    report.artifact(stage.key, model, "model")
    report.artifact(stage.key, page.parent, "report")
    report.metrics(stage.key, figures(exported, rows), 0)
    report.register(
        stage.key,
        stage.spec.publish.model_name,
        "model",
        stage.spec.publish.alias,
        contest(stage),
        metrics_table(rows),
        {
            "summary": summary(rows),
            "config": stage.spec.name,
            "backbone": stage.results["student"]["spec"]["net"]["backbone"],
        },
    )
    report.progress("publishing", 4, 4, "steps, published")
    return {
        "onnx": f"model/{ONNX_FILE}",
        "card": f"model/{CARD_FILE}",
        "report": str(page.relative_to(stage.folder)),
        **exported,
    }


def contest(stage: StageRun) -> tuple[str, float]:
    """What the student is compared by: validation faces and its error on them. The test set crowns nobody."""
    splits, student = stage.results["shards"]["splits"], stage.results["student"]["networks"][CHAMPION]
    faces = " ".join(splits[f"{name}.val"]["fingerprint"][:12] for name in sorted(stage.spec.data.train))
    return f"validation MAE on {faces}", float(student["val_mae"])


def figures(exported: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """What MLflow keeps as numbers."""
    out = {f"onnx/parity_{name}_deg": gap for name, gap in exported["parity"]["angles"].items()}
    out |= {f"onnx/latency_{name.replace(' ', '_')}_ms": ms for name, ms in exported["latency_ms"].items()}
    out |= {"onnx/megabytes": exported["bytes"] / 1e6}
    return out | {f"{row['test']}/mae": row["mae"] for row in rows if row["name"] == CHAMPION}


def parity_windows(stage: StageRun) -> Image | None:
    """Up to `publish.parity_crops` windows, evenly from the test sets; None where that is 0."""
    from hpe_core.crop import window

    data, wanted = stage.spec.data, stage.spec.publish.parity_crops
    share = -(-wanted // len(data.test)) if data.test else 0
    parts: list[Image] = []
    for name in data.test:
        left = share
        for file in shard_files(stage.inputs["shards"], name, "test"):
            if left <= 0:
                break
            parts.append(window(read_shard(file).images[:left], data.crop.size))
            left -= len(parts[-1])
    return np.ascontiguousarray(np.concatenate(parts)) if parts else None


def provenance(stage: StageRun) -> dict[str, str]:
    """Where this came from: the configuration's name, the commit, the folder hash of each stage, and
    versions."""
    from workflows.config import REPO
    from workflows.tracking import git_commit

    facts = {"configuration": stage.spec.name, "commit": git_commit(REPO)}
    facts |= {f"stage {name}": folder.name for name, folder in stage.inputs.items()}
    facts |= {
        "stage publish": stage.folder.name,
        "finished": max(str(finished(f)["finished"]) for f in stage.inputs.values()),
    }
    facts |= {"python": platform.python_version()}
    return facts | {name: version for name in VERSIONS if (version := version_of(name))}


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def write_mlmodel(folder: Path, size: int) -> None:
    """Make the folder an MLflow model of the ONNX flavour: input {'images': (B, size, size, 3) uint8}."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    inputs = Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size, 3), "images")])
    outputs = Schema([TensorSpec(np.dtype(np.float32), (-1, 3), name) for name in ("angles", "spread")])
    model = Model(signature=ModelSignature(inputs=inputs, outputs=outputs))
    needs = [f"{name}=={version_of(name)}" for name in NEEDED]
    model.add_flavor("onnx", onnx_version=version_of("onnx"), data=ONNX_FILE, providers=["CPUExecutionProvider"])
    model.add_flavor(
        "python_function",
        loader_module="mlflow.onnx",
        data=ONNX_FILE,
        python_version=platform.python_version(),
        env={"virtualenv": "python_env.yaml"},
    )
    (folder / "requirements.txt").write_text("\n".join([f"mlflow=={version_of('mlflow')}", *needs]) + "\n")
    (folder / "python_env.yaml").write_text(
        f"python: {platform.python_version()}\ndependencies:\n- -r requirements.txt\n"
    )
    model.save(str(folder / "MLmodel"))


if __name__ == "__main__":
    from workflows.full_pipeline import stage_command

    os._exit(stage_command("publish", __doc__ or "", sys.argv[1:]))
