"""The fixed probe set: inputs drawn once, the same in the same order for the whole run."""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from lightning_ssc.capture.batches import batch_size, concatenate, count, detached, is_graphs, moved, rest_of, tensors
from lightning_ssc.capture.isolation import isolated_random_state, seed_everything
from lightning_ssc.capture.labels import Classes, as_classes, at, joined, label_path
from lightning_ssc.capture.pictures import class_names
from lightning_ssc.capture.samples import Samples, nodes_of, sizes_of

log = logging.getLogger(__name__)

ProbeSource = Dataset[Any] | DataLoader[Any] | tuple[Any, ...] | Tensor

# A data set without readable targets is sampled this many times over before classes are balanced within the sample.
_CANDIDATES = 4
_WHOLE = (Tensor, tuple, list, Mapping)  # what is taken as it is, and not drawn from


@dataclass(frozen=True)
class Probe:
    """The inputs whose representations are followed, the same in the same order for the whole run.

    Attributes:
        inputs: What the network's forward takes, on the CPU: a tensor, or a tuple, list or dict that holds tensors
            whose first dimension is the sample; or :attr:`samples`, where batches are of another kind.
        labels: ``(N,)`` int64 class of every sample, negative where it has none, or ``None``.
        indices: ``(N,)`` int64 place of every sample in its data set, or ``None`` for tensors that were handed over.
        samples: What is run: batches with their targets, as loaders give them; by default the inputs.
        names: What texts the classes stand for, where labels were texts.
        classes: How many classes the data set has, where it tells.
    """

    inputs: Any
    labels: Tensor | None
    indices: Tensor | None
    samples: Samples | None = None
    names: tuple[str, ...] = ()
    classes: int | None = None

    def __len__(self) -> int:
        return batch_size(self.inputs)

    @property
    def batches(self) -> Samples:
        """The samples in the form in which they are run."""
        return Samples((self.inputs,), (len(self),)) if self.samples is None else self.samples

    @cached_property
    def fingerprint(self) -> str:
        """A digest of inputs and labels: equal for equal probes, so that a changed probe is noticed on resume."""
        digest = hashlib.sha256()

        def add(tensor: Tensor) -> None:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
            digest.update(dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

        parts = (*self.inputs.parts, self.inputs.nodes) if isinstance(self.inputs, Samples) else self.inputs
        for tensor in tensors([parts, self.labels]):
            add(tensor)
        return digest.hexdigest()[:16]


def make_probe(source: ProbeSource, size: int = 1000, seed: int = 0) -> Probe:
    """Draw a probe from a data set, or take tensors as they are.

    From a data set or a loader (whose data set and ``collate_fn`` are used, never its sampler) ``size`` samples are
    drawn with an equal share for every class, as far as the classes reach. Tensors are taken whole, in their order.
    Batches of any kind will do that the network takes: what cannot be joined to one batch (graphs, images of several
    sizes, sequences padded batch by batch) is run in batches of its own. Of one big graph the nodes are the samples:
    those of its ``probe_mask`` or ``val_mask``, or all. Global random states are as before on return.

    Args:
        source: A map-style or iterable data set, a ``DataLoader`` over one, ``(inputs, labels)``, or inputs alone.
        size: How many samples to draw. Where there are fewer all are taken, and a warning says so.
        seed: Seed of the draw.

    Returns:
        The probe, on the CPU.

    Raises:
        ValueError: There are fewer than three samples, inputs and labels differ in length, or batches are of a kind
            whose samples cannot be counted.

    Example:
        >>> probe = make_probe((torch.rand(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])))
        >>> len(probe), probe.labels.tolist()
        (6, [0, 0, 1, 1, 2, 2])
    """
    with isolated_random_state(source):
        seed_everything(seed)  # items that are random after all come out the same in every run and on every rank
        source = _graphs_in(source)
        is_data_set = isinstance(source, list) and _is_pyg(source)
        if is_graphs(source) or nodes_of(source) is not None or (isinstance(source, _WHOLE) and not is_data_set):
            samples, classes = _as_samples([source])
            return _checked(samples, classes, samples.nodes, None)
        dataset = source.dataset if isinstance(source, DataLoader) else source
        collate = source.collate_fn if isinstance(source, DataLoader) else _collate
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


def _graphs_in(source: Any) -> Any:
    """What the only entry of a tuple holds, where that is graphs, which say themselves what their labels are."""
    if isinstance(source, tuple) and len(source) == 1:
        inner = source[0]
        if isinstance(inner, list):
            return _collate(inner) if _is_pyg(inner) else source
        if is_graphs(inner) or (not isinstance(inner, tuple) and nodes_of(inner) is not None):
            return inner
    return source


def _is_pyg(items: Sequence[Any]) -> bool:
    return bool(items) and type(items[0]).__module__.startswith("torch_geometric.")


def _collate(items: list[Any]) -> Any:
    """PyTorch's default, and PyG's for its graphs."""
    if _is_pyg(items):
        return sys.modules["torch_geometric.data"].Batch.from_data_list(items)
    try:
        return default_collate(items)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"The items of the probe's data set cannot be joined to a batch ({type(error).__name__}: {error}). Give "
            f"probe= a DataLoader whose collate_fn does it."
        ) from error


def _from_dataset(dataset: Any, collate: Callable[..., Any], size: int, generator: torch.Generator) -> Probe:
    if len(dataset) == 0:
        raise ValueError("The probe's data set is empty. Give it data.")
    order = torch.randperm(len(dataset), generator=generator)
    names = class_names(*_within(dataset))
    targets = _readable_targets(dataset)
    if targets is not None:
        indices = order[balanced(targets.numbers[order], size)].sort().values
    else:
        indices = order[: min(len(order), _CANDIDATES * size)]
    items = [dataset[i] for i in indices.tolist()]
    batch = collate(items)
    if len(items) == 1 and nodes_of(rest_of(batch, label_path(batch))) is not None:
        samples, classes = _as_samples([batch], names)
        indices = torch.arange(batch_size(samples))
    elif count(batch) == len(items) and not is_graphs(batch):
        samples, classes = _as_samples([batch], names, known=targets is not None)
    else:
        path = label_path(batch)
        samples = Samples(tuple(items), (1,) * len(items), path, collate)
        classes = as_classes(at(batch, path), names, known=targets is not None)
        classes = classes if classes is not None and len(classes.numbers) == len(items) else None
    if targets is not None and classes is not None:
        return _checked(samples, classes, indices, len(names) or None)
    return _probe(samples, classes, indices, size, names)


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
        batches, held = [], 0
        for batch in source:
            batches.append(batch)
            held += sizes_of([batch], [at(batch, label_path(batch))])[0]
            if held >= _CANDIDATES * size:
                break
        if not batches:
            raise ValueError("The probe's loader yields no batch.")
    else:
        batches = [collate(list(itertools.islice(cast("Iterable[Any]", source), _CANDIDATES * size)))]
    samples, classes = _as_samples(batches)
    return _probe(samples, classes, torch.arange(batch_size(samples)), size)


def _as_samples(
    batches: list[Any], names: tuple[str, ...] = (), *, known: bool = False
) -> tuple[Samples, Classes | None]:
    """Batches with their targets as samples that are joined where they can be."""
    path = label_path(batches[0])
    targets = [at(batch, path) for batch in batches]
    classes = as_classes(joined(targets), names, known=known)
    if len(batches) == 1:
        batch = batches[0]
        inputs = rest_of(batch, path)
        given = at(batch, path)
        nodes = nodes_of(inputs, given if isinstance(given, Tensor) else None)
        if nodes is not None:
            if classes is not None:
                classes = classes._replace(numbers=classes.numbers[nodes])
            return Samples((batch,), (len(nodes),), path, nodes=nodes), classes
        if is_graphs(batch):
            graphs = batch.to_data_list()
            return Samples(tuple(graphs), (1,) * len(graphs), path, type(batch).from_data_list), classes
        n = batch_size(inputs)
        if classes is not None and len(classes.numbers) != n:
            raise ValueError(
                f"The probe has {n} inputs and {len(classes.numbers)} labels. Give one label for every input, or none."
            )
        return Samples((batch,), (n,), path), classes
    if is_graphs(batches[0]):
        graphs = [graph for batch in batches for graph in batch.to_data_list()]
        return Samples(tuple(graphs), (1,) * len(graphs), path, type(batches[0]).from_data_list), classes
    sizes = sizes_of(batches, targets)
    if all(count(batch) is not None for batch in batches):
        try:
            whole = concatenate(batches)
        except (RuntimeError, LookupError, TypeError):  # of other shapes: padded batch by batch, say
            pass
        else:
            return Samples((whole,), (sum(sizes),), path), classes
    return Samples(tuple(batches), sizes, path), classes


def _probe(samples: Samples, classes: Classes | None, indices: Tensor, size: int, names: tuple[str, ...] = ()) -> Probe:
    """Balance a sample of candidates, in the order of the data set; of whole batches take as many as it needs."""
    known = len(names) or None
    if samples.whole:
        ends = torch.tensor(samples.sizes).cumsum(0)
        used = min(int((ends < size).sum()) + 1, len(ends))
        keep = torch.arange(int(ends[used - 1]))
        samples = replace(samples, parts=samples.parts[:used], sizes=samples.sizes[:used])
    else:
        keep = torch.arange(min(size, len(indices))) if classes is None else balanced(classes.numbers, size)
        keep = keep[indices[keep].argsort()]
        samples = samples.take(keep)
    if classes is not None:
        classes = classes._replace(numbers=classes.numbers[keep])
    return _checked(samples, classes, indices[keep] if samples.nodes is None else samples.nodes, known)


def _checked(samples: Samples, classes: Classes | None, indices: Tensor | None, known: int | None) -> Probe:
    cpu = torch.device("cpu")
    samples = replace(samples, parts=tuple(moved(detached(part), cpu) for part in samples.parts))
    n = batch_size(samples)
    if n < 3:
        raise ValueError(f"The probe has {n} samples; a graph over inputs needs at least 3. Give it more data.")
    plain = len(samples.parts) == 1 and samples.collate is None and samples.nodes is None
    inputs = rest_of(samples.parts[0], samples.path) if plain else samples
    labels, names = (None, ()) if classes is None else classes
    return Probe(inputs, labels, indices, samples, names, known)


def _within(dataset: Any) -> tuple[Any, ...]:
    """A data set and those that it is a subset of."""
    return (dataset, *_within(dataset.dataset)) if isinstance(dataset, Subset) else (dataset,)


def _readable_targets(dataset: Any) -> Classes | None:
    """Class of every item where it can be had without reading the items (torchvision's and tensor data sets)."""
    if isinstance(dataset, Subset):
        targets = _readable_targets(dataset.dataset)
        return None if targets is None else targets._replace(numbers=targets.numbers[torch.as_tensor(dataset.indices)])
    held = getattr(dataset, "tensors", None)
    path = None if held is None else label_path(held)
    targets = as_classes(
        getattr(dataset, "targets", None) if held is None else at(held, path), class_names(*_within(dataset))
    )
    return targets if targets is not None and len(targets.numbers) == len(dataset) else None


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
