"""Laws of tracks and of the one-euro filter on rotations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpe_core.geometry.crop import Box
from hpe_core.geometry.rotation import euler_to_matrix, geodesic_deg, turn
from workflows.prediction.tracks import OneEuro, Tracks

POSES = st.tuples(st.floats(-89, 89), st.floats(-89, 89), st.floats(-180, 180))


def apart(first, second) -> float:
    return float(geodesic_deg(euler_to_matrix(first), euler_to_matrix(second)))


def smoothed(poses, times, rest_s: float = 0.3) -> np.ndarray:
    follow = OneEuro(rest_s)
    return np.array([follow(pose, time) for pose, time in zip(poses, times, strict=True)])


@given(POSES, st.lists(st.floats(0.001, 2), min_size=1, max_size=9))
def test_a_pose_that_stays_stays(pose, steps):
    for found in smoothed([pose] * (len(steps) + 1), np.cumsum([0, *steps])):
        assert apart(found, pose) < 1e-4


def test_a_head_that_looks_away_keeps_its_way_of_saying_so():
    """Beyond 90 degrees of yaw a rotation has a second triple with a smaller yaw, and networks name the larger."""
    np.testing.assert_allclose(smoothed([(5, 95, 3)] * 3, [0, 0.1, 0.2]), [(5, 95, 3)] * 3, atol=1e-6)


def test_a_head_that_passes_its_profile_does_not_jump():
    times = np.arange(60) / 30
    found = smoothed([(5.0, 84 + 0.2 * i, 3.0) for i in range(60)], times)
    assert np.abs(np.diff(found, axis=0)).max() < 2 and 90 < found[-1, 1] < 96


def test_a_head_that_rolls_over_180_degrees_does_not_jump():
    times = np.arange(120) / 30
    rolls = 150 + 40 * times  # through 180, in degrees that wrap
    found = smoothed([(5.0, 10.0, (roll + 180) % 360 - 180) for roll in rolls], times)
    steps = [apart(a, b) for a, b in zip(found[1:], found[:-1], strict=True)]
    assert max(steps) < 40 / 30 * 1.5 and np.ptp(found[:, 2]) > 300
    assert np.abs(found[:, 0] - 5).max() < 1 and np.abs(found[:, 1] - 10).max() < 1


@pytest.mark.parametrize("rate", [10, 30])
def test_noise_falls_and_falls_more_with_a_longer_time(rate):
    rng, times = np.random.default_rng(1), np.arange(300) / rate
    poses = np.array([10.0, -20.0, 170.0]) + 2 * rng.standard_normal((300, 3))
    errors = [
        np.mean([apart(pose, (10, -20, 170)) ** 2 for pose in smoothed(poses, times, rest)[rate:]])
        for rest in (1e-6, 0.1, 0.5)
    ]
    assert errors[0] == pytest.approx(12, rel=0.2)  # 3 * 2^2: as good as off
    assert errors[1] < 0.8 * errors[0] and errors[2] < 0.7 * errors[1]


def test_a_step_is_followed_and_a_fast_one_sooner():
    times = np.arange(90) / 30
    for size in (4.0, 60.0):
        found = smoothed([(0, 0, 0)] * 30 + [(0, size, 0)] * 60, times, 0.5)[:, 1] / size
        assert np.all(np.diff(found[29:]) > -1e-9) and found[29] == 0 and found[-1] > 0.95
        late = int(np.argmax(found > 0.5))
        assert late < 30 + 15
        if size == 60.0:
            assert late <= 32, "a fast turn is followed within two frames"


def test_time_is_what_the_stamps_say_and_not_the_number_of_frames():
    """A frame that comes after a long while is believed; the same one at once is not."""
    soon = smoothed([(0, 0, 0), (0, 3, 0)], [0, 0.01])[-1][1]
    late = smoothed([(0, 0, 0), (0, 3, 0)], [0, 3.0])[-1][1]
    assert soon < 0.7 < 2.6 < late


@given(POSES, POSES, st.sampled_from([90.0, 180.0, 270.0]))
def test_the_filter_knows_no_special_direction(first, second, degrees):
    """A picture that is turned gives the smoothed poses turned."""
    plain = smoothed([first, second], [0, 0.1])[-1]
    lying = smoothed([turn(first, degrees), turn(second, degrees)], [0, 0.1])[-1]
    if apart(first, second) < 170:  # the shortest way is one
        assert apart(lying, turn(plain, degrees)) < 1e-3


def test_people_keep_their_numbers_while_they_move_cross_and_blink():
    tracks, left, right = Tracks(0.0), Box(0, 0, 40, 40), Box(100, 0, 140, 40)
    pose = np.zeros((2, 3))
    numbers = [tracks.follow([left.moved(4 * i, 0), right.moved(-3 * i, 0)], pose, i / 25)[0] for i in range(8)]
    assert numbers == [[0, 1]] * 8
    swapped = tracks.follow([right.moved(-24, 0), left.moved(32, 0)], pose, 0.32)[0]
    assert swapped == [1, 0]  # whatever order the detector names them in
    assert tracks.follow([left.moved(32, 0)], pose[:1], 0.4)[0] == [0]
    assert tracks.follow([left.moved(32, 0), right.moved(-24, 0)], pose, 0.9)[0] == [0, 1]  # away for half a second
    assert tracks.follow([left.moved(32, 0)], pose[:1], 2.5)[0] == [0]  # of a slow series, the next frame
    assert tracks.follow([left.moved(32, 0), right.moved(-24, 0)], pose, 2.6)[0] == [0, 2]  # away for longer
    assert tracks.follow([], pose[:0], 2.7)[0] == []
    assert tracks.follow([left.moved(32, 0)], pose[:1], 3.8)[0] == [3]  # nobody was seen, and then somebody else


def test_of_two_people_who_overlap_each_keeps_the_number_whose_box_is_nearest():
    """Whatever order the detector names them in: the surest pairs are matched first."""
    left, right, pose = Box(0, 0, 40, 40), Box(20, 0, 60, 40), np.zeros((2, 3))
    for order in (1, -1):
        tracks = Tracks(0.0)
        assert tracks.follow([left, right], pose, 0.0)[0] == [0, 1]
        moved = [left.moved(2, 0), right.moved(-2, 0)][::order]
        assert tracks.follow(moved, pose, 0.04)[0] == [0, 1][::order]


def test_each_person_is_smoothed_alone_and_nobody_without_the_key():
    boxes = [Box(0, 0, 40, 40), Box(100, 0, 140, 40)]
    for smooth, same in ((0.0, True), (0.5, False)):
        tracks = Tracks(smooth)
        tracks.follow(boxes, np.array([[0, 0, 0], [0, 50, 0]]), 0.0)
        _, found = tracks.follow(boxes[::-1], np.array([[0, 52, 0], [0, 2, 0]]), 0.04)
        assert np.allclose(found[:, 1], [52, 2]) == same
        assert abs(found[0, 1] - 51) < 1.01 and abs(found[1, 1] - 1) < 1.01
