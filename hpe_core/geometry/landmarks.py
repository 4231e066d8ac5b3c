"""The 68 landmarks: their numbering (300W, iBUG), their mirror numbering, and how errors of them are measured.

A face's landmarks are (68, 3): x, y in pixels and whether the point is seen, 1 or 0. NaN says that nobody knows: most
archives do not say what is hidden, and AFLW prints only what is seen, and of the 68 only sixteen.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

LANDMARKS = 68
EYE_CORNERS = 36, 45  # the outer ones, of the eye left in the picture and of the other

# Which point of the original stands in each place of the mirror picture: jaw, brows, nose, eyes, mouth outside, inside.
MIRROR_68 = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)]
)

Floats = NDArray[np.float64]


def mirror_landmarks(landmarks_L3: ArrayLike, width: float) -> Floats:
    """(..., 68, 2 or 3) in the horizontally flipped picture of this width."""
    flipped = np.array(np.asarray(landmarks_L3, np.float64)[..., MIRROR_68, :])
    flipped[..., 0] = width - flipped[..., 0]
    return flipped


def landmark_errors(points_ML2: ArrayLike, true_ML2: ArrayLike, by: str) -> Floats:
    """(M,) mean distance over the known landmarks of each face, in percent of its size; NaN where none is known.

    `by` is `box`, the root of the area of the box of the true landmarks, or `eyes`, the distance of the outer corners
    of the eyes; NaN where those are not known, or coincide.
    """
    true = np.asarray(true_ML2, np.float64)
    apart = np.linalg.norm(np.asarray(points_ML2, np.float64) - true, axis=-1)
    known = np.isfinite(apart)
    mean = np.where(known, apart, 0).sum(-1) / np.where(known.any(-1), known.sum(-1), np.nan)
    return np.asarray(100 * mean / face_size(true, by))


def face_size(true_ML2: ArrayLike, by: str) -> Floats:
    """(M,) pixels; see `landmark_errors`."""
    true = np.asarray(true_ML2, np.float64)
    if by == "eyes":
        left, right = (true[:, corner] for corner in EYE_CORNERS)
        size = np.linalg.norm(left - right, axis=-1)
    else:
        assert by == "box", by
        known = np.isfinite(true).all(-1, keepdims=True)
        sides = np.where(known, true, -np.inf).max(1) - np.where(known, true, np.inf).min(1)
        size = np.sqrt(np.where(np.isfinite(sides), sides, np.nan).prod(-1).clip(0))
    return np.where(size > 0, size, np.nan)


def recall_at_precision(scores: ArrayLike, seen: ArrayLike, precision: float = 0.8) -> float:
    """The largest share of hidden points that is found where at least `precision` of what is called hidden is.

    `scores` are high where a point looks hidden; `seen` is 1 or 0, or NaN, which does not count. This is the measure of
    COFW ("recall at 80 % precision"). 0 where no threshold is so precise; NaN where nothing is hidden.
    """
    score, truth = np.ravel(scores), np.ravel(seen)
    score, hidden = score[np.isfinite(truth)], truth[np.isfinite(truth)] == 0
    if not hidden.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    found, called = np.cumsum(hidden[order]), np.arange(1, len(order) + 1)
    last = np.append(np.diff(score[order]) != 0, True)  # equal scores are called together
    good = last & (found >= precision * called)
    return float(found[good].max(initial=0) / hidden.sum())
