"""Laws of the angle convention, against SciPy."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hpe_core.geometry import rotation, rotations

wide = st.floats(-179, 179, allow_nan=False)
inside = st.floats(-89, 89, allow_nan=False)
triples = st.tuples(wide, inside, wide)


@given(triples)
def test_matrix_is_scipys(angles):
    p, y, r = angles
    scipys = Rotation.from_euler("XYZ", [-p, y, r], degrees=True).as_matrix()
    assert np.allclose(rotation.euler_to_matrix(angles), scipys)


@given(triples)
def test_euler_round_trip(angles):
    assert np.allclose(rotation.matrix_to_euler(rotation.euler_to_matrix(angles)), angles, atol=1e-6)


def test_gimbal_lock_keeps_the_rotation():
    for yaw in (90, -90):
        matrix = rotation.euler_to_matrix([20, yaw, 35])
        again = rotation.euler_to_matrix(rotation.matrix_to_euler(matrix))
        assert np.allclose(again, matrix, atol=1e-9)


@given(triples)
def test_mirror_twice_is_identity_and_mirrors_the_matrix(angles):
    assert np.array_equal(rotation.mirror(rotation.mirror(angles)), np.asarray(angles, float))
    flip = np.diag([-1.0, 1.0, 1.0])
    mirrored = flip @ rotation.euler_to_matrix(angles) @ flip
    assert np.allclose(rotation.euler_to_matrix(rotation.mirror(angles)), mirrored)


def test_turn_reference_value():
    assert np.allclose(rotation.turn([20, 60, 0], 15), [39.65, 52.40, 23.49], atol=0.01)


@given(triples, st.floats(-45, 45), st.floats(-45, 45))
def test_turns_add_up_and_turn_back(angles, first, second):
    step = rotation.euler_to_matrix(rotation.turn(rotation.turn(angles, first), second))
    assert np.allclose(step, rotation.euler_to_matrix(rotation.turn(angles, first + second)), atol=1e-6)
    back = rotation.turn(rotation.turn(angles, first), -first)
    assert rotation.geodesic_deg(rotation.euler_to_matrix(back), rotation.euler_to_matrix(angles)) < 1e-5


@given(st.tuples(wide, st.floats(-179, 179), wide))
def test_turn_by_nothing_keeps_labels_beyond_profile(angles):
    if abs(abs(angles[1]) - 90) < 0.5:
        return
    assert rotation.angle_error(rotation.turn(angles, 0.0), angles).max() < 1e-6


def test_a_frontal_head_turns_by_roll_alone():
    assert np.allclose(rotation.turn([0, 0, 10], 25), [0, 0, 35])


@given(triples, st.floats(0.001, 179.9), st.sampled_from("xyz"))
def test_geodesic_is_the_angle_between(angles, size, axis):
    first = rotation.euler_to_matrix(angles)
    second = Rotation.from_euler(axis, size, degrees=True).as_matrix() @ first
    assert abs(rotation.geodesic_deg(first, second) - size) < 1e-5


anywhere = st.tuples(wide, wide, wide)


@given(anywhere, anywhere)
def test_both_triples_of_a_rotation_are_as_far_from_a_label(angles, label):
    twin, rotated = rotation.other_branch(angles), rotation.euler_to_matrix(angles)
    assert np.allclose(rotation.euler_to_matrix(twin), rotated, atol=1e-9)
    assert np.allclose(rotation.euler_error(twin, angles), 0, atol=1e-9)
    errors = rotation.euler_error(angles, label)
    sums = [rotation.angle_error(each, label).sum() for each in (angles, twin)]
    assert abs(errors.sum() - min(sums)) < 1e-9 and np.allclose(errors.sum(), rotation.euler_error(twin, label).sum())
    assert np.allclose(rotation.euler_to_matrix(rotation.nearer_branch(angles, label)), rotated, atol=1e-9)


@given(anywhere)
def test_an_upright_triple_is_that_of_the_same_head_and_stays(angles):
    found = rotation.upright(angles)
    assert np.allclose(rotation.euler_to_matrix(found), rotation.euler_to_matrix(angles), atol=1e-9)
    assert abs(found[0]) + abs(found[2]) <= 180 + 1e-9 and np.array_equal(rotation.upright(found), found)
    assert np.allclose(found, rotations.upright(torch.tensor(angles, dtype=torch.float64)).numpy(), atol=1e-9)


def test_errors_are_circular_but_never_folded():
    assert rotation.angle_error(-175, 175) == 10
    assert rotation.angle_error(85, -85) == 170
    assert rotation.angle_error(0, 180) == 180
    assert rotation.geodesic_deg(np.eye(3), np.diag([-1.0, 1.0, -1.0])) == 180
