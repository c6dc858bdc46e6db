"""Sums by class against the definition, its moments against permutations, its error against leaving out inputs."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from lightning_ssc.functional import affinity, class_affinity, modularity
from lightning_ssc.functional.partition import Partition, modularity_error, partition
from lightning_ssc.functional.uncertainty import jackknife


def graph(n: int, seed: int, density: float = 0.4, loops: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(n, n, dtype=torch.float64, generator=generator)
    weights = weights * (torch.rand(n, n, generator=generator) < density)
    weights = weights + weights.T
    return weights if loops else weights.fill_diagonal_(0)


def classes(n: int, count: int, seed: int) -> Tensor:
    """Uneven ones, named by numbers with holes."""
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed)).square() * count
    return 3 * drawn.long() - 4


@pytest.fixture(params=[(12, 3, False), (20, 5, True), (9, 9, False), (30, 2, True)], ids=str)
def parted(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Partition]:
    n, count, loops = request.param
    weights, labels = graph(n, n, loops=loops), classes(n, count, count)
    return weights, labels, partition(weights, labels)


def test_modularity_is_the_sum_of_what_classes_add(parted: tuple[Tensor, Tensor, Partition]) -> None:
    weights, labels, found = parted
    assert found.modularity == pytest.approx(modularity(weights, labels), abs=1e-12)
    degrees = weights.sum(1)
    b = (weights - torch.outer(degrees, degrees) / degrees.sum()) / degrees.sum()
    expected = [float(b[labels == name][:, labels == name].sum()) for name in found.names]
    assert found.by_class.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_null_is_that_of_ten_thousand_permutations() -> None:
    weights, labels = graph(40, 1, loops=True), classes(40, 4, 1)
    found, generator = partition(weights, labels), torch.Generator().manual_seed(0)
    order = torch.rand(10_000, 40, generator=generator).argsort(1)
    onehot = torch.nn.functional.one_hot(found.classes).double()[order]
    degrees = weights.sum(1)
    b = weights - torch.outer(degrees, degrees) / degrees.sum()
    drawn = ((b @ onehot) * onehot).sum((1, 2)) / degrees.sum()
    mean, spread = found.null()
    assert mean == pytest.approx(float(drawn.mean()), abs=4 * spread / 100)
    assert spread == pytest.approx(float(drawn.std()), rel=0.04)  # of 10,000 draws it is off by 0.7 %
    assert found.z() == pytest.approx((found.modularity - mean) / spread)


def test_the_null_is_exact_where_all_permutations_can_be_tried() -> None:
    weights, labels = graph(6, 5, 0.8, loops=True), torch.tensor([0, 0, 0, 1, 1, 2])
    drawn = torch.tensor(
        [modularity(weights, labels[list(order)]) for order in permutations(range(6))], dtype=torch.float64
    )
    assert partition(weights, labels).null() == pytest.approx((float(drawn.mean()), float(drawn.std(correction=0))))


def test_labels_are_those_of_most_affinity_and_of_the_isolated_none() -> None:
    weights, labels = graph(25, 3), torch.arange(25) % 4
    weights[7] = weights[:, 7] = 0
    found = partition(weights, labels).labels
    shares = class_affinity(weights, labels)
    assert found[7] == -1
    rest = torch.arange(25) != 7
    assert torch.equal(found[rest], shares[rest].argmax(1))
    assert partition(weights, labels - 1).labels[7] == -2  # -1 is a class here


def test_the_ceiling_is_reached_by_classes_apart() -> None:
    block = torch.ones(3, 3).fill_diagonal_(0)
    apart = partition(torch.block_diag(block, block, block), torch.arange(9) // 3)
    assert apart.modularity == pytest.approx(apart.ceiling) == pytest.approx(1 - 1 / 3)


def test_where_nothing_can_be_said_it_is_nan() -> None:
    empty = partition(torch.zeros(5, 5), [0, 0, 1, 1, 1])
    assert all(map(math.isnan, (empty.modularity, empty.ceiling, empty.z(), *empty.null())))
    one_class, all_alone = (partition(graph(8, 0), labels) for labels in ([0] * 8, range(8)))
    assert math.isnan(one_class.z())
    assert math.isnan(all_alone.z())
    assert math.isnan(partition(graph(3, 0, 1.0), [0, 0, 1]).z())  # moments of four inputs are not defined
    assert one_class.modularity == pytest.approx(0, abs=1e-12)


def test_of_a_self_expression() -> None:
    coef = graph(30, 9, 0.2).to_sparse_csr()
    labels = torch.arange(30) % 3
    assert partition(affinity(coef), labels).modularity == pytest.approx(modularity(affinity(coef), labels))


class TestError:
    @pytest.mark.parametrize("density", [0.2, 1.0])
    def test_is_that_of_leaving_inputs_out_as_what_is_rebuilt_and_as_what_rebuilds(self, density: float) -> None:
        signs = torch.where(graph(24, 1) > 0.7, 1.0, -1.0)
        coef, labels = signs * graph(24, 2, density).triu() + graph(24, 3, density).tril(), torch.arange(24) % 4 - 1
        known, size = labels >= 0, coef.abs()
        sizes, names = size[known][:, known], labels[known]
        variance = 0.0
        for is_rebuilt in (True, False):
            without = []
            for i in range(len(names)):
                rest = sizes.clone()
                if is_rebuilt:
                    rest[i] = 0
                else:
                    rest = (rest + torch.outer(sizes[:, i], sizes[i])).fill_diagonal_(0)
                    rest[:, i], rest[i] = 0, sizes[i]
                without.append(modularity(rest + rest.T, names))
            variance += jackknife(torch.tensor(without, dtype=torch.float64), names) ** 2
        assert modularity_error(coef.to_sparse_csr(), labels) == pytest.approx(math.sqrt(variance), rel=1e-9)

    def test_is_not_known_of_classes_of_one_and_of_no_edges(self) -> None:
        coef = graph(8, 0).to_sparse_csr()
        assert math.isnan(modularity_error(coef, torch.arange(8)))
        assert math.isnan(modularity_error(coef, torch.full((8,), -1)))
        assert math.isnan(modularity_error(torch.zeros(5, 5).to_sparse_csr(), torch.tensor([0, 0, 1, 1, 1])))
