"""What a file is, by its first bytes; its ending counts where these do not tell."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image as Pil

from hpe_core.datasets import files
from hpe_core.datasets.base import Rejected
from hpe_core.datasets.decoding.pictures import BROKEN_DATA, container_of, read_bytes
from hpe_core.datasets.decoding.unread import ENDINGS, unread_kind

Kind = Literal["picture", "animation", "video", ""]

PICTURES = (
    *files.PICTURES,
    *(".gif", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm", ".apng", ".jpe", ".jfif"),
)
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mpe", ".vob", ".m2v", ".wmv", ".asf"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".3gp", ".3g2", ".flv", ".f4v", ".ogv", ".ogg", ".mjpeg", ".mjpg", ".mxf"),
    *(".h264", ".264", ".h265", ".265", ".hevc", ".y4m", ".rm", ".rmvb", ".dv", ".nut", ".ivf", ".obu", ".divx"),
)
PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"GIF87a", b"GIF89a")
VIDEO_STARTS = (
    *(b"\x1aE\xdf\xa3", b"FLV\1", b"OggS", b"\0\0\1\xba", b"\0\0\1\xb3", b"0&\xb2u\x8ef\xcf\x11", b"YUV4MPEG2 "),
    *(b"\x06\x0e+4", b".RMF", b"DKIF"),
)
QUICKTIME = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # at the fifth byte
JPEG_STREAMS = (".mjpeg", ".mjpg")  # begin as a JPEG does
HEAD = 512


def kind_of(path: Path) -> Kind:
    """What the file seems to be; "" for neither picture nor video. An animation is a picture that moves."""
    ending, head = path.suffix.lower(), _head(path)
    if ending in JPEG_STREAMS:
        return "video"
    if unread_kind(head):
        return ""
    if _is_picture(head, path):
        return "animation" if _moves(path, head) else "picture"
    if _is_video(head):
        return "video"
    if ending in PICTURES:  # a damaged one, which is told when it is read
        return "picture"
    return "video" if ending in VIDEOS else ""


def is_picture(path: Path) -> bool:
    """Whether a file of a folder is looked at: by its ending, else by its content."""
    return path.suffix.lower() in PICTURES or kind_of(path) in ("picture", "animation")


def unread(path: Path) -> str:
    """What the file is, if it is of a kind that is known and not read, else ""."""
    kind = unread_kind(_head(path))
    return kind or ("" if kind_of(path) else ENDINGS.get(path.suffix.lower(), ""))


def _head(path: Path) -> bytes:
    try:
        return read_bytes(path, head=HEAD)
    except Rejected:
        return b""


def _is_picture(head: bytes, path: Path) -> bool:
    if head.startswith(PICTURE_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or container_of(head):
        return True
    if re.match(rb"P[1-6]\s+[#\d]", head):
        return True
    return head[:2] == b"BM" and int.from_bytes(head[2:6], "little") == path.stat().st_size


def _is_video(head: bytes) -> bool:
    if head.startswith(VIDEO_STARTS) or head[4:8] in QUICKTIME or (head[:4] == b"RIFF" and head[8:11] == b"AVI"):
        return True
    packets = ((0, 188), (4, 192))  # a transport stream's, and the same with a time before each
    return any(head[at : at + 1] == head[at + size : at + size + 1] == b"G" for at, size in packets)


@contextmanager
def opened_header(data: bytes) -> Iterator[Pil.Image]:
    """A picture of any size, whose pixels nobody decodes here. Raises what Pillow raises."""
    limit, Pil.MAX_IMAGE_PIXELS = Pil.MAX_IMAGE_PIXELS, None
    try:
        with Pil.open(io.BytesIO(data)) as opened:
            yield opened
    finally:
        Pil.MAX_IMAGE_PIXELS = limit


def _moves(path: Path, head: bytes) -> bool:
    """Whether a GIF, PNG, WebP or AVIF has more than one picture."""
    if not (head.startswith((b"GIF8", b"\x89PNG", b"RIFF")) or container_of(head) == "AVIF"):
        return False
    try:
        with opened_header(read_bytes(path)) as opened:
            return getattr(opened, "n_frames", 1) > 1
    except (*BROKEN_DATA, Rejected):  # said when it is read
        return False
