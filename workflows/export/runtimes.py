"""The runtimes that run the student, each as one function, and what a call costs on one CPU core.

Eager PyTorch, ONNX Runtime on the float and the int8 file, and OpenVINO on the float file where it is installed. All
run on one thread, one after the other, in float32 unless the row says int8. (On a CPU with matrix units OpenVINO would
compute in bfloat16 unasked; it is told not to.) Other work on the machine makes all rows slower.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpe_core.geometry.crop import Image
from hpe_core.geometry.rotation import euler_error
from hpe_core.learning.calibration import LEAST_DEG, Calibration
from hpe_core.predictor import INPUT, open_session

BATCHES = (1, 32)
REPEAT, BUDGET_S = 50, 0.8
EAGER, ONNX, ONNX_INT8, OPENVINO = "PyTorch, eager", "ONNX Runtime", "ONNX Runtime, int8", "OpenVINO"
Call = Callable[[Image], Sequence[Any]]  # (B, size, size, 3) uint8 -> angles, spread; landmarks if it has them


def latency_table(net_folder: Path, onnx_file: Path, int8_file: Path | None = None) -> dict[str, dict[str, float]]:
    """{runtime: {'batch 1': ms, 'batch 32': ms}}: median milliseconds of one call on one core."""
    from hpe_core.networks.checkpoint import load_net
    from hpe_core.training.latency import median_ms, torch_threads

    saved = load_net(net_folder)
    table: dict[str, dict[str, float]] = {}
    with torch_threads(1):
        for name, call in calls(saved.net, onnx_file, int8_file).items():
            table[name] = {}
            for batch in BATCHES:
                images = np.full((batch, saved.crop.size, saved.crop.size, 3), 127, np.uint8)
                table[name][f"batch {batch}"] = median_ms(partial(call, images), REPEAT, budget_s=BUDGET_S)
    return table


def calls(net: Any, onnx_file: Path, int8_file: Path | None) -> dict[str, Call]:
    """Every runtime that is installed, by name."""
    found: dict[str, Call] = {EAGER: torch_call(deployed(net)), ONNX: onnx_call(onnx_file)}
    if int8_file is not None:
        found[ONNX_INT8] = onnx_call(int8_file)
    if has_openvino():
        found[OPENVINO] = openvino_call(onnx_file)
    return found


def deployed(net: Any, calibration: Calibration | None = None) -> Any:
    """The network as it is exported: uint8 windows -> angles and spread (B, 3), by the predicting head alone, and of a
    network with landmarks those (B, 68, 3). Spreads are calibrated where that is known."""
    import torch
    from torch import nn

    class Deployed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            factors = (1.0, 1.0, 1.0) if calibration is None else calibration.one_sd
            self.register_buffer("factors_3", torch.tensor(factors))
            self.least = 0.0 if calibration is None else LEAST_DEG

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            # As planes one after the other: of the strides that a mere transpose leaves, the exporter makes a pooling
            # that counts rows of the batch, with which OpenVINO misreads int8 files.
            planes = images.permute(0, 3, 1, 2).contiguous()
            answers, landmarks = self.net.answered(planes.permute(0, 2, 3, 1))
            spread = self.net.form.spread(answers).clamp_min(self.least) * self.factors_3
            pose = (self.net.form.decode(answers), spread)
            return pose if landmarks is None else (*pose, landmarks.marks_BL3)

    return Deployed().eval()


def torch_call(module: Any) -> Call:
    import torch

    def call(images: Image) -> Sequence[Any]:
        with torch.inference_mode():
            return [part.numpy() for part in module(torch.from_numpy(images))]

    return call


def program_call(file: Path) -> Call:
    import torch

    with open(file, "rb") as stream:
        return torch_call(torch.export.load(stream).module())


def onnx_call(file: Path) -> Call:
    session = open_session(file)
    names = [entry.name for entry in session.get_outputs()]
    return lambda images: session.run(names, {INPUT: images})


def openvino_call(file: Path) -> Call:
    """What the file answers, by OpenVINO, in float32 on one thread."""
    openvino = importlib.import_module("openvino")  # optional, and without type hints
    wanted = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(file), "CPU", wanted)
    return lambda images: list(compiled([images]).values())


def has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def openvino_gap(file: Path, windows: Image) -> float:
    """Mean difference of the angles, degrees, between OpenVINO and ONNX Runtime on (M, size, size, 3) windows."""
    ours, theirs = (np.asarray(call(file)(windows)[0]) for call in (onnx_call, openvino_call))
    return float(euler_error(theirs, ours).mean())
