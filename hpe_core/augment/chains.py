"""The photometric chains as data: what both backends do, in which order, how often and how strongly.

The draws (draw.py) and albumentations (reference.py) are made from these tables; no other file holds a probability or
a range. `light` is the house's own. `ehpnet` is EHPNet 4.2: down-up sampling, brightness and contrast, a Gaussian
kernel. `offsets` is section 4.3 of the offset paper, in its order, with the values that albumentations gives where the
paper names none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Range = tuple[float, float]


@dataclass(frozen=True)
class Operation:
    """One change of a picture, and the range that each of its parameters is drawn from."""

    name: str
    ranges: Mapping[str, Range] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A link of a chain: with this probability a face gets one of the operations, each as likely as the others."""

    probability: float
    operations: tuple[Operation, ...]


Chain = tuple[Part, ...]


def part(probability: float, *operations: Operation) -> Part:
    return Part(probability, operations)


def op(name: str, **ranges: Range) -> Operation:
    return Operation(name, MappingProxyType(ranges))


def around(value: float) -> Range:
    return (-value, value)


# Gamma as RandomGamma has it, in percent; half as far again as its default. JPEG from what messengers send to what
# cameras store. A grey picture is one in ten: surveillance and infrared cameras, old photographs.
LIGHT: Chain = (
    part(0.6, op("brightness", brightness=around(0.25), contrast=around(0.25))),
    part(0.2, op("gamma", percent=(70, 140))),
    part(0.3, op("hsv", hue=around(10), saturation=around(25), value=around(0))),
    part(0.1, op("grey")),
    part(0.15, op("gaussian", size=(3, 3), sigma=(0.5, 3.0))),
    part(0.2, op("jpeg", quality=(40, 95))),
)
EHPNET: Chain = (
    part(0.5, op("downscale", scale=(0.35, 0.9))),
    part(0.5, op("brightness", brightness=around(0.3), contrast=around(0.3))),
    part(0.3, op("gaussian", size=(3, 5), sigma=(0.5, 3.0))),
)
OFFSETS: Chain = (
    part(
        0.5,
        op("hsv", hue=around(20), saturation=around(30), value=around(20)),
        op("clahe", clip=(1.0, 4.0)),
        op("equalize"),
        op("solarize"),
    ),
    part(0.5, op("shuffle"), op("drop_channel")),
    part(0.5, op("median3"), op("median5")),
    part(0.5, op("shadow", count=(1, 2), corners=(5, 5), darkness=(0.5, 0.5)), op("iso_noise", intensity=(0.1, 0.5))),
    part(0.5, op("holes", count=(1, 2), share=(0.1, 0.2))),
)
CHAINS: Mapping[str, Chain] = MappingProxyType({"light": LIGHT, "ehpnet": EHPNET, "offsets": OFFSETS})


def operations() -> Iterator[Operation]:
    """Every operation of every chain, once by name."""
    seen = {found.name: found for chain in CHAINS.values() for link in chain for found in link.operations}
    yield from seen.values()
