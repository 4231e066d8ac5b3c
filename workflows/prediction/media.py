"""What `predict` looks at and what it leaves behind: pictures and folders of them, a video, a camera.

Each kind gives its frames one by one and takes drawn copies of them. Pictures are decoded strictly: a missing or
damaged one becomes an `Unusable` with a sentence, and the next one follows. They are decoded in this process, not in
the sandbox that datasets have.

Datasets keep their pixels as stored, since annotations refer to those. Pictures whose faces are looked for are turned
upright by their EXIF orientation, or portraits from a telephone would lie on their side. OpenCV does so for videos. A
drawn video has no sound.
"""

import io
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as Pil
from PIL.ExifTags import Base

from hpe_core.datasets import files
from hpe_core.datasets.base import Rejected
from hpe_core.datasets.pictures import BROKEN_DATA, decode_picture, read_bytes
from hpe_core.detection.detector import silent_opencv
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Image, encoded
from workflows.prediction.resolve import similar

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
CODEC, VIDEO_SUFFIX, DEFAULT_FPS = "mp4v", ".mp4", 25.0
COMPLETE = 0.9  # a video of fewer of the frames that it announces is damaged; some formats only estimate their number


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture (number 0) or a frame of a video: (H, W, 3) uint8 RGB, `seconds` after the start."""

    name: str
    number: int
    image: Image
    seconds: float | None = None


@dataclass(frozen=True)
class Unusable:
    """A picture that cannot be looked at, and a sentence that names it."""

    said: str


def open_media(words: Sequence[str], out: Path, *, upright: bool) -> "Media":
    """Pictures and folders, or one video, or one camera by its number. Writes nothing yet. Raises SpecError."""
    if not words:
        raise SpecError("name a picture, a folder of pictures, a video, or the number of a camera")
    if len(words) == 1 and words[0].isdecimal() and not Path(words[0]).exists():
        return Video(int(words[0]), f"camera {words[0]}", out / f"camera-{words[0]}{VIDEO_SUFFIX}")
    paths = [Path(word).expanduser() for word in words]
    for path in paths:
        if not path.exists():
            raise SpecError(f"there is no {path}{similar(path)}")
    if len(paths) == 1 and paths[0].suffix.lower() in VIDEOS:
        return Video(str(paths[0]), paths[0].name, apart(paths[0], out / f"{paths[0].stem}{VIDEO_SUFFIX}"))
    found: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    for path in paths:
        left_out += others(path, out)
        for name, file in _pictures(path, out):
            if name in found and not file.samefile(found[name]):
                raise SpecError(f"{found[name]} and {file} would both be written to {out / name}; give them apart")
            found[name] = file
            apart(file, out / name)
    if not found:
        raise SpecError(f"{paths[0]} holds no picture ({', '.join(files.PICTURES)}), leaving out what lies in {out}")
    return Pictures(found, out, left_out, upright=upright)


def apart(source: Path, target: Path) -> Path:
    """The target. Raises SpecError if it is the very file that is read."""
    if target.exists() and target.samefile(source):
        raise SpecError(f"{target} would be written over itself; choose another folder with out=FOLDER")
    return target


def others(path: Path, out: Path) -> Counter[str]:
    """Endings of the files in a folder that are not looked at, so that nobody takes .heic for seen."""
    names = files.listing(path, ("",)) if path.is_dir() else ()
    seen = (path / name for name in names if not name.lower().endswith(files.PICTURES))
    return Counter(file.suffix.lower() or "none" for file in seen if not file.resolve().is_relative_to(out.resolve()))


def _pictures(path: Path, out: Path) -> Iterator[tuple[str, Path]]:
    """(name below `out`, file) of each picture, without those that an earlier run wrote into `out`."""
    if path.is_dir():
        for name in sorted(files.listing(path, files.PICTURES)):
            if not (path / name).resolve().is_relative_to(out.resolve()):
                yield name, path / name
    elif path.suffix.lower() in files.PICTURES:
        yield path.name, path
    else:
        more = "; a video is looked at alone" if path.suffix.lower() in VIDEOS else ""
        raise SpecError(f"{path} is no picture by its ending ({', '.join(files.PICTURES)}){more}")


class Pictures:
    """Picture files by name, and by ending how many others were left out; drawn copies lie below `out`."""

    noun = "picture"
    live = False

    def __init__(self, found: dict[str, Path], out: Path, left_out: Counter[str], *, upright: bool) -> None:
        self.found, self.out, self.left_out, self.upright = found, out, left_out, upright
        self.names, self.total = list(found), len(found)

    def frames(self) -> Iterator[Frame | Unusable]:
        for name, path in self.found.items():
            try:
                data = read_bytes(path)
                image = decode_picture(data, files.printable(str(path)))
                yield Frame(name, 0, turned(image, orientation(data)) if self.upright else image)
            except Rejected as rejected:
                yield Unusable(rejected.detail)
            except MemoryError:
                yield Unusable(f"{files.printable(str(path))} needs more memory than there is")

    def keep(self, frame: Frame, drawn: Image) -> None:
        """Writes the frame with what was drawn on it. Raises SpecError if the file cannot be written."""
        path = self.out / frame.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(drawn, path.suffix))  # imwrite dies on a name that is no UTF-8
        except OSError as error:
            raise SpecError(f"{files.printable(str(path))} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        pass


class Video:
    """The frames of a video file or a camera; drawn ones become one video file.

    `total` is 0 where nobody knows it. `live` frames come from a camera and end when somebody stops them.
    """

    noun = "frame"

    def __init__(self, source: str | int, name: str, path: Path) -> None:
        """Raises SpecError if the source cannot be opened."""
        self.name, self.path, self.live = name, path, isinstance(source, int)
        self.names, self.left_out = [name], Counter[str]()
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own remarks; what failed is said here
        with silent_opencv():
            self._capture: Any = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise SpecError(f"{name} cannot be opened" + ("" if self.live else " as a video"))
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self._fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS
        self.total = 0 if self.live else max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._writer: Any = None
        self._size = (0, 0)  # of the written video: that of the first frame

    def frames(self) -> Iterator[Frame | Unusable]:
        number, began = 0, time.monotonic()
        while True:
            read, bgr = self._capture.read()
            if not read:
                break
            passed = time.monotonic() - began if self.live else self._stamp(number)
            yield Frame(self.name, number, np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8), passed)
            number += 1
        if number == 0 or number < COMPLETE * self.total:
            yield Unusable(f"{self.name} ends after {number} of {self.total or 'its'} frames")

    def _stamp(self, number: int) -> float:
        """Seconds by the file's own time, since frames may be spaced unevenly; by the frame's number if it has none."""
        stamp = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3
        return stamp if stamp > 0 else number / self._fps

    def keep(self, frame: Frame, drawn: Image) -> None:
        if self._writer is None:
            self._size = drawn.shape[1], drawn.shape[0]
            self._writer = self._open_writer()
        if drawn.shape[1::-1] != self._size:  # a stream that changes its size: such frames would be dropped in silence
            drawn = np.asarray(cv2.resize(drawn, self._size), dtype=np.uint8)
        self._writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))

    def _open_writer(self) -> Any:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(f"the video {self.path} cannot be written: {error.strerror}") from None
        codec = cv2.VideoWriter.fourcc(*CODEC)
        with silent_opencv():
            writer = cv2.VideoWriter(str(self.path), codec, self._fps, self._size)
        if not writer.isOpened():
            raise SpecError(f"the video {self.path} cannot be written")
        return writer

    def close(self) -> None:
        """Without this call the video has no index, and no player opens it."""
        self._capture.release()
        if self._writer is not None:
            self._writer.release()


Media = Pictures | Video


def orientation(data: bytes) -> int:
    """The EXIF orientation of an encoded picture that was decoded before; 1 if it has none."""
    try:
        with Pil.open(io.BytesIO(data)) as opened:
            return int(opened.getexif().get(Base.Orientation, 1))
    except BROKEN_DATA:  # the pixels are sound, the camera's notes are not
        return 1


def turned(image: Image, way: int) -> Image:
    """The stored pixels as EXIF orientation 1 ... 8 wants them seen; another value is as stored."""
    if way in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if way in (2, 3, 6, 7):
        image = image[:, ::-1]
    if way in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
