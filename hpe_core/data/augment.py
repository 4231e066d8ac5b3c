"""Augmentation: pixels, angles and soft labels change together. The only file that touches albumentations.

Geometry first (flip, in-plane turn, window jitter), as one affine map of the canonical crop to the network's
window, then the papers' photometric chains. In a stretched crop a turn is S^-1 Rz S, else it would shear the head.

Soft labels: a flip reverses the yaw and roll bins, exactly. A turn moves each distribution by the change of the hard
label, which is exact for its mean where the teacher is right and leaves its shape. A jitter of a few pixels leaves
them: the offset ensemble is already a mean over such shifts.

Near 90 degrees of yaw a small turn swaps much of pitch for roll (the Euler angles' lock): the labels are right and no
network can follow them. `turn_gain` leaves such faces unturned (docs/results.md: what that is worth).
"""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.data.batch import PoseBatch
from hpe_core.geometry import rotation
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.crop import window
from hpe_core.spec.training import AugmentSpec

Values = NDArray[Any]  # one entry a face


class Augment:
    """Draws and applies one augmentation a face. All randomness comes from the generator that is passed in."""

    def __init__(self, spec: AugmentSpec, size: int, bins: AngleBins) -> None:
        self.spec, self.size, self.bins = spec, size, bins

    def __call__(self, batch: PoseBatch, random: np.random.Generator) -> PoseBatch:
        """Canonical crops -> windows of `size`, with labels moved along. The input is left as it was."""
        count, spec = len(batch), self.spec
        flips = random.random(count) < spec.flip
        turns = random.uniform(-spec.turn_deg, spec.turn_deg, count) if spec.turn_deg else np.zeros(count)
        jitter = random.integers(-spec.jitter_px, spec.jitter_px + 1, (count, 2))
        batch = move(batch, self.size, self.bins, flips, turns, jitter, spec.turn_gain)
        if spec.photometric != "none" and spec.strength > 0:
            pixels = batch.images_BHWC.cpu().numpy()
            chain = photometric_chain(spec.photometric, spec.strength)
            chain.set_random_seed(int(random.integers(2**31)))
            changed = np.stack([chain(image=picture)["image"] for picture in pixels])
            batch = replace(batch, images_BHWC=torch.from_numpy(changed).to(batch.images_BHWC.device))
        return batch


def move(
    batch: PoseBatch,
    size: int,
    bins: AngleBins,
    flips: Values,
    turns_deg: Values,
    jitter_px: Values,
    turn_gain: float = 0,
) -> PoseBatch:
    """Flip (B,) bool, then turn (B,) degrees clockwise, then look (B, 2) whole pixels (dx, dy) aside.

    With `turn_gain`, a face of which an angle would change by more than so many times its turn is not turned.
    """
    before = batch.angles_B3.cpu().numpy()
    angles = np.where(flips[:, None], rotation.mirror(before), before)
    turned = rotation.turn(angles, turns_deg) if np.any(turns_deg) else angles
    # A turned profile can leave the grid, and near 90 degrees of yaw pitch and roll run away from it.
    beyond = np.abs(turned).max(axis=1) > bins.limit
    if turn_gain:
        beyond |= rotation.angle_error(turned, angles).max(axis=1) > turn_gain * np.abs(turns_deg) + 1e-6
    turns_deg, turned = np.where(beyond, 0.0, turns_deg), np.where(beyond[:, None], angles, turned)
    soft = batch.soft_B3N
    if soft is not None:
        flipped = torch.as_tensor(flips, device=soft.device)[:, None, None]
        soft = torch.where(flipped, bins.mirror(soft), soft)
        if np.any(turns_deg):
            by = torch.as_tensor(turned - angles, dtype=torch.float32, device=soft.device)
            by = (by + 180.0) % 360.0 - 180.0
            soft = bins.shift(soft.float().exp(), by).clamp_min(1e-7).log().half()
    if np.any(turns_deg):
        images = _warp(batch.images_BHWC, batch.scales_B2, size, flips, turns_deg, jitter_px)
    else:
        images = _slice(batch.images_BHWC, size, flips, jitter_px)
    return replace(
        batch,
        images_BHWC=images,
        angles_B3=torch.as_tensor(turned, dtype=torch.float32, device=batch.angles_B3.device),
        soft_B3N=soft,
    )


def center_window(batch: PoseBatch, size: int) -> PoseBatch:
    """No augmentation: the window at offset (0, 0)."""
    return replace(batch, images_BHWC=window(batch.images_BHWC, size))


def _slice(crops_BHWC: Tensor, size: int, flips: Values, jitter_px: Values) -> Tensor:
    """Without a turn every window is whole pixels: a gather, no resampling."""
    margin = (crops_BHWC.shape[1] - size) // 2
    assert np.abs(jitter_px).max(initial=0) <= margin, f"a jitter beyond the stored margin of {margin} pixels"
    device = crops_BHWC.device
    steps = np.arange(size)
    rows = torch.as_tensor(margin + jitter_px[:, 1:2] + steps, device=device)
    columns = margin + jitter_px[:, 0:1] + steps
    columns = np.where(flips[:, None], crops_BHWC.shape[2] - 1 - columns, columns)
    index = torch.arange(len(flips), device=device)[:, None, None]
    return crops_BHWC[index, rows[:, :, None], torch.as_tensor(columns, device=device)[:, None, :]]


def _warp(
    crops_BHWC: Tensor, scales_B2: Tensor, size: int, flips: Values, turns_deg: Values, jitter_px: Values
) -> Tensor:
    """Sample the window through p_in = F S^-1 Rz(-turn) S (p_out + jitter), about the crop's centre, linearly."""
    stored = crops_BHWC.shape[1]
    radians = np.radians(turns_deg)
    cos, sin = np.cos(radians), np.sin(radians)
    ratio = (scales_B2[:, 1] / scales_B2[:, 0]).cpu().numpy().astype(np.float64)  # s_y / s_x
    back = np.stack([np.stack([cos, sin * ratio], -1), np.stack([-sin / ratio, cos], -1)], -2)
    back[:, 0] *= np.where(flips, -1.0, 1.0)[:, None]
    theta = np.concatenate([back * (size / stored), back @ jitter_px[:, :, None] * (2 / stored)], axis=2)
    theta_B23 = torch.as_tensor(theta, dtype=torch.float32, device=crops_BHWC.device)
    grid = F.affine_grid(theta_B23, [len(flips), 3, size, size], align_corners=False)
    pixels = crops_BHWC.permute(0, 3, 1, 2).float()
    out = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@cache
def photometric_chain(name: str, strength: float) -> Any:
    """An albumentations chain for uint8 RGB pictures; `strength` scales the probability of every part."""
    import albumentations as A

    s = strength
    if name == "light":
        parts = [
            A.RandomBrightnessContrast(0.25, 0.25, p=0.6 * s),
            A.HueSaturationValue(10, 25, 0, p=0.3 * s),
            A.GaussianBlur(blur_limit=(3, 3), p=0.15 * s),
        ]
    elif name == "ehpnet":  # EHPNet 4.2: down-up sampling, brightness and contrast, Gaussian kernel
        parts = [
            A.Downscale(scale_range=(0.35, 0.9), p=0.5 * s),
            A.RandomBrightnessContrast(0.3, 0.3, p=0.5 * s),
            A.GaussianBlur(blur_limit=(3, 5), p=0.3 * s),
        ]
    else:  # offsets 4.3, in its order
        assert name == "offsets", name
        parts = [
            A.OneOf([A.HueSaturationValue(p=1), A.CLAHE(p=1), A.Equalize(p=1), A.Solarize(p=1)], p=0.5 * s),
            A.OneOf([A.ChannelShuffle(p=1), A.ChannelDropout(p=1)], p=0.5 * s),
            A.MedianBlur(blur_limit=(3, 5), p=0.5 * s),
            A.OneOf([A.RandomShadow(p=1), A.ISONoise(p=1)], p=0.5 * s),
            A.CoarseDropout(p=0.5 * s),
        ]
    return A.Compose(parts)
