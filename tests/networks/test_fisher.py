"""The matrix Fisher density against other ways to integrate over SO(3)."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special
from scipy.spatial.transform import Rotation

from hpe_core.geometry.rotations import Rotations, project, to_euler, to_matrix
from hpe_core.networks.fisher import LARGEST, bounded, log_normaliser, negative_log_likelihood, normaliser
from hpe_core.networks.heads import FisherHead

# Proper singular values s1 >= s2 >= |s3|: none, one, equal, opposite, and up to what a sure network says.
CASES = [(0, 0, 0), (1e-3, 0, 0), (1, 0.5, -0.2), (5, 5, 5), (50, 10, -10), (300, 300, -299.9), (1e4, 0, 0)]
CASES += [(1e4, 1e4, -1e4), (1e4, 5e3, 1), (1e4, 1e4, 1e4), (1e4, 2, -1.99), (5e4, 5e4, 5e4)]


def parameter(values: tuple[float, ...], seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, v = Rotation.random(2, random_state=seed).as_matrix()
    return u, u @ np.diag(values) @ v.T, v


def log_c_by_bessel(values: tuple[float, ...]) -> float:
    """Lee 2018, eq. 17, with exponentially scaled Bessel functions, over x = 1 - u."""
    s1, s2, s3 = values

    def inside(x: float) -> float:
        waves = special.ive(0, 0.5 * (s2 - s3) * x) * special.ive(0, 0.5 * (s2 + s3) * (2 - x))
        return 0.5 * waves * np.exp(-(s1 + s3) * x)

    ends = [0, *np.geomspace(1e-9, 2, 40)]
    parts = [integrate.quad(inside, *pair, epsabs=0, epsrel=1e-11)[0] for pair in itertools.pairwise(ends)]
    return s1 + s2 + s3 + float(np.log(sum(parts)))


@pytest.mark.parametrize("values", CASES)
def test_the_normaliser_is_the_integral_of_bessel_functions(values):
    _, f, _ = parameter(values)
    log_c, mean = normaliser(torch.from_numpy(f))
    assert float(log_c) == pytest.approx(log_c_by_bessel(values), abs=1e-9, rel=1e-13)
    assert mean.isfinite().all()


@pytest.mark.parametrize("values", CASES)
def test_the_mean_has_the_axes_of_the_parameter_and_the_slopes_of_the_normaliser(values):
    u, f, v = parameter(values)
    slopes = u.T @ normaliser(torch.from_numpy(f))[1].numpy() @ v
    assert np.abs(slopes - np.diag(np.diag(slopes))).max() < 1e-9
    step = 1e-4 * max(1.0, values[0]) ** 0.5
    for i, slope in enumerate(np.diag(slopes)):
        ahead, behind = (np.array(values) + sign * step * np.eye(3)[i] for sign in (1, -1))
        if all(a[0] >= a[1] >= abs(a[2]) for a in (ahead, behind)):  # where Lee's form keeps its exponents negative
            assert slope == pytest.approx((log_c_by_bessel(ahead) - log_c_by_bessel(behind)) / 2 / step, abs=2e-6)


def grid(steps: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Rotations over all of SO(3) and their shares of its volume: even in pitch and roll, Gauss in sin(yaw)."""
    turn = (np.arange(steps) + 0.5) * 2 * np.pi / steps
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    p, y, r = np.meshgrid(turn, np.arcsin(nodes), turn, indexing="ij")
    angles = np.degrees(np.stack([p, y, r], -1)).reshape(-1, 3)
    shares = np.broadcast_to(weights[None, :, None] / 2 / steps**2, p.shape).reshape(-1)
    return to_matrix(torch.from_numpy(angles)).numpy(), shares


@pytest.mark.parametrize("values", [(0, 0, 0), (2, 1, -0.5), (6, 6, -6), (12, 7, 3), (15, 0, 0)])
def test_normaliser_and_mean_are_sums_over_all_rotations(values):
    _, f, _ = parameter(values, seed=5)
    rotations, shares = grid()
    powers = np.exp((rotations * f).sum((1, 2)))
    log_c, mean = normaliser(torch.from_numpy(f))
    assert np.exp(float(log_c)) == pytest.approx((shares * powers).sum(), rel=1e-8)
    expected = ((shares * powers)[:, None, None] * rotations).sum(0) / (shares * powers).sum()
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-8)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(-2, 3))
def test_its_gradient_is_that_of_finite_differences(seed, size):
    random = np.random.default_rng(seed)
    f, truth = random.normal(0, 10**size, (3, 3)), Rotation.random(random_state=seed).as_matrix()
    parameters = torch.tensor(f, requires_grad=True)
    negative_log_likelihood(parameters, torch.from_numpy(truth)).backward()
    away, step = random.normal(size=(3, 3)), 1e-4
    ends = [negative_log_likelihood(torch.from_numpy(f + sign * step * away), torch.tensor(truth)) for sign in (1, -1)]
    assert float((parameters.grad * torch.tensor(away)).sum()) == pytest.approx(
        float(ends[0] - ends[1]) / 2 / step, abs=1e-5
    )


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e3, 1e5, 1e20])
def test_any_float32_parameter_has_a_finite_loss_and_gradient(size):
    f = (size * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, -1]])).requires_grad_()
    loss = negative_log_likelihood(f, torch.eye(3))
    loss.backward()
    assert loss.isfinite() and f.grad.isfinite().all()
    assert bounded(f.detach()).norm() <= LARGEST * (1 + 1e-6)


def test_who_is_surer_than_float64_can_tell_is_as_sure_as_it_can():
    sure, surer = (negative_log_likelihood(size * torch.eye(3), torch.eye(3)) for size in (LARGEST / 3**0.5, 1e20))
    assert float(surer) == pytest.approx(float(sure), abs=1e-4) and sure < -10


@pytest.mark.parametrize("size", [1e2, 1e5, 1e9, 1e18, 1e30])
def test_a_network_that_is_as_sure_as_it_likes_answers_the_rotation_it_is_sure_of(size):
    u, f, v = parameter((1.0, 0.9, 0.5))
    answer = FisherHead().answer(torch.from_numpy(size * f).float()[None])[0].numpy()
    np.testing.assert_allclose(answer, u @ v.T, atol=3 / size + 1e-4)


def test_the_mode_is_the_rotation_of_the_parameter_and_of_the_mean():
    for values in ((3, 2, -1), (1e4, 1e3, 10)):
        u, f, v = parameter(values)
        for matrix in (torch.from_numpy(f), normaliser(torch.from_numpy(f))[1]):
            np.testing.assert_allclose(project(matrix).numpy(), u @ v.T, atol=1e-6)


@pytest.mark.parametrize("yaw", [0.0, 50.0])
def test_its_spread_is_that_of_a_sample(yaw):
    """Rotations drawn by their weights among many near the mode."""
    random = np.random.default_rng(0)
    axes = Rotation.random(random_state=2).as_matrix()
    middle = to_matrix(torch.tensor([10.0, yaw, -20.0], dtype=torch.float64)).numpy()
    f = middle @ axes @ np.diag([400.0, 150.0, 60.0]) @ axes.T
    tried = middle @ Rotation.from_rotvec(random.uniform(-0.45, 0.45, (400_000, 3))).as_matrix()
    chance = np.exp((tried * f).sum((1, 2)) - 610.0)
    angles = to_euler(torch.from_numpy(tried)).numpy()
    mean = (chance[:, None] * angles).sum(0) / chance.sum()
    spread = np.sqrt((chance[:, None] * (angles - mean) ** 2).sum(0) / chance.sum())
    np.testing.assert_allclose(Rotations().spread(normaliser(torch.from_numpy(f))[1]).numpy(), spread, rtol=0.03)


def test_a_student_of_a_densitys_mean_finds_the_density():
    """KL(teacher || student) = log c(S) - log c(T) - tr((S - T)^T E_T[R]) goes to nothing, and S to T."""
    teacher = torch.from_numpy(np.stack([parameter(v, i)[1] for i, v in enumerate([(8, 4, 2), (20, 15, -3)])]))
    log_c, mean = normaliser(teacher)
    entropy = log_c - (teacher * mean).sum((1, 2))
    student = torch.zeros_like(teacher, requires_grad=True)
    optimizer = torch.optim.LBFGS([student], lr=1, max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = negative_log_likelihood(student, mean).sum()
        loss.backward()
        return loss

    before = negative_log_likelihood(student.detach(), mean) - entropy
    optimizer.step(closure)
    kl = negative_log_likelihood(student.detach(), mean) - entropy
    assert (before > 1).all() and (kl.abs() < 1e-7).all()
    assert (student.detach() - teacher).abs().max() < 0.05


def test_a_large_batch_says_what_each_says():
    f = torch.from_numpy(np.stack([parameter(values, i)[1] for i, values in enumerate(CASES)]))
    together = log_normaliser(f)
    alone = torch.stack([log_normaliser(each) for each in f])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
