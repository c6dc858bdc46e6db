"""Two networks on one probe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_ssc.analysis._threads import one_thread
from lightning_ssc.analysis.architecture import Similarity, similarity
from lightning_ssc.analysis.dynamics import Dynamics, dynamics
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import SnapshotError, SnapshotStore


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


@one_thread()
def compare(
    one: SnapshotStore,
    other: SnapshotStore,
    *,
    epochs: tuple[int | None, int | None] = (None, None),
    progress: Progress = iter,
) -> Comparison:
    """Compare two runs, of any two architectures, that watched the same probe.

    Args:
        one: Snapshots of the first run.
        other: Snapshots of the second.
        epochs: Which snapshots to compare; ``None`` means the last.
        progress: Wrapped around what takes long, such as ``tqdm.tqdm``.

    Raises:
        SnapshotError: A snapshot is missing or cannot be read, or the probes differ.
    """
    first, second = (
        store.load(epoch) if epoch is not None else store.load(step=max(store.steps, default=0))
        for store, epoch in zip((one, other), epochs, strict=True)
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
