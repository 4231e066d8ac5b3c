"""Picture files and folders of them.

Pictures are decoded strictly: a missing or damaged one becomes an `Unusable` with a sentence, and the next one follows.
They are decoded in this process, not in the sandbox that datasets have. A JPEG of more than `max_pixels` is decoded at
a reduced scale; boxes are still told in pixels of the file.

Datasets keep their pixels as stored, since annotations refer to those. Pictures whose faces are looked for are turned
upright by their EXIF orientation, or portraits from a telephone would lie on their side.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL.ExifTags import Base

from hpe_core.datasets import files
from hpe_core.datasets.base import Rejected
from hpe_core.datasets.decoding.pictures import BROKEN_DATA, decode_within, read_bytes
from hpe_core.datasets.decoding.unread import SAID
from hpe_core.detection.detector import silent_opencv
from hpe_core.errors import SpecError, say
from hpe_core.geometry.crop import Image, encoded
from workflows.prediction.media.frames import Frame, Unusable, apart
from workflows.prediction.media.kinds import PICTURES, is_picture, kind_of, opened_header, unread


def open_pictures(paths: Sequence[Path], out: Path, *, upright: bool, draw: bool, max_pixels: int) -> "Pictures":
    """Picture files and folders. Writes nothing yet. Raises SpecError."""
    found: dict[str, Path] = {}
    kept: dict[str, Path] = {}  # by the name of the row, or of the drawn copy
    left_out: Counter[str] = Counter()
    own: list[Path] = []  # in folders that were named and lie in `out`: no earlier run wrote them
    for path in paths:
        for name, file in _pictures(path, out, left_out, own):
            copy = drawn_name(name) if draw else name
            if copy in kept and not (name in found and file.samefile(found[name])):
                raise SpecError(f"{kept[copy]} and {file} would both be written as {out / copy}; give them apart")
            found[name] = kept[copy] = file
    if draw:
        apart([*found.values(), *own], (out / copy for copy in kept))
    if not found:
        others = f"; it holds {counted(left_out)}" if left_out else ""
        raise SpecError(f"{paths[0]} holds no picture ({', '.join(PICTURES)}), leaving out what lies in {out}{others}")
    return Pictures(found, out, left_out, upright=upright, max_pixels=max_pixels)


def _pictures(path: Path, out: Path, left_out: Counter[str], own: list[Path]) -> Iterator[tuple[str, Path]]:
    """(name below `out`, file) of each picture, without those that an earlier run wrote into `out`.

    Other files of a folder are counted by their endings, so that nobody takes a video in it for seen. If all of the
    folder lies in `out`, its files are noted as the user's `own`.
    """
    if not path.is_dir():
        if kind := unread(path):
            raise SpecError(f"{path} is {kind}, {SAID}")
        if kind_of(path) not in ("picture", "animation"):
            more = "; a video is looked at alone" if kind_of(path) == "video" else ""
            raise SpecError(f"{path} is no picture by its content or its ending{more}")
        yield path.name, path
        return
    place = os.path.realpath(out)
    is_within = Path(os.path.realpath(path)).is_relative_to(place)
    for name in sorted(files.listing(path, ("",))):
        file = path / name
        if Path(os.path.realpath(file)).is_relative_to(place):  # pathlib raises of a loop of links
            own += [file] * is_within
            continue
        if is_picture(file):
            yield name, file
        else:
            kind = unread(file)
            left_out[(file.suffix.lower() or "none") + (f" ({kind})" if kind else "")] += 1


def counted(left_out: Counter[str]) -> str:
    """Other files of a folder by their endings: '2 .mp4, 3 .nef (a camera's raw file ...)'."""
    return ", ".join(f"{number} {ending}" for ending, number in sorted(left_out.items()))


def drawn_name(name: str) -> str:
    """The name of the drawn copy: the picture's own, with `.jpg` behind an ending that is not written."""
    return name if name.lower().endswith(files.PICTURES) else f"{name}.jpg"


class Pictures:
    """Picture files by name, and by ending how many others were left out; drawn copies lie below `out`."""

    noun = "picture"
    live = False
    moving = False

    def __init__(
        self, found: dict[str, Path], out: Path, left_out: Counter[str], *, upright: bool, max_pixels: int
    ) -> None:
        self.found, self.out, self.left_out = found, out, left_out
        self.upright, self.max_pixels = upright, max_pixels
        self.names, self.total = list(found), len(found)

    def frames(self) -> Iterator[Frame | Unusable]:
        for name, path in self.found.items():
            shown = files.printable(str(path))
            try:
                data = read_bytes(path)
                image, scale, size = decode_within(data, shown, self.max_pixels)
                if self.upright and (way := orientation(data)) != 1:
                    image, size = turned(image, way), size[::-1] if way in SIDEWAYS else size
                if (pages := pages_of(data)) > 1:
                    say(f"{shown} has {pages} pages; the first is looked at")
                yield Frame(name, 0, image, scale=scale, size=size)
            except Rejected as rejected:
                more = "; max_pixels=NUMBER allows more" if "are decoded" in rejected.detail else ""
                yield Unusable(rejected.detail + more)
            except MemoryError:
                yield Unusable(f"{shown} needs more memory than there is")

    def keep(self, frame: Frame, drawn: Image) -> None:
        """Writes the frame with what was drawn on it; one that is too large for its kind of file is told instead.
        Raises SpecError if the file cannot be written."""
        path = self.out / drawn_name(frame.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with silent_opencv():
                path.write_bytes(encoded(drawn, path.suffix))  # imwrite dies on a name that is no UTF-8
        except ValueError as error:
            say(f"{files.printable(frame.name)} is not drawn: {error}")
        except OSError as error:
            raise SpecError(f"{files.printable(str(path))} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        pass


SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height


def orientation(data: bytes) -> int:
    """The EXIF orientation of an encoded picture that was decoded before; 1 if it has none."""
    try:
        with opened_header(data) as opened:
            return int(opened.getexif().get(Base.Orientation, 1))
    except BROKEN_DATA:  # the pixels are sound, the camera's notes are not
        return 1


def pages_of(data: bytes) -> int:
    """Of a TIFF, as a scanner writes them; 1 of anything else."""
    if not data.startswith((b"II*\0", b"MM\0*")):
        return 1
    try:
        with opened_header(data) as opened:
            return int(getattr(opened, "n_frames", 1))
    except BROKEN_DATA:
        return 1


def turned(image: Image, way: int) -> Image:
    """The stored pixels as EXIF orientation 1 ... 8 wants them seen; another value is as stored."""
    if way in SIDEWAYS:
        image = image.transpose(1, 0, 2)
    if way in (2, 3, 6, 7):
        image = image[:, ::-1]
    if way in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
