"""Which part of a batch says the classes, and what counts as classes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_ssc.capture.batches import fields, rest_of

_KEYS = ("labels", "label", "targets", "target", "y", "class", "class_id", "fine_label", "category")
_DIFFERENT = 0.9  # share of values that differ above which they are ids, file names or places, and no classes
_FEW = 10  # samples among which that may be chance

Path = tuple[Any, ...]
"""Keys, places and attributes that lead from a batch to a part of it."""


class Classes(NamedTuple):
    """The class of every sample.

    Attributes:
        numbers: ``(N,)`` int64; negative where a sample has none.
        names: What texts the numbers stand for, by number; empty where they were numbers.
    """

    numbers: Tensor
    names: tuple[str, ...] = ()


def as_classes(targets: Any, names: Sequence[str] = (), *, known: bool = False) -> Classes | None:
    """Targets as one class a sample, or ``None`` where they are no classes.

    Classes are integers, truth values, whole numbers in floating point, ``(N,)`` or ``(N, 1)``; a single one in each
    row of zeros ``(N, C)``; or texts. What differs from sample to sample (ids, places, file names) is no class.
    Negative numbers, as -1 and -100 for inputs to be ignored, stand for no class; all negative ones are none at all.

    Args:
        targets: A tensor, array or list.
        names: Names of the classes by number, by which texts are numbered; by default in their alphabetical order.
        known: Whether they are known to be classes even where all differ, as one sample a class does.

    Example:
        >>> as_classes(torch.tensor([[0, 0, 1], [1, 0, 0]])).numbers.tolist()
        [2, 0]
        >>> as_classes(["dog", "cat", "dog"])
        Classes(numbers=tensor([1, 0, 1]), names=('cat', 'dog'))
        >>> as_classes(torch.arange(100)), as_classes(torch.rand(3))
        (None, None)
    """
    if isinstance(targets, (list, tuple)) and targets and all(isinstance(t, Tensor) and t.dim() == 0 for t in targets):
        targets = torch.stack(targets)
    if not isinstance(targets, Tensor):
        if not isinstance(targets, (np.ndarray, list, tuple)):
            return None
        try:
            array = np.asarray(targets)
        except ValueError:  # ragged
            return None
        if array.dtype.kind == "U" and array.ndim == 1:
            return _of_texts(array, names, known)
        if array.dtype.kind not in "iubf":
            return None
        targets = torch.from_numpy(array)
    if targets.layout != torch.strided or targets.is_complex() or targets.is_quantized:
        return None
    targets = targets.detach().cpu()
    if targets.dim() == 2:
        targets = targets[:, 0] if targets.shape[1] == 1 else _positions(targets)
    if targets is None or targets.dim() != 1 or not len(targets):
        return None
    if targets.is_floating_point() and not bool((targets == targets.round()).all()):  # also NaN and infinity are none
        return None
    numbers = targets.long()
    labelled = numbers[numbers >= 0]
    if not len(labelled) or (not known and _all_differ(len(labelled.unique()), len(labelled))):
        return None
    return Classes(numbers)


def _of_texts(array: Any, names: Sequence[str], known: bool) -> Classes | None:
    found, numbers = np.unique(array, return_inverse=True)
    if not known and _all_differ(len(found), len(array)):
        return None
    if set(found.tolist()) <= set(names):
        numbers, found = np.array([list(names).index(text) for text in found.tolist()])[numbers], np.array(names)
    return Classes(torch.from_numpy(numbers).long(), tuple(found.tolist()))


def _positions(targets: Tensor) -> Tensor | None:
    """Of rows of one 1 among zeros the place of the 1."""
    ones = targets == 1
    return ones.long().argmax(1) if bool((ones.sum(1) == 1).all() and ((targets == 0) | ones).all()) else None


def _all_differ(values: int, samples: int) -> bool:
    return samples > _FEW and values > _DIFFERENT * samples


def are_ids(targets: Any) -> bool:
    """Whether a part of a batch tells samples apart: whole numbers or texts of which nearly all differ."""
    if isinstance(targets, Tensor):
        whole = targets.dim() == 1 and not (targets.is_floating_point() or targets.is_complex())
        return whole and len(targets) > 1 and _differ(targets.tolist())
    texts = isinstance(targets, (list, tuple)) and bool(targets) and all(isinstance(t, str) for t in targets)
    return texts and _differ(list(targets))


def _differ(values: list[Any]) -> bool:
    return len(set(values)) > _DIFFERENT * len(values)


def joined(targets: Sequence[Any]) -> Any:
    """The targets of several batches as those of one, ``None`` where they are not of a kind that classes come in."""
    if all(isinstance(t, Tensor) and t.dim() == targets[0].dim() > 0 for t in targets):
        return torch.cat(list(targets)) if len({t.shape[1:] for t in targets}) == 1 else None
    if all(isinstance(t, np.ndarray) for t in targets):
        return np.concatenate(list(targets)) if len({t.shape[1:] for t in targets}) == 1 else None
    return [*itertools.chain(*targets)] if all(isinstance(t, (list, tuple)) for t in targets) else None


def label_path(batch: Any) -> Path | None:
    """Where batches keep their targets, whether these are classes or not; ``None`` where there are none.

    A dict, dataclass or other object keeps them under a name such as ``labels`` or ``y``; a tuple of several entries in
    the last of them, or before it where that holds classes and the last one tells samples apart (indices, file names).

    Example:
        >>> label_path((torch.zeros(3, 2), torch.tensor([0, 1, 1]))), label_path({"x": torch.zeros(3), "label": [0, 1]})
        ((1,), ('label',))
        >>> label_path((torch.zeros(2, 5), [1, 1], ["a.png", "b.png"]))
        (1,)
    """
    if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields"):
        if len(batch) < 2:
            return None
        place = len(batch) - 1
        if len(batch) > 2 and are_ids(batch[place]) and as_classes(batch[place - 1]) is not None:
            place -= 1
        inner = label_path(batch[place]) if isinstance(batch[place], Mapping) else None
        return (place, *(inner or ()))
    named = fields(batch)
    for key in _KEYS:
        if named.get(key) is not None:
            inner = label_path(named[key]) if isinstance(named[key], Mapping) else None
            return (key, *(inner or ()))
    if hasattr(batch, "_fields") and len(batch) > 1:
        return (batch._fields[-1],)
    return None


def at(batch: Any, path: Path | None) -> Any:
    """A part of a batch, ``None`` where there is no such part."""
    if path is None:
        return None
    for key in path:
        entries = dict(enumerate(batch)) | fields(batch) if isinstance(batch, (tuple, list)) else fields(batch)
        if key not in entries:
            return None
        batch = entries[key]
    return batch


def split_batch(batch: Any) -> tuple[Any, Tensor | None]:
    """What of a batch the network takes, and the class labels if there are any.

    ``(x, y)`` gives x and y; of a longer tuple the last entry is the labels and the rest the inputs; a dict gives up
    its ``labels``, ``label``, ``targets``, ``target`` or ``y``. Targets that are no classes (images of an autoencoder,
    several labels at once, see :func:`as_classes`) give ``None``.

    Example:
        >>> inputs, labels = split_batch({"tokens": torch.zeros(4, 7), "label": torch.tensor([0, 1, 1, 0])})
        >>> list(inputs), labels.tolist()
        (['tokens'], [0, 1, 1, 0])
    """
    path = label_path(batch)
    classes = as_classes(at(batch, path))
    return rest_of(batch, path), None if classes is None else classes.numbers
