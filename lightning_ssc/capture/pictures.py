"""What people see of the probe: pictures of its inputs or their rows, and names of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_ssc.capture.batches import rest_of
from lightning_ssc.capture.samples import Samples

_CHUNK = 256  # inputs that are put together at a time


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


def rows(inputs: Any, *owners: Any, most: int = 400) -> tuple[str, ...]:
    """Inputs that are no pictures as texts for people: sentences, or numbers with the names of their columns.

    Token numbers become words where one of the owners (a module, a data module, a data set, a collate function) has a
    ``tokenizer`` with ``batch_decode``; columns are named where one has ``feature_names``.

    Args:
        inputs: A tensor ``(N, F)``; a tuple or mapping of tensors, of which ``input_ids`` or the first such counts; or
            :class:`~lightning_ssc.capture.samples.Samples` of these.
        owners: What may know more of the inputs.
        most: Letters of a text.

    Returns:
        A text an input, or none where the inputs are of another kind.

    Example:
        >>> from types import SimpleNamespace
        >>> rows(torch.tensor([[0.5, 2.0], [1.25, 3.0]]), SimpleNamespace(feature_names=["age", "size"]))
        ('age 0.5, size 2', 'age 1.25, size 3')
        >>> rows(torch.tensor([[7, 8, 9]]))
        ('7 8 9',)
    """
    if isinstance(inputs, Samples):
        parts = [inputs.take(chunk) for chunk in inputs.chunks(_CHUNK)] if inputs.nodes is None else []
        texts = tuple(text for part in parts for text in rows(rest_of(part.batch, part.path), *owners, most=most))
        return texts if len(texts) == len(inputs) else ()
    table = _table(inputs)
    if table is None:
        return ()
    if not table.is_floating_point():
        decode = next((f for owner in owners if (f := getattr(_of(owner, "tokenizer"), "batch_decode", None))), None)
        return tuple(
            text[:most] for text in _decoded(decode, table) or (" ".join(map(str, row)) for row in table.tolist())
        )
    names = next((list(found) for owner in owners if (found := _of(owner, "feature_names")) is not None), [])
    names = [f"{name} " for name in names] if len(names) == table.shape[1] else [""] * table.shape[1]
    return tuple(
        ", ".join(f"{name}{value:.4g}" for name, value in zip(names, row, strict=True))[:most] for row in table.tolist()
    )


def _of(owner: Any, name: str) -> Any:
    return getattr(owner, name, None)


def _table(inputs: Any) -> Tensor | None:
    """The ``(N, F)`` tensor among inputs that says what they are."""
    if isinstance(inputs, Tensor):
        return inputs if inputs.dim() == 2 and not inputs.is_complex() else None
    if isinstance(inputs, Mapping):
        inputs = [inputs["input_ids"]] if "input_ids" in inputs else list(inputs.values())
    if isinstance(inputs, (tuple, list)):
        return next((table for one in inputs if isinstance(one, Tensor) and (table := _table(one)) is not None), None)
    return None


def _decoded(decode: Any, table: Tensor) -> list[str]:
    """Sentences, or none: a tokenizer may be there for other tokens, and no run ends for want of a text."""
    try:
        return [str(text) for text in decode(table.tolist(), skip_special_tokens=True)] if decode else []
    except Exception:
        return []


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
