"""Video files, here or at a web address: every frame with the time that the file gives it.

PyAV reads them: packet by packet, so a file without a length, with frames unevenly spaced or with sound is as good as
any. A file is damaged if frames are lost: packets do not decode, its index lists more of them, or it ends inside a part
of itself. What a header only estimates counts for the progress line alone.
"""

import errno
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Image
from workflows.prediction.media.copies import VIDEO_SUFFIX, DrawnVideo, Moving, pyav
from workflows.prediction.media.frames import Frame, Unusable
from workflows.prediction.media.kinds import QUICKTIME

FILES_ALONE = {"protocol_whitelist": "file"}  # a playlist must not lead a local file into the network
LONGEST_PAGE, LONGEST_LIST = 1 << 16, 1 << 24  # bytes of a page of Ogg, and of an MP4's list of fragments
LAST_PAGE = 4  # the bit of an Ogg page that ends a stream of it (RFC 3533, section 6)
WIDEST = 10  # times as wide as high, or as high as wide; a pixel of another shape is a mistake of the file
JUMP_S = 1  # times that go back by more begin anew; by less, they are a slip of one frame


def opened(address: str, name: str, options: Mapping[str, str], timeout: Any = None) -> Any:
    """The container at the address. Raises SpecError that names it, without what FFmpeg adds of the address."""
    av = pyav()
    try:
        return av.open(address, options=dict(options), timeout=timeout)
    except (OSError, ValueError, av.FFmpegError) as error:
        raise SpecError(f"{name} cannot be opened as a video{_because(error)}") from None


def pictures_of(container: Any, name: str) -> Any:
    """The stream of pictures. Raises SpecError where there is none; the cover of a song is none."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & type(stream.disposition).attached_pic:
        raise SpecError(f"{name} holds no video")
    return stream


class Clock:
    """Ticks since the start, rising whatever a file says: missing times are filled in, jumps back are begun anew."""

    def __init__(self, stream: Any, start: Fraction | None) -> None:
        """`start`: of the file, in seconds; None: it knows none, and begins with its first frame."""
        self.tick = Fraction(stream.time_base)
        self.step = max(1, round(1 / (Fraction(stream.guessed_rate or stream.average_rate or 25) * self.tick)))
        self._shift = None if start is None else -round(start / self.tick)
        self._jump = round(JUMP_S / self.tick)
        self._last: int | None = None

    def at(self, pts: int | None) -> Fraction:
        """Seconds after the start."""
        before = self._last
        if pts is None:
            now = 0 if before is None else before + self.step
        else:
            self._shift = -pts if self._shift is None else self._shift
            now = pts + self._shift
            if before is not None and now < before - self._jump:
                self._shift += before + self.step - now
                now = before + self.step
            elif before is not None and now <= before:
                now = before + 1
        self._last = now
        return now * self.tick

    def slips(self, before: int | None, pts: int | None, after: int | None) -> bool:
        """Whether a time lies far from those before and after it, which agree."""
        if before is None or pts is None or after is None:
            return False
        return before < after and not before - self._jump <= pts <= after + self._jump

    def lasts(self, frame: Any) -> Fraction:
        """How long the frame stays if no other follows."""
        return (frame.duration or self.step) * self.tick


def timed(frames: Iterable[Any], clock: Clock) -> Iterator[tuple[Any, Fraction]]:
    """Each frame with its time. One frame alone whose time slips, as in a damaged recording, counts as without."""
    before: int | None = None
    held: Any = None
    for frame in frames:
        if held is not None:
            pts = None if clock.slips(before, held.pts, frame.pts) else held.pts
            yield held, clock.at(pts)
            before = before if pts is None else pts
        held = frame
    if held is not None:
        yield held, clock.at(held.pts)


class VideoFile(Moving):
    """The frames of a video."""

    def __init__(
        self,
        container: Any,
        name: str,
        copy: Path,
        *,
        sound: bool,
        file: Path | None = None,
        held: IO[bytes] | None = None,
    ) -> None:
        """`sound`: the copy gets what there is; `held` is closed in the end. Raises SpecError if there is no video in
        the container."""
        self._container, self._file, self._held = container, file, held
        self._stream = stream = pictures_of(container, name)
        start = container.start_time
        known = None if start is None else Fraction(max(0, start), 1_000_000)  # sound may begin a little before zero
        self._clock = Clock(stream, known)
        self._sources = [one for one in container.streams.audio if sound and one.codec_context is not None]
        super().__init__(name, DrawnVideo(copy, self._clock.tick, self._sources, known or Fraction(0)))
        lasts = Fraction(container.duration or 0, 1_000_000)
        self.total = stream.frames or round(lasts * Fraction(stream.average_rate or 0))
        self._tolerant = container.format.name == "mpegts"  # a recording may begin and end inside a picture
        self._packets, self._damaged, self._torn, self._whole, self._why = 0, 0, False, False, ""

    @classmethod
    def here(cls, path: Path, name: str, copy: Path, *, sound: bool, held: IO[bytes] | None = None) -> "VideoFile":
        """A file of this machine."""
        container = opened(f"file:{path}", name, FILES_ALONE)
        return cls(container, name, copy, sound=sound, file=path, held=held)

    def frames(self) -> Iterator[Frame | Unusable]:
        number, corrupt = 0, False
        for frame, time in timed(self._decoded(), self._clock):
            corrupt = frame.is_corrupt
            if corrupt:
                self._damaged += 1
                continue
            self._lasts = self._clock.lasts(frame)
            yield Frame(self.name, number, upright(frame, self._stream.sample_aspect_ratio), time)
            number += 1
        self._whole, self._torn = True, self._torn or (corrupt and not self._tolerant)
        said = self._complaint(number)
        if said:
            yield Unusable(f"{self.name} {said}")

    def _decoded(self) -> Iterator[Any]:
        """Every frame that decodes, to the end or to an error; counts packets and what is lost."""
        av, kind, begun = pyav(), self._container.format.name, False
        try:
            for packet in packets_of(self._container, [self._stream, *self._sources]):
                if packet.stream.type == "audio":
                    self._copy.hear(packet)
                    continue
                self._packets += packet.size > 0
                self._torn = packet.is_corrupt and not self._tolerant if packet.size else self._torn
                if kind == "avi" and packet.dts is not None:  # it numbers its frames, and leaves repeated ones out
                    self._packets = max(self._packets, packet.dts + 1)
                try:
                    decoded = packet.decode()
                except av.FFmpegError:  # damaged HEVC is not permitted, says its decoder
                    self._damaged += begun or not self._tolerant
                    self._torn = not self._tolerant
                    continue
                yield from decoded
                begun = begun or any(not frame.is_corrupt for frame in decoded)
        except (OSError, av.FFmpegError) as error:
            self._why = _because(error)

    def _complaint(self, number: int) -> str:
        """What is wrong with the file, if frames of it are lost. `number`: how many are not."""
        listed, why = self._stream.frames, self._why
        if listed and self._container.format.name.startswith("mov"):  # an edit list hides frames of the index
            listed = min(listed, len(self._stream.index_entries))
        if number < listed and self._packets < listed:
            return f"ends after {number} of {listed} frames{why}"
        if why or number == 0 or self._torn or (self._file is not None and is_cut(self._file)):
            return f"ends after {number} frames, before its end{why}" if number else f"holds no frame{why}"
        return f"has {self._damaged} damaged frame{'s' * (self._damaged != 1)}, left out" if self._damaged else ""

    def close(self) -> None:
        self._copy.close(whole=self._whole)
        self._container.close()
        if self._held is not None:
            self._held.close()


def packets_of(container: Any, streams: Sequence[Any]) -> Iterator[Any]:
    """The packets of the streams, and for each of them an empty one in the end, which brings its last frames.

    FFmpeg ends what a server has sent without a length by an error and without these.
    """
    try:
        yield from container.demux(streams)
    except OSError as error:
        if container.size > 0 or error.errno != errno.EIO:
            raise
        for stream in streams:
            last = pyav().Packet()
            last.stream = stream
            yield last


def upright(frame: Any, aspect: Fraction | None) -> Image:
    """The frame as (H, W, 3) uint8 RGB, as its file says that it is to be seen: with square pixels, turned, mirrored.

    `aspect`: how many times as wide as high a pixel is.
    """
    image: Image = frame.to_ndarray(format="rgb24")
    height, width = image.shape[:2]
    aspect = aspect or Fraction(1)
    if aspect != 1 and 1 / WIDEST <= aspect <= WIDEST:  # nothing is lost: one side grows
        size = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return image
    right, down, _, low_right, low_down, *_ = np.frombuffer(bytes(found), np.int32).tolist()  # where x and y point to
    if abs(down) + abs(low_right) > abs(right) + abs(low_down):
        image, right, low_down = image.transpose(1, 0, 2), low_right, down
    return np.ascontiguousarray(image[:: -1 if low_down < 0 else 1, :: -1 if right < 0 else 1])


def is_cut(path: Path) -> bool:
    """Whether the file ends inside a part of it that holds frames, or before its index: Matroska and WebM, MP4, Ogg. A
    recorded stream says nothing of its length, and is whole."""
    with suppress(OSError), open(path, "rb") as stream:
        head, size = stream.read(256), path.stat().st_size
        if head[4:8] in QUICKTIME or head[4:8] == b"styp":
            return _is_cut_mp4(stream, size)
        if head[:4] == b"OggS":
            stream.seek(max(0, size - LONGEST_PAGE))
            last = stream.read()
            page = last[last.rfind(b"OggS") :]
            length = 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) > 27 else len(page) + 1
            return len(page) != length or not page[5] & LAST_PAGE
        if head[:4] == b"\x1aE\xdf\xa3" and (found := re.compile(b"\x18S\x80g", re.DOTALL).search(head)):
            length, width = _vint(head[found.end() :])
            unknown = (1 << 7 * width) - 1
            return length != unknown and found.end() + width + length > size
    return False


def _is_cut_mp4(stream: IO[bytes], size: int) -> bool:
    """Whether an MP4 file lacks its index, or ends inside a fragment or before all of which its list of them (sidx)
    counts the bytes. Where there are none, the index counts the frames."""
    at, indexed, fragmented, listed, kind = 0, False, False, 0, b""
    while at + 8 <= size:
        stream.seek(at)
        head = stream.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        length = int.from_bytes(head[8:16], "big") if length == 1 else length or size - at
        if length < 8:
            return False  # padding: no box
        if kind == b"sidx" and not listed:
            data = head[8:] + stream.read(min(length, LONGEST_LIST) - 16)
            wide = data[0] == 1  # 64 bits for two of its numbers
            first = int.from_bytes(data[20:28] if wide else data[16:20], "big")
            parts = data[32 if wide else 24 :]
            sizes = (int.from_bytes(parts[i : i + 4], "big") & 0x7FFFFFFF for i in range(0, len(parts) - 11, 12))
            listed = at + length + first + sum(sizes)
        at += length
        indexed |= kind == b"moov" and at <= size
        fragmented |= kind == b"moof"
    torn = fragmented and kind != b"mfra" and (at != size or kind == b"moof")
    return torn or not indexed or listed > size


def _vint(data: bytes) -> tuple[int, int]:
    """(value, bytes) of an EBML number: as many leading zero bits as bytes follow the first."""
    width = 9 - data[0].bit_length() if data and data[0] else 8
    return int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1), width


def _because(error: Exception) -> str:
    said = getattr(error, "strerror", None)
    return f": {said}" if said else ""


def copy_name(name: str) -> str:
    return Path(name).stem + VIDEO_SUFFIX
