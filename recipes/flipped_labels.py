"""How well labels that were changed are found: ``python -m recipes.flipped_labels --weights DIR --data.root ROOT``.

Takes the late layers of a public ResNet (recipes.public_weights) over test images, changes the labels of some of them
at random, and asks who finds them: the classes of an input's neighbours and a linear probe fitted to all other inputs,
which know the changed labels alone, in the last block, in the last three, and as ``lightning-ssc labels`` asks, which
is the last block with the classifier. Beside them stands the softmax of the network, which was trained on clean labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jsonargparse import auto_cli
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lightning_ssc.capture import Returned, Runner, capture, make_probe, trace
from lightning_ssc.functional import affinity, class_affinity, self_expression
from lightning_ssc.functional.probes import margin, ridge_probe
from recipes.converged import Images, last_block
from recipes.data import CIFAR10
from recipes.public_weights import as_published, check_accuracy, public_resnet
from recipes.tables import markdown, write_table

CLASSES = 10
ASKED = {"last block": slice(-2, -1), "last three blocks": slice(-4, -1), "last block and classifier": slice(-2, None)}


def flipped(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Labels of which a share was changed to another class at random, and which.

    Example:
        >>> labels, changed = flipped(torch.zeros(1000).long(), 0.2, seed=0)
        >>> int(changed.sum()), bool((labels[changed] > 0).all()), bool((labels[~changed] == 0).all())
        (200, True, True)
    """
    generator = torch.Generator().manual_seed(seed)
    changed = torch.zeros(len(labels), dtype=torch.bool)
    changed[torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]] = True
    moved = torch.randint(1, CLASSES, labels.shape, generator=generator)
    return torch.where(changed, (labels + moved) % CLASSES, labels), changed


def found(doubt: Mapping[str, list[Tensor]], softmax: Tensor, changed: Tensor) -> dict[str, float]:
    """Area under the ROC curve of changed labels, by who is asked.

    Args:
        doubt: By what is asked, how far each layer doubts every label, ``(N,)`` a layer.
        softmax: ``(N,)`` the same of the network's softmax.
        changed: ``(N,)`` which labels were changed.
    """
    areas = {
        f"{what}, {where}": float(roc_auc_score(changed, torch.stack(of_layers[layers]).mean(0)))
        for where, layers in ASKED.items()
        for what, of_layers in doubt.items()
    }
    return {**areas, "softmax, trained on clean labels": float(roc_auc_score(changed, softmax))}


def flipped_labels(
    weights: Path,
    data: Images = Images(),  # noqa: B008  (a value)
    depth: int = 56,
    size: int = 2000,
    shares: Sequence[float] = (0.05, 0.2, 0.4),
    draws: int = 3,
    out: Path = Path("recipes/results/flipped_labels"),
    memory: int = 5_000_000_000,
) -> None:
    """How well changed labels are found, mean over draws of the changes.

    Args:
        weights: Folder of resnet56.th.
        data: Where CIFAR-10 is.
        depth: Which network.
        size: How many test images.
        shares: Shares of the labels that are changed.
        draws: Draws of the changes.
        out: Where the table is written.
        memory: Bytes that activations and Grams may take.
    """
    source = CIFAR10(data.root)
    source.prepare_data()
    _, test, _ = source.load()
    probe = make_probe(as_published(test), size)
    assert probe.labels is not None
    stage, _, number = last_block(depth).rpartition(".")
    runner = Runner(public_resnet(depth, weights), memory=memory)
    layers = [f"{stage}.{int(number) - back}" for back in (2, 1, 0)]
    watched = trace(runner, [*layers, "classifier"], probe.inputs)
    changes = {(share, draw): flipped(probe.labels, share, draw) for share in shares for draw in range(draws)}
    doubts: dict[tuple[float, int], dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    outputs: dict[int, Returned] = {}
    for layer, gram in capture(runner, watched, probe.inputs, outputs=outputs):
        print(layer.label, flush=True)
        for key, (labels, _) in changes.items():
            doubts[key]["linear probe"].append(-margin(ridge_probe(gram.centred, labels), labels))
        graph = affinity(self_expression(gram=gram.raw_()).coef)
        for key, (labels, _) in changes.items():
            doubts[key]["neighbours"].append(-margin(class_affinity(graph, labels), labels))
    softmax = torch.cat([outputs[start].rows for start in sorted(outputs)]).softmax(1)
    check_accuracy(depth, softmax.argmax(1), probe.labels)
    lines = []
    for share in shares:
        areas = [
            found(doubts[share, draw], -margin(softmax, labels), changed)
            for draw in range(draws)
            for labels, changed in [changes[share, draw]]
        ]
        for name in areas[0]:
            values = torch.tensor([of[name] for of in areas], dtype=torch.float64)
            lines.append(
                {"flipped": share, "asked": name, "auroc": float(values.mean()), "spread": float(values.std())}
            )
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / f"resnet{depth}_{size}.csv", lines)
    names = dict.fromkeys(str(line["asked"]) for line in lines)
    cells = {(line["asked"], line["flipped"]): f"{line['auroc']:.3f}" for line in lines}
    print(markdown(["asked", *(f"{share:.0%} flipped" for share in shares)],
                   [[name, *(cells[name, share] for share in shares)] for name in names]))  # fmt: skip


if __name__ == "__main__":
    auto_cli(flipped_labels, as_positional=False)
