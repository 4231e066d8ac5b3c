"""Operations that spread grey levels by their histogram. Each says which class of albumentations 2.0.8 it equals."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hpe_core.augment.operations.pixels import joined, looked_up, places, rounded
from hpe_core.augment.table import Draws

TILES = 8  # CLAHE's grid, a side
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
XYZ_TO_RGB = ((3.240479, -1.53715, -0.498535), (-0.969256, 1.875991, 0.041556), (0.055648, -0.204043, 1.057311))
WHITE = (0.950456, 1.0, 1.088754)  # D65
STEPS, LAST = 2040, 4095  # of light, in OpenCV's tables: on the way to Lab, and back
BEND, SRGB_BEND = 6 / 29, 0.0031308  # where a cube root, and sRGB's power, go over into a line


def counts(levels_N: Tensor, groups: int, per_group: int) -> Tensor:
    """Whole numbers below groups * per_group -> how often each occurs, (groups, per_group), int32.

    torch.bincount asks the device how many there are, and waits for the answer.
    """
    found = torch.zeros(groups * per_group, dtype=torch.int32, device=levels_N.device)
    one = torch.ones(1, dtype=torch.int32, device=levels_N.device)
    return found.index_add_(0, levels_N, one.expand(levels_N.shape)).view(groups, per_group)


def equalize(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """Equalize: OpenCV's equalizeHist of each channel. A channel of one level stays."""
    faces, channels = len(x_BHWC), x_BHWC.shape[3]
    found = counts(places(x_BHWC, channels).flatten(), faces * channels, 256)
    below = found.cumsum(1).float()
    darkest = found.gt(0).to(torch.uint8).argmax(1, keepdim=True)
    darkest_count = found.gather(1, darkest).float()
    others = below[:, -1:] - darkest_count
    table = (below - darkest_count).mul_(255).div_(others.clamp(min=1)).clamp_(min=0)
    table += darkest * (1 - others.clamp(max=1))
    return looked_up(x_BHWC, rounded(table).view(faces, channels, 256))


def clahe(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """CLAHE: OpenCV's, 8 by 8 tiles, of the lightness of OpenCV's uint8 Lab."""
    lightness, a, b = to_lab(x_BHWC)
    return from_lab(spread(lightness, draws["clahe.clip"]).float(), a, b)


def spread(x_BHW: Tensor, clip_B: Tensor) -> Tensor:
    """OpenCV's CLAHE of uint8 planes: each tile's clipped histogram as a table, mixed with its neighbours' by place."""
    faces, height, width = x_BHW.shape
    device = x_BHW.device
    # Tiles are equal: a picture that they do not divide is mirrored beyond its right and lower edge.
    more = (-width % TILES, -height % TILES)
    whole = x_BHW.int()
    if any(more):
        whole = F.pad(x_BHW[:, None].float(), (0, more[0], 0, more[1]), mode="reflect")[:, 0].int()
    tall, wide = whole.shape[1] // TILES, whole.shape[2] // TILES
    first = torch.arange(0, faces * TILES**2 * 256, TILES**2 * 256, dtype=torch.int32, device=device)[:, None, None]
    row = torch.arange(TILES * tall, dtype=torch.int32, device=device) // tall * (TILES * 256)
    column = torch.arange(TILES * wide, dtype=torch.int32, device=device) // wide * 256
    found = counts((whole + first + (row[:, None] + column)).flatten(), faces * TILES**2, 256)
    limit = (clip_B * (tall * wide / 256)).floor_().clamp_(min=1).int()[:, None].expand(-1, TILES**2).reshape(-1, 1)
    beyond = (found - limit).clamp_(min=0).sum(1, keepdim=True, dtype=torch.int32)
    # What was cut off goes to all levels alike; the rest, one each, to some of them.
    some = leftovers(device).index_select(0, (beyond % 256)[:, 0])
    found = torch.minimum(found, limit).add_(beyond // 256).add_(some)
    tables = rounded(found.cumsum(1).float().mul_(255 / (tall * wide))).flatten()
    up, down, by_row = neighbours(height, tall, device)
    left, right, by_column = neighbours(width, wide, device)
    levels = x_BHW.int().add_(first)

    def looked(row: Tensor, column: Tensor) -> Tensor:
        at = levels + (row[:, None] * TILES + column) * 256
        return tables.index_select(0, at.flatten()).view(x_BHW.shape).float()

    upper = torch.lerp(looked(up, left), looked(up, right), by_column)
    lower = torch.lerp(looked(down, left), looked(down, right), by_column)
    return rounded(torch.lerp(upper, lower, by_row[:, None]))


@cache
def leftovers(device: torch.device) -> Tensor:
    """(256, 256): for so many left over, which levels get one more: every second, third ... from 0 on. uint8."""
    rest, levels = torch.arange(256, device=device)[:, None], torch.arange(256, device=device)
    step = 256 // rest.clamp(min=1)
    return ((levels % step == 0) & (levels // step < rest)).to(torch.uint8)


def neighbours(size: int, tile: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each row or column: the tiles before and behind it, and its way from one's middle to the other's."""
    at = torch.arange(size, dtype=torch.float32, device=device) / tile - 0.5
    before = at.floor()
    return before.clamp(min=0).int(), (before + 1).clamp(max=TILES - 1).int(), at - before


def to_lab(x_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """OpenCV's uint8 Lab: lightness as uint8; a and b, whole numbers around 128, as floats.

    OpenCV counts light in steps of 1/2040 and lightness in steps of 1/296 of the root; so do we, for CLAHE makes much
    of a difference of one level.
    """
    device = x_BHWC.device
    light = linear(torch.arange(256, dtype=torch.float32, device=device) / 255).mul_(STEPS).round_()
    roots = root(torch.arange(STEPS * 3 // 2, dtype=torch.float32, device=device) / STEPS)
    red, green, blue = light.index_select(0, x_BHWC.permute(3, 0, 1, 2).flatten().int()).view(3, *x_BHWC.shape[:3])
    fx, fy, fz = (
        roots.index_select(0, steps.add_(0.5).int().flatten()).view(steps.shape)
        for (r, g, b), white in zip(RGB_TO_XYZ, WHITE, strict=True)
        for steps in [(red * (r / white)).add_(green, alpha=g / white).add_(blue, alpha=b / white)]
    )
    lightness = rounded(fy * 296 - 40.8)
    return lightness, (fx - fy).mul_(500).add_(128.5).floor_(), (fy - fz).mul_(200).add_(128.5).floor_()


def from_lab(lightness: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Back to (B, H, W, 3)."""
    fy = (lightness / 2.55).add_(16).div_(116)
    x, y, z = (cube(f) for f in (fy + (a - 128).div_(500), fy, fy - (b - 128).div_(200)))
    grey_levels = rounded(display(torch.arange(LAST + 1, device=fy.device) / LAST).mul_(255))
    colours = []
    for row in XYZ_TO_RGB:
        of_x, of_y, of_z = (part * white * LAST for part, white in zip(row, WHITE, strict=True))
        light = (x * of_x).add_(y, alpha=of_y).add_(z, alpha=of_z).add_(0.5).clamp_(0, LAST)
        colours.append(grey_levels.index_select(0, light.int().flatten()).view(fy.shape))
    return joined(colours)


# Four curves, each a power above a bend and a line below it: the power of what lies above plus the line of what lies
# below, less the bend's own value, which both have counted.


def linear(value: Tensor) -> Tensor:
    """sRGB -> light, both 0 to 1."""
    bend = 12.92 * SRGB_BEND
    return ((value.clamp(min=bend) + 0.055) / 1.055).pow_(2.4) + (value.clamp(max=bend) - bend) / 12.92


def display(light: Tensor) -> Tensor:
    """Light -> sRGB, both 0 to 1; cut off below 0."""
    above = light.clamp(SRGB_BEND, 1).pow_(1 / 2.4).mul_(1.055).sub_(0.055)
    return above.add_(light.clamp(0, SRGB_BEND).sub_(SRGB_BEND), alpha=12.92)


def root(value: Tensor) -> Tensor:
    """Lab's cube root."""
    bend = BEND**3
    return value.clamp(min=bend).pow_(1 / 3).add_(value.clamp(max=bend).sub_(bend), alpha=1 / (3 * BEND**2))


def cube(value: Tensor) -> Tensor:
    """The inverse of `root`."""
    return value.clamp(min=BEND).pow(3).add_(value.clamp(max=BEND).sub_(BEND), alpha=3 * BEND**2)
