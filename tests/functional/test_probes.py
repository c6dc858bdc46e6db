"""Probes, neural collapse and health of a layer against plain definitions and N refits, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_ssc.functional.collapse import neural_collapse, self_duality
from lightning_ssc.functional.health import idle_features, participation_ratio, rankme, sample
from lightning_ssc.functional.probes import margin, nearest_neighbour, ridge_probe

N, CLASSES = 45, 4


@pytest.fixture(params=[3, 12, 60], ids="{} features".format)
def layer(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Centred features and labels of classes of several sizes, named by numbers with holes."""
    generator = torch.Generator().manual_seed(request.param)
    labels = torch.arange(N) % 9 % CLASSES * 2 - 3
    means = 0.5 * torch.randn(12, request.param, dtype=torch.float64, generator=generator)
    x = means[labels] + torch.randn(N, request.param, dtype=torch.float64, generator=generator)
    return x - x.mean(0), labels


class TestNearestNeighbour:
    def test_is_the_nearest_other_one(self, layer: tuple[Tensor, Tensor]) -> None:
        x, _ = layer
        distances = torch.cdist(x, x).fill_diagonal_(torch.inf)
        assert torch.equal(nearest_neighbour(x @ x.T), distances.argmin(1))

    def test_of_more_inputs_than_are_held_at_once(self) -> None:
        x = torch.randn(600, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        assert torch.equal(nearest_neighbour(x @ x.T), distances.argmin(1))

    def test_needs_another_input(self) -> None:
        with pytest.raises(ValueError, match="at least 2 inputs"):
            nearest_neighbour(torch.ones(1, 1))


class TestRidgeProbe:
    @pytest.mark.parametrize("ridge", [1e-3, 1.0])
    def test_is_n_refits(self, layer: tuple[Tensor, Tensor], ridge: float) -> None:
        """With weights and an intercept, fitted to all other inputs by the normal equations."""
        x, labels = layer
        classes = labels.unique(return_inverse=True)[1]
        y = torch.nn.functional.one_hot(classes).double()
        penalty, expected = ridge * x.square().sum(1).mean(), []
        for i in range(N):
            keep = torch.arange(N) != i
            shift, mean = x[keep].mean(0), y[keep].mean(0)
            a, b = x[keep] - shift, y[keep] - mean
            weights = torch.linalg.solve(a.T @ a + penalty * torch.eye(x.shape[1], dtype=x.dtype), a.T @ b)
            expected.append((x[i] - shift) @ weights + mean)
        torch.testing.assert_close(ridge_probe(x @ x.T, labels, ridge), torch.stack(expected), rtol=0, atol=1e-9)

    def test_of_a_constant_layer_goes_by_the_sizes_of_classes(self) -> None:
        assert ridge_probe(torch.zeros(6, 6), torch.tensor([7, 7, 7, 7, 2, 2])).argmax(1).tolist() == [1] * 6

    def test_needs_a_penalty(self) -> None:
        with pytest.raises(ValueError, match="ridge must be positive"):
            ridge_probe(torch.eye(3), torch.arange(3), 0.0)


class TestMargin:
    def test_is_positive_where_the_class_is_right(self, layer: tuple[Tensor, Tensor]) -> None:
        x, labels = layer
        scores = ridge_probe(x @ x.T, labels)
        right = labels.unique()[scores.argmax(1)] == labels
        assert torch.equal(margin(scores, labels) > 0, right)
        assert right.any()

    def test_of_one_class_there_is_none(self) -> None:
        assert bool(margin(torch.ones(4, 1), torch.ones(4).long()).isnan().all())


class TestNeuralCollapse:
    def test_is_the_definition(self, layer: tuple[Tensor, Tensor]) -> None:
        x, labels = layer
        names, classes = labels.unique(return_inverse=True)
        means = torch.stack([x[labels == name].mean(0) for name in names])
        apart = means - means.mean(0)
        within = (x - means[classes]).T @ (x - means[classes]) / N
        nc1 = torch.trace(within @ torch.linalg.pinv(apart.T @ apart / len(names), rtol=1e-12)) / len(names)
        gram = apart @ apart.T
        frame = torch.eye(len(names), dtype=torch.float64) - 1 / len(names)
        nc2 = (gram / gram.norm() - frame / frame.norm()).norm()
        found = neural_collapse(x @ x.T, labels)
        assert float(found.variability) == pytest.approx(float(nc1), rel=1e-9)
        assert float(found.simplex) == pytest.approx(float(nc2), abs=1e-12)
        assert torch.equal(found.nearest_mean, names[torch.cdist(x, means).argmin(1)])

    def test_self_duality_is_the_definition(self, layer: tuple[Tensor, Tensor]) -> None:
        x, labels = layer
        means = torch.stack([x[labels == name].mean(0) for name in labels.unique()])
        weight = torch.randn(means.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        apart = means - means.mean(0)
        cosine = (weight * apart).sum() / (weight.norm() * apart.norm())
        assert float(self_duality(weight, means)) == pytest.approx(float(2 - 2 * cosine), abs=1e-12)
        assert math.isnan(self_duality(weight, torch.ones_like(means)))
        with pytest.raises(ValueError, match="weight and means must be"):
            self_duality(weight, means[:, 1:])

    def test_rounding_is_no_direction(self) -> None:
        """Three class means span two directions, in which alone variability is told."""
        generator, labels = torch.Generator().manual_seed(1), torch.arange(300) % 3
        x = torch.randn(3, 8, generator=generator)[labels] + 0.3 * torch.randn(300, 8, generator=generator)
        x = x - x.mean(0)
        single, double = (neural_collapse(of @ of.T, labels) for of in (x, x.double()))
        assert float(single.variability) == pytest.approx(float(double.variability), rel=1e-4)

    def test_where_classes_say_nothing_it_is_nan(self) -> None:
        alone, one_class = (
            neural_collapse(torch.eye(4), torch.arange(4)),
            neural_collapse(torch.eye(4), torch.ones(4).long()),
        )
        constant = neural_collapse(torch.zeros(4, 4), torch.tensor([0, 0, 1, 1]))
        for found in (alone.variability, one_class.variability, one_class.simplex, *constant[:2]):
            assert math.isnan(found)
        assert one_class.nearest_mean.tolist() == [1] * 4


class TestHealth:
    @pytest.mark.parametrize("rank", [1, 3, 7])
    def test_ranks_count_directions_of_equal_variance(self, rank: int) -> None:
        ones = torch.ones(30, 1, dtype=torch.float64)
        x = torch.randn(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x = torch.linalg.qr(torch.cat([ones, x], 1)).Q[:, 1 : rank + 1]
        assert float(participation_ratio(x @ x.T)) == pytest.approx(rank)
        assert float(rankme(x @ x.T)) == pytest.approx(rank)

    def test_rankme_is_the_definition(self, layer: tuple[Tensor, Tensor]) -> None:
        x, _ = layer
        values = torch.linalg.svdvals(x)
        shares = values[values > 1e-9] / values.sum()
        assert float(rankme(x @ x.T)) == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-6)

    def test_rankme_of_many_inputs_is_that_of_a_sample(self) -> None:
        x = torch.randn(80, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        part = x[sample(80, 20)]
        part = part - part.mean(0)
        assert float(rankme(x @ x.T, inputs=20)) == pytest.approx(float(rankme(part @ part.T)))

    def test_rounding_is_no_direction(self) -> None:
        x = torch.randn(200, 4, generator=torch.Generator().manual_seed(3))
        x = x - x.mean(0)
        assert float(rankme(x @ x.T)) == pytest.approx(float(rankme(x.double() @ x.double().T)), rel=1e-3)

    def test_of_inputs_all_alike_there_is_none(self) -> None:
        assert math.isnan(rankme(torch.ones(5, 5)))
        assert math.isnan(participation_ratio(torch.zeros(5, 5)))

    def test_a_sample_is_in_step_with_no_pattern(self) -> None:
        for period in (2, 3, 10):
            counts = torch.bincount(sample(1000, 256) % period)
            assert counts.min() > 0.7 * 256 / period
        assert len(sample(1000, 256).unique()) == 256


class TestIdleFeatures:
    def test_counts_what_does_not_vary(self) -> None:
        x = torch.randn(100, 50, generator=torch.Generator().manual_seed(4))
        x[:, 3:7], x[:, 10:15] = 0, 2.5
        x[99, 14], x[98, 6] = 2.6, 1e-3  # late, but they do
        x[:, 20] = -0.0
        found = idle_features(x)
        assert (found.constant, found.dead) == (8, 4)

    def test_rounding_is_no_variation(self) -> None:
        x = torch.full((20, 2), 3.0)
        x[::2] *= 1 + 2e-7
        assert idle_features(x).constant == 2

    @pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 33])
    def test_sees_every_row(self, n: int) -> None:
        for row in range(1, n):
            x = torch.zeros(n, 1)
            x[row] = 1
            assert idle_features(x).constant == 0
        assert idle_features(torch.zeros(n, 1)) == (1, 1)
