"""What a network's last layer says: its raw numbers -> an answer.

A head is one linear layer to (B, 3, K) numbers. Another head is a class here with its name in `HEADS` and in `HeadName`
of `hpe_core/spec/network.py`; the hard losses that fit it stand in `HARD_LOSSES` of `hpe_core/spec/training.py`,
`PoseTask.hard_parts` calls them, and `losses.soft_loss` says how it reads soft labels. Answers that are neither bins
nor mean rotations are another form (`geometry/forms.py`). Everything downstream asks the form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.forms import Form
from hpe_core.geometry.rotations import Rotations, from_6d
from hpe_core.networks.fisher import bounded, normaliser
from hpe_core.spec.network import HeadName, NetSpec


class Head(Protocol):
    @property
    def form(self) -> Form:
        """What the answers are."""

    @property
    def columns(self) -> int:
        """K."""

    def start(self) -> Tensor:
        """(3, K) raw numbers of a network that has not learnt: the bias of its last layer."""

    def answer(self, raw_B3K: Tensor, /) -> Tensor:
        """Raw numbers -> (B, 3, N) answers of `form`."""


@dataclass(frozen=True)
class BinsHead:
    """Logits over the bins of each angle."""

    form: AngleBins

    @property
    def columns(self) -> int:
        return self.form.count

    def start(self) -> Tensor:
        return torch.zeros(3, self.columns)

    def answer(self, raw_B3K: Tensor) -> Tensor:
        return raw_B3K.softmax(-1)


@dataclass(frozen=True)
class SixDHead:
    """Two columns, from which Gram and Schmidt make a rotation."""

    form: Rotations = Rotations()
    columns: int = 2

    def start(self) -> Tensor:
        return torch.eye(3)[:, :2]

    def answer(self, raw_B3K: Tensor) -> Tensor:
        return from_6d(raw_B3K.double())


@dataclass(frozen=True)
class FisherHead:
    """The parameter of a matrix Fisher density, whose mean is the answer."""

    form: Rotations = Rotations()
    columns: int = 3

    def start(self) -> Tensor:
        return 5 * torch.eye(3)  # looks ahead, to some 18 degrees

    def answer(self, raw_B3K: Tensor) -> Tensor:
        return normaliser(bounded(raw_B3K.double()))[1]


HEADS: dict[HeadName, Callable[[NetSpec], tuple[Head, ...]]] = {
    "bins": lambda spec: tuple(BinsHead(AngleBins.covering(spec.limit_deg, width)) for width in spec.bin_widths),
    "sixd": lambda spec: (SixDHead(),),
    "fisher": lambda spec: (FisherHead(),),
}


def heads_of(spec: NetSpec) -> tuple[Head, ...]:
    """The heads of a network: one, or one for each width of bins."""
    return HEADS[spec.head](spec)


def predicting(heads: tuple[Head, ...]) -> int:
    """Which of them predicts: the one with the finest bins."""
    return min(range(len(heads)), key=lambda i: heads[i].form.limit / heads[i].form.count)


def label_bytes(spec: NetSpec) -> int:
    """Bytes of the soft label of one face that a student of this kind asks for."""
    heads = heads_of(spec)
    form = heads[predicting(heads)].form
    return form.labels(torch.ones(1, 3, form.count)).to(form.stored).nbytes
