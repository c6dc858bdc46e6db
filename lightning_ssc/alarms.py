"""When a layer has collapsed: said once, by name, when it happens."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping

from lightning_ssc.snapshots import Snapshot

log = logging.getLogger(__name__)

COLLAPSED = 0.1
"""Share of its best RankMe below which a layer counts as collapsed."""


def collapse(values: Mapping[str, float], best: float = 0.0) -> str | None:
    """What says that a layer has collapsed, or ``None``.

    It has where all inputs are alike in it, or where RankMe has fallen below a tenth of its best in the run. Neural
    collapse, by which inputs of one class become alike, leaves far more: the directions between classes and, on inputs
    that were not trained on, many small ones.

    Args:
        values: What was measured of the layer.
        best: Its largest RankMe at earlier snapshots.

    Example:
        >>> collapse({"rankme": 3.0, "constant_features": 0.25}, best=100.0)
        'RankMe has fallen from 100.0 to 3.0'
        >>> collapse({"rankme": float("nan"), "constant_features": 1.0})
        'all inputs are alike in it'
        >>> collapse({"rankme": 30.0, "constant_features": 0.25}, best=100.0)
    """
    rank, constant = (values.get(name, math.nan) for name in ("rankme", "constant_features"))
    if constant == 1 or ("rankme" in values and math.isnan(rank)):
        return "all inputs are alike in it"
    return f"RankMe has fallen from {best:.1f} to {rank:.1f}" if rank < COLLAPSED * best else None


def warn_of_collapse(taken: Snapshot, best: Mapping[str, float], warned: Collection[str]) -> list[str]:
    """Warn of the layers that have collapsed, in one line.

    Args:
        taken: A snapshot.
        best: Largest RankMe of every layer at earlier snapshots.
        warned: Layers that a warning was given of before.

    Returns:
        The layers that it was given of now.
    """
    found = {name: collapse(layer.values, best.get(name, 0.0)) for name, layer in taken.layers.items()}
    fallen = [name for name, why in found.items() if why is not None and name not in warned]
    if fallen:
        first, more = fallen[0], len(fallen) - 1
        others = f", and {more} more (of {len(found)}: {', '.join(map(repr, fallen[1:]))})" if more else ""
        log.warning(
            "Layer %r has collapsed at %s: %s%s. Lower the learning rate, look for units that are dead "
            "(ssc/dead_features), and check that the inputs of the probe differ.",
            first, taken.moment, found[first], others,
        )  # fmt: skip
    return fallen
