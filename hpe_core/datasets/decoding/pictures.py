"""Strict picture decoding: the whole picture as the file stores it, or a `Rejected` that says why not.

A lenient decoder invents what a damaged JPEG lacks, so what libjpeg complains of on stderr counts as damage. What then
still passes is a flawless JPEG of another picture: a JPEG has no checksum (how many: docs/datasets.md). cv2 decodes
plain JPEGs, to the pixels that PIL gives and faster; PIL decodes the rest.

One rule for orientation: the pixels as stored. Published boxes and landmarks refer to those, so every reader ignores
an EXIF orientation. Alpha is dropped, gray is repeated, 16 bits are scaled to 8 by 1 / 257.

What a picture is says its content, never its ending. AVIF is read where Pillow reads it, HEIC with pillow-heif. Kinds
that are known and not read, raw files of cameras among them, are named (`unread.py`).
"""

import io
import os
import stat
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pil
from PIL import features
from PIL.ExifTags import Base

from hpe_core.datasets.base import Rejected
from hpe_core.datasets.decoding.unread import SAID, unread_kind
from hpe_core.datasets.files import printable
from hpe_core.geometry.crop import Image

MAX_PIXELS = 80_000_000  # 240 MB as RGB; below the size at which PIL itself starts to warn
MAX_BYTES = 1 << 30
MAX_REDUCED = 1 << 29  # pixels of a JPEG that is decoded at a half, a quarter or an eighth
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "AVIF", "HEIF")
TIFF = (b"II*\0", b"MM\0*")
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", *TIFF, b"RIFF", b"P5", b"P6")
AVIF_BRANDS = (b"avif", b"avis")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
COMPLAINTS = (b"Corrupt JPEG", b"Premature end", b"Inconsistent", b"Invalid", b"Unsupported", b"Bogus")
BROKEN = (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, EOFError, AttributeError, RuntimeError)
BROKEN_DATA = (*BROKEN, struct.error, zlib.error, OverflowError, ZeroDivisionError, Pil.DecompressionBombError)

_stderr_lock = threading.Lock()


def read_picture(path: Path) -> Image:
    """The file as (H, W, 3) uint8 RGB. Raises Rejected."""
    return decode_picture(read_bytes(path), printable(str(path)))


def read_bytes(path: Path, limit: int = MAX_BYTES, head: int = 0) -> bytes:
    """A plain file's content, or its first `head` bytes. Raises Rejected where it is none (a pipe would block),
    unreadable or huge."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Rejected("unreadable_file", f"{printable(str(path))} is not a file")
            if head:
                return stream.read(head)
            if status.st_size > limit:
                size = f"{status.st_size} bytes; at most {limit} are read"
                raise Rejected("too_large", f"{printable(str(path))} has {size}")
            return stream.readall()
    except (OSError, ValueError) as error:
        raise Rejected("unreadable_file", f"{printable(str(path))} cannot be read: {_cause(error)}") from None


def decode_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image:
    """An encoded picture as (H, W, 3) uint8 RGB; `name` is for the message. Raises Rejected."""
    if not data.strip(b"\0"):
        raise Rejected("not_a_picture", f"{name} is empty")
    frame = jpeg_frame(data)
    if frame is not None:
        _check_size(*frame, name, max_pixels)
        return _decode_jpeg(data, name, *frame)
    kind = container_of(data)
    if kind == "HEIC" and not heic_is_read():
        asked = "pip install 'head-pose-distillation[heif]' brings what reads it"
        raise Rejected("not_a_picture", f"{name} is HEIC, which Pillow alone does not read; {asked}")
    if kind == "AVIF" and not features.check("avif"):
        raise Rejected("not_a_picture", f"{name} is AVIF, which this Pillow does not read; version 11.3 does")
    if kind := unread_kind(data):
        raise Rejected("not_a_picture", f"{name} is {kind}, {SAID}")
    try:
        opened = _opened(data, FORMATS)
    except Pil.DecompressionBombError:
        raise Rejected("too_large", f"{name} declares more than {max_pixels} pixels") from None
    except BROKEN_DATA as error:
        if "too large" in str(error):  # a text inside a PNG that inflates beyond all measure
            raise Rejected("too_large", f"{name} unpacks to more than is read: {_cause(error)}") from None
        if data.startswith(STARTS):
            unread = data.startswith(TIFF)  # whole, maybe
            other = ", or is a TIFF of a kind that is not read, such as colours of 32 bits" * unread
            raise Rejected("truncated_picture", f"{name} ends or breaks inside its header{other}") from None
        what = "it is of no known format"
        if any(mark in data[:1024].lower() for mark in (b"<html", b"<!doctype html")):
            what = "it is a page of HTML"
        if data.startswith(b"version https://git-lfs"):
            what = "it is Git LFS's note of one; git lfs pull brings the picture"
        raise Rejected("not_a_picture", f"{name} is not a picture: {what}") from None
    with opened:
        _check_size(*opened.size, name, max_pixels)
        return _decode_other(opened, data, name)


def decode_within(data: bytes, name: str, max_pixels: int) -> tuple[Image, int, tuple[int, int]]:
    """The picture, how many of its columns and rows one of the result stands for, and its (width, height).

    A JPEG of more than `max_pixels` is decoded at a half, a quarter or an eighth. Raises Rejected, also for a larger
    picture of another format.
    """
    width, height = jpeg_frame(data) or (0, 0)
    if width * height <= max_pixels:
        image = decode_picture(data, name, max_pixels)
        return image, 1, (image.shape[1], image.shape[0])
    _check_size(width, height, name, MAX_REDUCED)
    for by in REDUCED:
        small = -(-width // by), -(-height // by)
        if small[0] * small[1] <= max_pixels:
            return _decode_jpeg(data, name, *small, reduced=by), by, (width, height)
    raise Rejected("too_large", f"{name} has {width} x {height} pixels; even an eighth of it is too large")


def container_of(data: bytes) -> str:
    """ "AVIF" or "HEIC" by the brands that the first box of the file names, else ""."""
    if data[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(data[:4], "big"), 256, len(data))
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
    if brands[0] in AVIF_BRANDS or (brands[0] in (b"mif1", b"msf1") and any(b in AVIF_BRANDS for b in brands)):
        return "AVIF"
    return "HEIC" if brands[0] in HEIC_BRANDS else ""


@lru_cache(maxsize=1)
def heic_is_read() -> bool:
    """Whether pillow-heif is here; Pillow reads HEIC by it from then on."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def jpeg_frame(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a plain JPEG: 8 bits, gray or three colours, Huffman codes; else None, and PIL has its say."""
    place = 2 if data.startswith(b"\xff\xd8\xff") else len(data)
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
            return (width, height) if bits == 8 and channels in (1, 3) else None
        elif marker in (0xC4, 0xDB, 0xDD) or 0xE0 <= marker <= 0xEF or marker == 0xFE:  # tables, applications, comments
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        else:
            return None
    return None


def _check_size(width: int, height: int, name: str, limit: int) -> None:
    if width * height > limit:
        size = f"{width} x {height} pixels"
        raise Rejected("too_large", f"{name} declares {size}; at most {limit} are decoded")


def _decode_jpeg(data: bytes, name: str, width: int, height: int, reduced: int = 1) -> Image:
    """What cv2 makes of a JPEG: right for gray and three colours. Raises Rejected for whatever libjpeg complains of."""
    flags = REDUCED.get(reduced, cv2.IMREAD_COLOR_RGB) | cv2.IMREAD_IGNORE_ORIENTATION
    picture = None
    with libjpeg_complaints() as complaints:
        try:
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if reduced > 1 and picture is not None:  # OpenCV reduces to BGR only
                picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=picture)
        except cv2.error as error:
            complaints.append(_cause(error))
    if picture is None or picture.shape != (height, width, 3) or picture.dtype != np.uint8:
        complaints.append(f"does not decode to its {width} x {height} pixels")
    if complaints:
        if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise Rejected("truncated_picture", f"{name} is cut off: {complaints[0]}")
        raise Rejected("damaged_picture", f"{name} is damaged: {complaints[0]}")
    return np.asarray(picture, dtype=np.uint8)


def _opened(data: bytes, formats: tuple[str, ...]) -> Pil.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Pil.open(io.BytesIO(data), formats=formats)


def _decode_other(opened: Pil.Image, data: bytes, name: str) -> Image:
    if opened.format in ("JPEG", "MPO"):  # PIL keeps libjpeg's complaints to itself
        _decode_jpeg(data, name, *opened.size)
    try:
        if opened.format == "PNG":  # its load skips the checksums that its verify compares
            with _opened(data, ("PNG",)) as copy:
                copy.verify()
        if opened.format == "TIFF":  # of which Pillow alone turns the pixels as it loads them
            opened.getexif().pop(Base.Orientation, None)
            opened = opened.copy()
        opened.load()
        return _to_rgb8(opened)
    except Rejected as rejected:
        raise Rejected(rejected.reason, f"{name} {rejected.detail}") from None
    except BROKEN_DATA as error:
        cause = _cause(error)
        if any(word in cause.lower() for word in ("truncated", "too small", "unexpected end")):
            raise Rejected("truncated_picture", f"{name} is cut off: {cause}") from None
        raise Rejected("damaged_picture", f"{name} is damaged: {cause}") from None


def _to_rgb8(picture: Pil.Image) -> Image:
    """PIL's `convert` clips 16 bits at 255; here they are scaled."""
    mode = picture.mode
    if mode.startswith("I"):
        deep: NDArray[np.generic] = np.asarray(picture)
        if deep.min() < 0 or deep.max() > 65535:
            raise Rejected("not_a_picture", "has 32 bits a pixel; 8 and 16 are read")
        gray = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr"):
        raise Rejected("not_a_picture", f"has pixels of type {mode}, which are not read")
    return np.array(picture.convert("RGB"), dtype=np.uint8)


@contextmanager
def libjpeg_complaints() -> Iterator[list[str]]:
    """Collects what libjpeg prints on file descriptor 2, for one thread at a time; all else goes on to stderr."""
    found: list[str] = []
    with _stderr_lock:
        catcher = _catcher()
        before = os.dup(2)
        os.dup2(catcher.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(before, 2)
            if os.lseek(catcher.fileno(), 0, os.SEEK_CUR):  # both descriptors share one place in the file
                catcher.seek(0)
                for line in catcher.read(1 << 16).splitlines():
                    if line.startswith(COMPLAINTS):
                        found.append(line.decode("utf-8", "replace").strip())
                    else:
                        os.write(before, line + b"\n")
                catcher.seek(0)
                catcher.truncate()
            os.close(before)


@lru_cache(maxsize=1)
def _catcher() -> IO[bytes]:
    """Where libjpeg's complaints land: a file without a name, one a process."""
    return tempfile.TemporaryFile(buffering=0)


def _cause(error: BaseException) -> str:
    """One line without the path that the caller names anyway."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
