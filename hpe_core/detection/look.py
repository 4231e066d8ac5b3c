"""Looks at a picture more than once: at tiles of a large one, and at the picture turned by quarters.

A detector sees a copy scaled down to its input, in which small faces of a large picture vanish, and it was trained on
upright faces. YuNet finds most faces that lie on their side, but is less sure of them, and its landmarks claim that
they stand upright; so the score decides which way a face lies (docs/prediction.md: how often it is right).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hpe_core.detection.detector import NMS_IOU, Detection
from hpe_core.geometry.crop import Box, Image, overlap, shared_area

TILES_FROM = 6  # a picture whose longer side is more than so many detector inputs is looked at in tiles, too
TILE_INPUTS, TILE_OVERLAP = 2, 0.25  # a tile's side in detector inputs, and the share of it that the next one repeats
CUT = 0.01  # a box that comes as close to an inner edge of its tile, in sides of the tile, is a part of a face
WITHIN = 0.7  # a box that lies in a better one to this share is the same face

Detect = Callable[[Image], list[Detection]]


def needs_tiles(image: Image, side_px: int) -> bool:
    return max(image.shape[:2]) > TILES_FROM * side_px


def find_faces(detect: Detect, image: Image, side_px: int, *, tiles: bool = True, turns: int = 1) -> list[Detection]:
    """The faces of an (H, W, 3) uint8 RGB picture, the surest first, boxes in the picture as it is.

    `side_px` is the detector's input, `turns` is 1, or 4 for a look at each quarter turn.
    """
    tiles = tiles and needs_tiles(image, side_px)
    if turns == 1 and not tiles:
        return detect(image)
    found = []
    for quarters in range(turns):
        turned = turned_image(image, quarters)
        height, width = turned.shape[:2]
        seen = [*detect(turned), *(_in_tiles(detect, turned, TILE_INPUTS * side_px) if tiles else ())]
        found += [Detection(face.box.turned(-quarters, width, height), face.score, quarters) for face in seen]
    return merged(found)


def turned_image(image: Image, quarters: int) -> Image:
    """The picture turned clockwise by so many quarters of a whole turn."""
    return np.ascontiguousarray(np.rot90(image, -quarters))


def merged(faces: Sequence[Detection]) -> list[Detection]:
    """One detection a face, the surest (non-maximum suppression), the surest first."""
    kept: list[Detection] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if not any(overlap(face.box, other.box) > NMS_IOU or _within(face.box, other.box) > WITHIN for other in kept):
            kept.append(face)
    return kept


def tiles_of(width: int, height: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of squares that cover the picture and overlap, evenly spaced."""
    for top in _starts(height, side):
        for left in _starts(width, side):
            yield left, top, min(width, left + side), min(height, top + side)


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    count = 1 + math.ceil((length - side) / (side * (1 - TILE_OVERLAP)))
    return [round(at) for at in np.linspace(0, length - side, count)]


def _in_tiles(detect: Detect, image: Image, side: int) -> Iterator[Detection]:
    """Faces that a tile shows whole; one that it cuts is whole in the next tile, or large enough for the whole look."""
    height, width = image.shape[:2]
    near = CUT * side
    for left, top, right, bottom in tiles_of(width, height, side):
        for face in detect(np.ascontiguousarray(image[top:bottom, left:right])):
            box = face.box.moved(left, top)
            cut_x = (left > 0 and box.x1 < left + near) or (right < width and box.x2 > right - near)
            cut_y = (top > 0 and box.y1 < top + near) or (bottom < height and box.y2 > bottom - near)
            if not (cut_x or cut_y):
                yield Detection(box, face.score)


def _within(first: Box, second: Box) -> float:
    """The share of the smaller box that the other one covers."""
    smaller = max(min(first.width * first.height, second.width * second.height), 1e-9)  # a detector's box may be a line
    return shared_area(first, second) / smaller
