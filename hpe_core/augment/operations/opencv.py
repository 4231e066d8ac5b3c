"""Operations that OpenCV does faster on a CPU, one face after the other, with the same draws (docs/augmentation.md).

Much of the time of albumentations goes into what surrounds OpenCV's calls. Here the tables and kernels of all faces are
made at once, and a face costs its calls.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from hpe_core.augment.operations.histograms import TILES
from hpe_core.augment.table import Draws, Values

Apply = Callable[[Tensor, Draws], Tensor]
LEVELS = np.arange(256, dtype=np.float32)


def each(x_BHWC: Tensor, change: Callable[..., Any], *columns: Iterable[Any]) -> Tensor:
    """change(face, where its outcome goes, the face's entry of each column), for every face."""
    faces = x_BHWC.numpy()
    out = np.empty_like(faces)
    for face, changed, *row in zip(faces, out, *columns, strict=True):
        change(face, changed, *row)
    return torch.from_numpy(out)


def brightness(x_BHWC: Tensor, draws: Draws) -> Tensor:
    def change(face: Values, out: Values, gain: float, shift: float) -> None:
        cv2.addWeighted(face, gain, face, 0, shift - 0.499, out)  # it rounds, and we cut off

    return each(x_BHWC, change, draws["brightness.gain"].tolist(), draws["brightness.shift"].tolist())


def gamma(x_BHWC: Tensor, draws: Draws) -> Tensor:
    tables = (LEVELS / 255) ** draws["gamma.power"].numpy()[:, None] * 255
    return each(x_BHWC, lambda face, out, table: cv2.LUT(face, table, out), tables.astype(np.uint8))


def hsv(x_BHWC: Tensor, draws: Draws) -> Tensor:
    hue, saturation, value = (LEVELS + draws[f"hsv.{name}"].numpy()[:, None] for name in ("hue", "saturation", "value"))
    saturation[:, 0] = 0
    tables = np.stack([hue % 180, saturation.clip(0, 255), value.clip(0, 255)], axis=-1).astype(np.uint8)

    def change(face: Values, out: Values, table: Values) -> None:
        turned = cv2.LUT(cv2.cvtColor(face, cv2.COLOR_RGB2HSV), table[None])
        cv2.cvtColor(turned, cv2.COLOR_HSV2RGB, out)

    return each(x_BHWC, change, tables)


def grey(x_BHWC: Tensor, draws: Draws) -> Tensor:
    def change(face: Values, out: Values) -> None:
        cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, out)

    return each(x_BHWC, change)


def gaussian(x_BHWC: Tensor, draws: Draws) -> Tensor:
    weights = draws["gaussian.weights"].numpy()
    kernels = np.concatenate([weights[:, :0:-1], weights], axis=1)
    return each(x_BHWC, lambda face, out, kernel: cv2.sepFilter2D(face, -1, kernel, kernel, out), kernels)


def median3(x_BHWC: Tensor, draws: Draws) -> Tensor:
    return each(x_BHWC, lambda face, out: cv2.medianBlur(face, 3, out))


def median5(x_BHWC: Tensor, draws: Draws) -> Tensor:
    return each(x_BHWC, lambda face, out: cv2.medianBlur(face, 5, out))


def equalize(x_BHWC: Tensor, draws: Draws) -> Tensor:
    def change(face: Values, out: Values) -> None:
        cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(face)], out)

    return each(x_BHWC, change)


def clahe(x_BHWC: Tensor, draws: Draws) -> Tensor:
    spreader = cv2.createCLAHE(tileGridSize=(TILES, TILES))

    def change(face: Values, out: Values, clip: float) -> None:
        lightness, a, b = cv2.split(cv2.cvtColor(face, cv2.COLOR_RGB2LAB))
        spreader.setClipLimit(clip)
        cv2.cvtColor(cv2.merge([spreader.apply(lightness), a, b]), cv2.COLOR_LAB2RGB, out)

    return each(x_BHWC, change, draws["clahe.clip"].tolist())


def jpeg(x_BHWC: Tensor, draws: Draws) -> Tensor:
    def change(face: Values, out: Values, quality: float) -> None:
        out[:] = cv2.imdecode(cv2.imencode(".jpg", face, (cv2.IMWRITE_JPEG_QUALITY, int(quality)))[1], cv2.IMREAD_COLOR)

    return each(x_BHWC, change, draws["jpeg.quality"].tolist())


def downscale(x_BHWC: Tensor, draws: Draws) -> Tensor:
    size = (x_BHWC.shape[2], x_BHWC.shape[1])

    def change(face: Values, out: Values, scale: float) -> None:
        small = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        cv2.resize(small, size, out, interpolation=cv2.INTER_NEAREST)

    return each(x_BHWC, change, draws["downscale.scale"].tolist())


FASTER: Mapping[str, Apply] = MappingProxyType(
    {
        "brightness": brightness,
        "gamma": gamma,
        "hsv": hsv,
        "grey": grey,
        "gaussian": gaussian,
        "median3": median3,
        "median5": median5,
        "equalize": equalize,
        "clahe": clahe,
        "jpeg": jpeg,
        "downscale": downscale,
    }
)
