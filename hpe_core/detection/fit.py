"""From a detector's box to the box that a network was taught with.

Datasets mean different things by a face's box: YuNet's ends at the brow and the chin, that of rendered heads is a sixth
larger, that of 300W-LP's loaders wider, lower and further down, Pointing'04's smaller. A network that is shown another
kind of box than it learnt from sees a face of another size. Measured with the demo's student (64 px), degrees of MAE
with YuNet's boxes as they are, then fitted: rendered heads 9.21 -> 7.06 (255 faces; 6.32 with their own boxes),
Pointing'04 16.15 -> 14.10 (397 faces), AFLW2000 8.17 -> 8.25 (39 faces).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hpe_core.geometry.crop import Box
from hpe_core.spec.data import DatasetSpec


@dataclass(frozen=True)
class DetectorFit:
    """YuNet's box times `width` and `height`, its centre moved down by `down` of its own height."""

    width: float = 1.0
    height: float = 1.0
    down: float = 0.0

    def of(self, box: Box) -> Box:
        x, y = box.center
        return Box.around((x, y + self.down * box.height), box.width * self.width, box.height * self.height)


# Medians over the faces that both have (yunet_n_dynamic.onnx, default settings): 526 and 270 rendered heads of 112 and
# 224 px, 39 faces of AFLW2000, 616 of Pointing'04, one frame of BIWI. 300W-LP's two faces (1.26, 0.82, 0.14) agree with
# AFLW2000, whose box is drawn alike. The readers that are missing have boxes of their users' choice.
LANDMARKS = DetectorFit(1.25, 0.87, 0.13)
LANDMARKS_SCALE = 1.2  # data.datasets.*.landmark_box_scale at which that was measured
FITS = {
    "synthetic": DetectorFit(1.18, 1.19, 0.01),
    "aflw2000": LANDMARKS,
    "300w_lp": LANDMARKS,
    "pointing04": DetectorFit(0.85, 0.66, 0.02),
    "biwi": DetectorFit(1.44, 1.08, 0.07),
}


def fit_to(spec: DatasetSpec) -> DetectorFit | None:
    """What makes YuNet's boxes like those of a dataset; None where nobody has measured it."""
    if spec.detector is not None:
        return DetectorFit()
    fit = None if spec.boxes else FITS.get(spec.reader)
    if fit is LANDMARKS:
        grown = spec.landmark_box_scale / LANDMARKS_SCALE
        return DetectorFit(fit.width * grown, fit.height * grown, fit.down)
    return fit


def mean_fit(fits: Sequence[tuple[DetectorFit | None, int]]) -> DetectorFit | None:
    """The mean over (fit, number of faces): geometric of the sides. What is unknown is left out; None if all is."""
    known = [(fit, faces) for fit, faces in fits if fit is not None and faces > 0]
    if not known:
        return None
    whole = sum(faces for _, faces in known)
    width, height = (
        math.exp(sum(faces * math.log(getattr(fit, side)) for fit, faces in known) / whole)
        for side in ("width", "height")
    )
    return DetectorFit(width, height, sum(faces * fit.down for fit, faces in known) / whole)
