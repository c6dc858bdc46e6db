"""What is kept of a network at one moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_ssc.functional import affinity
from lightning_ssc.functional.gram_sketch import GramSketch
from lightning_ssc.functional.graph import all_known, labelled
from lightning_ssc.functional.graph_cka import CentredGraph
from lightning_ssc.functional.partition import partition
from lightning_ssc.measures import Parts


class SnapshotError(RuntimeError):
    """A stored snapshot cannot be read; the message names the file and the remedy.

    Attributes:
        step: Step of the snapshot that cannot be read, or ``None`` where the trouble is another one.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Moment:
    """When a snapshot was taken.

    Attributes:
        step: Training steps that were done, the key of a snapshot in its store; 0 is the untrained network.
        epoch: Epochs that were done, a fraction inside one; NaN where the length of an epoch is not known.
        trigger: What called for the snapshot, such as ``"epoch"``; may be empty.
        logged: Step under which loggers have it; ``step`` where it is not given. (Lightning logs what follows the
            n-th step under n - 1.)

    Raises:
        ValueError: The step is negative or no whole number.

    Example:
        >>> print(Moment(391, 1)), print(Moment(500, 1.28, "steps"))
        epoch 1
        step 500
        (None, None)
    """

    step: int
    epoch: float
    trigger: str = ""
    logged: int = -1

    def __post_init__(self) -> None:
        """Whole epochs are whole numbers."""
        try:
            object.__setattr__(self, "step", index(self.step))  # whole numbers of NumPy and torch, too
        except TypeError:
            raise ValueError(f"A moment needs a whole number of steps, got {self.step!r}.") from None
        if self.step < 0:
            raise ValueError(f"A moment needs a step of at least 0, got {self.step}.")
        if self.is_whole:
            object.__setattr__(self, "epoch", int(self.epoch))
        if self.logged < 0:
            object.__setattr__(self, "logged", self.step)

    @property
    def is_whole(self) -> bool:
        """Whether it lies between two epochs."""
        return math.isfinite(self.epoch) and self.epoch == int(self.epoch)

    def __str__(self) -> str:
        return f"epoch {self.epoch}" if self.is_whole else f"step {self.step}"


def epochs_as_steps(epoch: float) -> int:
    """The step of a snapshot of which nobody has counted the steps: whole epochs count as such.

    Raises:
        ValueError: The epoch is no whole number, so that it would take the place of another one.

    Example:
        >>> epochs_as_steps(3.0)
        3
    """
    if not float(epoch).is_integer():
        raise ValueError(f"epoch={epoch} is no whole number by which snapshots differ: give step=, too.")
    return int(epoch)


class _OfAMoment:
    """Names for the parts of a moment."""

    moment: Moment

    @property
    def step(self) -> int:
        """Training steps that were done."""
        return self.moment.step

    @property
    def epoch(self) -> float:
        """Epochs that were done; 0 is the untrained network."""
        return self.moment.epoch


@dataclass(frozen=True)
class LayerGraph:
    """One layer at one moment.

    Attributes:
        coef: ``(N, N)`` sparse CSR on the CPU, the self-expression; row i rebuilds sample i. float32, or float64 where
            rounding to float32 would cost the certificate.
        gap: ``(N,)`` float32, relative duality gap of every row of ``coef``, measured in float64.
        converged: Whether every gap is within the tolerance asked for.
        features: Number of features a sample.
        linear: The layer's centred linear Gram in compact form, or ``None`` where linear CKA was not asked for.
        communities: ``(N,)`` int64 community of every sample that Louvain's method found in the graph, where
            ``groups="communities"`` asked for them.
        values: What was measured of the layer, by the names of :data:`lightning_ssc.measures.MEASURES`.
        of_inputs: What was measured of every input in it, ``(N,)`` by the names of
            :data:`lightning_ssc.measures.INPUTS`.
        norm: Norm of the centred affinity, if it was kept.
        is_output: Whether the layer puts out what the network returns, as a classifier does; ``None`` where it is not
            known.
        seconds: What it took to solve and measure it, or ``None`` where it is not known.
        of_classes: What was measured of every class in it, ``(K,)`` by the names of
            :data:`lightning_ssc.measures.CLASSES`, classes by ascending label.
    """

    coef: Tensor
    gap: Tensor
    converged: bool
    features: int
    linear: GramSketch | None = None
    communities: Tensor | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    of_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    norm: float | None = None
    is_output: bool | None = None
    seconds: float | None = None
    of_classes: Mapping[str, Tensor] = field(default_factory=dict)

    def with_values(self, values: Mapping[str, float]) -> LayerGraph:
        """The same layer with other values; what was derived of its graph is not derived again."""
        return self._with("values", values)

    def which_took(self, seconds: float) -> LayerGraph:
        """The same layer with what it took to solve and measure it."""
        return self._with("seconds", seconds)

    def _with(self, name: str, value: Any) -> LayerGraph:
        other = copy(self)
        object.__setattr__(other, name, value)
        return other

    @cached_property
    def affinity(self) -> Tensor:
        """``(N, N)`` sparse CSR, |C| + |C|ᵀ."""
        return affinity(self.coef)

    @cached_property
    def graph(self) -> CentredGraph:
        """The graph as SSC-CKA takes it."""
        return CentredGraph(self.coef, self.norm)

    def groups(self, labels: Tensor | None) -> Tensor | None:
        """``(N,)`` what modularity is over: the graph's communities if it has them, else the class labels."""
        return labels if self.communities is None else self.communities

    def measurable(self, labels: Tensor | None, predictions: Tensor | None = None) -> Mapping[str, Any]:
        """What measures may need of the layer (:attr:`lightning_ssc.measures.Measure.needs`), but for its Gram."""
        groups = self.groups(labels)
        classes = all_known(labels)
        makers: dict[str, Callable[[], Any]] = {
            "labels": lambda: classes,
            "predictions": lambda: predictions,
            "groups": lambda: groups,
            "parted": lambda: None if groups is None else partition(*labelled(self.affinity, groups)),
            "labelled": lambda: (
                parts["parted"]
                if groups is labels
                else None
                if labels is None
                else partition(*labelled(self.affinity, labels))
            ),
            "classed": lambda: (
                parts["parted"] if groups is classes else None if classes is None else partition(self.affinity, classes)
            ),
            **{
                part: partial(getattr, self, part)
                for part in ("coef", "affinity", "gap", "graph", "linear", "features")
            },
            **{name: partial(self.of_inputs.__getitem__, name) for name in self.of_inputs},
        }
        parts = Parts(makers)
        return parts

    def modularity(self, labels: Tensor | None) -> float:
        """Modularity of the graph (Eq. 5 of the paper) over its :meth:`groups`, among the samples that have a class.

        NaN where there are none, or the graph is empty.
        """
        parted = self.measurable(labels)["parted"]
        return float("nan") if parted is None else float(parted.modularity)

    @property
    def neighbours(self) -> float:
        """Mean number of samples that rebuild a sample."""
        return self.coef.values().numel() / len(self.gap)


@dataclass(frozen=True)
class Snapshot(_OfAMoment):
    """The graphs of all watched layers at one moment, and what was measured of them.

    Attributes:
        moment: When it was taken.
        layers: The layers' graphs by label, in order of execution.
        labels: ``(N,)`` int64 class of every sample, negative where it has none, or ``None``.
        indices: ``(N,)`` int64 place of every sample in its data set, or ``None``.
        predictions: ``(N,)`` int64 class that the network gave every sample, or ``None`` where it does not return
            logits.
        confidence: ``(N,)`` float32 softmax score of that class.
        settings: How the graphs were made: tau, normalize, solver, tol, pooling and so on.
        probe: Fingerprint of the probe; graphs can be compared only where it is equal.
        seconds: Time spent by stage: forward, gram, solve.
        learning_rate: Learning rate of the finished epoch, or ``None`` where it is not known.
        pairs: Tables ``(L, L)`` float32 between the layers, by the names of the measures.
        previous: Step of the snapshot that values "to previous" are to, or ``None`` for a first one.
        start: Step of the snapshot that values "to start" are to, or ``None`` where there are none.
        run: What tells the run that took it from any other; may be empty.
        notes: What the user was told since the snapshot before, such as which layers are not watched, and why.
    """

    moment: Moment
    layers: dict[str, LayerGraph]
    labels: Tensor | None = None
    indices: Tensor | None = None
    predictions: Tensor | None = None
    confidence: Tensor | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    probe: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float | None = None
    pairs: Mapping[str, Tensor] = field(default_factory=dict)
    previous: int | None = None
    start: int | None = None
    run: str = ""
    notes: Sequence[str] = ()

    @property
    def outputs(self) -> list[str] | None:
        """The layers that put out what the network returns, as a classifier does; ``None`` where it is not known."""
        if any(layer.is_output is None for layer in self.layers.values()):
            return None
        return [name for name, layer in self.layers.items() if layer.is_output]


@dataclass(frozen=True)
class SnapshotHeader(_OfAMoment):
    """What a stored snapshot says of itself; reading it reads no graph.

    Attributes:
        moment: When it was taken.
        layers: Labels of the layers, in order of execution.
        values: What was measured of every layer, by label and by the name of the measure.
        size: Number of samples, N; ``None`` where it is not said (format 1).
        settings: See :class:`Snapshot`, as for ``probe``, ``seconds``, ``learning_rate``, ``previous``, ``start``,
            ``run`` and ``notes``.
        versions: Versions of what the numbers come from.
        outputs: See :attr:`Snapshot.outputs`.
        layer_seconds: :attr:`LayerGraph.seconds` by label, of those of which it is known.
    """

    moment: Moment
    layers: list[str]
    values: Mapping[str, Mapping[str, float]]
    size: int | None
    settings: Mapping[str, Any]
    probe: str
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    learning_rate: float | None
    previous: int | None
    start: int | None = None
    run: str = ""
    outputs: Sequence[str] | None = None
    notes: Sequence[str] = ()
    layer_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeCard:
    """What a reader sees of the probe; stored once beside the snapshots.

    Attributes:
        fingerprint: Fingerprint of the probe that it shows.
        images: ``(N, H, W, 3)`` uint8 pictures of the inputs, or ``None`` where they are not images.
        class_names: Name of every class, by its number; may be empty.
        texts: What every input is, in words or numbers, where it is not a picture; may be empty.
    """

    fingerprint: str
    images: NDArray[np.uint8] | None = None
    class_names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
