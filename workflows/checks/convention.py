"""Are an archive's labels in our convention? Asked of its landmarks, which know nothing of Euler angles.

A pose is solved from the landmarks of every face (`render/person/anatomy.solve_pose`). Then every way in which labels
go wrong (each angle negated or not, every order of the three angles, every order of the rotations, R transposed,
radians taken for degrees) is asked how far its labels lie from the solved poses.

What it means to look straight ahead differs between archives, so one tilt, the same for all faces, is fitted with every
hypothesis, and told (docs/doctor.md has figures).
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
from numpy.typing import ArrayLike

from hpe_core.geometry.convention import AXES, to_matrix
from hpe_core.geometry.rotation import ANGLE_NAMES, Floats, euler_to_matrix, geodesic_deg
from hpe_core.spec.data import ConventionSpec

SIGNS = tuple(f"{name}_sign" for name in ANGLE_NAMES)
UNITS = {"radians_as_degrees": "radians were taken for degrees", "degrees_as_radians": "degrees were taken for radians"}
FEWEST_FACES = 8
MAX_TILT = 20.0  # degrees; archives differ by less in what they call level
CLEARLY = 0.85  # another convention counts if its mean error is smaller than this share of ours ...
P_VALUE = 0.01  # ... and the faces agree on it
PER_CHANGE = 0.2  # degrees that each change has to gain: of equal explanations the simplest
APART, MIXED, TOGETHER = 10.0, 0.05, 0.6  # degrees, share of the faces, share of the error: labels of two conventions
MAX_ERROR = 20.0  # degrees; labels that lie farther off in every convention are explained by none


Kind = Literal["agrees", "wrong", "mixed", "unexplained", "landmarks_mirrored", "too_few_faces"]


@dataclass(frozen=True)
class Verdict:
    """What the landmarks say of the labels. Errors are mean geodesic distances to the solved poses, in degrees.

    kind: agrees; wrong (`best` is the convention that the labels are in); mixed (a part of the faces is in another one,
    `best`); unexplained (every convention is far off, so
    labels and landmarks belong to different faces, or one of them is bad); landmarks_mirrored (left and right are
    exchanged in their numbering); too_few_faces (with landmarks that fit a head).
    """

    kind: Kind
    faces: int  # with a solved pose
    error: float = math.nan  # of the labels as they are configured
    best: ConventionSpec = ConventionSpec()
    best_error: float = math.nan
    prefer: int = 0  # faces that lie nearer to their solved pose with `best`
    tilt: float = math.nan  # degrees of pitch by which the solved heads look higher than the labels say
    negated: tuple[float, ...] = ()  # error of `best` with pitch, yaw or roll negated: how surely its signs are known
    undecided: tuple[str, ...] = ()  # keys of which another value fits about as well


def check_labels(labels_N3: ArrayLike, solved_N33: ArrayLike, configured: ConventionSpec) -> Verdict:
    """Which convention labels are in. `labels_N3` are the reader's, before `configured` is applied to them.

    The configured convention stands unless another one's mean error is clearly smaller and Wilcoxon's signed-rank test
    over the faces says the same.
    """
    labels, solved = np.asarray(labels_N3, dtype=np.float64), np.asarray(solved_N33, dtype=np.float64)
    if len(labels) < FEWEST_FACES:
        return Verdict("too_few_faces", len(labels))
    if (solved[:, 2, 2] < 0).mean() > 0.5:  # numbered from the other side, every head turns its back
        return Verdict("landmarks_mirrored", len(labels))
    candidates = hypotheses(configured.range)
    errors = _errors_of_all(labels, solved, configured.range)
    means = errors.mean(axis=1)
    changes = np.array(_changes_of_all(configured))
    now, best = int(np.argmin(changes)), int(np.argmin(means + PER_CHANGE * changes))
    if flipped := _mixed(labels, solved, configured, float(means[best])):
        return Verdict("mixed", len(labels), float(means[now]), flipped[0], prefer=flipped[1])
    if means[best] > CLEARLY * means[now] or not _nearer(errors[now] - errors[best]):
        best = now
    chosen = simplest(candidates[best], configured)

    def changed(**keys: Any) -> float:
        return float(_errors(labels, solved, replace(chosen, **keys))[0].mean())

    others = {key: changed(**{key: -getattr(chosen, key)}) for key in SIGNS}
    negated = tuple(others.values())
    others["rotation"] = min(changed(rotation=other) for other in choices("rotation") if other != chosen.rotation)
    return Verdict(
        "unexplained" if means[best] > MAX_ERROR else "agrees" if best == now else "wrong",
        len(labels),
        error=float(means[now]),
        best=chosen,
        best_error=float(means[best]),
        prefer=int((errors[best] < errors[now]).sum()),
        tilt=_errors(labels, solved, chosen)[1],
        negated=negated,
        undecided=tuple(key for key, error in others.items() if means[best] > CLEARLY * error),
    )


@cache
def hypotheses(angles_range: Literal["as_read", "wrapped"] = "as_read") -> tuple[ConventionSpec, ...]:
    """All 864 combinations of unit, order, signs and rotation; ours is the first. `twin` spells the transposed ones.

    The range is whatever is configured: 350 and -10 are one rotation, of which landmarks cannot tell (`numbers.py`).
    """
    combinations = itertools.product(*map(choices, ("unit", "order", *SIGNS, "rotation")))
    return tuple(ConventionSpec(unit, angles_range, *rest) for unit, *rest in combinations)


def twin(convention: ConventionSpec) -> ConventionSpec:
    """The other spelling of the same reading: R transposed is the product in reversed order with all signs negated."""
    changed: dict[str, Any] = {key: -getattr(convention, key) for key in SIGNS}
    changed |= {"transposed": not convention.transposed, "rotation": convention.rotation[::-1]}
    return replace(convention, **changed)


def simplest(convention: ConventionSpec, configured: ConventionSpec) -> ConventionSpec:
    """Of the two spellings the one that is nearer to what is configured."""
    return min(convention, twin(convention), key=lambda spelling: _changes(spelling, configured))


def settings(convention: ConventionSpec, configured: ConventionSpec) -> dict[str, Any]:
    """The keys that turn the configured convention into this one, with their values."""
    return {key: value for key, value in vars(convention).items() if value != getattr(configured, key)}


def in_words(convention: ConventionSpec) -> str:
    """What is unusual about labels in this convention, as a clause: 'yaw is negated'."""
    clauses = [UNITS[convention.unit]] if convention.unit in UNITS else []
    stored = convention.order.split("_")
    moved = [f"{other} stands for {name}" for other, name in zip(stored, ANGLE_NAMES, strict=True) if other != name]
    clauses += [" and ".join(moved)] if moved else []
    flipped = [name for name, key in zip(ANGLE_NAMES, SIGNS, strict=True) if getattr(convention, key) < 0]
    if flipped == ["yaw", "roll"]:
        clauses.append("yaw and roll are negated, as in the mirrored picture")
    elif flipped:
        clauses.append(f"{' and '.join(flipped)} {'is' if len(flipped) == 1 else 'are'} negated")
    if convention.rotation != AXES:
        clauses.append(f"the rotations are multiplied in the order {convention.rotation}")
    if convention.transposed:
        clauses.append("the rotation is transposed")
    return "; ".join(clauses) or "the labels are in our convention"


def _changes(convention: ConventionSpec, configured: ConventionSpec) -> int:
    """A sign counts once, all else twice: three signs are a simpler story than another product, transposed."""
    return sum(1 if key in SIGNS else 2 for key in settings(convention, configured))


@cache
def _changes_of_all(configured: ConventionSpec) -> tuple[int, ...]:
    return tuple(_changes(simplest(each, configured), configured) for each in hypotheses(configured.range))


def choices(key: str) -> tuple[Any, ...]:
    return get_args(get_type_hints(ConventionSpec)[key])


def _errors(labels: Floats, solved: Floats, convention: ConventionSpec) -> tuple[Floats, float]:
    """(N,) degrees between labels so read and solved poses, after the tilt that all faces share, and that tilt."""
    errors, tilt = _apart(to_matrix(labels, convention), solved)
    return errors, float(tilt)


def _errors_of_all(labels: Floats, solved: Floats, angles_range: Literal["as_read", "wrapped"]) -> Floats:
    """(864, N) the errors of all `hypotheses`. Those that differ by signs are read at once: an angle's sign is that of
    its label."""
    signs = np.array([*itertools.product(*map(choices, SIGNS))], dtype=np.float64)
    rows = []
    for unit, order in itertools.product(choices("unit"), choices("order")):
        signed = labels * signs[:, None, [ANGLE_NAMES.index(name) for name in order.split("_")]]
        read = [ConventionSpec(unit, angles_range, order, rotation=product) for product in choices("rotation")]
        rows.append(np.stack([_apart(to_matrix(signed, each), solved)[0] for each in read], axis=1))
    return np.concatenate(rows).reshape(-1, len(labels))


def _apart(rotation: Floats, solved: Floats) -> tuple[Floats, Floats]:
    """(..., N) degrees between (..., N, 3, 3) and (N, 3, 3) rotations after the (...,) tilt that fits best, and it."""
    between = np.einsum("...nji,njk->...ik", rotation, solved)
    # The turn about the head's x axis that makes the summed trace of R^T S largest; pitch turns the other way.
    across, along = between[..., 2, 1] - between[..., 1, 2], between[..., 1, 1] + between[..., 2, 2]
    tilt = np.clip(-np.degrees(np.arctan2(across, along)), -MAX_TILT, MAX_TILT)
    turned = euler_to_matrix(tilt[..., None, None] * np.array([1.0, 0.0, 0.0]))
    return geodesic_deg(rotation @ turned, solved), tilt


def _mixed(
    labels: Floats, solved: Floats, configured: ConventionSpec, single: float
) -> tuple[ConventionSpec, int] | None:
    """The configured convention with one sign turned, and how many faces lie far nearer so, where as many lie far
    nearer without, and where all would lie much nearer than in any `single` convention if each face might choose."""
    here = _errors(labels, solved, configured)[0]
    for key in SIGNS:
        changed: dict[str, Any] = {key: -getattr(configured, key)}
        other = replace(configured, **changed)
        there = _errors(labels, solved, other)[0]
        turned, kept = int((here - there > APART).sum()), int((there - here > APART).sum())
        near = np.minimum(here, there).mean() < min(TOGETHER * single, MAX_ERROR / 2)
        if near and min(turned, kept) >= max(MIXED * len(labels), 3):
            return other, turned
    return None


def _nearer(gain: Floats) -> bool:
    """Whether a gain in degrees, face by face, is more than chance."""
    from scipy.stats import wilcoxon  # takes time that an answer to --help need not pay

    return bool(np.any(gain) and wilcoxon(gain, alternative="greater").pvalue < P_VALUE)
