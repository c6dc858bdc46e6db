"""How layers form and settle over the moments of a run, read from what was measured when its snapshots were taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_ssc import measures
from lightning_ssc.analysis._csv import write_csv
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import LayerGraph, Moment, Snapshot, SnapshotError, SnapshotHeader, Store
from lightning_ssc.threads import at_most

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Dynamics:
    """Curves of a run, one row a snapshot and one column a layer.

    Every curve is also an attribute by its name: ``table.modularity`` is ``table.curves["modularity"]``.

    Attributes:
        layers: Labels of the layers in order of execution.
        moments: The T moments of the snapshots, ascending.
        learning_rate: ``(T,)`` learning rate of the finished epoch; NaN where it is not known.
        curves: ``(T, L)`` values by the names of :data:`lightning_ssc.measures.CURVES`; NaN where there is none.
        spreads: ``(T, L)`` standard errors of those that have one (:attr:`lightning_ssc.measures.Measure.spread`), by
            the same names; NaN where they are not known.
    """

    layers: list[str]
    moments: Sequence[Moment]
    learning_rate: Table
    curves: Mapping[str, Table]
    spreads: Mapping[str, Table] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Table:
        """A curve by its name."""
        try:
            return self.__dict__["curves"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute or curve {name!r}") from None

    @property
    def epochs(self) -> NDArray[Any]:
        """``(T,)`` finished epochs, integers where all are whole; NaN where they are not known."""
        return np.array([moment.epoch for moment in self.moments])

    @property
    def steps(self) -> NDArray[np.int64]:
        """``(T,)`` training steps that were done."""
        return np.array([moment.step for moment in self.moments], dtype=np.int64)

    @property
    def unit(self) -> str:
        """What :attr:`times` count: ``"epoch"``, or ``"step"`` inside a single epoch or where epochs are not known."""
        moments = self.moments
        inside = any(not moment.is_whole for moment in moments) and moments[-1].epoch <= 1
        return "step" if inside or not all(math.isfinite(moment.epoch) for moment in moments) else "epoch"

    @property
    def times(self) -> NDArray[Any]:
        """``(T,)`` finished epochs or, where they are not known of all moments, steps."""
        return self.epochs if self.unit == "epoch" else self.steps

    @property
    def ceiling(self) -> float:
        """The most that modularity can be in any layer, given the classes: 1 - 1/K for K even ones; NaN if not known.

        Example:
            >>> curves = {"modularity": np.array([[0.45, 0.3]]), "assortativity": np.array([[0.5, 0.4]])}
            >>> Dynamics(["a", "b"], [Moment(0, 0)], np.full(1, np.nan), curves).ceiling
            0.9
        """
        known = [self.curves[name] for name in ("modularity", "assortativity") if name in self.curves]
        if len(known) < 2:
            return math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            found = known[0] / known[1]
        return float(found[np.isfinite(found)].max()) if np.isfinite(found).any() else math.nan

    def settled(self, threshold: float = 0.9) -> Table:
        """``(L,)`` first of the :attr:`times` from which SSC-CKA to final stays at a threshold or above; NaN if never.

        Example:
            >>> curve, moments = np.array([[0.2], [0.95], [0.8], [0.92], [1.0]]), [Moment(t, t) for t in range(5)]
            >>> Dynamics(["fc"], moments, np.full(5, np.nan), {"cka_to_final": curve}).settled().tolist()
            [3.0]
        """
        stays = np.logical_and.accumulate((self.cka_to_final >= threshold)[::-1], axis=0)[::-1]
        return np.where(stays.any(0), self.times[stays.argmax(0)], np.nan)

    def taken_back(self, snapshots: int = 3) -> Table:
        """``(L,)`` how often a layer that counted as settled, live, moved after all; NaN where that was not measured.

        Args:
            snapshots: At how many snapshots it must have been what it was to count as settled.

        Example:
            >>> since = np.array([[0.0], [0.0], [0.0], [30.0], [30.0], [50.0]])  # settled, but moved at step 30
            >>> moments = [Moment(step, step) for step in range(0, 60, 10)]
            >>> table = Dynamics(["fc"], moments, np.full(6, np.nan), {"settled": since})
            >>> table.taken_back().tolist(), table.taken_back(snapshots=2).tolist()
            ([1.0], [2.0])
        """
        since = self.curves["settled"]
        lasted = np.array([[(self.steps[: t + 1] >= start).sum() for start in row] for t, row in enumerate(since)])
        moved = (since[1:] > since[:-1]) & (lasted[:-1] >= snapshots)
        return np.where(np.isnan(since).all(0), np.nan, moved.sum(0))

    def depth_correlation(self, threshold: float = 0.9) -> float:
        """Spearman's rank correlation of the epoch at which layers settle with their depth.

        One means that layers settle strictly from the bottom up (section 4.2 of the paper). Layers that never settle
        are left out; NaN where fewer than two are left or all settle at the same epoch.

        Example:
            >>> curve = np.array([[0.95, 0.5, 0.2], [0.96, 0.95, 0.6], [1.0, 1.0, 1.0]])
            >>> moments = [Moment(t, t) for t in range(3)]
            >>> table = Dynamics(list("abc"), moments, np.full(3, np.nan), {"cka_to_final": curve})
            >>> round(table.depth_correlation(), 6)
            1.0
        """
        settled = self.settled(threshold)
        depths = np.flatnonzero(~np.isnan(settled))
        ranks = _ranks(settled[depths])
        if len(np.unique(ranks)) < 2:
            return float("nan")
        return float(np.corrcoef(ranks, depths)[0, 1])

    def drops(self) -> NDArray[Any]:
        """``(D, 2)`` :attr:`times` of the snapshots before and after each drop of the learning rate.

        A drop is a fall to half or less from one snapshot to the next: a step of a step-wise schedule. One that falls
        smoothly, such as a cosine between snapshots that are not far apart, has drops at most at its very end.

        Example:
            >>> rate, moments = np.array([np.nan, 0.1, 0.02, 0.02]), [Moment(t, t) for t in (0, 30, 31, 60)]
            >>> Dynamics(["fc"], moments, rate, {}).drops().tolist()
            [[30, 31]]
        """
        before = self.before_drops()
        return np.stack([self.times[before], self.times[before + 1]], 1)

    def jumps(self) -> Table:
        """``(D, L)`` gain in SSC-CKA to final across each of the :meth:`drops` (section 4.2 of the paper).

        Example:
            >>> curve, rate = np.array([[0.2], [0.3], [0.8], [1.0]]), np.array([np.nan, 0.1, 0.02, 0.02])
            >>> moments = [Moment(t, t) for t in (0, 30, 31, 60)]
            >>> Dynamics(["fc"], moments, rate, {"cka_to_final": curve}).jumps().tolist()
            [[0.5]]
        """
        before = self.before_drops()
        return self.cka_to_final[before + 1] - self.cka_to_final[before]

    def before_drops(self) -> NDArray[np.int64]:
        """``(D,)`` rows of the last snapshots before a drop; an unknown rate is neither above nor below another."""
        rate = self.learning_rate
        return np.flatnonzero(rate[1:] <= 0.5 * (1 + 1e-6) * rate[:-1])

    def to_csv(self, path: str | Path) -> None:
        """Write one line an epoch and layer."""
        count = len(self.layers)
        write_csv(
            path,
            {
                "epoch": np.repeat(self.epochs, count),
                "step": np.repeat(self.steps, count),
                "learning_rate": np.repeat(self.learning_rate, count),
                "layer": np.tile(self.layers, len(self.epochs)),
                **self.curves,
                **{measures.measure(name).spread_name: spread for name, spread in self.spreads.items()},
            },
        )


def stored(headers: Sequence[SnapshotHeader]) -> Dynamics:
    """The curves of a run as far as its headers know them: all that was measured when the snapshots were taken.

    Values to the previous snapshot are left out where that is not the one before.

    Args:
        headers: What the snapshots say of themselves, ascending; at least one.

    Example:
        >>> import torch
        >>> from lightning_ssc import snapshot
        >>> from lightning_ssc.snapshots import MemoryStore
        >>> store = MemoryStore()
        >>> store.save(snapshot(torch.nn.Sequential(torch.nn.Linear(4, 3)), torch.rand(20, 4), layers="Linear"))
        >>> stored([store.header(0)]).nnz_per_input.shape
        (1, 1)
    """
    layers = headers[-1].layers
    empty = np.full((len(headers), len(layers)), np.nan)
    curves = {record.name: empty.copy() for record in measures.CURVES}
    spreads = {record.name: empty.copy() for record in measures.CURVES if record.spread}
    for t, header in enumerate(headers):
        valid = _valid(header, headers[t - 1] if t else None, headers[0])
        for name, table in _by_name(curves, spreads, valid).items():
            for i, layer in enumerate(layers):
                table[t, i] = header.values.get(layer, {}).get(name, np.nan)
    rates = np.array([header.learning_rate for header in headers], dtype=float)
    return Dynamics(layers, [header.moment for header in headers], rates, curves, spreads)


def _valid(header: SnapshotHeader, before: SnapshotHeader | None, first: SnapshotHeader) -> list[measures.Measure]:
    """The curves that a header may have values of; those to another snapshot than the one before or first are none."""
    wrong = {"previous"} if header.previous != (None if before is None else before.step) else set()
    wrong |= {"start"} if header.start != first.step else set()
    return [record for record in measures.CURVES if record.over not in wrong]


def _by_name(
    curves: Mapping[str, Table],
    spreads: Mapping[str, Table],
    of: Sequence[measures.Measure] = measures.CURVES,
) -> dict[str, Table]:
    """Tables by the names that their values have in headers."""
    tables = {record.name: curves[record.name] for record in of}
    return tables | {record.spread_name: spreads[record.name] for record in of if record.spread}


def dynamics(
    store: Store,
    epochs: Sequence[int] | None = None,
    *,
    steps: Sequence[int] | None = None,
    reference: Snapshot | None = None,
    progress: Progress = iter,
) -> Dynamics:
    """The curves of a run from its stored snapshots.

    What was measured when they were taken is read from their headers. What is to the final state, which was not known
    then, or to a ``reference`` named now is a sparse product a layer and snapshot.

    Args:
        store: The snapshots.
        epochs: Which of them, ascending, by whole epochs; all by default.
        steps: Which of them, ascending, by steps.
        reference: A snapshot, say of another run, that layers of the same name are compared with.
        progress: Wrapped around the snapshots, such as ``tqdm.tqdm``.

    Raises:
        SnapshotError: There are none, one cannot be read, or they are of different probes.

    Example:
        >>> import tempfile, torch
        >>> from lightning_ssc import SnapshotStore, snapshot
        >>> net, store = torch.nn.Linear(4, 3), SnapshotStore(tempfile.mkdtemp())
        >>> x, y = torch.rand(20, 4), torch.arange(20) % 2
        >>> for epoch in (0, 1):
        ...     store.save(snapshot(torch.nn.Sequential(net), x, y, layers="Linear", epoch=epoch))
        >>> dynamics(store).cka_to_final.round(6)
        array([[1.],
               [1.]])
    """
    if epochs is not None:
        steps = [store.header(epoch).step for epoch in epochs]
    steps = store.steps if steps is None else steps
    if not steps:
        raise SnapshotError(f"There are no snapshots in {store}.")
    headers = [store.header(step=step) for step in steps]
    final = headers[-1]
    for header in headers:
        if header.probe != final.probe:
            raise SnapshotError(
                f"The snapshots of {header.moment} and {final.moment} in {store} are of different probes and cannot be "
                f"compared."
            )
    if reference is not None and reference.probe != final.probe:
        raise SnapshotError(f"The reference and the snapshots in {store} are of different probes.")
    last = dict(store.layers(final.step))
    labels = store.labels(final.step)
    table = stored(headers)
    if reference is not None:  # one named now stands for the run's own in every layer
        to_reference = [record for record in measures.CURVES if record.over == "reference"]
        for curve in _by_name(table.curves, table.spreads, to_reference).values():
            curve[:] = np.nan
    tables = _by_name(table.curves, table.spreads)
    before: dict[str, LayerGraph] = {}
    first: dict[str, LayerGraph] = {}
    with at_most(1):
        for t, header in enumerate(progress(headers)):
            follows = header.previous == (headers[t - 1].step if t else None)
            from_start = header.start == headers[0].step
            now = dict(store.layers(header.step, final.layers))
            first = first or now
            for name, layer in now.items():
                i, measured = final.layers.index(name), header.values[name]
                values = measures.of_layer(layer.measurable(labels), measured)  # with what was not measured then
                values = {key: value for key, value in values.items() if key not in measured}
                values |= measures.between("final", layer, last[name])
                if name in first and not from_start:
                    values |= measures.between("start", layer, first[name])
                if name in before and not (measured and follows):
                    values |= measures.between("previous", layer, before[name])
                if reference is not None and name in reference.layers:
                    values |= measures.between("reference", layer, reference.layers[name])
                for key, value in values.items():
                    tables[key][t, i] = value
            before = now
    return table


def _ranks(values: Table) -> Table:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])
