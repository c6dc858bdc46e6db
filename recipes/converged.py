"""The paper's findings on converged networks, without training.

``python -m recipes.converged --weights DIR --data.root ROOT`` takes the public ResNets of recipes.public_weights, runs
test images through them, and writes tables and pictures: table 1, figure 4 (every convolution, three depths), figure 8
(embeddings of six layers), figure 9 (the confidently wrong), and modularity by depth; beside SSC-CKA the same for
linear CKA. Beside a number stands its interval over draws of the inputs, and what chance gives: shuffled labels, inputs
in another order, untrained weights. Snapshots are kept under ``--runs``: what is there is not taken again.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from torch import nn

from lightning_ssc import Snapshot, SnapshotStore, plots, snapshot
from lightning_ssc.analysis import inputs, similarity
from lightning_ssc.analysis.dynamics import Table
from lightning_ssc.capture import Probe, Runner, capture, make_probe, trace
from lightning_ssc.functional import class_affinity, modularity, pairwise_cka
from recipes import drawing
from recipes.data import CIFAR10, Split
from recipes.heatmaps import statistics
from recipes.models import cifar_resnet
from recipes.public_weights import as_published, check_accuracy, public_resnet
from recipes.resampling import (
    bootstrap_cka,
    bootstrap_counts,
    bootstrap_modularity,
    interval,
    permuted_cka,
    shuffled_modularity,
)
from recipes.tables import write_table

COST = "cost.json"
LAYERS_OF_FIGURE_8 = 6
_CONTROL = 1000  # inputs of untrained networks, and of whole Grams
_SHUFFLES = 20


@dataclass
class Images:
    """Where the images are.

    Attributes:
        root: Folder that holds torchvision's copy of CIFAR-10, or receives it.
    """

    root: str = "data"


@dataclass
class Network:
    """A converged network and what its layers make of the probe."""

    depth: int
    taken: Snapshot

    @property
    def name(self) -> str:
        """As in the article."""
        return f"ResNet-{self.depth}"

    @property
    def convolutions(self) -> list[str]:
        """In the order in which they run."""
        return [name for name in self.taken.layers if "conv" in name or name.startswith("stem")]

    @property
    def last_layers(self) -> dict[str, str]:
        """The layers from which inputs may be read, by what they are."""
        return {
            "last convolution": self.convolutions[-1],
            "last block": last_block(self.depth),
            "classifier": "classifier",
        }


def last_block(depth: int) -> str:
    """Name of the last residual block."""
    return f"layer3.{depth // 6 - 1}"


def watched(depth: int, every: bool = True) -> list[str]:
    """Every convolution in the order in which it runs, or the last one; the last block and the classifier."""
    block = last_block(depth)
    return [*(("stem.0", "layer*.*.conv*") if every else (f"{block}.conv2",)), block, "classifier"]


def snapshot_of(folder: Path, network: nn.Module, layers: Sequence[str], probe: Probe, memory: int) -> Snapshot:
    """The graphs of a network over a probe, from its folder or, the first time, taken and kept there.

    Args:
        folder: Where it is kept.
        network: The network.
        layers: Which of its layers.
        probe: The inputs.
        memory: Bytes that activations and Grams may take.

    Raises:
        ValueError: The folder holds a snapshot of other inputs.
    """
    store = SnapshotStore(folder)
    if not store.steps:
        started, worked = time.perf_counter(), time.process_time()
        taken = snapshot(network, probe.inputs, probe.labels, layers, memory=memory)
        store.save(taken)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - worked}
        cost = {**seconds, "peak_bytes": peak, "stages": taken.seconds}
        (store.root / COST).write_text(json.dumps(cost))
    taken = store.load(step=store.steps[-1])
    if taken.probe != probe.fingerprint:
        raise ValueError(f"{store.root} holds a snapshot of other images: move it away, or name another --runs")
    return replace(taken, indices=probe.indices)


def table1(networks: Sequence[Network], draws: int) -> Iterator[Mapping[str, object]]:
    """Table 1: how often the class of most affinity is the input's, and the network's prediction."""
    for network in networks:
        labels = network.taken.labels
        assert labels is not None
        counts = bootstrap_counts(len(labels), draws)
        for role, layer in network.last_layers.items():
            found = inputs(network.taken, layer)
            right, alike = found.ssc_labels == found.labels, found.ssc_labels == found.predictions
            line = {"network": network.name, "inputs": len(labels), "layer": role, "ssc_label": found.ssc_accuracy}
            line["ssc_label_low"], line["ssc_label_high"] = interval(counts @ right / len(labels))
            line |= {"network_prediction": found.network_accuracy, "alike": found.agreement}
            line["alike_low"], line["alike_high"] = interval(counts @ alike / len(labels))
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
            shares = class_affinity(network.taken.layers[layer].affinity, labels[order])
            line["ssc_label_of_shuffled"] = float((shares.argmax(1) == labels[order]).double().mean())
            yield line


def modularities(networks: Sequence[Network], draws: int) -> Iterator[Mapping[str, object]]:
    """Modularity of the classes by depth, with its interval and what shuffled labels give at most."""
    for network in networks:
        labels = network.taken.labels
        assert labels is not None
        counts = bootstrap_counts(len(labels), draws)
        for place, layer in enumerate(network.convolutions, start=1):
            graph = network.taken.layers[layer].affinity
            low, high = interval(bootstrap_modularity(graph, labels, counts))
            yield {
                "network": network.name,
                "convolution": place,
                "layer": layer,
                "modularity": modularity(graph, labels),
                "low": low,
                "high": high,
                "of_shuffled": float(shuffled_modularity(graph, labels, _SHUFFLES).max()),
                "neighbours": float(graph.crow_indices()[-1]) / len(labels),
            }


def heatmap_statistics(
    networks: Sequence[Network], untrained: Mapping[int, Snapshot], draws: int
) -> Iterator[Mapping[str, object]]:
    """Chess board and blocks of every heatmap, with their intervals, beside those of untrained weights."""
    for network in networks:
        layers = network.convolutions
        graphs = [network.taken.layers[layer].affinity for layer in layers]
        drawn = bootstrap_cka(graphs, bootstrap_counts(len(graphs[0]), draws))
        of_draws = [statistics(matrix, layers) for matrix in drawn]
        for measure in ("ssc", "linear"):
            found = statistics(heatmap_of(network.taken, layers, measure), layers)
            control = statistics(heatmap_of(untrained[network.depth], layers, measure), layers)
            for name, value in found.items():
                line = {"network": network.name, "cka": measure, "statistic": name, "value": value}
                low, high = interval(np.array([of[name] for of in of_draws])) if measure == "ssc" else (np.nan, np.nan)
                yield line | {"low": low, "high": high, "untrained": control[name]}


def heatmap_of(taken: Snapshot, layers: Sequence[str], measure: str) -> Table:
    """``(L, L)`` similarity of these layers."""
    every = similarity(taken)
    chosen = [every.rows.index(layer) for layer in layers]
    table: Table = getattr(every, measure)[np.ix_(chosen, chosen)]
    return table


def estimators(network: Network, weights: Path, probe: Probe, memory: int) -> Iterator[Mapping[str, object]]:
    """Biased and unbiased HSIC on a network's convolutions, as they are and with inputs in another order."""
    graphs = [network.taken.layers[layer].affinity for layer in network.convolutions]
    runner = Runner(public_resnet(network.depth, weights), memory=memory)
    layers = trace(runner, network.convolutions, probe.inputs)
    grams = [gram.centred.clone() for _, gram in capture(runner, layers, probe.inputs)]
    for measure, matrices in (("ssc", graphs), ("linear", grams)):
        pairs = np.triu_indices(len(matrices), 1)
        line: dict[str, object] = {"network": network.name, "cka": measure, "inputs": len(matrices[0])}
        biased, unbiased = (pairwise_cka(matrices, unbiased=which).numpy()[pairs] for which in (False, True))
        line |= {"biased": biased.mean(), "unbiased": unbiased.mean()}
        line["largest_difference"] = np.abs(biased - unbiased).max()
        for which in (False, True):
            chance = permuted_cka(matrices, unbiased=which)
            name = "unbiased" if which else "biased"
            line |= {f"permuted_{name}": chance.mean(), f"permuted_{name}_largest": np.abs(chance).max()}
        yield line


def confidently_wrong(network: Network, count: int = 12) -> Iterator[Mapping[str, object]]:
    """The inputs that a network is most sure of and wrong about, as its last convolution sees them."""
    found = inputs(network.taken, network.convolutions[-1])
    assert found.predictions is not None
    assert found.confidence is not None
    wrong = found.predictions != found.labels
    alike = found.ssc_labels == found.predictions
    for place in found.confidently_wrong(count):
        yield {
            "network": network.name,
            "input": int(found.indices[place]),
            "class": int(found.labels[place]),
            "prediction": int(found.predictions[place]),
            "score": float(found.confidence[place]),
            "ssc_label": int(found.ssc_labels[place]),
            "share_of_prediction": float(found.shares[place, found.predictions[place]]),
            "share_of_class": float(found.shares[place, found.labels[place]]),
            "wrong_in_all": int(wrong.sum()),
            "of_them_ssc_label_is_prediction": float(alike[wrong].mean()),
        }


def costs(networks: Sequence[Network], folders: Mapping[int, Path]) -> Iterator[Mapping[str, object]]:
    """What the snapshots took."""
    for network in networks:
        cost = json.loads((folders[network.depth] / COST).read_text())
        labels = network.taken.labels
        assert labels is not None
        line = {"network": network.name, "layers": len(network.taken.layers), "inputs": len(labels)}
        line |= {"seconds": cost["seconds"], "processor_seconds": cost.get("processor_seconds", float("nan"))}
        line["peak_gb"] = cost["peak_bytes"] / 1e9
        yield line | {stage: cost["stages"][stage] for stage in ("forward", "gram", "solve")}


def draw(networks: Sequence[Network], test: Split, class_names: Sequence[str], folder: Path) -> None:
    """Figures 4, 8 and 9 and modularity by depth, as PNG files."""
    for measure, label in (("ssc", "SSC-CKA (biased HSIC)"), ("linear", "linear CKA (biased HSIC)")):
        panels = [(of.name, heatmap_of(of.taken, of.convolutions, measure), of.convolutions) for of in networks]
        drawing.heatmaps(folder / f"heatmaps_{measure}.png", panels, label=label, blocks=False)
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for network in networks:
        values = [network.taken.layers[layer].values["modularity"] for layer in network.convolutions]
        axes.plot(np.linspace(0, 1, len(values)), values, ".-", label=network.name)
    axes.set(xlabel="depth of the convolution, from first to last", ylabel="modularity", ylim=(0, None))
    axes.legend()
    figure.savefig(folder / "modularity.png", dpi=90)
    deepest = networks[-1]
    chosen = [deepest.convolutions[i] for i in plots.evenly(len(deepest.convolutions), LAYERS_OF_FIGURE_8)]
    drawing.embeddings(folder / "embeddings.png", deepest.taken, chosen, class_names)
    assert deepest.taken.indices is not None
    pictures = test.images[deepest.taken.indices].permute(0, 2, 3, 1).numpy()
    drawing.confidently_wrong_input(folder / "confidently_wrong.png", deepest.taken, chosen[-1], pictures, class_names)


def converged(
    weights: Path,
    data: Images = Images(),  # noqa: B008  (a value)
    size: int = 10_000,
    depths: Sequence[int] = (20, 44, 56),
    every_convolution: bool = True,
    runs: Path = Path("runs/converged"),
    out: Path = Path("recipes/results/converged"),
    draws: int = 200,
    memory: int = 5_000_000_000,
) -> None:
    """The paper's findings on converged networks, without training.

    Args:
        weights: Folder of resnet20.th, resnet44.th and resnet56.th.
        data: Where CIFAR-10 is.
        size: Test images, drawn with an equal share for every class.
        depths: Which networks, ascending.
        every_convolution: Watch every convolution. Without, the last one, the last block and the classifier are enough
            for table 1 and the confidently wrong inputs, and take a small part of the time.
        runs: Where snapshots are kept.
        out: Where tables and pictures are written, in a folder named by the number of images.
        draws: Draws of the inputs behind each interval.
        memory: Bytes that activations and Grams may take.
    """
    source = CIFAR10(data.root)
    source.prepare_data()
    _, test, class_names = source.load()
    probe, control = (make_probe(as_published(test), count) for count in (size, min(size, _CONTROL)))
    which = "" if every_convolution else "_last_layers"
    folders = {depth: runs / f"resnet{depth}_{len(probe)}{which}" for depth in depths}
    networks = []
    for depth, kept in folders.items():
        network = public_resnet(depth, weights)
        taken = snapshot_of(kept, network, watched(depth, every_convolution), probe, memory)
        assert taken.predictions is not None
        assert taken.labels is not None
        check_accuracy(depth, taken.predictions, taken.labels)
        networks.append(Network(depth, taken))
    tables = {
        "table1": table1(networks, draws),
        "confidently_wrong": (line for network in networks for line in confidently_wrong(network)),
        "costs": costs(networks, folders),
    }
    if every_convolution:
        untrained = {
            depth: snapshot_of(runs / f"untrained{depth}_{len(control)}", random, watched(depth), control, memory)
            for depth, random in ((depth, untrained_resnet(depth)) for depth in depths)
        }
        tables |= {
            "modularity": modularities(networks, draws),
            "statistics": heatmap_statistics(networks, untrained, draws),
            "estimators": (line for network in networks for line in estimators(network, weights, control, memory)),
        }
    folder = out / f"n{len(probe)}{which}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in tables.items():
        write_table(folder / f"{name}.csv", lines)
    if every_convolution:
        draw(networks, test, class_names, folder)
    print(f"Results: {folder}")


def untrained_resnet(depth: int) -> nn.Module:
    """The same network before training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cifar_resnet(depth=depth, shortcut="pad").eval()


if __name__ == "__main__":
    auto_cli(converged, as_positional=False)
