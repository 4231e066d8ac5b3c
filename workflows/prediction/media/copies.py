"""The drawn copy of a video: H.264 in MP4, each frame at its own time, the sound of the source beside it.

PyAV is imported when a video is opened, not before: its FFmpeg has 100 MB (docs/prediction.md: what it brings).
"""

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hpe_core.errors import SpecError, UserError, say
from hpe_core.geometry.crop import Image
from workflows.prediction.media.frames import Frame

VIDEO_SUFFIX, CODEC = ".mp4", "libx264"
# No frame refers to a later one, so packets leave in the order of the frames.
OPTIONS = {"bf": "0", "crf": "18", "preset": "veryfast"}
AAC_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # by the number of channels
LAST_S = Fraction(1, 25)  # how long the last frame stays where nobody knows


def pyav() -> Any:
    """PyAV. Raises UserError that says what brings it."""
    try:
        import av
    except ImportError:
        raise UserError(
            "videos and streams are read and written by PyAV, which is not installed; "
            "pip install 'head-pose-distillation[video]' brings it"
        ) from None
    return av


class DrawnVideo:
    """Written from the first frame on. `sound` are the source's streams whose packets `hear` gets."""

    def __init__(self, path: Path, tick: Fraction, sound: Sequence[Any] = (), start: Fraction = Fraction(0)) -> None:
        """Times are told in ticks of so many seconds; the source's own times begin at `start` seconds."""
        self.path, self._tick, self._sources, self._start = path, tick, sound, start
        self._file: Any = None
        self._video: Any = None
        self._sound: dict[int, _Sound] = {}
        self._heard: deque[Any] = deque()
        self._size, self._end, self._last = (0, 0), Fraction(0), 0

    def add(self, image: Image, time: Fraction, lasts: Fraction = LAST_S) -> None:
        """One (H, W, 3) frame, later than the one before. Raises SpecError if the file cannot be written."""
        with self._written() as av:
            if self._file is None:
                self._open(av, image)
            if image.shape[1::-1] != self._size:  # a stream that changes its size
                image = np.asarray(cv2.resize(image, self._size), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            self._last = round(time / self._tick)
            frame.pts, frame.time_base = self._last, self._tick
            self._end = time + lasts
            self._file.mux(self._video.encode(frame))
            self._pass_sound(time)

    def hear(self, packet: Any) -> None:
        """A packet of the source's sound; it is written beside the frames of its time."""
        self._heard.append(packet)

    def close(self, *, whole: bool = True) -> None:
        """Ends the file: without this call it has no index, and no player opens it. `whole`: all of the sound."""
        if self._file is None:
            return
        with self._written():
            for packet in self._video.encode(None):
                if packet.pts == self._last:  # of all others the next frame says how long they stay
                    packet.duration = max(1, round(self._end / self._tick) - self._last)
                self._file.mux(packet)
            self._pass_sound(None if whole else self._end)
            for sound in self._sound.values():
                sound.end()
            self._file.close()
        self._file = None

    def _open(self, av: Any, image: Image) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A late start is told in ticks of the whole file, by default milliseconds.
        options = {"movie_timescale": str(self._tick.denominator)}
        self._file = av.open(f"file:{self.path}", "w", format="mp4", options=options)
        self._size = image.shape[1], image.shape[0]
        self._video = self._file.add_stream(CODEC, rate=25, options=dict(OPTIONS))
        self._video.width, self._video.height = self._size
        # Halved colour needs even sides; of an odd size players other than a browser show full colour.
        self._video.pix_fmt = "yuv420p" if self._size[0] % 2 == self._size[1] % 2 == 0 else "yuv444p"
        self._video.codec_context.time_base = self._tick
        self._sound = {source.index: _Sound(self._file, source, self._start) for source in self._sources}

    def _pass_sound(self, until: Fraction | None) -> None:
        while self._heard:
            packet = self._heard[0]
            if until is not None and packet.dts is not None and packet.dts * packet.time_base - self._start > until:
                break
            self._sound[packet.stream.index].write(self._heard.popleft())

    @contextmanager
    def _written(self) -> Iterator[Any]:
        av = pyav()
        try:
            yield av
        except (OSError, ValueError, av.FFmpegError) as error:  # ValueError: an FFmpeg without the codec
            why = getattr(error, "strerror", None) or error
            raise SpecError(f"the video {self.path} cannot be written: {why}") from None


class Moving:
    """What videos, animations, cameras and streams share: one name, and drawn frames that become an MP4 file."""

    noun, live, moving = "frame", False, True

    def __init__(self, name: str, copy: DrawnVideo) -> None:
        self.name, self.names, self.left_out = name, [name], Counter[str]()
        self._copy, self._lasts = copy, LAST_S  # how long a frame stays if no other follows

    def keep(self, frame: Frame, drawn: Image) -> None:
        assert frame.time is not None
        self._copy.add(drawn, frame.time, self._lasts)


class _Sound:
    """Writes packets of one stream: as they are if MP4 takes them, else as AAC. Damaged ones are left out and counted,
    and the pictures go on."""

    def __init__(self, file: Any, source: Any, start: Fraction) -> None:
        context = source.codec_context
        self._file, self._start, self._last, self._lost = file, start, None, 0
        self._given: tuple[Any, ...] = ()  # how the source's samples lie; a broadcast changes it in its midst
        self._resampler: Any = None
        self._trial = _trial(source)
        if self._trial is not None:
            self._stream = file.add_stream_from_template(source)
        else:
            rate = context.sample_rate if context.sample_rate in AAC_RATES else 48_000
            layout = LAYOUTS.get(context.channels, "stereo")
            self._stream = file.add_stream("aac", rate=rate, layout=layout)

    def write(self, packet: Any) -> None:
        if packet.dts is None:
            return
        try:
            written = list(self._coded(packet) if self._trial is None else self._tried(packet))
        except pyav().FFmpegError:
            self._lost += 1
            return
        self._file.mux(written)

    def end(self) -> None:
        if self._trial is None:
            self._file.mux([*self._resampled(None), *self._stream.encode(None)])
        else:
            with suppress(pyav().FFmpegError):
                self._trial.close()
        if self._lost:
            say(f"{self._lost} packet{'s' * (self._lost != 1)} of the sound left out as damaged")

    def _tried(self, packet: Any) -> Iterator[Any]:
        """The packet, if MP4 takes it: the copy itself would fail at a later one, of a picture, and have no index."""
        if self._last is not None and packet.dts <= self._last:
            return  # MP4 holds rising times alone
        packet.duration = packet.duration or packet.dts - (self._last or packet.dts)  # a last one of 0 is not heard
        self._last, shift = packet.dts, round(self._start / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        packet.stream = self._trial.streams[0]
        self._trial.mux(packet)
        packet.stream = self._stream
        yield packet

    def _coded(self, packet: Any) -> Iterator[Any]:
        for frame in packet.decode():
            if frame.pts is not None:
                frame.pts -= round(self._start / frame.time_base)
            given = frame.format.name, frame.layout.name, frame.sample_rate
            if given != self._given:
                yield from self._resampled(None)
                coded = self._stream.codec_context
                self._resampler = pyav().AudioResampler(coded.format, coded.layout, coded.sample_rate)
                self._given = given
            yield from self._resampled(frame)

    def _resampled(self, frame: Any) -> Iterator[Any]:
        """`frame`: None brings what the filter still holds."""
        for part in self._resampler.resample(frame) if self._resampler is not None else ():
            if part is not None:
                yield from self._stream.encode(part)


def _trial(source: Any) -> Any:
    """An MP4 file of this sound alone, of which nothing is kept; None where MP4 does not take it as it is: it has some
    kinds at some rates alone, or as an experiment."""
    av = pyav()
    trial = av.open(os.devnull, "w", format="mp4")
    try:
        trial.add_stream_from_template(source)
        trial.start_encoding()
    except (ValueError, av.FFmpegError):
        return None
    return trial
