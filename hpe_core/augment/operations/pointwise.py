"""Operations that change each pixel by itself. Each says which class of albumentations 2.0.8 it equals."""

import torch
from torch import Tensor

from hpe_core.augment.operations.pixels import a_face, bands, joined, looked_up, planes, rounded, to_bytes
from hpe_core.augment.table import Draws


def brightness(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """RandomBrightnessContrast: gain * x + shift, cut off."""
    gain, shift = (a_face(draws[f"brightness.{name}"], 4) for name in ("gain", "shift"))
    return to_bytes(x_BHWC.float().mul_(gain).add_(shift))


def gamma(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """RandomGamma: 255 (x / 255)^power, cut off."""
    levels = torch.arange(256, device=x_BHWC.device) / 255
    return looked_up(x_BHWC, to_bytes(levels.pow(draws["gamma.power"][:, None, None]) * 255))


def grey(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """ToGray: OpenCV's RGB2GRAY in all three channels."""
    red, green, blue = planes(x_BHWC)
    luma_BHW = rounded(red.mul_(0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114))
    return joined([luma_BHW] * 3)


def solarize(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """Solarize at one half: 255 - x from 128 on."""
    return torch.minimum(x_BHWC, ~x_BHWC)


def shuffle(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """ChannelShuffle: channel c comes from source[c]."""
    width = x_BHWC.shape[2]
    pixels = torch.arange(0, 3 * width, 3, device=x_BHWC.device)
    source_BN = (pixels[:, None] + draws["shuffle.source"].long()[:, None, :]).flatten(1)
    rows_BHN = x_BHWC.flatten(2)
    return rows_BHN.gather(2, source_BN[:, None, :].expand(rows_BHN.shape)).view(x_BHWC.shape)


def drop_channel(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """ChannelDropout: one channel is 0."""
    channels = torch.arange(3, device=x_BHWC.device)
    kept_BC = (channels != draws["drop_channel.channel"][:, None]).to(torch.uint8)
    return (x_BHWC.flatten(2) * kept_BC.repeat(1, x_BHWC.shape[2])[:, None, :]).view(x_BHWC.shape)


def hsv(x_BHWC: Tensor, draws: Draws) -> Tensor:
    """HueSaturationValue: to OpenCV's uint8 HSV, whole steps there, and back. What is grey stays grey.

    Hue is 0 to 180, saturation and value 0 to 255. OpenCV rounds them on the way there and cuts off on the way back; so
    do we, else a saturated pixel would come back up to four levels off.
    """
    red, green, blue = bands(x_BHWC)
    hue_step, saturation_step, value_step = (a_face(draws[f"hsv.{name}"], 3) for name in ("hue", "saturation", "value"))
    largest = torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - torch.minimum(torch.minimum(red, green), blue)
    # 0 where a channel is the largest, 1 where it is not; red goes before green, green before blue.
    not_red, not_green = (largest - red).clamp_(max=1), (largest - green).clamp_(max=1)
    value, chroma = largest.float(), chroma.float()
    hue = sixths(red.short(), green.short(), blue.short(), chroma.short(), not_red.short(), not_green.short()).float()
    hue.mul_(30).div_(chroma.clamp(min=1)).add_(0.5).floor_().add_(hue_step)
    hue.sub_((hue / 180).floor_(), alpha=180).div_(30)
    saturation = chroma.mul_(255).div_(value.clamp(min=1)).add_(0.5).floor_()
    coloured = saturation.clamp(max=1)
    saturation.add_(saturation_step).clamp_(0, 255).mul_(coloured)
    value.add_(value_step).clamp_(0, 255).add_(1e-3)  # lest a whole number be cut off to the one below
    return from_hsv(hue, saturation.mul_(value).div_(255), value)


def sixths(red: Tensor, green: Tensor, blue: Tensor, chroma: Tensor, not_red: Tensor, not_green: Tensor) -> Tensor:
    """Hue (-1 to 5) times chroma: green less blue around red, and so on by twos. int16; uses the channels up."""
    around_red = green - blue
    around_blue = torch.sub(red, green, out=green).add_(chroma, alpha=4)
    around_green = blue.sub_(red).add_(chroma, alpha=2)
    around_blue.sub_(around_green).mul_(not_green).add_(around_green)
    return around_blue.sub_(around_red).mul_(not_red).add_(around_red)


def from_hsv(hue: Tensor, chroma: Tensor, value: Tensor) -> Tensor:
    """Hue of 0 to 6, the distance of the largest channel from the smallest, and the largest -> (B, H, W, 3).

    A channel lacks no chroma within one sixth of its own hue, all of it from two sixths on, and a share between.
    """
    red_far, green_far, blue_far = ((hue - at).abs_().clamp_(1, 2) for at in (3, 2, 4))  # red from its opposite
    above = value + chroma
    colours = [
        value.sub_(chroma, alpha=2).addcmul_(chroma, red_far),
        above.addcmul(chroma, green_far, value=-1),
        above.addcmul_(chroma, blue_far, value=-1),
    ]
    return joined([to_bytes(colour) for colour in colours])
