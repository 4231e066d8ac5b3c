"""The ensembles against brute force with a real network."""

import numpy as np
import pytest
import torch

from hpe_core.crop import offset_grid, window
from hpe_core.ensemble import ensemble_probs, offset_table, window_angles
from hpe_core.models import PoseNet
from hpe_core.spec import NetSpec
from tests.faces import CROP, face_row

SIZE = CROP.size


@pytest.fixture(scope="module")
def nets():
    made = []
    for seed, backbone in enumerate(("test_resnet", "test_byobnet")):
        torch.manual_seed(seed)
        net = PoseNet(NetSpec(backbone=backbone), SIZE).eval()
        for head in net.heads:
            torch.nn.init.normal_(head.weight, std=0.5)  # outputs that differ from window to window
        made.append(net)
    return made


@pytest.fixture(scope="module")
def crops():
    return torch.from_numpy(np.stack([face_row(i).crop.pixels for i in range(5)]))


def test_one_pass_equals_brute_force(nets, crops):
    pairs = [(0, 1), (4, 2), (6, 3), (6, 2)]
    means = ensemble_probs(nets, crops, SIZE, pairs)
    for k, d in pairs:
        with torch.inference_mode():
            each = [net.predict(window(crops, SIZE, dx, dy)) for net in nets for dx, dy in offset_grid(k, d)]
        assert torch.allclose(means[k, d], torch.stack(each).mean(0), atol=1e-6)
        assert torch.allclose(means[k, d].sum(-1), torch.ones(5, 3), atol=1e-5)


def test_the_table_of_every_K_and_d_equals_brute_force(nets, crops):
    net, bins = nets[0], nets[0].main_bins
    table = offset_table(window_angles(net, crops, SIZE, 4))
    assert set(table) == {(k, d) for k in range(5) for d in range(1, 5)}
    for pair, angles in table.items():
        direct = bins.decode(ensemble_probs([net], crops, SIZE, [pair])[pair]).numpy()
        assert np.abs(direct - angles).max() < 1e-4


def test_windows_beyond_the_margin_are_refused(nets, crops):
    with pytest.raises(ValueError, match="margin of 6"):
        ensemble_probs(nets, crops, SIZE, [(7, 7)])
