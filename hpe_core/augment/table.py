"""What chance decides about each face of an epoch, drawn at once on the host and sent to the device as one block.

A `Table` has one row a face, in the order in which the epoch shows them. Its columns are numbers (a turn, a gain, a
kernel's size); beside them stands, for each operation of a chain, which faces get it. `Table.rows` cuts one batch out
without a wait for the device: how many faces get an operation is known on the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[Any]  # one entry a face: (M,) or (M, k)
Columns = dict[str, Values]  # a name -> its values; float32 on the device, so whole numbers below 2^24 are exact
Chosen = dict[str, NDArray[np.bool_]]  # an operation -> whether a face gets it: (M,)


@dataclass(frozen=True, eq=False)
class Draws:
    """The rows of a batch, on the device."""

    values_BC: Tensor  # float32
    places: Mapping[str, slice | int]
    on: Mapping[str, Tensor]  # an operation -> the faces of this batch that get it, int64; left out where none does

    def __getitem__(self, name: str) -> Tensor:
        """A column: (B,) or (B, k)."""
        return self.values_BC[:, self.places[name]]

    def of(self, faces: Tensor) -> "Draws":
        """The rows of some faces of the batch, for an operation."""
        return Draws(self.values_BC.index_select(0, faces), self.places, {})

    def __contains__(self, name: str) -> bool:
        return name in self.places


class Table:
    """The draws of an epoch on a device."""

    def __init__(self, columns: Columns, chosen: Chosen, device: torch.device | str = "cpu") -> None:
        at, blocks = 0, []
        self.places: dict[str, slice | int] = {}
        for name, values in columns.items():
            blocks.append(values.reshape(len(values), -1).astype(np.float32))
            width = blocks[-1].shape[1]
            self.places[name] = at if values.ndim == 1 else slice(at, at + width)
            at += width
        self._host = {name: np.flatnonzero(mask) for name, mask in chosen.items()}  # where each operation's faces are
        self._values = sent(np.concatenate(blocks, axis=1), device)
        self._faces = sent(np.concatenate([*self._host.values(), np.empty(0, np.int64)]), device)

    def __len__(self) -> int:
        return len(self._values)

    def rows(self, start: int, stop: int) -> Draws:
        """The draws of the faces from `start` to `stop`."""
        on, before = {}, 0
        for name, faces in self._host.items():
            first, last = (int(place) for place in np.searchsorted(faces, (start, stop)))
            if first < last:
                on[name] = self._faces[before + first : before + last] - start
            before += len(faces)
        return Draws(self._values[start:stop], self.places, on)


def sent(values: Values, device: torch.device | str) -> Tensor:
    """To the device, by pinned memory where that is not the host's own, so that nobody waits."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
