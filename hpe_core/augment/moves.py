"""Flip, in-plane turn, zoom and window jitter: one affine map of the canonical crop to the network's window.

Chance and angles are the host's (float64, one epoch at once); pixels and soft labels are moved on the device. In a
stretched crop a turn is S^-1 Rz S, else it would shear the head.

Soft labels are moved by their form. In bins a flip reverses yaw and roll, exactly, and a turn moves each distribution
by the change of the hard label, which is exact for its mean where the teacher is right and leaves its shape. Mean
rotations are mirrored and turned as rotations, exactly. A jitter of a few pixels leaves them: the offset ensemble is
already a mean over such shifts. So does a zoom: the pose is the same in a wider or a tighter box.

Landmarks are moved as the pixels are.

Near 90 degrees of yaw a small turn swaps much of pitch for roll (the Euler angles' lock): the labels are right and no
network can follow them. `turn_gain` leaves such faces unturned (docs/results.md: what that is worth).
"""

import functools
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpe_core.augment.table import Columns, Draws, Table, Values
from hpe_core.data.batch import PoseBatch
from hpe_core.geometry import rotation
from hpe_core.geometry.crop import window
from hpe_core.geometry.forms import Form
from hpe_core.geometry.landmarks import MIRROR_68


def random_zooms(zoom: float, count: int, random: np.random.Generator) -> Values | None:
    """Factors between 1 / (1 + zoom) and 1 + zoom, as often above one as below; None without a zoom."""
    reach = np.log1p(zoom)
    return np.exp(random.uniform(-reach, reach, count)) if zoom else None


def motions(
    angles_M3: Values,
    scales_M2: Values,
    limit_deg: float,
    flips: Values,
    turns_deg: Values,
    jitter_px: Values,
    turn_gain: float = 0,
    zooms: Values | None = None,
) -> Columns:
    """What happens to each face: flip (M,) bool, then a turn (M,) in degrees clockwise, then a window whose sides are
    `zooms` (M,) times as long, then a look (M, 2) whole pixels of that window (dx, dy) aside; and the label that it
    then has.

    With `turn_gain`, a face of which an angle would change by more than so many times its turn is not turned.
    """
    before = np.asarray(angles_M3, np.float64)
    angles = np.where(flips[:, None], rotation.mirror(before), before)
    columns: Columns = {"flip": flips, "jitter": jitter_px}
    turns = np.any(turns_deg)
    if zooms is None and not turns:
        return columns | {"angles": angles}
    turned = rotation.turn(angles, turns_deg)
    # A turned profile can leave the grid, and near 90 degrees of yaw pitch and roll run away from it.
    beyond = (turns_deg == 0) | (np.abs(turned).max(axis=1) > limit_deg)
    if turn_gain:
        beyond |= rotation.angle_error(turned, angles).max(axis=1) > turn_gain * np.abs(turns_deg) + 1e-6
    turned = np.where(beyond[:, None], angles, turned)
    radians = np.radians(np.where(beyond, 0.0, turns_deg))
    cos, sin = np.cos(radians), np.sin(radians)
    ratio = scales_M2[:, 1].astype(np.float64) / scales_M2[:, 0]  # s_y / s_x
    back = np.stack([cos, sin * ratio, -sin / ratio, cos], -1).reshape(-1, 2, 2)
    back[:, 0] *= np.where(flips, -1.0, 1.0)[:, None]
    if zooms is not None:
        back *= zooms[:, None, None]
    columns |= {"angles": turned, "back": back.reshape(-1, 4)}
    if not turns:
        return columns
    # From number to number, as bins lie: of a roll of 170 that becomes one of -170 they go down by 340, not up by 20.
    return columns | {"shift": turned - angles, "turn": np.where(beyond, 0.0, turns_deg)}


def moved(batch: PoseBatch, draws: Draws, size: int, form: Form) -> PoseBatch:
    """Canonical crops -> windows of `size` with their labels, by the columns of `motions`."""
    soft = batch.soft_B3N
    if soft is not None:
        shift, turn = (draws["shift"], draws["turn"]) if "turn" in draws else (None, None)
        soft = form.moved(soft, draws["flip"], shift, turn)
    images = (_warp if "back" in draws else _slice)(batch.images_BHWC, draws, size)
    marks = None if batch.landmarks_BL3 is None else _points(batch.landmarks_BL3, draws)
    return PoseBatch(images, draws["angles"], None, soft, marks)


def move(
    batch: PoseBatch,
    size: int,
    form: Form,
    flips: Values,
    turns_deg: Values,
    jitter_px: Values,
    turn_gain: float = 0,
    zooms: Values | None = None,
) -> PoseBatch:
    """One batch of canonical crops moved as it is told; see `motions`."""
    margin = (batch.images_BHWC.shape[1] - size) // 2
    assert np.abs(jitter_px).max(initial=0) <= margin, f"a jitter beyond the stored margin of {margin} pixels"
    assert batch.scales_B2 is not None, "crops that were moved before"
    angles, scales = batch.angles_B3.cpu().numpy(), batch.scales_B2.cpu().numpy()
    columns = motions(angles, scales, form.limit, flips, turns_deg, jitter_px, turn_gain, zooms)
    draws = Table(columns, {}, batch.images_BHWC.device).rows(0, len(batch))
    return replace(moved(batch, draws, size, form), scales_B2=batch.scales_B2)


def center_window(batch: PoseBatch, size: int) -> PoseBatch:
    """No augmentation: the window at offset (0, 0)."""
    return replace(batch, images_BHWC=window(batch.images_BHWC, size))


def _slice(crops_BHWC: Tensor, draws: Draws, size: int) -> Tensor:
    """Without a turn and a zoom every window is whole pixels: a gather, no resampling."""
    stored, device = crops_BHWC.shape[1], crops_BHWC.device
    margin, steps = (stored - size) // 2, torch.arange(size, device=device)
    jitter = draws["jitter"].long()
    rows, columns = (margin + jitter[:, axis : axis + 1] + steps for axis in (1, 0))
    columns = torch.where(draws["flip"][:, None] > 0, stored - 1 - columns, columns)
    index = torch.arange(len(jitter), device=device)[:, None, None]
    return crops_BHWC[index, rows[:, :, None], columns[:, None, :]]


def _points(landmarks_BL3: Tensor, draws: Draws) -> Tensor:
    """Landmarks go with the pixels: p_out = (zoom F S^-1 Rz(-turn) S)^-1 p_in - jitter. A flip exchanges sides."""
    flip = draws["flip"] > 0
    mirrored = landmarks_BL3.index_select(1, _mirror_68(landmarks_BL3.device))
    marks = torch.where(flip[:, None, None], mirrored, landmarks_BL3)
    if "back" in draws:
        a, b, c, d = draws["back"].unbind(1)
        forth = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]
        places = marks[..., :2] @ forth.mT
    else:
        sides = torch.stack([torch.where(flip, -1.0, 1.0), torch.ones_like(draws["flip"])], 1)
        places = marks[..., :2] * sides[:, None]
    return torch.cat([places - draws["jitter"][:, None], marks[..., 2:]], -1)


@functools.cache
def _mirror_68(device: torch.device) -> Tensor:
    """Once for each device: a step that made it anew would wait for a copy."""
    return torch.from_numpy(MIRROR_68).to(device)


def _warp(crops_BHWC: Tensor, draws: Draws, size: int) -> Tensor:
    """Sample the window through p_in = zoom F S^-1 Rz(-turn) S (p_out + jitter), about the crop's centre, linearly."""
    stored = crops_BHWC.shape[1]
    back = draws["back"].view(-1, 2, 2)
    theta_B23 = torch.cat([back * (size / stored), back @ draws["jitter"][:, :, None] * (2 / stored)], dim=2)
    grid = F.affine_grid(theta_B23, [len(back), 3, size, size], align_corners=False)
    pixels = crops_BHWC.permute(0, 3, 1, 2).float()
    out = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
