"""Every operation equals the class of albumentations that it stands for, at equal parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from albumentations.augmentations.pixel import functional as fpixel
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_core.augment.draw import gaussian_weights
from hpe_core.augment.operations import jpeg, overlays
from hpe_core.augment.operations.apply import ON_CPU
from hpe_core.augment.operations.apply import OPERATIONS as APPLIED
from hpe_core.augment.operations.histograms import spread
from hpe_core.geometry.crop import Image
from tests.augment.pictures import FACES, OPERATIONS, SIZES, drawn, draws_of, faces, tensor

SEEDS, SOME_SIZES = st.integers(0, 2**32 - 1), st.sampled_from(SIZES)
Row = Mapping[str, Any]  # a face's columns


def of_shadow(face: Image, row: Row) -> Image:
    polygons = [points for points in row["corners"].reshape(-1, 5, 2).astype(np.int32) if points[0, 0] >= 0]
    return A.RandomShadow().apply(face, polygons, np.full(len(polygons), 1 - row["light"]))


def of_holes(face: Image, row: Row) -> Image:
    holes = row["edges"].reshape(-1, 4).astype(int)
    return A.CoarseDropout().apply(face, holes=holes[holes[:, 2] > 0], seed=0)


def of_gaussian(face: Image, row: Row) -> Image:
    side = row["weights"][1:]
    return A.GaussianBlur().apply(face, np.concatenate([side[::-1], row["weights"]]))


REFERENCE: dict[str, Callable[[Image, Row], Image]] = {
    "brightness": lambda face, row: A.RandomBrightnessContrast().apply(face, row["gain"], row["shift"]),
    "gamma": lambda face, row: A.RandomGamma().apply(face, row["power"]),
    "hsv": lambda face, row: A.HueSaturationValue().apply(face, row["hue"], row["saturation"], row["value"]),
    "grey": lambda face, row: A.ToGray().apply(face),
    "gaussian": of_gaussian,
    "jpeg": lambda face, row: A.ImageCompression().apply(face, int(row["quality"]), ".jpg"),
    "downscale": lambda face, row: A.Downscale().apply(face, row["scale"]),
    "clahe": lambda face, row: A.CLAHE().apply(face, row["clip"]),
    "equalize": lambda face, row: A.Equalize().apply(face, None),
    "solarize": lambda face, row: A.Solarize().apply(face, 0.5),
    "shuffle": lambda face, row: A.ChannelShuffle().apply(face, [int(c) for c in row["source"]]),
    "drop_channel": lambda face, row: A.ChannelDropout().apply(face, [int(row["channel"])]),
    "median3": lambda face, row: A.MedianBlur().apply(face, 3),
    "median5": lambda face, row: A.MedianBlur().apply(face, 5),
    "shadow": of_shadow,
    "holes": of_holes,
}
# Within one grey level: this share of a batch's pixels at least; and how far the mean may be off.
CLOSE = {name: (0.99, 0.1) for name in REFERENCE}
EXACT = ("solarize", "shuffle", "drop_channel", "median3", "median5", "holes", "downscale", "brightness", "gamma")
CLOSE |= {name: (1.0, 0.01) for name in EXACT}
# OpenCV finds hue by tables: one in sixty pixels has a neighbouring hue, two degrees off.
CLOSE["hsv"] = (0.99, 0.2)
# A coefficient that lies near the middle between two steps falls to either side: libjpeg's transform rounds to whole
# numbers on its way, ours does not. One such coefficient moves a block by up to a step / 8.
CLOSE["jpeg"] = (0.88, 0.6)  # of 500 batches the worst, of 32 px, had 0.897 and 0.48
# OpenCV's Lab is rounded to whole levels, and one level of lightness that falls to the other side becomes up to four
# where CLAHE is steep.
CLOSE["clahe"] = (0.90, 0.6)
# OpenCV draws a polygon's edge as a line of pixels; where the line lies half way between two, either is right.
CLOSE["shadow"] = (0.99, 0.5)


def compare(name: str, size: int, columns: Mapping[str, Any]) -> None:
    draws = draws_of(name, dict(columns))
    ours = APPLIED[name](tensor(size), draws).numpy()
    rows = [{column: values[i] for column, values in columns.items()} for i in range(FACES)]
    theirs = np.stack([REFERENCE[name](face.copy(), row) for face, row in zip(faces(size), rows, strict=True)])
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    off = np.abs(ours.astype(int) - theirs.astype(int))
    share, mean = CLOSE[name]
    assert (off <= 1).mean() >= share and off.mean() <= mean, f"{(off <= 1).mean():.4f} within 1, mean {off.mean():.3f}"
    if ON_CPU[name] is not APPLIED[name]:  # OpenCV itself, with our draws
        off = np.abs(ON_CPU[name](tensor(size), draws).numpy().astype(int) - theirs)
        assert (off <= 1).mean() >= 0.999, "by OpenCV"


@pytest.mark.parametrize("name", REFERENCE)
@settings(max_examples=8)
@given(seed=SEEDS, size=SOME_SIZES)
def test_an_operation_equals_the_reference_with_the_chains_own_draws(name, seed, size):
    compare(name, size, drawn(OPERATIONS[name], FACES, size, seed))


six = st.lists(st.floats(0, 1, width=32), min_size=FACES, max_size=FACES).map(np.array)
BEYOND: dict[str, Callable[[np.ndarray, np.ndarray], Mapping[str, Any]]] = {
    "brightness": lambda u, v: {"gain": 0.2 + 2 * u, "shift": 300 * (v - 0.5)},
    "gamma": lambda u, v: {"power": 0.2 + 3 * u},
    "hsv": lambda u, v: {
        "hue": np.floor(360 * (u - 0.5)),
        "saturation": np.trunc(300 * (v - 0.5)),
        "value": np.trunc(300 * (u[::-1] - 0.5)),
    },
    "gaussian": lambda u, v: {"weights": gaussian_weights(0.2 + 5 * u, np.where(v < 0.5, 3, 5), 2)},
    "jpeg": lambda u, v: {"quality": np.rint(5 + 95 * u)},
    "downscale": lambda u, v: {"scale": 0.1 + 0.89 * u},
    "clahe": lambda u, v: {"clip": 1 + 20 * u},
}


@pytest.mark.parametrize("name", BEYOND)
@settings(max_examples=15)
@given(u=six, v=six, size=SOME_SIZES)
def test_and_far_beyond_the_chains_ranges(name, u, v, size):
    columns = {name: np.float32(values).astype(float) for name, values in BEYOND[name](u, v).items()}
    compare(name, size, columns)


@settings(max_examples=10)
@given(clip=st.lists(st.floats(0, 40, width=32), min_size=FACES, max_size=FACES), size=SOME_SIZES)
def test_clahe_of_a_plane_is_opencvs_to_one_grey_level(clip, size):
    """All that CLAHE's wider bound allows comes from Lab."""
    plane = np.ascontiguousarray(faces(size)[..., 1])
    ours = spread(torch.from_numpy(plane), torch.tensor(clip)).numpy()
    theirs = [cv2.createCLAHE(c or 1e-9, (8, 8)).apply(face) for c, face in zip(clip, plane, strict=True)]
    off = np.abs(ours.astype(int) - np.stack(theirs))
    assert off.max() <= 1 and (off == 0).mean() > 0.9


@pytest.mark.parametrize("quality", [1, 10, 25, 49, 50, 51, 75, 95, 100])
def test_jpegs_steps_are_those_that_the_encoder_writes_into_its_file(quality):
    """Read from the file's DQT segments, in zigzag order."""
    data = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8), (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()
    order = sorted(np.ndindex(8, 8), key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))
    for number, steps in enumerate(jpeg.quantisation(torch.device("cpu"))[quality]):
        at = data.index(bytes([0xFF, 0xDB, 0, 67, number])) + 5
        table = np.zeros((8, 8), int)
        table[tuple(np.transpose(order))] = list(data[at : at + 64])
        assert np.array_equal(steps.numpy(), table)


class Fixed:
    """The generator that albumentations asks for noise, with the photons that we drew."""

    def __init__(self, chance: np.ndarray, turn: float) -> None:
        self.chance, self.turn = chance, turn

    def poisson(self, mean: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        chance = torch.from_numpy(self.chance.reshape(size))
        return overlays.poisson(torch.tensor(float(np.squeeze(mean))), chance).double().numpy()

    def normal(self, middle: float, deviation: float, size: tuple[int, int]) -> np.ndarray:
        return np.random.default_rng(0).normal(middle, deviation * self.turn, size).astype(np.float32)


@pytest.mark.parametrize("turn", [0, 1])
@settings(max_examples=8)
@given(seed=SEEDS, size=SOME_SIZES, intensity=st.floats(0.0625, 1, width=32))
def test_iso_noise_equals_the_reference_for_the_same_photons(turn, seed, size, intensity):
    """With the turn of hue that only albumentations makes, and without: nobody sees it."""
    seeds = np.random.default_rng(seed).integers(2**24, size=FACES)
    columns = {"intensity": np.full(FACES, intensity), "seed": seeds}
    ours = APPLIED["iso_noise"](tensor(size), draws_of("iso_noise", columns)).numpy()
    chances = overlays.uniform(torch.from_numpy(seeds).float(), size * size).numpy()
    theirs = [
        fpixel.iso_noise(face.copy(), 0.05, intensity, Fixed(chance, turn))
        for face, chance in zip(faces(size), chances, strict=True)
    ]
    off = np.abs(ours.astype(int) - np.stack(theirs))
    assert (off <= 1).mean() >= 0.99 and off.mean() < 0.2
    assert (ours != faces(size))[:4].any()


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.25])
def test_photons_are_poissons(mean):
    chance = overlays.uniform(torch.tensor([3.0, 4.0]), 500_000)
    photons = overlays.poisson(torch.tensor(mean), chance).flatten()
    expected = [np.exp(-mean), mean * np.exp(-mean), mean**2 / 2 * np.exp(-mean)]
    found = [float((photons == i).double().mean()) for i in range(3)]
    assert np.abs(np.array(found) - expected).max() < 0.002
    assert float((photons * (photons - photons.floor())).sum()) == 0


def test_noise_is_a_function_of_seed_and_place_alone_and_even():
    seeds = torch.tensor([0.0, 1.0, 2.0, 2.0**24 - 1])
    chance = overlays.uniform(seeds, 20_000)
    assert torch.equal(chance, overlays.uniform(seeds, 20_000))
    assert torch.equal(chance[:, :500], overlays.uniform(seeds, 500)), "whatever the number of pixels"
    assert torch.equal(chance[2:], overlays.uniform(seeds[2:], 20_000)), "whatever the batch"
    counts = torch.stack([torch.histc(row, 20, 0, 1) for row in chance])
    assert (counts - 1000).abs().max() < 150
    assert torch.corrcoef(torch.cat([chance, chance.roll(1, 1)])).fill_diagonal_(0).abs().max() < 0.03
