"""Small videos that a test writes: frames of one grey each, at the times that it names, with sound if it wants some."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from workflows.prediction.media.frames import Frame, Media, Unusable
from workflows.prediction.opening import open_media

WIDTH, HEIGHT = 176, 144  # the one size that H.263 knows, too
TICK = Fraction(1, 1000)
FORMATS = {".ogv": "ogg", ".ts": "mpegts", ".mts": "mpegts", ".m2ts": "mpegts", ".wmv": "asf", ".y4m": "yuv4mpegpipe"}
UNEVEN = [0, 40, 120, 1000, 1040, 1080, 3480, 3520]
EVEN = [40 * i for i in range(8)]


def level(number: int) -> int:
    """The grey of a frame."""
    return 20 + 25 * (number % 9)


def grey(number: int) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), level(number), np.uint8)
    image[: HEIGHT // 4, : WIDTH // 4] = 255  # so that its top left is known
    return image


def write_clip(
    path: Path,
    codec: str,
    ms: Sequence[int],
    *,
    sound: str = "",
    rate: int = 48_000,
    begin: int = 0,
    turned: int = 0,
    mirrored: bool = False,
    aspect: Fraction | None = None,
    gop: int = 12,
    options: dict[str, str] | None = None,
) -> Path:
    """Frames at these milliseconds after `begin`; `sound` is a codec, heard from there to the last frame. `aspect`: how
    many times as wide as high a pixel is to be seen."""
    with av.open(str(path), "w", format=FORMATS.get(path.suffix), options=options or {}) as file:
        video = file.add_stream(codec, rate=25, options={"g": str(gop), "bf": "0", "deadline": "realtime"})
        video.width, video.height = WIDTH, HEIGHT
        video.codec_context.thread_count = 2  # which bytes come out depends on it, and by itself it is the machine's
        video.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        exact = codec in ("libx264", "libvpx", "flv", "wmv2", "mpeg4")
        video.codec_context.time_base = TICK if exact and path.suffix not in (".avi", ".ogv") else Fraction(1, 25)
        if turned or mirrored:
            video.set_display_rotation(turned, hflip=mirrored)
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        heard = file.add_stream(sound, rate=rate, layout="mono") if sound else None
        for number, at in enumerate(ms):
            frame = av.VideoFrame.from_ndarray(grey(number), format="rgb24").reformat(format=video.pix_fmt)
            frame.pts, frame.time_base = begin + at, TICK
            file.mux(video.encode(frame))
        if heard is not None:
            for start in range(0, ms[-1] * rate // 1000, rate // 25):
                tone = np.sin(np.arange(start, start + rate // 25) * 2 * np.pi * 440 / rate)
                part = av.AudioFrame.from_ndarray((tone * 8000).astype(np.int16)[None], format="s16", layout="mono")
                part.sample_rate, part.pts, part.time_base = rate, start + begin * rate // 1000, Fraction(1, rate)
                file.mux(heard.encode(part))
            file.mux(heard.encode(None))
        file.mux(video.encode(None))
    return path


def seen(media: Media) -> tuple[list[Frame], list[str]]:
    """Every frame, kept as it is in the copy, and what is said of the file. Closes it."""
    frames, said = [], []
    for one in media.frames():
        if isinstance(one, Unusable):
            said.append(one.said)
        else:
            frames.append(one)
            media.keep(one, one.image)
    media.close()
    return frames, said


def greys(frames: Sequence[np.ndarray]) -> list[float]:
    return [float(image[HEIGHT // 2 :, WIDTH // 2 :].mean()) for image in frames]


def times_of(path: Path) -> list[float]:
    """Seconds of each frame of an MP4 file, as FFmpeg tells them."""
    with av.open(str(path)) as file:
        return [float(frame.pts * frame.time_base) for frame in file.decode(video=0)]


def sound_of(path: Path) -> list[bytes]:
    """The packets of a file's sound."""
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(file.streams.audio[0]) if packet.size]


def opened(path: Path, out: Path, **more: bool):
    return open_media([str(path)], out, upright=True, **more)


def seconds(frames: list[Frame]) -> list[float]:
    return [float(frame.time or 0) for frame in frames]


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
