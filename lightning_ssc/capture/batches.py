"""Batches as users' loaders give them: tensors, tuples and dicts with the sample as first dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


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


def take(inputs: Any, rows: Tensor | slice) -> Any:
    """The same rows of every tensor in a collection."""
    return apply_to_collection(inputs, Tensor, lambda t: t[rows])


def concatenate(parts: list[Any]) -> Any:
    """Collections of tensors of the same structure, joined along the samples."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {k: concatenate([p[k] for p in parts]) for k in first}
    return tuple(concatenate([p[i] for p in parts]) for i in range(len(first)))


def first_loader(loaders: Any) -> Any:
    """The first loader of what ``val_dataloader()`` may return: one, a list, a dict or a ``CombinedLoader`` of them."""
    while isinstance(loaders, (list, tuple, dict)) or hasattr(loaders, "iterables"):
        loaders = getattr(loaders, "iterables", loaders)  # a CombinedLoader
        if isinstance(loaders, (list, tuple, dict)):
            loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders), None)
    return loaders


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
        return rest, None if key is None else as_classes(batch[key])
    if isinstance(batch, (tuple, list)):
        if len(batch) == 1:
            return batch[0], None
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        return inputs, as_classes(batch[-1])
    return batch, None


def _holds_tensor(value: Any) -> bool:
    found: list[bool] = []
    apply_to_collection(value, Tensor, lambda t: found.append(True))
    return bool(found)


def as_classes(targets: Any) -> Tensor | None:
    """Targets as ``(N,)`` integer classes, or ``None`` where they are not one integer a sample."""
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
