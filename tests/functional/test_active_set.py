"""Both paths of the exact solver, compiled and batched, against the definition; and the compiled linear algebra."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_ssc.functional import _batched, _jit, _kernel, active_set, duality_gap, self_expression

few = settings(max_examples=40, deadline=None)


@pytest.fixture(params=["compiled", "batched"])
def path(request, monkeypatch):
    """Sends CPU tensors through either path."""
    if request.param == "batched":
        monkeypatch.setattr(active_set, "_compiled", active_set._batched)
    return request.param


def problem(name):
    """A float64 Gram and tau of every regime that the solver must master."""
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    if name == "few neighbours":
        return torch.relu(draw(200, 5) @ draw(5, 100) + 0.3 * draw(200, 100)), 10.0, True
    if name == "a hundred neighbours":
        return torch.relu(draw(150, 20) @ draw(20, 300) + 3 * draw(150, 300)), 200.0, True
    if name == "nearly complete, raw":
        return torch.relu(draw(120, 10) @ draw(10, 300) + draw(120, 300)), 10.0, False
    if name == "rank 10":
        return draw(200, 10), 100.0, True
    if name == "rank 10, raw":
        return 5 * draw(200, 10), 10.0, False
    if name == "rank 30 of 150, raw":
        return torch.relu(draw(150, 30)), 1000.0, False
    assert name == "duplicates and zeros"
    x = draw(150, 40)
    x[10:40], x[50:60], x[70] = x[9], -x[49], 0
    return x, 30.0, True


PROBLEMS = [
    "few neighbours",
    "a hundred neighbours",
    "nearly complete, raw",
    "rank 10",
    "rank 10, raw",
    "rank 30 of 150, raw",
    "duplicates and zeros",
]


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.filterwarnings("ignore:tau = .* nearly complete")
def test_every_regime_is_certified(path, name):
    x, tau, normalize = problem(name)
    found = self_expression(x, tau=tau, normalize=normalize, tol=1e-10)
    if normalize:
        x = torch.nn.functional.normalize(x)
    c = found.coef.to_dense()
    assert found.converged
    assert c.isfinite().all()
    assert not c.diagonal().any()
    # the optimality conditions, from samples: |<x_j, r>| <= 1/tau, with equality and the sign of c_ij where it is not 0
    corr = tau * (x - c @ x) @ x.T
    corr.fill_diagonal_(0)
    assert corr.abs().max() <= 1 + 1e-3
    assert ((corr * c.sign())[c != 0] >= 1 - 1e-3).all()
    torch.testing.assert_close(duality_gap(x @ x.T, c, tau)[1], found.gap, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["few neighbours", "rank 10", "duplicates and zeros"])
def test_float32_grams(path, name):
    x, tau, _ = problem(name)
    x = torch.nn.functional.normalize(x.float())
    found = self_expression(gram=x @ x.T, tau=tau, normalize=False)
    assert found.converged
    exact = self_expression(gram=(x.double() @ x.double().T), tau=tau, normalize=False)
    torch.testing.assert_close(found.objective, exact.objective, rtol=1e-4, atol=1e-5)


def test_warm_start(path):
    x, tau, _ = problem("few neighbours")
    cold = self_expression(x, tau=tau)
    assert self_expression(x, tau=tau, init=cold.coef).n_iter <= 1 < cold.n_iter
    near = self_expression(x + 1e-3 * x.roll(1, 0), tau=tau)
    hot = self_expression(x, tau=tau, init=near.coef)
    assert hot.converged
    assert hot.n_iter < cold.n_iter
    torch.testing.assert_close(hot.objective, cold.objective, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("n", "d", "tau", "normalize"), [(250, 32, 100.0, False), (300, 2, 100.0, True), (100, 30, 100.0, "near")]
)
def test_float32_grams_that_rounding_leaves_indefinite(path, n, d, tau, normalize):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g)
    if normalize == "near":  # all but equal samples
        x = torch.randn(1, d, generator=g) + 1e-4 * x
    if normalize:
        x = torch.nn.functional.normalize(x)
    found = self_expression(gram=x @ x.T, tau=tau, normalize=False)
    # Of equal samples, either path alone leaves gaps near 1; single precision tells little more than both reach.
    assert found.gap.max() <= (2e-5 if normalize == "near" else 1e-5)
    torch.testing.assert_close(duality_gap(x @ x.T, found.coef, tau)[1], found.gap, rtol=0, atol=1e-10)


@pytest.mark.parametrize("worse", ["kernel", "batch"])
def test_of_two_solutions_the_better_is_kept(monkeypatch, worse):
    x, tau, _ = problem("few neighbours")
    gram = torch.nn.functional.normalize(x.float()) @ torch.nn.functional.normalize(x.float()).T
    kernel, batch = active_set._kernel, active_set.solve_batch
    rough, fine = (1, 1000) if worse == "kernel" else (1000, 2)

    def few_rounds(gram, tau, tol, max_iter, *rest):
        part = kernel(gram, tau, tol, rough, *rest)
        return part._replace(rounds=torch.ones_like(part.rounds))

    def solve(gram, tau, tol, max_iter, index, start):
        c, objective, gap, rounds = batch(gram, tau, tol, min(fine, max_iter), index, start)
        return c, objective, gap, torch.ones_like(rounds)

    monkeypatch.setattr(active_set, "_kernel", few_rounds)
    monkeypatch.setattr(active_set, "solve_batch", solve)
    for path in (active_set._compiled, active_set._batched):
        monkeypatch.setattr(active_set, "_compiled", path)
        found = self_expression(gram=gram, tau=tau, tol=1e-6 if worse == "kernel" else 1e-5, normalize=False)
        assert found.converged
        assert not found.coef.to_dense().diagonal().any()
        torch.testing.assert_close(duality_gap(gram, found.coef, tau)[1], found.gap, rtol=0, atol=1e-10)


def test_a_worse_answer_of_the_kernel_is_not_taken(monkeypatch):
    x, _, _ = problem("few neighbours")
    gram = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    kernel = active_set._kernel
    monkeypatch.setattr(active_set, "_compiled", active_set._batched)
    monkeypatch.setattr(active_set, "_BATCHED", 4)
    monkeypatch.setattr(active_set, "_kernel", lambda gram, tau, tol, most, *rest: kernel(gram, tau, tol, 1, *rest))
    _, _, gap, _ = active_set.solve_batch(gram, 100.0, 1e-5, 4, torch.arange(200), torch.zeros_like(gram))
    found = self_expression(gram=gram, tau=100.0, normalize=False)
    assert not found.converged
    assert (found.gap <= gap + 1e-12).all()


def test_nearly_equal_samples(path):
    """Closer than 1e-5, and yet no combinations of one another: float64 tells them apart."""
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        draw = lambda n: torch.randn(n, 20, generator=g, dtype=torch.float64)  # noqa: B023, E731
        x = draw(1) + 1e-5 * draw(60)
        assert self_expression(x, tau=100.0).converged, seed


def test_a_start_that_rebuilds_itself_is_not_returned(path):
    x, tau, _ = problem("few neighbours")
    cold = self_expression(x, tau=tau)
    start = cold.coef.to_dense() + torch.eye(len(x), dtype=torch.float64)
    for init in (start, start.to_sparse_coo(), torch.eye(len(x))):
        for solver in ("active_set", "admm"):
            found = self_expression(x, tau=tau, init=init, solver=solver)
            assert not found.coef.to_dense().diagonal().any()
    assert self_expression(x, tau=tau, init=start).n_iter <= 1
    raw = 3 * torch.nn.functional.normalize(x)
    for init in (torch.eye(len(x)), torch.eye(len(x)).to_sparse_csr()):
        found = self_expression(raw, tau=tau, normalize=False, init=init)
        assert found.converged
        torch.testing.assert_close(
            found.objective, self_expression(raw, tau=tau, normalize=False).objective, rtol=1e-5, atol=0
        )


def test_a_nearly_complete_graph_is_said_of(path):
    x, tau, _ = problem("nearly complete, raw")
    with pytest.warns(UserWarning, match="nearly complete") as caught:
        self_expression(x, tau=tau, normalize=False)
    assert caught[0].filename == __file__


def test_rounds_are_limited(path):
    x, _, _ = problem("few neighbours")
    found = self_expression(x, tau=100.0, max_iter=2)
    assert found.n_iter == 2
    assert not found.converged


def test_batches_of_any_size_agree(path, monkeypatch):
    x, tau, _ = problem("few neighbours")
    whole = self_expression(x, tau=tau)
    monkeypatch.setattr(active_set, "CHUNK", 200 * 33)
    monkeypatch.setattr(active_set, "_ROWS", 7)
    monkeypatch.setattr(_batched, "CHUNK", 500)
    parts = self_expression(x, tau=tau)
    torch.testing.assert_close(parts.coef.to_dense(), whole.coef.to_dense(), rtol=1e-6, atol=1e-8)


def test_samples_that_stall_in_a_batch_are_finished(monkeypatch):
    x, tau, _ = problem("few neighbours")
    exact = self_expression(x, tau=tau, tol=1e-8)
    solve_batch = active_set.solve_batch

    def stall(*arguments):
        c, objective, gap, rounds = solve_batch(*arguments)
        c[::3], objective[::3], gap[::3] = 0.5, 7.0, 1.0
        return c, objective, gap, rounds

    monkeypatch.setattr(active_set, "solve_batch", stall)
    monkeypatch.setattr(active_set, "_compiled", active_set._batched)
    found = self_expression(x, tau=tau, tol=1e-8)
    assert found.converged
    torch.testing.assert_close(found.coef.to_dense(), exact.coef.to_dense(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.objective, exact.objective)


def test_what_cannot_be_factored_stays_finite():
    """An indefinite matrix, such as single precision leaves of a Gram, makes no NaN in a batch."""
    g = torch.Generator().manual_seed(0)
    gram = torch.randn(40, 40, generator=g, dtype=torch.float64)
    gram = (gram + gram.T) / 2
    start = torch.zeros(40, 40, dtype=torch.float64)
    c, objective, gap, _ = _batched.solve_batch(gram, 10.0, 1e-5, 20, torch.arange(40), start)
    assert c.isfinite().all()
    assert not objective.isnan().any()
    assert not gap.isnan().any()


def test_the_kernel_compiles_where_nothing_can_be_cached(monkeypatch):
    njit = _jit.numba.njit

    def read_only(function, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(_jit.numba, "njit", read_only)
    double = _jit.compiled(lambda a: 2 * a)
    assert double(2.5) == 5.0


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.filterwarnings("ignore:tau = .* nearly complete")
def test_gpu_agrees_with_cpu(gpu, name):
    """The compiled path with the batched one, and the batched one with itself in where its tensors lie."""
    x, tau, normalize = problem(name)
    one = self_expression(x, tau=tau, normalize=normalize, tol=1e-8)
    other = self_expression(x.to(gpu), tau=tau, normalize=normalize, tol=1e-8)
    assert other.converged
    assert {part.device for part in (other.coef, other.gap, other.objective)} == {gpu}
    torch.testing.assert_close(other.objective.cpu(), one.objective, rtol=1e-7, atol=1e-9)
    gram = torch.nn.functional.normalize(x) if normalize else x
    gap = duality_gap(gram @ gram.T, other.coef.cpu(), tau)[1]
    torch.testing.assert_close(other.gap.cpu(), gap, rtol=0, atol=1e-10)


class TestFactor:
    @few
    @given(
        seed=st.integers(0, 2**32 - 1),
        n=st.integers(1, 90),
        split=st.floats(0, 1),
        dtype=st.sampled_from([np.float32, np.float64]),
    )
    def test_append_is_cholesky(self, seed, n, split, dtype):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((n, n + 20))
        gram = (x @ x.T).astype(dtype)
        act, low = rng.permutation(n), np.full((n, n), np.nan)
        first = int(split * n)
        size = _kernel._append(gram, act, low, 0, first)
        size = _kernel._append(gram, act, low, size, n - first)
        assert size == n
        expected = np.linalg.cholesky(gram[np.ix_(act, act)].astype(np.float64))
        np.testing.assert_allclose(np.tril(low), expected, rtol=1e-8, atol=1e-8)

    @few
    @given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 80), rank=st.integers(1, 30))
    def test_append_leaves_out_combinations(self, seed, n, rank):
        rng = np.random.default_rng(seed)
        rank = min(rank, n)
        basis = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
        gram = (x := np.vstack((basis, rng.standard_normal((n - rank, rank))))) @ x.T
        order = np.concatenate((rng.permutation(rank), rank + rng.permutation(n - rank)))
        act, low = order.copy(), np.zeros((n, n))
        size = _kernel._append(gram, act, low, 0, n)
        kept = order[:rank]
        np.testing.assert_array_equal(act[:size], kept)
        np.testing.assert_allclose(np.tril(low[:rank, :rank]), np.linalg.cholesky(gram[np.ix_(kept, kept)]), atol=1e-9)

    @few
    @given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), where=st.floats(0, 1, exclude_max=True))
    def test_remove_is_cholesky_without(self, seed, n, where):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((n, n + 10))
        gram, b = x @ x.T, rng.standard_normal(n)
        low, act, p = np.linalg.cholesky(gram), np.arange(n), int(where * n)
        z = np.linalg.solve(low, b)
        size = _kernel._remove(act, low, n, p, z, np.empty((n, 2)))
        kept = np.delete(np.arange(n), p)
        assert size == n - 1
        np.testing.assert_array_equal(act[:size], kept)
        expected = np.linalg.cholesky(gram[np.ix_(kept, kept)])
        np.testing.assert_allclose(np.tril(low[:size, :size]), expected, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(z[:size], np.linalg.solve(expected, b[kept]), rtol=1e-6, atol=1e-8)
