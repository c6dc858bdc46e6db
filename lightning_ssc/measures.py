"""What is measured: one record a quantity, from which tags, tables, charts, page texts and the README's table are made.

A quantity is computed when a snapshot is taken and is kept with it; readers read it. To add one, add a record to
:data:`MEASURES`: nothing else has to know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_ssc.functional import modularity, pairwise_cka
from lightning_ssc.functional.gram_sketch import pairwise_sketch_cka, sketch_cka
from lightning_ssc.functional.graph import labelled
from lightning_ssc.functional.graph_cka import graph_cka

Over = Literal["layer", "previous", "reference", "final", "pair"]

_SIMILARITY = (0.0, 1.0)


@dataclass(frozen=True)
class Measure:
    """One quantity.

    Attributes:
        name: Its name in headers of snapshots, tables and CSV files.
        tag: Its tag in loggers, before the layer's name, of a monitor called ``ssc``; see :func:`tag`.
        over: What it is of: a ``"layer"``; a layer and itself at the ``"previous"``, a ``"reference"`` or the
            ``"final"`` snapshot; or every ``"pair"`` of layers.
        needs: What the function takes of a layer: ``groups``, the classes or communities ``(N,)`` that modularity is
            over; ``coef`` and ``affinity``, sparse CSR ``(N, N)``; ``gap``, ``(N,)``; ``graph``, a
            :class:`~lightning_ssc.functional.graph_cka.CentredGraph`; ``linear``, a
            :class:`~lightning_ssc.functional.gram_sketch.GramSketch`; ``labels``, the classes ``(N,)``; or ``gram``,
            the centred Gram, ``(N, N)``, which is there only before a layer is solved, and then with ``labels`` alone.
            Where one is missing there is no value. Of two layers and of pairs one part of a layer, but no labels.
        value: Of a layer ``f(**needs)``; of two ``f(one, other)``; both give a number. Of pairs ``f(of_all_layers)``, a
            table ``(L, L)``.
        title: Heading of its chart.
        axis: Label of its axis, with unit or estimator.
        meaning: What it tells, in a sentence or two.
        range: Where its axis begins and ends; ``None`` is left to the data.
        log: Whether its axis is logarithmic.
    """

    name: str
    tag: str
    over: Over
    needs: tuple[str, ...]
    value: Callable[..., Any]
    title: str
    axis: str
    meaning: str
    range: tuple[float | None, float | None] = (None, None)
    log: bool = False


def _modularity(affinity: Tensor, groups: Tensor) -> float:
    return modularity(*labelled(affinity, groups))


def _worst_gap(gap: Tensor) -> float:
    return float(gap.max())


def _effective_rank(gram: Tensor) -> Tensor:
    trace, norm = gram.diagonal().sum(dtype=torch.float64), torch.linalg.vector_norm(gram, dtype=torch.float64)
    return torch.square(trace / norm)  # still on its device: a GPU is waited for once


def _neighbours(coef: Tensor) -> float:
    return coef.values().numel() / len(coef)


MEASURES = (
    Measure(
        "modularity",
        "ssc/modularity",
        "layer",
        ("groups", "affinity"),
        _modularity,
        title="Modularity of the affinity graphs",
        axis="modularity",
        range=_SIMILARITY,
        meaning="How much more affinity runs inside classes than chance would have it (Eq. 5 of the paper): near 0 a "
        "layer mixes the classes, towards 1 - 1/classes it has parted them. With groups='communities', the same over "
        "the communities found in each graph. In the paper deeper layers ended higher and took longer.",
    ),
    Measure(
        "cka_to_final",
        "ssc/cka_to_final",
        "final",
        ("graph",),
        graph_cka,
        title="SSC-CKA to the final state",
        axis="SSC-CKA (biased HSIC)",
        range=_SIMILARITY,
        meaning="How alike a layer's graph is to its own at the end of training (Eq. 3), written at the end of fit at "
        "the steps of the snapshots. A layer that reaches 1 early has settled; in the paper layers settled from the "
        "bottom up.",
    ),
    Measure(
        "linear_cka_to_final",
        "linear_cka/cka_to_final",
        "final",
        ("linear",),
        sketch_cka,
        title="Linear CKA to the final state",
        axis="linear CKA (biased HSIC)",
        range=_SIMILARITY,
        meaning="The same by linear CKA of the activations, which compares distances between inputs. With many inputs "
        "it is estimated from a sample of their pairs.",
    ),
    Measure(
        "cka_to_previous",
        "ssc/cka_to_previous",
        "previous",
        ("graph",),
        graph_cka,
        title="SSC-CKA to the previous snapshot",
        axis="SSC-CKA (biased HSIC)",
        range=_SIMILARITY,
        meaning="How alike a layer's graph is to the one at the snapshot before: low while a layer is on the move.",
    ),
    Measure(
        "linear_cka_to_previous",
        "linear_cka/cka_to_previous",
        "previous",
        ("linear",),
        sketch_cka,
        title="Linear CKA to the previous snapshot",
        axis="linear CKA (biased HSIC)",
        range=_SIMILARITY,
        meaning="The same by linear CKA of the activations.",
    ),
    Measure(
        "cka_to_reference",
        "ssc/cka_to_reference",
        "reference",
        ("graph",),
        graph_cka,
        title="SSC-CKA to the reference",
        axis="SSC-CKA (biased HSIC)",
        range=_SIMILARITY,
        meaning="How alike a layer's graph is to that of the layer of the same name in the reference: another run's "
        "last snapshot, or a checkpoint (`reference=`).",
    ),
    Measure(
        "linear_cka_to_reference",
        "linear_cka/cka_to_reference",
        "reference",
        ("linear",),
        sketch_cka,
        title="Linear CKA to the reference",
        axis="linear CKA (biased HSIC)",
        range=_SIMILARITY,
        meaning="The same by linear CKA of the activations.",
    ),
    Measure(
        "effective_rank",
        "ssc/effective_rank",
        "layer",
        ("gram",),
        _effective_rank,
        title="Effective rank of the activations",
        axis="effective rank (participation ratio)",
        range=(0.0, None),
        meaning="Over how many directions the activations' variance is spread: the participation ratio of the centred "
        "Gram, tr(G)²/‖G‖²_F, from 1 to the number of inputs less one. It falls towards 1 where a layer collapses.",
    ),
    Measure(
        "nnz_per_input",
        "ssc/nnz_per_input",
        "layer",
        ("coef",),
        _neighbours,
        title="Neighbours an input",
        axis="neighbours an input",
        range=(0.0, None),
        meaning="How many other inputs rebuild an input, on average: with many the graph is nearly complete and tells "
        "little, with none it is empty.",
    ),
    Measure(
        "gap",
        "ssc/gap",
        "layer",
        ("gap",),
        _worst_gap,
        title="Worst relative duality gap",
        axis="relative duality gap",
        log=True,
        meaning="How far the objective of the layer's worst input lies above its optimum at most, measured on the "
        "stored graph: the certificate of the solution.",
    ),
    Measure(
        "pairwise_cka",
        "ssc/pairwise_cka",
        "pair",
        ("affinity",),
        pairwise_cka,
        title="SSC-CKA between layers",
        axis="SSC-CKA (biased HSIC)",
        range=_SIMILARITY,
        meaning="How alike the graphs of all layers are to one another: blocks of like layers, chess boards of skip "
        "connections.",
    ),
    Measure(
        "pairwise_linear_cka",
        "linear_cka/pairwise_cka",
        "pair",
        ("linear",),
        pairwise_sketch_cka,
        title="Linear CKA between layers",
        axis="linear CKA (biased HSIC)",
        range=_SIMILARITY,
        meaning="The same by linear CKA of the activations.",
    ),
)
"""Every quantity, in the order in which pages and tables show them."""

CURVES = tuple(record for record in MEASURES if record.over != "pair")
"""Those that are a number a layer and snapshot."""

TABLES = tuple(record for record in MEASURES if record.over == "pair")
"""Those that are a table of layers by layers a snapshot."""

_BY_NAME = {record.name: record for record in MEASURES}


def measure(name: str) -> Measure:
    """The record of a name.

    Raises:
        KeyError: There is none.

    Example:
        >>> measure("modularity").axis
        'modularity'
    """
    return _BY_NAME[name]


def tag(of: Measure, root: str = "ssc") -> str:
    """The tag of a quantity in a monitor of any name: what is of graphs stands under it, linear CKA beside it.

    Example:
        >>> tag(measure("cka_to_final")), tag(measure("linear_cka_to_final"))
        ('ssc/cka_to_final', 'linear_cka/cka_to_final')
        >>> tag(measure("cka_to_final"), "convs"), tag(measure("linear_cka_to_final"), "convs")
        ('convs/cka_to_final', 'convs_linear_cka/cka_to_final')
    """
    category, _, family = of.tag.partition("/")
    if root != "ssc":
        category = root if category == "ssc" else f"{root}_{category}"
    return f"{category}/{family}"


def of_layer(known: Mapping[str, Any], done: Mapping[str, float] | None = None) -> dict[str, float]:
    """The values of a layer that can be computed from what is known of it.

    Args:
        known: What there is of the layer, by the names of :attr:`Measure.needs`; ``None`` counts as missing.
        done: Values that were computed before, say from the Gram before it was overwritten.

    Returns:
        All values by name, with those of before.

    Example:
        >>> import torch
        >>> of_layer({"gap": torch.tensor([0.5, 0.25])})
        {'gap': 0.5}
    """
    values = dict(done or {})
    for record in MEASURES:
        if record.over == "layer" and record.name not in values:
            given: dict[str, Any] = {}
            for need in record.needs:
                if (part := known.get(need)) is None:
                    break  # before the next is made
                given[need] = part
            else:
                values[record.name] = float(record.value(**given))
    return values


def between(over: Over, one: Any, other: Any) -> dict[str, float]:
    """The values of a layer and another state of it.

    Args:
        over: Which state the other one is.
        one: A layer of a snapshot.
        other: The layer of the same name in the other snapshot.

    Returns:
        Values by name; without those that need something that one of the two lacks.
    """
    values = {}
    for record in MEASURES:
        if record.over == over:
            first, second = (getattr(of, record.needs[0]) for of in (one, other))
            if first is not None and second is not None:
                values[record.name] = float(record.value(first, second))
    return values


def of_pairs(layers: Iterable[Any]) -> dict[str, Tensor]:
    """Tables ``(L, L)`` float64 by name over the layers of a snapshot; without those that a layer lacks a part for."""
    layers, tables = list(layers), {}
    for record in TABLES:
        given = [getattr(layer, record.needs[0]) for layer in layers]
        if given and all(part is not None for part in given):
            tables[record.name] = record.value(given)
    return tables


def markdown() -> str:
    """The README's table of scalars and heatmaps.

    Example:
        >>> markdown().splitlines()[0]
        '| tag | what it is |'
    """
    tags = {record.tag + ("" if record.over == "pair" else "/<layer>"): record.meaning for record in MEASURES}
    lines = ["| tag | what it is |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in tags.items())]
    return "\n".join(lines)
