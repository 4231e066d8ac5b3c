"""Rows of faces where the network learns: all on its device if they fit, else brought there as they are asked for.

Where they lie changes neither their order nor their values.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.data.batch import PoseBatch, taken
from hpe_core.data.shares import FaceArrays

Index = NDArray[np.int64]
Order = Sequence[Index] | Index  # the rows of each batch; where all have as many, (steps, rows)
SLOTS = 3  # pinned buffers: one on its way, one that waits, one that is filled
UPLOAD_ROWS = 4096
FREE_SHARE = 0.5  # of the device's free memory that rows may take; the network needs the rest


class DeviceRows:
    """Rows in memory or in a memory map, as batches on `device`; up to `room` bytes of pixels and labels lie there."""

    def __init__(self, rows: FaceArrays, device: torch.device, room: float) -> None:
        self.rows, self.device = rows, device
        self.resident: tuple[Tensor, Tensor | None] | None = None
        if device.type == "cuda":
            size = rows.images.nbytes + (0 if rows.soft is None else rows.soft.nbytes)
            if size <= min(room, FREE_SHARE * torch.cuda.mem_get_info(device)[0]):
                soft = None if rows.soft is None else uploaded(rows.soft, device)
                self.resident = uploaded(rows.images, device), soft

    def batches(self, order: Order) -> Iterator[PoseBatch]:
        """The rows of each index: pixels and soft labels on the device, angles and scales on the host."""
        if self.device.type == "cpu":
            return (taken(self.rows, index) for index in order)
        return self._brought(order) if self.resident is None else self._picked(order, *self.resident)

    def _picked(self, order: Order, images: Tensor, soft: Tensor | None) -> Iterator[PoseBatch]:
        """One gather on the device; the index of all batches goes there at once."""
        if not len(order):
            return
        whole = torch.from_numpy(np.concatenate(order)).pin_memory().to(self.device, non_blocking=True)
        for index, there in zip(order, whole.split([len(index) for index in order]), strict=True):
            picked = None if soft is None else soft.index_select(0, there)
            yield self._batch(index, images.index_select(0, there), picked)

    def _brought(self, order: Order) -> Iterator[PoseBatch]:
        """Gathered into pinned memory by a thread, copied on a stream of their own, while the batches before are used.

        The training stream waits for the copy; the host does not.
        """
        stream = torch.cuda.Stream(self.device)
        slots = cycle([_Slot.of(self.rows, max(map(len, order), default=0)) for _ in range(SLOTS)])
        with ThreadPoolExecutor(1) as pool:
            coming = [pool.submit(next(slots).send, self.rows, index, self.device, stream) for index in order[:SLOTS]]
            for number, index in enumerate(order):
                images, soft, copied = coming.pop(0).result()
                now = torch.cuda.current_stream(self.device)
                now.wait_event(copied)
                for tensor in (images, soft):
                    if tensor is not None:
                        tensor.record_stream(now)
                yield self._batch(index, images, soft)
                if number + SLOTS < len(order):
                    following = order[number + SLOTS]
                    coming.append(pool.submit(next(slots).send, self.rows, following, self.device, stream))

    def _batch(self, index: Index, images: Tensor, soft: Tensor | None) -> PoseBatch:
        angles, scales = torch.from_numpy(self.rows.angles[index]), torch.from_numpy(self.rows.scales[index])
        return PoseBatch(images, angles, scales, soft)


class _Slot(NamedTuple):
    """Pinned memory for one batch, and the event after which it may be filled again."""

    images: Tensor
    soft: Tensor | None
    copied: "torch.cuda.Event"

    @classmethod
    def of(cls, rows: FaceArrays, size: int) -> "_Slot":
        def room(values: NDArray) -> Tensor:
            return torch.empty((size, *values.shape[1:]), dtype=torch.from_numpy(values[:0]).dtype, pin_memory=True)

        return cls(room(rows.images), None if rows.soft is None else room(rows.soft), torch.cuda.Event())

    def send(
        self, rows: FaceArrays, index: Index, device: torch.device, stream: "torch.cuda.Stream"
    ) -> tuple[Tensor, Tensor | None, "torch.cuda.Event"]:
        self.copied.synchronize()  # this thread alone waits until the batch before has left these pages

        def sent(values: NDArray, pages: Tensor) -> Tensor:
            np.take(values, index, axis=0, out=pages[: len(index)].numpy())
            return pages[: len(index)].to(device, non_blocking=True)

        with torch.cuda.stream(stream):
            images = sent(rows.images, self.images)
            soft = None if rows.soft is None or self.soft is None else sent(rows.soft, self.soft)
            self.copied.record(stream)
        return images, soft, self.copied


def uploaded(values: NDArray, device: torch.device) -> Tensor:
    """An array on the device, some rows at a time: a map need not be in memory as a whole."""
    out = torch.empty(values.shape, dtype=torch.from_numpy(values[:0]).dtype, device=device)
    for start in range(0, len(values), UPLOAD_ROWS):
        part = np.ascontiguousarray(values[start : start + UPLOAD_ROWS])
        out[start : start + UPLOAD_ROWS] = torch.from_numpy(part).to(device)
    return out
