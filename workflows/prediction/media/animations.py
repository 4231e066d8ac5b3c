"""GIF, WebP, PNG and AVIF files that hold several pictures, read by Pillow, which puts their parts together."""

import io
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image as Pil

from hpe_core.datasets.base import Rejected
from hpe_core.datasets.decoding.pictures import BROKEN_DATA, read_bytes
from hpe_core.errors import SpecError
from workflows.prediction.media.copies import DrawnVideo, Moving
from workflows.prediction.media.frames import Frame, Unusable
from workflows.prediction.media.pictures import orientation, turned

TICK = Fraction(1, 1000)
SHORTEST_MS, USUAL_MS = 11, 100  # a shorter frame stays 100 ms, as browsers show it


class Animation(Moving):
    """Its pictures one by one."""

    def __init__(self, path: Path, copy: Path, max_pixels: int) -> None:
        """Raises SpecError for a file that cannot be read or whose pictures are too large."""
        super().__init__(path.name, DrawnVideo(copy, TICK))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._opened = Pil.open(io.BytesIO(data := read_bytes(path)))
        except Rejected as rejected:
            raise SpecError(rejected.detail) from None
        except BROKEN_DATA as error:
            raise SpecError(f"{path.name} cannot be read: {error}") from None
        self._way = orientation(data)
        width, height = self._opened.size
        if width * height > max_pixels:
            raise SpecError(f"{path.name} declares {width} x {height} pixels; at most {max_pixels} are decoded")
        self.total = int(getattr(self._opened, "n_frames", 1))

    def frames(self) -> Iterator[Frame | Unusable]:
        ms = 0
        for number in range(self.total):
            try:
                self._opened.seek(number)
                self._opened.load()
                image = turned(np.array(self._opened.convert("RGB"), dtype=np.uint8), self._way)
            except BROKEN_DATA:
                yield Unusable(f"{self.name} ends after {number} of {self.total} frames")
                return
            stays = round(float(self._opened.info.get("duration") or 0))
            stays = stays if stays >= SHORTEST_MS else USUAL_MS
            self._lasts = stays * TICK
            yield Frame(self.name, number, image, ms * TICK)
            ms += stays

    def close(self) -> None:
        self._copy.close()
        self._opened.close()
