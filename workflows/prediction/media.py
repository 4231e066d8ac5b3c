"""The words of the command -> what is looked at: pictures and folders, one video or animation, a camera, a stream."""

from collections.abc import Sequence
from pathlib import Path

from hpe_core.datasets.pictures import MAX_PIXELS
from hpe_core.errors import SpecError
from workflows.prediction.animations import Animation
from workflows.prediction.copies import pyav
from workflows.prediction.frames import Media, apart
from workflows.prediction.kinds import kind_of
from workflows.prediction.pictures import open_pictures
from workflows.prediction.resolve import similar
from workflows.prediction.streams import Camera, is_address, open_address
from workflows.prediction.videos import FILES_ALONE, VideoFile, copy_name, opened


def open_media(
    words: Sequence[str], out: Path, *, upright: bool, draw: bool = True, max_pixels: int = MAX_PIXELS
) -> Media:
    """Writes nothing yet. Raises SpecError, or UserError where a package is missing."""
    if not words:
        raise SpecError("name a picture, a folder of pictures, a video, a stream's address, or the number of a camera")
    addresses = [word for word in words if is_address(word)]
    if addresses and len(words) > 1:
        raise SpecError("a stream is looked at alone")
    if addresses:
        return open_address(addresses[0], out, sound=draw)
    if len(words) == 1 and words[0].isdecimal() and not Path(words[0]).exists():
        _check_writable(draw)
        return Camera(int(words[0]), out)
    paths = [Path(word).expanduser() for word in words]
    for path in paths:
        if not path.exists():
            raise SpecError(f"there is no {path}{similar(path)}")
    kind = kind_of(paths[0]) if len(paths) == 1 and not paths[0].is_dir() else ""
    if kind in ("animation", "video"):
        path, copy = paths[0], out / copy_name(paths[0].name)
        if kind == "animation":
            _check_writable(draw)
            return Animation(path, apart(path, copy), max_pixels)
        container = opened(f"file:{path}", path.name, FILES_ALONE)
        return VideoFile(container, path.name, apart(path, copy), sound=draw, file=path)
    return open_pictures(paths, out, upright=upright, max_pixels=max_pixels)


def _check_writable(draw: bool) -> None:
    """Raises UserError at once where a drawn copy is wanted and what writes it is missing."""
    if draw:
        pyav()
