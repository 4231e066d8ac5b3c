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

OF_TORCH: tuple[Apply, ...] = (
    *(pointwise.brightness, pointwise.gamma, pointwise.hsv, pointwise.grey, pointwise.solarize, pointwise.shuffle),
    *(pointwise.drop_channel, filters.gaussian, filters.downscale, filters.median3, filters.median5),
    *(histograms.equalize, histograms.clahe, overlays.shadow, overlays.iso_noise, overlays.holes, jpeg.jpeg),
)
OPERATIONS: Mapping[str, Apply] = MappingProxyType({each.__name__: each for each in OF_TORCH})


def by_opencv(name: str) -> Apply:
    """One of OpenCV's operations as those of torch are: of a whole batch, which stays as it was."""

    def apply(images_BHWC: Tensor, draws: Draws) -> Tensor:
        changed = images_BHWC.clone()
        opencv.FASTER[name](changed.numpy(), draws)
        return changed

    return apply


ON_CPU: Mapping[str, Apply] = MappingProxyType({**OPERATIONS, **{name: by_opencv(name) for name in opencv.FASTER}})


def run_chain(images_BHWC: Tensor, draws: Draws, *, torch_only: bool = False) -> Tensor:
    """uint8 RGB -> uint8 RGB: the operations that stand in `draws.on`, in its order. The input is left as it was.

    On a CPU OpenCV does what it does faster, unless `torch_only`.
    """
    images_BHWC = images_BHWC.clone(memory_format=torch.contiguous_format)  # both write through views of it
    pixels = None if torch_only or images_BHWC.device.type != "cpu" else images_BHWC.numpy()
    for name, faces in draws.on.items():
        if pixels is not None and name in opencv.FASTER:
            opencv.FASTER[name]([pixels[face] for face in faces.tolist()], draws.of(faces))
        elif name in OPERATIONS:
            put(images_BHWC, faces, OPERATIONS[name](images_BHWC.index_select(0, faces), draws.of(faces)))
    return images_BHWC
