"""A saved network -> one ONNX file that takes uint8 crops and gives degrees, with its parity and speed
measured.

Normalisation, softmax and expectation lie inside the graph, and the crop contract in its metadata, so that
whoever has the file can do nothing differently. The file is checked against torch on real crops before
anybody sees it: an export that is off by more than a thousandth of a degree is an error.

The exporter notes in every node from which source line of which folder it came; that is taken out again
(half of a small file's size, machine paths, and no two machines' bytes alike). Exporting with the
TorchScript route is not kept: it needs the same rewrites and torch has announced its end.
"""

import contextlib
import io
import itertools
import logging
import os
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpe_core.crop import Image
from hpe_core.predictor import INPUT, OUTPUTS, contract_of
from hpe_core.rotation import ANGLE_NAMES, CONVENTION

PARITY_DEG = 1e-3
PARITY_BATCH = 32


def export_onnx(net_folder: Path, out: Path, crops: Image | None = None) -> dict[str, Any]:
    """Write the network in `net_folder` to the file `out`; returns parity, latency, bytes and opset.

    `crops` are (M, size, size, 3) uint8 windows for the parity check; without any, noise is taken. Input
    `images` (batch, size, size, 3) uint8 RGB; outputs `angles` and `spread` (batch, 3) float32 degrees.
    Raises ValueError that names the figure where torch and ONNX Runtime differ by more than 1e-3 degrees.
    """
    from hpe_core.checkpoint import load_net

    saved = load_net(net_folder)
    size = saved.crop.size
    if crops is None:
        crops = np.random.default_rng(0).integers(0, 256, (48, size, size, 3), dtype=np.uint8)
    network = deployed(saved.net)
    model = _graph(network, size)
    out.parent.mkdir(parents=True, exist_ok=True)
    unproved = out.with_name(f".{out.stem}.{os.getpid()}.onnx")
    try:
        _write(model, unproved, contract_of(saved.crop, CONVENTION))
        parity = measure_parity(network, unproved, crops)
        worst = max(parity["angles"].values())
        if not worst <= PARITY_DEG:
            gap = f"ONNX and torch differ by {worst:.2g} degrees on {len(crops)} crops"
            raise ValueError(f"{gap}; {PARITY_DEG:g} is allowed")
        os.replace(unproved, out)
    finally:
        unproved.unlink(missing_ok=True)
    return {
        "parity": parity,
        "latency_ms": measure_latency(out, size),
        "bytes": out.stat().st_size,
        "opset": max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        "parameters": saved.net.parameter_count(),
    }


def deployed(net: Any) -> Any:
    """The network as it is exported: uint8 windows -> (angles, spread), only the predicting head."""
    import torch
    from torch import nn

    class Deployed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            probs, bins = self.net.predict(images), self.net.main_bins
            return bins.decode(probs), bins.spread(probs)

    return Deployed().eval()


def _graph(network: Any, size: int) -> Any:
    """The traced ONNX model with a free batch size, without the exporter's notes."""
    import torch

    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    assert program is not None, "torch.onnx.export(dynamo=True) returns a program"
    model = program.model_proto
    graph = model.graph
    for entry in [
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ]:
        del entry.metadata_props[:]
        entry.doc_string = ""
    return model


def _write(model: Any, out: Path, metadata: dict[str, str]) -> None:
    import onnx

    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    out.write_bytes(model.SerializeToString(deterministic=True))


def measure_parity(network: Any, onnx_file: Path, crops: Image) -> dict[str, Any]:
    """Largest absolute difference of torch and ONNX Runtime, degrees, by angle, over batches of other sizes
    than traced."""
    import torch

    session = open_session(onnx_file)
    worst = np.zeros((2, 3))
    # One crop, one whole batch, and what is left: the batch size has to be free, not merely unchecked.
    cuts = [0, *range(1, len(crops), PARITY_BATCH), len(crops)]
    for start, end in itertools.pairwise(cuts):
        batch = np.ascontiguousarray(crops[start:end])
        with torch.inference_mode():
            expected = [part.numpy() for part in network(torch.from_numpy(batch))]
        found = session.run(list(OUTPUTS), {INPUT: batch})
        gap = [np.abs(np.subtract(a, b, dtype=np.float64)).max(0) for a, b in zip(expected, found, strict=True)]
        worst = np.maximum(worst, gap)  # a NaN stays a NaN
    named = [dict(zip(ANGLE_NAMES, map(float, row), strict=True)) for row in worst]
    return {"angles": named[0], "spread": named[1], "crops": len(crops), "allowed": PARITY_DEG}


def measure_latency(onnx_file: Path, size: int, threads: int = 1) -> dict[str, float]:
    """Median milliseconds of one call, for batches of 1 and of 32, on so many CPU threads."""
    session = open_session(onnx_file, threads)
    return {f"batch {b}": _median_ms(session, np.full((b, size, size, 3), 127, np.uint8)) for b in (1, 32)}


def _median_ms(session: Any, images: NDArray[np.uint8]) -> float:
    seconds: list[float] = []
    deadline = time.perf_counter() + 1.5
    while len(seconds) < 8 or (len(seconds) < 60 and time.perf_counter() < deadline):
        began = time.perf_counter()
        session.run(list(OUTPUTS), {INPUT: images})
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[3:])


def open_session(onnx_file: Path, threads: int = 1) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its own internals on three channels; errors still come through as exceptions."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
