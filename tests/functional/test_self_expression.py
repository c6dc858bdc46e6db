import math
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from lightning_ssc.functional import duality, duality_gap, self_expression
from tests.definitions import certificates

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)


def samples(seed, n, d, subspaces=3):
    """Noisy samples near some subspaces, in float64."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    bases = draw(subspaces, 2, d)
    return torch.einsum("nk,nkd->nd", draw(n, 2), bases[torch.arange(n) % subspaces]) + 0.1 * draw(n, d)


def unit(x):
    return torch.nn.functional.normalize(x, dim=1)


def objectives(x, c, tau):
    """The objective as it is defined, from samples and dense weights."""
    return c.abs().sum(1) + tau / 2 * ((x - c @ x) ** 2).sum(1)


def lasso_objectives(x, tau):
    """Optima according to scikit-learn, one sample at a time."""
    n, d = x.shape
    c = np.zeros((n, n))
    for i in range(n):
        others = np.delete(np.arange(n), i)
        model = Lasso(alpha=1 / (tau * d), fit_intercept=False, tol=1e-12, max_iter=200_000)
        c[i, others] = model.fit(x[others].numpy().T, x[i].numpy()).coef_
    return objectives(x, torch.from_numpy(c), tau)


class TestOptimum:
    @few
    @given(seed=seeds, n=st.integers(3, 20), d=st.integers(1, 12), tau=st.sampled_from([2.0, 10.0, 100.0]))
    @pytest.mark.filterwarnings("ignore:Objective did not converge", "ignore:tau = ")
    def test_equals_scikit_learn(self, seed, n, d, tau):
        x = unit(samples(seed, n, d))
        found = self_expression(x, tau=tau, tol=1e-9)
        assert found.converged
        torch.testing.assert_close(found.objective, objectives(x, found.coef.to_dense(), tau), rtol=1e-9, atol=1e-9)
        theirs = lasso_objectives(x, tau)
        assert (found.objective <= theirs * (1 + 1e-8)).all()
        torch.testing.assert_close(found.objective, theirs, rtol=1e-4, atol=0)  # theirs may stop short of its tolerance

    def test_is_the_soft_threshold_for_one_neighbour(self):
        x = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        coef = self_expression(x, tau=10.0).coef.to_dense()
        expected = torch.zeros(3, 3, dtype=torch.float64)
        expected[0, 1] = expected[1, 0] = 0.6 - 1 / 10
        torch.testing.assert_close(coef, expected)

    @few
    @given(seed=seeds, n=st.integers(4, 25))
    def test_permuting_samples_permutes_the_answer(self, seed, n):
        x = samples(seed, n, 8)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        plain, permuted = (self_expression(v, tau=20.0, tol=1e-12).coef.to_dense() for v in (x, x[order]))
        torch.testing.assert_close(permuted, plain[order][:, order], rtol=1e-6, atol=1e-8)

    @few
    @given(seed=seeds, n=st.integers(4, 25))
    def test_scaling_samples_changes_nothing_when_normalized(self, seed, n):
        x = samples(seed, n, 8)
        factors = torch.exp(5 * torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        plain, scaled = (self_expression(v, tau=20.0, tol=1e-12).coef.to_dense() for v in (x, x * factors))
        torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=1e-8)

    @few
    @given(seed=seeds)
    def test_independent_subspaces_give_a_block_diagonal_graph(self, seed):
        g = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(12, 12, generator=g))[0]
        label = torch.arange(30) % 3
        x = torch.stack([torch.randn(3, generator=g) @ basis[3 * k : 3 * k + 3] for k in label.tolist()])
        coef = self_expression(x, tau=50.0).coef.to_dense()
        # Orthogonal subspaces: in float32 inner products across them are about 1e-8, far below 1/tau.
        assert not coef[label[:, None] != label].any()
        assert (coef != 0).any(1).all()

    def test_raw_samples_depend_on_scale(self):
        x = samples(0, 30, 8)
        long, short = (self_expression(v, tau=1.0, normalize=False) for v in (x, 0.3 * x))
        assert long.coef.values().numel() > short.coef.values().numel() > 0
        torch.testing.assert_close(long.objective, objectives(x, long.coef.to_dense(), 1.0))

    def test_gram_and_samples_agree(self):
        x = samples(1, 40, 10)
        for normalize in (True, False):
            one = self_expression(x, tau=5.0, normalize=normalize)
            other = self_expression(gram=x @ x.T, tau=5.0, normalize=normalize)
            torch.testing.assert_close(one.coef.to_dense(), other.coef.to_dense())

    def test_the_gram_is_not_modified(self):
        x = samples(1, 40, 10)
        gram = x @ x.T
        before = gram.clone()
        self_expression(gram=gram)
        assert torch.equal(gram, before)

    def test_float32_is_certified_as_well(self):
        x = samples(2, 120, 30)
        single, double = self_expression(x.float()), self_expression(x)
        assert single.converged
        assert single.coef.dtype == single.gap.dtype == torch.float64
        torch.testing.assert_close(single.objective, double.objective, rtol=1e-4, atol=0)
        gram = self_expression(gram=(x @ x.T).float())
        assert gram.converged
        torch.testing.assert_close(gram.objective, double.objective, rtol=1e-4, atol=0)


class TestCertificate:
    @few
    @given(seed=seeds, n=st.integers(3, 20), tau=st.sampled_from([2.0, 10.0, 100.0]))
    @pytest.mark.filterwarnings("ignore:tau = ")
    def test_is_primal_minus_dual_by_definition(self, seed, n, tau):
        x = samples(seed, n, 6)
        c = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.2
        c.fill_diagonal_(0)
        objective, gap = duality_gap(x @ x.T, c, tau)
        for i in range(n):
            r = x[i] - c[i] @ x
            u = tau * x @ r
            u[i] = 0
            s = min(1.0, 1 / float(u.abs().max()))
            primal = c[i].abs().sum() + tau / 2 * r @ r
            dual = s * tau * x[i] @ r - s * s * tau / 2 * r @ r
            torch.testing.assert_close(objective[i], primal)
            torch.testing.assert_close(gap[i], (primal - dual) / primal)

    @few
    @given(seed=seeds, noise=st.sampled_from([1e-6, 1e-3, 1e-1]))
    def test_bounds_the_distance_to_the_optimum(self, seed, noise):
        x = unit(samples(seed, 15, 6))
        best = self_expression(x, tol=1e-12)
        g = torch.Generator().manual_seed(seed)
        c = best.coef.to_dense() + noise * torch.randn(15, 15, generator=g, dtype=torch.float64)
        c.fill_diagonal_(0)
        objective, gap = duality_gap(x @ x.T, c, 10.0)
        assert (objective - best.objective <= gap * objective + 1e-10).all()
        assert (gap > 0).all()

    def test_the_result_carries_it(self):
        x = unit(samples(3, 60, 10))
        found = self_expression(x, tol=1e-3)
        for coef in (found.coef, found.coef.to_dense(), found.coef.to_sparse_coo()):
            objective, gap = duality_gap(x @ x.T, coef, found.tau)
            torch.testing.assert_close(objective, found.objective)
            torch.testing.assert_close(gap, found.gap, rtol=0, atol=1e-12)
        assert 1e-6 < found.gap.max() <= 1e-3

    def test_converged_is_claimed_only_within_tol(self):
        x = unit(samples(3, 60, 10))
        short = self_expression(x, tau=100.0, max_iter=1)
        assert not short.converged
        assert short.n_iter == 1
        assert short.gap.max() > 1e-5
        torch.testing.assert_close(duality_gap(x @ x.T, short.coef, 100.0)[1], short.gap, rtol=0, atol=1e-12)

    def test_does_not_depend_on_the_block_size(self, monkeypatch):
        x = unit(samples(4, 50, 10))
        coef = self_expression(x, tol=1e-3).coef
        whole = duality_gap(x @ x.T, coef, 10.0)
        monkeypatch.setattr(duality, "CHUNK", 350)
        torch.testing.assert_close(duality_gap(x @ x.T, coef, 10.0), whole)

    def test_names_what_is_wrong(self):
        gram = torch.eye(4)
        with pytest.raises(ValueError, match=r"coef\[2, 2\] is not zero"):
            duality_gap(gram, torch.diag(torch.tensor([0.0, 0.0, 1.0, 0.0])), 10.0)
        with pytest.raises(ValueError, match=r"both be \(N, N\), got \(4, 4\) and \(5, 5\)"):
            duality_gap(gram, torch.zeros(5, 5), 10.0)
        with pytest.raises(ValueError, match="coef is on meta: move one"):
            duality_gap(gram, torch.zeros(4, 4, device="meta"), 10.0)
        for tau in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="tau must be positive and finite"):
                duality_gap(gram, torch.zeros(4, 4), tau)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_nothing_is_certified_of_what_is_not_finite(self, value):
        coef, gram = torch.zeros(4, 4), torch.eye(4)
        coef[2, 1] = value
        for broken in (coef, coef.to_sparse_csr()):
            with pytest.raises(ValueError, match="coef has NaN or infinity in row 2"):
                duality_gap(gram, broken, 10.0)
        gram[3, 3] = value
        with pytest.raises(ValueError, match="gram has NaN or infinity in row 3"):
            duality_gap(gram, torch.zeros(4, 4), 10.0)

    def test_nan_stays_nan(self):
        broken = torch.tensor([[torch.nan, 1.0, 0.0]] * 3, dtype=torch.float64)
        assert duality.certify(broken.clone(), torch.arange(3), torch.zeros_like(broken), 10.0)[1].isnan().any()
        empty = torch.empty(0, dtype=torch.long).numpy()
        from lightning_ssc.functional._kernel import solve_rows

        gram = torch.full((3, 3), torch.nan, dtype=torch.float64)
        found = solve_rows(gram.numpy(), np.zeros(4, int), empty, np.empty(0), np.arange(3), 10.0, 1e-5, 5)
        assert not (found[4] <= 1e-5).any()


class TestCompact:
    """Weights in float32, where their own gaps allow it."""

    @pytest.mark.parametrize(
        ("how", "dtype"),
        [
            ({"tau": 100.0, "normalize": False}, torch.float64),
            ({"tau": 10.0}, torch.float32),
            ({"tau": 10.0, "solver": "admm"}, torch.float32),  # far from the optimum, which rounding hardly changes
            ({"tau": 10.0, "tol": 1e-9}, torch.float64),
        ],
        ids=["raw", "unit length", "admm", "tolerance beyond float32"],
    )
    def test_float32_only_where_the_certificate_allows_it(self, how, dtype):
        x = samples(0, 40, 10)
        seen = x if how.get("normalize") is False else unit(x)
        exact, found = (self_expression(x, compact=compact, **how) for compact in (False, True))
        assert (exact.coef.dtype, found.coef.dtype) == (torch.float64, dtype)
        tau, tol = how["tau"], how.get("tol", 1e-5)
        objective, gap = certificates(seen @ seen.T, found.coef, tau)
        torch.testing.assert_close(found.objective, objective, rtol=1e-10, atol=0)
        torch.testing.assert_close(found.gap, gap, rtol=0, atol=1e-11)
        assert found.converged == bool((gap <= tol).all()) == (how.get("solver") != "admm")
        rounded = certificates(seen @ seen.T, exact.coef.float(), tau)[1]
        allowed = (1.1 * exact.gap).clamp_min(tol)
        assert bool((rounded <= allowed).all()) == (dtype == torch.float32)


class TestDegenerate:
    def test_zero_samples_are_isolated(self):
        x = samples(5, 30, 8)
        x[[4, 17]] = 0
        for normalize in (True, False):
            found = self_expression(x, tau=5.0, normalize=normalize)
            coef = found.coef.to_dense()
            assert found.converged
            assert not coef[[4, 17]].any()
            assert not coef[:, [4, 17]].any()
            assert (found.gap[[4, 17]] == 0).all()
            assert (found.objective[[4, 17]] == 0).all()

    def test_all_zero(self):
        with pytest.warns(UserWarning, match="all samples are zero or orthogonal"):
            found = self_expression(torch.zeros(5, 3))
        assert found.coef.values().numel() == 0
        assert found.converged

    def test_all_equal(self):
        found = self_expression(torch.ones(20, 3), tau=10.0)
        assert found.converged
        # any weights that sum to 1 - 1/tau are optimal
        torch.testing.assert_close(found.coef.to_dense().sum(1), torch.full((20,), 0.9, dtype=torch.float64))

    @few
    @given(seed=seeds, tau=st.sampled_from([5.0, 50.0]))
    @pytest.mark.filterwarnings("ignore:Objective did not converge")
    def test_duplicates_are_certified(self, seed, tau):
        x = unit(samples(seed, 16, 6))
        x[5:9] = x[0]
        x[12] = -x[1]
        found = self_expression(x, tau=tau, tol=1e-9)
        assert found.converged
        torch.testing.assert_close(found.objective, lasso_objectives(x, tau), rtol=1e-6, atol=1e-8)

    def test_one_feature(self):
        x = torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
        found = self_expression(x, tau=10.0)
        assert found.converged
        torch.testing.assert_close(found.coef.to_dense().abs().sum(1), torch.full((4,), 0.9, dtype=torch.float64))
        raw = self_expression(x.double(), tau=10.0, normalize=False)
        torch.testing.assert_close(raw.objective, lasso_objectives(x.double(), 10.0), rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("tau", [10.0, 100.0, 1000.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_fewer_features_than_neighbours(self, tau, dtype):
        """As the logits of a ten-class network: the Gram has rank 10."""
        g = torch.Generator().manual_seed(0)
        label = torch.arange(300) % 10
        x = (4 * torch.eye(10)[label] + torch.randn(300, 10, generator=g)).to(dtype)
        found = self_expression(gram=x @ x.T, tau=tau)
        assert found.converged
        assert found.coef.values().isfinite().all()

    def test_huge_and_tiny_samples(self):
        x = samples(6, 20, 6)
        plain = self_expression(x, tol=1e-12).coef.to_dense()
        scales = torch.tensor([1e-150, 1e100, 1e-30, 1.0], dtype=torch.float64).repeat(5)
        torch.testing.assert_close(
            self_expression(scales[:, None] * x, tol=1e-12).coef.to_dense(), plain, rtol=1e-5, atol=1e-7
        )


class TestTau:
    def test_too_small_for_an_edge_says_where_edges_appear(self):
        x = unit(samples(7, 12, 5))
        reach = (x @ x.T).fill_diagonal_(0).abs().amax(1)
        first, last = 1 / float(reach.max()), 1 / float(reach.min())
        message = f"tau = 0.5 is too small for any edge.* above tau = {first:.4g}, the last .* above {last:.4g}"
        with pytest.warns(UserWarning, match=message):
            found = self_expression(x, tau=0.5)
        assert found.coef.values().numel() == 0
        assert found.converged
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert self_expression(x, tau=first * 1.01).coef.values().numel() > 0

    def test_alpha_counts_from_the_last_isolated_sample(self):
        x = unit(samples(8, 20, 5))
        reach = (x @ x.T).fill_diagonal_(0).abs().amax(1)
        found = self_expression(x, alpha=1.01)
        assert found.tau == pytest.approx(1.01 / float(reach.min()))
        assert (found.coef.to_dense() != 0).any(1).all()
        less = self_expression(x, tau=0.99 / float(reach.min()))
        assert (less.coef.to_dense() == 0).all(1).sum() == 1

    def test_alpha_does_not_count_rounding(self):
        # Two planes at right angles, and a sample orthogonal to all but for rounding.
        x = torch.block_diag(unit(samples(0, 6, 2)), unit(samples(1, 6, 2)), torch.ones(1, 1, dtype=torch.float64))
        reach = (x @ x.T).fill_diagonal_(0).abs().amax(1)[:12]
        x[12, 0] = 1e-16
        assert self_expression(x, alpha=2.0).tau == pytest.approx(2.0 / float(reach.min()))

    def test_alpha_too_small_for_an_edge_is_said_too(self):
        with pytest.warns(UserWarning, match="too small for any edge"):
            assert self_expression(unit(samples(7, 12, 5)), alpha=0.01).coef.values().numel() == 0

    def test_nearly_complete_is_said_before_the_time_is_spent(self):
        x = samples(9, 120, 200, subspaces=60)
        with pytest.warns(
            UserWarning, match=r"tau = 1000 rebuilds a sample from \d\d% of all others.*Lower tau"
        ) as caught:
            found = self_expression(x, tau=1000.0, normalize=False)
        assert caught[0].filename == __file__
        assert found.coef.values().numel() > 0.5 * 120**2
        assert found.converged


class TestWarmStart:
    def test_the_answer_is_kept_and_found_at_once(self):
        x = unit(samples(10, 80, 12))
        cold = self_expression(x, tau=50.0)
        hot = self_expression(x, tau=50.0, init=cold.coef)
        assert cold.n_iter > hot.n_iter == 0
        assert torch.equal(hot.coef.to_dense(), cold.coef.to_dense())

    @few
    @given(seed=seeds, rank=st.integers(1, 20))
    def test_any_start_reaches_the_optimum(self, seed, rank):
        x = unit(samples(seed, 30, rank))
        x[3] = 0
        g = torch.Generator().manual_seed(seed)
        init = torch.randn(30, 30, generator=g) * (torch.rand(30, 30, generator=g) < 0.3)
        cold, hot = self_expression(x, tau=20.0, tol=1e-9), self_expression(x, tau=20.0, tol=1e-9, init=init)
        assert hot.converged
        torch.testing.assert_close(hot.objective, cold.objective, rtol=1e-8, atol=1e-8)

    def test_an_uncoalesced_start(self):
        x = unit(samples(10, 30, 12))
        cold = self_expression(x)
        half = cold.coef.to_sparse_coo() * 0.5
        twice = torch.sparse_coo_tensor(
            torch.cat((half.indices(), half.indices()), 1), half.values().repeat(2), (30, 30)
        )
        assert not twice.is_coalesced()
        assert self_expression(x, init=twice).n_iter == 0

    def test_names_what_is_wrong(self):
        x = samples(0, 10, 4)
        with pytest.raises(ValueError, match=r"init must be the coef of the same samples, \(10, 10\), got \(9, 9\)"):
            self_expression(x, init=torch.zeros(9, 9))
        with pytest.raises(ValueError, match="init is on meta but the samples are on cpu"):
            self_expression(x, init=torch.zeros(10, 10, device="meta"))
        with pytest.raises(ValueError, match="init is not finite"):
            self_expression(x, init=torch.full((10, 10), torch.nan))


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_samples_are_taken_as_they_are(self, dtype):
        x = samples(0, 40, 10).to(dtype)
        found = self_expression(x)
        assert found.converged
        assert torch.equal(found.coef.to_dense(), self_expression(x.double()).coef.to_dense())

    def test_integer_samples_and_grams(self):
        x = torch.randint(0, 255, (40, 10), generator=torch.Generator().manual_seed(0))
        found = self_expression(x.to(torch.uint8))
        assert found.converged
        torch.testing.assert_close(self_expression(gram=x @ x.T).coef.to_dense(), found.coef.to_dense())

    def test_integer_gram_of_short_samples(self):
        x = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 0], [1, 0, 1]])  # lengths that are no integers
        found = self_expression(gram=x @ x.T)
        torch.testing.assert_close(found.objective, self_expression(x).objective)

    def test_half_precision_gram_is_refused(self):
        with pytest.raises(
            ValueError, match=r"single precision or better, got torch.float16: form it from x.float\(\)"
        ):
            self_expression(gram=torch.eye(5, dtype=torch.float16))

    def test_gradients_are_not_followed(self):
        x = samples(0, 10, 4)
        assert not self_expression(x.requires_grad_()).coef.requires_grad
        gram = (x @ x.T).detach().requires_grad_()
        assert not self_expression(gram=gram, tau=1.0, normalize=False, init=gram.triu(1)).coef.requires_grad

    def test_inference_mode(self):
        with torch.inference_mode():
            found = self_expression(samples(0, 20, 4))
            assert self_expression(samples(0, 20, 4), init=found.coef).n_iter == 0


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "pass either x"),
            ({"x": torch.ones(4, 2), "gram": torch.eye(4)}, "pass either x"),
            ({"x": torch.ones(2, 5)}, r"at least 3 samples and 1 feature, got shape \(2, 5\)"),
            ({"x": torch.ones(5, 0)}, "at least 3 samples and 1 feature"),
            ({"x": torch.ones(5, 2, 2)}, r"samples as rows, got \(5, 2, 2\): use x.flatten\(1\)"),
            ({"x": torch.ones(5, 2, dtype=torch.complex64)}, "x must be real"),
            ({"gram": torch.ones(5, 4)}, r"gram must be square, x @ x.T, got shape \(5, 4\)"),
            ({"gram": torch.eye(2)}, "at least 3 samples, got 2"),
            ({"gram": torch.diag(torch.tensor([1.0, -1.0, 1.0]))}, r"gram\[1, 1\] is -1.0, not the squared length"),
            ({"gram": torch.diag(torch.tensor([1.0, 1.0, torch.nan]))}, r"gram\[2, 2\] is nan"),
            ({"tau": 0.0}, "tau must be positive and finite, got 0"),
            ({"tau": torch.inf}, "tau must be positive and finite, got inf"),
            ({"alpha": -1.0}, "alpha must be positive and finite, got -1"),
            ({"tau": None}, "pass tau.* or alpha"),
            ({"tol": -1.0}, "tol must be a relative duality gap"),
            ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
            ({"solver": "lars"}, "solver must be 'active_set' or 'admm', got 'lars'"),
            ({"preset": "thesis"}, "preset must be 'paper' or None, got 'thesis'"),
            ({"x": torch.zeros(4, 2), "alpha": 2.0}, "pass tau"),
        ],
    )
    def test_is_named(self, arguments, message):
        if arguments and "x" not in arguments and "gram" not in arguments:
            arguments = {"x": samples(0, 6, 3), **arguments}
        with pytest.raises(ValueError, match=message):
            self_expression(**arguments)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"x": np.ones((4, 2))}, r"x must be a torch.Tensor, .*got ndarray: use torch.as_tensor\(x\)"),
            ({"gram": [[1.0, 0.0], [0.0, 1.0]]}, "gram must be a torch.Tensor, .*got list"),
            ({"x": torch.ones(4, 2), "init": [[0.0]]}, "init must be a torch.Tensor, got list: pass the coef"),
        ],
    )
    def test_what_is_no_tensor(self, arguments, message):
        with pytest.raises(TypeError, match=message):
            self_expression(**arguments)

    def test_sparse_samples_and_grams(self):
        x = samples(0, 6, 3)
        with pytest.raises(ValueError, match=r"x must be dense, got torch.sparse_csr: use x.to_dense\(\)"):
            self_expression(x.to_sparse_csr())
        with pytest.raises(ValueError, match=r"gram must be dense, got torch.sparse_coo: use gram.to_dense\(\)"):
            self_expression(gram=(x @ x.T).to_sparse())

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_not_finite_names_the_row(self, value):
        x = samples(0, 700, 3)
        x[601, 2] = value
        with pytest.raises(ValueError, match=r"x has NaN or infinity in row 601 \(1 such rows\): repair or leave"):
            self_expression(x)
        gram = x.nan_to_num(0, 0, 0) @ x.nan_to_num(0, 0, 0).T
        gram[601, 3] = gram[3, 601] = value
        with pytest.raises(ValueError, match="gram is not finite and symmetric in row 601"):
            self_expression(gram=gram)

    def test_asymmetric_gram_names_the_row(self):
        x = samples(0, 700, 3)
        gram = x @ x.T
        gram[650, 20] += 0.1 * gram.diagonal().max()
        with pytest.raises(ValueError, match="not finite and symmetric in row 650: pass x @"):
            self_expression(gram=gram)

    def test_distances_are_no_gram(self):
        x = samples(0, 20, 3)
        with pytest.raises(ValueError, match="row 0 beyond the product of the two samples' lengths"):
            self_expression(gram=torch.cdist(x, x))

    def test_overflowing_samples_are_named(self):
        with pytest.raises(ValueError, match=r"gram\[0, 0\] is inf"):
            self_expression(torch.full((4, 2), 1e200, dtype=torch.float64))


class TestThreads:
    def test_results_are_the_same_for_any_number_of_threads(self):
        x = samples(11, 300, 20)
        gram, before, results = x @ x.T, torch.get_num_threads(), []
        try:
            for threads in (1, 2, 5, 1):
                torch.set_num_threads(threads)
                results.append(self_expression(gram=gram, tau=50.0))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert torch.equal(other.coef.col_indices(), results[0].coef.col_indices())
            assert torch.equal(other.coef.values(), results[0].coef.values())
            assert torch.equal(other.gap, results[0].gap)

    def test_may_be_called_from_several_threads_at_once(self):
        x = samples(12, 200, 20)
        alone = self_expression(x)
        results = [None] * 4

        def solve(i):
            results[i] = self_expression(x)

        workers = [threading.Thread(target=solve, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for result in results:
            assert torch.equal(result.coef.values(), alone.coef.values())

    def test_works_after_a_fork_and_imports_numba_late(self):
        code = """
import os, sys, torch
torch.set_num_threads(2)
from lightning_ssc.functional import self_expression
assert "numba" not in sys.modules, "importing the package must stay cheap"
x = torch.randn(100, 20, generator=torch.Generator().manual_seed(0))
first = self_expression(x).coef.values()
pid = os.fork()
if pid == 0:
    torch.set_num_threads(1)  # torch itself hangs in a child otherwise; its own workers do the same
same = torch.equal(self_expression(x).coef.values(), first)
if pid == 0:
    os._exit(0 if same else 1)
assert same and os.waitpid(pid, 0)[1] == 0
"""
        subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], check=True, timeout=120)
