"""What lies over a face: shadows, holes, a sensor's noise. Each says which class of albumentations 2.0.8 it equals."""

import torch
from torch import Tensor

from hpe_core.augment.operations.pixels import a_face, joined, planes, rounded
from hpe_core.augment.table import Draws

CORNERS = 5
FAR = 1e6
MOST_PHOTONS = 4  # of a pixel; more have a chance of 7 in a million where noise and contrast are largest


def holes(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """CoarseDropout: rectangles of 0."""
    left, top, right, bottom = draws["holes.edges"].view(len(x_BHWC), -1, 4).unbind(-1)
    rows_BKH = between(x_BHWC.shape[1], top, bottom - 1).to(torch.uint8)
    columns_BKN = between(x_BHWC.shape[2], left, right - 1).to(torch.uint8).repeat_interleave(3, -1)
    kept_BHN = 1 - (rows_BKH[..., :, None] * columns_BKN[..., None, :]).amax(1)
    return (x_BHWC.flatten(2) * kept_BHN).view(x_BHWC.shape)


def between(size: int, first: Tensor, last: Tensor) -> Tensor:
    """1.0 at the whole numbers from `first` to `last` (whole too), 0.0 elsewhere: (..., size)."""
    at = torch.arange(size, dtype=torch.float32, device=first.device)
    return torch.minimum(at - (first - 1)[..., None], (last + 1)[..., None] - at).clamp_(0, 1)


def shadow(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """RandomShadow: one or two polygons in the lower half, each of which multiplies what it covers by `light`."""
    height, width = x_BHWC.shape[1:3]
    top = height // 2
    corners_BNK2 = draws["shadow.corners"].view(len(x_BHWC), -1, CORNERS, 2)
    covered_BNRW = polygons(corners_BNK2, torch.arange(top, height, device=x_BHWC.device), width)
    light_BRW = a_face(draws["shadow.light"], 3) ** covered_BNRW.sum(1)
    darker = rounded(x_BHWC[:, top:].float().mul_(light_BRW[..., None]))
    return torch.cat([x_BHWC[:, :top], darker], 1)


def polygons(corners: Tensor, rows_R: Tensor, width: int) -> Tensor:
    """1.0 where OpenCV's fillPoly fills, 0.0 elsewhere: (B, N, R, width).

    That is where a line to the left crosses an odd number of edges, and along the edges themselves.
    """
    x0, y0 = corners[..., None].unbind(-2)
    x1, y1 = corners.roll(-1, dims=-2)[..., None].unbind(-2)
    rise = y1 - y0
    level = 1 - rise.abs().clamp_(max=1)  # 1 for an edge along a row
    slope = (x1 - x0) / (rise + level)
    at = x0 + (rows_R - y0) * slope
    low, high = torch.minimum(y0, y1), torch.maximum(y0, y1)
    within = torch.minimum(rows_R - low + 1, high + 1 - rows_R).clamp_(0, 1)  # both ends
    crossed = within * torch.minimum(high - rows_R, torch.ones_like(at))  # without the lower end
    columns = torch.arange(width, dtype=torch.float32, device=corners.device)
    start = at.ceil() + FAR * (1 - crossed)
    left_of = (columns - (start - 1)[..., None]).clamp_(0, 1).sum(-3)
    odd = left_of - 2 * (left_of / 2).floor_()
    reach = slope.abs().clamp(min=1) / 2 + FAR * level
    first = torch.maximum((at * (1 - level) + x0 * level - reach).ceil(), torch.minimum(x0, x1)) + FAR * (1 - within)
    last = torch.minimum((at * (1 - level) + x0 * level + reach).floor(), torch.maximum(x0, x1))
    return torch.maximum(odd, between(width, first, last).amax(-3))


def iso_noise(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """ISONoise: in HLS, every pixel's lightness gains intensity * (1 - lightness) for each photon of a Poisson draw,
    whose mean is the standard deviation of the face's lightness times intensity.

    A change of lightness alone scales a pixel's distances from its lightness by how much room is left to black and
    white, so nothing goes through HLS. albumentations turns hue too, by a normal draw of at most 0.025 degrees: less
    than half a grey level.
    """
    intensity = a_face(draws["iso_noise.intensity"], 3)
    red, green, blue = (plane.div_(255) for plane in planes(x_BHWC))
    light = torch.maximum(torch.maximum(red, green), blue).add_(torch.minimum(torch.minimum(red, green), blue)).div_(2)
    flat = light.flatten(1)
    spread = (flat.square().mean(1) - flat.mean(1).square_()).clamp_(min=0).sqrt_()  # a CPU takes long for `std`
    mean = a_face(spread, 3) * intensity
    chance = uniform(draws["iso_noise.seed"], light.shape[1] * light.shape[2]).view_as(light)
    photons = poisson(mean, chance)
    lighter = (light + photons.mul_(intensity).mul_(1 - light)).clamp_(max=1)
    room = (1 - (2 * lighter - 1).abs_()).div_((1 - (2 * light - 1).abs_()).clamp_(min=1e-6))
    return joined([rounded((plane - light).mul_(room).add_(lighter).mul_(255)) for plane in (red, green, blue)])


def poisson(mean: Tensor, chance: Tensor) -> Tensor:
    """Uniform draws -> Poisson draws of a small mean: how many terms of the distribution lie below each."""
    term = torch.exp(-mean)
    below, photons = term, torch.zeros_like(chance)
    for i in range(1, MOST_PHOTONS + 1):
        photons += (chance - below).mul_(2.0**30).clamp_(0, 1)  # 1 from there on: chances are multiples of 2^-24
        term = term * mean / i
        below = below + term
    return photons


def uniform(seeds_B: Tensor, count: int) -> Tensor:
    """(B,) whole seeds -> (B, count) numbers from 0 to 1, each a function of its seed and its place alone.

    A hash of the counter (Chris Wellons' lowbias32, twice), in int32, whose products wrap round on every device.
    """
    at = torch.arange(count, dtype=torch.int32, device=seeds_B.device)
    mixed = hashed(hashed(seeds_B.int())[:, None] ^ at)
    return ((mixed >> 8) & 0xFFFFFF).float() / 2**24


def hashed(x: Tensor) -> Tensor:
    """int32 -> int32. A shift to the right brings the sign in, hence the masks."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)
