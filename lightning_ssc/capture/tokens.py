"""Which tokens, nodes and rows of a chunk are the samples', from what the network is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ssc.capture.batches import batch_size, fields, rest_of
from lightning_ssc.capture.outputs import View
from lightning_ssc.capture.runner import argument_names
from lightning_ssc.capture.samples import Chunk, Samples

_LENGTHS = ("length", "len", "lens")


def view_of(inputs: Any, model: nn.Module, marks: bool | None = None) -> View:
    """How the samples of inputs stand in what the layers of a network put out for them.

    Args:
        inputs: What the network is given.
        model: The network.
        marks: Whether masks mark tokens, from :func:`masks_mark_tokens`; by default these inputs are to tell.
    """
    samples, nodes, graph = batch_size(inputs), None, None
    if isinstance(inputs, Chunk):
        nodes, inputs = inputs.nodes, inputs.inputs(inputs.batch)
    of = fields(inputs).get("batch")
    if nodes is None and isinstance(of, Tensor) and of.dim() == 1 and not of.is_floating_point():
        graph = of.long()
    return View(
        samples, None if graph is not None else real_tokens(inputs, samples, argument_names(model), marks), graph, nodes
    )


def masks_mark_tokens(inputs: Any, model: nn.Module) -> bool | None:
    """Whether the mask among the inputs marks tokens, from all samples at once; ``None`` where there is none to ask.

    A few samples may not tell: of sequences that are all padded, [1, 0] may be a token and padding, or the reverse.
    """
    if isinstance(inputs, Samples):
        if len(inputs.parts) != 1 or inputs.collate is not None or inputs.nodes is not None:
            return None
        inputs = rest_of(inputs.parts[0], inputs.path)
    named = _named(inputs, batch_size(inputs), argument_names(model))
    return next((_marks_tokens(name, mask) for name, mask in named.items() if _is_mask(name, mask)), None)


def real_tokens(
    inputs: Any, samples: int, names: Sequence[str] | None = None, marks: bool | None = None
) -> Tensor | None:
    """``(N, T)`` which tokens are real, by a mask or by lengths among the inputs; ``None`` where there is neither.

    What a mask marks is told by its name: one with ``pad`` in it marks padding (``key_padding_mask``), and
    ``attention_mask`` marks tokens. Of any other name, the kind that all sequences begin with (or, padded on the left,
    end with) is the tokens.

    Args:
        inputs: What the network takes.
        samples: N.
        names: Names of its arguments, for inputs in a tuple.
        marks: Whether masks mark tokens; by default the mask is to tell.

    Example:
        >>> x = torch.zeros(2, 3, 4)
        >>> real_tokens({"x": x, "key_padding_mask": torch.tensor([[False, False, True], [False, True, True]])}, 2)
        tensor([[ True,  True, False],
                [ True, False, False]])
        >>> real_tokens((x, torch.tensor([3, 1])), 2, ["x", "lengths"]).sum(1)
        tensor([3, 1])
    """
    given = _named(inputs, samples, names)
    for name, mask in given.items():
        if _is_mask(name, mask):
            return mask.bool() if (_marks_tokens(name, mask) if marks is None else marks) else ~mask.bool()
    for name, lengths in given.items():
        if lengths.dim() == 1 and not lengths.is_floating_point() and any(word in name for word in _LENGTHS):
            sizes = {t.shape[1] for t in given.values() if t.dim() > 1}
            longest = min((s for s in sizes if s >= int(lengths.max())), default=int(lengths.max()))
            return torch.arange(longest) < lengths.cpu()[:, None]
    return None


def _named(inputs: Any, samples: int, names: Sequence[str] | None) -> dict[str, Tensor]:
    """The tensors among the inputs that have a row a sample, by the names of arguments in lower case."""
    if isinstance(inputs, Mapping):
        named = dict(inputs)
    elif isinstance(inputs, (tuple, list)) and not fields(inputs):
        named = dict(zip(names or map(str, range(len(inputs))), inputs, strict=False))
    else:
        named = fields(inputs)
    return {str(k).lower(): v for k, v in named.items() if isinstance(v, Tensor) and v.dim() and len(v) == samples}


def _is_mask(name: str, mask: Tensor) -> bool:
    binary = mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all())
    return mask.dim() == 2 and "mask" in name and binary


def _marks_tokens(name: str, mask: Tensor) -> bool:
    """Whether a mask marks tokens: by its name, else by what all sequences begin or end with."""
    if "pad" in name or "attention" in name or "attn" in name:
        return "pad" not in name
    marked = mask.bool()
    for column in (marked[:, 0], marked[:, -1]):
        if bool((column == column[0]).all()) and not bool((marked == column[0]).all()):
            return bool(column[0])
    return True
