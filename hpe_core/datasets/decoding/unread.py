"""Kinds of pictures that are known and not read, by name, so that whoever has some hears what they are.

A camera's raw file is among them though many are TIFF: what Pillow finds in it is the small preview.
"""

import struct
from collections.abc import Iterator
from contextlib import suppress

RAW = "a camera's raw file"
SAID = "which is not read; save it as JPEG or PNG"
RAW_ENDINGS = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".rwl", ".raf", ".pef"),
    *(".srw", ".x3f", ".3fr", ".fff", ".iiq", ".mrw", ".mef", ".mos", ".kdc", ".dcr", ".erf"),
)
ENDINGS = {
    ".psd": "Photoshop",
    ".psb": "Photoshop",
    ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000",
    ".jpx": "JPEG 2000",
    ".jxl": "JPEG XL",
    ".jxr": "JPEG XR",
    ".exr": "OpenEXR",
    ".tga": "Targa",
    ".pcx": "PCX",
    ".ico": "an icon",
    ".svg": "a drawing (SVG)",
    ".pdf": "a PDF document",
    ".eps": "PostScript",
    ".dds": "a texture (DDS)",
    ".xcf": "GIMP's own format",
    ".dcm": "DICOM",
    ".qoi": "QOI",
} | dict.fromkeys(RAW_ENDINGS, RAW)
# (where, what stands there, kind)
SIGNS = (
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II\xbc\1", "JPEG XR"),
    (0, b"v/1\1", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"%!PS", "PostScript"),
    (0, b"DDS |\0\0\0", "a texture (DDS)"),
    (0, b"gimp xcf", "GIMP's own format"),
    (128, b"DICM", "DICOM"),
    (0, b"qoif", "QOI"),
    (4, b"ftypcrx ", RAW),  # Canon CR3, MP4 in its form
    (8, b"CR\2\0", RAW),  # Canon CR2
    (6, b"HEAPCCDR", RAW),  # Canon CRW
    (0, b"IIRO", RAW),  # Olympus
    (0, b"IIRS", RAW),
    (0, b"MMOR", RAW),
    (0, b"IIU\0", RAW),  # Panasonic, Leica
    (0, b"FUJIFILMCCD-RAW", RAW),
    (0, b"FOVb", RAW),  # Sigma
    (0, b"\0MRM", RAW),  # Minolta
)
SUBFILE, PHOTOMETRIC, SUB_IFDS, DNG_VERSION = 254, 262, 330, 50706  # tags of TIFF
REDUCED, SENSOR = 1, (32803, 34892)  # a preview; a mosaic of colours, or what a sensor saw without one


def unread_kind(data: bytes) -> str:
    """What a file is, if its content is of a kind that is known and not read, else "". `data`: all of it, or its
    beginning; a raw file may look as a TIFF does until all of it is there."""
    for at, sign, kind in SIGNS:
        if data.startswith(sign, at):
            return kind
    if data[:512].lstrip().startswith((b"<svg", b"<?xml")) and b"<svg" in data[:512]:
        return ENDINGS[".svg"]
    return RAW if _is_raw_tiff(data) else ""


def _is_raw_tiff(data: bytes) -> bool:
    """Whether a TIFF's first picture is a sensor's, or a preview of another one further inside."""
    tags = dict(_tags(data))
    preview = bool(tags.get(SUBFILE, 0) & REDUCED) and SUB_IFDS in tags
    return preview or DNG_VERSION in tags or tags.get(PHOTOMETRIC) in SENSOR


def _tags(data: bytes) -> Iterator[tuple[int, int]]:
    """(tag, the number that stands in its place) of a TIFF's first directory; nothing of other files."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return
    with suppress(struct.error):  # it ends before
        (at,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, entry)
            (value,) = struct.unpack_from(f"{order}H" if kind == 3 else f"{order}I", data, entry + 8)
            yield tag, value
