"""One snapshot from end to end: probe, forward, Gram, self-expression, for a Trainer, a plain loop or a notebook."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    LayerPattern,
    Pooling,
    Probe,
    Runner,
    WatchedLayer,
    capture,
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


_ROUNDING = 5e-7  # of a unit of tau: what single precision does to the objective


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
            solved = self_expression(
                gram=gram.raw_(precise=needs_double(settings)),
                tau=settings.tau,
                alpha=settings.alpha,
                normalize=settings.normalize,
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
        return graph.with_values(measures.of_layer(graph.measurable(labels), values))


def needs_double(settings: Settings) -> bool:
    """Whether Grams in single precision would not bear out the gap that is asked for.

    Rounding of inner products is weighed by tau: about 1e-6 of the objective of unit-length samples at tau = 10.
    """
    if settings.solver != "active_set" or settings.preset is not None:
        return False
    return not settings.normalize or settings.alpha is not None or settings.tau * _ROUNDING > settings.tol


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


def classified(outputs: list[Tensor], probe: Probe) -> tuple[Tensor | None, Tensor | None]:
    """Predicted class and softmax score of every sample, where the network returned ``(n, classes)`` logits.

    Logits are as wide as the data set has classes or, where it does not tell, as the probe has, or up to twice as wide:
    of many classes some may be missing. Anything else (an embedding, a reconstruction) predicts nothing.

    Example:
        >>> probe = make_probe((torch.rand(4, 1), torch.tensor([0, 1, 0, 1])))
        >>> classified([torch.tensor([[0.0, 100.0], [100.0, 0.0]])], probe)
        (tensor([1, 0]), tensor([1., 1.]))
        >>> classified([torch.rand(2, 64)], probe)
        (None, None)
    """
    if not outputs or probe.labels is None or len({output.shape[1] for output in outputs}) > 1:
        return None, None
    width, seen = outputs[0].shape[1], int(probe.labels.max()) + 1
    fits = width == probe.classes if probe.classes is not None else seen <= width <= 2 * seen
    if width < 2 or not fits or not all(output.is_floating_point() for output in outputs):
        return None, None
    confidence, predictions = torch.cat(outputs).float().softmax(1).max(1)
    return predictions, confidence


@dataclass
class Pending:
    """A snapshot whose Grams are formed and whose layers are solved or being solved.

    Attributes:
        taken: The snapshot without its layers.
        graphs: What becomes of each layer, by label.
        timed: Seconds spent by stage.
        started: When it was begun, on the clock of ``time.perf_counter``.
        ended: When each layer was solved.
    """

    taken: Snapshot
    graphs: dict[str, Future[LayerGraph]]
    timed: Stopwatch
    started: float
    ended: list[float]

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
                layers[label] = graph.result()
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
    outputs: dict[int, Tensor] = {}
    graphs: dict[str, Future[LayerGraph]] = {}

    def solve(layer: WatchedLayer, gram: CentredGram) -> LayerGraph:
        begun = time.perf_counter()
        with timed("solve"):
            graph = solve_layer(layer, gram, settings, probe.labels)
        ended.append(time.perf_counter())
        return graph.which_took(ended[-1] - begun)

    grams = capture(
        runner,
        watched,
        probe.batches,
        settings.pooling,
        processes=ranks,
        timed=timed,
        outputs=outputs,
        precise=needs_double(settings),
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
        predictions, confidence = _predicted(outputs, probe, ranks)
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
    return Pending(taken, graphs, timed, started, ended)


def _predicted(outputs: Mapping[int, Tensor], probe: Probe, ranks: Ranks) -> tuple[Tensor | None, Tensor | None]:
    """Class and score of every sample, on rank zero, from what each process has of the network's output."""
    told = {start: classified([output], probe) for start, output in outputs.items()}
    everything: dict[int, tuple[Tensor | None, Tensor | None]] = {}
    for part in ranks.gather(told) or ():
        everything |= part
    pairs = [everything[start] for start in sorted(everything)]
    if sum(len(predicted) for predicted, _ in pairs if predicted is not None) != len(probe):
        return None, None
    return torch.cat([p for p, _ in pairs if p is not None]), torch.cat([c for _, c in pairs if c is not None])


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
    settings = Settings(tau, normalize, solver, tol, preset, pooling, linear_cka, groups, alpha)
    probe = make_probe((inputs,) if labels is None else (inputs, labels))
    if labels is not None and probe.labels is None and groups == "classes":
        log.warning(NO_LABELS)
    runner = Runner(inner, forward, context, chunk=chunk, memory=memory)
    watched = trace(runner, layers, probe.batches, pooling)
    moment = Moment(epochs_as_steps(epoch) if step is None else step, epoch)
    taken = begin_snapshot(runner, probe, watched, settings, moment, learning_rate=learning_rate).result()
    return compared(taken, Past())
