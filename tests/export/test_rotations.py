"""Heads of rotations in an ONNX file, which has neither singular values nor Bessel functions."""

import numpy as np
import pytest
import torch
from torch import nn

from hpe_core.networks.heads import heads_of
from hpe_core.spec.network import NetSpec
from workflows.export.int8 import head_and_decoder
from workflows.export.onnx_file import _graph, _traced
from workflows.export.runtimes import deployed

SIDE = 4


class Small(nn.Module):
    """The last layer of a network behind one convolution: what it says of noise is any pose, from unsure to sure."""

    def __init__(self, head: str) -> None:
        super().__init__()
        (self.kind,) = heads_of(NetSpec(head=head))
        self.form = self.kind.form
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8 * SIDE**2, 3 * self.kind.columns)
        self.head.weight.data.normal_(0, 8)

    def answered(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        x = self.conv(images.permute(0, 3, 1, 2) / 128 - 1).flatten(1)
        return self.kind.answer(self.head(x * x[:, :1].exp()).unflatten(1, (3, -1))), None


@pytest.mark.longer  # the trace of some hundred small steps takes ten seconds
@pytest.mark.parametrize(("head", "opset"), [("sixd", 18), ("fisher", 18), ("fisher", 21)])
def test_the_file_says_what_torch_says_to_a_thousandth_of_a_degree(head, opset):
    import onnx
    import onnxruntime

    network = Small(head).eval()
    model = _graph(_traced(deployed(network), SIDE), opset)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (200, SIDE, SIDE, 3), dtype=np.uint8))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = [part.numpy() for part in deployed(network)(images)]
    assert (expected[0].std(0) > 30).all() and (head == "sixd" or np.ptp(np.log(expected[1]), axis=0).min() > 0.5)
    for found, wanted in zip(session.run(["angles", "spread"], {"images": images.numpy()}), expected, strict=True):
        assert found.dtype == np.float32
        away = np.abs(found - wanted)
        assert np.minimum(away, 360 - away).max() <= 1e-3
    onnx.checker.check_model(model, full_check=True)
    (written,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    assert written == opset and {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    kept = set(head_and_decoder(model.graph))
    kinds = [node.op_type for node in model.graph.node if node.name in kept]
    rest = [node.op_type for node in model.graph.node if node.name not in kept]
    assert kinds[0] == "Gemm" and "Conv" in rest and "Gemm" not in rest, "the head and what follows stays float"
