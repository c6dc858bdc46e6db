"""What is measured: one record a quantity, from which tags, tables, charts, page texts and documentation are made.

A quantity is computed when a snapshot is taken and is kept with it; readers read it. To add one, add a record to
:data:`MEASURES`: nothing else has to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_ssc.functional import pairwise_cka
from lightning_ssc.functional.collapse import self_duality
from lightning_ssc.functional.gram_sketch import debiased_sketch_cka, pairwise_sketch_cka, sketch_cka_estimate
from lightning_ssc.functional.graph_cka import graph_cka_estimate
from lightning_ssc.functional.health import participation_ratio, rankme, sample
from lightning_ssc.functional.partition import modularity_error
from lightning_ssc.functional.probes import margin, nearest_neighbour, ridge_probe
from lightning_ssc.functional.settling import settled_since
from lightning_ssc.functional.uncertainty import Estimate, share

Over = Literal["layer", "class", "input", "start", "previous", "reference", "final", "history", "pair"]
Group = Literal["classes", "settling", "collapse", "health"]

_SIMILARITY = (0.0, 1.0)
_PROBED = 1024  # inputs that the ridge probe is fitted to at most: its time grows with their cube


@dataclass(frozen=True)
class Measure:
    """One quantity.

    Attributes:
        name: Its name in headers of snapshots, tables and CSV files.
        tag: Its tag in loggers, before the layer's name, of a monitor called ``ssc``; see :func:`tag`.
        over: What it is of: a ``"layer"``; every ``"class"`` or every ``"input"`` in a layer; a layer and itself at the
            ``"start"``, at the ``"previous"``, a ``"reference"`` or the ``"final"`` snapshot; a layer and its
            ``"history"``; or every ``"pair"`` of layers.
        needs: What the function takes of a layer: ``groups``, the classes or communities ``(N,)`` that modularity is
            over; ``coef`` and ``affinity``, sparse CSR ``(N, N)``; ``parted``, the
            :class:`~lightning_ssc.functional.partition.Partition` of the affinity by the groups, ``classed``, that by
            the labels where every input has one, or ``labelled``, that of the inputs that have one; ``gap``, ``(N,)``;
            ``graph``, a :class:`~lightning_ssc.functional.graph_cka.CentredGraph`; ``linear``, a
            :class:`~lightning_ssc.functional.gram_sketch.GramSketch`; ``labels``, the classes ``(N,)``;
            ``predictions``, the classes that the network gave, ``(N,)``; ``features``, their number; or the name of a
            quantity of every input. There only before a layer is solved, and then with ``features`` and ``labels``
            alone: ``gram``, the centred Gram, ``(N, N)``; ``idle``, how many features do not vary; ``collapse``, the
            :class:`~lightning_ssc.functional.collapse.NeuralCollapse` of Gram and labels. Of the forward pass alone
            ``head``, a linear classifier's weights and the class means of what it was given. Where one is missing there
            is no value. Of two layers and of pairs one part of a layer, but no labels.
        value: Of a layer ``f(**needs)``; of two ``f(one, other)``; both give a number, or where ``spread`` says so an
            :class:`~lightning_ssc.functional.uncertainty.Estimate`. Of inputs ``f(**needs)``, a tensor ``(N,)``, and
            of classes ``(K,)``, by ascending label. Of a history ``f(part, step, earlier)``, with steps and parts of
            some earlier moments. Of pairs ``f(of_all_layers)``, a table ``(L, L)``.
        title: Heading of its chart.
        axis: Label of its axis, with unit or estimator.
        meaning: What it tells, in a sentence or two.
        range: Where its axis begins and ends; ``None`` is left to the data.
        log: Whether its axis is logarithmic.
        spread: Whether it comes with its standard error over the choice of inputs, kept beside it under
            :attr:`spread_name`: 1.96 of them to either side are an interval of 95 %.
        group: What it is asked for: whether ``"classes"`` come apart, how a layer is ``"settling"``, its dimension and
            its ``"collapse"``, or the ``"health"`` of features and graphs. Pages show a group at a time.
        pictured: Whether its curves are drawn for loggers after every snapshot, not just after the last: a picture
            takes as long as some layers do.
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
    spread: bool = False
    group: Group = "classes"
    pictured: bool = False

    @property
    def spread_name(self) -> str:
        """The name of its standard error among values and in tables."""
        return f"{self.name}_spread"


def _worst_gap(gap: Tensor) -> float:
    return float(gap.max())


def _neighbours(coef: Tensor) -> float:
    return coef.values().numel() / len(coef)


def _isolated(affinity: Tensor) -> float:
    return float((affinity.crow_indices().diff() == 0).double().mean())


def _agreement(one: Tensor, other: Tensor) -> Estimate:
    return share(float((one == other).double().mean()), len(one))


def _nearest_neighbour_accuracy(gram: Tensor, labels: Tensor) -> Estimate:
    hits = (labels[nearest_neighbour(gram)] == labels).double().mean()
    return share(float(_of_what_varies(gram, hits)), len(gram))


def _ridge_margin(gram: Tensor, labels: Tensor) -> Tensor:
    if len(gram) > _PROBED:
        chosen = sample(len(gram), _PROBED).to(gram.device)
        part = gram[chosen][:, chosen]
        part = part - part.mean(0) - part.mean(1, keepdim=True) + part.mean()
        margins = torch.full_like(labels, torch.nan, dtype=torch.float16)
        margins[chosen] = _ridge_margin(part, labels[chosen])
        return margins
    return _of_what_varies(gram, margin(ridge_probe(gram, labels), labels)).half()


def _of_what_varies(gram: Tensor, value: Tensor) -> Tensor:
    """NaN where inputs are all alike: left out, one would be told from the others by being missing among them."""
    return value.where(gram.diagonal().sum() > 0, torch.nan)


def _ridge_accuracy(ridge_margin: Tensor) -> Estimate:
    known = ridge_margin[~ridge_margin.isnan()]
    return share(float((known > 0).double().mean()), len(known)) if len(known) else Estimate(math.nan, math.nan)


def _disagreement(nearest_mean: Tensor, predictions: Tensor) -> Estimate:
    agrees, spread = _agreement(nearest_mean, predictions)
    return Estimate(1 - agrees, spread)


def _similarities(over: Over, to: str, meaning: str) -> tuple[Measure, Measure, Measure]:
    """The similarity of a layer to another state of it by SSC-CKA, and by linear CKA with both estimators."""
    return (
        Measure(
            f"cka_to_{over}",
            f"ssc/cka_to_{over}",
            over,
            ("graph",),
            graph_cka_estimate,
            group="settling",
            title=f"SSC-CKA to {to}",
            axis="SSC-CKA (biased HSIC)",
            range=_SIMILARITY,
            meaning=meaning,
            spread=True,
            pictured=True,
        ),
        Measure(
            f"linear_cka_to_{over}",
            f"linear_cka/cka_to_{over}",
            over,
            ("linear",),
            sketch_cka_estimate,
            group="settling",
            title=f"Linear CKA to {to}",
            axis="linear CKA (biased HSIC)",
            range=_SIMILARITY,
            meaning="The same by linear CKA of the activations, which compares distances between inputs. With many "
            "inputs it is estimated from a sample of their pairs."
            if over == "final"
            else "The same by linear CKA of the activations.",
            spread=True,
        ),
        Measure(
            f"debiased_cka_to_{over}",
            f"linear_cka/debiased_cka_to_{over}",
            over,
            ("linear",),
            debiased_sketch_cka,
            group="settling",
            title=f"Debiased linear CKA to {to}",
            axis="linear CKA (unbiased HSIC)",
            range=_SIMILARITY,
            meaning="The same by the unbiased estimator (Song et al. 2012), which does not near 1 where features "
            "outnumber inputs (Murphy et al. 2024); of what has nothing in common it is near 0, on either side. Where "
            "the two differ by much, believe this one or take more inputs."
            if over == "final"
            else "The same by the unbiased estimator.",
        ),
    )


MEASURES = (
    Measure(
        "modularity",
        "ssc/modularity",
        "layer",
        ("parted", "coef", "groups"),
        lambda parted, coef, groups: Estimate(parted.modularity, modularity_error(coef, groups)),
        pictured=True,
        title="Modularity of the affinity graphs",
        axis="modularity",
        range=_SIMILARITY,
        meaning="How much more affinity runs inside classes than chance would have it (Eq. 5 of the paper): near 0 a "
        "layer mixes the classes, towards 1 - 1/classes it has parted them. With groups='communities', the same over "
        "the communities found in each graph. In the paper deeper layers ended higher and took longer.",
        spread=True,
    ),
    Measure(
        "assortativity",
        "ssc/assortativity",
        "layer",
        ("parted",),
        lambda parted: parted.assortativity,
        title="Modularity over its ceiling",
        axis="modularity / ceiling (assortativity)",
        range=_SIMILARITY,
        meaning="Modularity over the most that the number and the balance of the classes allow (1 - 1/classes where "
        "they are even; Newman 2003): 1 where no affinity runs between classes. Compare this between data sets.",
    ),
    Measure(
        "modularity_z",
        "ssc/modularity_z",
        "layer",
        ("parted",),
        lambda parted: parted.z(),
        title="Modularity against chance",
        axis="standard deviations above permuted labels",
        meaning="How many standard deviations modularity lies above that of labels dealt out by chance, whose mean "
        "and spread are computed exactly: below 3 the layer tells nothing of the classes that chance would not.",
    ),
    *_similarities(
        "final",
        "the final state",
        "How alike a layer's graph is to its own at the end of training (Eq. 3), written at the end of fit at the "
        "steps of the snapshots. A layer that reaches 1 early has settled; in the paper layers settled from the "
        "bottom up.",
    ),
    *_similarities(
        "previous",
        "the previous snapshot",
        "How alike a layer's graph is to the one at the snapshot before: low while a layer is on the move.",
    ),
    *_similarities(
        "start",
        "the first snapshot",
        "How alike a layer's graph is to the one at the first snapshot of the run: how far it has come from its "
        "initial weights or, in fine-tuning, from the pretrained network. A layer that stays near 1 has learned "
        "little.",
    ),
    *_similarities(
        "reference",
        "the reference",
        "How alike a layer's graph is to that of the layer of the same name in the reference: another run's last "
        "snapshot, or a checkpoint (`reference=`).",
    ),
    Measure(
        "settled",
        "ssc/settled",
        "history",
        ("graph",),
        settled_since,
        group="settling",
        title="Settled since",
        axis="training step",
        range=(0.0, None),
        meaning="The training step since which a layer's graph has been what it is now, within its noise or at "
        "SSC-CKA of 0.9 and more; that of the snapshot itself while the layer moves. Where a line lies flat its layer "
        "has settled, and can be frozen; where it jumps up that is taken back.",
    ),
    Measure(
        "label_accuracy",
        "ssc/label_accuracy",
        "layer",
        ("ssc_label", "labels"),
        lambda ssc_label, labels: _agreement(ssc_label, labels),
        title="Accuracy of SSC labels",
        axis="share of inputs",
        range=_SIMILARITY,
        meaning="How often the class that most of an input's affinity goes to is its own (its SSC label, section 6.2 "
        "of the paper): what the graph knows of the classes, without any classifier.",
        spread=True,
    ),
    Measure(
        "agreement",
        "ssc/agreement",
        "layer",
        ("ssc_label", "predictions"),
        lambda ssc_label, predictions: _agreement(ssc_label, predictions),
        title="Agreement of SSC labels with the network",
        axis="share of inputs",
        range=_SIMILARITY,
        meaning="How often an input's SSC label is what the network predicts (table 1 of the paper, 94 to 98 % before "
        "the classifier): from the layer on where it nears 1 the decision is made.",
        spread=True,
    ),
    Measure(
        "nearest_neighbour_accuracy",
        "ssc/nearest_neighbour_accuracy",
        "layer",
        ("gram", "labels"),
        _nearest_neighbour_accuracy,
        title="Accuracy of the nearest neighbour",
        axis="share of inputs (leave-one-out)",
        range=_SIMILARITY,
        meaning="How often the nearest other input, by distance between activations, is of the same class.",
        spread=True,
    ),
    Measure(
        "ridge_accuracy",
        "ssc/ridge_accuracy",
        "layer",
        ("ridge_margin",),
        _ridge_accuracy,
        title="Accuracy of a linear probe",
        axis="share of inputs (leave-one-out)",
        range=_SIMILARITY,
        meaning="How often a linear classifier, fitted by ridge regression to all other inputs of the probe (at most "
        "1024), is right: what is there to be read off linearly. Where it stops rising with depth, later layers add "
        "nothing.",
        spread=True,
    ),
    Measure(
        "nc1",
        "ssc/nc1",
        "layer",
        ("collapse",),
        lambda collapse: collapse.variability,
        group="collapse",
        title="Neural collapse: variability within classes (NC1)",
        axis="NC1, tr(within / between) / classes",
        log=True,
        meaning="Variability within classes against that between their means (NC1 of Papyan et al. 2020): it falls "
        "towards 0 where all inputs of a class become alike, in late layers long after the training error is gone.",
    ),
    Measure(
        "nc2",
        "ssc/nc2",
        "layer",
        ("collapse",),
        lambda collapse: collapse.simplex,
        group="collapse",
        title="Neural collapse: class means from a simplex (NC2)",
        axis="NC2, distance from a simplex frame",
        range=(0.0, None),
        meaning="How far the class means are from lengths and angles all equal (NC2, distance of their Gram from a "
        "simplex equiangular tight frame, from 0 to 2): some classes closer than others keep it up.",
    ),
    Measure(
        "nc3",
        "ssc/nc3",
        "layer",
        ("head",),
        lambda head: self_duality(*head),
        group="collapse",
        title="Neural collapse: the classifier's weights from class means (NC3)",
        axis="NC3, squared distance of weights and class means",
        range=(0.0, None),
        meaning="How far a linear classifier's weights are from the class means of what it is given, each at unit norm "
        "(NC3 of Papyan et al. 2020, from 0 to 4; 2 where they have nothing in common): it falls towards 0 where the "
        "last hidden layer and the classifier come to say the same. Of the layer that puts out the logits alone.",
    ),
    Measure(
        "nc4",
        "ssc/nc4",
        "layer",
        ("nearest_mean", "predictions"),
        _disagreement,
        group="collapse",
        title="Neural collapse: nearest class mean against the network (NC4)",
        axis="NC4, share of inputs that disagree",
        range=_SIMILARITY,
        meaning="How often the nearest class mean in the layer is not what the network predicts (NC4; by layer in "
        "Rangamani et al. 2023): from the layer on where it is near 0, the rest of the network could be a "
        "nearest-mean classifier.",
        spread=True,
    ),
    Measure(
        "effective_rank",
        "ssc/effective_rank",
        "layer",
        ("gram",),
        participation_ratio,
        pictured=True,
        group="collapse",
        title="Effective rank of the activations",
        axis="effective rank (participation ratio)",
        range=(0.0, None),
        meaning="Over how many directions the activations' variance is spread: the participation ratio of the centred "
        "Gram, tr(G)²/‖G‖²_F, from 1 to the number of inputs less one. It falls towards 1 where a layer collapses.",
    ),
    Measure(
        "rankme",
        "ssc/rankme",
        "layer",
        ("gram",),
        rankme,
        group="collapse",
        title="RankMe of the activations",
        axis="effective rank (RankMe)",
        range=(0.0, None),
        meaning="The same by the entropy of the singular values (Garrido et al. 2023), which counts small directions "
        "for more; of at most 256 inputs, and so at most 255. A sharp fall is a loss of information: lower the rate.",
    ),
    Measure(
        "dead_features",
        "ssc/dead_features",
        "layer",
        ("idle", "features"),
        lambda idle, features: idle.dead / features,
        group="health",
        title="Dead features",
        axis="share of features",
        range=_SIMILARITY,
        meaning="Share of features that are zero for every input, as of units whose ReLU never opens: they learn "
        "nothing any more. Where it rises, lower the learning rate or look at the initialisation.",
    ),
    Measure(
        "constant_features",
        "ssc/constant_features",
        "layer",
        ("idle", "features"),
        lambda idle, features: idle.constant / features,
        group="health",
        title="Constant features",
        axis="share of features",
        range=_SIMILARITY,
        meaning="Share of features with one value for every input, dead ones among them: what lies behind cannot "
        "depend on them. Some are due to padding or to inputs with a constant border.",
    ),
    Measure(
        "isolated",
        "ssc/isolated",
        "layer",
        ("affinity",),
        _isolated,
        group="health",
        title="Isolated inputs",
        axis="share of inputs",
        range=_SIMILARITY,
        meaning="Share of inputs that no other rebuilds and that rebuild none: the graph tells nothing of them. Raise "
        "tau where there are many.",
    ),
    Measure(
        "nnz_per_input",
        "ssc/nnz_per_input",
        "layer",
        ("coef",),
        _neighbours,
        group="health",
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
        group="health",
        title="Worst relative duality gap",
        axis="relative duality gap",
        log=True,
        meaning="How far the objective of the layer's worst input lies above its optimum at most, measured on the "
        "stored graph: the certificate of the solution.",
    ),
    Measure(
        "class_modularity",
        "ssc/class_modularity",
        "class",
        ("labelled",),
        lambda labelled: labelled.by_class,
        title="Modularity by class",
        axis="what the class adds to modularity",
        meaning="What each class adds to a layer's modularity: the share of all affinity that runs inside it, less "
        "what chance would give. A class that lags behind the others is one that the layer does not tell apart.",
    ),
    Measure(
        "ssc_label",
        "ssc/ssc_label",
        "input",
        ("classed",),
        lambda classed: classed.labels,
        title="SSC labels",
        axis="class",
        meaning="The class that most of an input's affinity goes to; below all classes for isolated inputs.",
    ),
    Measure(
        "nearest_mean",
        "ssc/nearest_mean",
        "input",
        ("collapse",),
        lambda collapse: collapse.nearest_mean,
        title="Nearest class means",
        axis="class",
        meaning="The class whose mean is nearest to an input.",
    ),
    Measure(
        "ridge_margin",
        "ssc/ridge_margin",
        "input",
        ("gram", "labels"),
        _ridge_margin,
        title="Margins of the linear probe",
        axis="score of the own class less the best other",
        meaning="What the linear probe that was fitted to the other inputs scores an input's own class, less the best "
        "of the others: below 0 it disagrees with the label.",
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

GROUPS: Mapping[Group, str] = {
    "classes": "Class structure",
    "settling": "Settling",
    "collapse": "Dimension and collapse",
    "health": "Health",
}
"""Headings of the groups, in the order in which pages show them."""

CURVES = tuple(record for record in MEASURES if record.over not in ("pair", "input", "class"))
"""Those that are a number a layer and snapshot."""

CLASSES = tuple(record for record in MEASURES if record.over == "class")
"""Those that are a number for every class in a layer."""

INPUTS = tuple(record for record in MEASURES if record.over == "input")
"""Those that are a number for every input of a layer."""

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


class Parts(Mapping[str, Any]):
    """What is known of a layer, by the names of :attr:`Measure.needs`; each part is made when it is first asked for.

    Args:
        makers: What makes each part; ``None`` as a part counts as missing.

    Example:
        >>> parts = Parts({"gap": lambda: torch.tensor([0.5])})
        >>> parts["gap"] is parts["gap"], list(parts)
        (True, ['gap'])
    """

    def __init__(self, makers: Mapping[str, Callable[[], Any]]) -> None:
        self._makers, self._made = makers, dict[str, Any]()

    def __getitem__(self, part: str) -> Any:
        if part not in self._made:
            self._made[part] = self._makers[part]()
        return self._made[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def of_layer(known: Mapping[str, Any], done: Mapping[str, float] | None = None) -> dict[str, float]:
    """The values of a layer that can be computed from what is known of it.

    Args:
        known: What there is of the layer, by the names of :attr:`Measure.needs`; ``None`` counts as missing.
        done: Values that were computed before, say from the Gram before it was overwritten.

    Returns:
        All values by name, with those of before, and their standard errors (:attr:`Measure.spread_name`).

    Example:
        >>> import torch
        >>> of_layer({"gap": torch.tensor([0.5, 0.25])})
        {'gap': 0.5}
    """
    values = dict(done or {})
    for record in MEASURES:
        if record.over == "layer" and record.name not in values and (given := _given(record, known)) is not None:
            values |= _numbers(record, record.value(**given))
    return values


def of_inputs(known: Mapping[str, Any]) -> dict[str, Tensor]:
    """What can be computed of every input of a layer, tensors ``(N,)`` by name; see :func:`of_layer`."""
    return _tensors(INPUTS, known)


def of_classes(known: Mapping[str, Any]) -> dict[str, Tensor]:
    """What can be computed of every class in a layer, tensors ``(K,)`` by name; see :func:`of_layer`."""
    return _tensors(CLASSES, known)


def _tensors(records: Iterable[Measure], known: Mapping[str, Any]) -> dict[str, Tensor]:
    return {record.name: record.value(**given) for record in records if (given := _given(record, known)) is not None}


def _given(record: Measure, known: Mapping[str, Any]) -> dict[str, Any] | None:
    given: dict[str, Any] = {}
    for need in record.needs:
        if (part := known.get(need)) is None:
            return None  # before the next is made
        given[need] = part
    return given


def _numbers(record: Measure, value: Any) -> dict[str, float]:
    if not record.spread:
        return {record.name: float(value)}
    return {record.name: float(value.value), record.spread_name: float(value.spread)}


def between(over: Over, one: Any, other: Any) -> dict[str, float]:
    """The values of a layer and another state of it.

    Args:
        over: Which state the other one is.
        one: A layer of a snapshot.
        other: The layer of the same name in the other snapshot.

    Returns:
        Values by name, with their standard errors; without those that need something that one of the two lacks.
    """
    values: dict[str, float] = {}
    for record in MEASURES:
        if record.over == over:
            first, second = (getattr(of, record.needs[0]) for of in (one, other))
            if first is not None and second is not None:
                values |= _numbers(record, record.value(first, second))
    return values


def of_history(one: Any, step: int, earlier: Sequence[tuple[int, Any]]) -> dict[str, float]:
    """The values of a layer and some of its earlier states.

    Args:
        one: A layer of a snapshot.
        step: Training steps that were done.
        earlier: Steps and layers of the same name of earlier snapshots, ascending.
    """
    values: dict[str, float] = {}
    for record in MEASURES:
        if record.over == "history":
            parts = [(at, getattr(layer, record.needs[0])) for at, layer in earlier]
            values |= _numbers(record, record.value(getattr(one, record.needs[0]), step, parts))
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
    """The table of scalars and heatmaps in ``.site/pages/curves.md``.

    Example:
        >>> markdown().splitlines()[0]
        '| tag | what it is |'
    """
    logged = [record for record in MEASURES if record.over not in ("input", "class")]
    tags = {record.tag + ("" if record.over == "pair" else "/<layer>"): record.meaning for record in logged}
    lines = ["| tag | what it is |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in tags.items())]
    return "\n".join(lines)
