"""How results move with tau, with the number of inputs, with their draw and with the paper's own setting.

``python -m recipes.sensitivity --weights DIR --data.root ROOT`` takes an early and the last block of the public ResNets
of recipes.public_weights, whose Grams over all images are formed once; every draw of inputs is a part of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from lightning_ssc.capture import Probe, Runner, capture, make_probe, trace
from lightning_ssc.capture.probe import balanced
from lightning_ssc.functional import affinity, class_affinity, modularity, self_expression
from lightning_ssc.functional.advice import collected
from recipes.converged import Images, last_block
from recipes.data import CIFAR10
from recipes.public_weights import as_published, public_resnet
from recipes.tables import write_table

SETTINGS: dict[str, dict[str, Any]] = {
    "paper: raw, ADMM, 100 iterations": {"preset": "paper"},
    "raw, exact": {"normalize": False},
    "unit length, ADMM, 100 iterations": {"solver": "admm", "max_iter": 100},
    "unit length, exact": {},
}
EARLY = "layer1.0"
_OUTCOMES = ("modularity", "ssc_label", "neighbours", "gap", "seconds")


@dataclass
class Block:
    """A block of a network and the Gram of its outputs over all images.

    Attributes:
        network: Name of the network.
        layer: Which block.
        gram: ``(N, N)`` raw Gram.
        labels: ``(N,)`` classes.
    """

    network: str
    layer: str
    gram: Tensor
    labels: Tensor


def blocks_of(depth: int, weights: Path, probe: Probe, memory: int) -> Iterator[Block]:
    """An early and the last block of a public network, one after the other."""
    runner = Runner(public_resnet(depth, weights), memory=memory)
    names = {EARLY: "first block", last_block(depth): "last block"}
    layers = trace(runner, list(names), probe.inputs)
    assert probe.labels is not None
    for layer, gram in capture(runner, layers, probe.inputs):
        yield Block(f"ResNet-{depth}", names[layer.label], gram.raw_(), probe.labels)


def draws_of(labels: Tensor, size: int, draws: int) -> Iterator[Tensor]:
    """Places of so many inputs, an equal share of each class, drawn several times; of all inputs there is one draw."""
    for seed in range(draws if size < len(labels) else 1):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        yield order[balanced(labels[order], size)].sort().values


def outcome(gram: Tensor, labels: Tensor, how: Mapping[str, Any]) -> dict[str, float]:
    """What comes out of the graph of some inputs, solved in some way."""
    started = time.perf_counter()
    with collected():  # the advice against complete graphs, which are among what is compared here
        solved = self_expression(gram=gram, **how)
    seconds = time.perf_counter() - started
    graph = affinity(solved.coef)
    shares = class_affinity(graph, labels)
    return {
        "modularity": modularity(graph, labels),
        "ssc_label": float((shares.argmax(1) == labels).double().mean()),
        "neighbours": solved.coef.values().numel() / len(labels),
        "gap": float(solved.gap.max()),
        "seconds": seconds,
    }


def line_of(block: Block, size: int, draws: int, how: Mapping[str, Any]) -> dict[str, object]:
    """Means over the draws, and the standard deviations of what a draw moves."""
    found = [
        outcome(block.gram[chosen][:, chosen], block.labels[chosen], how)
        for chosen in draws_of(block.labels, size, draws)
    ]
    line: dict[str, object] = {"network": block.network, "layer": block.layer, "inputs": size, "draws": len(found)}
    line |= {name: float(np.mean([each[name] for each in found])) for name in _OUTCOMES}
    spread = {f"{name}_spread": [each[name] for each in found] for name in ("modularity", "ssc_label")}
    return line | {name: float(np.std(of, ddof=1)) if len(of) > 1 else np.nan for name, of in spread.items()}


def sensitivity(
    weights: Path,
    data: Images = Images(),  # noqa: B008  (a value)
    depths: Sequence[int] = (20, 56),
    taus: Sequence[float] = (5, 10, 30, 100),
    sizes: Sequence[int] = (500, 1000, 2000, 5000, 10_000),
    draws: int = 5,
    out: Path = Path("recipes/results/sensitivity"),
    memory: int = 5_000_000_000,
) -> None:
    """How results move with tau, with the number of inputs, with their draw and with the paper's own setting.

    Args:
        weights: Folder of resnet20.th and resnet56.th.
        data: Where CIFAR-10 is.
        depths: Which networks.
        taus: Weights of the fit, tried on the second of the sizes.
        sizes: Numbers of inputs, ascending; settings of the solver are compared on the first.
        draws: Draws of the inputs.
        out: Where tables are written.
        memory: Bytes that activations and Grams may take.
    """
    source = CIFAR10(data.root)
    source.prepare_data()
    _, test, _ = source.load()
    probe = make_probe(as_published(test), sizes[-1])
    lines: dict[str, list[dict[str, object]]] = {"tau": [], "inputs": [], "settings": []}
    for depth in depths:
        for block in blocks_of(depth, weights, probe, memory):
            for tau in taus:
                lines["tau"].append({"tau": tau} | line_of(block, sizes[1], draws, {"tau": tau}))
            lines["inputs"] += [line_of(block, size, draws, {}) for size in sizes]
            for setting, how in SETTINGS.items():
                lines["settings"].append({"setting": setting} | line_of(block, sizes[0], draws, how))
    out.mkdir(parents=True, exist_ok=True)
    for name, table in lines.items():
        write_table(out / f"{name}.csv", table)
    print(f"Tables: {out}")


if __name__ == "__main__":
    auto_cli(sensitivity, as_positional=False)
