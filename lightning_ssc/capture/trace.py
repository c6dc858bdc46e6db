"""Which calls of which modules are watched, learnt from one run of a few samples."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ssc.capture.batches import batch_size, take
from lightning_ssc.capture.calls import observe, tensors_in
from lightning_ssc.capture.classifier import Head, output_calls
from lightning_ssc.capture.dependence import Dependence, rows_are_equal
from lightning_ssc.capture.isolation import seed_everything, without_trace
from lightning_ssc.capture.layers import LayerPattern, select_layers
from lightning_ssc.capture.names import Layer, named_layers
from lightning_ssc.capture.outputs import (
    CLEAR,
    OutputError,
    View,
    activations,
    candidates,
    copied,
    describe,
    features,
    is_channels_last,
    part_of,
    sample_axes,
)
from lightning_ssc.capture.processes import Processes
from lightning_ssc.capture.runner import NotRunError, Runner
from lightning_ssc.capture.samples import Chunk, chunks, some
from lightning_ssc.capture.sharding import holds_parts, reshard, whole
from lightning_ssc.capture.tokens import masks_mark_tokens, view_of
from lightning_ssc.settings import FLAT, Rows

log = logging.getLogger(__name__)

_BESIDE = 4  # times the largest watched activation that a forward pass may take beside them
_APART, _APART_HALF = 1e-3, 3e-2  # relative differences above what another number of samples rounds otherwise


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
        part: Which part of what it puts out is watched; the layer's, or the one found where it names none.
        axis: Which dimension of that is the sample.
        shape: Of one sample's activations, padded to the longest ones where they are.
        mixes: Whether its features for a sample depend on which others run beside it.
        is_output: Whether it puts out what the network returns, as a classifier does.
    """

    layer: Layer
    call: int
    label: str
    features: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    part: str | None = None
    axis: int = 0
    shape: tuple[int, ...] | None = None
    mixes: bool = False
    is_output: bool = False

    @property
    def source(self) -> Layer:
        """The layer with the part that is watched."""
        return replace(self.layer, part=self.part)

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
    how: Rows = FLAT,
) -> list[WatchedLayer]:
    """Run a few samples through the network to learn which layers are to be watched, in which order they run, and how.

    What a preset, a glob or a type selects and what cannot be watched, because it has no row a sample (position
    embeddings, detection heads) or puts out the same for every input, is left out, and counted in one line at INFO.

    Args:
        runner: The network.
        patterns: The layers asked for, see :func:`lightning_ssc.capture.layers.select_layers`.
        inputs: Inputs of the network.
        how: How activations become features, see :func:`lightning_ssc.capture.outputs.features`. With ``pad`` all
            samples are run, since the longest one says how many there are.

    Returns:
        The calls of the layers in the order in which they finish.

    Raises:
        ValueError: A pattern selects nothing, a layer that the user named does not run or cannot be watched, or no
            layer can.
    """
    root = observe(runner, inputs)
    layers = select_layers(runner.model, patterns, root)
    calls = try_layers(runner, layers, inputs, how)
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
            f"{_listed([call.name for call in root.below() if call.name])}. Name some of these, or "
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
    outputs = output_calls(root)
    watched = [replace(call, is_output=(call.layer.name, call.call) in outputs) for call in watched]
    if mixing := [call.label for call in watched if call.mixes]:
        n = batch_size(inputs)
        alone = in_one_chunk(watched, n, runner.budget())
        log.warning(
            "What %s puts out for a sample depends on which others are in the chunk, as with batch norm without "
            "running statistics%s. %s", mixing[0], f" (and {len(mixing) - 1} more layers)" if mixing[1:] else "",
            f"All {n} samples are run in one chunk." if alone else f"One chunk of all {n} samples may not fit into "
            f"memory, so graphs depend on chunk={runner.chunk}; raise chunk= as far as memory allows.",
        )  # fmt: skip
    return watched if how.pad is None else _at_their_longest(runner, watched, inputs, how)


def _at_their_longest(runner: Runner, watched: Sequence[WatchedLayer], inputs: Any, how: Rows) -> list[WatchedLayer]:
    """Layers with the largest sizes that they put out for any of the samples."""
    layers, marks = list({one.layer: None for one in watched}), masks_mark_tokens(inputs, runner.model)
    called = {(one.layer, one.call): one for one in watched}
    sizes: dict[tuple[Layer, int], list[tuple[int, ...]]] = {key: [] for key in called}
    for chunk in chunks(inputs, runner.chunk):
        samples = take(inputs, chunk)
        view = view_of(samples, runner.model, marks)

        def record(layer: Layer, call: int, output: Any, given: Sequence[Tensor], view: View = view) -> None:
            if one := called.get((layer, call)):
                sizes[layer, call].append(tuple(activations(output, one.source, view, how, one.axis).shape[1:]))

        with without_trace(runner.model), hooked(runner.model, layers, record), runner.context():
            seed_everything(chunk.start)
            runner(samples)
    found = []
    for key, one in called.items():
        if len({len(shape) for shape in sizes[key]}) == 1:
            longest = tuple(map(max, zip(*sizes[key], strict=True)))
            one = replace(one, shape=longest, features=prod(longest))
        found.append(one)
    return found


def try_layers(runner: Runner, layers: Sequence[Layer], inputs: Any, how: Rows = FLAT) -> list[WatchedLayer | LeftOut]:
    """Run a few samples through the network and see what layers put out.

    Args:
        runner: The network.
        layers: The layers.
        inputs: Inputs of the network.
        how: How activations become features.

    Returns:
        The calls of the layers in the order in which they finish, each watchable or with the reason why not.
    """
    calls: list[tuple[Layer, int, WatchedLayer | ValueError, bool]] = []
    samples = some(inputs)
    marks = masks_mark_tokens(inputs, runner.model)
    view = view_of(samples, runner.model, marks)
    fewer = _tried(runner, layers, inputs, view.samples // 2, marks)
    rows: dict[tuple[Layer, int], Tensor] = {}

    def record(layer: Layer, call: int, output: Any, given: Sequence[Tensor]) -> None:
        try:
            meant, several = _with_part(layer, output, view, given)
            axis = _axis(meant, call, output, view, fewer, how.batch_dim)
            tensor = part_of(output, meant, view)
            found = activations(output, meant, view, how, axis)
        except OutputError as error:
            calls.append((layer, call, error, False))
            return
        flat = found.reshape(len(found), -1)
        rows[layer, call] = flat.clone()
        dtype = torch.float64 if flat.dtype == torch.float64 else torch.float32
        images = axis == 0 and is_channels_last(tensor)
        made = WatchedLayer(layer, call, "", flat.shape[1], dtype, images, meant.part, axis, tuple(found.shape[1:]))
        calls.append((layer, call, made, not dependence.of(output) and rows_are_equal(flat)))
        if several:
            log.warning("Layer %s puts out %s, of which part %s is watched. Name another one as in '%s:0'.",
                        layer.name, describe(output), meant.part, layer.name)  # fmt: skip

    dependence = Dependence(samples)
    with without_trace(runner.model), hooked(runner.model, layers, record), runner.context(), dependence:
        seed_everything(0)
        runner(samples)
    mixing = _mixing(runner, layers, samples, view, how, calls, rows, fewer)
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
            tried.append(replace(found, label=label, mixes=(layer, call) in mixing))
    return tried


def linear_head(runner: Runner, layers: Sequence[WatchedLayer], labels: Tensor) -> Head | None:
    """The watched layer that puts out the network's logits, where it is a linear one whose weights are all here.

    Args:
        runner: The network.
        layers: What :func:`trace` returned.
        labels: ``(N,)`` class of every sample.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)), torch.rand(9, 2)
        >>> linear_head(Runner(net), trace(Runner(net), "Linear", x), torch.arange(9) % 3).label
        '2'
    """
    modules = named_layers(runner.model)
    for watched in layers:
        module = modules[watched.layer.name]
        if watched.is_output and type(module) is nn.Linear and not holds_parts(module.weight):
            return Head(watched.label, module, labels)
    return None


def in_one_chunk(layers: Sequence[WatchedLayer], samples: int, memory: int) -> bool:
    """Whether all samples run in one chunk: some layer mixes those of a chunk, and the memory suffices by far."""
    largest = max((layer.bytes_a_sample for layer in layers), default=0)
    return any(layer.mixes for layer in layers) and _BESIDE * samples * largest <= memory


class _Fewer(NamedTuple):
    """What layers put out for fewer samples than the trial run's: how their outputs follow the samples tells a lot."""

    view: View
    outputs: dict[tuple[str, int], Any]


def _tried(runner: Runner, layers: Sequence[Layer], inputs: Any, count: int, marks: bool | None) -> _Fewer | None:
    """A run of fewer samples; ``None`` where the network does not run on them, or they cannot be cut."""
    if count < 1:
        return None
    samples = take(inputs, chunks(inputs, count)[0])
    if batch_size(samples) != count or (isinstance(samples, Chunk) and samples.nodes is not None):
        return None
    outputs: dict[tuple[str, int], Any] = {}

    def record(layer: Layer, call: int, output: Any, given: Sequence[Tensor]) -> None:
        outputs[layer.name, call] = copied(output)

    try:
        with without_trace(runner.model), hooked(runner.model, layers, record), runner.context():
            seed_everything(0)
            runner(samples)
    except NotRunError:  # a number of samples may be written into it
        return None
    return _Fewer(view_of(samples, runner.model, marks), outputs)


def _with_part(layer: Layer, output: Any, view: View, given: Sequence[Tensor]) -> tuple[Layer, bool]:
    """The layer with the part of its output that it stands for, and whether others might have been meant as well."""
    if layer.part is not None:
        return layer, False
    found = candidates(output, view, given)
    if not found or not found[0][0]:
        return layer, False
    clear = found[0][0].rpartition(".")[2] in CLEAR or len(found) == 1
    return replace(layer, part=found[0][0]), not clear


def _axis(layer: Layer, call: int, output: Any, view: View, fewer: _Fewer | None, asked: int | None) -> int:
    """Which dimension follows the number of samples, the one asked for before others; the first where nothing tells."""
    one = part_of(output, layer, view)
    if view.graph is not None or not isinstance(one, Tensor) or one.is_nested:
        return 0
    axes = [axis for axis, size in enumerate(one.shape) if size == view.samples]
    if fewer is not None and (layer.name, call) in fewer.outputs:
        other = part_of(fewer.outputs[layer.name, call], layer, fewer.view)
        if not isinstance(other, Tensor):
            return 0
        axes = sample_axes(one.shape, view.samples, other.shape, fewer.view.samples)
    elif asked is None:
        return 0
    return asked if asked in axes else next(iter(axes), 0)


def _mixing(
    runner: Runner,
    layers: Sequence[Layer],
    samples: Any,
    view: View,
    how: Rows,
    calls: Sequence[tuple[Layer, int, WatchedLayer | ValueError, bool]],
    rows: Mapping[tuple[Layer, int], Tensor],
    fewer: _Fewer | None,
) -> set[tuple[Layer, int]]:
    """Calls whose features for a sample depend on which samples run beside it, and not just on chance."""
    if fewer is None:
        return set()
    found: set[tuple[Layer, int]] = set()
    for layer, call, made, _ in calls:
        if isinstance(made, WatchedLayer):
            output = fewer.outputs.get((layer.name, call))
            try:
                other = activations(output, made.source, fewer.view, how, made.axis)
            except OutputError:
                continue
            if tuple(other.shape[1:]) == made.shape and _differ(rows[layer, call][: len(other)], other):
                found.add((layer, call))
    if not found:
        return found
    asked = {layer.name: layer for layer in layers}

    def record(layer: Layer, call: int, output: Any, given: Sequence[Tensor]) -> None:
        for one in [key for key in found if (key[0].name, key[1]) == (layer.name, call)]:
            made = next(m for la, c, m, _ in calls if (la, c) == one)
            assert isinstance(made, WatchedLayer)
            if _differ(rows[one], activations(output, made.source, view, how, made.axis)):
                found.discard(one)  # random even now

    with without_trace(runner.model), hooked(runner.model, list(asked.values()), record), runner.context():
        seed_everything(1)
        runner(samples)
    return found


def _differ(one: Tensor, other: Tensor) -> bool:
    tolerance = _APART_HALF if one.is_floating_point() and one.dtype.itemsize < 4 else _APART
    one, other = one.double(), other.double().reshape(len(other), -1)
    return bool((one - other).norm() > tolerance * other.norm())


def _listed(names: Sequence[str]) -> str:
    """Names for a message, not too many of them."""
    several = list(dict.fromkeys(names))
    return ", ".join(several[:8]) + (f" and {len(several) - 8} more" if len(several) > 8 else "") or "nothing"


@contextmanager
def hooked(
    model: nn.Module, layers: Sequence[Layer], record: Callable[[Layer, int, Any, Sequence[Tensor]], None]
) -> Iterator[dict[Layer, int]]:
    """Call ``record(layer, call, output, inputs)`` whenever a layer has run, and count; the hooks are gone afterwards.

    What a layer puts out is whole, also where processes share its weights: all of them have to be here.
    """
    modules, calls = named_layers(model), dict.fromkeys(layers, 0)
    parts: dict[Layer, Any] = {}
    with ExitStack() as stack:
        stack.callback(reshard, model)
        for layer in calls:

            def first(module: nn.Module, args: Any, output: Any, layer: Layer = layer) -> None:
                if holds_parts(output):  # a hook of tensor parallelism takes this process's part of it, next
                    parts[layer] = output

            def last(module: nn.Module, args: Any, kwargs: Any, output: Any, layer: Layer = layer) -> None:
                call, calls[layer] = calls[layer], calls[layer] + 1
                output = whole(parts.pop(layer, output))
                record(layer, call, output, () if isinstance(output, Tensor) else tensors_in((args, kwargs)))

            stack.callback(modules[layer.name].register_forward_hook(first, prepend=True).remove)
            stack.callback(modules[layer.name].register_forward_hook(last, with_kwargs=True).remove)
        yield calls


def in_parts(
    runner: Runner, watched: Sequence[WatchedLayer], inputs: Any, processes: Processes, how: Rows = FLAT
) -> list[WatchedLayer]:
    """Layers of which every process that runs the network puts out another part, as inside a tensor parallel block.

    Args:
        runner: The network, which several processes share.
        watched: The layers.
        inputs: Inputs of the network.
        processes: Those that run it, on the same samples.
        how: How activations become features.
    """
    samples, called = some(inputs), {(one.layer, one.call): one for one in watched}
    view, seen = view_of(samples, runner.model, masks_mark_tokens(inputs, runner.model)), {}

    def record(layer: Layer, call: int, output: Any, given: Sequence[Tensor]) -> None:
        if one := called.get((layer, call)):
            found = features(output, one.source, view, how, axis=one.axis)
            seen[layer, call] = found.double().norm(dim=1).tolist()

    with without_trace(runner.model), hooked(runner.model, [one.layer for one in watched], record), runner.context():
        seed_everything(0)
        runner(samples)
    mine = [seen[one.layer, one.call] for one in watched]
    everyones = list(zip(*processes.everyones(mine), strict=True))
    alike = [all(np.allclose(other, norms[0], rtol=1e-3, atol=1e-6) for other in norms) for norms in everyones]
    return [one for one, same in zip(watched, alike, strict=True) if not same]
