import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_ssc.functional import affinity, cka, linear_cka, pairwise_cka, similarity
from tests import definitions


def hsic_1_by_definition(k: torch.Tensor, el: torch.Tensor) -> torch.Tensor:
    """The average over ordered quadruples of distinct inputs whose U-statistic HSIC_1 is (Song et al. 2012)."""
    n = len(k)
    distinct = 1 - torch.eye(n, dtype=torch.float64)
    k, el = k * distinct, el * distinct
    pairs = (k * el).sum() / (n * (n - 1))
    three = torch.einsum("ij,jq,iq->", k, el, distinct) / (n * (n - 1) * (n - 2))
    apart = torch.einsum("iq,ir,jq,jr->ijqr", *[distinct] * 4)
    four = torch.einsum("ij,qr,ijqr->", k, el, apart) / (n * (n - 1) * (n - 2) * (n - 3))
    return pairs - 2 * three + four


def graph(n: int, density: float, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coef = torch.randn(n, n, generator=generator, dtype=dtype)
    coef[torch.rand(n, n, generator=generator) > density] = 0
    return affinity(coef)


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class TestCKA:
    @pytest.mark.parametrize("densities", [(0.05, 0.1), (0.3, 0.3), (1.0, 0.1), (1.0, 1.0)])
    @pytest.mark.parametrize("layouts", ["sparse sparse", "sparse dense", "dense sparse", "dense dense"])
    def test_equals_the_definition(self, densities, layouts):
        a, b = (graph(40, density, seed) for seed, density in enumerate(densities))
        expected = definitions.cka(a, b)
        a, b = (
            matrix.to_dense() if layout == "dense" else matrix
            for matrix, layout in zip((a, b), layouts.split(), strict=True)
        )
        assert cka(a, b) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("sparse", [False, True])
    def test_unbiased_equals_the_average_over_quadruples(self, sparse):
        a, b = (graph(12, 0.5, seed).to_dense() + torch.diag(torch.arange(12.0)) for seed in (0, 1))
        expected = hsic_1_by_definition(a, b) / (hsic_1_by_definition(a, a) * hsic_1_by_definition(b, b)).sqrt()
        if sparse:
            a, b = a.to_sparse_csr(), b.to_sparse_csr()
        assert cka(a, b, unbiased=True) == pytest.approx(expected.item(), abs=1e-12)
        assert pairwise_cka([a], [b], unbiased=True).item() == pytest.approx(expected.item(), abs=1e-12)

    def test_takes_uncoalesced_coo(self):
        a, b = graph(20, 0.2, 0), graph(20, 0.2, 1)
        coo = a.to_sparse_coo()
        split = torch.sparse_coo_tensor(torch.cat([coo.indices()] * 2, 1), torch.cat([coo.values() / 2] * 2), coo.shape)
        assert cka(split, b) == pytest.approx(cka(a, b), abs=1e-12)

    def test_accumulates_float32_in_float64(self):
        a, b = graph(200, 0.5, 0), graph(200, 0.5, 1)
        assert cka(a.float(), b.float()) == pytest.approx(definitions.cka(a.float(), b.float()), abs=1e-12)

    def test_of_a_graph_with_itself_is_one(self):
        a = graph(50, 0.1, 0)
        assert cka(a, a) == pytest.approx(1.0, abs=1e-12)

    @pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
    def test_of_constant_matrices_is_nan(self, value):
        constant = torch.full((30, 30), value)
        assert math.isnan(cka(constant, graph(30, 0.2, 0)))
        assert math.isnan(cka(graph(30, 0.2, 0), constant))

    def test_of_an_empty_graph_is_nan(self):
        empty = affinity(torch.zeros(30, 30))
        assert math.isnan(cka(empty, graph(30, 0.2, 0)))
        assert math.isnan(cka(empty, empty))

    def test_of_a_complete_graph_is_a_number(self):
        complete, other = torch.ones(30, 30).fill_diagonal_(0), graph(30, 0.2, 0)
        assert cka(complete, other) == pytest.approx(definitions.cka(complete, other), abs=1e-9)

    @given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
    @settings(max_examples=25, deadline=None)
    def test_ignores_order_and_scale_and_side(self, seed, scale):
        a, b = graph(25, 0.3, seed), graph(25, 0.3, seed + 1)
        order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))
        a2, b2 = (scale * a.to_dense())[order][:, order], b.to_dense()[order][:, order].to_sparse_csr()
        assert cka(b2, a2) == pytest.approx(cka(a, b), abs=1e-12)


class TestPairwiseCKA:
    @pytest.fixture(params=[similarity._BLOCK, 1])
    def _blocks(self, request, monkeypatch):
        monkeypatch.setattr(similarity, "_BLOCK", request.param)  # 1: every row a block of its own

    @pytest.mark.usefixtures("_blocks")
    def test_equals_the_definition_for_mixed_layouts(self):
        graphs = [graph(30, density, seed) for seed, density in enumerate((0.05, 0.2, 1.0, 0.5))]
        expected = torch.tensor([[definitions.cka(a, b) for b in graphs] for a in graphs], dtype=torch.float64)
        mixed = [graphs[0], graphs[1].to_dense().float(), graphs[2].to_sparse_coo(), graphs[3].to_dense()]
        torch.testing.assert_close(pairwise_cka(mixed), expected, rtol=0, atol=1e-7)
        torch.testing.assert_close(pairwise_cka(graphs), expected, rtol=0, atol=1e-12)

    @pytest.mark.usefixtures("_blocks")
    def test_of_two_networks_is_rectangular(self):
        mine, theirs = [graph(30, 0.2, seed) for seed in (0, 1)], [graph(30, 0.3, seed) for seed in (2, 3, 4)]
        table = pairwise_cka(mine, theirs)
        assert table.shape == (2, 3)
        assert table.dtype == torch.float64
        for i, a in enumerate(mine):
            for j, b in enumerate(theirs):
                assert table[i, j].item() == pytest.approx(definitions.cka(a, b), abs=1e-12)

    def test_has_a_diagonal_of_one_and_is_symmetric(self):
        table = pairwise_cka([graph(100, 0.1, seed, torch.float32) for seed in range(6)])
        torch.testing.assert_close(table.diagonal(), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)
        assert torch.equal(table, table.T)

    @pytest.mark.parametrize("unbiased", [False, True])
    def test_of_grams_is_linear_cka(self, unbiased):
        x = [features(40, d, d) for d in (3, 30, 300)]
        table = pairwise_cka([f.double() @ f.double().T for f in x], unbiased=unbiased)
        for i, a in enumerate(x):
            for j, b in enumerate(x):
                assert table[i, j].item() == pytest.approx(linear_cka(a, b, unbiased=unbiased), abs=1e-10)

    def test_degenerate_graphs_are_nan_and_spoil_no_other(self):
        table = pairwise_cka(
            [graph(30, 0.2, 0), torch.zeros(30, 30).to_sparse_csr(), torch.ones(30, 30), graph(30, 0.2, 1)]
        )
        assert table.isnan().tolist() == [[i in (1, 2) or j in (1, 2) for j in range(4)] for i in range(4)]

    @pytest.mark.parametrize("graphs", [[], ([], [torch.eye(3)]), ([torch.eye(3)], [])])
    def test_refuses_empty_lists(self, graphs):
        with pytest.raises(ValueError, match="at least one graph"):
            pairwise_cka(*graphs) if isinstance(graphs, tuple) else pairwise_cka(graphs)

    def test_names_the_culprit(self):
        good, bad = graph(10, 0.5, 0), torch.arange(100.0).view(10, 10)
        with pytest.raises(ValueError, match=r"graphs\[1\] must be symmetric"):
            pairwise_cka([good, bad])
        with pytest.raises(ValueError, match=r"others\[0\] must be symmetric"):
            pairwise_cka([good, good], [bad])
        with pytest.raises(ValueError, match=r"graphs\[0\] has 10 inputs but others\[1\] has 11: .* same probe"):
            pairwise_cka([good], [good, graph(11, 0.5, 0)])


class TestLinearCKA:
    @pytest.mark.parametrize("d1", [3, 70])
    @pytest.mark.parametrize("d2", [5, 200])
    def test_equals_the_definition(self, d1, d2):
        x1, x2 = features(50, d1), features(50, d2, seed=1)
        x1[:, 0] += x2[:, 0]
        expected = definitions.cka(x1.double() @ x1.double().T, x2.double() @ x2.double().T)
        assert linear_cka(x1, x2) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("d", [4, 40])
    def test_unbiased_equals_the_average_over_quadruples(self, d):
        x1, x2 = features(12, d), features(12, d, seed=1)
        x2[:, 0] = x1[:, 0]
        k, el = (x.double() @ x.double().T for x in (x1, x2))
        expected = hsic_1_by_definition(k, el) / (hsic_1_by_definition(k, k) * hsic_1_by_definition(el, el)).sqrt()
        assert linear_cka(x1, x2, unbiased=True) == pytest.approx(expected.item(), abs=1e-10)

    def test_unbiased_is_near_zero_for_independent_features(self):
        values = [linear_cka(features(60, 300, s), features(60, 300, s + 100), unbiased=True) for s in range(20)]
        assert abs(sum(values) / 20) < 0.01
        assert linear_cka(features(60, 300), features(60, 300, 100)) > 0.7  # the biased estimator's trap

    def test_survives_a_large_offset_in_float32(self):
        x1, x2 = features(100, 20), features(100, 20, seed=1)
        far = x1 + 1000
        centred = far.double() - far.double().mean(0)
        expected = definitions.cka(centred @ centred.T, x2.double() @ x2.double().T)
        assert linear_cka(far, x2) == pytest.approx(expected, abs=1e-12)

    def test_sums_features_in_blocks(self, monkeypatch):
        x1, x2 = features(20, 100), features(20, 90, seed=1)
        whole = linear_cka(x1, x2)
        monkeypatch.setattr(similarity, "_BLOCK", 140)  # seven features at a time
        assert linear_cka(x1, x2) == pytest.approx(whole, abs=1e-13)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
    def test_takes_any_real_dtype(self, dtype):
        x1, x2 = ((features(30, 6, seed) * 3).relu().to(dtype) for seed in (0, 1))
        assert linear_cka(x1, x2) == linear_cka(x1.double(), x2.double())

    def test_flattens_feature_maps(self):
        maps = features(20, 48).view(20, 3, 4, 4)
        assert linear_cka(maps, features(20, 5, 1)) == linear_cka(maps.flatten(1), features(20, 5, 1))

    @pytest.mark.parametrize("unbiased", [False, True])
    @pytest.mark.parametrize("d", [3, 60])
    def test_of_constant_features_is_nan(self, d, unbiased):
        constant = torch.full((40, d), 0.1)
        assert math.isnan(linear_cka(constant, features(40, 4), unbiased=unbiased))
        assert math.isnan(linear_cka(features(40, 4), constant, unbiased=unbiased))

    def test_unbiased_is_nan_without_a_positive_scale(self):
        # Inputs at the corners of a simplex are equally alike: nothing depends on which of them is which.
        assert math.isnan(linear_cka(torch.eye(6), features(6, 2), unbiased=True))

    @given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100.0), unbiased=st.booleans())
    @settings(max_examples=25, deadline=None)
    def test_ignores_order_scale_shift_and_rotation(self, seed, scale, unbiased):
        x1, x2 = features(20, 5, seed).double(), features(20, 30, seed + 1).double()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(20, generator=generator)
        rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
        moved = scale * x1 @ rotation + 3
        expected = linear_cka(x1, x2, unbiased=unbiased)
        result = linear_cka(x2[order], moved[order], unbiased=unbiased)
        assert result == pytest.approx(expected, abs=1e-9, nan_ok=True)


class TestBadInput:
    def test_graphs(self):
        good = graph(10, 0.5, 0)
        for matrix, message in (
            (torch.zeros(10, 9), r"a2 must be a square .* got shape \(10, 9\)"),
            (torch.arange(100.0).view(10, 10), r"a2 must be symmetric.*affinity\(coef\)"),
            (torch.arange(100.0).view(10, 10).to_sparse_csr(), r"a2 must be symmetric.*affinity\(coef\)"),
            (torch.full((10, 10), math.nan), "a2 holds NaN or infinity, first in row 0"),
            (torch.ones(10, 10, dtype=torch.long), "a2 must hold floating-point"),
            (graph(11, 0.5, 0), "a1 has 10 inputs but a2 has 11"),
            (torch.ones(10, 10, device="meta"), "a1 is on cpu but a2 is on meta"),
        ):
            with pytest.raises(ValueError, match=message):
                cka(good, matrix)

    def test_features(self):
        good = features(10, 4)
        broken = features(10, 4)
        broken[6, 1] = math.inf
        for x, message in (
            (features(9, 4), "x1 has 10 inputs but x2 has 9"),
            (good[:, 0], r"x2 must hold real features of shape \(N, ...\), got torch.float32 \(10,\)"),
            (good.to(torch.complex64), "x2 must hold real features"),
            (torch.zeros(10, 0), r"x2 of shape \(10, 0\) has no features"),
            (broken, "x2 holds NaN or infinity, first in row 6"),
            (good.to("meta"), "x1 is on cpu but x2 is on meta"),
        ):
            with pytest.raises(ValueError, match=message):
                linear_cka(good, x)

    def test_too_few_inputs(self):
        with pytest.raises(ValueError, match="the unbiased estimator needs at least 4 inputs, got 3"):
            linear_cka(features(3, 4), features(3, 4), unbiased=True)
        with pytest.raises(ValueError, match="the unbiased estimator needs at least 4 inputs, got 3"):
            cka(torch.eye(3), torch.eye(3), unbiased=True)
        assert math.isnan(linear_cka(features(1, 4), features(1, 4)))
