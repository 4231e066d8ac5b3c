"""Laws of whole chains: which faces are changed, that nothing else matters, and that the device is never waited for."""

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from hpe_core.augment.chains import CHAINS, operations
from hpe_core.augment.draw import draw_chain
from hpe_core.augment.operations.apply import ON_CPU, OPERATIONS, run_chain
from hpe_core.augment.reference import run_reference
from hpe_core.augment.table import Draws, Table
from hpe_core.geometry.crop import Image
from tests.augment.pictures import FACES, SIZES, drawn, draws_of, faces, tensor
from tests.augment.pictures import OPERATIONS as DRAWN

CHAIN = st.sampled_from(sorted(CHAINS))


def table_of(name: str, count: int, size: int, seed: int, strength: float = 1) -> Table:
    return Table(*draw_chain(name, strength, count, size, np.random.default_rng(seed)))


def test_every_operation_of_the_chains_is_there():
    assert {operation.name for operation in operations()} == set(OPERATIONS)


@settings(max_examples=16)
@given(
    CHAIN, st.integers(0, 2**32 - 1), st.lists(st.integers(1, 29), max_size=4), st.sampled_from([32, 50]), st.booleans()
)
def test_a_face_comes_out_the_same_whatever_the_batch_is_cut_into(name, seed, cuts, size, torch_only):
    count = 30
    images = tensor(size).repeat(count // FACES, 1, 1, 1)
    before, table = images.clone(), table_of(name, count, size, seed)
    whole = run_chain(images, table.rows(0, count), torch_only=torch_only)
    assert torch.equal(images, before), "the input stays"
    assert torch.equal(whole, run_chain(images, table.rows(0, count), torch_only=torch_only)), "and so does the outcome"
    edges = [0, *sorted(set(cuts)), count]
    parts = [run_chain(images[a:b], table.rows(a, b), torch_only=torch_only) for a, b in pairwise(edges)]
    off = (torch.cat(parts).int() - whole.int()).abs()
    assert off.max() == 0 and whole.dtype == torch.uint8


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@settings(max_examples=5)
@given(st.lists(st.booleans(), min_size=FACES, max_size=FACES), st.integers(0, 2**32 - 1), st.booleans())
def test_faces_that_do_not_get_an_operation_stay(name, mask, seed, torch_only):
    size = 32
    chosen = np.array(mask)
    columns = {f"{name}.{key}": values for key, values in drawn(DRAWN[name], FACES, size, seed).items()}
    draws = Table(columns or {"none": np.zeros(FACES)}, {name: chosen}).rows(0, FACES)
    out, images = run_chain(tensor(size), draws, torch_only=torch_only), tensor(size)
    by = OPERATIONS if torch_only else ON_CPU
    alone = by[name](images, draws_of(name, drawn(DRAWN[name], FACES, size, seed)))
    assert torch.equal(out[~chosen], images[~chosen])
    assert torch.equal(out[chosen], alone[chosen])
    assert torch.equal(images, tensor(size)), "an operation leaves its input alone"


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_without_strength_nothing_happens_and_with_more_of_it_more(name):
    images = tensor(32).repeat(50, 1, 1, 1)
    kept = []
    for strength in (0.0, 0.3, 1.0):
        out = run_chain(images, table_of(name, len(images), 32, 1, strength).rows(0, len(images)))
        kept.append(float((out == images).flatten(1).all(1).float().mean()))
    assert kept[0] == 1 and kept[1] > kept[2] + 0.15


def statistics(pictures: Image) -> dict[str, np.ndarray]:
    """What an eye would say of each picture: brightness, contrast, colour, sharpness, its darkest and its brightest."""
    grey = np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]).astype(float)
    colour = pictures.max(-1).astype(float) - pictures.min(-1)
    across = np.abs(np.diff(grey, axis=2))
    return {
        "brightness": grey.mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "colour": colour.mean((1, 2)),
        "sharpness": across.mean((1, 2)),
        "flatness": (across == 0).mean((1, 2)),
        "dark": (pictures == 0).mean((1, 2, 3)),
        "bright": (pictures == 255).mean((1, 2, 3)),
        "warmth": (pictures[..., 0].astype(float) - pictures[..., 2]).mean((1, 2)),
        "lower": grey[:, grey.shape[1] // 2 :].mean((1, 2)),
    }


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_two_thousand_faces_of_both_backends_look_alike(name):
    """Two samples of one distribution in nine statistics of a face (Kolmogorov-Smirnov, the seeds fixed)."""
    count, size = 2000, 32  # test_operations.py and test_draws.py compare each link at other sizes
    pictures = np.resize(faces(size)[:-1], (count, size, size, 3))
    ours = run_chain(
        torch.from_numpy(pictures), table_of(name, count, size, 11).rows(0, count), torch_only=True
    ).numpy()
    theirs = run_reference(pictures, name, 1.0, 12)
    found, expected, plain = statistics(ours), statistics(theirs), statistics(pictures)
    for key in found:
        # What both leave as it was says nothing, and would hide what they change.
        mine, others = (side[key] - plain[key] for side in (found, expected))
        assert stats.ks_2samp(mine, others).pvalue > 1e-3, key
        assert abs(mine.mean() - others.mean()) < 5 * others.std() / np.sqrt(count) + 1e-3, key


class Waits(TorchDispatchMode):
    """Fails where an operation would wait for the device: it asks for a number, or for how many there are."""

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        name = func.name()
        assert name.split(".")[0] not in {
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::masked_select",
            "aten::bincount",
            "aten::unique_dim",
            "aten::_unique2",
            "aten::repeat_interleave",
            "aten::equal",
            "aten::is_nonzero",
        }, name
        if name.startswith(("aten::index.", "aten::index_put", "aten::_index_put")):
            assert all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1]), name
        assert not (name.startswith("aten::lift_fresh")), "a number became a tensor on the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("size", SIZES)
def test_no_operation_waits_for_the_device(name, size):
    images, draws = tensor(size), draws_of(name, drawn(DRAWN[name], FACES, size, 1))
    OPERATIONS[name](images, draws)  # constants that are made once
    with Waits():
        OPERATIONS[name](images, draws)


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_no_chain_waits_for_the_device(name):
    images, table = tensor(32).repeat(10, 1, 1, 1), table_of(name, 60, 32, 1)
    run_chain(images, table.rows(0, 60), torch_only=True)
    with Waits():
        run_chain(images, table.rows(0, 60), torch_only=True)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 3],
        lambda x: x.nonzero(),
        lambda x: torch.tensor(1.0),
        lambda x: torch.bincount(x.flatten().long()),
    ],
)
def test_the_watch_sees_what_waits(wait):
    with pytest.raises(AssertionError), Waits():
        wait(tensor(32))


def test_draws_stay_on_their_device_row_by_row():
    table = table_of("light", 10, 32, 0)
    draws = table.rows(2, 7)
    picked = draws.of(torch.tensor([3, 1]))
    assert isinstance(picked, Draws) and torch.equal(picked["jpeg.quality"], draws["jpeg.quality"][[3, 1]])
