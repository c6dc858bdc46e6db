"""The fixed probe set: inputs drawn once, the same in the same order for the whole run."""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from lightning_ssc.capture.batches import as_classes, batch_size, concatenate, split_batch, take
from lightning_ssc.capture.isolation import isolated_random_state

log = logging.getLogger(__name__)

ProbeSource = Dataset[Any] | DataLoader[Any] | tuple[Any, ...] | Tensor

# A data set without readable targets is sampled this many times over before classes are balanced within the sample.
_CANDIDATES = 4


@dataclass(frozen=True)
class Probe:
    """The inputs whose representations are followed, the same in the same order for the whole run.

    Attributes:
        inputs: What the network's forward takes, on the CPU: a tensor, or a tuple, list or dict that holds tensors
            whose first dimension is the sample.
        labels: ``(N,)`` int64 class of every sample, or ``None``.
        indices: ``(N,)`` int64 place of every sample in its data set, or ``None`` for tensors that were handed over.
    """

    inputs: Any
    labels: Tensor | None
    indices: Tensor | None

    def __len__(self) -> int:
        return batch_size(self.inputs)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of inputs and labels: equal for equal probes, so that a changed probe is noticed on resume."""
        digest = hashlib.sha256()

        def add(tensor: Tensor) -> None:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

        apply_to_collection([self.inputs, self.labels], Tensor, add)
        return digest.hexdigest()[:16]


def make_probe(source: ProbeSource, size: int = 1000, seed: int = 0) -> Probe:
    """Draw a probe from a data set, or take tensors as they are.

    From a data set or a loader (whose data set and ``collate_fn`` are used, never its sampler) ``size`` samples are
    drawn with an equal share for every class, as far as the classes reach. Tensors are taken whole, in their order.
    Global random states are as before on return.

    Args:
        source: A map-style or iterable data set, a ``DataLoader`` over one, ``(inputs, labels)``, or inputs alone.
        size: How many samples to draw. Where there are fewer all are taken, and a warning says so.
        seed: Seed of the draw.

    Returns:
        The probe, on the CPU.

    Raises:
        ValueError: There are fewer than three samples, or inputs and labels differ in length.

    Example:
        >>> probe = make_probe((torch.rand(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])))
        >>> len(probe), probe.labels.tolist()
        (6, [0, 0, 1, 1, 2, 2])
    """
    with isolated_random_state():
        torch.manual_seed(seed)  # items that are random after all come out the same in every run and on every rank
        if isinstance(source, (Tensor, tuple, list)):
            return _checked(*split_batch(source), indices=None)
        dataset = source.dataset if isinstance(source, DataLoader) else source
        collate = source.collate_fn if isinstance(source, DataLoader) else default_collate
        in_batches = isinstance(source, DataLoader) and source.batch_size is None and source.batch_sampler is None
        if in_batches or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            probe = _from_stream(_copied(source), collate, size)
        else:
            probe = _from_dataset(dataset, collate, size, torch.Generator().manual_seed(seed))
    if len(probe) < size:
        log.warning(
            "The probe is all of the %d samples that there are, fewer than the %d asked for. Lower probe_size, or name "
            "a larger data set for the probe.", len(probe), size,
        )  # fmt: skip
    return probe


def _from_dataset(dataset: Any, collate: Callable[..., Any], size: int, generator: torch.Generator) -> Probe:
    if len(dataset) == 0:
        raise ValueError("The probe's data set is empty. Give it data.")
    order = torch.randperm(len(dataset), generator=generator)
    targets = _readable_targets(dataset)
    if targets is not None:
        indices = order[balanced(targets[order], size)].sort().values
        inputs, labels = split_batch(collate([dataset[i] for i in indices.tolist()]))
        return _checked(inputs, labels, indices)
    candidates = order[: min(len(order), _CANDIDATES * size)]
    inputs, labels = split_batch(collate([dataset[i] for i in candidates.tolist()]))
    return _thin_out(inputs, labels, candidates, size)


def _copied(source: Any) -> Any:
    """A copy of a stream: running through one moves on its place and the generators that it may share with training."""
    try:
        return copy.deepcopy(source)
    except Exception as error:  # whatever users' streams hold: files, connections, locks
        log.warning(
            "The probe is read from a %s that cannot be copied (%s). If training draws from the same stream or random "
            "generator, it goes another way than without the probe; probe= takes tensors.",
            type(source).__name__, error,
        )  # fmt: skip
        return source


def _from_stream(source: Any, collate: Callable[..., Any], size: int) -> Probe:
    if not isinstance(source, Dataset):  # a loader, or whatever else yields batches
        batches, count = [], 0
        for batch in source:
            batches.append(split_batch(batch))
            count += batch_size(batches[-1][0])
            if count >= _CANDIDATES * size:
                break
        if not batches:
            raise ValueError("The probe's loader yields no batch.")
        inputs = concatenate([inputs for inputs, _ in batches])
        labels = None if batches[0][1] is None else torch.cat([y for _, y in batches if y is not None])
    else:
        items = itertools.islice(cast("Iterable[Any]", source), _CANDIDATES * size)
        inputs, labels = split_batch(collate(list(items)))
    return _thin_out(inputs, labels, torch.arange(batch_size(inputs)), size)


def _thin_out(inputs: Any, labels: Tensor | None, indices: Tensor, size: int) -> Probe:
    """Balance a sample of candidates, in the order of the data set."""
    keep = balanced(labels, size) if labels is not None else torch.arange(min(size, len(indices)))
    keep = keep[indices[keep].argsort()]
    return _checked(take(inputs, keep), None if labels is None else labels[keep], indices[keep])


def _checked(inputs: Any, labels: Tensor | None, indices: Tensor | None) -> Probe:
    inputs = apply_to_collection(inputs, Tensor, lambda t: t.detach().cpu())
    n = batch_size(inputs)
    if n < 3:
        raise ValueError(f"The probe has {n} samples; a graph over inputs needs at least 3. Give it more data.")
    if labels is not None and len(labels) != n:
        raise ValueError(f"The probe has {n} inputs and {len(labels)} labels. Give one label for every input, or none.")
    return Probe(inputs, None if labels is None else labels.detach().cpu().long(), indices)


def _readable_targets(dataset: Any) -> Tensor | None:
    """Class of every item where it can be had without reading the items (torchvision's and tensor data sets)."""
    if isinstance(dataset, Subset):
        targets = _readable_targets(dataset.dataset)
        return None if targets is None else targets[torch.as_tensor(dataset.indices)]
    tensors = getattr(dataset, "tensors", None)
    targets = as_classes(getattr(dataset, "targets", None) if tensors is None else tensors[-1])
    return targets if targets is not None and len(targets) == len(dataset) else None


def balanced(labels: Tensor, size: int) -> Tensor:
    """Positions of ``size`` samples, the first of each class in equal shares as far as the classes reach.

    Args:
        labels: ``(N,)`` integer class of every sample.
        size: How many positions to return; all of them where there are no more.

    Returns:
        ``(min(size, N),)`` positions in ascending order.

    Example:
        >>> balanced(torch.tensor([0, 0, 0, 0, 1, 2, 2]), 5).tolist()
        [0, 1, 4, 5, 6]
    """
    by_class = labels.argsort(stable=True)
    members = labels[by_class].unique_consecutive(return_counts=True)[1]
    place_in_class = torch.empty_like(by_class)
    place_in_class[by_class] = torch.arange(len(labels)) - (members.cumsum(0) - members).repeat_interleave(members)
    return place_in_class.argsort(stable=True)[:size].sort().values
