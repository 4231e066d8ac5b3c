"""A saved network -> the files that others run: one ONNX file that takes uint8 crops and gives degrees, and the same
traced program for PyTorch, with their parity measured.

Normalisation, softmax, expectation and standard deviation lie inside the graph, and the crop contract in the ONNX
file's metadata, so that whoever has the file can do nothing differently. The network is traced once
(`torch.export`); both files come from that trace and are checked against the network on real crops before anybody sees
them: an export that is off by more than a thousandth of a degree is an error.

Tracer and exporter note in every node from which source line of which folder it came; that is taken out again (half of
a small file's size, machine paths, and no two machines' bytes alike). Exporting with the TorchScript route is not
kept: it needs the same rewrites and torch has announced its end.
"""

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpe_core.geometry.crop import Image
from hpe_core.geometry.rotation import ANGLE_NAMES, CONVENTION
from hpe_core.predictor import INPUT, OUTPUTS, contract_of, noted_fit, open_session
from hpe_core.system.files import replacing
from workflows.engine.exported import NetworkFile, Parity, TracedNetwork

PARITY_DEG = 1e-3
PARITY_BATCH = 32
Answers = Callable[[Image], list[NDArray[np.float32]]]


def export_network(net_folder: Path, onnx_file: Path, program_file: Path, crops: Image | None = None) -> TracedNetwork:
    """Write the network in `net_folder` as `onnx_file` and `program_file` (.pt2); returns what was measured of them.

    `crops` are (M, size, size, 3) uint8 windows for the parity check; without any, noise is taken. Input
    `images` (batch, size, size, 3) uint8 RGB; outputs `angles` and `spread` (batch, 3) float32 degrees.
    Raises ValueError that names the figure where a file and the network differ by more than 1e-3 degrees; no file is
    left then.
    """
    from hpe_core.learning.checkpoint import load_net

    saved = load_net(net_folder)
    size = saved.crop.size
    if crops is None:
        crops = np.random.default_rng(0).integers(0, 256, (48, size, size, 3), dtype=np.uint8)
    network = deployed(saved.net)
    program = _traced(network, size)
    with replacing(onnx_file) as onnx_draft, replacing(program_file) as program_draft:
        model = _graph(program)
        _write(model, onnx_draft, contract_of(saved.crop, CONVENTION, noted_fit(saved.notes)))
        _save_program(program, program_draft)
        session = open_session(onnx_draft)
        parity = measure_parity(network, lambda batch: session.run(list(OUTPUTS), {INPUT: batch}), crops)
        _demand(parity, "ONNX")
        program_parity = measure_parity(network, _read_program(program_draft), crops)
        _demand(program_parity, "the exported program")
    return TracedNetwork(
        onnx=NetworkFile(onnx_file.stat().st_size, parity),
        program=NetworkFile(program_file.stat().st_size, program_parity),
        opset=max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        parameters=saved.net.parameter_count(),
        detector_fit=noted_fit(saved.notes),
    )


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


def _traced(network: Any, size: int) -> Any:
    """The network as a torch.export program with a free batch size."""
    import torch

    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with _quiet(), torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}})


def _graph(program: Any) -> Any:
    """The program as an ONNX model, without the exporter's notes."""
    import torch

    with _quiet(), torch.no_grad():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: "batch"}},
            external_data=False,
            verbose=False,
        )
    assert exported is not None, "torch.onnx.export(dynamo=True) returns a program"
    model = exported.model_proto
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


def _save_program(program: Any, out: Path) -> None:
    """Write the .pt2 file. The notes in the nodes are the program's own copy, so they are dropped in place."""
    import torch

    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            for note in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
                node.meta.pop(note, None)
    with open(out, "wb") as stream:  # given a path, torch repeats its name in the archive
        torch.export.save(program, stream)


def _read_program(file: Path) -> Answers:
    import torch

    with open(file, "rb") as stream:
        module = torch.export.load(stream).module()
    return lambda batch: [part.numpy() for part in module(torch.from_numpy(batch))]


def measure_parity(network: Any, answers: Answers, crops: Image) -> Parity:
    """Largest absolute difference of the network and an export of it, degrees, by angle, over batches of other sizes
    than traced."""
    import torch

    worst = np.zeros((2, 3))
    # One crop, one whole batch, and what is left: the batch size has to be free, not merely unchecked.
    cuts = [0, *range(1, len(crops), PARITY_BATCH), len(crops)]
    for start, end in itertools.pairwise(cuts):
        batch = np.ascontiguousarray(crops[start:end])
        with torch.inference_mode():
            expected = [part.numpy() for part in network(torch.from_numpy(batch))]
            found = answers(batch)
        gap = [np.abs(np.subtract(a, b, dtype=np.float64)).max(0) for a, b in zip(expected, found, strict=True)]
        worst = np.maximum(worst, gap)  # a NaN stays a NaN
    angles, spread = (dict(zip(ANGLE_NAMES, map(float, row), strict=True)) for row in worst)
    return Parity(angles, spread, len(crops), PARITY_DEG)


def _demand(parity: Parity, what: str) -> None:
    if not parity.worst <= PARITY_DEG:
        gap = f"{what} and torch differ by {parity.worst:.2g} degrees on {parity.crops} crops"
        raise ValueError(f"{gap}; {PARITY_DEG:g} is allowed")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracer and exporter tell of their internals on three channels; errors still come through as exceptions."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
