"""From what a layer put out to one row of features a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_ssc.capture.names import Layer
from lightning_ssc.settings import Pooling


class OutputError(ValueError):
    """What a layer puts out cannot be watched; the message names the layer and the remedy."""


def features(
    output: Any, layer: Layer, samples: int, pooling: Pooling = "flatten", channels_last: bool = False
) -> Tensor:
    """What a layer put out, as one row of features a sample.

    Args:
        output: The module's output. Of a tuple, dict or dataclass the layer's ``part`` is taken or, where none was
            asked for, the first tensor with a row a sample.
        layer: The layer, for its part and for messages.
        samples: N, the number of samples.
        pooling: ``"flatten"`` keeps every number; ``"mean"`` averages over space, ``(N, C, H, W)`` to ``(N, C)``, or
            over tokens, ``(N, T, C)`` to ``(N, C)``; ``"cls"`` takes the first token of ``(N, T, C)``. Activations of
            two dimensions are taken as they are.
        channels_last: Order the features of ``(N, C, H, W)`` by place and then by channel, whatever they are in memory.

    Returns:
        ``(N, d)`` real tensor.

    Raises:
        OutputError: There is no such part, no tensor, or the tensor does not have a row a sample.
    """
    tensor = part_of(output, layer, samples)
    if tensor.dim() == 0 or len(tensor) != samples:
        raise OutputError(
            f"Layer {layer.label!r} puts out shape {tuple(tensor.shape)} for {samples} samples; its first "
            f"dimension must be the sample. Watch a layer with batch-first output (an LSTM with "
            f"batch_first=True, say), or another part of it."
        )
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dim() == 3 and pooling == "cls":
        tensor = tensor[:, 0]
    elif tensor.dim() == 3 and pooling == "mean":
        tensor = tensor.mean(1, dtype=torch.float32)
    elif tensor.dim() > 3 and pooling == "mean":
        tensor = tensor.flatten(2).mean(2, dtype=torch.float32)
    elif tensor.dim() > 3 and pooling == "cls":
        raise OutputError(
            f"Layer {layer.label!r} puts out shape {tuple(tensor.shape)}, which has no class token. Use pooling='mean' "
            f"or 'flatten', or watch only layers that put out tokens."
        )
    if channels_last and tensor.dim() > 3:
        tensor = tensor.movedim(1, -1)
    return tensor.detach().reshape(samples, -1)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor holds images or volumes in channels-last memory format, and in no other."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensor.dim() not in formats or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=formats[tensor.dim()])


def part_of(output: Any, layer: Layer, samples: int) -> Tensor:
    """The tensor of an output that a layer stands for: the part asked for, or the first tensor with a row a sample.

    Raises:
        OutputError: There is no such part, or no tensor with a row a sample.
    """
    if layer.part is None:
        found = output if isinstance(output, Tensor) else _first_tensor(output, samples)
        if found is None:
            raise OutputError(
                f"Layer {layer.label!r} puts out {type(output).__name__} without a tensor of {samples} rows. Name the "
                f"part that you mean, as in '{layer.name}:0' or '{layer.name}:logits'."
            )
        return found
    for key in layer.part.split("."):
        entries = _entries(output)
        if key not in entries:
            raise OutputError(
                f"The output of layer {layer.name!r} has no part {layer.part!r}; it is {describe(output)}. Name one "
                f"that it has."
            )
        output = entries[key]
    if not isinstance(output, Tensor):
        raise OutputError(
            f"Part {layer.part!r} of layer {layer.name!r} is {describe(output)}. Name a part that is a tensor."
        )
    return output


def _entries(output: Any) -> dict[str, Any]:
    if hasattr(output, "items"):
        return dict(output.items())
    if isinstance(output, (tuple, list)):
        named = output._asdict() if hasattr(output, "_asdict") else {}
        return {str(i): value for i, value in enumerate(output)} | named
    return dict(vars(output)) if hasattr(output, "__dict__") else {}


def _first_tensor(output: Any, samples: int) -> Tensor | None:
    for value in _entries(output).values():
        found = value if isinstance(value, Tensor) else _first_tensor(value, samples)
        if found is not None and found.dim() > 0 and len(found) == samples:
            return found
    return None


def describe(output: Any) -> str:
    """What an output is, for messages."""
    entries = ", ".join(_entries(output))
    return f"{type(output).__name__} with parts {entries}" if entries else type(output).__name__
