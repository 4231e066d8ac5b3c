"""Laws of mean rotations, against SciPy and the NumPy convention."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hpe_core.geometry import rotation
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.rotations import Rotations, from_6d, project, to_euler, to_matrix, upright

FORM = Rotations()
seeds = st.integers(0, 10_000)
anywhere = st.tuples(*[st.floats(-180, 180)] * 3)


def cloud(seed: int, count: int = 40, degrees: float = 30.0) -> np.ndarray:
    """(count, 3, 3) rotations about a random one, each some way from it."""
    random = np.random.default_rng(seed)
    middle = Rotation.random(random_state=seed)
    return (middle * Rotation.from_rotvec(np.radians(random.normal(0, degrees, (count, 3))))).as_matrix()


@given(anywhere)
def test_torch_and_numpy_have_one_convention(angles):
    matrix = rotation.euler_to_matrix(angles)
    np.testing.assert_allclose(to_matrix(torch.tensor(angles, dtype=torch.float64)).numpy(), matrix, atol=1e-12)
    ours, theirs = to_euler(torch.from_numpy(matrix)).numpy(), rotation.matrix_to_euler(matrix)
    np.testing.assert_allclose(rotation.euler_to_matrix(ours), matrix, atol=1e-7)
    if abs(theirs[1]) < 89.9:  # nearer to the lock arcsin keeps half of the digits
        assert rotation.angle_error(ours, theirs).max() < 1e-5


@given(st.tuples(st.floats(-89, 89), st.floats(-179.5, 179.5), st.floats(-89, 89)))
def test_a_head_seen_from_any_side_keeps_its_angles(angles):
    """The triple that stands upright is given back; the same rotation's other one stands on its crown."""
    (pitch, yaw, roll), given_ = angles, torch.tensor(angles, dtype=torch.float64)
    if abs(pitch) + abs(roll) > 179 or abs(abs(yaw) - 90) < 0.1:
        return
    found = upright(to_euler(to_matrix(given_)))
    assert rotation.angle_error(found.numpy(), angles).max() < 1e-6
    assert rotation.angle_error(FORM.decode(to_matrix(given_)[None])[0].numpy(), angles).max() < 2e-2


@given(seeds, st.floats(1, 60))
def test_the_angles_of_an_average_are_those_of_the_chordal_mean(seed, degrees):
    matrices = cloud(seed, degrees=degrees)
    average = torch.from_numpy(matrices.mean(0))
    expected = Rotation.from_matrix(matrices).mean().as_matrix()
    assert rotation.geodesic_deg(project(average).numpy(), expected) < 1e-5
    said = rotation.euler_to_matrix(FORM.decode(average).numpy())
    assert rotation.geodesic_deg(said, expected) < 1e-3


def test_degenerate_matrices_have_numbers_and_any_scale_one_rotation():
    u, v = Rotation.random(2, random_state=3).as_matrix()
    for values in ((0, 0, 0), (1, 0, 0), (1, 1, -1), (1e-20, 0, 0), (1, 1e-9, -1e-9)):
        assert project(torch.from_numpy(u @ np.diag(values) @ v)).isfinite().all()
    for scale in (1e-12, 1.0, 1e12):
        found = project(torch.from_numpy(scale * u @ np.diag((1, 0.5, -0.4)) @ v)).numpy()
        np.testing.assert_allclose(found, u @ v, atol=1e-9)


@given(seeds)
def test_mirroring_is_that_of_the_labels_and_twice_is_nothing(seed):
    answers = torch.from_numpy(cloud(seed, 6))
    np.testing.assert_allclose(
        to_matrix(torch.from_numpy(rotation.mirror(rotation.matrix_to_euler(answers.numpy())))).numpy(),
        FORM.mirror(answers).numpy(),
        atol=1e-7,
    )
    assert torch.equal(FORM.mirror(FORM.mirror(answers)), answers)


@given(seeds, st.lists(st.tuples(st.booleans(), st.floats(-45, 45)), min_size=5, max_size=5))
def test_moved_labels_are_the_labels_of_the_moved_face(seed, moves):
    """Flipped, then turned, as `rotation.mirror` and `rotation.turn` say of its angles."""
    flips, turns = map(np.array, zip(*moves, strict=True))
    angles = np.random.default_rng(seed).uniform(-85, 85, (5, 3))
    expected = rotation.turn(np.where(flips[:, None], rotation.mirror(angles), angles), turns)
    labels = to_matrix(torch.tensor(angles)).float()
    moved = FORM.moved(labels, torch.tensor(flips), None, torch.tensor(turns, dtype=torch.float32))
    assert moved.dtype == torch.float32
    assert rotation.geodesic_deg(moved.numpy(), rotation.euler_to_matrix(expected)).max() < 1e-3
    still = FORM.moved(labels, torch.tensor(flips), None, None)
    assert torch.equal(still, torch.where(torch.tensor(flips)[:, None, None], FORM.mirror(labels), labels))


@given(seeds)
def test_six_numbers_are_a_rotation_whose_axes_they_name(seed):
    numbers = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 3, 2)))
    made = from_6d(numbers)
    torch.testing.assert_close(made @ made.mT, torch.eye(3, dtype=made.dtype).expand(4, 3, 3))
    assert (torch.linalg.det(made) > 0).all()
    torch.testing.assert_close(from_6d(made[..., :2]), made)
    along = (made * numbers[..., :1]).sum(1)
    assert (along[:, 0] > 0).all() and along[:, 1:].abs().max() < 1e-9, "the first axis is the first column"
    assert ((made[..., 1] * numbers[..., 1]).sum(1) > 0).all()
    assert from_6d(torch.zeros(1, 3, 2)).isfinite().all()


@pytest.mark.parametrize("yaw", [0.0, -40.0, 75.0, 130.0])
def test_spread_and_scatter_are_those_of_a_sample(yaw):
    """Standard deviations of the angles of many rotations about a pose, whose mean alone the form is shown."""
    random = np.random.default_rng(0)
    axes = Rotation.random(random_state=4).as_matrix()
    turns = random.multivariate_normal(np.zeros(3), axes @ np.diag(np.radians([0.5, 1.0, 2.0]) ** 2) @ axes.T, 200_000)
    middle = rotation.euler_to_matrix([20.0, yaw, -10.0])
    sample = middle @ Rotation.from_rotvec(turns).as_matrix()
    average = torch.from_numpy(sample.mean(0))
    angles = upright(to_euler(torch.from_numpy(sample))).numpy()
    np.testing.assert_allclose(FORM.spread(average).numpy(), angles.std(0), rtol=0.03)
    assert float(FORM.scatter(average)) == pytest.approx((turns**2).sum(1).mean(), rel=0.01)
    assert FORM.spread(torch.from_numpy(middle)).max() < 1e-4, "who is sure has no spread"


def test_nothing_known_has_the_widest_spread_and_no_angle_more():
    assert (FORM.spread(torch.zeros(2, 3, 3)) <= 104).all() and float(FORM.scatter(torch.zeros(3, 3))) == 3
    locked = to_matrix(torch.tensor([[10.0, 90.0, 5.0], [10.0, 89.99, 5.0]], dtype=torch.float64)) * 0.99
    spread = FORM.spread(locked)
    assert torch.allclose(spread[:, [0, 2]], torch.tensor(103.9), atol=0.1), "pitch and roll are not told apart"
    assert torch.allclose(spread[:, 1], torch.tensor(5.7), atol=0.1), "yaw is"


@given(seeds)
def test_bins_hand_on_the_mean_of_the_rotations_that_they_believe_in(seed):
    """Against the sum over all triples of bins."""
    bins = AngleBins.covering(90, 30)
    probs = np.random.default_rng(seed).dirichlet(np.full(bins.count, 0.5), 3)
    triples = np.stack(np.meshgrid(*[bins.centers] * 3, indexing="ij"), -1)
    weights = np.einsum("i,j,k->ijk", *probs)
    expected = (weights[..., None, None] * rotation.euler_to_matrix(triples)).sum((0, 1, 2))
    np.testing.assert_allclose(bins.rotations(torch.from_numpy(probs)[None])[0].numpy(), expected, atol=1e-9)


@given(seeds)
def test_mean_rotations_of_mirrored_bins_are_mirrored(seed):
    bins = AngleBins.covering(99, 3)
    probs = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(bins.count, 0.2), (2, 3)))
    torch.testing.assert_close(bins.rotations(bins.mirror(probs)), FORM.mirror(bins.rotations(probs)))
