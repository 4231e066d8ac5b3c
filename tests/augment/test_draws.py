"""Laws of the draws: disjoint, scaled by strength, functions of their seed, distributed as albumentations draws."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hpe_core.augment.chains import CHAINS
from hpe_core.augment.draw import draw_chain
from hpe_core.augment.reference import photometric_chain, transform
from tests.augment.pictures import OPERATIONS, drawn, faces

MANY = 20_000
CHAIN = st.sampled_from(sorted(CHAINS))


@settings(max_examples=15)
@given(CHAIN, st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_face_gets_one_operation_of_a_part_as_often_as_strength_says(name, strength, seed):
    _, chosen = draw_chain(name, strength, MANY, 64, np.random.default_rng(seed))
    assert list(chosen) == [operation.name for part in CHAINS[name] for operation in part.operations]
    for part in CHAINS[name]:
        masks = np.stack([chosen[operation.name] for operation in part.operations])
        assert masks.sum(0).max() <= 1
        each = part.probability * strength / len(masks)
        assert np.abs(masks.mean(1) - each).max() < 0.02
        assert (masks.any() if each > 0.001 else True) and (each > 0 or not masks.any())


@settings(max_examples=5)
@given(CHAIN, st.integers(0, 2**32 - 1))
def test_draws_are_a_function_of_their_seed(name, seed):
    first, again, other = (draw_chain(name, 1, 50, 64, np.random.default_rng(s)) for s in (seed, seed, seed + 1))
    for side in (0, 1):
        assert first[side].keys() == again[side].keys()
        assert all(np.array_equal(first[side][key], again[side][key]) for key in first[side])
    assert any(not np.array_equal(first[0][key], other[0][key]) for key in first[0])


def of_albumentations(name: str, size: int, count: int) -> dict[str, np.ndarray]:
    """What albumentations draws, in our columns."""
    made = transform(OPERATIONS[name])
    made.set_random_seed(1)
    picture = faces(size)[0]
    found: list[dict[str, Any]] = []
    for _ in range(count):
        params = made.get_params()
        found.append(params | made.get_params_dependent_on_data({"shape": picture.shape}, {"image": picture}))
    return {key: np.array([one[key] for one in found], object) for key in found[0]}


def numbers(values: Any) -> np.ndarray:
    return np.array([float(value) for value in values])


def same(ours: Any, theirs: Any) -> None:
    """Two samples of one distribution."""
    ours, theirs = numbers(np.ravel(ours)), numbers(theirs)
    if len(np.unique(ours)) > 20:
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
    else:
        levels = np.union1d(ours, theirs)
        shares = [np.array([(side == level).mean() for level in levels]) for side in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).max() < 0.05


@pytest.mark.parametrize("size", [32, 112])
@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"grey", "equalize", "solarize", "median3", "median5"}))
def test_parameters_are_drawn_as_albumentations_draws_them(name, size):
    ours, theirs = drawn(OPERATIONS[name], 3000, size, 0), of_albumentations(name, size, 1500)
    match name:
        case "brightness":
            same(ours["gain"], theirs["alpha"])
            same(ours["shift"], theirs["beta"])
        case "gamma":
            same(ours["power"], theirs["gamma"])
        case "hsv":
            same(ours["hue"], np.floor(numbers(theirs["hue_shift"])))
            same(ours["saturation"], np.trunc(numbers(theirs["sat_shift"])))
            same(ours["value"], np.trunc(numbers(theirs["val_shift"])))
        case "gaussian":
            same(ours["weights"][:, 0], [kernel[len(kernel) // 2] for kernel in theirs["kernel"]])
            same(ours["weights"][:, 2] > 0, [len(kernel) == 5 for kernel in theirs["kernel"]])
        case "jpeg":
            same(ours["quality"], theirs["quality"])
        case "downscale":
            same(ours["scale"], theirs["scale"])
        case "clahe":
            same(ours["clip"], theirs["clip_limit"])
        case "shuffle":
            same(ours["source"] @ [100, 10, 1], [np.dot(order, [100, 10, 1]) for order in theirs["channels_shuffled"]])
        case "drop_channel":
            same(ours["channel"], [dropped[0] for dropped in theirs["channels_to_drop"]])
        case "iso_noise":
            same(ours["intensity"], theirs["intensity"])
            assert len(np.unique(ours["seed"])) > 2900 and ours["seed"].max() < 2**24
        case "shadow":
            points = ours["corners"].reshape(-1, 2, 5, 2)
            same((points[:, 1, 0, 0] >= 0) + 1, [len(one) for one in theirs["vertices_list"]])
            for axis in (0, 1):
                same(points[:, 0, 2, axis], [one[0][2, axis] for one in theirs["vertices_list"]])
                same(
                    points[points[:, 1, 0, 0] >= 0][:, 1, 4, axis],
                    [one[-1][4, axis] for one in theirs["vertices_list"]],
                )
            assert (ours["light"] == 0.5).all()
        case "holes":
            edges = ours["edges"].reshape(-1, 2, 4)
            same((edges[:, 1, 2] > 0) + 1, [len(one) for one in theirs["holes"]])
            for side in range(4):
                same(edges[:, 0, side], [one[0][side] for one in theirs["holes"]])
            same(edges[:, 0, 3] - edges[:, 0, 1], [one[0][3] - one[0][1] for one in theirs["holes"]])
        case _:
            raise AssertionError(f"no comparison for {name}")


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_both_backends_are_built_from_the_same_parts(name):
    for strength in (1.0, 0.4):
        links = photometric_chain(name, strength).transforms
        assert [link.p for link in links] == pytest.approx([part.probability * strength for part in CHAINS[name]])
        assert [len(getattr(link, "transforms", [0])) for link in links] == [
            len(part.operations) for part in CHAINS[name]
        ]
