import itertools
import math

import pytest
import torch

from lightning_ssc.functional import linear_cka
from lightning_ssc.functional.gram_sketch import (
    _sampled_pairs,
    gram_sketch,
    pairwise_sketch_cka,
    sketch_cka,
    sketch_cka_error,
)


def layers(n: int, count: int = 4) -> list[torch.Tensor]:
    """Features with long tails of eigenvalues, each layer made of the one before."""
    generator = torch.Generator().manual_seed(0)
    kept = [torch.randn(n, 400, generator=generator)]
    for _ in range(count - 1):
        mixed = kept[-1] @ torch.randn(400, 400, generator=generator) / 20
        kept.append((mixed + torch.randn(400, generator=generator)).relu())
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 10, 201])
def test_with_all_pairs_equals_linear_cka(n, dtype):
    for x1, x2 in itertools.combinations_with_replacement(layers(n), 2):
        x1, x2 = x1.to(dtype), x2.to(dtype)
        sketches = gram_sketch(x1 @ x1.T), gram_sketch(x2 @ x2.T)
        assert sketch_cka(*sketches) == pytest.approx(linear_cka(x1, x2), abs=1e-4)
        assert sketch_cka_error(*sketches) == 0


def test_the_stated_error_covers_the_true_one():
    ratios = []
    for pairs in (5_000, 20_000, 60_000):
        for x1, x2 in itertools.combinations(layers(500), 2):
            sketches = [gram_sketch(x @ x.T, pairs=pairs) for x in (x1, x2)]
            error = sketch_cka_error(*sketches)
            assert 0 < error < 0.02
            ratios.append(abs(sketch_cka(*sketches) - linear_cka(x1, x2)) / error)
    root_mean_square = math.sqrt(sum(r * r for r in ratios) / len(ratios))
    assert root_mean_square < 1.5  # about 1 for an honest standard error
    assert max(ratios) < 4


def test_of_a_layer_with_itself_is_exactly_one():
    x = layers(300)[0]
    sketch = gram_sketch(x @ x.T, pairs=10_000)
    assert sketch_cka(sketch, sketch) == pytest.approx(1.0, abs=1e-12)
    assert sketch_cka_error(sketch, sketch) == pytest.approx(0.0, abs=1e-7)


def test_the_standard_error_is_the_delta_method():
    x1, x2 = layers(60)[0], layers(60)[2]
    s1, s2 = (gram_sketch(x @ x.T, pairs=700) for x in (x1, x2))
    d1, d2, k1, k2 = (t.double() for t in (s1.diagonal, s2.diagonal, s1.pairs, s2.pairs))
    pairs, kept = 60 * 59 / 2, 700

    def ratio(weights: torch.Tensor) -> torch.Tensor:
        """CKA where pair p stands for weights[p] pairs."""
        inner, norm1, norm2 = (
            d @ e + 2 * (weights * k * m).sum() for d, e, k, m in ((d1, d2, k1, k2), (d1, d1, k1, k1), (d2, d2, k2, k2))
        )
        return inner / (norm1 * norm2).sqrt()

    weights = torch.full((kept,), pairs / kept, dtype=torch.float64, requires_grad=True)
    value = ratio(weights)
    (slope,) = torch.autograd.grad(value, weights)
    influence = slope * pairs / kept
    error = (kept * influence.var(correction=0) * (1 - kept / pairs)).sqrt()
    assert sketch_cka(s1, s2) == pytest.approx(value.item(), abs=1e-12)
    assert sketch_cka_error(s1, s2) == pytest.approx(error.item(), rel=1e-6)


def test_pairwise_is_pair_by_pair(monkeypatch):
    monkeypatch.setattr("lightning_ssc.functional.gram_sketch._BLOCK", 999)
    sketches = [gram_sketch(x @ x.T, pairs=5000) for x in layers(200)]
    values = pairwise_sketch_cka(sketches)
    assert values.shape == (4, 4)
    for i, a in enumerate(sketches):
        for j, b in enumerate(sketches):
            assert sketch_cka(a, b) == pytest.approx(values[i, j].item(), abs=1e-12)
    rectangle = pairwise_sketch_cka(sketches[:1], sketches[1:])
    torch.testing.assert_close(rectangle, values[:1, 1:], rtol=0, atol=1e-12)


def test_labels_in_order_do_not_mislead_the_sample():
    n, classes = 600, 6
    for labels in (torch.arange(n) % classes, torch.arange(n) * classes // n):
        same = (labels[:, None] == labels).double()
        other = (labels[:, None] % 2 == labels % 2).double()
        sketches = [gram_sketch(gram, pairs=9_000) for gram in (same, other)]
        exact = linear_cka(torch.eye(classes)[labels], torch.eye(2)[labels % 2])
        assert abs(sketch_cka(*sketches) - exact) < 4 * sketch_cka_error(*sketches)


def test_size_is_what_it_says():
    x = layers(725)[0]
    sketch = gram_sketch(x @ x.T)
    assert (sketch.pairs.shape, sketch.pairs.dtype) == ((1 << 18,), torch.float16)
    assert (sketch.diagonal.shape, sketch.diagonal.dtype) == ((725,), torch.float32)


def test_does_not_depend_on_scale_or_centring():
    x = layers(100)[0]
    centred = x - x.mean(0)
    raw, scaled = gram_sketch(x @ x.T), gram_sketch(1e6 * centred @ centred.T)
    torch.testing.assert_close(raw.pairs, scaled.pairs, rtol=0, atol=1e-3)
    torch.testing.assert_close(raw.diagonal, scaled.diagonal, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_of_a_constant_gram_is_nan(value):
    x = layers(50)[0]
    constant = gram_sketch(torch.full((50, 50), value))
    for other in (gram_sketch(x @ x.T), constant):
        assert math.isnan(sketch_cka(constant, other))
        assert math.isnan(sketch_cka_error(constant, other))
        assert math.isnan(pairwise_sketch_cka([constant], [other]).item())


@pytest.mark.parametrize(("n", "count"), [(2, 1), (5, 10), (40, 780), (40, 77), (1000, 1 << 18)])
def test_pairs_are_distinct_and_off_the_diagonal(n, count):
    i, j = _sampled_pairs(n, count)
    assert len(i) == len(j) == count
    assert bool((i != j).all())
    assert len(set(zip(torch.minimum(i, j).tolist(), torch.maximum(i, j).tolist(), strict=True))) == count
    times = torch.bincount(torch.cat([i, j]), minlength=n)  # no input is left out or favoured
    assert bool(((times - 2 * count / n).abs() < 5 * math.sqrt(2 * count / n)).all())


def test_pairs_stay_what_they_were():
    """Sketches of different runs compare only while this sample is the same."""
    i, j = _sampled_pairs(10, 5)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(1, 0), (4, 1), (7, 0), (9, 3), (8, 7)]


def test_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    gram_sketch(torch.eye(77), pairs=100)
    assert torch.equal(state, torch.get_rng_state())


def test_bad_input():
    broken = torch.eye(5)
    broken[3, 3] = math.nan
    for gram, message in (
        (torch.zeros(4, 5), r"gram must be a square .* got shape \(4, 5\)"),
        (torch.zeros(1, 1), "gram must have at least 2 inputs, got 1"),
        (broken, "gram holds NaN or infinity, first in row 3"),
        (torch.ones(5, 5, dtype=torch.long), "gram must hold floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            gram_sketch(gram)
    with pytest.raises(ValueError, match="pairs must be at least 1, got 0"):
        gram_sketch(torch.eye(5), pairs=0)
    five = gram_sketch(torch.eye(5))
    for of_two in (sketch_cka, sketch_cka_error, lambda one, other: pairwise_sketch_cka([one], [other])):
        with pytest.raises(ValueError, match="first sketch has 5 inputs but another has 6: both must see the same"):
            of_two(five, gram_sketch(torch.eye(6)))
        with pytest.raises(ValueError, match="keeps 10 pairs but another 3: sketch all Grams with the same `pairs`"):
            of_two(five, gram_sketch(torch.eye(5), pairs=3))
    with pytest.raises(ValueError, match="at least one sketch"):
        pairwise_sketch_cka([five], [])
