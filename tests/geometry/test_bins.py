"""Laws of the bins: encode and decode, mirror, shift."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.geometry.bins import AngleBins

GRIDS = [AngleBins.covering(93, 3), *(AngleBins.covering(99, width) for width in (1, 2, 3, 4))]


def random_probs(seed: int, bins: AngleBins) -> torch.Tensor:
    return torch.randn(4, 3, bins.count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize(
    ("limit", "width", "count", "reach"),
    [(93, 3, 62, 93), (99, 1, 198, 99), (99, 2, 99, 99), (99, 3, 66, 99), (99, 4, 50, 100), (180, 180, 2, 180)],
)
def test_the_papers_grids_cover_their_range(limit, width, count, reach):
    grid = AngleBins.covering(limit, width)
    assert (grid.count, grid.limit) == (count, reach)
    assert AngleBins.covering(1.05, 0.3).count == 7, "though 2 * 1.05 / 0.3 is more than 7 in floating point"


@pytest.mark.parametrize(("limit", "width"), [(99, 0), (99, -3), (2, 3), (181, 3)])
def test_an_impossible_grid_is_refused(limit, width):
    with pytest.raises(ValueError, match="0 < width <= limit"):
        AngleBins.covering(limit, width)


@pytest.mark.parametrize("bins", GRIDS)
@given(angle=st.floats(-92.9, 92.9))
def test_encode_then_decode_is_within_half_a_bin(bins, angle):
    index = bins.encode(torch.tensor(angle, dtype=torch.float64))
    one_hot = torch.nn.functional.one_hot(index, bins.count).double()
    assert abs(float(bins.decode(one_hot)) - angle) <= bins.width / 2 + 1e-9
    low = bins.width * int(index) - bins.limit
    assert low - 1e-9 <= angle <= low + bins.width + 1e-9


@pytest.mark.parametrize("bins", GRIDS)
def test_what_lies_beyond_the_grid_is_in_its_outermost_bins(bins):
    angles = torch.tensor([-180.0, -bins.limit, -bins.limit + 1.01 * bins.width, bins.limit - 0.01, bins.limit, 180.0])
    assert bins.encode(angles).tolist() == [0, 0, 1, *[bins.count - 1] * 3]


@pytest.mark.parametrize("bins", GRIDS)
def test_grid_is_symmetric(bins):
    assert np.array_equal(bins.centers, -bins.centers[::-1])
    assert bins.centers[0] - bins.width / 2 == -bins.limit


def test_centres_are_made_once_for_a_type_and_device():
    """A training step decodes: a copy to the device in each of them would make it wait for the host."""
    grid, probs = AngleBins.covering(37, 0.5), torch.zeros(1)
    with torch.inference_mode():
        first = grid.centers_like(probs)
    assert AngleBins.covering(37, 0.5).centers_like(probs) is first, "equal grids share them"
    assert grid.centers_like(probs.double()) is not first
    assert grid.centers_like(probs.to("meta")).device.type == "meta"
    learning = torch.full((2, grid.count), 1 / grid.count, requires_grad=True)
    grid.decode(learning).sum().backward()  # centres that were made without gradients serve a step that learns
    assert learning.grad is not None and torch.equal(learning.grad[0], first)
    again = pickle.loads(pickle.dumps(grid))
    assert again == grid and len(pickle.dumps(grid)) < 200, "they do not travel with the grid"


@pytest.mark.parametrize("strict", [False, True])
def test_a_trace_of_the_decoding_holds_its_own_centres(strict):
    """And leaves none of its stand-ins behind for who comes after."""

    class Decoding(torch.nn.Module):
        grid = AngleBins.covering(41, 0.5)

        def forward(self, probs):
            return self.grid.decode(probs)

    probs = torch.rand(2, 164)
    for _ in range(2):  # without centres that are known, and with them
        exported = torch.export.export(Decoding(), (probs,), strict=strict).module()
        assert torch.equal(exported(probs), Decoding()(probs))
    assert type(Decoding.grid.centers_like(probs)) is torch.Tensor


@given(seed=st.integers(0, 1000))
def test_mirror_negates_yaw_and_roll_and_is_its_own_inverse(seed):
    bins = GRIDS[0]
    probs = random_probs(seed, bins)
    flipped = bins.mirror(probs)
    assert torch.equal(bins.mirror(flipped), probs)
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    assert torch.allclose(bins.decode(flipped), bins.decode(probs) * signs)


@given(by=st.floats(-25, 25), center=st.floats(-50, 50))
def test_shift_moves_the_mean_and_keeps_the_mass(by, center):
    bins = AngleBins.covering(99, 3)
    logits = -((torch.as_tensor(bins.centers) - center) ** 2) / (2 * 4.0**2)
    probs = logits.softmax(-1)[None, None]
    moved = bins.shift(probs, torch.tensor([[by]], dtype=torch.float64))
    assert torch.allclose(moved.sum(-1), torch.ones(1, 1, dtype=torch.float64))
    assert (moved >= 0).all()
    assert abs(float(bins.decode(moved) - bins.decode(probs)) - by) < 1e-3
    grown = float(bins.spread(moved) ** 2 - bins.spread(probs) ** 2)
    assert -1e-3 <= grown <= bins.width**2 / 4 + 1e-3


@given(index=st.integers(0, 65), by=st.floats(-250, 250))
def test_a_shift_is_a_linear_interpolation_and_what_leaves_the_grid_stays_in_its_outermost_bin(index, by):
    bins = AngleBins.covering(99, 3)
    at = np.clip(index + by / 3, 0, 65)
    by_hand = np.clip(1 - np.abs(np.arange(66) - at), 0, 1)
    sharp = torch.nn.functional.one_hot(torch.tensor([[0, index]]), 66).double()
    moved = bins.shift(sharp, torch.tensor([[0.0, by]], dtype=torch.float64))
    assert torch.equal(moved[0, 0], sharp[0, 0])
    np.testing.assert_allclose(moved[0, 1].numpy(), by_hand, atol=1e-9)


@pytest.mark.parametrize("index", [0, 33, 65])
def test_spread_of_a_sharp_distribution_keeps_its_digits(index):
    bins = AngleBins.covering(99, 3)
    probs = torch.full((1, 3, bins.count), 1e-8, dtype=torch.float64)
    probs[..., index] = 1 - 1e-8 * (bins.count - 1)
    assert torch.allclose(bins.spread(probs.float()).double(), bins.spread(probs), atol=2e-3)
    away = bins.centers - bins.centers[index]
    by_hand = np.sqrt((probs[0, 0].numpy() * away**2).sum())
    np.testing.assert_allclose(bins.spread(probs).numpy(), np.full((1, 3), by_hand), rtol=1e-3)
