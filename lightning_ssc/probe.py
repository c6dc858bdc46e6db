"""The fixed probe set, and a scope in which a network can be run without leaving a trace on its training."""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

log = logging.getLogger(__name__)

ProbeSource = Dataset[Any] | DataLoader[Any] | tuple[Any, ...] | Tensor

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")
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


def pictures(inputs: Any, largest: int = 64) -> NDArray[np.uint8] | None:
    """Inputs as ``(N, H, W, 3)`` uint8 pictures for people, or ``None`` where they are not images.

    Whatever normalisation the data went through is undone as far as eyes care: every channel is stretched to its range
    over the probe. Pictures with a side above ``largest`` are made smaller.

    Args:
        inputs: ``(N, 1 or 3, H, W)`` tensor, or anything else.
        largest: Longest side in pixels.

    Example:
        >>> pictures(torch.rand(5, 1, 28, 28)).shape, pictures(torch.rand(5, 10))
        ((5, 28, 28, 3), None)
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or inputs.shape[1] not in (1, 3):
        return None
    x = inputs.float()
    low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
    x = (x - low) / (high - low).clamp_min(1e-12)
    if (longest := max(x.shape[2:])) > largest:
        size = [max(1, round(side * largest / longest)) for side in x.shape[2:]]
        x = nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    pixels = (x * 255).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return pixels.contiguous().numpy()


def class_names(*owners: Any) -> tuple[str, ...]:
    """The first ``class_names`` or ``classes`` that one of the objects (a data module, a data set) carries.

    Example:
        >>> from types import SimpleNamespace
        >>> class_names(None, SimpleNamespace(classes=["cat", "dog"]))
        ('cat', 'dog')
    """
    for owner in owners:
        for attribute in ("class_names", "classes"):
            names = getattr(owner, attribute, None)
            if isinstance(names, (list, tuple)):
                return tuple(str(name) for name in names)
    return ()


def batch_size(inputs: Any) -> int:
    """The number of samples in a tensor or a collection of tensors."""
    sizes: list[int] = []
    apply_to_collection(inputs, Tensor, lambda t: sizes.append(len(t) if t.dim() else 0))
    if not sizes:
        raise ValueError(
            f"A probe needs inputs in tensors, found {type(inputs).__name__}. Give it tensors (torch.from_numpy turns "
            f"arrays into them), a data set or a DataLoader."
        )
    if len(set(sizes)) != 1:
        raise ValueError(
            f"A probe needs tensors that agree in their first dimension, the sample; found sizes {sizes}. Use "
            f"forward= to give the network what is the same for all samples."
        )
    return sizes[0]


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
            probe = _from_stream(source, collate, size)
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
        inputs = _concatenate([inputs for inputs, _ in batches])
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


def split_batch(batch: Any) -> tuple[Any, Tensor | None]:
    """What of a batch the network takes, and the class labels if there are any.

    ``(x, y)`` gives x and y; of a longer tuple the last entry is the labels and the rest the inputs; a dict gives up
    its ``labels``, ``label``, ``targets``, ``target`` or ``y``. Targets that are not one integer a sample (images of an
    autoencoder, several labels at once) are no classes and give ``None``.

    Example:
        >>> inputs, labels = split_batch({"tokens": torch.zeros(4, 7), "label": torch.tensor([0, 1, 1, 0])})
        >>> list(inputs), labels.tolist()
        (['tokens'], [0, 1, 1, 0])
    """
    if isinstance(batch, Mapping):
        key = next((k for k in _LABEL_KEYS if k in batch), None)
        rest = {k: v for k, v in batch.items() if k != key and _holds_tensor(v)}
        return rest, None if key is None else _as_classes(batch[key])
    if isinstance(batch, (tuple, list)):
        if len(batch) == 1:
            return batch[0], None
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        return inputs, _as_classes(batch[-1])
    return batch, None


def _holds_tensor(value: Any) -> bool:
    found: list[bool] = []
    apply_to_collection(value, Tensor, lambda t: found.append(True))
    return bool(found)


def _as_classes(targets: Any) -> Tensor | None:
    if not isinstance(targets, (Tensor, np.ndarray, list, tuple)):
        return None
    if not isinstance(targets, Tensor):
        try:
            array = np.asarray(targets)
        except ValueError:  # ragged
            return None
        if array.dtype.kind == "U":  # classes by their names
            array = np.unique(array, return_inverse=True)[1]
        if array.dtype.kind not in "iub":
            return None
        targets = torch.from_numpy(array)
    if targets.is_floating_point() or targets.is_complex():
        return None
    targets = targets.squeeze(1) if targets.dim() == 2 and targets.shape[1] == 1 else targets
    return targets if targets.dim() == 1 else None


def _readable_targets(dataset: Any) -> Tensor | None:
    """Class of every item where it can be had without reading the items (torchvision's and tensor data sets)."""
    if isinstance(dataset, Subset):
        targets = _readable_targets(dataset.dataset)
        return None if targets is None else targets[torch.as_tensor(dataset.indices)]
    tensors = getattr(dataset, "tensors", None)
    targets = _as_classes(getattr(dataset, "targets", None) if tensors is None else tensors[-1])
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
    place_in_class = torch.empty_like(labels, dtype=torch.long)
    for c in labels.unique():
        members = (labels == c).nonzero().squeeze(1)
        place_in_class[members] = torch.arange(len(members))
    return place_in_class.argsort(stable=True)[:size].sort().values


def take(inputs: Any, rows: Tensor | slice) -> Any:
    """The same rows of every tensor in a collection."""
    return apply_to_collection(inputs, Tensor, lambda t: t[rows])


def _concatenate(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {k: _concatenate([p[k] for p in parts]) for k in first}
    return tuple(_concatenate([p[i] for p in parts]) for i in range(len(first)))


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Every global random state (torch on CPU and the current devices, NumPy, Python) is the same after as before."""
    python = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002  # the state that a training run may draw from
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _eager() -> AbstractContextManager[None]:
    """Compiled modules run eagerly inside. Without dynamo loaded nothing is compiled, and loading it takes seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Run a network in evaluation mode and leave it, and every global state, as they were.

    Inside, every submodule is in evaluation mode, no gradient is recorded and compiled modules run eagerly (hooks never
    fire through a compiled module). On leaving, also by an exception, the ``training`` flag of every submodule, the
    buffers and the random states are restored. Flags are set directly: ``train()`` may be overridden, and would
    unfreeze what the user froze.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> with without_trace(net):
        ...     net(torch.ones(1, 2)).tolist(), net.training
        ([[0.9999949932098389, 0.9999949932098389]], False)
        >>> net.training
        True
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module, _ in flags
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with isolated_random_state(), torch.no_grad(), _eager():
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer  # a forward may have put another tensor in its place
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
