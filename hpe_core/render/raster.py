"""A z-buffer rasteriser in plain numpy: spans of triangles, one fragment array, depth by `minimum.at`.

Triangles of a head at 192 px are three or four pixels wide, so a Python loop per triangle (or one
`cv2.fillConvexPoly` call each) costs more than the pixels. Here every triangle is cut into its pixel rows at
once, every row into its span of pixels, and what is left is one flat list of fragments: about 100,000 for a
frame of 384 x 384, a few milliseconds.

Pixel convention (that of `crop.Box`): pixel (i, j) covers [i, i+1] x [j, j+1], its centre
is (i + 0.5, j + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]
Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Camera:
    """Pinhole camera and the head's place in it; millimetres in, pixels out.

    focal_px: one focal length for x and y. center_px: principal point (cx, cy). rotation: R_cam, (3, 3).
    translation: (3,) mm, the head origin in the camera frame (x right, y down, z forward).
    """

    focal_px: float
    center_px: tuple[float, float]
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Intrinsics K (3, 3), as `cv2.solvePnP` takes them."""
        cx, cy = self.center_px
        return np.array([[self.focal_px, 0.0, cx], [0.0, self.focal_px, cy], [0.0, 0.0, 1.0]])

    def to_camera(self, points_head: NDArray[np.floating]) -> NDArray[np.float64]:
        """Head-frame points (N, 3) mm -> camera-frame points R X + t, (N, 3) mm."""
        return np.asarray(points_head, np.float64) @ self.rotation.T + self.translation

    def project(self, points_head: NDArray[np.floating]) -> NDArray[np.float64]:
        """Head-frame points (N, 3) mm -> pixels (N, 2)."""
        return self.project_camera(self.to_camera(points_head))

    def project_camera(self, points_cam: NDArray[np.floating]) -> NDArray[np.float64]:
        """Camera-frame points (N, 3) mm -> pixels (N, 2)."""
        p = np.asarray(points_cam, np.float64)
        return self.focal_px * p[:, :2] / p[:, 2:3] + np.array(self.center_px)


@dataclass(frozen=True, eq=False)
class Fragments:
    """The visible surface: P covered pixels of a (height, width) frame.

    pixel: (P,) flat index, y * width + x. triangle: (P,) row of `triangles`. weights: (P, 3) screen-space
    barycentric weights. depth: (height, width) float32, +inf where nothing was drawn.
    """

    pixel: Int
    triangle: Int
    weights: Float
    depth: Float

    def interpolate(self, triangles: Int, attributes: Float) -> Float:
        """Per-vertex attributes (V, A) -> per-fragment attributes (P, A)."""
        corners = np.take(triangles, self.triangle, 0)
        out = np.take(attributes, corners[:, 0], 0) * self.weights[:, 0:1]
        for k in (1, 2):
            part = np.take(attributes, corners[:, k], 0)
            part *= self.weights[:, k : k + 1]
            out += part
        return out


def rasterise(xy: Float, z: Float, triangles: Int, two_sided: NDArray[np.bool_], shape: tuple[int, int]) -> Fragments:
    """Nearest surface per pixel.

    xy: (V, 2) pixels; z: (V,) depth, smaller is nearer; triangles: (T, 3) vertex rows, counter-clockwise on
    screen with y down (negative doubled area) is a back face and is dropped unless two_sided (T,) says
    otherwise; shape: (height, width). Triangles outside the frame are clipped to it, nothing wraps.
    """
    height, width = shape
    xy = xy - np.float32(0.5)  # from here on pixel centres are whole numbers
    a, b, c = xy[triangles[:, 0]], xy[triangles[:, 1]], xy[triangles[:, 2]]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    low = np.minimum(np.minimum(a, b), c)
    high = np.maximum(np.maximum(a, b), c)
    keep = (area > 1e-6) | (two_sided & (area < -1e-6))
    keep &= (high[:, 0] >= 0) & (high[:, 1] >= 0) & (low[:, 0] <= width - 1) & (low[:, 1] <= height - 1)
    live = np.flatnonzero(keep)
    a, b, c, area = a[live], b[live], c[live], area[live]
    top = np.maximum(np.ceil(low[live, 1]), 0).astype(np.int64)
    rows = np.maximum(np.minimum(np.floor(high[live, 1]), height - 1).astype(np.int64) - top + 1, 0)

    # weight_k(x, y) = slope_x[k] * (x - ax) + slope_y[k] * (y - ay) + (k == 0): one at its own corner
    slope_x = np.stack([b[:, 1] - c[:, 1], c[:, 1] - a[:, 1], a[:, 1] - b[:, 1]], 0) / area
    slope_y = np.stack([c[:, 0] - b[:, 0], a[:, 0] - c[:, 0], b[:, 0] - a[:, 0]], 0) / area

    owner = np.repeat(np.arange(len(live)), rows)
    y = np.arange(len(owner)) - np.repeat(np.cumsum(rows) - rows - top, rows)
    ax, dy = a[:, 0][owner], y.astype(np.float32) - a[:, 1][owner]
    left, right = np.full(len(owner), -np.inf, np.float32), np.full(len(owner), np.inf, np.float32)
    at_row = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for k in range(3):
            sx = slope_x[k][owner]
            value = slope_y[k][owner] * dy + np.float32(k == 0)
            root = -value / sx
            # An edge along the row (slope 0) bounds nothing; the row lies within the triangle's y range
            # already.
            np.copyto(left, np.maximum(left, root), where=sx > 0)
            np.copyto(right, np.minimum(right, root), where=sx < 0)
            at_row.append(value)
    # A hair's breadth to either side closes the cracks that rounding would open between neighbours.
    x0 = np.ceil(np.maximum(left + ax - np.float32(1e-3), 0)).astype(np.int64)
    x1 = np.floor(np.minimum(right + ax + np.float32(1e-3), width - 1)).astype(np.int64)
    count = np.maximum(x1 - x0 + 1, 0)

    # Depth is linear along a row: start and step per row, one multiply-add per fragment.
    za, zb, zc = (z[triangles[live, k]] for k in range(3))
    step = (slope_x[0] * za + slope_x[1] * zb + slope_x[2] * zc)[owner]
    start = at_row[0] * za[owner] + at_row[1] * zb[owner] + at_row[2] * zc[owner] - step * ax
    span = np.repeat(np.arange(len(owner)), count)
    x = np.arange(len(span)) - np.repeat(np.cumsum(count) - count - x0, count)
    depth = np.take(start, span) + np.take(step, span) * x.astype(np.float32)
    pixel = np.take(y * width, span) + x

    # Depth in 1/64 mm above, fragment number below: one integer minimum settles depth and identity together,
    # ties included, whatever the order of evaluation.
    key = (np.clip(depth, 0, 1e6) * np.float32(64)).astype(np.int64) << 28 | np.arange(len(depth))
    empty = np.iinfo(np.int64).max
    nearest = np.full(height * width, empty)
    np.minimum.at(nearest, pixel, key)
    covered = np.flatnonzero(nearest != empty)
    winner = nearest[covered] & ((1 << 28) - 1)
    frame = np.full(height * width, np.inf, np.float32)
    frame[covered] = depth[winner]
    row = span[winner]
    tri = owner[row]
    dx = x[winner].astype(np.float32) - a[tri, 0]
    w0 = at_row[0][row] + slope_x[0][tri] * dx
    w1 = at_row[1][row] + slope_x[1][tri] * dx
    weights = np.stack([w0, w1, 1 - w0 - w1], 1)
    return Fragments(covered, live[tri], weights, frame.reshape(height, width))
