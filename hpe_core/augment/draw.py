"""What chance decides about the colours of each face: numpy on the host, all faces of an epoch at once.

Every distribution is that of albumentations 2.0.8, whose class stands in each docstring. A column holds what the
device needs (a kernel's weights, not its sigma), as a number that float32 holds exactly or closely enough.
"""

from collections.abc import Callable

import numpy as np

from hpe_core.augment.chains import CHAINS, Operation, Range
from hpe_core.augment.table import Chosen, Columns, Values

Draw = Callable[[Operation, int, int, np.random.Generator], Columns]
NOWHERE = -4.0  # the corners of a shadow that a face does not get


def draw_chain(
    name: str, strength: float, count: int, size: int, random: np.random.Generator
) -> tuple[Columns, Chosen]:
    """The draws of `count` faces of `size` pixels for a chain; `strength` scales the probability of every part.

    The operations stand in the order of the chain, and no face gets two of one part.
    """
    columns: Columns = {}
    chosen: Chosen = {}
    for link in CHAINS[name]:
        hit = random.random(count) < link.probability * strength
        which = random.integers(len(link.operations), size=count)
        for i, operation in enumerate(link.operations):
            chosen[operation.name] = hit & (which == i)
            if draw := DRAWS.get(operation.name):
                drawn = draw(operation, count, size, random)
                columns |= {f"{operation.name}.{column}": values for column, values in drawn.items()}
    return columns, chosen


def uniform(within: Range, count: int, random: np.random.Generator) -> Values:
    return random.uniform(*within, count)


def whole(within: Range, count: int, random: np.random.Generator) -> Values:
    """A whole number from both ends and between."""
    return random.integers(int(within[0]), int(within[1]), count, endpoint=True)


def brightness(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """RandomBrightnessContrast: a grey level times `gain` plus `shift`."""
    gain = 1 + uniform(operation.ranges["contrast"], count, random)
    return {"gain": gain, "shift": 255 * uniform(operation.ranges["brightness"], count, random)}


def gamma(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """RandomGamma."""
    return {"power": uniform(operation.ranges["percent"], count, random) / 100}


def hsv(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """HueSaturationValue: whole steps of OpenCV's hue (2 degrees), saturation and value."""
    hue, saturation, value = (uniform(operation.ranges[name], count, random) for name in ("hue", "saturation", "value"))
    return {"hue": np.floor(hue), "saturation": np.trunc(saturation), "value": np.trunc(value)}


def gaussian(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """GaussianBlur: an even size is the next odd one."""
    sigma = uniform(operation.ranges["sigma"], count, random)
    sizes = whole(operation.ranges["size"], count, random) // 2 * 2 + 1
    return {"weights": gaussian_weights(sigma, sizes, int(operation.ranges["size"][1]) // 2)}


def gaussian_weights(sigma: Values, sizes: Values, reach: int) -> Values:
    """(M,) sigmas and odd sizes -> (M, reach + 1): the weight of the middle, of its neighbours, of theirs."""
    at = np.arange(reach + 1)
    weights = np.exp(-0.5 * (at / sigma[:, None]) ** 2) * (at <= sizes[:, None] // 2)
    return weights / (2 * weights.sum(axis=1, keepdims=True) - weights[:, :1])


def jpeg(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """ImageCompression."""
    return {"quality": whole(operation.ranges["quality"], count, random)}


def as_ranged(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """Downscale, CLAHE: each parameter is uniform in its range."""
    return {name: uniform(within, count, random) for name, within in operation.ranges.items()}


def shuffle(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """ChannelShuffle: where each of the three channels comes from."""
    return {"source": random.permuted(np.tile(np.arange(3), (count, 1)), axis=1)}


def drop_channel(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """ChannelDropout of one channel."""
    return {"channel": random.integers(3, size=count)}


def shadow(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """RandomShadow: one or two polygons in the lower half, whose corners are whole pixels."""
    most, corners = (int(operation.ranges[name][1]) for name in ("count", "corners"))
    x = random.integers(0, size, (count, most, corners, 1))
    y = random.integers(size // 2, size, (count, most, corners, 1))
    there = np.arange(most) < whole(operation.ranges["count"], count, random)[:, None]
    points = np.where(there[:, :, None, None], np.concatenate([x, y], axis=-1), NOWHERE)
    return {"corners": points.reshape(count, -1), "light": 1 - uniform(operation.ranges["darkness"], count, random)}


def iso_noise(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """ISONoise, and the seed of a face's pixels."""
    return as_ranged(operation, count, size, random) | {"seed": random.integers(2**24, size=count)}


def holes(operation: Operation, count: int, size: int, random: np.random.Generator) -> Columns:
    """CoarseDropout: one or two rectangles (left, top, right, bottom); one that a face does not get is empty."""
    most = int(operation.ranges["count"][1])
    sides = (size * random.uniform(*operation.ranges["share"], (count, most, 2))).astype(int)
    start = random.integers(0, size - sides + 1)
    there = np.arange(most) < whole(operation.ranges["count"], count, random)[:, None]
    edges = np.concatenate([start, start + sides], axis=-1) * there[:, :, None]
    return {"edges": edges.reshape(count, -1)}


OWN: tuple[Draw, ...] = (brightness, gamma, hsv, gaussian, jpeg, shuffle, drop_channel, shadow, iso_noise, holes)
DRAWS: dict[str, Draw] = {each.__name__: each for each in OWN} | {"downscale": as_ranged, "clahe": as_ranged}
