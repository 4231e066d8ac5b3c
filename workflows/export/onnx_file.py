"""A saved network -> the files that others run: one ONNX file that takes uint8 crops and gives degrees, and the same
traced program for PyTorch, with their parity measured.

Normalisation, softmax, expectation and standard deviation lie inside the graph, and the crop contract in the ONNX
file's metadata, so that whoever has the file can do nothing differently. The network is traced once
(`torch.export`); both files come from that trace and are checked against the network on real crops before anybody sees
them: a file that is off by more than a thousandth of a degree is an error.

Tracer and exporter note in every node from which source line of which folder it came. That is taken out again: it
tells of this machine, and no two machines' bytes would be alike.
"""

from pathlib import Path
from typing import Any

import numpy as np

from hpe_core.geometry.crop import Image
from hpe_core.geometry.rotation import CONVENTION
from hpe_core.predictor import INPUT, MARKS_OUTPUT, OUTPUTS, contract_of, noted_calibration, noted_fit
from hpe_core.spec.pipeline import ExportSpec
from hpe_core.system.files import replacing
from workflows.engine.exported import NetworkFile, TracedNetwork
from workflows.export.parity import proved
from workflows.export.quiet import quiet
from workflows.export.runtimes import deployed, onnx_call, program_call, torch_call


def export_network(
    net_folder: Path, onnx_file: Path, program_file: Path, crops: Image | None = None, opset: int = ExportSpec().opset
) -> TracedNetwork:
    """Write the network in `net_folder` as `onnx_file` and `program_file` (.pt2); returns what was measured of them.

    The ONNX file is of this opset, and of the lowest IR version that has it: runtimes refuse what is newer than they.
    `crops` are (M, size, size, 3) uint8 windows for the parity check; without any, noise is taken. Input
    `images` (batch, size, size, 3) uint8 RGB; outputs `angles` and `spread` (batch, 3) float32 degrees, and of networks
    with landmarks `landmarks` (batch, 68, 3) float32: window pixels from its centre, and the probability of being seen.
    Raises ValueError that names the figure where a file and the network differ by more than 1e-3 degrees; no file is
    left then.
    """
    from hpe_core.networks.checkpoint import load_net

    saved = load_net(net_folder)
    size = saved.crop.size
    if crops is None:
        crops = np.random.default_rng(0).integers(0, 256, (48, size, size, 3), dtype=np.uint8)
    network = deployed(saved.net, noted_calibration(saved.notes))
    program, ours = _traced(network, size), torch_call(network)
    with replacing(onnx_file) as onnx_draft, replacing(program_file) as program_draft:
        model = _graph(program, opset)
        _write(model, onnx_draft, contract_of(saved.crop, CONVENTION, saved.notes))
        _save_program(program, program_draft)
        parity = proved(ours, onnx_call(onnx_draft), crops, "ONNX")
        program_parity = proved(ours, program_call(program_draft), crops, "the exported program")
    return TracedNetwork(
        onnx=NetworkFile(onnx_file.stat().st_size, parity),
        program=NetworkFile(program_file.stat().st_size, program_parity),
        opset=opset,
        parameters=saved.net.parameter_count(),
        detector_fit=noted_fit(saved.notes),
    )


def _traced(network: Any, size: int) -> Any:
    """The network as a torch.export program with a free batch size."""
    import torch

    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with quiet(), torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}})


def _graph(program: Any, opset: int) -> Any:
    """The program as an ONNX model of that opset, without the exporter's notes. Raises ValueError for another one."""
    import onnx
    import torch

    with quiet(), torch.no_grad():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[*OUTPUTS, MARKS_OUTPUT][: len(program.graph_signature.user_outputs)],
            dynamic_shapes={INPUT: {0: "batch"}},
            external_data=False,
            verbose=False,
            opset_version=opset,
        )
    assert exported is not None, "torch.onnx.export(dynamo=True) returns a program"
    model = exported.model_proto
    graph = model.graph
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written != {"": opset}:  # the exporter writes what it can and does not complain
        raise ValueError(f"export.opset={opset}: torch writes this network only as {written}")
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    _as_columns(graph)
    for entry in [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del entry.metadata_props[:]
        entry.doc_string = ""
    return model


def _as_columns(graph: Any) -> None:
    """Products with a vector become products with a column, its axis dropped afterwards: OpenCV knows only those."""
    import onnx

    vectors = {entry.name: entry for entry in graph.initializer if len(entry.dims) == 1}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "MatMul" or node.input[1] not in vectors:
            continue
        values, out = onnx.numpy_helper.to_array(vectors[node.input[1]]), node.output[0]
        column, axis = f"{out}_column", f"{out}_axis"
        graph.initializer.append(onnx.numpy_helper.from_array(values[:, None], column))
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), axis))
        node.input[1], node.output[0] = column, f"{out}_kept"
        nodes.append(onnx.helper.make_node("Squeeze", [node.output[0], axis], [out], name=f"{node.name}_squeezed"))
    used = {name for node in nodes for name in node.input}
    for name in vectors.keys() - used:
        graph.initializer.remove(vectors[name])
    del graph.node[:]
    graph.node.extend(nodes)


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
