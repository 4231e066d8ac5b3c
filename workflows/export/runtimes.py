"""What the student costs on one CPU core in each runtime: a table of latencies beside the parameter count.

Eager PyTorch, ONNX Runtime on the float and the int8 file, and OpenVINO on the float file where it is installed, all
with one thread, one after the other, float32 unless the row says int8. (On a CPU with matrix units OpenVINO would
compute in bfloat16 of its own accord; it is told not to.) Other work on the machine makes all rows slower.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpe_core.geometry.crop import Image
from hpe_core.predictor import INPUT, OUTPUTS, open_session

BATCHES = (1, 32)
REPEAT, BUDGET_S = 50, 0.8
EAGER, ONNX, ONNX_INT8, OPENVINO = "PyTorch, eager", "ONNX Runtime", "ONNX Runtime, int8", "OpenVINO"
Call = Callable[[Image], Sequence[Any]]


def latency_table(net_folder: Path, onnx_file: Path, int8_file: Path | None = None) -> dict[str, dict[str, float]]:
    """{runtime: {'batch 1': ms, 'batch 32': ms}}: median milliseconds of one call on one core."""
    from hpe_core.learning.checkpoint import load_net
    from hpe_core.learning.latency import median_ms, torch_threads

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
    """Every runtime that is here, as uint8 windows -> (angles, spread), on one thread."""
    found: dict[str, Call] = {EAGER: eager(net), ONNX: onnx_call(onnx_file)}
    if int8_file is not None:
        found[ONNX_INT8] = onnx_call(int8_file)
    if importlib.util.find_spec("openvino") is not None:
        found[OPENVINO] = openvino_call(onnx_file)
    return found


def eager(net: Any) -> Call:
    import torch

    def call(images: Image) -> Sequence[Any]:
        with torch.inference_mode():
            probs = net.predict(torch.from_numpy(images))
            return net.main_bins.decode(probs), net.main_bins.spread(probs)

    return call


def onnx_call(file: Path) -> Call:
    session = open_session(file)
    return lambda images: session.run(list(OUTPUTS), {INPUT: images})


def openvino_call(file: Path) -> Call:
    """`angles` and `spread` by OpenVINO, in float32 on one thread."""
    openvino = importlib.import_module("openvino")  # optional, and without type hints
    wanted = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(file), "CPU", wanted)
    return lambda images: [compiled([images])[name] for name in OUTPUTS]


def cpu_name() -> str:
    """The processor's name where the system tells it, else ''."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
