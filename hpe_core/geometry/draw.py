"""Pose axes and landmarks on faces, contact sheets: functions on (H, W, 3) uint8 RGB pictures that return a new one.

Colours and directions are the field's (HopeNet's `draw_axis`): red is the head's x axis, to the right for a frontal
head, green points down, blue out of the face. They are the columns x, y and -z of R: no second convention exists here.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpe_core.geometry.crop import Image
from hpe_core.geometry.rotation import euler_to_matrix

RED, GREEN, BLUE = (230, 50, 40), (40, 175, 60), (40, 105, 245)
BACKGROUND, INK, OUTLINE = 255, (25, 25, 25), (255, 255, 255)
_SUBPIXEL = 4  # OpenCV takes end points as integers with so many fractional bits


def axis_ends(pose_deg: ArrayLike) -> NDArray[np.float64]:
    """(pitch, yaw, roll) -> (3, 3): the unit axes red, green, blue as rows of camera (x right, y down, z away)."""
    rotation = euler_to_matrix(pose_deg)
    return np.stack([rotation[:, 0], rotation[:, 1], -rotation[:, 2]])


def draw_axes(
    image: Image,
    pose_deg: ArrayLike,
    center: tuple[float, float] | None = None,
    length: float | None = None,
    thickness: int | None = None,
) -> Image:
    """A copy with the head's axes, seen from afar, the nearest drawn last; `center` and `length` are in pixels."""
    height, width = image.shape[:2]
    x, y = center or (width / 2, height / 2)
    reach = length if length is not None else 0.4 * min(height, width)
    thick = thickness or max(1, round(min(height, width) / 60))
    ends = axis_ends(pose_deg)
    drawn = np.array(image, dtype=np.uint8, order="C")
    for axis in np.argsort(-ends[:, 2], kind="stable"):
        tip = x + reach * float(ends[axis, 0]), y + reach * float(ends[axis, 1])
        # OpenCV counts from pixel centres, boxes from pixel corners.
        start, end = (tuple(round((at - 0.5) * (1 << _SUBPIXEL)) for at in place) for place in ((x, y), tip))
        for color, wide in ((OUTLINE, thick + 2), ((RED, GREEN, BLUE)[axis], thick)):
            cv2.line(drawn, start, end, color, wide, cv2.LINE_AA, _SUBPIXEL)
    return drawn


def draw_landmarks(image: Image, marks_L3: ArrayLike, radius: int = 2) -> Image:
    """A copy with each landmark, (x, y, how surely it is seen) in pixels: filled where that is at least a half."""
    drawn = np.array(image, dtype=np.uint8, order="C")
    for x, y, seen in np.asarray(marks_L3, np.float64):
        if np.isfinite((x, y)).all() and max(abs(x), abs(y)) < 1 << 24:
            place = tuple(round((at - 0.5) * (1 << _SUBPIXEL)) for at in (x, y))
            for color, wide in ((OUTLINE, radius + 1), (GREEN if seen >= 0.5 else RED, radius)):
                filled = -1 if seen >= 0.5 else 1
                cv2.circle(drawn, place, wide << _SUBPIXEL, color, filled, cv2.LINE_AA, _SUBPIXEL)
    return drawn


def enlarged(image: Image, side: int) -> Image:
    """The picture resized so that its longer side is `side` pixels."""
    factor = side / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    how = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def contact_sheet(
    pictures: Sequence[Image], columns: int, captions: Sequence[str] | None = None, pad: int = 8
) -> Image:
    """Pictures in rows of `columns` on white, each in the middle of a cell of the largest size, with a caption below.

    A caption may have several lines and is ASCII (OpenCV's letters), as large as its cell allows. Raises ValueError for
    no pictures, fewer than one column, or another number of captions than of pictures.
    """
    if not pictures or columns < 1:
        raise ValueError(f"a contact sheet needs pictures and columns, got {len(pictures)} and {columns}")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"{len(captions)} captions for {len(pictures)} pictures")
    cell_h, cell_w = (max(p.shape[i] for p in pictures) for i in (0, 1))
    lines = [caption.split("\n") for caption in captions] if captions else []
    scale = _font_scale([line for caption in lines for line in caption], cell_w)
    line_h = round(32 * scale) + 2
    text_h = line_h * max((len(caption) for caption in lines), default=0)
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    shape = (rows * (cell_h + text_h + pad) + pad, columns * (cell_w + pad) + pad, 3)
    sheet = np.full(shape, BACKGROUND, np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        top, left = pad + row * (cell_h + text_h + pad), pad + column * (cell_w + pad)
        y, x = top + (cell_h - picture.shape[0]) // 2, left + (cell_w - picture.shape[1]) // 2
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        for number, line in enumerate(lines[index] if lines else []):
            base = top + cell_h + round((number + 0.78) * line_h)
            cv2.putText(sheet, line, (left, base), cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)
    return sheet


def _font_scale(lines: Sequence[str], width: int) -> float:
    """The largest scale up to 0.75 at which every line fits into `width` pixels."""
    widest = max((cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)[0][0] for line in lines), default=0)
    return min(0.75, width / widest) if widest else 0.75
