"""What the labels' numbers alone say of their unit and range, where no landmarks can be asked.

Every reading (unit, and 0 ... 360 or -180 ... 180) is scored by how unlike the poses of heads it makes the labels: all
sets of photographs that we know have a root mean square of each angle within `USUAL`, and look to both sides. A reading
is advised if it is much likelier than the configured one and no other comes near; else the answer is that nobody can
tell. Another range is never worse: 350 and -10 are the same rotation.
"""

import itertools
from dataclasses import replace

import numpy as np

from hpe_core.geometry.convention import to_ours
from hpe_core.geometry.rotation import ANGLE_NAMES, Floats
from hpe_core.spec.data import ConventionSpec
from workflows.checks.convention import UNITS, choices
from workflows.checks.findings import Finding

FEWEST = 8  # faces; fewer have no distribution
USUAL = {"pitch": (3.0, 40.0), "yaw": (4.0, 110.0), "roll": (1.5, 35.0)}  # degrees, root mean square
SMALL = 0.5  # weight of too small angles beside too large ones: faces that all look into the camera are not rare
ONE_SIDED = 0.98  # share of an angle's signs; ours have both
UNIT, RANGE = 0.5, 0.1  # what a changed key costs: of equal readings the simplest
MUCH, NEAR = 2.2, 1.0  # by so much a reading has to beat the configured one, and the next one of another unit
UNLIKE = 1.5  # a cost from which on nobody would take the numbers for heads
PART, GAP, ALIKE = 0.05, 0.3, 0.6  # of two units: the smaller part, its share of faces between them, log of sizes
OUTSIDE = 0.1  # share of faces beyond 180 degrees; AFLW2000 as published has one in a hundred


def number_findings(
    name: str, raw: Floats, configured: ConventionSpec, limit_deg: float, prefix: str, *, units: bool
) -> list[Finding]:
    """`raw` are the reader's (N, 3) labels. `units`: no landmarks have vouched for the unit, so it is asked, too."""
    if len(raw) < FEWEST:
        return []
    if not np.ptp(raw, axis=0).any():
        return [Finding("warning", name, f"all {len(raw)} faces have the same angles: are these labels?")]
    if units and (few := max(_in_two_units(to_ours(raw, replace(configured, unit=unit))) for unit in choices("unit"))):
        text = f"{few} of {len(raw)} faces have angles as small as radians, the others such as degrees have"
        return [Finding("warning", name, f"{text}: are labels in two units? No key mends that, their table does")]
    poses = np.asarray(to_ours(raw, configured))
    outside = int((np.abs(poses) > 180).any(axis=1).sum())
    wrapped = replace(configured, range="wrapped")
    if outside > OUTSIDE * len(raw) and unlikeness(to_ours(raw, wrapped)) <= NEAR:
        text = (
            f"angles run beyond 180 degrees ({outside} of {len(raw)} faces), as in 0 ... 360, where 350 is -10: set "
            f"{prefix}convention.range=wrapped"
        )
        return [Finding("error", name, text)]
    return (_unit_findings(name, raw, configured, prefix) if units else []) or _wide(name, poses, limit_deg)


def _in_two_units(poses_deg: Floats) -> int:
    """How many faces seem to be labelled in radians where the others are in degrees; 0 if that is not how they look.

    Those lie within a half turn's radians, hardly any lie in the octave above it, as honest frontal faces would, and in
    degrees they look as the others do.
    """
    largest = np.abs(poses_deg).max(axis=1)
    small, above = largest <= np.pi, (largest > np.pi) & (largest <= 2 * np.pi)
    if min(small.sum(), (~small).sum()) < max(FEWEST / 2, PART * len(small)) or above.sum() > GAP * small.sum():
        return 0
    sizes = [np.median(np.abs(part), axis=0) + 1 for part in (np.degrees(poses_deg[small]), poses_deg[~small])]
    return int(small.sum()) if np.abs(np.log(sizes[0] / sizes[1])).max() < ALIKE else 0


def _unit_findings(name: str, raw: Floats, configured: ConventionSpec, prefix: str) -> list[Finding]:
    costs = {}
    for unit, spread in itertools.product(choices("unit"), choices("range")):
        reading = replace(configured, unit=unit, range=spread)
        changed = UNIT * (unit != configured.unit) + RANGE * (spread != configured.range)
        costs[reading] = unlikeness(to_ours(raw, reading)) + changed
    now, best = costs[configured], min(costs, key=lambda reading: costs[reading])
    rivals = [cost for reading, cost in costs.items() if reading.unit != best.unit]
    size = ", ".join(f"{n} {value:.3g}" for n, value in zip(ANGLE_NAMES, _rms(to_ours(raw, configured)), strict=True))
    if best.unit != configured.unit and now - costs[best] > MUCH and min(rivals) - costs[best] > NEAR:
        keys = f"{prefix}convention.unit={best.unit}"
        if best.range != configured.range:
            keys += f" {prefix}convention.range={best.range}"
        what = UNITS.get(best.unit, "is the key of the unit needless")
        return [Finding("warning", name, f"{what} (root mean square: {size})? Then set {keys}")]
    if now > UNLIKE:
        text = f"angles are unlike those of heads in every unit or in two (root mean square: {size}); nobody can tell"
        return [Finding("warning", name, f"{text} which: compare the drawn axes (out=FOLDER) with the faces")]
    return []


def _wide(name: str, poses: Floats, limit_deg: float) -> list[Finding]:
    far = int((np.abs(poses) > limit_deg).any(axis=1).sum())
    if far <= len(poses) / 2:
        return []
    text = f"{far} of {len(poses)} faces lie beyond {limit_deg:g} degrees and will be left out"
    return [Finding("warning", name, f"{text}; if they are meant, raise data.limit_deg and net.limit_deg")]


def unlikeness(poses_deg: Floats) -> float:
    """How far (N, 3) degrees lie from what sets of heads look like: 0 for any that is usual."""
    cost = 0.0
    for (low, high), size, column in zip(USUAL.values(), _rms(poses_deg), np.asarray(poses_deg).T, strict=True):
        if size == 0:
            continue  # an angle that an archive does not have, as Pointing'04 has no roll
        cost += max(0.0, np.log(size / high), SMALL * np.log(low / size))
        cost += float(max((column > 0).mean(), (column < 0).mean()) >= ONE_SIDED)
    return cost


def _rms(poses_deg: Floats) -> Floats:
    return np.asarray(np.sqrt((np.asarray(poses_deg) ** 2).mean(axis=0)))
