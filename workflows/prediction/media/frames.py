"""What a frame is, and what each kind of media gives and takes: pictures, videos, animations, streams, cameras."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Box, Image


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture (number 0) or a frame of a video: (H, W, 3) uint8 RGB, `time` in seconds after the start.

    `scale` says how many columns and rows of the file one of `image` stands for, and `size` is the file's
    (width, height): a large picture is decoded at a reduced scale.
    """

    name: str
    number: int
    image: Image
    time: Fraction | None = None
    scale: int = 1
    size: tuple[int, int] | None = None

    @property
    def seconds(self) -> float | None:
        return None if self.time is None else float(self.time)

    @property
    def file_size(self) -> tuple[int, int]:
        """(width, height) of the picture in the file."""
        return self.size or (self.image.shape[1], self.image.shape[0])

    def in_file(self, box: Box) -> Box:
        """A box of `image` in pixels of the file."""
        return Box(box.x1 * self.scale, box.y1 * self.scale, box.x2 * self.scale, box.y2 * self.scale)

    def in_image(self, box: Box) -> Box:
        """A box in pixels of the file in those of `image`."""
        return Box(box.x1 / self.scale, box.y1 / self.scale, box.x2 / self.scale, box.y2 / self.scale)


@dataclass(frozen=True)
class Unusable:
    """A picture that cannot be looked at, or what is wrong with a video, in a sentence that names it."""

    said: str


class Media(Protocol):
    """Gives frames one by one and takes drawn copies of them.

    `names` are of the files; `total` is how many frames there will be, about, 0 where nobody knows. `live` frames end
    when somebody stops them; `moving` ones show the same people again and again.
    """

    noun: str
    live: bool
    moving: bool
    total: int
    names: list[str]
    left_out: Counter[str]

    def frames(self) -> Iterator[Frame | Unusable]: ...

    def keep(self, frame: Frame, drawn: Image) -> None: ...

    def close(self) -> None: ...


def apart(sources: Iterable[Path], targets: Iterable[Path]) -> None:
    """Raises SpecError if a target is one of the files that are read, by whichever name."""
    read = {_identity(source) for source in sources} - {None}
    for target in targets:
        if _identity(target) in read:
            raise SpecError(f"{target} is read, and would be written over; choose another folder with out=FOLDER")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of a file that is there."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
