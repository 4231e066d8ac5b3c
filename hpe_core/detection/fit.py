"""From a detector's box to the box that a network was taught with.

Datasets mean different things by a face's box, and a network that is shown another kind than it learnt from sees a face
of another size. Each reader says how its boxes differ from YuNet's (docs/datasets.md: how that was measured).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hpe_core.geometry.crop import Box


@dataclass(frozen=True)
class DetectorFit:
    """YuNet's box times `width` and `height`, its centre moved down by `down` of its own height."""

    width: float = 1.0
    height: float = 1.0
    down: float = 0.0

    def of(self, box: Box) -> Box:
        x, y = box.center
        return Box.around((x, y + self.down * box.height), box.width * self.width, box.height * self.height)


# To boxes of landmarks by our rule (`Box.of_face`), which the shipped networks know; 976 faces of AFLW2000.
TO_LANDMARKS = DetectorFit(1.45, 1.04, 0.12)


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
