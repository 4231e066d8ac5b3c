"""The exported network with 8-bit integers inside (static, QDQ), and what that costs in degrees.

onnxruntime.quantization does the work: weights int8 for each output channel, activations uint8 with ranges from
calibration faces. Input, outputs and metadata are those of the float file, so the predictor loads either. The head and
the decoder stay float: behind a softmax a step of 1/255 is degrees.

A range is the mean of the calibration batches' extremes, so one odd face widens no range for all. The additions of the
residual blocks stay float, too. onnxruntime's own pre-processing is left out: the exporter has folded the batch norms.
"""

from pathlib import Path
from typing import Any

import numpy as np

from hpe_core.geometry.crop import Image
from hpe_core.geometry.rotation import euler_error
from hpe_core.learning.interval import half_interval
from hpe_core.learning.metrics import in_front
from hpe_core.predictor import INPUT, HeadPosePredictor
from workflows.engine.exported import Int8Score
from workflows.export.faces import Faces
from workflows.export.quiet import quiet

LAYERS = ("Conv", "Gemm", "MatMul")
CALIBRATION_BATCH = 16


def quantize_onnx(onnx_file: Path, out: Path, crops: Image) -> None:
    """Write the int8 form of `onnx_file` to `out`. `crops` are (M, size, size, 3) uint8 windows that set the ranges:
    validation faces, never those that are scored."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    starts = range(0, len(crops), CALIBRATION_BATCH)
    batches = ({INPUT: np.ascontiguousarray(crops[i : i + CALIBRATION_BATCH])} for i in starts)

    class Crops(CalibrationDataReader):
        def get_next(self) -> dict[str, Image] | None:
            return next(batches, None)

    with quiet():  # the quantizer warns of every model that its pre-processing was not run
        quantize_static(
            onnx_file,
            out,
            Crops(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            nodes_to_exclude=head_and_decoder(onnx.load(onnx_file).graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Attention multiplies activations with each other; those products stay float.
            extra_options={"MatMulConstBOnly": True, "CalibMovingAverage": True},
        )


def head_and_decoder(graph: Any) -> list[str]:
    """Names of the head's matrix products and of all that follows from them: the graph is in traced order, and the
    decoder begins with the first change to float64 (rotations) or the last softmax (bins). A mirrored network has the
    head twice, with the same weights."""
    doubled = [i for i, node in enumerate(graph.node) if node.op_type == "Cast" and to_double(node)]
    begins = min(doubled, default=-1)
    if not doubled:
        begins = max(i for i, node in enumerate(graph.node) if node.op_type == "Softmax")
    head = [node for node in graph.node[:begins] if node.op_type in ("Gemm", "MatMul")][-1]
    kept, reached = list[str](), set[str]()
    for node in graph.node:
        if (node.op_type == head.op_type and head.input[1] in node.input) or not reached.isdisjoint(node.input):
            kept.append(node.name)
            reached.update(node.output)
    return kept


def to_double(node: Any) -> bool:
    """Whether a node casts to float64."""
    import onnx

    return any(entry.name == "to" and entry.i == onnx.TensorProto.DOUBLE for entry in node.attribute)


def score_int8(onnx_file: Path, int8_file: Path, faces: Faces) -> Int8Score:
    """What int8 costs on labelled faces, degrees: both MAEs, their difference with the half width of its 95 % interval
    (paired over faces; people count), and by how much an angle moves on average. Faces seen from behind are left out,
    as in every MAE."""
    ahead = in_front(faces.angles)
    windows, truth, people = faces.windows[ahead], faces.angles[ahead], faces.groups[ahead]
    files = (onnx_file, int8_file)
    plain, small = (HeadPosePredictor.load(file, threads=1).predict_windows(windows).angles for file in files)
    before, after = euler_error(plain, truth).mean(1), euler_error(small, truth).mean(1)
    gains = after - before
    return Int8Score(
        faces=len(windows),
        float_mae=float(before.mean()),
        mae=float(after.mean()),
        cost_deg=float(gains.mean()),
        margin_deg=half_interval(gains, people.tolist()),
        moved_deg=float(euler_error(small, plain).mean()),
    )
