"""Weights and what they mean, together: `model.safetensors` beside `model.json` (network spec, crop, bins).

A folder with these two files is a network that any stage, the predictor or a user can load; there is no other way to
hand one on. Loading never unpickles.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hpe_core.errors import SpecError, check
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.rotation import CONVENTION
from hpe_core.networks.models import PoseNet
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import MEANING, WEIGHTS, NetSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import no_start
from hpe_core.system.files import replacing, write_json


@dataclass(frozen=True, eq=False)
class SavedNet:
    """A network read back: the module in eval mode, its crop contract, and what was noted when it was saved."""

    net: PoseNet
    crop: CropSpec
    notes: dict[str, Any]


def save_net(folder: Path, net: PoseNet, crop: CropSpec, notes: dict[str, Any], state: dict | None = None) -> None:
    """Write a network (or another state of it, e.g. the averaged weights) into a folder; the meaning comes last."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in (state or net.state_dict()).items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    meaning = {"net": to_dict(net.spec), "crop": to_dict(crop), "convention": CONVENTION, "notes": notes}
    write_json(folder / MEANING, meaning)


def load_net(folder: Path, device: torch.device | str = "cpu") -> SavedNet:
    """Read a network back in eval mode. Raises SpecError that names the folder or what does not fit."""
    try:
        meaning = json.loads((folder / MEANING).read_text())
        state = load_file(folder / WEIGHTS)
        convention, notes = meaning["convention"], dict(meaning["notes"])
    except (OSError, ValueError, TypeError, LookupError, SafetensorError) as error:
        raise SpecError(f"{folder} does not hold a saved network ({WEIGHTS}, {MEANING}): {_line(error)}") from None
    if convention != CONVENTION:
        raise SpecError(f"{folder} was saved with another angle convention: {convention}")
    try:
        crop = build(CropSpec, meaning.get("crop"))
        net = PoseNet(build(NetSpec, {**meaning["net"], "pretrained": "none"}), crop.size)
        net.load_state_dict(state)
    except (SpecError, TypeError, LookupError, RuntimeError) as error:  # RuntimeError: weights of another network
        raise SpecError(f"{folder}: {MEANING} and {WEIGHTS} are no network of this project: {_line(error)}") from None
    return SavedNet(net.to(device).eval(), crop, notes)


def _line(error: Exception) -> str:
    said = " ".join(str(error).split())[:160]
    return f"there is no {said}" if isinstance(error, KeyError) else said


@torch.no_grad()
def start_from(net: PoseNet, crop: CropSpec, folder: Path) -> None:
    """Give a network the weights of a saved one, for fine-tuning. A head of other bins is remapped, one of
    another kind begins anew, and so does a decoder of another width or stride.

    Raises SpecError that names the folder where backbone or crop differ (`no_start`).
    """
    saved = load_net(folder)
    why_not = no_start(net.spec, crop, saved.net.spec, saved.crop)
    check(not why_not, f"start: {folder} cannot be begun with: {why_not}")
    net.backbone.load_state_dict(saved.net.backbone.state_dict())
    if net.bins and saved.net.bins:
        widths = np.array([bins.width for bins in saved.net.bins])
        for head, bins in zip(net.heads, net.bins, strict=True):
            nearest = int(np.abs(widths - bins.width).argmin())
            _remap(saved.net.heads[nearest], saved.net.bins[nearest], head, bins)
    elif net.spec.head == saved.net.spec.head:
        net.heads.load_state_dict(saved.net.heads.state_dict())
    same = all(getattr(net.spec, key) == getattr(saved.net.spec, key) for key in ("decoder_width", "decoder_stride"))
    if net.decoder is not None and saved.net.decoder is not None and same:
        net.decoder.load_state_dict(saved.net.decoder.state_dict())
    if net.regression is not None and saved.net.regression is not None:
        net.regression.load_state_dict(saved.net.regression.state_dict())


def _remap(old: nn.Module, old_bins: AngleBins, new: nn.Module, new_bins: AngleBins) -> None:
    """The logit at a new bin's centre is the old head's there, linear between its centres and flat beyond them."""
    shares = [np.interp(new_bins.centers, old_bins.centers, row) for row in np.eye(old_bins.count)]
    shares_NM = torch.from_numpy(np.stack(shares, 1)).float()
    for value, source in zip(new.parameters(), old.parameters(), strict=True):  # weight and bias
        value.copy_((shares_NM @ source.view(3, old_bins.count, -1)).view_as(value))
