"""Operations that OpenCV does faster on a CPU, one face after the other, with the same draws (docs/augmentation.md).

Much of the time of albumentations goes into what surrounds OpenCV's calls. Here the tables and kernels of all faces are
made at once, and a face costs its calls: it is changed where it lies.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

from hpe_core.augment.operations.histograms import TILES
from hpe_core.augment.table import Draws, Values

Faces = Iterable[Values]  # uint8 RGB pictures (H, W, 3), each its own memory or a part of a batch's
Recolour = Callable[[Faces, Draws], None]  # in place
LEVELS = np.arange(256, dtype=np.float32)


def brightness(faces: Faces, draws: Draws) -> None:
    gains, shifts = (draws[f"brightness.{name}"].tolist() for name in ("gain", "shift"))
    for face, gain, shift in zip(faces, gains, shifts, strict=True):
        cv2.addWeighted(face, gain, face, 0, shift - 0.499, face)  # it rounds, and we cut off


def gamma(faces: Faces, draws: Draws) -> None:
    tables = (LEVELS / 255) ** draws["gamma.power"].numpy()[:, None] * 255
    for face, table in zip(faces, tables.astype(np.uint8), strict=True):
        cv2.LUT(face, table, face)


def hsv(faces: Faces, draws: Draws) -> None:
    hue, saturation, value = (LEVELS + draws[f"hsv.{name}"].numpy()[:, None] for name in ("hue", "saturation", "value"))
    saturation[:, 0] = 0
    tables = np.stack([hue % 180, saturation.clip(0, 255), value.clip(0, 255)], axis=-1).astype(np.uint8)
    for face, table in zip(faces, tables, strict=True):
        turned = cv2.cvtColor(face, cv2.COLOR_RGB2HSV)
        cv2.cvtColor(cv2.LUT(turned, table[None], turned), cv2.COLOR_HSV2RGB, face)


def grey(faces: Faces, draws: Draws) -> None:
    for face in faces:
        cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, face)


def gaussian(faces: Faces, draws: Draws) -> None:
    weights = draws["gaussian.weights"].numpy()
    for face, kernel in zip(faces, np.concatenate([weights[:, :0:-1], weights], axis=1), strict=True):
        cv2.sepFilter2D(face, -1, kernel, kernel, face)


def median3(faces: Faces, draws: Draws) -> None:
    for face in faces:
        cv2.medianBlur(face, 3, face)


def median5(faces: Faces, draws: Draws) -> None:
    for face in faces:
        cv2.medianBlur(face, 5, face)


def equalize(faces: Faces, draws: Draws) -> None:
    for face in faces:
        cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(face)], face)


def clahe(faces: Faces, draws: Draws) -> None:
    spreader = cv2.createCLAHE(tileGridSize=(TILES, TILES))
    for face, clip in zip(faces, draws["clahe.clip"].tolist(), strict=True):
        lightness, a, b = cv2.split(cv2.cvtColor(face, cv2.COLOR_RGB2LAB))
        spreader.setClipLimit(clip)
        cv2.cvtColor(cv2.merge([spreader.apply(lightness), a, b]), cv2.COLOR_LAB2RGB, face)


def jpeg(faces: Faces, draws: Draws) -> None:
    for face, quality in zip(faces, draws["jpeg.quality"].tolist(), strict=True):
        sent = cv2.imencode(".jpg", face, (cv2.IMWRITE_JPEG_QUALITY, int(quality)))[1]
        face[:] = cv2.imdecode(sent, cv2.IMREAD_COLOR)


def downscale(faces: Faces, draws: Draws) -> None:
    for face, scale in zip(faces, draws["downscale.scale"].tolist(), strict=True):
        small = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        cv2.resize(small, face.shape[1::-1], face, interpolation=cv2.INTER_NEAREST)


ALL = (brightness, gamma, hsv, grey, gaussian, median3, median5, equalize, clahe, jpeg, downscale)
FASTER: Mapping[str, Recolour] = MappingProxyType({each.__name__: each for each in ALL})
