"""Between uint8 pixels and the numbers that an operation counts in.

Written for one thread of a CPU as much as for a GPU, which does not mind: arithmetic in place of comparisons and
`where`, casts through int16, whole rows (B, H, W * 3) wherever a number of a channel or column meets pixels. Each is
three to fifty times as fast as what one would write first (docs/augmentation.md).

Legend: B faces, H rows, W columns, C the channels red, green, blue, N = W * C.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_bytes(levels: Tensor) -> Tensor:
    """Floats -> uint8, cut off below 0, above 255 and behind the point. The input is used up."""
    return levels.clamp_(0, 255).to(torch.int16).to(torch.uint8)  # a CPU takes four times as long for a direct cast


def rounded(levels: Tensor) -> Tensor:
    """Floats -> the nearest uint8. The input is used up."""
    return to_bytes(levels.add_(0.5))


def bands(x_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Red, green and blue as they are, (B, H, W) each."""
    red, green, blue = x_BHWC.permute(3, 0, 1, 2).contiguous()
    return red, green, blue


def planes(x_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Red, green and blue as floats."""
    red, green, blue = bands(x_BHWC)
    return red.float(), green.float(), blue.float()


def joined(planes_BHW: Sequence[Tensor]) -> Tensor:
    """Three uint8 planes -> (B, H, W, 3)."""
    return torch.stack(list(planes_BHW), dim=-1)


def looked_up(x_BHWC: Tensor, table_BCV: Tensor) -> Tensor:
    """Every grey level replaced by a face's own table of 256, one for all channels or one for each."""
    index = places(x_BHWC, table_BCV.shape[1])
    return table_BCV.flatten().index_select(0, index.flatten()).view(x_BHWC.shape)


def places(x_BHWC: Tensor, channels: int) -> Tensor:
    """Where each grey level stands in (B, channels, 256) tables that lie behind each other: (B, H, N), int32."""
    faces, _, width, _ = x_BHWC.shape
    index = x_BHWC.flatten(2).int()
    first = torch.arange(0, faces * channels * 256, channels * 256, dtype=torch.int32, device=index.device)
    index += first[:, None, None]
    if channels > 1:
        index += torch.arange(0, channels * 256, 256, dtype=torch.int32, device=index.device).repeat(width)
    return index


def put(x_BHWC: Tensor, faces: Tensor, changed_BHWC: Tensor) -> None:
    """The changed faces in their places. Eight bytes at once where that divides a face: a CPU copies one by one."""
    whole, part = x_BHWC.view(len(x_BHWC), -1), changed_BHWC.flatten(1)  # a copy of the whole would be lost
    if whole.shape[1] % 8 == 0:
        whole, part = whole.view(torch.int64), part.view(torch.int64)
    whole.index_copy_(0, faces, part)


def padded(x_BHWC: Tensor, by: int, mirrored: bool) -> Tensor:
    """`by` rows and columns more on every side: the outermost again, or the picture mirrored at its outermost.

    OpenCV calls them BORDER_REPLICATE and BORDER_REFLECT_101.
    """
    for dim in (1, 2):
        last = x_BHWC.shape[dim] - 1
        steps = [i if mirrored else 0 for i in range(1, by + 1)]
        before = [x_BHWC.narrow(dim, i, 1) for i in reversed(steps)]
        x_BHWC = torch.cat([*before, x_BHWC, *(x_BHWC.narrow(dim, last - i, 1) for i in steps)], dim)
    return x_BHWC


def a_face(column_B: Tensor, dims: int) -> Tensor:
    """(B,) -> (B, 1, 1, ...) of so many dimensions, to meet pixels."""
    return column_B.view(-1, *[1] * (dims - 1))
