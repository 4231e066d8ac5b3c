"""What an answer means. A network answers (B, 3, N) numbers; its form says what they are and how they move.

`AngleBins`: probabilities over N bins for pitch, yaw and roll. `Rotations`: N = 3, the mean rotation matrix. In both a
plain average of answers is an answer again: over windows, mirror images and teachers.
"""

from typing import Protocol

import torch
from torch import Tensor

from hpe_core.geometry.rotations import Rotations
from hpe_core.spec.network import FormName


class Form(Protocol):
    """Tensors may have any leading dimensions where `...` stands; degrees are (pitch, yaw, roll)."""

    @property
    def name(self) -> FormName: ...

    @property
    def count(self) -> int:
        """N."""

    @property
    def stored(self) -> torch.dtype:
        """Of `labels` in a file."""

    @property
    def limit(self) -> float:
        """Degrees; no angle beyond +- this can be said."""

    def decode(self, answers: Tensor, /) -> Tensor:
        """(..., 3, N) -> (..., 3) degrees."""

    def spread(self, answers: Tensor, /) -> Tensor:
        """(..., 3, N) -> (..., 3) standard deviation of each angle, degrees."""

    def scatter(self, answers: Tensor, /) -> Tensor:
        """(..., 3, N) -> (...) variance of the whole pose, rad^2."""

    def mirror(self, answers: Tensor, /) -> Tensor:
        """(B, 3, N) of the horizontally flipped picture."""

    def rotations(self, answers: Tensor, /) -> Tensor:
        """(..., 3, N) -> (..., 3, 3) mean rotation matrices."""

    def averaged(self, answers: Tensor, /) -> Tensor:
        """(..., 3, N) -> the smallest numbers whose averages `angles_of` decodes as it would averages of answers."""

    def angles_of(self, averaged: Tensor, /) -> Tensor:
        """Averages of `averaged` -> (..., 3) degrees."""

    def labels(self, answers: Tensor, /) -> Tensor:
        """(B, 3, N) -> what a student reads, and a file of soft labels holds."""

    def answers(self, labels: Tensor, /) -> Tensor:
        """What `labels` made -> (B, 3, N) answers."""

    def moved(self, labels: Tensor, flips_B: Tensor, shift_B3: Tensor | None, turns_B: Tensor | None, /) -> Tensor:
        """Labels of faces that were flipped, then turned by (B,) degrees, which changed their angles by `shift_B3`."""


def handed_on(form: Form, answers: Tensor, wanted: FormName) -> Tensor:
    """Answers of one form as those of the form that a label set holds; bins become mean rotations, nothing bins."""
    if form.name == wanted:
        return answers
    assert wanted == Rotations.name, "mean rotations have no bins: the spec refuses this"
    return form.rotations(answers)
