"""What people see of the probe: pictures of its inputs and names of its classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


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
