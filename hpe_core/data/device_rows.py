"""Rows of faces where the network learns: all on its device if they fit, else brought there as they are asked for.

Where they lie changes neither their order nor their values.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.data.batch import PoseBatch, taken
from hpe_core.data.shares import FaceArrays

Index = NDArray[np.int64]
Columns = dict[str, Tensor]  # images, and soft and landmarks where there are such
Order = Sequence[Index] | Index  # the rows of each batch; where all have as many, (steps, rows)
SLOTS = 3  # pinned buffers: one on its way, one that waits, one that is filled
UPLOAD_ROWS = 4096
FREE_SHARE = 0.5  # of the device's free memory that rows may take; the network needs the rest


class DeviceRows:
    """Rows in memory or in a memory map, as batches on `device`; up to `room` bytes of pixels and labels lie there."""

    def __init__(self, rows: FaceArrays, device: torch.device, room: float) -> None:
        self.rows, self.device = rows, device
        self.resident: Columns | None = None
        if device.type == "cuda":
            columns = columns_of(rows)
            size = sum(column.nbytes for column in columns.values())
            if size <= min(room, FREE_SHARE * torch.cuda.mem_get_info(device)[0]):
                self.resident = {name: uploaded(column, device) for name, column in columns.items()}

    def batches(self, order: Order) -> Iterator[PoseBatch]:
        """The rows of each index: pixels, soft labels and landmarks on the device, angles and scales on the host."""
        if self.device.type == "cpu":
            return (taken(self.rows, index) for index in order)
        return self._brought(order) if self.resident is None else self._picked(order, self.resident)

    def _picked(self, order: Order, columns: Columns) -> Iterator[PoseBatch]:
        """One gather on the device; the index of all batches goes there at once."""
        if not len(order):
            return
        whole = torch.from_numpy(np.concatenate(order)).pin_memory().to(self.device, non_blocking=True)
        for index, there in zip(order, whole.split([len(index) for index in order]), strict=True):
            yield self._batch(index, {name: column.index_select(0, there) for name, column in columns.items()})

    def _brought(self, order: Order) -> Iterator[PoseBatch]:
        """Gathered into pinned memory by a thread, copied on a stream of their own, while the batches before are used.

        The training stream waits for the copy; the host does not.
        """
        stream = torch.cuda.Stream(self.device)
        slots = cycle([_Slot.of(self.rows, max(map(len, order), default=0)) for _ in range(SLOTS)])
        with ThreadPoolExecutor(1) as pool:
            coming = [pool.submit(next(slots).send, self.rows, index, self.device, stream) for index in order[:SLOTS]]
            for number, index in enumerate(order):
                columns, copied = coming.pop(0).result()
                now = torch.cuda.current_stream(self.device)
                now.wait_event(copied)
                for tensor in columns.values():
                    tensor.record_stream(now)
                yield self._batch(index, columns)
                if number + SLOTS < len(order):
                    following = order[number + SLOTS]
                    coming.append(pool.submit(next(slots).send, self.rows, following, self.device, stream))

    def _batch(self, index: Index, columns: Columns) -> PoseBatch:
        angles, scales = torch.from_numpy(self.rows.angles[index]), torch.from_numpy(self.rows.scales[index])
        return PoseBatch(columns["images"], angles, scales, columns.get("soft"), columns.get("landmarks"))


class _Slot(NamedTuple):
    """Pinned memory for one batch, and the event after which it may be filled again."""

    pages: Columns
    copied: "torch.cuda.Event"

    @classmethod
    def of(cls, rows: FaceArrays, size: int) -> "_Slot":
        def room(values: NDArray) -> Tensor:
            return torch.empty((size, *values.shape[1:]), dtype=torch.from_numpy(values[:0]).dtype, pin_memory=True)

        return cls({name: room(column) for name, column in columns_of(rows).items()}, torch.cuda.Event())

    def send(
        self, rows: FaceArrays, index: Index, device: torch.device, stream: "torch.cuda.Stream"
    ) -> tuple[Columns, "torch.cuda.Event"]:
        self.copied.synchronize()  # this thread alone waits until the batch before has left these pages

        def sent(values: NDArray, pages: Tensor) -> Tensor:
            # With the mode `raise` NumPy gathers into a buffer of its own first: three to five times the time.
            np.take(values, index, axis=0, out=pages[: len(index)].numpy(), mode="clip")
            return pages[: len(index)].to(device, non_blocking=True)

        with torch.cuda.stream(stream):
            columns = {name: sent(column, self.pages[name]) for name, column in columns_of(rows).items()}
            self.copied.record(stream)
        return columns, self.copied


def columns_of(rows: FaceArrays) -> dict[str, NDArray[Any]]:
    """What of the rows belongs on the device, where it is moved."""
    columns = {"images": rows.images, "soft": rows.soft, "landmarks": rows.landmarks}
    return {name: column for name, column in columns.items() if column is not None}


def uploaded(values: NDArray, device: torch.device) -> Tensor:
    """An array on the device, some rows at a time: a map need not be in memory as a whole."""
    out = torch.empty(values.shape, dtype=torch.from_numpy(values[:0]).dtype, device=device)
    for start in range(0, len(values), UPLOAD_ROWS):
        part = np.ascontiguousarray(values[start : start + UPLOAD_ROWS])
        out[start : start + UPLOAD_ROWS] = torch.from_numpy(part).to(device)
    return out
