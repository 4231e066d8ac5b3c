"""The pinhole camera. Pixel coordinates are those of `crop.Box`: pixel (i, j) covers [i, i+1] x [j, j+1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpe_core.geometry.crop import Box

# The landmark box of the 300W-LP loaders (Hopenet and its heirs): k = 0.2, the sides and the bottom grown by
# 0.6 k of the landmarks' extent, the top by 2 k because the landmarks end at the brows.
GROW_SIDE, GROW_TOP = 0.12, 0.40


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


def face_box(landmarks: NDArray[np.floating]) -> Box:
    """The box of landmarks (N, 2) in pixels."""
    low, high = landmarks.min(0).astype(float), landmarks.max(0).astype(float)
    w, h = high - low
    return Box(
        float(low[0] - GROW_SIDE * w),
        float(low[1] - GROW_TOP * h),
        float(high[0] + GROW_SIDE * w),
        float(high[1] + GROW_SIDE * h),
    )
