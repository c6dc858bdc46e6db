"""The labels that a run doubts, as a piece of its page."""

from __future__ import annotations

from lightning_ssc import plots
from lightning_ssc.analysis import Doubts, doubts
from lightning_ssc.analysis.inputs import classes_of, columns_of
from lightning_ssc.live.pieces import Piece, readable
from lightning_ssc.snapshots import SnapshotStore
from lightning_ssc.threads import at_most

SHOWN = 48  # inputs at most
_MOMENTS = 8  # at most that are asked: half of a long run's would take too long for a page


def doubted_labels(store: SnapshotStore) -> Doubts | None:
    """The inputs whose label is in doubt, by up to 8 moments of the run's later half; ``None`` without full labels."""
    headers, _ = readable(store)
    if not headers:
        return None
    labels = store.of_samples(headers[-1].step).get("labels")
    if labels is None or bool((labels < 0).any()) or len(labels.unique()) < 2:
        return None
    later = [header.step for header in headers[len(headers) // 2 :]]
    with at_most(1):
        return doubts(store, steps=[later[t] for t in plots.evenly(len(later), _MOMENTS)])


def doubted(store: SnapshotStore) -> Piece:
    """The labels most in doubt, with what they rather are; empty where that is not known.

    Example:
        >>> import tempfile
        >>> doubted(SnapshotStore(tempfile.mkdtemp()))
        {}
    """
    found = doubted_labels(store)
    if found is None:
        return {}
    listed = found.in_doubt()
    samples = store.of_samples(found.steps[-1])
    classes = classes_of(samples.get("labels"), samples.get("predictions"))
    shown = listed[:SHOWN]
    return {
        "count": len(listed),
        "inputs": shown.tolist(),
        "rather": columns_of(found.suggestions[shown], classes).tolist(),
        "against": found.against[shown].tolist(),
        "layers": list(found.layers),
        "moments": len(found.steps),
    }
