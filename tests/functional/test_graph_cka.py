import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_ssc.functional import affinity, cka
from lightning_ssc.functional.graph_cka import CentredGraph, graph_cka


def coefficients(n: int, seed: int, density: float = 0.3) -> Tensor:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(n, n)) * (rng.random((n, n)) < density)
    np.fill_diagonal(dense, 0)
    return torch.from_numpy(dense).to_sparse_csr()


def by_definition(a: Tensor, b: Tensor) -> float:
    n = len(a)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    x, y = h @ a.double() @ h, h @ b.double() @ h
    return float((x * y).sum() / (x.norm() * y.norm()))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 25), seed=st.integers(0, 10**6), density=st.floats(0.1, 1.0))
def test_it_is_the_definition(n: int, seed: int, density: float) -> None:
    one, other = coefficients(n, seed, density), coefficients(n, seed + 1, density)
    first, second = (affinity(coef).to_dense() for coef in (one, other))
    found = graph_cka(CentredGraph(one), CentredGraph(other))
    if math.isnan(cka(first, second)):
        assert math.isnan(found)
    else:
        assert found == pytest.approx(by_definition(first, second), abs=1e-10)


def test_a_known_norm_is_taken() -> None:
    one, other = CentredGraph(coefficients(20, 0)), CentredGraph(coefficients(20, 1))
    again = CentredGraph(one.coef, one.norm)
    assert graph_cka(again, other) == graph_cka(one, other)
    assert graph_cka(CentredGraph(one.coef, 2 * one.norm), other) == pytest.approx(graph_cka(one, other) / 2)


def test_scale_and_sign_do_not_matter() -> None:
    coef = coefficients(20, 0)
    assert graph_cka(CentredGraph(coef), CentredGraph(-3 * coef)) == pytest.approx(1.0, abs=1e-12)


def test_nothing_to_compare_is_nan() -> None:
    empty = torch.zeros(5, 5, dtype=torch.float64).to_sparse_csr()
    alike = (torch.ones(5, 5, dtype=torch.float64) - torch.eye(5)).to_sparse_csr()
    assert math.isnan(graph_cka(CentredGraph(empty), CentredGraph(coefficients(5, 0, 1.0))))
    assert not math.isnan(graph_cka(CentredGraph(alike), CentredGraph(alike)))  # its diagonal is what is left


def test_graphs_of_other_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="of 5 and 6 inputs"):
        graph_cka(CentredGraph(coefficients(5, 0)), CentredGraph(coefficients(6, 0)))


def test_no_threads_are_woken() -> None:
    """Those of NumPy's BLAS would spin beside a training run, once for every layer."""
    code = """
import time
import torch
from lightning_ssc.functional.graph_cka import CentredGraph, graph_cka

torch.set_num_threads(1)  # only NumPy's are looked for
coef = torch.rand(500, 500, generator=torch.Generator().manual_seed(0))
coef = (coef * (coef > 0.9)).to_sparse_csr()
assert len(coef.values()) > 10_000, "too few shared edges for BLAS to share out"
wall, cpu = time.perf_counter(), time.process_time()
for _ in range(100):
    graph_cka(CentredGraph(coef), CentredGraph(2 * coef))
print((time.process_time() - cpu) / (time.perf_counter() - wall))
"""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    words = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    assert float(done.stdout) <= 1.3  # processors kept busy
