"""One snapshot from end to end: probe, forward, Gram, self-expression, for a Trainer, a plain loop or a notebook."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_ssc import measures
from lightning_ssc.background import Foreground, Solver
from lightning_ssc.capture import (
    Forward,
    Head,
    LayerPattern,
    NoRoomError,
    Pooling,
    Probe,
    Returned,
    Runner,
    WatchedLayer,
    capture,
    classes_told,
    linear_head,
    make_probe,
    pictures,
    rows,
    trace,
    unwrapped,
)
from lightning_ssc.functional import communities, self_expression
from lightning_ssc.functional.advice import collected
from lightning_ssc.functional.collapse import neural_collapse
from lightning_ssc.functional.gram_sketch import gram_sketch
from lightning_ssc.functional.grams import CentredGram
from lightning_ssc.functional.graph import all_known
from lightning_ssc.ranks import Alone, Ranks
from lightning_ssc.snapshots import (
    LayerGraph,
    Moment,
    ProbeCard,
    Settings,
    Snapshot,
    SnapshotError,
    SnapshotHeader,
    Store,
    epochs_as_steps,
)
from lightning_ssc.threads import at_most, worth

log = logging.getLogger(__name__)


NO_LABELS = "The probe has no class labels (one integer a sample), so modularity is left out."


class Stopwatch:
    """Seconds spent by stage."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start  # type: ignore[assignment]


def solve_layer(layer: WatchedLayer, gram: CentredGram, settings: Settings, labels: Tensor | None = None) -> LayerGraph:
    """One layer's Gram, which is overwritten, to a certified sparse graph, a compact linear Gram and what they measure.

    Args:
        layer: The layer.
        gram: Its Gram, from :func:`lightning_ssc.capture.capture`.
        settings: How.
        labels: ``(N,)`` classes of the samples, on the CPU.

    Raises:
        ValueError: The Gram cannot be solved; the message names the layer.
    """
    few = partial(at_most, worth(len(gram.centred)))
    try:
        with few():
            linear = gram_sketch(gram.centred).cpu() if settings.linear_cka else None
            known = _of_gram(layer, gram, labels)
            values, of_inputs = measures.of_layer(known), measures.of_inputs(known)
        with collected() as advice:
            unit = settings.normalize and settings.preset is None
            solved = self_expression(
                gram=(gram.unit_ if unit else gram.raw_)(precise=settings.needs_double),
                tau=settings.tau,
                alpha=settings.alpha,
                normalize=False,
                solver=settings.solver,
                tol=settings.tol,
                preset=settings.preset,
                compact=True,
            )
    except ValueError as error:
        raise ValueError(f"Layer {layer.label!r}: {error}") from error
    for message in advice:  # said with the layer's name, without which nobody could act on it
        log.warning("Layer %r: %s", layer.label, message)
    with few():
        graph = LayerGraph(solved.coef.cpu(), solved.gap.cpu().float(), solved.converged, layer.features, linear)
        graph = replace(graph, is_output=layer.is_output)
        if settings.groups == "communities":
            graph = replace(graph, communities=communities(graph.affinity))
        of_inputs = {name: column.cpu() for name, column in of_inputs.items()}
        graph = replace(graph, of_inputs=of_inputs | measures.of_inputs(graph.measurable(labels)))
        parts = graph.measurable(labels)
        return replace(graph.with_values(measures.of_layer(parts, values)), of_classes=measures.of_classes(parts))


def _of_gram(layer: WatchedLayer, gram: CentredGram, labels: Tensor | None) -> Mapping[str, Any]:
    """What measures may need of a layer that is not yet solved, on the device of its Gram."""
    known = all_known(labels)
    labels = None if known is None else known.to(gram.centred.device)
    return measures.Parts(
        {
            "gram": lambda: gram.centred,
            "idle": lambda: gram.idle,
            "features": lambda: layer.features,
            "labels": lambda: labels,
            "collapse": lambda: None if labels is None else neural_collapse(gram.centred, labels),
        }
    )


@dataclass(frozen=True)
class Past:
    """What a snapshot is compared with.

    Attributes:
        previous: The snapshot before, if there is one.
        start: The first one of the run, if there is one before.
        reference: The one that layers of the same name are compared with throughout.
        settled: Step and state of every layer when it became what it was at the previous snapshot.
        best: Largest RankMe of every layer so far.
    """

    previous: Snapshot | None = None
    start: Snapshot | None = None
    reference: Snapshot | None = None
    settled: Mapping[str, tuple[int, LayerGraph]] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def recalled(store: Store, step: int) -> Past:
        """The past of a run that goes on after one of its snapshots; of earlier ones what can be read.

        Raises:
            SnapshotError: That snapshot cannot be read.
        """
        previous, start, settled = store.load(step=step), None, dict[str, tuple[int, LayerGraph]]()
        with suppress(SnapshotError):
            start = store.load(step=min(store.steps))
        for name, layer in previous.layers.items():
            since = layer.values.get("settled")
            if since is not None and (at := int(since)) in store.steps:
                with suppress(SnapshotError):
                    settled[name] = at, store.load_layer(layer=name, step=at)
        best: Mapping[str, float] = {}
        for header in store.headers():
            if isinstance(header, SnapshotHeader) and header.step <= step:
                best = _best(best, header.values)
        return Past(previous, start, settled=settled, best=best)

    def followed_by(self, taken: Snapshot) -> Past:
        """The past of the next snapshot, given one that was compared with this one."""
        settled = {}
        for name, layer in taken.layers.items():
            since = int(layer.values["settled"])
            settled[name] = since, dict(self._earlier(name)).get(since, layer)
        best = _best(self.best, {name: layer.values for name, layer in taken.layers.items()})
        return replace(self, previous=taken, start=self.start or taken, settled=settled, best=best)

    def _earlier(self, name: str) -> list[tuple[int, LayerGraph]]:
        """Moments at which a layer may have become what it is, ascending."""
        found = dict([self.settled[name]] if name in self.settled else [])
        if self.previous is not None and name in self.previous.layers:
            found[self.previous.step] = self.previous.layers[name]
        return sorted(found.items(), key=lambda moment: moment[0])

    def values(self, name: str, layer: LayerGraph, step: int) -> dict[str, float]:
        """What a layer of a snapshot measures against it."""
        values = measures.of_history(layer, step, self._earlier(name))
        states: tuple[tuple[measures.Over, Snapshot | None], ...] = (
            ("previous", self.previous),
            ("start", self.start),
            ("reference", self.reference),
        )
        for over, state in states:
            if state is not None and name in state.layers:
                values |= measures.between(over, layer, state.layers[name])
        return values


def _best(before: Mapping[str, float], values: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """The largest RankMe of every layer, given that of before; NaN counts as none."""
    now = {name: of_layer.get("rankme", 0.0) for name, of_layer in values.items()}
    return {**before, **{name: max(before.get(name, 0.0), rank) for name, rank in now.items()}}


def compared(taken: Snapshot, past: Past) -> Snapshot:
    """A snapshot with what its layers measure against the network's output, those of others and one another.

    Args:
        taken: The snapshot.
        past: What it is compared with.
    """
    layers = {
        name: layer.with_values(
            {
                **measures.of_layer(layer.measurable(taken.labels, taken.predictions), layer.values),
                **past.values(name, layer, taken.step),
            }
        )
        for name, layer in taken.layers.items()
    }
    pairs = {name: table.float() for name, table in measures.of_pairs(layers.values()).items()}
    previous, start = (None if state is None else state.step for state in (past.previous, past.start))
    return replace(taken, layers=layers, pairs=pairs, previous=previous, start=start)


def classified(
    outputs: Sequence[Returned], probe: Probe, told: Collection[int] = ()
) -> tuple[Tensor | None, Tensor | None]:
    """Predicted class and softmax score of every sample, where what the network returned are logits.

    Logits are as wide as the data set has classes. Where it does not tell, they are as wide as the classes of the probe
    or up to twice as wide, since of many classes some may be missing, or as wide as the network says that it has
    classes, or called logits in what it returned. And whatever names the class of more than half of the samples is
    taken for logits. Anything else (an embedding, a reconstruction) predicts nothing.

    Args:
        outputs: What the network returned for all samples, in their order.
        probe: The samples.
        told: Numbers of classes that the network names.

    Example:
        >>> probe = make_probe((torch.rand(4, 1), torch.tensor([0, 1, 0, 1])))
        >>> classified([Returned(torch.tensor([[0.0, 100.0], [100.0, 0.0]]).repeat(2, 1), False)], probe)
        (tensor([1, 0, 1, 0]), tensor([1., 1., 1., 1.]))
        >>> embedding = Returned(torch.eye(4, 64), False)
        >>> classified([embedding], probe), classified([embedding], probe, told=[64])[0]
        ((None, None), tensor([0, 1, 2, 3]))
    """
    labels, rows = probe.labels, [output.rows for output in outputs]
    if labels is None or sum(map(len, rows)) != len(probe) or len({part.shape[1] for part in rows}) > 1:
        return None, None
    width = rows[0].shape[1]
    if not max(2, int(labels.max()) + 1) <= width or not all(part.is_floating_point() for part in rows):
        return None, None
    confidence, predictions = torch.cat(rows).float().softmax(1).max(1)
    are_logits = _are_classes(width, probe, told) or (probe.classes is None and outputs[0].are_logits)
    known = labels >= 0
    commonest = int(labels[known].bincount().max())
    right = int((predictions == labels)[known].sum())
    if are_logits or right > max(int(known.sum()) / 2, commonest):
        return predictions, confidence
    return None, None


def _are_classes(width: int, probe: Probe, told: Collection[int] = ()) -> bool:
    """Whether so many numbers a sample are one a class of a labelled probe."""
    assert probe.labels is not None
    seen = int(probe.labels.max()) + 1
    if probe.classes is not None:
        return width == probe.classes > 1
    return 1 < width >= seen and (width <= 2 * seen or width in told)


@dataclass
class Pending:
    """A snapshot whose Grams are formed and whose layers are solved or being solved.

    Attributes:
        taken: The snapshot without its layers.
        graphs: What becomes of each layer, by label.
        timed: Seconds spent by stage.
        started: When it was begun, on the clock of ``time.perf_counter``.
        ended: When each layer was solved.
        measured: What the forward pass alone says of layers, by label.
    """

    taken: Snapshot
    graphs: dict[str, Future[LayerGraph]]
    timed: Stopwatch
    started: float
    ended: list[float]
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def done(self) -> bool:
        """Whether :meth:`result` would return, or raise, at once."""
        return all(graph.done() for graph in self.graphs.values())

    def cancel(self) -> None:
        """Solve no more layers than the one that is being solved."""
        for graph in self.graphs.values():
            graph.cancel()

    def result(self, progress: Callable[[int], None] = lambda done: None) -> Snapshot:
        """Wait for all layers; an interrupted wait can be taken up again.

        Args:
            progress: Called with 1 when a layer is done, and with 0 now and then while one is not.

        Returns:
            The snapshot, on the CPU.

        Raises:
            ValueError: A layer cannot be solved; the message names it.
        """
        layers = {}
        try:
            for label, graph in self.graphs.items():
                while not wait([graph], timeout=0.5).done:
                    progress(0)
                try:
                    solved = graph.result()
                    layers[label] = solved.with_values({**solved.values, **self.measured.get(label, {})})
                except NoRoomError as error:
                    if len(self.graphs) == 1:
                        raise
                    log.warning("Layer %r is left out of this snapshot: %s", label, error)
                progress(1)
        except Exception:
            self.cancel()
            raise
        total = max(self.ended, default=self.started) - self.started
        return replace(self.taken, layers=layers, seconds={**self.timed.seconds, "total": total})


def begin_snapshot(
    runner: Runner,
    probe: Probe,
    watched: Sequence[WatchedLayer],
    settings: Settings,
    moment: Moment,
    *,
    learning_rate: float | None = None,
    solver: Solver | None = None,
    ranks: Ranks | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Pending:
    """Run the probe through the network and hand every watched layer's Gram to a solver.

    Several processes do it together, each for its share of the layers; rank zero has what the network predicts.

    Args:
        runner: The network, left without a trace.
        probe: The probe.
        watched: The layers, from :func:`lightning_ssc.capture.trace`.
        settings: How activations become graphs.
        moment: When this is, to be kept with the snapshot.
        learning_rate: Learning rate of the finished epoch, to be kept with the snapshot.
        solver: Where layers are solved; by default here, each as soon as its Gram is there.
        ranks: The processes that do it together; by default this one alone.
        progress: Called with 1 when a layer is handed over, or solved where that is done here.

    Returns:
        The snapshot to wait for.

    Raises:
        ValueError: Activations are not finite, or a layer cannot be solved; the message names the layer.
        FailedError: So it is on one of several processes.
    """
    solver, ranks = Foreground() if solver is None else solver, ranks or Alone()
    timed, started = Stopwatch(), time.perf_counter()
    ended: list[float] = []
    outputs: dict[int, Returned] = {}
    graphs: dict[str, Future[LayerGraph]] = {}

    def solve(layer: WatchedLayer, gram: CentredGram) -> LayerGraph:
        begun = time.perf_counter()
        with timed("solve"):
            graph = solve_layer(layer, gram, settings, probe.labels)
        ended.append(time.perf_counter())
        return graph.which_took(ended[-1] - begun)

    labels, told = all_known(probe.labels), classes_told(runner.model)
    head = None if labels is None else linear_head(runner, watched, labels)
    if head is not None and not _are_classes(head.module.out_features, probe, told):
        head = None
    grams = capture(
        runner,
        watched,
        probe.batches,
        settings.rows,
        processes=ranks,
        timed=timed,
        outputs=outputs,
        head=head,
        precise=settings.needs_double,
    )
    failed: Exception | None = None
    try:
        try:
            for layer, gram in grams:
                try:
                    if failed is None:
                        graphs[layer.label] = solver.submit(partial(solve, layer), gram)
                        progress(1)
                except Exception as error:
                    if ranks.size == 1:
                        raise
                    failed = error  # the others wait for this process in the passes to come
                del gram  # or it would be held through the next pass
        except Exception as error:
            failed = error
        ranks.raise_together(failed)
        predictions, confidence = None, None
        if (parts := ranks.gather(outputs)) is not None:  # on rank zero
            everything = {start: rows for part in parts for start, rows in part.items()}
            rows = [everything[start] for start in sorted(everything)]
            predictions, confidence = classified(rows, probe, told)
        measured = {} if head is None else {head.label: _of_head(head, ranks)}
    except BaseException:
        for graph in graphs.values():
            graph.cancel()
        raise
    taken = Snapshot(
        moment=moment,
        layers={},
        labels=probe.labels,
        indices=probe.indices,
        predictions=predictions,
        confidence=confidence,
        settings=settings.stored(),
        probe=probe.fingerprint,
        seconds={},
        learning_rate=learning_rate,
    )
    return Pending(taken, graphs, timed, started, ended, measured)


def _of_head(head: Head, ranks: Ranks) -> dict[str, float]:
    """What a linear classifier's weights and inputs measure, on every process."""
    return measures.of_layer({"head": head.known(ranks.everyones(head.heard))})


def probe_card(probe: Probe, class_names: Sequence[str] = (), texts: Sequence[str] = ()) -> ProbeCard:
    """What a reader sees of a probe.

    Args:
        probe: The probe.
        class_names: Names of the classes.
        texts: What every input is, where it is no picture; by default its tokens or numbers.

    Raises:
        ValueError: There is not one text an input.

    Example:
        >>> probe_card(make_probe(torch.eye(3)), texts=["a", "b", "c"]).texts
        ('a', 'b', 'c')
    """
    if texts and len(texts) != len(probe):
        raise ValueError(f"There are {len(texts)} texts for the {len(probe)} inputs of the probe. Give one for each.")
    images = pictures(probe.inputs)
    told = tuple(texts) or (rows(probe.inputs) if images is None else ())
    return ProbeCard(probe.fingerprint, images, tuple(class_names), told)


def snapshot(
    model: nn.Module,
    inputs: Any,
    labels: Tensor | Sequence[int] | None = None,
    layers: str | type[nn.Module] | Sequence[LayerPattern] = "blocks",
    *,
    tau: float = 10.0,
    alpha: float | None = None,
    normalize: bool = True,
    solver: Literal["active_set", "admm"] = "active_set",
    tol: float = 1e-5,
    preset: Literal["paper"] | None = None,
    pooling: Pooling = "flatten",
    pad: float | None = None,
    batch_dim: int | None = None,
    linear_cka: bool = True,
    groups: Literal["classes", "communities"] = "classes",
    epoch: float = 0,
    step: int | None = None,
    learning_rate: float | None = None,
    forward: Forward | None = None,
    chunk: int = 256,
    memory: int | None = None,
) -> Snapshot:
    """The graphs of a network's layers over some inputs: what the callback takes, outside a Trainer.

    The network runs in evaluation mode on its own device and is left as it was.

    Args:
        model: The network.
        inputs: N samples as its forward takes them: a tensor, a tuple of tensors, or a dict of tensors.
        labels: ``(N,)`` integer classes.
        layers: Which layers, see :func:`lightning_ssc.capture.layers.select_layers`.
        tau: Weight of the fit.
        alpha: The same in units of each layer's own threshold, at which its last input gets its first neighbour;
            overrides ``tau``.
        normalize: Scale samples to unit length first.
        solver: ``"active_set"`` (exact) or ``"admm"`` (Algorithm 1 of the paper).
        tol: Relative duality gap asked for.
        preset: ``"paper"`` for the published setting.
        pooling: How activations become features: ``"flatten"``, ``"mean"``, ``"cls"``, ``"last"`` or a function, see
            :class:`~lightning_ssc.Settings`.
        pad: What sequences of other lengths are filled up with to the longest one, see the same.
        batch_dim: Which dimension of what layers put out is the sample, where it is not found, see the same.
        linear_cka: Keep what linear CKA needs.
        groups: What modularity is measured over: the classes, or ``"communities"`` that Louvain's method finds in each
            graph.
        epoch: Finished epochs, kept with the snapshot.
        step: Training steps that were done, the key of the snapshot in a store; where it is not given epochs count as
            steps.
        learning_rate: Learning rate of the finished epoch, kept with the snapshot; from it the curves know where it
            dropped.
        forward: ``forward(model, inputs)`` runs the network, where ``model(inputs)`` would not do.
        chunk: Samples a forward pass.
        memory: Bytes that activations and Grams may take; by default half of what the device has free.

    Returns:
        The snapshot, on the CPU; a :class:`lightning_ssc.SnapshotStore` saves it.

    Raises:
        ValueError: A layer is unknown or never runs, activations are not finite, lengths differ, or ``epoch`` is no
            whole number and there is no ``step``.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> taken = snapshot(net, torch.rand(30, 4), torch.arange(30) % 3, layers="Linear")
        >>> list(taken.layers), taken.layers["0"].coef.shape, taken.layers["0"].converged
        (['0', '2'], torch.Size([30, 30]), True)
    """
    inner, context = unwrapped(model)
    settings = Settings(tau, normalize, solver, tol, preset, pooling, linear_cka, groups, alpha, pad, batch_dim)
    probe = make_probe((inputs,) if labels is None else (inputs, labels))
    if labels is not None and probe.labels is None and groups == "classes":
        log.warning(NO_LABELS)
    runner = Runner(inner, forward, context, chunk=chunk, memory=memory)
    watched = trace(runner, layers, probe.batches, settings.rows)
    moment = Moment(epochs_as_steps(epoch) if step is None else step, epoch)
    taken = begin_snapshot(runner, probe, watched, settings, moment, learning_rate=learning_rate).result()
    return compared(taken, Past())
