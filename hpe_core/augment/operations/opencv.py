"""Operations that OpenCV does faster on a CPU, one face after the other, with the same draws (docs/augmentation.md).

Much of the time of albumentations goes into what surrounds OpenCV's calls. Here the tables and kernels of all faces are
made at once, and a face costs its calls: it is changed where it lies.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from hpe_core.augment.operations.histograms import TILES
from hpe_core.augment.table import Draws, Values

Faces = Iterable[Values]  # uint8 RGB pictures (H, W, 3), each its own memory or a part of a batch's
Recolour = Callable[[Faces, Draws], None]  # in place
LEVELS = np.arange(256, dtype=np.float32)


def each(faces: Faces, change: Callable[..., Any], *columns: Iterable[Any]) -> None:
    """change(face, the face's entry of each column), for every face."""
    for face, *row in zip(faces, *columns, strict=True):
        change(face, *row)


def brightness(faces: Faces, draws: Draws) -> None:
    def change(face: Values, gain: float, shift: float) -> None:
        cv2.addWeighted(face, gain, face, 0, shift - 0.499, face)  # it rounds, and we cut off

    each(faces, change, draws["brightness.gain"].tolist(), draws["brightness.shift"].tolist())


def gamma(faces: Faces, draws: Draws) -> None:
    tables = (LEVELS / 255) ** draws["gamma.power"].numpy()[:, None] * 255
    each(faces, lambda face, table: cv2.LUT(face, table, face), tables.astype(np.uint8))


def hsv(faces: Faces, draws: Draws) -> None:
    hue, saturation, value = (LEVELS + draws[f"hsv.{name}"].numpy()[:, None] for name in ("hue", "saturation", "value"))
    saturation[:, 0] = 0
    tables = np.stack([hue % 180, saturation.clip(0, 255), value.clip(0, 255)], axis=-1).astype(np.uint8)

    def change(face: Values, table: Values) -> None:
        turned = cv2.cvtColor(face, cv2.COLOR_RGB2HSV)
        cv2.cvtColor(cv2.LUT(turned, table[None], turned), cv2.COLOR_HSV2RGB, face)

    each(faces, change, tables)


def grey(faces: Faces, draws: Draws) -> None:
    def change(face: Values) -> None:
        cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, face)

    each(faces, change)


def gaussian(faces: Faces, draws: Draws) -> None:
    weights = draws["gaussian.weights"].numpy()
    kernels = np.concatenate([weights[:, :0:-1], weights], axis=1)
    each(faces, lambda face, kernel: cv2.sepFilter2D(face, -1, kernel, kernel, face), kernels)


def median3(faces: Faces, draws: Draws) -> None:
    each(faces, lambda face: cv2.medianBlur(face, 3, face))


def median5(faces: Faces, draws: Draws) -> None:
    each(faces, lambda face: cv2.medianBlur(face, 5, face))


def equalize(faces: Faces, draws: Draws) -> None:
    def change(face: Values) -> None:
        cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(face)], face)

    each(faces, change)


def clahe(faces: Faces, draws: Draws) -> None:
    spreader = cv2.createCLAHE(tileGridSize=(TILES, TILES))

    def change(face: Values, clip: float) -> None:
        lightness, a, b = cv2.split(cv2.cvtColor(face, cv2.COLOR_RGB2LAB))
        spreader.setClipLimit(clip)
        cv2.cvtColor(cv2.merge([spreader.apply(lightness), a, b]), cv2.COLOR_LAB2RGB, face)

    each(faces, change, draws["clahe.clip"].tolist())


def jpeg(faces: Faces, draws: Draws) -> None:
    def change(face: Values, quality: float) -> None:
        sent = cv2.imencode(".jpg", face, (cv2.IMWRITE_JPEG_QUALITY, int(quality)))[1]
        face[:] = cv2.imdecode(sent, cv2.IMREAD_COLOR)

    each(faces, change, draws["jpeg.quality"].tolist())


def downscale(faces: Faces, draws: Draws) -> None:
    def change(face: Values, scale: float) -> None:
        small = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        cv2.resize(small, face.shape[1::-1], face, interpolation=cv2.INTER_NEAREST)

    each(faces, change, draws["downscale.scale"].tolist())


FASTER: Mapping[str, Recolour] = MappingProxyType(
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
