"""Weights and what they mean, together: `model.safetensors` beside `model.json` (network spec, crop, bins).

A folder with these two files is a network that any stage, the predictor or a user can load; there is no other way to
hand one on. Loading never unpickles.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hpe_core.errors import SpecError
from hpe_core.geometry.rotation import CONVENTION
from hpe_core.learning.models import PoseNet
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import MEANING, WEIGHTS, NetSpec
from hpe_core.spec.serde import build, to_dict
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
    except (OSError, ValueError) as error:
        raise SpecError(f"{folder} does not hold a saved network ({WEIGHTS}, {MEANING}): {error}") from None
    if meaning["convention"] != CONVENTION:
        raise SpecError(f"{folder} was saved with another angle convention: {meaning['convention']}")
    crop = build(CropSpec, meaning["crop"])
    spec = build(NetSpec, {**meaning["net"], "pretrained": "none"})
    net = PoseNet(spec, crop.size)
    net.load_state_dict(state)
    return SavedNet(net.to(device).eval(), crop, meaning["notes"])
