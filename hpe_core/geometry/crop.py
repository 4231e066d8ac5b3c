"""Boxes, the canonical crop with its margin, and the offset windows of eq. 5.

The stored picture of a face is a square of (size + 2 margin)^2 network-input pixels around its box. The window at
(dx, dy) whole pixels is the crop of the box moved by dx * s_x, dy * s_y image pixels, which is the offset paper's eq. 5
(its s_y has a typo; it is (y2 - y1) / h): no second resize, no second decode. It agrees with a warp per offset to one
grey level; the field's habit, rounding the box and resizing, does not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.spec.data import CropSpec

Image = NDArray[np.uint8]
BoxFault = Literal["bad_annotation", "box_degenerate", "box_outside"]
LANDMARKS_GROWN = 1.4  # docs/datasets.md says how this was chosen
BOX_RULE = f"landmarks x {LANDMARKS_GROWN:g}"  # as a protocol names it
# The least share of a box's area that the picture must show; the rest is padded. Boxes that show less touch the picture
# by rounding or are a hundred times its size: their crops hold no face. A larger share would drop faces that the papers
# count.
MIN_INSIDE = 0.01


def encoded(image: Image, suffix: str = ".png", options: Sequence[int] = ()) -> bytes:
    """An (H, W, 3) uint8 RGB picture as the content of a file; `options` are OpenCV's. Raises ValueError."""
    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"OpenCV writes no {suffix} of {image.shape[1]} x {image.shape[0]} pixels")
    return data.tobytes()


@dataclass(frozen=True)
class Box:
    """Axis-aligned box in image pixels; pixel (i, j) covers [i, i+1] x [j, j+1]. Corners may be fractions."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def width(self) -> float:
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        return self.y2 - self.y1

    @property
    def center(self) -> tuple[float, float]:
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    @classmethod
    def around(cls, center: tuple[float, float], width: float, height: float) -> "Box":
        x, y = center
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @classmethod
    def enclosing(cls, points_L2: NDArray[np.floating]) -> "Box":
        """Tight box of (L, 2) image points."""
        low, high = np.min(points_L2, axis=0), np.max(points_L2, axis=0)
        return cls(float(low[0]), float(low[1]), float(high[0]), float(high[1]))

    @classmethod
    def of_face(cls, landmarks_L2: NDArray[np.floating]) -> "Box":
        """THE box of a face whose landmarks are known, hidden ones too: theirs, grown about its centre.

        Rendered heads, 300W, 300W-LP and AFLW2000 are boxed by it; boxes of detectors are fitted to it.
        """
        return cls.enclosing(landmarks_L2).scaled(LANDMARKS_GROWN)

    def scaled(self, factor: float) -> "Box":
        """The same centre, both sides times `factor`."""
        return Box.around(self.center, self.width * factor, self.height * factor)

    def squared(self) -> "Box":
        """The short side grown to the long one about the centre (EHPNet section 3)."""
        side = max(self.width, self.height)
        return Box.around(self.center, side, side)

    def moved(self, dx: float, dy: float) -> "Box":
        return Box(self.x1 + dx, self.y1 + dy, self.x2 + dx, self.y2 + dy)

    def turned(self, quarters: int, width: float, height: float) -> "Box":
        """The box after the width x height image is turned clockwise by so many quarters (negative: the other way)."""
        box = self
        for _ in range(quarters % 4):
            box, width, height = Box(height - box.y2, box.x1, height - box.y1, box.x2), height, width
        return box

    def is_valid(self) -> bool:
        """Finite, and both sides at least one pixel."""
        finite = all(map(math.isfinite, (self.x1, self.y1, self.x2, self.y2)))
        return finite and self.width >= 1 and self.height >= 1


def shared_area(first: Box, second: Box) -> float:
    """Square pixels that lie in both."""
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    return max(0.0, width) * max(0.0, height)


def overlap(first: Box, second: Box) -> float:
    """Intersection over union, in [0, 1]; 0 where they do not meet."""
    shared = shared_area(first, second)
    return shared / (first.width * first.height + second.width * second.height - shared) if shared else 0.0


def fault_of(box: Box, width: int, height: int, box_scale: float = 1.0) -> tuple[BoxFault, str] | None:
    """(reason, sentence) if the box is no box or a picture of this size shows less than `MIN_INSIDE` of it, or of the
    part that a crop with a `box_scale` below 1 takes: at the edge that may be nothing."""
    if box_scale < 1:
        return fault_of(box, width, height) or fault_of(box.scaled(box_scale), width, height)
    text = f"box ({box.x1:g}, {box.y1:g}, {box.x2:g}, {box.y2:g})"
    if not all(map(math.isfinite, (box.x1, box.y1, box.x2, box.y2))):
        return "bad_annotation", f"{text} is not finite"
    if not box.is_valid():
        return "box_degenerate", f"{text} is thinner than a pixel"
    shown_x = min(box.x2, width) - max(box.x1, 0.0)
    shown_y = min(box.y2, height) - max(box.y1, 0.0)
    if shown_x <= 0 or shown_y <= 0:
        return "box_outside", f"{text} lies outside the {width} x {height} picture"
    # A quotient of quotients: the area of an absurd box would overflow.
    share = (shown_x / box.width) * (shown_y / box.height)
    if share < MIN_INSIDE:
        return "box_outside", f"{text}: only {share:.2%} of it lies inside the {width} x {height} picture"
    return None


@dataclass(frozen=True, eq=False)
class FaceCrop:
    """The canonical crop: pixels (size + 2 margin, same, 3) uint8 RGB, and image pixels per crop pixel."""

    pixels: Image
    scale_x: float
    scale_y: float
    box: Box

    def to_crop(self, points_L2: NDArray[np.floating]) -> NDArray[np.float32]:
        """(L, 2) image points -> the pixel frame of the size^2 window at offset (0, 0)."""
        origin = np.array([self.box.x1, self.box.y1])
        return ((points_L2 - origin) / np.array([self.scale_x, self.scale_y])).astype(np.float32)


def network_box(box: Box, spec: CropSpec) -> Box:
    """The box that fills the network input: scaled, then squared unless the recipe stretches."""
    box = box.scaled(spec.box_scale)
    return box.squared() if spec.shape == "square" else box


def canonical_crop(image: Image, box: Box, spec: CropSpec) -> FaceCrop:
    """Cut `box` from an (H, W, 3) uint8 RGB image, margin all around, black outside. Raises ValueError for no box."""
    if not box.is_valid():
        raise ValueError(f"box ({box.x1:g}, {box.y1:g}, {box.x2:g}, {box.y2:g}) has no area")
    target = network_box(box, spec)
    scale_x, scale_y = target.width / spec.size, target.height / spec.size
    corner = target.moved(-spec.margin_px * scale_x, -spec.margin_px * scale_y)
    pixels = _resampled(image, corner.x1, corner.y1, scale_x, scale_y, spec.stored_size)
    return FaceCrop(pixels, scale_x, scale_y, target)


def averaged(scale: float) -> int:
    """How many pixels of the image, whole ones, a pixel of the crop is the mean of along one side; what a mirror's
    rounding takes off a whole number does not count."""
    return max(1, int(scale + 1e-6))


def _resampled(image: Image, x: float, y: float, scale_x: float, scale_y: float, side: int) -> Image:
    """side^2 pixels of scale_x x scale_y image pixels each, from the corner (x, y) on.

    Where a pixel of the crop covers several of the image, these are averaged first, else linear sampling would skip
    some and alias: by a running mean, since cells anchored at one edge would make a mirrored picture another one.
    Sampled are exact sums, divided and rounded once at the end: OpenCV 5.0.0 wraps single pixels of uint8 means. With a
    fourth channel it warps twice as fast.
    """
    height, width = image.shape[:2]
    fx, fy = min(averaged(scale_x), width), min(averaged(scale_y), height)
    left, top = max(0, math.floor(x) - 2 * fx), max(0, math.floor(y) - 2 * fy)
    right = min(width, math.ceil(x + side * scale_x) + 2 * fx)
    bottom = min(height, math.ceil(y + side * scale_y) + 2 * fy)
    if left >= right or top >= bottom:
        return np.zeros((side, side, 3), np.uint8)
    part = cv2.cvtColor(image[top:bottom, left:right], cv2.COLOR_RGB2RGBA)
    corner_x, corner_y = float(left), float(top)
    if fx * fy > 1:
        # Means that reach over the edge of the image fade into the black outside, alike on every side.
        part = cv2.copyMakeBorder(part, fy, fy, fx, fx, cv2.BORDER_CONSTANT)
        depth = cv2.CV_16U if fx * fy * 255 < 1 << 16 else cv2.CV_32F
        part = cv2.boxFilter(part, depth, (fx, fy), normalize=False, borderType=cv2.BORDER_CONSTANT)
        # The sum of an even number of pixels lies half a pixel before the index that OpenCV stores it at.
        corner_x, corner_y = left - fx - 0.5 * (fx % 2 == 0), top - fy - 0.5 * (fy % 2 == 0)
    # Pixel centres: crop column u lies at image x = origin + (u + 0.5) * scale - 0.5.
    shift_x, shift_y = x + 0.5 * scale_x - 0.5 - corner_x, y + 0.5 * scale_y - 0.5 - corner_y
    matrix = np.array([[scale_x, 0.0, shift_x], [0.0, scale_y, shift_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    pixels = cv2.warpAffine(part, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_CONSTANT)
    if fx * fy > 1:
        pixels = cv2.convertScaleAbs(pixels, alpha=1 / (fx * fy))
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB), dtype=np.uint8)


def offset_grid(radius_px: int, step_px: int) -> list[tuple[int, int]]:
    """Offsets (dx, dy) = (i d, j d) with |i d|, |j d| <= K (offsets eq. 5). Raises ValueError for K < 0 or d < 1."""
    if radius_px < 0 or step_px < 1:
        raise ValueError(f"an offset grid needs K >= 0 and d >= 1, got K={radius_px}, d={step_px}")
    reach = radius_px // step_px
    steps = [i * step_px for i in range(-reach, reach + 1)]
    return [(dx, dy) for dy in steps for dx in steps]


def window(crops_BHWC, size: int, dx: int = 0, dy: int = 0):  # type: ignore[no-untyped-def]
    """The size^2 window at offset (dx, dy) of a (..., H, W, C) array or tensor of canonical crops: a view."""
    margin = (crops_BHWC.shape[-3] - size) // 2
    if max(abs(dx), abs(dy)) > margin:
        raise ValueError(f"offset ({dx}, {dy}) leaves the stored margin of {margin} pixels")
    top, left = margin + dy, margin + dx
    return crops_BHWC[..., top : top + size, left : left + size, :]
