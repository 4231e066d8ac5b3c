"""JPEG at a quality of each face's own, as libjpeg-turbo codes and decodes it for OpenCV: baseline, chroma halved.

Entropy coding loses nothing and is left out. What is lost: whole numbers after the change of colours, chroma of two
by two pixels in one, coefficients in whole steps. Source: ITU-T T.81 (tables of Annex K, the transform of A.3.3) and
the choices of libjpeg-turbo's defaults (biases of halving, the triangle filter of doubling).
"""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpe_core.augment.operations.pixels import joined, planes, to_bytes
from hpe_core.augment.table import Draws, sent

BLOCK = 8
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)


def jpeg(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """ImageCompression. It hands RGB to an encoder that expects BGR, so red and blue change places; we do the same."""
    height, width = x_BHWC.shape[1:3]
    blue, green, red = planes(x_BHWC)
    # All are centred on 0, as the transform wants them.
    luma = green.mul_(0.587).add_(red, alpha=0.299).add_(blue, alpha=0.114)
    chroma = torch.stack([blue, red]).sub_(luma)
    chroma[0].mul_(1 / 1.772)
    chroma[1].mul_(1 / 1.402)
    steps = quantisation(x_BHWC.device).index_select(0, draws["jpeg.quality"].int())
    luma = coded(filled(luma.round_().sub_(128), 2 * BLOCK), steps[:, 0])[:, :height, :width]
    chroma = halved(filled(chroma.round_().flatten(0, 1), 2 * BLOCK))
    chroma = coded(chroma, steps[:, 1].repeat(2, 1, 1))[:, : (height + 1) // 2, : (width + 1) // 2]
    blueness, redness = doubled(chroma)[:, :height, :width].chunk(2)
    luma = luma + 128.5
    red = luma.add(redness, alpha=1.402)
    blue = luma.add(blueness, alpha=1.772)
    green = luma.sub_(redness, alpha=0.714136286).sub_(blueness, alpha=0.344136286)
    return joined([to_bytes(plane) for plane in (blue, green, red)])


def filled(plane_BHW: Tensor, multiple: int) -> Tensor:
    """The last row and column again, until the sides are multiples."""
    height, width = plane_BHW.shape[1:]
    if height % multiple == width % multiple == 0:
        return plane_BHW
    return F.pad(plane_BHW[:, None], (0, -width % multiple, 0, -height % multiple), mode="replicate")[:, 0]


def halved(plane_BHW: Tensor) -> Tensor:
    """The mean of two by two pixels; its half is rounded down and up by turns, along the columns."""
    tall = plane_BHW[:, ::2] + plane_BHW[:, 1::2]
    total = tall[:, :, ::2] + tall[:, :, 1::2]
    bias = 1 + torch.arange(total.shape[2], device=total.device) % 2
    return total.add_(bias).div_(4).floor_()


def doubled(plane_BHW: Tensor) -> Tensor:
    """Twice as many rows and columns, each three parts its own pixel and one part the next: libjpeg's triangle."""
    rows, columns = (triangle(size, plane_BHW.device) for size in plane_BHW.shape[1:])
    bias = (8 - torch.arange(2 * plane_BHW.shape[2], device=plane_BHW.device) % 2) / 16
    return (rows @ plane_BHW @ columns.T).add_(bias).floor_()


@cache
def triangle(size: int, device: torch.device) -> Tensor:
    """(2 size, size): the share of each old place in each new one."""
    new, old = torch.arange(2 * size, device=device)[:, None], torch.arange(size, device=device)
    other = (new // 2 + 2 * (new % 2) - 1).clamp(0, size - 1)
    return (old == new // 2) * 0.75 + (old == other) * 0.25


def coded(plane_BHW: Tensor, steps_BKK: Tensor) -> Tensor:
    """Each block of 8 by 8 to its 64 coefficients, those to whole steps, and back; whole numbers from -128 to 127.

    libjpeg's transform gives whole eighths, so that halves are common: it rounds them away from zero, and up on the way
    back.
    """
    basis, (faces, height, width) = cosines(plane_BHW.device), plane_BHW.shape
    steps, cut = steps_BKK.view(faces, 1, BLOCK**2), (height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    blocks = plane_BHW.unflatten(2, cut[2:]).unflatten(1, cut[:2]).transpose(2, 3).reshape(faces, -1, BLOCK**2)
    found = (blocks @ (basis * 8)).round_().div_(steps * (8 - 1e-4)).round_().mul_(steps) @ basis.T
    found = found.add_(0.5 + 1e-3).floor_().clamp_(-128, 127)
    return found.view(faces, cut[0], cut[2], BLOCK, BLOCK).transpose(2, 3).reshape(plane_BHW.shape)


@cache
def cosines(device: torch.device) -> Tensor:
    """(64, 64): the value at each pixel of a block (rows) of each basis function (columns); orthonormal."""
    at = torch.arange(BLOCK, dtype=torch.float64, device=device)
    line = torch.cos((2 * at[:, None] + 1) * at * (math.pi / (2 * BLOCK))) / 2
    line[:, :1] *= math.sqrt(0.5)
    return torch.kron(line, line).float()


@cache
def quantisation(device: torch.device) -> Tensor:
    """(101, 2, 8, 8): the steps of luma and of chroma at each quality: Annex K's tables, libjpeg's scale."""
    quality = np.arange(101)
    percent = np.where(quality < 50, 5000 // quality.clip(1), 200 - 2 * quality)
    steps = (np.array([LUMA, CHROMA]) * percent[:, None, None, None] + 50) // 100
    return sent(steps.clip(1, 255).astype(np.float32), device)
