"""What the network is shown: augmented windows of the training faces, on its device, epoch by epoch.

Everything random in an epoch is a function of (seed, epoch, rank). Where all rows are at hand, the whole epoch is drawn
at once and sent to the device as one table, while the epoch before is shown; a stream is drawn batch by batch.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hpe_core.augment.augment import Augment
from hpe_core.augment.table import Table
from hpe_core.data.batch import FaceData, PoseBatch, TrainFaces
from hpe_core.data.device_rows import DeviceRows, Order
from hpe_core.training.place import Place

PIXELS_AT_ONCE = 1024 * 112 * 112


def at_once(faces: int, augment: Augment, place: Place) -> int:
    """How many batches of so many faces are augmented in one go: a GPU is told of each operation by itself, and a chain
    has hundreds. albumentations draws by the batch, and must see each alone."""
    if place.device.type == "cpu" or augment.on_host:
        return 1
    return max(1, PIXELS_AT_ONCE // (faces * augment.size**2))


@dataclass(frozen=True)
class Views:
    """The views that one worker is shown of `faces`, in batches of `batch_size` over all workers."""

    faces: TrainFaces
    augment: Augment
    batch_size: int
    seed: int
    place: Place

    def epochs(self, first: int, last: int) -> Iterator[Iterator[PoseBatch]]:
        """For each epoch from `first` to before `last`, its batches."""
        faces, place = self.faces, self.place
        if not isinstance(faces, FaceData):
            yield from map(self._streamed, range(first, last))
            return
        rows = DeviceRows(faces.rows(place.rank, place.world), place.device, place.rows_bytes)
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._drawn, faces, first)
            for epoch in range(first, last):
                order, table = coming.result()
                if epoch + 1 < last:
                    coming = pool.submit(self._drawn, faces, epoch + 1)
                yield self._shown(rows, order, table)

    def _drawn(self, faces: FaceData, epoch: int) -> tuple[Order, Table]:
        """The rows of each batch of an epoch, and what becomes of each."""
        place = self.place
        order = faces.order(self.batch_size, seed=self.seed, epoch=epoch, rank=place.rank, world=place.world)
        index = np.concatenate(order)
        rows = faces.rows(place.rank, place.world)
        return order, self.augment.table(rows.angles[index], rows.scales[index], self._random(epoch), place.device)

    def _shown(self, rows: DeviceRows, order: Order, table: Table) -> Iterator[PoseBatch]:
        """The batches of an order, some of them augmented at once."""
        start, some = 0, at_once(len(order[0]), self.augment, self.place)
        runs = [order[first : first + some] for first in range(0, len(order), some)]
        for run, block in zip(runs, rows.batches([np.concatenate(run) for run in runs]), strict=True):
            stop = start + len(block)
            shown, at = self.augment.shown(block, table.rows(start, stop)), 0
            for index in run:
                yield shown.take(slice(at, at + len(index)))
                at += len(index)
            start = stop

    def _streamed(self, epoch: int) -> Iterator[PoseBatch]:
        place, random = self.place, self._random(epoch)
        how = {"seed": self.seed, "epoch": epoch, "rank": place.rank, "world": place.world}
        for batch in self.faces.shuffled(self.batch_size, **how):
            yield self.augment(batch, random, place.device)

    def _random(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 1 + epoch, self.place.rank])
