"""Which calls of which modules are watched, learnt from one run of a few samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ssc.capture.batches import batch_size, take
from lightning_ssc.capture.isolation import without_trace
from lightning_ssc.capture.layers import Layer, named_layers
from lightning_ssc.capture.outputs import describe, features, is_channels_last, part_of
from lightning_ssc.capture.runner import Runner
from lightning_ssc.capture.samples import chunks
from lightning_ssc.settings import Pooling

log = logging.getLogger(__name__)

_TRACED = 7  # samples of a trial run: a number that no other dimension of an output is likely to have


@dataclass(frozen=True)
class WatchedLayer:
    """A layer that was seen to run: one call of one module, with the size of what it puts out.

    Attributes:
        layer: The module and, where asked for, the part of its output.
        call: Which of the module's calls in one forward pass, from 0.
        label: Name in tags and plots; modules that run several times get ``.call1``, ``.call2``, ...
        features: Number of features a sample after pooling, d.
        dtype: What its features are kept in until their Gram is there: float64 if the layer computes in it, else
            float32.
        channels_last: Whether the layer puts out images in channels-last memory format. Their features are kept in
            that order: a Gram does not depend on it, and a copy that turns it takes longer than the layer.
    """

    layer: Layer
    call: int
    label: str
    features: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @property
    def bytes_a_sample(self) -> int:
        """Size of one sample's features while they are kept."""
        return self.features * self.dtype.itemsize


def trace(runner: Runner, layers: Sequence[Layer], inputs: Any, pooling: Pooling = "flatten") -> list[WatchedLayer]:
    """Run a few samples through the network to learn the order of its layers, their calls and numbers of features.

    Args:
        runner: The network.
        layers: The layers asked for.
        inputs: Inputs of the network.
        pooling: How activations become features, see :func:`lightning_ssc.capture.outputs.features`.

    Returns:
        The calls of the layers in the order in which they finish. Layers that did not run are left out.

    Raises:
        ValueError: A layer that the user named does not run, no layer runs, or an output cannot be used.
    """
    calls: list[tuple[Layer, Tensor, bool]] = []
    some = take(inputs, chunks(inputs, _TRACED)[0])
    count = batch_size(some)

    def record(layer: Layer, call: int, output: Any) -> None:
        tensor = part_of(output, layer, count)
        calls.append((layer, features(output, layer, count, pooling)[:1], is_channels_last(tensor)))
        if layer.part is None and not isinstance(output, Tensor):
            log.info("Layer %s puts out %s; its first tensor is watched. Name a part as in '%s:0' for another one.",
                     layer.label, describe(output), layer.name)  # fmt: skip

    with without_trace(runner.model), hooked(runner.model, layers, record), runner.context():
        runner(some)
    ran = {layer for layer, *_ in calls}
    never = [layer.label for layer in layers if layer not in ran]
    if missing := [layer.label for layer in layers if layer.named and layer not in ran]:
        raise ValueError(
            f"These layers never run in a forward pass over the probe: {', '.join(missing)}. Watch the modules that "
            f"run, or say with forward= how the network is to be run."
        )
    if not calls:
        raise ValueError("None of the chosen layers runs in a forward pass over the probe.")
    if never:
        log.warning("Not watched, because they never run in a forward pass over the probe: %s.", ", ".join(never))
    watched, seen = [], dict.fromkeys(ran, 0)
    times = {layer: sum(other == layer for other, *_ in calls) for layer in ran}
    for layer, first, channels_last in calls:
        label = layer.label if times[layer] == 1 else f"{layer.label}.call{seen[layer] + 1}"
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        watched.append(WatchedLayer(layer, seen[layer], label, first.shape[1], dtype, channels_last))
        seen[layer] += 1
    return watched


@contextmanager
def hooked(
    model: nn.Module, layers: Sequence[Layer], record: Callable[[Layer, int, Any], None]
) -> Iterator[dict[Layer, int]]:
    """Call ``record(layer, call, output)`` whenever a layer has run, and count; the hooks are gone afterwards."""
    modules, calls = named_layers(model), dict.fromkeys(layers, 0)
    with ExitStack() as stack:
        for layer in calls:

            def hook(module: nn.Module, args: Any, output: Any, layer: Layer = layer) -> None:
                call, calls[layer] = calls[layer], calls[layer] + 1
                record(layer, call, output)

            stack.callback(modules[layer.name].register_forward_hook(hook).remove)
        yield calls
