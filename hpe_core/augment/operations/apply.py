"""The chains on the device: whole batches, each operation on the faces that the draws give it.

No operation of a GPU loops over faces or waits for the device: how many faces each gets is known on the host
(table.py). On a CPU OpenCV does those in which it is faster. Pixels are uint8 between operations, as they are in
albumentations.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from hpe_core.augment.operations import filters, histograms, jpeg, opencv, overlays, pointwise
from hpe_core.augment.operations.pixels import put
from hpe_core.augment.table import Draws

Apply = Callable[[Tensor, Draws], Tensor]

OPERATIONS: Mapping[str, Apply] = MappingProxyType(
    {
        "brightness": pointwise.brightness,
        "gamma": pointwise.gamma,
        "hsv": pointwise.hsv,
        "grey": pointwise.grey,
        "solarize": pointwise.solarize,
        "shuffle": pointwise.shuffle,
        "drop_channel": pointwise.drop_channel,
        "gaussian": filters.gaussian,
        "downscale": filters.downscale,
        "median3": filters.median3,
        "median5": filters.median5,
        "equalize": histograms.equalize,
        "clahe": histograms.clahe,
        "shadow": overlays.shadow,
        "iso_noise": overlays.iso_noise,
        "holes": overlays.holes,
        "jpeg": jpeg.jpeg,
    }
)


ON_CPU: Mapping[str, Apply] = MappingProxyType({**OPERATIONS, **opencv.FASTER})


def run_chain(images_BHWC: Tensor, draws: Draws, operations: Mapping[str, Apply] | None = None) -> Tensor:
    """uint8 RGB -> uint8 RGB: the operations that stand in `draws.on`, in its order. The input is left as it was.

    `operations` are the fastest of the images' device if not given.
    """
    if operations is None:
        operations = ON_CPU if images_BHWC.device.type == "cpu" else OPERATIONS
    images_BHWC = images_BHWC.clone(memory_format=torch.contiguous_format)  # `put` writes through a view of it
    for name, faces in draws.on.items():
        if name in operations:
            put(images_BHWC, faces, operations[name](images_BHWC.index_select(0, faces), draws.of(faces)))
    return images_BHWC
