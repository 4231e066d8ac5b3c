"""Augmentation: pixels, angles and soft labels change together.

The host draws for many faces at once (`table`), the device shows them (`shown`): geometry first (`moves.py`), then one
of the papers' photometric chains, by batched operations of the device or, face by face, by albumentations.
"""

from dataclasses import replace

import numpy as np
import torch

from hpe_core.augment.draw import draw_chain
from hpe_core.augment.moves import motions, moved, random_zooms
from hpe_core.augment.operations.apply import run_chain
from hpe_core.augment.reference import run_reference
from hpe_core.augment.table import Draws, Table, Values
from hpe_core.data.batch import PoseBatch
from hpe_core.geometry.forms import Form
from hpe_core.spec.training import AugmentSpec

SEEDS = 2**24  # a column is exact up to here


class Augment:
    """Draws and applies one augmentation a face. All randomness comes from the generator that is passed in."""

    def __init__(self, spec: AugmentSpec, size: int, form: Form) -> None:
        self.spec, self.size, self.form = spec, size, form
        self.recolours = spec.photometric != "none" and spec.strength > 0
        self.on_host = spec.backend == "albumentations"  # `auto` is the device: it is the faster (docs/augmentation.md)

    def table(
        self, angles_M3: Values, scales_M2: Values, random: np.random.Generator, device: torch.device | str = "cpu"
    ) -> Table:
        """What becomes of M faces, in the order in which they will be shown; angles in degrees, (M, 3)."""
        count, spec = len(angles_M3), self.spec
        flips = random.random(count) < spec.flip
        turns = random.uniform(-spec.turn_deg, spec.turn_deg, count) if spec.turn_deg else np.zeros(count)
        jitter = random.integers(-spec.jitter_px, spec.jitter_px + 1, (count, 2))
        zooms = random_zooms(spec.zoom, count, random)
        columns = motions(angles_M3, scales_M2, self.form.limit, flips, turns, jitter, spec.turn_gain, zooms)
        if not self.recolours:
            return Table(columns, {}, device)
        if self.on_host:
            return Table(columns | {"seed": random.integers(SEEDS, size=count)}, {}, device)
        colours, chosen = draw_chain(spec.photometric, spec.strength, count, self.size, random)
        return Table(columns | colours, chosen, device)

    def shown(self, batch: PoseBatch, draws: Draws) -> PoseBatch:
        """Canonical crops -> windows of `size`, with labels moved along."""
        margin = (batch.images_BHWC.shape[1] - self.size) // 2
        assert self.spec.jitter_px <= margin, f"a jitter beyond the stored margin of {margin} pixels"
        batch = moved(batch, draws, self.size, self.form)
        if not self.recolours:
            return batch
        images = batch.images_BHWC
        if not self.on_host:
            return replace(batch, images_BHWC=run_chain(images, draws))
        seed = int(draws["seed"][0])
        changed = run_reference(images.cpu().numpy(), self.spec.photometric, self.spec.strength, seed)
        return replace(batch, images_BHWC=torch.from_numpy(changed).to(images.device))

    def __call__(self, batch: PoseBatch, random: np.random.Generator, device: torch.device | str = "cpu") -> PoseBatch:
        """All at once, for a batch on the host; the windows lie on `device`. The input is left as it was."""
        assert batch.scales_B2 is not None, "crops that were moved before"
        table = self.table(batch.angles_B3.numpy(), batch.scales_B2.numpy(), random, device)
        return self.shown(batch.to(device), table.rows(0, len(batch)))
