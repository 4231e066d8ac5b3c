"""Pose errors as mergeable sums: exact for any batch size and any number of workers.

Angle errors are circular (min(d, 360 - d)), of the answer's Euler triple that lies nearer to the label. The geodesic
error is the angle between the rotations; MAEV is the mean angle between the three axes of the two heads (Cao et al.,
WACV 2021). Yaw ranges are those of the field. Euler angles are compared up to 99 degrees of yaw, rotations all round.
Median and 90th percentile come from a histogram of the geodesic error and are exact to half a cell. The area under the
error distribution up to 20 degrees is the mean of max(0, 1 - e / 20), e being a face's mean angle error.

Datasets disagree about where a head's own axes point, by a few constant degrees. `head_offset` finds that rotation for
a dataset (or a sequence), `realigned` applies it: errors after it stand beside the raw ones and never replace them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpe_core.geometry.rotation import (
    ANGLE_NAMES,
    YAW,
    Floats,
    euler_error,
    euler_to_matrix,
    geodesic_deg,
    matrix_to_euler,
    same_branch,
)

FRONT_DEG = 99.0  # of yaw, up to which Euler angles are compared: a head from behind has two triples, far apart
YAW_RANGES = ((0.0, 30.0), (30.0, 60.0), (60.0, FRONT_DEG + 1e-6), (FRONT_DEG + 1e-6, 181.0))
RANGE_NAMES = ("yaw 0-30", "yaw 30-60", "yaw 60-99")
CELL_DEG, CELLS = 0.01, 18_000  # of the histogram of geodesic errors
AUC_DEG = 20.0
COLUMNS = 7  # n, the three angles, geodesic, MAEV, share under the distribution


@dataclass(frozen=True, eq=False)
class PoseSums:
    """Counts and summed errors by yaw range (4 ranges, 7 columns), and the histogram of geodesic errors (float64)."""

    table: NDArray[np.float64]
    histogram: NDArray[np.float64]
    landmarks: NDArray[np.float64]  # how many faces have such, and their errors summed, in percent of the face's box

    @classmethod
    def empty(cls) -> "PoseSums":
        return cls(np.zeros((len(YAW_RANGES), COLUMNS)), np.zeros(CELLS), np.zeros(2))

    @classmethod
    def of(cls, predicted_deg: ArrayLike, true_deg: ArrayLike, landmark_errors_M: ArrayLike = ()) -> "PoseSums":
        """(M, 3) predictions and labels in degrees; errors of landmarks where they were predicted, NaN: unknown."""
        predicted, true = np.asarray(predicted_deg, np.float64), np.asarray(true_deg, np.float64)
        errors = euler_error(predicted, true)
        first, second = euler_to_matrix(predicted), euler_to_matrix(true)
        geodesic = geodesic_deg(first, second)
        under = np.maximum(0.0, 1.0 - errors.mean(axis=1) / AUC_DEG)
        columns = np.column_stack([np.ones(len(true)), errors, geodesic, axes_error(first, second), under])
        size = np.abs(true[:, YAW])
        known = np.nan_to_num(geodesic, nan=180.0)  # a prediction that is no number: the sums say so
        cells = np.minimum((known / CELL_DEG).astype(np.int64), CELLS - 1)
        return cls(
            np.stack([columns[(size >= low) & (size < high)].sum(0) for low, high in YAW_RANGES]),
            np.bincount(cells, minlength=CELLS).astype(np.float64),
            np.array([np.isfinite(landmark_errors_M).sum(), np.nansum(landmark_errors_M)]),
        )

    def __add__(self, other: "PoseSums") -> "PoseSums":
        return PoseSums.from_vector(self.as_vector() + other.as_vector())

    def as_vector(self) -> NDArray[np.float64]:
        """All sums in one vector, for workers to add up."""
        return np.concatenate([self.table.ravel(), self.histogram, self.landmarks])

    @classmethod
    def from_vector(cls, vector: NDArray[np.float64]) -> "PoseSums":
        size = len(YAW_RANGES) * COLUMNS
        return cls(vector[:size].reshape(len(YAW_RANGES), COLUMNS), vector[size:-2], vector[-2:])

    def quantile(self, share: float) -> float:
        """The geodesic error, degrees, that `share` of the faces do not exceed: the middle of its cell."""
        total = self.histogram.sum()
        if not total:
            return float("nan")
        cell = int(np.searchsorted(np.cumsum(self.histogram), share * total))
        return (min(cell, CELLS - 1) + 0.5) * CELL_DEG

    def summary(self) -> dict[str, float]:
        """n; MAE of each angle, and mean; geodesic mean, median, p90; MAEV; AUC; MAE by yaw range; NME of landmarks."""
        total, front = self.table.sum(0), self.table[:-1].sum(0)
        n, angles = max(total[0], 1.0), front if front[0] else total
        out = {"n": float(total[0])}
        out |= {name: float(angles[1 + i] / max(angles[0], 1.0)) for i, name in enumerate(ANGLE_NAMES)}
        out["mae"] = float(angles[1:4].sum() / max(angles[0], 1.0) / 3)
        out |= {"geodesic": float(total[4] / n), "maev": float(total[5] / n)}
        out["auc"] = float(angles[6] / max(angles[0], 1.0))
        out |= {"median": self.quantile(0.5), "p90": self.quantile(0.9)}
        if behind := self.table[-1][0]:
            out["geodesic_behind"] = float(self.table[-1][4] / behind)
        for name, row in zip(RANGE_NAMES, self.table, strict=False):
            if row[0]:
                out[name] = float(row[1:4].sum() / row[0] / 3)
        if self.landmarks[0]:
            out["nme"] = float(self.landmarks[1] / self.landmarks[0])
        return out


def in_front(true_deg: ArrayLike) -> NDArray[np.bool_]:
    """(M,) of labels (M, 3): whose Euler angles are compared; everybody's where nobody looks ahead."""
    ahead = np.abs(np.asarray(true_deg)[:, YAW]) <= FRONT_DEG
    return np.asarray(ahead if ahead.any() else ~ahead)


def deciding(scores: Mapping[str, float], prefix: str = "") -> str:
    """The key of a `summary` by which epochs, trials and networks are chosen: MAE, or the geodesic error where some
    faces are seen from behind, which no Euler angle compares."""
    return prefix + ("geodesic" if f"{prefix}geodesic_behind" in scores else "mae")


def axes_error(first: ArrayLike, second: ArrayLike) -> Floats:
    """Mean angle between the three axes of two (..., 3, 3) rotations, degrees (MAEV of Cao et al. 2021)."""
    chords = np.linalg.norm(np.asarray(first, np.float64) - np.asarray(second, np.float64), axis=-2)
    return np.degrees(2.0 * np.arcsin(np.clip(chords / 2.0, 0.0, 1.0))).mean(axis=-1)


def head_offset(predicted_deg: ArrayLike, true_deg: ArrayLike) -> Floats:
    """The rotation D (3, 3) of the head's own axes for which sum |R_predicted D - R_true|^2 is least (Kabsch 1976)."""
    moments = np.swapaxes(euler_to_matrix(predicted_deg), -1, -2) @ euler_to_matrix(true_deg)
    u, _, v = np.linalg.svd(moments.reshape(-1, 3, 3).sum(axis=0))
    u[:, -1] *= np.linalg.det(u @ v)
    return u @ v


def realigned(predicted_deg: ArrayLike, offset: ArrayLike) -> Floats:
    """(..., 3) degrees after the head's axes are moved by `offset`; a triple with |yaw| > 90 keeps its branch."""
    predicted = np.asarray(predicted_deg, np.float64)
    return same_branch(matrix_to_euler(euler_to_matrix(predicted) @ np.asarray(offset, np.float64)), predicted)


def aligned_summary(predicted_deg: ArrayLike, true_deg: ArrayLike, groups: ArrayLike | None = None) -> dict[str, float]:
    """aligned_mae, aligned_geodesic and mean offset_deg after one offset for all, or for each of `groups` (M,)."""
    predicted, true = np.asarray(predicted_deg, np.float64), np.asarray(true_deg, np.float64)
    names = np.zeros(len(true), np.int64) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    moved, sizes = predicted.copy(), np.zeros(len(true))
    for name in np.unique(names):
        rows = names == name
        offset = head_offset(predicted[rows], true[rows])
        moved[rows] = realigned(predicted[rows], offset)
        sizes[rows] = geodesic_deg(offset, np.eye(3))
    scores = PoseSums.of(moved, true).summary()
    return {
        "aligned_mae": scores["mae"],
        "aligned_geodesic": scores["geodesic"],
        "offset_deg": float(sizes.mean()) if len(sizes) else 0.0,
    }
