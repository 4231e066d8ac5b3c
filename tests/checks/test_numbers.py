"""What numbers alone say of labels: an advice mends what was done to them, honest labels get none that changes them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from hpe_core.geometry.convention import to_matrix, to_ours
from hpe_core.geometry.rotation import Floats, euler_to_matrix, geodesic_deg
from hpe_core.spec.data import ConventionSpec
from workflows.checks.findings import Finding
from workflows.checks.numbers import FEWEST, number_findings

OURS = ConventionSpec()


def crowd(pitch: float, yaw: float, roll: float, count: int = 60) -> Floats:
    return np.random.default_rng(3).normal(0, 1, (count, 3)) * [pitch, yaw, roll]


def asked(raw: Floats, configured: ConventionSpec = OURS, *, units: bool = True) -> list[Finding]:
    return number_findings("mine", raw, configured, 99, "data.datasets.mine.", units=units)


def advised(findings: list[Finding]) -> dict[str, str]:
    """The keys that the findings tell to set."""
    words = [
        word for finding in findings for word in finding.text.split() if word.startswith("data.datasets.mine.conv")
    ]
    return dict(word.removeprefix("data.datasets.mine.convention.").split("=") for word in words)


HONEST = {
    "webcam": crowd(8, 15, 5),
    "in the wild": crowd(15, 35, 12),
    "wide": np.clip(crowd(20, 1, 12), -80, 80) + [[0, 1, 0]] * np.linspace(-170, 170, 60)[:, None],
    "all beyond 99": crowd(10, 1, 8) + [[0, 1, 0]] * np.where(np.arange(60) % 2, 130, -125)[:, None],
    "one profile": crowd(10, 15, 8) + [0, 60, 0],
    "grid without roll": np.array([(p, y, 0) for p in (-60, -30, 0, 30, 60) for y in range(-90, 91, 15)], float),
    "backs of heads": np.where(np.arange(60)[:, None] % 2, [170, 20, -175], [-10, 25, 5]) + crowd(8, 9, 4),
    "nearly frontal": crowd(1, 1, 1),
    "within 3 degrees": np.random.default_rng(1).uniform(-3, 3, (60, 3)),
    "half a degree": crowd(0.5, 0.5, 0.5),
}
DONE = {  # what people do to labels -> the keys that undo it
    "0 ... 360": (lambda poses: poses % 360, {"range": "wrapped"}),
    "yaw alone 0 ... 360": (lambda poses: np.where([False, True, False], poses % 360, poses), {"range": "wrapped"}),
    "every third face 0 ... 360": (
        lambda poses: np.where(np.arange(len(poses))[:, None] % 3 == 0, poses % 360, poses),
        {"range": "wrapped"},
    ),
    "radians": (np.radians, {"unit": "radians_as_degrees"}),
    "degrees as radians": (np.degrees, {"unit": "degrees_as_radians"}),
    "0 ... 2 pi": (lambda poses: np.radians(poses % 360), {"unit": "radians_as_degrees", "range": "wrapped"}),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_labels_are_never_told_to_be_changed(name):
    assert advised(asked(HONEST[name])) == {}


@pytest.mark.parametrize(("name", "done"), itertools.product(["webcam", "in the wild"], DONE))
def test_the_advice_gives_back_what_was_there_and_then_all_is_well(name, done):
    poses, (spoil, keys) = HONEST[name], DONE[done]
    raw = spoil(poses)
    assert advised(asked(raw)) == keys
    obeyed = replace(OURS, **keys)
    np.testing.assert_allclose(to_ours(raw, obeyed), poses, atol=1e-9)
    assert asked(raw, obeyed) == []


def test_a_needless_unit_is_found():
    assert advised(asked(HONEST["in the wild"], replace(OURS, unit="degrees_as_radians"))) == {"unit": "as_read"}


def test_a_range_is_found_where_landmarks_have_vouched_for_the_unit_and_no_unit_is_asked_then():
    """They cannot tell 350 from -10."""
    poses = HONEST["in the wild"]
    assert advised(asked(poses % 360, units=False)) == {"range": "wrapped"}
    assert asked(np.radians(poses), units=False) == []
    stray = poses.copy()
    stray[:3, 1] = 351  # as in AFLW2000 as published
    assert asked(stray, units=False) == []


def test_what_nobody_can_tell_is_said_and_constants_are_no_labels():
    (finding,) = asked(HONEST["half a degree"])
    assert "nobody can tell" in finding.text and finding.level == "warning"
    (finding,) = asked(HONEST["all beyond 99"])
    assert "60 of 60 faces lie beyond 99 degrees" in finding.text and "data.limit_deg" in finding.text
    for constant in ([0, 0, 0], [5, 5, 5], [400, 0, 0]):
        (finding,) = asked(np.tile(np.array(constant, float), (30, 1)))
        assert "the same angles" in finding.text
    assert asked(np.radians(HONEST["webcam"][: FEWEST - 1])) == []


@pytest.mark.parametrize("name", ["webcam", "in the wild", "wide", "one profile", "grid without roll"])
@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("unit", [1.0, 180 / np.pi])
def test_labels_of_two_units_are_told(name, every, unit):
    """Half radians, or half degrees that were taken for radians: no key mends them, and all is not well."""
    poses = HONEST[name] * unit
    for radians in (np.arange(len(poses)) % every == 0, np.arange(len(poses)) % every != 0):
        (finding,) = asked(np.where(radians[:, None], np.radians(poses), poses))[:1]
        assert "two units" in finding.text and advised([finding]) == {}
        told = int(finding.text.split()[0])
        assert radians.sum() <= told <= radians.sum() + 2  # an honest face may look straight ahead


def test_honest_labels_are_not_said_to_be_of_two_units():
    random = np.random.default_rng(5)
    crowds = list(HONEST.values())
    for _ in range(100):
        crowds.append(crowd(*np.exp(random.uniform(np.log([3, 4, 1.5]), np.log([40, 90, 35]))), count=100))
    assert not [poses for poses in crowds for finding in asked(poses) if "two units" in finding.text]


def test_wrapping_turns_no_head_and_leaves_what_is_in_range():
    wrapped = replace(OURS, range="wrapped")
    angles = np.random.default_rng(2).uniform(-700, 700, (200, 3))
    assert geodesic_deg(to_matrix(angles, wrapped), euler_to_matrix(angles)).max() < 1e-5
    assert np.abs(to_ours(angles, wrapped)).max() <= 180
    inside = angles[np.abs(angles).max(axis=1) <= 180]
    assert len(inside) and np.array_equal(to_ours(inside, wrapped), inside)
    np.testing.assert_allclose(to_ours([350.0, 0.0, 190.0], wrapped), [-10, 0, -170])
