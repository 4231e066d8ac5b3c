"""The doctor's look at exported networks: whether the runtimes that are installed here agree on their angles.

ONNX Runtime is what every figure was measured in. OpenVINO has read int8 files as other networks (docs/report.md).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpe_core.errors import SpecError, check
from hpe_core.geometry.crop import Image, canonical_crop, window
from hpe_core.predictor import HeadPosePredictor
from hpe_core.render.scene import render_head
from hpe_core.spec.data import CropSpec
from workflows.checks.findings import Finding, Look
from workflows.engine.exported import APART_DEG
from workflows.export.runtimes import has_openvino, openvino_gap
from workflows.storage.manifest import read_manifest

FACES = 16


def networks_in(path: Path) -> list[Path]:
    """An ONNX file, or those of a folder. Raises SpecError where there is none."""
    found = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
    check(bool(found), f"model={path}: no ONNX file lies in this folder")
    check(found[0].is_file() and found[0].suffix == ".onnx", f"model={path} is no ONNX file, and no folder with one")
    return found


def published_in(store: Path) -> list[Path]:
    """The ONNX files of the newest finished publish stage; none before the first."""
    finished = [folder for folder in (store / "publish").glob("*") if read_manifest(folder) is not None]
    newest = max(finished, key=lambda folder: folder.stat().st_mtime, default=None)
    return [] if newest is None else sorted((newest / "model").glob("*.onnx"))


def look_at_exported(files: Sequence[Path]) -> Look:
    """Files of one folder, each on rendered heads in OpenVINO and in ONNX Runtime, where both are installed."""
    said, findings = [], []
    for file in files:
        try:
            crop = HeadPosePredictor.load(file).crop
        except SpecError as refused:
            findings.append(Finding("error", "model", str(refused)))
            continue
        if not has_openvino():
            said.append(f"{file.name} loads")
            continue
        gap = openvino_gap(file, rendered(crop))
        said.append(f"{file.name} {gap:.2f} degrees")
        if not gap <= APART_DEG:
            advice = "run the float file there, or publish it anew" if "int8" in file.name else "do not run it there"
            findings.append(Finding("error", "model", f"OpenVINO reads {file} as another network: {advice}"))
    how = "from ONNX Runtime in OpenVINO" if has_openvino() else "not compared with OpenVINO, which is not installed"
    return Look("model", f"{files[0].parent}: {', '.join([*said, how])}", tuple(findings))


def rendered(crop: CropSpec) -> Image:
    """Windows of rendered heads, (FACES, size, size, 3) uint8."""
    heads = [render_head(3, index, size=2 * crop.size) for index in range(FACES)]
    return np.ascontiguousarray(
        window(np.stack([canonical_crop(head.image, head.box, crop).pixels for head in heads]), crop.size)
    )
