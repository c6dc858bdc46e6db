"""Two networks on one probe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lightning_ssc import measures
from lightning_ssc.analysis.architecture import Similarity, similarity
from lightning_ssc.analysis.dynamics import Dynamics, dynamics
from lightning_ssc.functional.uncertainty import WIDTH, Estimate
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import Moment, SnapshotError, SnapshotStore
from lightning_ssc.threads import at_most


@dataclass(frozen=True)
class Parting:
    """Where two runs part: the first moment, and at it the first layer, at which they differ beyond noise.

    Attributes:
        moment: The moment.
        layer: The layer.
        measure: The quantity.
        one: Its value in the first run.
        other: Its value in the second.
        deviations: The difference in standard errors of it.
    """

    moment: Moment
    layer: str
    measure: measures.Measure
    one: Estimate
    other: Estimate
    deviations: float

    def __str__(self) -> str:
        said = [f"{of.value:.3f} ± {WIDTH * of.spread:.3f}" for of in (self.one, self.other)]
        return f"{self.moment}, {self.layer}: {self.measure.axis} {said[0]} and {said[1]}"


def parting(one: Dynamics, other: Dynamics) -> Parting | None:
    """Where two runs on one probe part, by what is measured of layers and comes with a standard error.

    Moments are matched by steps and layers by name. Differences count that would not come by chance at any of the
    places that are compared, in 95 of 100 pairs of runs that do not differ (Bonferroni). Errors are those of drawing
    other inputs, as if each run had inputs of its own: on one probe differences are surer than that.

    Args:
        one: Curves of the first run.
        other: Curves of the second.

    Returns:
        The first difference beyond noise; ``None`` where there is none, or nothing that could be compared.

    Example:
        >>> curves = [np.full((2, 1), value) for value in (0.3, 0.5)]
        >>> one, other = (Dynamics(["a"], [Moment(0, 0), Moment(5, 1)], np.full(2, np.nan), {"modularity": curve},
        ...     {"modularity": np.full((2, 1), 0.01)}) for curve in curves)
        >>> print(parting(one, other))
        epoch 0, a: modularity 0.300 ± 0.020 and 0.500 ± 0.020
    """
    rows = [(t, other.steps.tolist().index(step)) for t, step in enumerate(one.steps) if step in other.steps]
    columns = [(i, other.layers.index(name)) for i, name in enumerate(one.layers) if name in other.layers]
    compared = [
        (t, i, record, Estimate(a, sa), Estimate(b, sb), abs(a - b) / error)
        for record in measures.CURVES
        if record.over == "layer" and record.name in one.spreads and record.name in other.spreads
        for t, u in rows
        for i, j in columns
        for a, sa in [(float(one.curves[record.name][t, i]), float(one.spreads[record.name][t, i]))]
        for b, sb in [(float(other.curves[record.name][u, j]), float(other.spreads[record.name][u, j]))]
        if (error := math.hypot(sa, sb)) > 0  # nor NaN
    ]
    if not compared:
        return None
    limit = NormalDist().inv_cdf(1 - 0.05 / (2 * len(compared)))
    beyond = [place for place in compared if place[-1] > limit]
    if not beyond:
        return None
    t, i, record, a, b, deviations = min(beyond, key=lambda place: (place[0], place[1], -place[-1]))
    return Parting(one.moments[t], one.layers[i], record, a, b, deviations)


@dataclass(frozen=True)
class Comparison:
    """Two runs on one probe.

    Attributes:
        similarity: The layers of the first network against those of the second.
        one: Curves of the first run; its reference is the second network.
        other: Curves of the second run; its reference is the first network.
    """

    similarity: Similarity
    one: Dynamics
    other: Dynamics

    def closest(self) -> list[tuple[str, str, float]]:
        """For every layer of the first network the layer of the second most like it, and their SSC-CKA.

        Layers without a graph, which are like no other, are left out.
        """
        table = np.nan_to_num(self.similarity.ssc, nan=-np.inf)
        best = table.argmax(1)
        columns = self.similarity.columns
        return [
            (row, columns[j], float(self.similarity.ssc[i, j]))
            for i, (row, j) in enumerate(zip(self.similarity.rows, best, strict=True))
            if np.isfinite(table[i, j])
        ]


@at_most(1)
def compare(
    one: SnapshotStore,
    other: SnapshotStore,
    *,
    epochs: tuple[int | None, int | None] = (None, None),
    steps: tuple[int | None, int | None] = (None, None),
    progress: Progress = iter,
) -> Comparison:
    """Compare two runs, of any two architectures, that watched the same probe.

    Args:
        one: Snapshots of the first run.
        other: Snapshots of the second.
        epochs: Which snapshots to compare, by whole epochs; ``None`` means the last.
        steps: Which snapshots to compare, by steps.
        progress: Wrapped around what takes long, such as ``tqdm.tqdm``.

    Raises:
        SnapshotError: A snapshot is missing or cannot be read, or the probes differ.
    """
    first, second = (
        store.load(step=max(store.steps, default=0)) if epoch is step is None else store.load(epoch, step=step)
        for store, epoch, step in zip((one, other), epochs, steps, strict=True)
    )
    if first.probe != second.probe:
        raise SnapshotError(
            f"{one} and {other} are of different probes ({first.probe} and {second.probe}), so their graphs "
            f"cannot be compared. Take both on the same inputs in the same order, with the same transforms."
        )
    return Comparison(
        similarity(first, second),
        dynamics(one, reference=second, progress=progress),
        dynamics(other, reference=first, progress=progress),
    )
