"""Pose errors as mergeable sums: exact for any batch size and any number of workers.

Angle errors are circular (min(d, 360 - d)); the geodesic error is the angle between the rotations. Yaw ranges are
those of the field: 0-30, 30-60, 60-99 degrees of |yaw|.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpe_core.rotation import ANGLE_NAMES, YAW, angle_error, euler_to_matrix, geodesic_deg

YAW_RANGES = ((0.0, 30.0), (30.0, 60.0), (60.0, 180.0))
RANGE_NAMES = ("yaw 0-30", "yaw 30-60", "yaw 60-99")


@dataclass(frozen=True, eq=False)
class PoseSums:
    """Counts and summed errors by yaw range: (3 ranges, [n, pitch, yaw, roll, geodesic]) in float64."""

    table: NDArray[np.float64]

    @classmethod
    def empty(cls) -> "PoseSums":
        return cls(np.zeros((len(YAW_RANGES), 5)))

    @classmethod
    def of(cls, predicted_deg: ArrayLike, true_deg: ArrayLike) -> "PoseSums":
        """(M, 3) predictions and labels in degrees."""
        predicted, true = np.asarray(predicted_deg, np.float64), np.asarray(true_deg, np.float64)
        errors = angle_error(predicted, true)
        geodesic = geodesic_deg(euler_to_matrix(predicted), euler_to_matrix(true))
        columns = np.concatenate([np.ones((len(true), 1)), errors, geodesic[:, None]], axis=1)
        size = np.abs(true[:, YAW])
        return cls(np.stack([columns[(size >= low) & (size < high)].sum(0) for low, high in YAW_RANGES]))

    def __add__(self, other: "PoseSums") -> "PoseSums":
        return PoseSums(self.table + other.table)

    def summary(self) -> dict[str, float]:
        """n, MAE of each angle, their mean, mean geodesic error, and the MAE of each yaw range that has faces."""
        total = self.table.sum(0)
        n = max(total[0], 1.0)
        out = {"n": float(total[0])}
        out |= {name: float(total[1 + i] / n) for i, name in enumerate(ANGLE_NAMES)}
        out["mae"] = float(total[1:4].sum() / n / 3)
        out["geodesic"] = float(total[4] / n)
        for name, row in zip(RANGE_NAMES, self.table, strict=True):
            if row[0]:
                out[name] = float(row[1:4].sum() / row[0] / 3)
        return out
