"""What is seen now: cameras by their number, and streams by their address.

A stream is read in a thread that keeps the newest frame alone: who looks more slowly than the frames come misses some
rather than lag behind. Where it breaks off it is opened again, up to `TRIES` times in a row. Both end with Ctrl-C.
"""

import base64
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import cv2
import numpy as np

from hpe_core.detection.detector import silent_opencv
from hpe_core.errors import SpecError, say, shown
from hpe_core.geometry.crop import Image
from workflows.prediction.media.copies import DrawnVideo, Moving, pyav
from workflows.prediction.media.frames import Frame, Media, Unusable
from workflows.prediction.media.kinds import VIDEOS
from workflows.prediction.media.videos import Clock, VideoFile, copy_name, opened, packets_of, pictures_of, upright

WEB = ("http", "https")
PLAYLISTS = ("hls", "dash")  # name the files of a video, each read from its beginning
LIVE_ENDINGS = (".ts", ".flv", ".webm", ".ogv", ".ogg", ".mjpeg", ".mjpg")  # sent by cameras, too
SCHEMES = (*WEB, "rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "srt", "tcp")
OPEN_S, SILENCE_S = 15.0, 10.0  # how long a server may take to answer, and a stream to send nothing
TRIES, FIRST_WAIT_S = 5, 1.0  # the wait doubles
FILE_S, FILE_SPEED = 1.0, 4.0  # what lasts longer and came so much faster than it plays is no camera's
TICK = Fraction(1, 90_000)
OPTIONS = {
    "protocol_whitelist": "http,https,httpproxy,tcp,tls,crypto,udp,rtp,srtp,rtsp,rtsps,rtmp,rtmps,srt",
    "rtsp_transport": "tcp",  # over UDP a busy network loses parts of pictures
}


def is_address(word: str) -> bool:
    return word.partition("://")[0].lower() in SCHEMES and "://" in word


def open_address(address: str, out: Path, *, sound: bool) -> Media:
    """A video at a web address, or a stream without an end. Raises SpecError that names it."""
    name = shown(address)
    container = opened(address, name, OPTIONS, (OPEN_S, SILENCE_S))
    parts = urlsplit(name)
    ending = Path(parts.path).suffix.lower()
    listed = container.format.name in PLAYLISTS  # its size is that of the list
    ends = not listed and (container.size > 0 or any(stream.frames for stream in container.streams.video))
    recorded = ends or container.duration or (ending in VIDEOS and ending not in LIVE_ENDINGS)
    if parts.scheme in WEB and recorded:
        copy = out / copy_name(Path(parts.path).name or parts.netloc)
        held = copied_here(address, name) if ends else None
        if held is None:
            return VideoFile(container, name, copy, sound=sound)
        container.close()
        return VideoFile.here(Path(held.name), name, copy, sound=sound, held=held)
    plain = re.sub(r"[^\w.]+", "-", f"{parts.netloc}{parts.path}").strip("-")
    return Stream(container, address, name, out / f"{plain}.mp4")


def copied_here(address: str, name: str) -> IO[bytes] | None:
    """A copy of the file, removed when it is closed, if the server sends a file from its beginning only: a video's
    index may stand at its end. None where it sends parts. Raises SpecError."""
    from http.client import HTTPException
    from urllib.request import Request, urlopen  # costs what OpenCV and NumPy cost together

    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host)), headers={"Range": "bytes=0-0"})
    if user:  # for this server, and none that it points to
        name_and_password = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {name_and_password}")
    try:
        with urlopen(request, timeout=OPEN_S) as answer:
            if answer.status == 206:
                return None
            say(f"{name}: the server sends no parts of a file, so all of it is copied to this machine first")
            held = tempfile.NamedTemporaryFile(prefix="hpe-video-")  # noqa: SIM115  # lives as long as the video
            shutil.copyfileobj(answer, held)
            held.flush()
            return held
    except (OSError, HTTPException) as error:
        raise SpecError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


class Live(Moving):
    """What cameras and streams share: no end, and a copy in which each frame has the time at which it came."""

    live, total = True, 0

    def __init__(self, name: str, copy: Path) -> None:
        super().__init__(name, DrawnVideo(copy, TICK))


class Camera(Live):
    """A camera of this machine, by OpenCV."""

    def __init__(self, number: int, out: Path) -> None:
        """Raises SpecError if the camera cannot be opened."""
        super().__init__(f"camera {number}", out / f"camera-{number}.mp4")
        with silent_opencv(), suppress(cv2.error, OverflowError):  # of a number that no machine has so many of
            self._capture: Any = cv2.VideoCapture(number)
            if self._capture.isOpened():
                return
        raise SpecError(f"{self.name} cannot be opened")

    def frames(self) -> Iterator[Frame | Unusable]:
        number, began, last = 0, time.monotonic(), Fraction(-1)
        while True:
            read, bgr = self._capture.read()
            if not read:
                break
            last = max(last + TICK, since(began))
            yield Frame(self.name, number, np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8), last)
            number += 1
        yield Unusable(f"{self.name} ends after {number} frames")

    def close(self) -> None:
        self._capture.release()
        self._copy.close()


class Stream(Live):
    """A stream by its address. `number` of a frame counts those that were missed, too."""

    def __init__(self, container: Any, address: str, name: str, copy: Path) -> None:
        """Raises SpecError if there is no video in the container."""
        super().__init__(name, copy)
        self._address, self._container = address, container
        pictures_of(container, name)
        self._news = threading.Condition()
        self._newest: tuple[int, Fraction, Callable[[], Image]] | None = None
        self._number, self._taken, self._last = 0, 0, Fraction(-1)
        self._began, self._end, self._said = 0.0, threading.Event(), ""
        self._reader = threading.Thread(target=self._read, daemon=True, name=name)

    def frames(self) -> Iterator[Frame | Unusable]:
        self._began = time.monotonic()
        self._reader.start()
        while True:
            with self._news:
                while self._newest is None and not self._end.is_set():
                    self._news.wait(0.2)  # in parts, so that Ctrl-C comes through
                newest, self._newest = self._newest, None
            if newest is None:
                break
            self._taken += 1
            number, at, image = newest
            yield Frame(self.name, number, image(), at)
        yield Unusable(self._said)

    def close(self) -> None:
        self._end.set()
        missed = self._number - self._taken
        if missed > 0:
            say(f"{self.name}: {missed} of {self._number} frames were passed over so as not to lag behind")
        self._copy.close()
        if self._reader.is_alive():
            self._reader.join(1.0)
        if not self._reader.is_alive() and self._container is not None:
            self._container.close()

    def _read(self) -> None:
        """The thread: frames until `close`, or until the stream does not come back. However it ends, `frames` hears."""
        try:
            self._keep_reading()
        except Exception as error:
            self._said = f"{self.name} cannot be read further: {type(error).__name__}: {error}"
        finally:
            with self._news:
                self._end.set()
                self._news.notify()

    def _keep_reading(self) -> None:
        failures = 0
        while not self._end.is_set():
            seen, why = self._number, "it ended"
            try:
                if self._container is None:
                    self._container = opened(self._address, self.name, OPTIONS, (OPEN_S, SILENCE_S))
                if self._is_file(self._follow(self._container)):
                    self._said = (
                        f"{self.name} is a file that its server sends without a length: it came faster than it plays, "
                        "so frames may be missing; download it and name the copy"
                    )
                    return
            except SpecError as error:
                why = str(error).removeprefix(f"{self.name} ")
            except (OSError, pyav().FFmpegError) as error:
                why = error.strerror or type(error).__name__
            if self._end.is_set():
                return
            if self._container is not None:
                self._container.close()
                self._container = None
            failures = 1 if self._number > seen else failures + 1
            if failures > TRIES:
                self._said = f"{self.name} broke off after {self._number} frames and did not come back: {why}"
                break
            wait = FIRST_WAIT_S * 2 ** (failures - 1)
            say(f"{self.name} broke off: {why}; try {failures} of {TRIES} to open it again in {wait:g} s")
            self._end.wait(wait)

    def _is_file(self, began: Fraction) -> bool:
        """Whether what ended by itself came from the web at once. `began`: when its first frame came."""
        played, took = self._last - began, since(self._began) - began
        return self._address.lower().startswith("http") and played > max(FILE_S, FILE_SPEED * took)

    def _follow(self, container: Any) -> Fraction:
        """Frames to the end, or until `close`; returns the time of the first."""
        stream = pictures_of(container, self.name)
        began = max(since(self._began), self._last + TICK)
        clock: Clock | None = None
        stamped = not container.format.flags & pyav().format.Flags.no_timestamps.value  # else FFmpeg makes some up
        for packet in packets_of(container, [stream]):
            try:
                decoded = packet.decode()
            except pyav().InvalidDataError:  # a part that got lost on its way; the next whole picture goes on
                continue
            for frame in decoded:
                if self._end.is_set():
                    return began
                if frame.is_corrupt:
                    continue
                if clock is None:
                    first = frame.pts or 0
                    clock = Clock(stream, first * Fraction(stream.time_base))
                at = began + clock.at(frame.pts) if stamped and frame.pts is not None else since(self._began)
                self._last = max(self._last + TICK, at)
                with self._news:
                    self._newest = self._number, self._last, partial(upright, frame, stream.sample_aspect_ratio)
                    self._number += 1
                    self._news.notify()
        return began


def since(began: float) -> Fraction:
    return round((time.monotonic() - began) / TICK) * TICK
