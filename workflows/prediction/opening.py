"""The words of the command -> what is looked at: pictures and folders, one video or animation, a camera, a stream."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hpe_core.datasets.decoding.pictures import MAX_PIXELS
from hpe_core.datasets.files import printable
from hpe_core.errors import SpecError, shown
from workflows.prediction.media.animations import Animation
from workflows.prediction.media.copies import pyav
from workflows.prediction.media.frames import Media, apart
from workflows.prediction.media.kinds import kind_of
from workflows.prediction.media.pictures import open_pictures
from workflows.prediction.media.streams import SCHEMES, Camera, is_address, open_address
from workflows.prediction.media.videos import VideoFile, copy_name, is_cut
from workflows.prediction.output import TABLE
from workflows.prediction.resolve import similar


def open_media(
    words: Sequence[str], out: Path, *, upright: bool, draw: bool = True, max_pixels: int = MAX_PIXELS
) -> Media:
    """Writes nothing yet. Raises SpecError, or UserError where a package is missing."""
    if not words or "" in words:  # "" would be the folder where the command was given
        raise SpecError("name a picture, a folder of pictures, a video, a stream's address, or the number of a camera")
    addresses = [word for word in words if is_address(word)]
    if addresses and len(words) > 1:
        raise SpecError("a stream is looked at alone")
    if addresses:
        return open_address(addresses[0], out, sound=draw)
    if len(words) == 1 and words[0].isdecimal() and not os.path.exists(words[0]):
        if draw:
            pyav()  # said at once where what writes the copy is missing
        return Camera(int(words[0]), out)
    paths = [Path(os.path.expanduser(word)) for word in words]
    for word, path in zip(words, paths, strict=True):
        _check_there(word, path)
    apart(paths, [out / TABLE])
    kind = kind_of(paths[0]) if len(paths) == 1 and not paths[0].is_dir() else ""
    if kind in ("animation", "video"):
        path, copy = paths[0], out / copy_name(paths[0].name)
        if draw:
            apart([path], [copy])
        if kind == "animation":
            if draw:
                pyav()
            return Animation(path, copy, max_pixels)
        try:
            return VideoFile.here(path, path.name, copy, sound=draw)
        except SpecError as error:
            raise SpecError(f"{error}{'; a part of it is missing: it was cut off' * is_cut(path)}") from None
    return open_pictures(paths, out, upright=upright, draw=draw, max_pixels=max_pixels)


def local(word: str) -> str:
    """A file's address, file:///..., as its path; any other word as it is. Raises SpecError for another machine's."""
    if not word.lower().startswith("file://"):
        return word
    parts = urlsplit(word)
    if parts.netloc not in ("", "localhost"):
        raise SpecError(f"{word} lies on another machine, {parts.netloc}; on this one it begins with file:///")
    return unquote(parts.path, errors="surrogateescape")


def _check_there(word: str, path: Path) -> None:
    """Raises SpecError where there is neither a folder nor a plain file: a pipe may never begin, a device never end."""
    name = printable(str(path))
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if "://" in word:
            raise SpecError(
                f"{shown(word)} is no address that is read; those begin with {', '.join(SCHEMES)}"
            ) from None
        raise SpecError(f"there is no {name}{similar(path)}") from None
    except OSError as error:
        raise SpecError(f"{name} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        camera = "; a camera is named by its number alone" if stat.S_ISCHR(mode) else ""
        raise SpecError(f"{name} is neither a file nor a folder{camera}")
