"""In how many passes over the probe the layers are captured, and by which process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from lightning_ssc.capture.trace import WatchedLayer

_LARGE = 1 << 30  # bytes of a Gram from which on it may go to disk
_WORK = 1 << 29  # bytes that work on a Gram takes beside it
_SOLVED = 5000  # features whose Gram takes as long as solving a layer, of a thousand inputs


def share_layers(layers: Sequence[WatchedLayer], rank: int, ranks: int) -> list[WatchedLayer]:
    """The layers of one of several processes: the widest ones are dealt out first, each to who has least to do.

    Grams take time by width, solving takes about the same for every layer.

    Example:
        >>> from lightning_ssc.capture import Layer
        >>> sizes = {"a": 90_000, "b": 10_000, "c": 50_000, "d": 10}
        >>> layers = [WatchedLayer(Layer(name), 0, name, size) for name, size in sizes.items()]
        >>> [[layer.label for layer in share_layers(layers, rank, 2)] for rank in (0, 1)]
        [['a'], ['b', 'c', 'd']]
    """
    shares: list[list[WatchedLayer]] = [[] for _ in range(ranks)]
    work = [0] * ranks
    for layer in sorted(layers, key=lambda layer: layer.features, reverse=True):
        least = work.index(min(work))
        shares[least].append(layer)
        work[least] += layer.features + _SOLVED
    mine = set(shares[rank])
    return [layer for layer in layers if layer in mine]


@dataclass(frozen=True)
class FeatureSlice:
    """Features ``start`` to ``stop`` of one layer, the unit in which passes are planned."""

    layer: int
    start: int
    stop: int


def plan_passes(
    layers: Sequence[WatchedLayer], samples: int, memory: int, *, staged: bool = False, disk: bool = False
) -> list[list[FeatureSlice]]:
    """Share layers out over as few passes as fit a memory budget, in their order and each as far as possible whole.

    Each pass needs its buffers and, at its end, one Gram (and the running Gram of a layer in slices). Only a layer that
    no pass could hold is cut: it begins in what is left of a pass.

    Args:
        layers: The layers.
        samples: Number of samples.
        memory: Bytes.
        staged: Whether a quarter of what the Grams leave is kept for features on their way between processes.
        disk: Whether Grams lie on disk, see :func:`goes_to_disk`.

    Returns:
        For every pass the slices of layers that it captures; all of a layer's slices come in ascending order.

    Raises:
        ValueError: The budget does not hold the Grams and one feature; the message says how many bytes would.

    Example:
        >>> from lightning_ssc.capture import Layer
        >>> layers = [WatchedLayer(Layer(name), 0, name, size) for name, size in (("a", 50), ("b", 30), ("c", 250))]
        >>> [[(s.layer, s.start, s.stop) for s in p] for p in plan_passes(layers, 10, 2 * 400 + 4000)]
        [[(0, 0, 50), (1, 0, 30), (2, 0, 20)], [(2, 20, 120)], [(2, 120, 220)], [(2, 220, 250)]]
    """
    widest = max(layer.dtype.itemsize for layer in layers)
    space = room(layers, samples, memory, disk)
    least = -(-4 * samples * widest // 3) if staged else samples * widest
    if space < least:
        raise ValueError(
            f"A memory budget of {memory / 1e6:.1f} MB does not hold {'work on ' if disk else ''}the Gram matrices of "
            f"{samples} samples{', on disk' if disk else ''}; it takes at least {(memory + least - space) / 1e6:.1f} "
            f"MB. Raise memory= or use a smaller probe."
        )
    if staged:
        space = space * 3 // 4
    passes: list[list[FeatureSlice]] = []
    left = 0
    for number, layer in enumerate(layers):
        column = samples * layer.dtype.itemsize
        if left < layer.features * column <= space:
            left = 0
        start = 0
        while start < layer.features:
            if left < column:
                passes.append([])
                left = space
            stop = min(layer.features, start + left // column)
            passes[-1].append(FeatureSlice(number, start, stop))
            left -= (stop - start) * column
            start = stop
    return passes


def plan_shared(
    layers: Sequence[WatchedLayer], samples: int, memory: int, ranks: int, *, staged: bool, disk: bool = False
) -> list[list[FeatureSlice]]:
    """The passes that several processes go through together, each with the slices of all of them.

    Args:
        layers: The layers; :func:`share_layers` says whose each is.
        samples: Number of samples.
        memory: Bytes that each process may take.
        ranks: Number of processes.
        staged: See :func:`plan_passes`, as for ``disk``.
        disk: Whether Grams lie on disk.

    Raises:
        ValueError: As of :func:`plan_passes`.

    Example:
        >>> from lightning_ssc.capture import Layer
        >>> layers = [WatchedLayer(Layer(name), 0, name, size) for name, size in (("a", 50), ("b", 30), ("c", 250))]
        >>> [[(s.layer, s.start, s.stop) for s in p] for p in plan_shared(layers, 10, 2 * 400 + 4000, 2, staged=False)]
        [[(0, 0, 50), (1, 0, 30), (2, 0, 100)], [(2, 100, 200)], [(2, 200, 250)]]
    """
    plans = []
    for rank in range(ranks):
        if own := share_layers(layers, rank, ranks):
            numbers = [number for number, layer in enumerate(layers) if layer in own]
            plan = plan_passes(own, samples, memory, staged=staged, disk=disk)
            plans.append([[replace(part, layer=numbers[part.layer]) for part in group] for group in plan])
    return [
        sorted((part for group in groups for part in group), key=lambda part: part.layer)
        for groups in zip_longest(*plans, fillvalue=())
    ]


def room(layers: Sequence[WatchedLayer], samples: int, memory: int, disk: bool = False) -> int:
    """Bytes that a budget leaves for activations beside work on Grams on disk, or beside two Grams in memory.

    There is one Gram, but it may have to be formed in float64, which takes as much as two in float32.
    """
    return memory - (_WORK if disk else 2 * _bytes_of_gram(layers, samples))


def goes_to_disk(layers: Sequence[WatchedLayer], samples: int, memory: int, on_cpu: bool) -> bool:
    """Whether Grams have to lie on disk: large ones of a CPU that the budget does not hold.

    Example:
        >>> from lightning_ssc.capture import Layer
        >>> layers = [WatchedLayer(Layer("a"), 0, "a", 500)]
        >>> [goes_to_disk(layers, 50_000, memory * 10**9, on_cpu=True) for memory in (8, 32)]
        [True, False]
    """
    gram, column = _bytes_of_gram(layers, samples), samples * max(layer.dtype.itemsize for layer in layers)
    return on_cpu and gram >= _LARGE and memory < 2 * gram + column


def _bytes_of_gram(layers: Sequence[WatchedLayer], samples: int) -> int:
    return samples * samples * max(layer.dtype.itemsize for layer in layers)
