import numpy as np
import pytest
import torch

from lightning_ssc.functional import duality_gap, self_expression
from lightning_ssc.functional.admm import admm


def algorithm_1(x, tau, mu, iterations, adaptive):
    """Algorithm 1 as the paper prints it, X (d, N) with samples as columns, and Boyd et al.'s Eq. 3.13 for mu."""
    n = x.shape[1]
    gram = x.T @ x
    c, lam = np.zeros((n, n)), np.zeros((n, n))
    history = []
    for _ in range(iterations):
        z = np.linalg.solve(tau * gram + mu * np.eye(n), tau * gram + mu * (c - lam / mu))
        shifted = z + lam / mu
        new = np.sign(shifted) * np.maximum(np.abs(shifted) - 1 / mu, 0)
        new = new - np.diag(np.diag(new))
        lam = lam + mu * (z - new)
        primal, dual = np.linalg.norm(z - new), np.linalg.norm(mu * (new - c))
        c = new
        history.append((c, mu))
        if adaptive and primal > 10 * dual:
            mu = 2 * mu
        elif adaptive and dual > 10 * primal:
            mu = mu / 2
    return history


def samples(n=60, d=30, scale=1.0):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64) @ torch.randn(3, d, generator=g, dtype=torch.float64)
    return scale * torch.relu(x + 0.3 * torch.randn(n, d, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("scale", [0.2, 3.0])
@pytest.mark.parametrize("adaptive", [False, True])
def test_iterates_are_those_of_algorithm_1(scale, adaptive):
    x = samples(scale=scale)
    history = algorithm_1(x.numpy().T, 10.0, 10.0, 50, adaptive)
    assert (len({mu for _, mu in history}) > 1) == adaptive  # mu has to move for the adaptive case to test anything
    for k in range(1, 51):
        coef, done = admm(x @ x.T, 10.0, 0.0, k, mu=10.0, adaptive=adaptive)
        assert done == k
        np.testing.assert_allclose(coef.to_dense().numpy().T, history[k - 1][0], rtol=0, atol=1e-8)


def test_preset_paper_is_raw_tau_10_mu_10_for_100_iterations():
    x = samples()
    expected = algorithm_1(x.numpy().T, 10.0, 10.0, 100, True)[-1][0]
    found = self_expression(x, preset="paper", tau=3.0, normalize=True, tol=0.0)
    assert (found.n_iter, found.tau) == (100, 10.0)
    np.testing.assert_allclose(found.coef.to_dense().numpy().T, expected, rtol=0, atol=1e-8)
    objective, gap = duality_gap(x @ x.T, found.coef, 10.0)
    torch.testing.assert_close((found.objective, found.gap), (objective, gap))
    assert not found.converged


def test_reaches_the_optimum_and_its_gap_says_so():
    x = torch.nn.functional.normalize(samples())
    exact = self_expression(x, tol=1e-10)
    found = self_expression(x, solver="admm", tol=1e-9, max_iter=20_000)
    assert found.n_iter < 20_000  # the residuals stopped it
    assert found.gap.max() < 1e-6
    torch.testing.assert_close(found.objective, exact.objective, rtol=1e-6, atol=0)


def test_stops_on_residuals_whatever_the_scale_of_the_data():
    """The stopping rule of the authors' code, a small error of fit, holds at C = 0 for short samples."""
    x = samples(scale=1e-3)
    found = self_expression(x, solver="admm", normalize=False, tau=1e7, tol=1e-6, max_iter=20_000)
    assert found.coef.values().numel() > 0
    assert found.gap.max() < 0.05


def test_a_start_is_used():
    x = torch.nn.functional.normalize(samples())
    exact = self_expression(x, tol=1e-10)
    cold, hot = (self_expression(x, solver="admm", max_iter=5, tol=0.0, init=c) for c in (None, exact.coef))
    assert hot.gap.median() < cold.gap.median()


def test_float32_gram_is_solved_in_float64():
    x = samples().float()
    gram = x @ x.T
    single, double = (admm(g, 10.0, 0.0, 20)[0].to_dense() for g in (gram, gram.double()))
    assert torch.equal(single, double)
