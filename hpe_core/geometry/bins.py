"""Angle bins for regression via classification (RvC): centres, encode, decode, mirror, shift.

A grid is symmetric about zero, so mirroring a distribution is exactly reversing its bins. Decoding is the expectation
over bin centres (EHPNet section 3; offset ensemble eq. 2). EHPNet uses `AngleBins.covering(93, 3)`, the offset paper
+-99 with widths 1, 2, 3, 4; 4 does not divide 198, so it gets 50 bins over +-100. Nobody else knows a bin centre.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.geometry.rotations import constant, matrix_of
from hpe_core.spec.network import FormName

TINY = 1e-7  # log-probabilities are stored as float16


@dataclass(frozen=True)
class AngleBins:
    """`count` bins of `width` degrees over +-limit, limit = count * width / 2: the form of answers in bins."""

    width: float
    count: int
    name: ClassVar[FormName] = "bins"
    stored: ClassVar[torch.dtype] = torch.float16

    @classmethod
    def covering(cls, limit_deg: float, width_deg: float) -> "AngleBins":
        """The smallest symmetric grid of this width that covers +-limit. Raises ValueError for a bad size."""
        if not (0 < width_deg <= limit_deg <= 180):
            raise ValueError(f"bins need 0 < width <= limit <= 180 degrees, got {width_deg} and {limit_deg}")
        return cls(width=width_deg, count=math.ceil(2 * limit_deg / width_deg - 1e-9))

    @property
    def limit(self) -> float:
        """Half range in degrees; poses outside +-limit cannot be encoded."""
        return self.width * self.count / 2

    @property
    def centers(self) -> NDArray[np.float64]:
        """(count,) degrees."""
        return np.asarray((np.arange(self.count) - (self.count - 1) / 2) * self.width, np.float64)

    def encode(self, angles_deg: Tensor) -> Tensor:
        """(...) degrees -> (...) int64 bin index; values beyond the range fall into the outermost bin."""
        index = torch.floor((angles_deg + self.limit) / self.width).long()
        return index.clamp(0, self.count - 1)

    def decode(self, probs: Tensor) -> Tensor:
        """(..., N) probabilities -> (...) degrees: the expectation over bin centres (offsets eq. 2)."""
        return probs @ self.centers_like(probs)

    def spread(self, probs: Tensor) -> Tensor:
        """(..., N) probabilities -> (...) standard deviation, degrees (E[x^2] - E[x]^2 would lose digits)."""
        centers = self.centers_like(probs)
        away = centers - (probs @ centers).unsqueeze(-1)
        return (probs * away.square()).sum(-1).sqrt()

    def scatter(self, probs: Tensor) -> Tensor:
        """(..., 3, N) probabilities -> (...) sum of the three variances, rad^2."""
        return self.spread(probs).deg2rad().square().sum(-1)

    def rotations(self, probs: Tensor) -> Tensor:
        """(..., 3, N) probabilities -> (..., 3, 3) mean rotation matrices, float64; the angles are independent."""
        centers = self.centers_like(probs.double()).deg2rad()
        cosines, sines = ((probs * values).sum(-1) for values in (centers.cos(), centers.sin()))
        return matrix_of(cosines, sines)

    def averaged(self, probs: Tensor) -> Tensor:
        """The decoded angles: decoding is linear."""
        return self.decode(probs)

    def angles_of(self, averaged: Tensor) -> Tensor:
        return averaged

    def labels(self, probs_B3N: Tensor) -> Tensor:
        """(B, 3, N) probabilities -> the log-probabilities that a student reads."""
        return probs_B3N.clamp_min(TINY).log()

    def answers(self, labels_B3N: Tensor) -> Tensor:
        return labels_B3N.float().softmax(-1)

    def centers_like(self, probs: Tensor) -> Tensor:
        """(count,) degrees of the tensor's type and on its device; nobody writes into it."""
        return constant(_centers, probs, self)

    def mirror(self, probs_B3N: Tensor) -> Tensor:
        """Soft labels of the flipped picture: yaw and roll bins reversed, pitch kept. Works on logs too."""
        return torch.cat([probs_B3N[:, :1], probs_B3N[:, 1:].flip(-1)], dim=1)

    def moved(self, labels_B3N: Tensor, flips_B: Tensor, shift_B3: Tensor | None, turns_B: Tensor | None) -> Tensor:
        """Log-probabilities of faces that were flipped, then turned so that their angles changed by `shift_B3`.

        Exact for a flip; after a turn for the mean, where the teacher is right, and the shape is left.
        """
        labels = torch.where(flips_B[:, None, None] > 0, self.mirror(labels_B3N), labels_B3N)
        if shift_B3 is None:
            return labels
        return self.shift(labels.float().exp(), shift_B3).clamp_min(TINY).log().half()

    def shift(self, probs: Tensor, by_deg: Tensor) -> Tensor:
        """Move each (..., N) distribution by (...) degrees, by linear interpolation between bins.

        Mass that would leave the grid stays in the outermost bin. The mean moves by exactly `by_deg` as long as nothing
        reaches the border; the variance grows by at most width^2 / 4.
        """
        by = (by_deg / self.width).unsqueeze(-1)
        whole = by.floor()
        source = torch.arange(self.count, device=probs.device) - whole.long()

        def from_bins(index: Tensor) -> Tensor:
            found = probs.gather(-1, index.clamp(0, self.count - 1).expand_as(probs))
            return torch.where((index >= 0) & (index < self.count), found, 0)

        share = by - whole
        out = (1 - share) * from_bins(source) + share * from_bins(source - 1)
        left = (probs.sum(-1, keepdim=True) - out.sum(-1, keepdim=True)).clamp_min(0)  # all on the side of the shift
        edge = torch.arange(self.count, device=probs.device) == torch.where(by > 0, self.count - 1, 0)
        return out + left * edge


def _centers(bins: AngleBins) -> NDArray[np.float64]:
    return bins.centers
