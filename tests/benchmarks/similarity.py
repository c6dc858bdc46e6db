"""Similarity of layers: this project beside pytorch-cka and torch-cka, and the time its own measures take.

    python tests/benchmarks/similarity.py --data ROOT     (ROOT as torchvision.datasets.CIFAR10 wants it)

The peers (pytorch-cka 1.1, torch-cka 0.21 with seaborn and pandas) are optional and skipped where absent. They compute
linear CKA by the unbiased estimator on one batch, here the whole probe; so does ours beside them. Errors are against
the definitions written out in float64, on activations copied as each layer puts them out.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that wait must not take the other's core

import argparse
import contextlib
import io
import itertools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from activations import images, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_ssc.capture import Runner, capture, trace
from lightning_ssc.functional import affinity, cka, linear_cka, modularity, pairwise_cka, self_expression
from lightning_ssc.functional.gram_sketch import gram_sketch, pairwise_sketch_cka, sketch_cka_error

T = TypeVar("T")
NAMES = ["0.0", *(name for block in range(1, 10) for name in (f"{block}.bn1", f"{block}")), "10"]  # as they run


def timed(work: Callable[[], T], repeats: int = 1) -> tuple[float, T]:
    """Seconds of the fastest of several calls, and the result of the last one."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def random_graph(n: int, neighbours: int, seed: int) -> Tensor:
    """A graph with about so many neighbours an input."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(n).repeat_interleave(neighbours // 2)
    columns = torch.randint(n, rows.shape, generator=generator)
    values = torch.rand(rows.shape, generator=generator)
    return affinity(torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (n, n)))


def table_of_times() -> None:
    """The measures on graphs of the sizes that the project promises."""
    one, other = random_graph(10_000, 40, 0), random_graph(10_000, 40, 1)
    labels = torch.randint(10, (10_000,), generator=torch.Generator().manual_seed(0))
    many = [random_graph(1000, 40, seed) for seed in range(104)]
    print(f"N = 10,000, {one.values().numel() / 10_000:.0f} entries a row")
    print(f"  modularity    {timed(lambda: modularity(one, labels), 5)[0]:8.3f} s   (target 0.1)")
    print(f"  cka           {timed(lambda: cka(one, other), 5)[0]:8.3f} s   (target 0.1)")
    print(f"104 graphs, N = 1000, {many[0].values().numel() / 1000:.0f} entries a row")
    print(f"  pairwise_cka  {timed(lambda: pairwise_cka(many), 3)[0]:8.3f} s   (target 1)")


def features_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Copies of what the layers put out, in float64."""
    kept: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: kept.__setitem__(name, output.flatten(1).double())

    handles = [modules[name].register_forward_hook(keep(name)) for name in NAMES]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return [kept[name] for name in NAMES]


def gram_of_centred(x: Tensor) -> Tensor:
    """Gram of features in float64, which would lose digits too if large means were left to the estimators to remove."""
    x = x.double() - x.double().mean(0)
    return x @ x.T


def reference(matrices: list[Tensor], unbiased: bool) -> Tensor:
    """CKA of all pairs by the definitions: centring matrices (Eq. 4), or HSIC_1 as printed in Song et al. 2012."""
    n = len(matrices[0])
    if unbiased:
        ready = [matrix - torch.diag(matrix.diagonal()) for matrix in matrices]
    else:
        h = torch.eye(n, dtype=torch.float64) - 1 / n
        ready = [h @ matrix @ h for matrix in matrices]
    hsic = torch.zeros(len(ready), len(ready), dtype=torch.float64)
    for i, k in enumerate(ready):
        for j, el in enumerate(ready):
            hsic[i, j] = (k * el).sum()
            if unbiased:
                hsic[i, j] += k.sum() * el.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ el.sum(0))
    return hsic / torch.outer(hsic.diagonal(), hsic.diagonal()).sqrt()


def report(name: str, seconds: float, result: Tensor, truth: Tensor, fastest: float | None = None) -> None:
    ratio = "" if fastest is None else f"{seconds / fastest:7.1f} x ours"
    error = (result.double() - truth).abs()
    print(
        f"  {name:34} {seconds:8.2f} s{ratio:15} largest error {error.max():.1e}, mean {error.mean():.1e}", flush=True
    )


def layers_by_layers(model: nn.Module, x: Tensor) -> None:
    """Heatmaps of all layers by all layers, forward pass included."""
    n = len(x)
    modules = dict(model.named_modules())
    in_place = [module for module in modules.values() if getattr(module, "inplace", False)]
    print(f"{len(NAMES)} layers, N = {n}: stem, inside and after each block; {len(in_place)} ReLUs work in place")
    features = features_of(model, x)
    kernels = [gram_of_centred(layer) for layer in features]
    truth, truth_biased = reference(kernels, unbiased=True), reference(kernels, unbiased=False)

    def grams() -> list[Tensor]:
        layers = trace(Runner(model), NAMES, x)
        return [gram.centred for _, gram in capture(Runner(model), layers, x)]

    ours, result = timed(lambda: pairwise_cka(grams(), unbiased=True))
    report("linear CKA, unbiased, ours", ours, result, truth)
    loader = DataLoader(TensorDataset(x, torch.zeros(n)), batch_size=n)
    with contextlib.suppress(ImportError):
        from cka import compute_cka

        seconds, results = timed(lambda: compute_cka(model, model, loader, layers=NAMES, device="cpu", progress=False))
        report("linear CKA, pytorch-cka", seconds, results[0], truth, ours)
    with contextlib.suppress(ImportError):
        from torch_cka import CKA

        def compare() -> Tensor:
            peer = CKA(model, model, model1_layers=NAMES, model2_layers=NAMES, device="cpu")
            with torch.no_grad():
                peer.compare(loader)
            result: Tensor = peer.export()["CKA"]
            return result

        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            seconds, result = timed(compare)
        report("linear CKA, torch-cka", seconds, result, truth, ours)
    kept = grams()
    seconds, result = timed(lambda: pairwise_cka(kept))
    report("linear CKA, biased, from Grams", seconds, result, truth_biased)
    seconds, sketches = timed(lambda: [gram_sketch(gram) for gram in kept])
    print(f"  sketching all Grams                {seconds:8.2f} s")
    seconds, values = timed(lambda: pairwise_sketch_cka(sketches))
    report("linear CKA, biased, from sketches", seconds, values, truth_biased)
    error = max(sketch_cka_error(*pair) for pair in itertools.combinations(sketches, 2))
    print(f"{'':46} stated error up to {error:.1e}, {sketches[0].pairs.numel() * 2 / 1e6:.2f} MB a layer")
    seconds, graphs = timed(lambda: [affinity(self_expression(layer).coef) for layer in features])
    print(f"  solving all graphs                 {seconds:8.2f} s")
    seconds, result = timed(lambda: pairwise_cka(graphs))
    report("SSC-CKA, ours", seconds, result, reference([graph.to_dense() for graph in graphs], unbiased=False))


def far_from_zero() -> None:
    """Features whose mean is 1000 standard deviations away, which float32 Grams drown in."""
    generator = torch.Generator().manual_seed(0)
    x1 = torch.randn(500, 64, generator=generator)
    x2 = x1[:, :32] + torch.randn(500, 32, generator=generator)
    x1, x2 = x1 + 1000, x2 + 1000
    truth = reference([gram_of_centred(x1), gram_of_centred(x2)], unbiased=True)[0, 1]
    print("N = 500, means 1000 standard deviations away")
    seconds, result = timed(lambda: linear_cka(x1, x2, unbiased=True), 5)
    report("linear_cka, unbiased, ours", seconds, torch.tensor(result), truth)
    with contextlib.suppress(ImportError):
        from cka import cka_from_features

        peer, features = timed(lambda: cka_from_features(x1, x2), 5)
        report("cka_from_features, pytorch-cka", peer, features, truth, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="root of torchvision's CIFAR10; without it only the timings run")
    parser.add_argument("-n", type=int, default=1000, help="probe inputs of the heatmaps")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    table_of_times()
    far_from_zero()
    if options.data is not None:
        model = next(train(options.data, epochs=1, count=5000))
        layers_by_layers(model, images(options.data, train=False)[0][: options.n])


if __name__ == "__main__":
    main()
