"""Claims about a GPU: half precision trains, and the offset ensemble's memory does not grow with its windows.

Marked `gpu` and run on demand (`pytest -m gpu`); on a machine without one they skip.
"""

import dataclasses

import pytest
import torch

from hpe_core.data.batch import FaceData
from hpe_core.learning.ensemble import ensemble_probs
from hpe_core.learning.models import PoseNet
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import LabelSet
from hpe_core.training.loop import fit
from hpe_core.training.place import Place
from tests.faces import CROP, write_heads
from tests.learning.test_loop import SPEC

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
pytestmark = [pytest.mark.gpu, no_gpu]
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("changes", [{"amp": True}, {"amp": True, "channels_last": True}, {"compile": True}], ids=str)
def test_faster_ways_of_training_still_learn(tmp_path, changes):
    data, losses = FaceData(write_heads(tmp_path, 96)), []
    spec = dataclasses.replace(SPEC, optim=dataclasses.replace(SPEC.optim, epochs=8, ema_decay=0.0, **changes))
    fit(spec, CROP, data, data, place=Place(CUDA), on_epoch=lambda end: losses.append(end.metrics["train/loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_memory_of_the_offset_ensemble_is_flat_in_the_number_of_windows():
    net = PoseNet(NetSpec("resnet18"), 112).eval().to(CUDA)
    crops = torch.randint(0, 256, (64, 142, 142, 3), dtype=torch.uint8, device=CUDA)
    peaks = []
    for labels in (LabelSet(("net",), 0, 1), LabelSet(("net",), 15, 5), LabelSet(("net",), 15, 1)):
        torch.cuda.reset_peak_memory_stats()
        ensemble_probs({"net": net}, crops, 112, [labels])
        peaks.append(torch.cuda.max_memory_allocated())
    assert max(peaks[1:]) < 1.05 * peaks[0], "49 and 961 windows take what one takes"
