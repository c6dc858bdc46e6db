import math

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.manifold import spectral_embedding as sklearn_embedding

from lightning_ssc.functional import affinity, class_affinity, modularity, spectral_embedding, to_networkx
from lightning_ssc.functional import graph as graph_module

ON_GRAPHS = [modularity, class_affinity, spectral_embedding, to_networkx]


def random_coef(n: int, density: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coef = torch.randn(n, n, generator=generator, dtype=dtype)
    coef[torch.rand(n, n, generator=generator) > density] = 0
    return coef.fill_diagonal_(0).to_sparse_csr()


def random_graph(n: int, density: float, seed: int = 0) -> torch.Tensor:
    return affinity(random_coef(n, density, seed, torch.float64))


def random_labels(n: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def two_cliques(bridge: float = 0.0) -> torch.Tensor:
    clique = torch.ones(4, 4).fill_diagonal_(0)
    graph = torch.block_diag(clique, clique)
    graph[0, 4] = graph[4, 0] = bridge
    return graph


class TestAffinity:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
    def test_is_the_definition(self, density, dtype):
        coef = random_coef(40, density, dtype=dtype)
        dense = coef.to_dense()
        graph = affinity(coef)
        assert torch.equal(graph.to_dense(), dense.abs() + dense.abs().T)
        assert graph.layout == torch.sparse_csr
        assert graph.dtype == dtype

    def test_stores_positive_entries_with_sorted_columns(self):
        graph = affinity(random_coef(60, 0.2))
        assert bool((graph.values() > 0).all())
        for start, stop in zip(graph.crow_indices(), graph.crow_indices()[1:], strict=False):
            columns = graph.col_indices()[start:stop]
            assert bool((columns.diff() > 0).all())

    def test_takes_any_layout(self):
        coef = random_coef(30, 0.2)
        expected = affinity(coef).to_dense()
        assert torch.equal(affinity(coef.to_dense()).to_dense(), expected)
        coo = coef.to_sparse_coo()
        split = torch.sparse_coo_tensor(torch.cat([coo.indices()] * 2, 1), torch.cat([coo.values() / 2] * 2), coo.shape)
        assert torch.equal(affinity(split).to_dense(), expected)

    def test_leaves_out_the_diagonal_and_stored_zeros(self):
        values = torch.tensor([5.0, 0.0, 2.0])
        coef = torch.sparse_coo_tensor(torch.tensor([[0, 0, 1], [0, 1, 2]]), values, (3, 3)).to_sparse_csr()
        graph = affinity(coef)
        assert graph.values().tolist() == [2.0, 2.0]
        assert graph.col_indices().tolist() == [2, 1]

    def test_names_the_row_that_is_not_finite(self):
        coef = random_coef(10, 0.5).to_dense()
        coef[7, 2] = math.nan
        with pytest.raises(ValueError, match="row 7"):
            affinity(coef)

    @pytest.mark.parametrize("shape", [(3, 4), (3,), (0, 0)])
    def test_refuses_what_is_not_square(self, shape):
        with pytest.raises(ValueError, match="square"):
            affinity(torch.zeros(shape))


class TestModularity:
    @pytest.mark.parametrize(("density", "classes"), [(0.02, 2), (0.1, 5), (1.0, 10)])
    def test_equals_networkx(self, density, classes):
        graph, labels = random_graph(80, density), random_labels(80, classes)
        communities = [set(np.flatnonzero(labels.numpy() == c)) for c in labels.unique().tolist()]
        expected = networkx.community.modularity(networkx.from_numpy_array(graph.to_dense().numpy()), communities)
        assert modularity(graph, labels) == pytest.approx(expected, abs=1e-12)

    def test_equals_equation_5_written_out(self):
        graph, labels = random_graph(50, 0.2), random_labels(50, 4)
        dense = graph.to_dense()
        degree, twice_m = dense.sum(1), dense.sum()
        same = labels[:, None] == labels
        expected = ((dense - torch.outer(degree, degree) / twice_m) * same).sum() / twice_m
        assert modularity(graph, labels) == pytest.approx(expected.item(), abs=1e-12)

    def test_of_perfect_communities(self):
        labels = [0] * 4 + [1] * 4
        assert modularity(two_cliques(), labels) == pytest.approx(0.5)
        assert modularity(two_cliques(bridge=1.0), labels) < 0.5

    def test_of_a_single_class_is_zero(self):
        assert modularity(random_graph(40, 0.2), torch.full((40,), 3)) == pytest.approx(0.0, abs=1e-12)

    def test_of_an_empty_graph_is_nan(self):
        assert math.isnan(modularity(torch.zeros(5, 5), [0, 1, 2, 3, 4]))
        assert math.isnan(modularity(torch.zeros(5, 5).to_sparse_csr(), [0, 1, 2, 3, 4]))

    def test_accumulates_in_float64(self):
        graph, labels = random_graph(300, 0.5), random_labels(300, 10)
        assert modularity(graph.float(), labels) == pytest.approx(modularity(graph, labels), abs=1e-8)

    @pytest.mark.parametrize(
        "kind", [list, np.asarray, torch.as_tensor, lambda y: torch.as_tensor(y, dtype=torch.uint8)]
    )
    def test_takes_labels_of_any_integer_kind(self, kind):
        labels = random_labels(30, 3)
        assert modularity(random_graph(30, 0.2), kind(labels.tolist())) == modularity(random_graph(30, 0.2), labels)

    @given(seed=st.integers(0, 1000), offset=st.integers(-50, 50))
    @settings(max_examples=25, deadline=None)
    def test_ignores_order_scale_and_names_of_classes(self, seed, offset):
        graph, labels = random_graph(25, 0.3, seed), random_labels(25, 3, seed)
        order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))
        shuffled = (7.5 * graph.to_dense())[order][:, order].to_sparse_csr()
        assert modularity(shuffled, labels[order] * 11 + offset) == pytest.approx(modularity(graph, labels), abs=1e-12)


class TestClassAffinity:
    def test_is_the_definition(self):
        graph, labels = random_graph(40, 0.3), random_labels(40, 4)
        dense = graph.to_dense()
        expected = torch.stack([dense[:, labels == c].sum(1) for c in range(4)], 1) / dense.sum(1, keepdim=True)
        torch.testing.assert_close(class_affinity(graph, labels), expected, rtol=1e-12, atol=1e-14)

    def test_rows_of_isolated_inputs_are_nan(self):
        graph = two_cliques()
        graph[2] = graph[:, 2] = 0
        shares = class_affinity(graph, [0] * 4 + [1] * 4)
        assert shares.isnan().any(1).tolist() == [False, False, True, False, False, False, False, False]
        assert shares[0].tolist() == [1.0, 0.0]

    def test_has_a_column_for_classes_that_do_not_occur(self):
        assert class_affinity(two_cliques(), [0] * 8, num_classes=3).tolist() == [[1.0, 0.0, 0.0]] * 8

    @pytest.mark.parametrize(("label", "num_classes"), [(-1, None), (3, 3)])
    def test_names_labels_out_of_range(self, label, num_classes):
        with pytest.raises(ValueError, match=f"got {label}"):
            class_affinity(two_cliques(), [0, 1, 2, label, 0, 1, 2, 0], num_classes)


class TestSpectralEmbedding:
    @pytest.mark.parametrize("n", [40, 400])  # dense, and by products with the sparse matrix
    def test_equals_a_full_eigendecomposition(self, n):
        graph = random_graph(n, 20 / n)
        vectors = torch.linalg.eigh(graph.to_dense()).eigenvectors
        embedding = spectral_embedding(graph, 3)
        overlap = (embedding * vectors[:, [-1, -2, -3]]).sum(0).abs()
        torch.testing.assert_close(overlap, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("n", [60, 400])
    def test_normalized_equals_scikit_learn(self, n):
        graph = random_graph(n, 20 / n, seed=1)
        expected = torch.from_numpy(sklearn_embedding(graph.to_dense().numpy(), n_components=3, random_state=0))
        embedding = spectral_embedding(graph, 3, normalized=True)
        signs = (embedding * expected).sum(0).sign()
        torch.testing.assert_close(embedding * signs, expected, rtol=0, atol=1e-6 * expected.abs().max().item())

    def test_finds_repeated_eigenvalues(self):
        part = random_graph(150, 0.1).to_dense()
        graph = torch.block_diag(*[part] * 4)
        embedding = spectral_embedding(graph, 4)
        top = torch.linalg.eigvalsh(part)[-1]
        torch.testing.assert_close(embedding.T @ embedding, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-9)
        torch.testing.assert_close(graph @ embedding, top * embedding, rtol=0, atol=1e-7 * top.item())

    @pytest.mark.parametrize("dense", [True, False])
    def test_ends_on_a_long_ring(self, dense, monkeypatch):
        n = 1500  # whose leading eigenvalues, 2 cos(2 pi k / n), are 1e-5 apart
        if not dense:
            monkeypatch.setattr(graph_module, "_DENSE", n - 1)
        i = torch.arange(n)
        links = torch.cat((torch.stack((i, i.roll(1))), torch.stack((i.roll(1), i))), 1)
        ring = torch.sparse_coo_tensor(links, torch.ones(2 * n, dtype=torch.float64), (n, n)).to_sparse_csr()
        if dense:
            embedding = spectral_embedding(ring, 3)
            top = torch.tensor([2.0] + [2 * math.cos(2 * math.pi / n)] * 2, dtype=torch.float64)
            torch.testing.assert_close(ring @ embedding, top * embedding, rtol=0, atol=1e-10)
        else:
            with pytest.warns(UserWarning, match="too close together: residuals of the embedding") as caught:
                embedding = spectral_embedding(ring, 3)
            assert caught[0].filename == __file__
            assert embedding.isfinite().all()

    def test_separates_communities(self):
        second = spectral_embedding(two_cliques(bridge=0.1), 1, normalized=True)[:, 0]
        assert second[:4].sign().unique().tolist() != second[4:].sign().unique().tolist()

    @pytest.mark.parametrize("normalized", [False, True])
    def test_isolated_inputs_are_nan_and_change_nothing(self, normalized):
        graph = random_graph(30, 0.3)
        apart = torch.zeros(32, 32, dtype=torch.float64)
        keep = [i for i in range(32) if i not in (0, 17)]
        apart[np.ix_(keep, keep)] = graph.to_dense()
        embedding = spectral_embedding(apart, normalized=normalized)
        assert embedding.isnan().all(1).nonzero().flatten().tolist() == [0, 17]
        torch.testing.assert_close(embedding[keep], spectral_embedding(graph, normalized=normalized))

    def test_repeats_exactly_and_leaves_the_random_state_alone(self):
        graph = random_graph(300, 0.05)
        state = torch.get_rng_state()
        first = spectral_embedding(graph)
        assert torch.equal(first, spectral_embedding(graph))
        assert torch.equal(state, torch.get_rng_state())
        assert bool((first.gather(0, first.abs().argmax(0, keepdim=True)) > 0).all())

    @pytest.mark.parametrize(("components", "normalized"), [(0, False), (9, False), (8, True)])
    def test_refuses_more_components_than_there_are(self, components, normalized):
        with pytest.raises(ValueError, match=f"from 1 to {8 - normalized}.* got {components}"):
            spectral_embedding(two_cliques(), components, normalized=normalized)


class TestToNetworkx:
    def test_keeps_weights_labels_and_isolated_inputs(self):
        graph = random_graph(30, 0.05)
        labels = random_labels(30, 3)
        converted = to_networkx(graph, labels)
        assert np.array_equal(networkx.to_numpy_array(converted, nodelist=range(30)), graph.to_dense().numpy())
        assert [converted.nodes[i]["label"] for i in range(30)] == labels.tolist()

    def test_labels_are_optional(self):
        assert not any(data for _, data in to_networkx(two_cliques()).nodes(data=True))


class TestBadInput:
    def call(self, function, graph, labels):
        return function(graph) if function is spectral_embedding else function(graph, labels)

    @pytest.mark.parametrize("function", ON_GRAPHS)
    @pytest.mark.parametrize("sparse", [False, True])
    def test_graphs(self, function, sparse):
        def prepared(matrix):
            return matrix.to_sparse_csr() if sparse else matrix

        asymmetric, negative, broken = two_cliques(), two_cliques(), two_cliques()
        asymmetric[5, 1] = 0.5
        negative[1, 2] = negative[2, 1] = -1.0
        broken[3, 2] = math.inf
        labels = [0] * 4 + [1] * 4
        with pytest.raises(ValueError, match=r"symmetric.*affinity\(coef\)"):
            self.call(function, prepared(asymmetric), labels)
        with pytest.raises(ValueError, match=r"non-negative.*row 1.*affinity\(coef\)"):
            self.call(function, prepared(negative), labels)
        with pytest.raises(ValueError, match="NaN or infinity, first in row 3"):
            self.call(function, prepared(broken), labels)
        with pytest.raises(ValueError, match=r"square .* got shape \(4, 8\)"):
            self.call(function, prepared(two_cliques()[:4]), labels)
        with pytest.raises(ValueError, match=r"floating-point.*\.float\(\)"):
            self.call(function, prepared(two_cliques().long()), labels)

    def test_a_circulant_matrix_is_told_from_a_symmetric_one(self):
        ring = torch.eye(9).roll(1, 0)  # rows and columns have the same sums
        with pytest.raises(ValueError, match="symmetric"):
            modularity(ring.to_sparse_csr(), [0] * 9)

    @pytest.mark.parametrize("function", [modularity, class_affinity, to_networkx])
    def test_labels(self, function):
        with pytest.raises(ValueError, match=r"8 inputs, got shape \(7,\)"):
            function(two_cliques(), [0] * 7)
        with pytest.raises(ValueError, match=r"integers, got torch\.float32"):
            function(two_cliques(), torch.zeros(8))
        with pytest.raises(ValueError, match="labels are on meta but affinity is on cpu"):
            function(two_cliques(), torch.zeros(8, dtype=torch.long, device="meta"))

    def test_what_is_no_tensor(self):
        with pytest.raises(TypeError, match=r"affinity must be a torch\.Tensor, got list"):
            modularity([[0.0, 1.0], [1.0, 0.0]], [0, 1])
