"""Draws of inputs against the same numbers on graphs in which inputs really stand several times."""

import numpy as np
import pytest
import torch

from lightning_ssc.functional import cka, modularity, pairwise_cka
from recipes import resampling
from recipes.resampling import (
    bootstrap_cka,
    bootstrap_counts,
    bootstrap_modularity,
    interval,
    permuted_cka,
    shuffled_modularity,
)


def graph(n, seed, labels=None):
    """A sparse affinity graph; with labels, four times as dense inside classes."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.full((n, n), 0.1) if labels is None else torch.where(labels[:, None] == labels, 0.4, 0.1)
    weights = torch.rand(n, n, generator=generator) * (torch.rand(n, n, generator=generator) < chance)
    weights = weights.triu(1)
    return (weights + weights.T).double().to_sparse_csr()


@pytest.fixture
def graphs():
    return [graph(40, seed) for seed in range(3)]


def test_a_draw_is_cka_of_the_graphs_of_the_drawn_inputs(graphs, monkeypatch):
    monkeypatch.setattr(resampling, "_ROWS", 7)  # several blocks, the last one short
    counts = bootstrap_counts(40, 3)
    for times, found in zip(counts, bootstrap_cka(graphs, counts), strict=True):
        drawn = np.repeat(np.arange(40), times)
        dense = [g.to_dense()[drawn][:, drawn] for g in graphs]
        np.testing.assert_allclose(found, pairwise_cka(dense), atol=1e-6)


def test_every_input_once_is_the_graph_itself(graphs):
    found = bootstrap_cka(graphs, np.ones((1, 40), dtype=np.int64))
    np.testing.assert_allclose(found[0], pairwise_cka(graphs), atol=1e-6)


def test_a_draw_is_modularity_of_the_graph_of_the_drawn_inputs():
    labels = torch.arange(40) % 3
    made = graph(40, 0, labels)
    counts = bootstrap_counts(40, 3)
    for times, found in zip(counts, bootstrap_modularity(made, labels, counts), strict=True):
        drawn = np.repeat(np.arange(40), times)
        assert found == pytest.approx(modularity(made.to_dense()[drawn][:, drawn], labels[drawn]))
    assert shuffled_modularity(made, labels, 20).mean() == pytest.approx(0, abs=0.05)
    assert modularity(made, labels) > 0.2


@pytest.mark.parametrize("dense", [False, True])
def test_the_null_of_cka_moves_both_rows_and_columns(graphs, dense):
    given = [g.to_dense() if dense else g for g in graphs]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    expected = cka(graphs[0].to_dense(), graphs[1].to_dense()[order][:, order])
    assert permuted_cka(given, seed=5)[0, 1] == pytest.approx(expected)


def test_an_interval_leaves_out_equal_tails():
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
