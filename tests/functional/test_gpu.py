"""The functional core on a GPU, pretend or real: results stay there, and equal those of the CPU."""

import pytest
import torch
from torch.testing import assert_close

from lightning_ssc.functional import (
    affinity,
    cka,
    class_affinity,
    communities,
    duality_gap,
    linear_cka,
    modularity,
    pairwise_cka,
    self_expression,
    spectral_embedding,
)
from lightning_ssc.functional.gram_sketch import gram_sketch, pairwise_sketch_cka, sketch_cka, sketch_cka_error
from lightning_ssc.functional.grams import centred_gram

CLASSES = 4


def samples(n=120, d=30, seed=0):
    """Noisy float64 samples near planes, one a class, and the classes."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    labels = torch.arange(n) % CLASSES
    bases = draw(CLASSES, 2, d)
    return torch.einsum("nk,nkd->nd", draw(n, 2), bases[labels]) + 0.05 * draw(n, d), labels


def graph(seed=0):
    return affinity(self_expression(samples(seed=seed)[0], tau=10.0).coef)


def same(on_gpu, on_cpu, gpu, **tolerances):
    """Whether a result on the GPU is there, and what the CPU makes of it."""
    assert on_gpu.device == gpu
    assert_close(on_gpu.cpu(), on_cpu, **(tolerances or {"rtol": 1e-9, "atol": 1e-9}))


@pytest.mark.parametrize("solver", ["active_set", "admm"])
def test_self_expression(gpu, solver):
    x, _ = samples()
    expected = self_expression(x, tau=10.0, solver=solver, tol=1e-10)
    found = self_expression(x.to(gpu), tau=10.0, solver=solver, tol=1e-10)
    assert found.converged == expected.converged
    for part in ("coef", "objective", "gap"):
        assert getattr(found, part).device == gpu
    assert_close(found.coef.cpu().to_dense(), expected.coef.to_dense(), rtol=0, atol=1e-5)
    assert_close(found.objective.cpu(), expected.objective, rtol=1e-5, atol=0)
    x = torch.nn.functional.normalize(x)
    assert_close(found.gap.cpu(), duality_gap(x @ x.T, found.coef.cpu(), 10.0)[1], rtol=0, atol=1e-9)


def test_duality_gap(gpu):
    x, _ = samples()
    gram = x @ x.T
    coef = self_expression(gram=gram, tau=5.0, normalize=False, max_iter=2).coef
    expected = duality_gap(gram, coef, 5.0)
    assert expected[1].max() > 1e-3
    for given in (coef, coef.to_dense()):
        for found, value in zip(duality_gap(gram.to(gpu), given.to(gpu), 5.0), expected, strict=True):
            same(found, value, gpu)


def test_a_start_and_alpha(gpu):
    x, _ = samples()
    expected = self_expression(x, alpha=4.0)
    diagonal = torch.eye(len(x), dtype=torch.float64, device=gpu)  # to be left out of the start
    for init in (expected.coef.to(gpu), expected.coef.to_dense().to(gpu) + diagonal):
        found = self_expression(x.to(gpu), alpha=4.0, init=init)
        assert found.n_iter <= 1 < expected.n_iter
        assert found.tau == pytest.approx(expected.tau)


def test_samples_that_rounding_stalls_are_finished_on_the_host(gpu):
    """All but equal samples in single precision, where the batched path alone leaves gaps near 1."""
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(1, 30, generator=g) + 1e-4 * torch.randn(100, 30, generator=g))
    found = self_expression(gram=(x @ x.T).to(gpu), tau=100.0, normalize=False)
    assert found.coef.device == gpu
    assert found.gap.max() <= 2e-5
    assert_close(found.gap.cpu(), duality_gap(x @ x.T, found.coef.cpu(), 100.0)[1], rtol=0, atol=1e-10)


def test_affinity(gpu):
    coef = self_expression(samples()[0], tau=10.0).coef
    found = affinity(coef.to(gpu))
    assert found.device == gpu
    assert_close(found.cpu().to_dense(), affinity(coef).to_dense())


def test_modularity_and_class_affinity(gpu):
    a, labels = graph(), samples()[1]
    assert modularity(a.to(gpu), labels.to(gpu)) == pytest.approx(modularity(a, labels), abs=1e-12)
    assert modularity(a.to(gpu), labels.tolist()) == pytest.approx(modularity(a, labels), abs=1e-12)
    same(class_affinity(a.to(gpu), labels.to(gpu)), class_affinity(a, labels), gpu)
    with pytest.raises(ValueError, match=r"labels are on cpu but affinity is on cuda:0"):
        modularity(a.to(gpu), labels)


def test_communities(gpu):
    same(communities(graph().to(gpu)), communities(graph()), gpu)


@pytest.mark.parametrize("normalized", [False, True])
def test_spectral_embedding(gpu, normalized):
    expected = spectral_embedding(graph(), 2, normalized=normalized)
    found = spectral_embedding(graph().to(gpu), 2, normalized=normalized)
    same(found, expected, gpu, rtol=0, atol=1e-6, equal_nan=True)


def test_cka(gpu):
    a, b = graph(0), graph(1)
    for unbiased in (False, True):
        expected = cka(a, b, unbiased=unbiased)
        assert cka(a.to(gpu), b.to(gpu), unbiased=unbiased) == pytest.approx(expected, abs=1e-12)
        assert cka(a.to(gpu), b.to(gpu).to_dense(), unbiased=unbiased) == pytest.approx(expected, abs=1e-12)
    table = pairwise_cka([a.to(gpu), b.to(gpu).to_dense()], [b.to(gpu)])
    same(table, pairwise_cka([a, b], [b]), gpu)


@pytest.mark.parametrize("d", [30, 300])
def test_linear_cka(gpu, d):
    x, y = samples(d=d)[0], samples(d=d, seed=1)[0]
    for unbiased in (False, True):
        found = linear_cka(x.to(gpu), y.to(gpu), unbiased=unbiased)
        assert found == pytest.approx(linear_cka(x, y, unbiased=unbiased), abs=1e-12)


def test_gram_sketches(gpu):
    x, y = (samples(seed=seed)[0] for seed in (0, 1))
    on_cpu = [gram_sketch(of @ of.T, pairs=2000) for of in (x, y)]
    on_gpu = [gram_sketch((of @ of.T).to(gpu), pairs=2000) for of in (x, y)]
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        same(found.diagonal, expected.diagonal, gpu, rtol=1e-6, atol=1e-6)
        same(found.pairs, expected.pairs, gpu, rtol=1e-3, atol=1e-3)
        assert found.cpu().pairs.device.type == "cpu"
    same(pairwise_sketch_cka(on_gpu), pairwise_sketch_cka(on_cpu), gpu, rtol=1e-4, atol=1e-4)
    for value in (sketch_cka, sketch_cka_error):
        assert value(*on_gpu) == pytest.approx(value(*on_cpu), rel=1e-4, abs=1e-4)


def test_centred_grams(gpu):
    x = samples(n=300)[0].float()
    expected, found = centred_gram(x.clone()), centred_gram(x.to(gpu))
    same(found.centred, expected.centred, gpu, rtol=1e-5, atol=1e-4)
    same(found.offset, expected.offset, gpu, rtol=1e-5, atol=1e-4)
    same(found.raw_(), expected.raw_(), gpu, rtol=1e-5, atol=1e-4)


class TestWaits:
    """How often the host waits for the device, so that a rise is seen."""

    def test_of_a_gram(self, pretend):
        """Whether it is finite, the length of the mean, and twice which features vary."""
        x = samples(n=600)[0].cuda()
        pretend.waits.clear()
        gram = centred_gram(x)
        assert pretend.waits.total() == 4
        gram.raw_()
        assert pretend.waits.total() == 4

    @pytest.mark.parametrize(("n", "steps"), [(120, 18), (1300, 26)])  # many samples have several tiles of a Gram
    def test_of_a_solve_grow_with_its_rounds_alone(self, pretend, n, steps):
        """Four times a round, once for each Newton step of a batch (as many as were counted), and 20 times besides."""
        x = samples(n=n)[0].cuda()
        pretend.waits.clear()
        rounds = self_expression(x, tau=5.0).n_iter
        assert pretend.waits["mask"] <= 4 + 1.2 * steps  # rounding may take another step
        assert pretend.waits.total() - pretend.waits["mask"] <= 16 + 4 * rounds

    def test_of_admm_are_one_an_iteration(self, pretend):
        x = samples()[0].cuda()
        waits = []
        for most in (20, 40):
            pretend.waits.clear()
            assert self_expression(x, solver="admm", tol=0.0, max_iter=most).n_iter == most
            waits.append(pretend.waits.total())
        assert waits[1] - waits[0] == 20
