"""The pinhole camera, and triangles to pixels: OpenCV's z-buffer, fed with points that are projected already.

Pixel convention (that of `crop.Box`): pixel (i, j) covers [i, i+1] x [j, j+1], its centre is (i + 0.5, j + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]
Int = NDArray[np.integer]

FAR = 1.0e5  # mm; what the depth says where nothing was drawn
Sides = Literal["front", "both"]
_NEAR, _FIELD = 1.0, 0.5
_LENS = 1 / np.tan(_FIELD / 2)


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


def _view(culling: int) -> tuple[Any, ...]:
    """What OpenCV is told beside the triangles: its fixed camera, and which sides of them are seen."""
    settings = cv2.TriangleRasterizeSettings()
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    settings.setCullingMode(culling)
    return np.eye(4, dtype=np.float32), _FIELD, _NEAR, FAR, settings


_VIEWS = {"front": _view(cv2.RASTERIZE_CULLING_CW), "both": _view(cv2.RASTERIZE_CULLING_NONE)}


@dataclass(frozen=True, eq=False)
class Frame:
    """color (H, W, 3) float32 and depth (H, W) float32 of square pictures; drawing changes them in place."""

    color: NDArray[np.float32]
    depth: NDArray[np.float32]

    @classmethod
    def empty(cls, side: int) -> Frame:
        return cls(np.zeros((side, side, 3), np.float32), np.full((side, side), FAR, np.float32))

    def draw(self, xy: Float, z: Float, triangles: Int, values: Float, sides: Sides = "front") -> None:
        """Draw what is nearer than the depth. xy (V, 2) pixels, z (V,) depth > 0, smaller is nearer; triangles
        (T, 3), counter-clockwise as seen (negative doubled area, y down) is the front; values (V, 3), mixed
        over a triangle in perspective."""
        if len(triangles):
            drawn = _drawn(xy, z, triangles, values, len(self.depth))
            cv2.triangleRasterize(*drawn, self.color, self.depth, *_VIEWS[sides])


def color_map(
    xy: Float, z: Float, triangles: Int, values: Float, onto: NDArray[np.float32], sides: Sides = "front"
) -> NDArray[np.float32]:
    """`onto` (H, H, 3) with the nearest surface drawn over it, in place: `Frame.draw` where nobody asks for the depth,
    which costs OpenCV two divisions a pixel."""
    return cv2.triangleRasterizeColor(*_drawn(xy, z, triangles, values, len(onto)), onto, *_VIEWS[sides])


def depth_map(xy: Float, z: Float, triangles: Int, side: int) -> NDArray[np.float32]:
    """(side, side) depth of the nearest surface that faces the front."""
    depth = np.full((side, side), FAR, np.float32)
    cv2.triangleRasterizeDepth(
        unproject(xy, z, side), np.ascontiguousarray(triangles, np.int32), depth, *_VIEWS["front"]
    )
    return depth


def _drawn(xy: Float, z: Float, triangles: Int, values: Float, side: int) -> tuple[Float, Int, Float]:
    """Points, triangles and values as OpenCV takes them."""
    corners = np.ascontiguousarray(triangles, np.int32)
    return unproject(xy, z, side), corners, np.ascontiguousarray(values, np.float32)


def unproject(xy: Float, z: Float, side: int) -> NDArray[np.float32]:
    """The points that OpenCV's fixed camera (y up, looking down -z) sees at these pixels."""
    out = np.empty((len(z), 3), np.float32)
    reach = z * np.float32(2 / (side * _LENS))
    np.multiply(xy[:, 0] - np.float32(side / 2), reach, out=out[:, 0], casting="unsafe")
    np.multiply(np.float32(side / 2) - xy[:, 1], reach, out=out[:, 1], casting="unsafe")
    np.negative(z, out=out[:, 2], casting="unsafe")
    return out


def fronts(xy: Float, triangles: Int, side: int) -> Int:
    """Those of the triangles that face the front and are not wholly outside of the picture."""
    (xa, xb, xc), (ya, yb, yc) = (axis.take(triangles.T) for axis in np.ascontiguousarray(xy.T))
    shown = (xb - xa) * (yc - ya) < (yb - ya) * (xc - xa)
    for axis in (xa, ya):
        shown &= np.abs(axis - side / 2) < side
    return triangles.compress(shown, axis=0)
