"""From what a layer put out to one row of features a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_ssc.capture.names import Layer
from lightning_ssc.settings import FLAT, Rows

CLEAR = ("last_hidden_state", "logits")  # what networks with named outputs mean by their output


class OutputError(ValueError):
    """What a layer puts out cannot be watched; the message names the layer and the remedy."""


@dataclass(frozen=True)
class View:
    """How the samples of a chunk stand in what layers put out.

    Attributes:
        samples: N, how many samples there are.
        tokens: ``(N, T)`` which tokens of each sample are real; ``None`` where all are.
        graph: ``(nodes,)`` the sample, a graph, that every node belongs to; node outputs are averaged over it.
        nodes: ``(N,)`` the samples among the nodes of one big graph.
    """

    samples: int
    tokens: Tensor | None = None
    graph: Tensor | None = None
    nodes: Tensor | None = None


def features(
    output: Any,
    layer: Layer,
    view: View | int,
    how: Rows = FLAT,
    channels_last: bool = False,
    axis: int = 0,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """What a layer put out, as one row of features a sample.

    Args:
        output: The module's output. Of a tuple, dict or dataclass the layer's ``part`` is taken or, where none was
            asked for, the part that :func:`part_of` finds. A packed sequence is padded, its samples in their order;
            nested, sparse and quantised tensors are made dense.
        layer: The layer, for its part and for messages.
        view: How the samples stand in it, or just their number N.
        how: Of its ``pooling`` ``"flatten"`` keeps every number; ``"mean"`` averages over space, ``(N, C, H, W)`` to
            ``(N, C)``, or over the real tokens, ``(N, T, C)`` to ``(N, C)``; ``"cls"`` takes the first token of
            ``(N, T, C)`` and ``"last"`` the last real one. Activations of two dimensions are taken as they are. A
            function gets the activations ``(N, ...)`` and returns ``(N, d)``. With ``pad`` real tokens come first, and
            that number behind them.
        channels_last: Order the features of ``(N, C, H, W)`` by place and then by channel, whatever they are in memory.
        axis: Which dimension is the sample.
        shape: What one sample's activations are padded to, with ``pad``.

    Returns:
        ``(N, d)`` real tensor.

    Raises:
        OutputError: There is no such part, no tensor, or the tensor does not have a row a sample.
    """
    tensor = activations(output, layer, view, how, axis)
    if how.pad is not None and shape is not None:
        tensor = _padded(tensor, shape, how.pad)
    if channels_last and tensor.dim() > 3:
        tensor = tensor.movedim(1, -1)
    return tensor.reshape(len(tensor), -1)


def activations(output: Any, layer: Layer, view: View | int, how: Rows = FLAT, axis: int = 0) -> Tensor:
    """What :func:`features` flattens: ``(N, ...)``, after pooling."""
    pooling = how.pooling
    view = View(view) if isinstance(view, int) else view
    found = part_of(output, layer, view)
    tensor, tokens = _dense(found)
    tokens = view.tokens if tokens is None else tokens
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dim() and view.nodes is not None and len(tensor) > int(view.nodes.max()):
        tensor = tensor[view.nodes.to(tensor.device)]
    elif tensor.dim() and view.graph is not None and len(tensor) == len(view.graph):
        tensor = _by_graph(tensor, view.graph.to(tensor.device), view.samples)
    if tensor.dim() > axis > 0:
        tensor = tensor.movedim(axis, 0)
    if tensor.dim() == 0 or len(tensor) != view.samples:
        raise OutputError(
            f"Layer {layer.label!r} puts out shape {tuple(tensor.shape)} for {view.samples} samples; its first "
            f"dimension must be the sample. Watch a layer with batch-first output (an LSTM with batch_first=True, "
            f"say), or another part of it, or say with batch_dim= which dimension is the sample."
        )
    real = _tokens_of(tensor, tokens)
    if how.pad is not None and real is not None and (callable(pooling) or pooling == "flatten"):
        tensor = _real_first(tensor, real, how.pad)
    if callable(pooling):
        pooled = pooling(tensor)
        if not isinstance(pooled, Tensor) or pooled.dim() != 2 or len(pooled) != view.samples:
            told = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
            raise OutputError(
                f"The function pooling= makes {told} of the activations {tuple(tensor.shape)} of layer "
                f"{layer.label!r}; it must return (N, d), a row for each of the {view.samples} samples."
            )
        return pooled.detach()
    if tensor.dim() == 3 and pooling in ("mean", "last", "cls"):
        tensor = _pooled_tokens(tensor, real, pooling)
    elif tensor.dim() > 3 and pooling == "mean":
        tensor = tensor.flatten(2).mean(2, dtype=_precise(tensor))
    elif tensor.dim() > 3 and pooling in ("cls", "last"):
        raise OutputError(
            f"Layer {layer.label!r} puts out shape {tuple(tensor.shape)}, which has no "
            f"{'class' if pooling == 'cls' else 'last'} token. Use pooling='mean' or 'flatten', or watch only layers "
            f"that put out tokens."
        )
    return tensor


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _pooled_tokens(tensor: Tensor, real: Tensor | None, pooling: str) -> Tensor:
    """Of ``(N, T, C)`` one token, or the mean, of those that are real."""
    if pooling == "cls":
        return tensor[:, 0]
    if real is None:
        return tensor[:, -1] if pooling == "last" else tensor.mean(1, dtype=_precise(tensor))
    if pooling == "last":
        places = torch.where(real, torch.arange(real.shape[1], device=real.device), 0).amax(1)
        return tensor[torch.arange(len(tensor), device=tensor.device), places]
    weighed = torch.where(real[..., None], tensor, 0).sum(1, dtype=_precise(tensor))
    return weighed / real.sum(1, keepdim=True).clamp_min(1)


def _by_graph(tensor: Tensor, graph: Tensor, samples: int) -> Tensor:
    """Means of the nodes of every graph."""
    flat = tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
    sums = flat.new_zeros(samples, flat.shape[1], dtype=_precise(tensor)).index_add_(0, graph, flat.to(_precise(flat)))
    nodes = torch.zeros(samples, device=tensor.device).index_add_(0, graph, torch.ones(len(graph), device=graph.device))
    return sums / nodes.clamp_min(1)[:, None]


def _tokens_of(tensor: Tensor, tokens: Tensor | None) -> Tensor | None:
    """``(N, T)`` which tokens of an activation are real; of a network that cuts off what none of the chunk has, too."""
    if tokens is None or tensor.dim() < 3 or len(tokens) != len(tensor):
        return None
    if tokens.shape[1] != tensor.shape[1]:
        used = tokens.any(0).nonzero().squeeze(1).tolist()
        tokens = tokens[:, used[0] : used[-1] + 1] if used else tokens
    return tokens.to(tensor.device) if tokens.shape[1] == tensor.shape[1] else None


def _real_first(tensor: Tensor, real: Tensor, pad: float) -> Tensor:
    """``(N, T, ...)`` with the real tokens first, in their order, and padding behind, on whichever side it was."""
    tensor = tensor if tensor.is_floating_point() else tensor.float()
    order = real.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    behind = ~real.gather(1, order)
    order, behind = (t.reshape(*t.shape, *[1] * (tensor.dim() - 2)) for t in (order, behind))
    return tensor.gather(1, order.expand_as(tensor)).masked_fill(behind, pad)


def _padded(tensor: Tensor, shape: Sequence[int], pad: float) -> Tensor:
    """``(N, ...)`` filled up to a shape, where that is a larger one of as many dimensions."""
    sizes = tensor.shape[1:]
    if len(shape) != len(sizes) or any(size > to for size, to in zip(sizes, shape, strict=True)):
        return tensor
    widths = [w for size, to in reversed(list(zip(tensor.shape[1:], shape, strict=True))) for w in (0, to - size)]
    return torch.nn.functional.pad(tensor, widths, value=pad)


def _dense(output: Any) -> tuple[Tensor, Tensor | None]:
    """An output as a dense tensor, its sequences batch-first, and which tokens are real where it says so itself."""
    if isinstance(output, PackedSequence):
        tensor, lengths = pad_packed_sequence(output, batch_first=True)
        return tensor, torch.arange(tensor.shape[1]) < lengths[:, None]
    tensor = output
    if tensor.is_nested:
        lengths = torch.tensor([len(entry) for entry in tensor.unbind()])
        tensor = tensor.to_padded_tensor(0.0)
        return tensor, torch.arange(tensor.shape[1]) < lengths[:, None]
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return (tensor if tensor.layout == torch.strided else tensor.to_dense()), None


def is_channels_last(tensor: Any) -> bool:
    """Whether a tensor holds images or volumes in channels-last memory format, and in no other."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_nested:
        return False
    if tensor.dim() not in formats or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=formats[tensor.dim()])


def part_of(output: Any, layer: Layer, view: View | int, given: Sequence[Tensor] = ()) -> Any:
    """The tensor, or packed sequence, of an output that a layer stands for.

    It is the part asked for or, of several, ``last_hidden_state`` or ``logits`` where there is one by that name; else
    the first of floating point with the samples as its first dimension, with them as another one, or of integers, in
    this order; never one of the module's own inputs that is only handed through.

    Args:
        output: The module's output.
        layer: The layer.
        view: How the samples stand in outputs, or just their number.
        given: The module's inputs.

    Raises:
        OutputError: There is no such part, or no tensor with a row a sample.
    """
    view = View(view) if isinstance(view, int) else view
    if layer.part is None:
        found = candidates(output, view, given)
        if not found:
            raise OutputError(
                f"Layer {layer.label!r} puts out {type(output).__name__} without a tensor of {view.samples} rows. Name "
                f"the part that you mean, as in '{layer.name}:0' or '{layer.name}:logits'."
            )
        return found[0][1]
    for key in layer.part.split("."):
        entries = _entries(output)
        if key not in entries:
            raise OutputError(
                f"The output of layer {layer.name!r} has no part {layer.part!r}; it is {describe(output)}. Name one "
                f"that it has."
            )
        output = entries[key]
    if not isinstance(output, (Tensor, PackedSequence)):
        raise OutputError(
            f"Part {layer.part!r} of layer {layer.name!r} is {describe(output)}. Name a part that is a tensor."
        )
    return output


def candidates(output: Any, view: View, given: Sequence[Tensor] = ()) -> list[tuple[str, Any]]:
    """The parts of an output that a layer may stand for, each with its path, the likeliest first."""
    if isinstance(output, (Tensor, PackedSequence)):
        return [("", output)]
    addresses = {_address(t) for t in given} - {None}
    ranked = ((path, part, _rank(path, part, view)) for path, part in _leaves(output))
    found = [(rank, path, part) for path, part, rank in ranked if rank is not None]
    own = [entry for entry in found if _address(entry[2]) not in addresses] or found
    return [(path, part) for _, path, part in sorted(own, key=lambda entry: entry[0])]


def _address(part: Any) -> tuple[int, int] | None:
    """Where the numbers of a tensor lie and how many they are, the same of a view of all of them."""
    if not isinstance(part, Tensor) or part.layout != torch.strided or part.is_nested:
        return None
    return part.data_ptr(), part.numel()


def _rank(path: str, part: Any, view: View) -> int | None:
    """How likely a part of an output is what its layer is watched for, 0 being the most; ``None`` if it cannot be."""
    if isinstance(part, PackedSequence):
        return 1
    if part.is_nested:
        return 1
    sizes = {view.samples} | ({len(view.graph)} if view.graph is not None else set())
    first = part.dim() > 0 and (len(part) in sizes or (view.nodes is not None and len(part) > int(view.nodes.max())))
    if not first and view.samples not in part.shape:
        return None
    floating = part.is_floating_point() or part.is_complex() or part.is_quantized
    if path.rpartition(".")[2] in CLEAR and floating:
        return 0
    return (1 if first else 2) if floating else 3


class Returned(NamedTuple):
    """What a network returned for some samples.

    Attributes:
        rows: ``(n, width)`` on the CPU.
        are_logits: Whether it is called so in what was returned.
    """

    rows: Tensor
    are_logits: bool


def returned(output: Any, view: View) -> Returned | None:
    """What a network returned, or the ``logits`` in it, where that is a row of numbers a sample."""
    named = not isinstance(output, (Tensor, PackedSequence))
    if named:
        output = _entries(output).get("logits")
    if not isinstance(output, Tensor) or output.layout != torch.strided or output.is_nested or output.dim() != 2:
        return None
    if view.nodes is not None and len(output) > int(view.nodes.max()):
        output = output[view.nodes.to(output.device)]
    return Returned(output.detach().cpu(), named) if len(output) == view.samples else None


def copied(output: Any) -> Any:
    """An output whose tensors what follows cannot change."""
    if isinstance(output, PackedSequence):
        return PackedSequence(output.data.clone(), *output[1:])
    return output.clone() if isinstance(output, Tensor) else dict(_copied(output))


def _copied(output: Any) -> Iterator[tuple[str, Any]]:
    for key, value in _entries(output).items():
        yield key, copied(value) if isinstance(value, (Tensor, PackedSequence)) or _entries(value) else value


def _leaves(output: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(output, (Tensor, PackedSequence)):
        yield path, output
        return
    seen: set[int] = set()
    for key, value in _entries(output).items():
        if id(value) not in seen:  # a named tuple has its parts by place and by name
            seen.add(id(value))
            yield from _leaves(value, f"{path}.{key}" if path else key)


def _entries(output: Any) -> dict[str, Any]:
    if isinstance(output, (Tensor, PackedSequence, str, type)):
        return {}
    if hasattr(output, "items"):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        named = output._asdict() if hasattr(output, "_asdict") else {}
        return {str(i): value for i, value in enumerate(output)} | named
    return dict(vars(output)) if hasattr(output, "__dict__") else {}


def describe(output: Any) -> str:
    """What an output is, for messages."""
    entries = ", ".join(_entries(output))
    return f"{type(output).__name__} with parts {entries}" if entries else type(output).__name__


def sample_axes(shape: Sequence[int], samples: int, other: Sequence[int], fewer: int) -> list[int]:
    """The dimensions that follow the number of samples, from outputs for two of them.

    Example:
        >>> sample_axes((7, 7, 4), 7, (7, 3, 4), 3)  # time first
        [1]
    """
    if len(shape) != len(other):
        return []
    return [i for i, sizes in enumerate(zip(shape, other, strict=True)) if sizes == (samples, fewer)]
