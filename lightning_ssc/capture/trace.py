"""Which calls of which modules are watched, learnt from one run of a few samples."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ssc.capture.batches import batch_size
from lightning_ssc.capture.calls import observe
from lightning_ssc.capture.dependence import Dependence, rows_are_equal
from lightning_ssc.capture.isolation import without_trace
from lightning_ssc.capture.layers import LayerPattern, select_layers
from lightning_ssc.capture.names import Layer, named_layers
from lightning_ssc.capture.outputs import describe, features, is_channels_last, part_of
from lightning_ssc.capture.runner import Runner
from lightning_ssc.capture.samples import some
from lightning_ssc.settings import Pooling

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class LeftOut:
    """A call of a layer that cannot be watched.

    Attributes:
        layer: The module and the part of its output.
        label: Its name, as that of a :class:`WatchedLayer`.
        reason: In a few words, such as "no row a sample".
        error: The same as an error that names the layer and the remedy.
    """

    layer: Layer
    label: str
    reason: str
    error: ValueError


def trace(
    runner: Runner,
    patterns: str | type[nn.Module] | Sequence[LayerPattern],
    inputs: Any,
    pooling: Pooling = "flatten",
) -> list[WatchedLayer]:
    """Run a few samples through the network to learn which layers are to be watched, in which order they run, and how.

    What a preset, a glob or a type selects and what cannot be watched, because it has no row a sample (position
    embeddings, detection heads) or puts out the same for every input, is left out, and counted in one line at INFO.

    Args:
        runner: The network.
        patterns: The layers asked for, see :func:`lightning_ssc.capture.layers.select_layers`.
        inputs: Inputs of the network.
        pooling: How activations become features, see :func:`lightning_ssc.capture.outputs.features`.

    Returns:
        The calls of the layers in the order in which they finish.

    Raises:
        ValueError: A pattern selects nothing, a layer that the user named does not run or cannot be watched, or no
            layer can.
    """
    layers = select_layers(runner, patterns, inputs)
    calls = try_layers(runner, layers, inputs, pooling)
    ran = {call.layer for call in calls}
    never = [layer.label for layer in layers if layer not in ran]
    if missing := [layer.label for layer in layers if layer.named and layer not in ran]:
        raise ValueError(
            f"These layers never run in a forward pass over the probe: {', '.join(missing)}. Watch the modules that "
            f"run, or say with forward= how the network is to be run."
        )
    if not calls:
        raise ValueError(
            f"None of the chosen layers runs in a forward pass over the probe: {_listed(never)}. What runs is "
            f"{_listed([call.name for call in observe(runner, inputs).below() if call.name])}. Name some of these, or "
            f"say with forward= how the network is to be run."
        )
    if never:
        log.warning("Not watched, because they never run in a forward pass over the probe: %s.", ", ".join(never))
    left_out = [call for call in calls if isinstance(call, LeftOut)]
    watched = [call for call in calls if isinstance(call, WatchedLayer)]
    for call in left_out:
        if call.layer.named or not watched:
            raise call.error
    if left_out:
        reasons = {reason: [c.label for c in left_out if c.reason == reason] for reason in (c.reason for c in left_out)}
        told = "; ".join(f"{reason}: {', '.join(labels)}" for reason, labels in reasons.items())
        log.info("%d of the %d layers that %r selects are not watched (%s).", len(left_out), len(calls), patterns, told)
    return watched


def try_layers(
    runner: Runner, layers: Sequence[Layer], inputs: Any, pooling: Pooling = "flatten"
) -> list[WatchedLayer | LeftOut]:
    """Run a few samples through the network and see what layers put out.

    Args:
        runner: The network.
        layers: The layers.
        inputs: Inputs of the network.
        pooling: How activations become features.

    Returns:
        The calls of the layers in the order in which they finish, each watchable or with the reason why not.
    """
    calls: list[tuple[Layer, int, WatchedLayer | ValueError, bool]] = []
    samples = some(inputs)
    count = batch_size(samples)

    def record(layer: Layer, call: int, output: Any) -> None:
        try:
            tensor = part_of(output, layer, count)
            rows = features(output, layer, count, pooling)
        except ValueError as error:
            calls.append((layer, call, error, False))
            return
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        found = WatchedLayer(layer, call, layer.label, rows.shape[1], dtype, is_channels_last(tensor))
        calls.append((layer, call, found, not dependence.of(output) and rows_are_equal(rows)))
        if layer.part is None and not isinstance(output, Tensor):
            log.info("Layer %s puts out %s; its first tensor is watched. Name a part as in '%s:0' for another one.",
                     layer.label, describe(output), layer.name)  # fmt: skip

    dependence = Dependence(samples)
    with without_trace(runner.model), hooked(runner.model, layers, record), runner.context(), dependence:
        runner(samples)
    times = Counter(layer for layer, *_ in calls)
    tried: list[WatchedLayer | LeftOut] = []
    for layer, call, found, same in calls:
        label = layer.label if times[layer] == 1 else f"{layer.label}.call{call + 1}"
        if isinstance(found, ValueError):
            tried.append(LeftOut(layer, label, "no row a sample", found))
        elif same and dependence.has_inputs:
            error = ValueError(
                f"Layer {label!r} puts out the same for every input, so its graph says nothing. Leave it out."
            )
            tried.append(LeftOut(layer, label, "the same for every input", error))
        else:
            tried.append(replace(found, label=label))
    return tried


def _listed(names: Sequence[str]) -> str:
    """Names for a message, not too many of them."""
    several = list(dict.fromkeys(names))
    return ", ".join(several[:8]) + (f" and {len(several) - 8} more" if len(several) > 8 else "") or "nothing"


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
