"""MNN (Valle, Buenaposada, Baumela, TPAMI 2021): landmarks and their visibility by a decoder beside the pose.

Any timm backbone with levels of several sizes is the encoder, and pose is answered where it ends. The decoder goes back
up, one level after the other: the coarser map grows, the encoder's map of that size comes in from the side, a residual
block joins them. Its last layer gives a heat map and a visibility for each of the 68 landmarks; a regression step then
moves all points together, by what the heat maps say and by the encoder's features. The decoder is asked in training,
and where landmarks are wanted: a pose alone costs what it costs without.

The structure is that of the paper's abstract. Widths, losses and the regression step (the paper's is an ensemble of
trees) are ours.
"""

import typing
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpe_core.errors import SpecError
from hpe_core.geometry.landmarks import LANDMARKS, MIRROR_68
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import TrainSpec

HEAT_SD = 1.0  # of a label's heat map, in cells
HIDDEN = 256  # width of the regression step


class LandmarkAnswer(NamedTuple):
    """Places are network pixels from the centre of the window."""

    heat_BLHW: Tensor  # logits of where each landmark is
    rough_BL2: Tensor  # expectation over the heat map
    points_BL2: Tensor  # after the regression step
    seen_BL: Tensor  # logits of whether it is seen

    @property
    def marks_BL3(self) -> Tensor:
        """The points, and the probability that each is seen."""
        return torch.cat([self.points_BL2, self.seen_BL.sigmoid()[..., None]], -1)

    def told(self, width: float, flipped: bool) -> "LandmarkAnswer":
        """The same landmarks as places of the whole window: it was asked about the window's centre, `width` times as
        wide, or about the mirror image of that. Heat maps stay."""
        points_BL2, seen_BL = self.points_BL2 * width, self.seen_BL
        if flipped:
            other = torch.as_tensor(MIRROR_68, device=seen_BL.device)
            points_BL2 = points_BL2[:, other] * torch.tensor([-1.0, 1.0], device=seen_BL.device)
            seen_BL = seen_BL[:, other]
        return self._replace(points_BL2=points_BL2, seen_BL=seen_BL)

    @staticmethod
    def mean(answers: Sequence["LandmarkAnswer"]) -> "LandmarkAnswer":
        """Of points and visibility; heat maps are the first one's."""
        points, seen = ([getattr(each, name) for each in answers] for name in ("points_BL2", "seen_BL"))
        return answers[0]._replace(points_BL2=mean_of(points), seen_BL=mean_of(seen))


def mean_of(parts: Sequence[Tensor]) -> Tensor:
    """Of tensors of one shape; one alone is left as it is."""
    return parts[0] if len(parts) == 1 else sum(parts[1:], parts[0]) / len(parts)


class LandmarkDecoder(nn.Module):
    """From an encoder's levels, fine to coarse, and its pooled features to `LandmarkAnswer`."""

    def __init__(self, levels: list[int], features: int, width: int) -> None:
        """Channels of the levels, and the width of the pooled features and of the decoder."""
        super().__init__()
        self.sides = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width)) for c in levels
        )
        self.blocks = nn.ModuleList(Residual(width) for _ in levels[1:])
        self.heat = nn.Conv2d(width, LANDMARKS, 1)
        self.seen = nn.Parameter(torch.zeros(LANDMARKS, width))
        self.seen_bias = nn.Parameter(torch.zeros(LANDMARKS))
        self.regression = nn.Sequential(
            nn.Linear(3 * LANDMARKS + features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LANDMARKS)
        )
        for last in self.regression[-1].parameters():
            nn.init.zeros_(last)  # the step begins as none

    def forward(self, levels: list[Tensor], features_BF: Tensor, size: int) -> LandmarkAnswer:
        x = self.sides[-1](levels[-1])
        for at in range(len(levels) - 2, -1, -1):
            x = F.interpolate(x, size=levels[at].shape[-2:], mode="nearest")
            x = self.blocks[at](x + self.sides[at](levels[at]))
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            heat_BLHW = self.heat(x)
            where_BLHW = heat_BLHW.flatten(2).softmax(-1).view_as(heat_BLHW)
            x_BL, y_BL = (where_BLHW.sum(5 - side) @ places(x, side, size) for side in (3, 2))
            rough_BL2 = torch.stack([x_BL, y_BL], -1)
            looked_BLC = torch.einsum("blhw,bchw->blc", where_BLHW, x)  # the last layer where the landmark is
            seen_BL = (looked_BLC * self.seen).sum(-1) + self.seen_bias
            told = torch.cat([rough_BL2.flatten(1) / size, seen_BL, features_BF.float()], 1)
            points_BL2 = rough_BL2 + size * self.regression(told).view_as(rough_BL2)
        return LandmarkAnswer(heat_BLHW, rough_BL2, points_BL2, seen_BL)


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a way through (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return F.relu(x + self.second(self.first(x)))


def places(map_BCHW: Tensor, side: int, size: int) -> Tensor:
    """Middles of a map's cells along one side, in pixels of a window of `size` from its centre."""
    cells = map_BCHW.shape[side]
    return (torch.arange(cells, device=map_BCHW.device, dtype=torch.float32) + 0.5) * (size / cells) - size / 2


def encoded(backbone: nn.Module, x_BCHW: Tensor, stride: int) -> tuple[Tensor, list[Tensor]]:
    """What a timm backbone makes of normalised pictures: pooled features, and its maps, fine to coarse.

    One map of each size, whose cells are at least `stride` pixels wide.
    """
    net = typing.cast(typing.Any, backbone)
    last, maps = net.forward_intermediates(x_BCHW)
    levels = {level.shape[-1]: level for level in maps if level.shape[-1] * stride <= x_BCHW.shape[-1]}
    return net.forward_head(last).float(), list(levels.values())


@torch.no_grad()
def decoder_for(backbone: nn.Module, spec: NetSpec, size: int, features: int) -> LandmarkDecoder:
    """Raises SpecError where the backbone gives no levels of several sizes."""
    was_training = backbone.training
    levels: list[Tensor] = []
    if hasattr(backbone, "forward_intermediates"):
        _, levels = encoded(backbone.eval(), torch.zeros(1, 3, size, size), spec.decoder_stride)
        backbone.train(was_training)
    if len(levels) < 2:
        said = f"whose maps shrink from stage to stage, from {spec.decoder_stride} pixels a cell on"
        raise SpecError(f"net.landmarks needs a backbone {said}; {spec.backbone} has none such")
    return LandmarkDecoder([level.shape[1] for level in levels], features, spec.decoder_width)


def landmark_parts(answer: LandmarkAnswer, landmarks_BL3: Tensor, size: int, spec: TrainSpec) -> dict[str, Tensor]:
    """The two other tasks of MNN's weighted loss; means over all landmarks of the batch, to which an unknown one adds
    nothing.

    heat: cross-entropy of each heat map against a normal distribution about the label, of landmarks in the window.
    marks: distance of the regressed point from the label, in percent of the window's side.
    seen: binary cross-entropy of the visibility.
    """
    true_BL2, seen_BL = landmarks_BL3[..., :2], landmarks_BL3[..., 2]
    known = true_BL2.isfinite().all(-1)
    true_BL2 = torch.where(known[..., None], true_BL2, 0.0)
    inside = known & (true_BL2.abs().amax(-1) < size / 2)
    heat = answer.heat_BLHW.flatten(2).log_softmax(-1).view_as(answer.heat_BLHW)
    label_y, label_x = (_bell(answer.heat_BLHW, side, true_BL2[..., axis], size) for side, axis in ((2, 1), (3, 0)))
    entropy = -((heat @ label_x[..., None]).squeeze(-1) * label_y).sum(-1)
    apart = torch.linalg.vector_norm(answer.points_BL2 - true_BL2 + 1e-6, dim=-1) * (100 / size)
    told = seen_BL.isfinite()
    unsure = F.binary_cross_entropy_with_logits(answer.seen_BL, torch.where(told, seen_BL, 0.0), reduction="none")
    return {
        "heat": spec.heatmap_weight * _mean(entropy, inside),
        "marks": spec.landmark_weight * _mean(apart, known),
        "seen": spec.visibility_weight * _mean(unsure, told),
    }


def _bell(heat_BLHW: Tensor, side: int, place_BL: Tensor, size: int) -> Tensor:
    """(B, L, cells): a normal distribution about a place, over the cells of one side."""
    away = (places(heat_BLHW, side, size) - place_BL[..., None]) / (HEAT_SD * size / heat_BLHW.shape[side])
    return (-away.square() / 2).softmax(-1)


def _mean(values_BL: Tensor, where_BL: Tensor) -> Tensor:
    """Over all faces and landmarks, unknown ones as 0: so parts of a batch, and workers, add up to the batch."""
    return torch.where(where_BL, values_BL, 0.0).mean()
