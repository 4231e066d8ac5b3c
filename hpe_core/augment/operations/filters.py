"""Operations that look at a pixel's neighbours. Each says which class of albumentations 2.0.8 it equals."""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from hpe_core.augment.operations.pixels import a_face, padded, rounded
from hpe_core.augment.table import Draws

Exchange = Callable[[Tensor, Tensor], Tensor]


def gaussian(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """GaussianBlur: a symmetric kernel along columns, then along rows, of the picture mirrored at its edge."""
    weights = draws["gaussian.weights"]
    reach = weights.shape[1] - 1
    levels = padded(x_BHWC, reach, mirrored=True).float()
    for dim in (1, 2):
        count = x_BHWC.shape[dim]
        total = levels.narrow(dim, reach, count) * a_face(weights[:, 0], 4)
        both = torch.empty_like(total)
        for i in range(1, reach + 1):
            torch.add(levels.narrow(dim, reach - i, count), levels.narrow(dim, reach + i, count), out=both)
            total.addcmul_(both, a_face(weights[:, i], 4))
        levels = total
    return rounded(levels)


def downscale(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """Downscale: to `scale` of the size and back, each time by the nearest pixel to the upper left (INTER_NEAREST)."""
    faces, height, width, channels = x_BHWC.shape
    scale = draws["downscale.scale"].double()
    rows_BH = nearest(height, scale) + torch.arange(0, faces * height, height, device=x_BHWC.device)[:, None]
    columns_BW = nearest(width, scale) * channels
    columns_BN = (columns_BW[:, :, None] + torch.arange(channels, device=x_BHWC.device)).flatten(1)
    rows = x_BHWC.view(faces * height, width * channels)
    chosen_BHN = rows.index_select(0, rows_BH.flatten()).view(faces, height, -1)
    return chosen_BHN.gather(2, columns_BN[:, None, :].expand(chosen_BHN.shape)).view(x_BHWC.shape)


def nearest(size: int, scale_B: Tensor) -> Tensor:
    """Which pixel of `size` each one shows after a resize to `scale` and back, in OpenCV's arithmetic: (B, size)."""
    small = (size * scale_B).round_().clamp_(min=1)[:, None]
    growth = torch.full_like(small, size).div_(small)  # a number / a tensor is a product with 1 / the tensor
    back = torch.minimum((torch.arange(size, device=scale_B.device) * (1 / growth)).floor_(), small - 1)
    return (back * (1 / scale_B)[:, None]).floor_().clamp_(max=size - 1).long()


def median3(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """MedianBlur of 3x3 pixels, the outermost repeated."""
    return median(x_BHWC, 3)


def median5(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """MedianBlur of 5x5 pixels, the outermost repeated."""
    return median(x_BHWC, 5)


def median(x_BHWC: Tensor, size: int) -> Tensor:
    """The median of every window, by exchanges of smaller and larger.

    Each column of a window is sorted first, once for all windows that share it; then each rank is sorted over the
    columns. At place (i, j) of such a square, (i + 1)(j + 1) - 1 values are no larger, and likewise backwards. A value
    with more than half of all below it, or above it, is not the median; as many of one kind as of the other go.
    """
    height, width, half = *x_BHWC.shape[1:3], size * size // 2
    wide = padded(x_BHWC, size // 2, mirrored=False)
    ranks = kept([wide.narrow(1, i, height) for i in range(size)], 0, size)
    left: list[Tensor] = []
    for i, rank in enumerate(ranks):
        may = [j for j in range(size) if (i + 1) * (j + 1) - 1 <= half and (size - i) * (size - j) - 1 <= half]
        left += kept([rank.narrow(2, j, width) for j in range(size)], may[0], may[-1] + 1)
    # Of any half and two more, the smallest and the largest are not the median.
    few = len(left) // 2 + 2
    among, rest = left[:few], left[few:]
    while len(among) > 1:
        among = kept(among, 1, len(among) - 1) + rest[:1]
        rest = rest[1:]
    return among[0]


def kept(values: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
    """Elementwise, the values of rank `start` up to `stop`, in any order; sorted if that is all of them."""
    values, count, out = list(values), len(values), list[Tensor]()
    if start == 0 and stop == count:
        for _ in range(count - 1):
            smallest, values = peeled(values, torch.minimum, torch.maximum)
            out.append(smallest)
        return out + values
    if start > 0 and stop < count:
        assert start == count - stop == 1, "the smallest and the largest alone"
        half = count // 2
        pairs = list(zip(values[:half], values[::-1], strict=False))
        alone = values[half : count - half]  # of an odd number: it may be the smallest or the largest
        lower = peeled([torch.minimum(*pair) for pair in pairs] + alone, torch.minimum, torch.maximum)[1]
        upper = [torch.maximum(*pair) for pair in pairs] + ([lower.pop()] if alone else [])
        return lower + peeled(upper, torch.maximum, torch.minimum)[1]
    outer, inner = (torch.minimum, torch.maximum) if start == 0 else (torch.maximum, torch.minimum)
    if stop - start > count // 2:
        for _ in range(count - stop + start):
            values = peeled(values, inner, outer)[1]
        return values
    for _ in range(stop - start - 1):
        extreme, values = peeled(values, outer, inner)
        out.append(extreme)
    return [*out, reduce(outer, values)]


def peeled(values: Sequence[Tensor], outer: Exchange, inner: Exchange) -> tuple[Tensor, list[Tensor]]:
    """The extreme of all, and the others: one less."""
    extreme, rest = values[0], []
    for value in values[1:]:
        rest.append(inner(extreme, value))
        extreme = outer(extreme, value)
    return extreme, rest
