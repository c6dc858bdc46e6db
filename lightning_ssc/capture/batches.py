"""Batches as users' loaders give them, of whatever type, and how samples are taken out of them.

Tensors and collections of them (tuples, dicts, dataclasses) are cut along their first dimension. Lists with an entry a
sample, as detection has them, are cut as lists; graphs that PyG has joined into one are taken apart by its own means.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


class SampleList(list[Any]):
    """Inputs with an entry a sample, which a network takes as one argument (images for a detector)."""


# -- Collections


def fields(batch: Any) -> dict[Any, Any]:
    """Named parts of a batch: entries of a mapping, fields of a named tuple, attributes of an object.

    Example:
        >>> fields({"x": 1}), fields((1, 2))
        ({'x': 1}, {})
    """
    if isinstance(batch, Mapping):
        return dict(batch.items())
    if hasattr(batch, "_fields"):
        return dict(batch._asdict())
    if isinstance(batch, (tuple, list, Tensor)) or not hasattr(batch, "__dict__"):
        return {}
    if callable(getattr(batch, "to_dict", None)):  # PyG's, which do not keep them as attributes
        named: dict[Any, Any] = dict(batch.to_dict())
        named.update(named.pop("_global_store", {}))  # of graphs with nodes of several kinds, what is of the graph
        return named
    return dict(vars(batch))


def mapped(batch: Any, change: Callable[[Tensor], Any]) -> Any:
    """A batch with every tensor in it changed; what holds tensors keeps its type.

    Example:
        >>> mapped({"x": torch.ones(2), "name": "a"}, lambda t: t.tolist())
        {'x': [1.0, 1.0], 'name': 'a'}
    """
    if isinstance(batch, Tensor):
        return change(batch)
    made: Any
    if isinstance(batch, MutableMapping):
        made = copy.copy(batch)
        for key, value in batch.items():
            made[key] = mapped(value, change)
        return made
    if isinstance(batch, Mapping):
        return {key: mapped(value, change) for key, value in batch.items()}
    if hasattr(batch, "_fields"):
        return type(batch)(*(mapped(value, change) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(mapped(value, change) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        made = copy.copy(batch)
        for field in dataclasses.fields(batch):
            if hasattr(batch, field.name):
                object.__setattr__(made, field.name, mapped(getattr(batch, field.name), change))
        return made
    return batch


def tensors(batch: Any) -> Iterator[Tensor]:
    """Every tensor in a batch, in its order, those of objects too.

    Example:
        >>> [len(t) for t in tensors((torch.ones(2), {"a": torch.ones(3)}))]
        [2, 3]
    """
    left, seen = [batch], set()
    while left:
        found = left.pop()
        if isinstance(found, Tensor):
            yield found
        elif isinstance(found, (tuple, list)) and not hasattr(found, "_fields"):
            left += reversed(found)
        elif not isinstance(found, (str, bytes, type)) and id(found) not in seen:
            seen.add(id(found))  # objects may hold one another
            left += reversed(fields(found).values())


def detached(batch: Any) -> Any:
    """A batch whose tensors are not part of a graph of gradients."""
    return mapped(batch, Tensor.detach)


def moved(batch: Any, device: torch.device | None) -> Any:
    """A batch on another device; objects are moved by their own ``to``."""
    if not isinstance(batch, (Tensor, Mapping, tuple, list)) and callable(getattr(batch, "to", None)):
        return batch.to(device)
    return mapped(batch, lambda t: t.to(device))


def rest_of(batch: Any, path: tuple[Any, ...] | None) -> Any:
    """A batch without the targets at the end of a path: what the network takes.

    Of a tuple it is what stands before them, on its own where that is one thing. Objects keep what they have.
    """
    if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields"):
        if len(batch) == 1:
            return batch[0]
        if path is None:
            return batch
        rest = tuple(batch[: path[0]])
        entry = rest[0] if len(rest) == 1 else rest
        return SampleList(entry) if listed(batch) and len(rest) == 1 and isinstance(entry, (tuple, list)) else entry
    if isinstance(batch, Mapping):
        return {k: v for k, v in batch.items() if (path is None or k != path[0]) and any(True for _ in tensors(v))}
    if hasattr(batch, "_fields") and path is not None:
        rest = tuple(value for name, value in batch._asdict().items() if name != path[0])
        return rest[0] if len(rest) == 1 else rest
    return batch


# -- Samples


def is_graphs(batch: Any) -> bool:
    """Whether a batch is of graphs joined into one, as PyG does it."""
    return hasattr(batch, "num_graphs") and callable(getattr(batch, "to_data_list", None))


def _holds_graphs(batch: Any) -> bool:
    """Whether a batch is a tuple in which graphs joined into one stand, beside their labels, say."""
    return isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields") and any(map(is_graphs, batch))


def listed(batch: Any) -> int | None:
    """The number of samples in a tuple of lists with an entry a sample (``tuple(zip(*items))``), else ``None``."""
    if (
        not isinstance(batch, (tuple, list))
        or not batch
        or not all(isinstance(e, (tuple, list, Tensor)) for e in batch)
    ):
        return None
    lists = [entry for entry in batch if isinstance(entry, (tuple, list))]
    lengths = {len(entry) if not isinstance(entry, Tensor) or entry.dim() else 0 for entry in batch}
    per_sample = any(isinstance(e, Mapping) or is_image(e) for entry in lists for e in entry[:1])
    return lengths.pop() if len(batch) > 1 and per_sample and len(lengths) == 1 else None


def is_image(entry: Any) -> bool:
    """Whether something is a tensor of one image, ``(C, H, W)``."""
    return isinstance(entry, Tensor) and entry.dim() == 3 and entry.shape[0] in (1, 3, 4)


def count(batch: Any) -> int | None:
    """The number of samples in a batch, or ``None`` where its tensors do not agree on one."""
    if is_graphs(batch):
        return int(batch.num_graphs)
    if _holds_graphs(batch):
        counts = {count(entry) for entry in batch}
        return counts.pop() if len(counts) == 1 else None
    if isinstance(batch, SampleList):
        return len(batch)
    if (n := listed(batch)) is not None:
        return n
    if not isinstance(batch, (Tensor, Mapping, tuple, list)) and not dataclasses.is_dataclass(batch):
        return None
    sizes = {len(t) if t.dim() else 0 for t in tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else None


def batch_size(inputs: Any) -> int:
    """The number of samples in inputs.

    Raises:
        ValueError: There is no tensor, or tensors do not agree in their first dimension.
    """
    if hasattr(inputs, "samples"):
        return int(inputs.samples)
    found = count(inputs)
    if found is not None:
        return found
    sizes = [len(t) if t.dim() else 0 for t in tensors(inputs)]
    if not sizes:
        raise ValueError(
            f"A probe needs inputs in tensors, found {type(inputs).__name__}. Give it tensors (torch.from_numpy turns "
            f"arrays into them), a data set or a DataLoader."
        )
    of = "" if isinstance(inputs, (tuple, list, Mapping)) else f" in {type(inputs).__name__}"
    raise ValueError(
        f"A probe needs tensors that agree in their first dimension, the sample; found sizes {sizes}{of}. Use forward= "
        f"to give the network what is the same for all samples."
    )


def take(inputs: Any, rows: Tensor | slice, samples: int | None = None) -> Any:
    """The same samples of everything in a batch.

    Args:
        inputs: The batch.
        rows: Which.
        samples: How many samples there are; tensors of another length, which are not of samples, are left whole.
    """
    if hasattr(inputs, "samples"):
        return inputs.take(rows)
    if is_graphs(inputs):
        chosen = range(inputs.num_graphs)[rows] if isinstance(rows, slice) else rows.tolist()
        graphs = inputs.to_data_list()
        return type(inputs).from_data_list([graphs[i] for i in chosen])
    if _holds_graphs(inputs):
        return type(inputs)(take(entry, rows, samples) for entry in inputs)
    if listed(inputs) is not None:
        return type(inputs)(
            e[rows] if isinstance(e, Tensor) or isinstance(rows, slice) else type(e)(e[i] for i in rows.tolist())
            for e in inputs
        )
    return mapped(inputs, lambda t: t[rows] if samples is None or (t.dim() and len(t) == samples) else t)


def concatenate(parts: list[Any]) -> Any:
    """Batches of the same structure, joined along the samples.

    Raises:
        RuntimeError: They hold tensors of other shapes, as padded batch by batch.
        TypeError: They hold objects of which it is not known how to join them.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if is_graphs(first):
        return type(first).from_data_list([graph for part in parts for graph in part.to_data_list()])
    if listed(first) is not None:
        entries = zip(*parts, strict=True)
        return tuple(torch.cat(e) if isinstance(e[0], Tensor) else [*itertools.chain(*e)] for e in entries)
    if isinstance(first, Mapping):
        return {k: concatenate([p[k] for p in parts]) for k in first}
    if isinstance(first, (tuple, list)) and not isinstance(first[0], str):
        return tuple(concatenate([p[i] for p in parts]) for i in range(len(first)))
    if isinstance(first, (tuple, list)):
        return [text for part in parts for text in part]
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        joined = {f.name: concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(first)}
        return dataclasses.replace(first, **joined)
    if any(True for _ in tensors(first)):
        raise TypeError(f"objects of {type(first).__name__} cannot be joined")
    return first


def first_loader(loaders: Any) -> Any:
    """The first loader of what ``val_dataloader()`` may return: one, a list, a dict or a ``CombinedLoader`` of them."""
    while isinstance(loaders, (list, tuple, dict)) or hasattr(loaders, "iterables"):
        loaders = getattr(loaders, "iterables", loaders)  # a CombinedLoader
        if isinstance(loaders, (list, tuple, dict)):
            loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders), None)
    return loaders
