"""The chains in albumentations, one face at a time: what the device's operations are measured against.

The only file that touches albumentations, and it imports it when a chain is asked for.
"""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from hpe_core.augment.chains import CHAINS, Operation
from hpe_core.augment.table import Values


def run_reference(images_BHWC: Values, name: str, strength: float, seed: int) -> Values:
    """uint8 RGB -> uint8 RGB, as `run_chain` does it, with draws of its own.

    All parts share one stream of chance. `Compose.set_random_seed` would give each its own from the same seed: four of
    the five links of `offsets` then come together or not at all, and with like choices.
    """
    chain = photometric_chain(name, strength)
    chain.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return np.stack([chain(image=picture)["image"] for picture in images_BHWC])


@cache
def photometric_chain(name: str, strength: float) -> Any:
    """An albumentations chain for uint8 RGB pictures; `strength` scales the probability of every part."""
    import albumentations as A

    links = []
    for link in CHAINS[name]:
        p, operations = link.probability * strength, link.operations
        if len(operations) == 1:
            links.append(transform(operations[0], p))
        else:
            links.append(A.OneOf([transform(operation, 1) for operation in operations], p=p))
    return A.Compose(links)


def transform(operation: Operation, p: float = 1) -> Any:
    """An operation as albumentations has it, done with probability `p`."""
    import albumentations as A

    build: dict[str, Callable[..., Any]] = {
        "brightness": lambda brightness, contrast: A.RandomBrightnessContrast(brightness, contrast, p=p),
        "gamma": lambda percent: A.RandomGamma(percent, p=p),
        "hsv": lambda hue, saturation, value: A.HueSaturationValue(hue, saturation, value, p=p),
        "grey": lambda: A.ToGray(p=p),
        "gaussian": lambda size, sigma: A.GaussianBlur(size, sigma, p=p),
        "jpeg": lambda quality: A.ImageCompression(quality_range=quality, p=p),
        "downscale": lambda scale: A.Downscale(scale, p=p),
        "clahe": lambda clip: A.CLAHE(clip, p=p),
        "equalize": lambda: A.Equalize(p=p),
        "solarize": lambda: A.Solarize(p=p),
        "shuffle": lambda: A.ChannelShuffle(p=p),
        "drop_channel": lambda: A.ChannelDropout(p=p),
        "median3": lambda: A.MedianBlur((3, 3), p=p),
        "median5": lambda: A.MedianBlur((5, 5), p=p),
        "shadow": lambda count, corners, darkness: A.RandomShadow(
            num_shadows_limit=count, shadow_dimension=corners[1], shadow_intensity_range=darkness, p=p
        ),
        "iso_noise": lambda intensity: A.ISONoise(intensity=intensity, p=p),
        "holes": lambda count, share: A.CoarseDropout(count, share, share, p=p),
    }
    return build[operation.name](**operation.ranges)
