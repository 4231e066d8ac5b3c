"""Benchmarks of the photometric chains: all draws at once and operations in batches, against albumentations."""

from collections.abc import Callable, Sized
from functools import partial

import numpy as np
import torch

from hpe_core.augment.chains import CHAINS
from hpe_core.augment.draw import draw_chain
from hpe_core.augment.operations.apply import run_chain
from hpe_core.augment.reference import run_reference
from hpe_core.augment.table import Table
from hpe_core.geometry.crop import canonical_crop
from hpe_core.spec.data import CropSpec
from workflows.bench.shared.common import Row, Work, compared, must_agree
from workflows.bench.shared.lab import BATCH, Lab

SIZES = (64, 112)
LARGE = {"offsets": (224,)}  # the offset paper's network
BATCHES = 3  # a repeat
WAYS = {"torch": True, "OpenCV where faster": False}  # name -> by torch alone
APART = 12.0  # grey levels between the two sides' mean changes at most


def augment(lab: Lab) -> list[Row]:
    """Each chain, by torch alone and with OpenCV where that is faster, against albumentations."""
    return [row for chain in CHAINS for size in (*SIZES, *LARGE.get(chain, ())) for row in rows_of(lab, chain, size)]


def rows_of(lab: Lab, chain: str, size: int) -> list[Row]:
    crops = [canonical_crop(head.image, head.box, CropSpec(size, 0)).pixels for head in lab.heads]
    pixels = np.resize(np.stack(crops), (BATCH, size, size, 3))
    images = torch.from_numpy(pixels)

    def device(way: str, turn: int) -> torch.Tensor:
        table = Table(*draw_chain(chain, 1, BATCHES * BATCH, size, np.random.default_rng(turn + 1)))
        rows = [table.rows(BATCH * i, BATCH * (i + 1)) for i in range(BATCHES)]
        return torch.cat([run_chain(images, draws, torch_only=WAYS[way]) for draws in rows])

    def rival(turn: int) -> np.ndarray:
        return np.concatenate([run_reference(pixels, chain, 1, BATCHES * (turn + 1) + i) for i in range(BATCHES)])

    theirs = float(rival(0).mean())
    must_agree(all(abs(float(device(way, 0).float().mean()) - theirs) < APART for way in WAYS), f"{chain} at {size} px")
    counted = f"batches of {BATCH} faces in memory; draws and their table counted; albumentations one face at a time"
    rows = []
    for way in WAYS:
        ours, name = partial(device, way), f"augment {chain} {size} px, {way}"
        rows.append(compared(name, "faces/s", counting(ours), counting(rival), lab.repeat, "albumentations", counted))
    return rows


def counting(side: Callable[[int], Sized]) -> Work:
    return lambda turn: len(side(turn))
