"""Two networks on one probe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_ssc.analysis.architecture import Similarity, similarity
from lightning_ssc.analysis.dynamics import Dynamics, dynamics
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import SnapshotError, SnapshotStore
from lightning_ssc.threads import at_most


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
