"""From a network and its probe to one Gram matrix a layer, within a memory budget.

Hooks live for the length of one pass over the probe. Each copies what its layer puts out at once (an in-place
activation may overwrite it a moment later) into a buffer of shape (N, d); when the pass is over each buffer is reduced
to its N x N Gram and freed. Where the buffers of all layers do not fit the budget, the layers are shared out over
several passes, and a layer that does not fit alone is taken in slices of its features, whose Grams add up. Every pass
but the last ends with its deepest layer, so that shallow layers, whose activations are the largest, cost little of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_ssc._memory import free_memory
from lightning_ssc.layers import Layer, named_layers
from lightning_ssc.probe import batch_size, take, without_trace

log = logging.getLogger(__name__)

Pooling = Literal["flatten", "mean", "cls"]
Forward = Callable[[nn.Module, Any], Any]

_TRACED = 7  # samples of a trial run: a number that no other dimension of an output is likely to have
_BLOCK = 256  # rows of a Gram that are formed or mirrored at once
_HALVED = 1536  # samples above which a Gram is split into halves, whose product runs at full speed
_LOST = 64  # epsilons of the mean's squared length below which that of a sample is rounding


class _EnoughError(BaseException):
    """Ends a forward pass whose layers have all run; not an Exception, which a network's own code might catch."""


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


@dataclass
class GramOfLayer:
    """The Gram matrix of one layer's activations, kept so that neither of its uses loses precision.

    In float32 the product of uncentred features hides a small spread behind a large mean, so features are centred
    first; the mean is added back for self-expression, which wants the raw Gram.

    Attributes:
        layer: The layer it belongs to.
        centred: ``(N, N)`` float32 (float64 of layers that compute in it), the Gram of the features less their mean
            over the probe (H X Xᵀ H).
        offset: ``(N,)`` float64, what row and column i have to gain in the raw Gram.
        gain: What every entry has to gain in the raw Gram.
    """

    layer: WatchedLayer
    centred: Tensor
    offset: Tensor
    gain: float

    def add_(self, other: GramOfLayer) -> None:
        """Add the Gram of other features of the same layer."""
        self.centred += other.centred
        self.offset += other.offset
        self.gain += other.gain

    def raw_(self) -> Tensor:
        """The raw Gram X Xᵀ, written over :attr:`centred`.

        A sample so near to zero beside the mean that rounding is all that is left of it (less than 0.3 % of the mean's
        length in float32) is taken for zero.
        """
        for rows, offset in zip(self.centred.split(_BLOCK), self.offset.split(_BLOCK), strict=True):
            rows += (offset[:, None] + self.offset + self.gain).to(rows.dtype)
        lost = self.centred.diagonal() <= _LOST * torch.finfo(self.centred.dtype).eps * self.gain
        self.centred[lost] = 0
        self.centred[:, lost] = 0
        return self.centred


def check_sizes(chunk: int, memory: int | None) -> None:
    """Raise ValueError where a chunk or a memory budget is not a positive whole number.

    Example:
        >>> check_sizes(256, 4_000_000_000)
    """
    for name, value, unit in (("chunk", chunk, "samples, such as 256"), ("memory", memory, "bytes, such as 4 * 10**9")):
        if value is not None and (not hasattr(value, "__index__") or value < 1):
            raise ValueError(f"{name} must be a positive whole number of {unit}; got {value!r}.")


def share_layers(layers: Sequence[WatchedLayer], rank: int, ranks: int) -> list[WatchedLayer]:
    """The layers of one of several processes: the widest ones dealt out first, since Grams take time by width.

    Example:
        >>> layers = [WatchedLayer(Layer(name), 0, name, size) for name, size in (("a", 9), ("b", 1), ("c", 5))]
        >>> [[layer.label for layer in share_layers(layers, rank, 2)] for rank in (0, 1)]
        [['a', 'b'], ['c']]
    """
    mine = set(sorted(layers, key=lambda layer: layer.features, reverse=True)[rank::ranks])
    return [layer for layer in layers if layer in mine]


def trace(
    model: nn.Module,
    layers: Sequence[Layer],
    inputs: Any,
    *,
    pooling: Pooling = "flatten",
    forward: Forward | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    device: torch.device | None = None,
) -> list[WatchedLayer]:
    """Run a few samples through the network to learn the order of its layers, their calls and numbers of features.

    Args:
        model: The network.
        layers: The layers asked for.
        inputs: Inputs of the network.
        pooling: How activations become features, see :func:`features`.
        forward: How the network is run on inputs, see :func:`run`.
        context: Opened around the forward pass (a precision plugin's autocast).
        device: Where the network runs; by default where its first parameter is.

    Returns:
        The calls of the layers in the order in which they finish. Layers that did not run are left out.

    Raises:
        ValueError: A layer that the user named does not run, no layer runs, or an output cannot be used.
    """
    calls: list[tuple[Layer, Tensor, bool]] = []
    count = min(_TRACED, batch_size(inputs))
    sample = _to_device(take(inputs, slice(0, count)), device or device_of(model))

    def record(layer: Layer, call: int, output: Any) -> None:
        tensor = _part(output, layer, count)
        calls.append((layer, features(output, layer, count, pooling)[:1], _is_channels_last(tensor)))
        if layer.part is None and not isinstance(output, Tensor):
            log.info("Layer %s puts out %s; its first tensor is watched. Name a part as in '%s:0' for another one.",
                     layer.label, _describe(output), layer.name)  # fmt: skip

    with without_trace(model), _hooks(model, layers, record), context():
        run(model, sample, forward)
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


def capture(
    model: nn.Module,
    layers: Sequence[WatchedLayer],
    inputs: Any,
    *,
    pooling: Pooling = "flatten",
    forward: Forward | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    chunk: int = 256,
    device: torch.device | None = None,
    memory: int | None = None,
    watch: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext(),
    outputs: list[Any] | None = None,
) -> Iterator[GramOfLayer]:
    """The Gram matrices of the layers over the probe, one after the other, each when it is whole.

    Args:
        model: The network, left without a trace.
        layers: What :func:`trace` returned, or some of it.
        inputs: The probe's inputs, on any device.
        pooling: How activations become features, see :func:`features`.
        forward: How the network is run on inputs, see :func:`run`. Of several passes all but the last are ended early,
            by an exception that it must let through.
        context: Opened around the forward pass (a precision plugin's autocast).
        chunk: Samples a forward pass.
        device: Where the network runs; inputs are moved there a chunk at a time. Grams are formed there.
        memory: Bytes that buffers and Grams may take; by default half of what the device has free.
        watch: ``watch("forward")`` and ``watch("gram")`` are opened around the two stages.
        outputs: Gains what the network returned, a chunk at a time and on the CPU, if that is one row of numbers a
            sample.

    Yields:
        One Gram a layer. Take what is needed of it before asking for the next one.

    Raises:
        ValueError: Activations hold NaN or infinity (names layer and sample), or the budget is too small for one
            feature.
    """
    check_sizes(chunk, memory)
    n = batch_size(inputs)
    if not layers:
        return  # the share of a process where there are more processes than layers
    device = device or device_of(model)
    memory = free_memory(device) // 2 if memory is None else memory
    passes = plan_passes(layers, n, memory)
    cut = dict.fromkeys(layers[s.layer].label for group in passes for s in group if s.start > 0)
    log.debug(
        "%d layers of %d samples: %.1f MB of activations in %d passes, because memory=%.1f MB leaves %.1f MB beside "
        "two Gram matrices; layers too large for one pass: %s",
        len(layers), n, n * sum(layer.bytes_a_sample for layer in layers) / 1e6, len(passes), memory / 1e6,
        _room(layers, n, memory) / 1e6, ", ".join(map(repr, cut)) or "none",
    )  # fmt: skip
    parts: dict[int, GramOfLayer] = {}
    for number, group in enumerate(passes):
        home = device if device.type in ("cpu", "cuda") else torch.device("cpu")  # others lack float64
        buffers = {s.layer: torch.empty(n, s.stop - s.start, device=home, dtype=layers[s.layer].dtype) for s in group}
        wanted = {
            (layers[s.layer].layer, layers[s.layer].call): _Wanted(s, buffers[s.layer], layers[s.layer].channels_last)
            for s in group
        }
        whole = number == len(passes) - 1
        with watch("forward"), without_trace(model):
            for start in range(0, n, chunk):
                rows = slice(start, min(n, start + chunk))
                keep = partial(_keep, wanted, set() if whole else set(wanted), rows, pooling)
                output = None
                with (
                    nullcontext() if whole else _cut_short(model),
                    _hooks(model, [layer for layer, _ in wanted], keep) as seen,
                    context(),
                ):
                    output = run(model, _to_device(take(inputs, rows), device), forward)
                if missing := [layer.label for layer, call in wanted if seen[layer] <= call]:
                    raise ValueError(
                        f"Layer {missing[0]!r} ran for the first samples of the probe but not for samples {start} to "
                        f"{rows.stop - 1}. Watch only layers that run for every input."
                    )
                if outputs is not None and whole and isinstance(output, Tensor) and output.dim() == 2:
                    outputs.append(output.detach().cpu())
                del output  # or it would be held while Grams are formed
        wanted.clear()  # each buffer goes when its Gram is there
        for s in group:
            layer = layers[s.layer]
            with watch("gram"):
                gram = centred_gram(buffers.pop(s.layer), layer)
                if s.layer in parts:
                    gram.add_(parts.pop(s.layer))
            if s.stop == layer.features:
                yield gram
            else:
                parts[s.layer] = gram
            del gram


@contextmanager
def _cut_short(model: nn.Module) -> Iterator[None]:
    """A scope that ends with :class:`_EnoughError`, after which attributes are what they were.

    A module may set one at the start of its forward and take it back at the end, which does not come.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    except _EnoughError:
        for module, attributes in before:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)


def _keep(
    wanted: dict[tuple[Layer, int], _Wanted],
    missing: set[tuple[Layer, int]],
    rows: slice,
    pooling: Pooling,
    layer: Layer,
    call: int,
    output: Any,
) -> None:
    """Copy what a layer has just put out into its buffer, and end the pass if it was the last one missing."""
    if (layer, call) in wanted:
        part, buffer, channels_last = wanted[layer, call]
        found = features(output, layer, rows.stop - rows.start, pooling, channels_last)
        buffer[rows] = found[:, part.start : part.stop]
    if missing:
        missing.discard((layer, call))
        if not missing:
            raise _EnoughError


@dataclass(frozen=True)
class FeatureSlice:
    """Features ``start`` to ``stop`` of one layer, the unit in which passes are planned."""

    layer: int
    start: int
    stop: int


class _Wanted(NamedTuple):
    """Where the features of a layer go during a pass."""

    part: FeatureSlice
    buffer: Tensor
    channels_last: bool


def plan_passes(layers: Sequence[WatchedLayer], samples: int, memory: int) -> list[list[FeatureSlice]]:
    """Share layers out over as few passes as fit a memory budget, in their order and each as far as possible whole.

    Each pass needs its buffers and, at its end, one Gram (and the running Gram of a layer in slices). Only a layer that
    no pass could hold is cut: it begins in what is left of a pass.

    Args:
        layers: The layers.
        samples: Number of samples.
        memory: Bytes.

    Returns:
        For every pass the slices of layers that it captures; all of a layer's slices come in ascending order.

    Raises:
        ValueError: The budget does not hold the Grams and one feature; the message says how many bytes would.

    Example:
        >>> layers = [WatchedLayer(Layer(name), 0, name, size) for name, size in (("a", 50), ("b", 30), ("c", 250))]
        >>> [[(s.layer, s.start, s.stop) for s in p] for p in plan_passes(layers, 10, 2 * 400 + 4000)]
        [[(0, 0, 50), (1, 0, 30), (2, 0, 20)], [(2, 20, 120)], [(2, 120, 220)], [(2, 220, 250)]]
    """
    widest = max(layer.dtype.itemsize for layer in layers)
    room = _room(layers, samples, memory)
    if (missing := samples * widest - room) > 0:
        raise ValueError(
            f"A memory budget of {memory / 1e6:.1f} MB does not hold the Gram matrices of {samples} samples; it takes "
            f"at least {(memory + missing) / 1e6:.1f} MB. Raise memory= or use a smaller probe."
        )
    passes: list[list[FeatureSlice]] = []
    left = 0
    for number, layer in enumerate(layers):
        column = samples * layer.dtype.itemsize
        if left < layer.features * column <= room:
            left = 0
        start = 0
        while start < layer.features:
            if left < column:
                passes.append([])
                left = room
            stop = min(layer.features, start + left // column)
            passes[-1].append(FeatureSlice(number, start, stop))
            left -= (stop - start) * column
            start = stop
    return passes


def _room(layers: Sequence[WatchedLayer], samples: int, memory: int) -> int:
    """Bytes that a budget leaves for activations beside two Grams."""
    return memory - 2 * samples * samples * max(layer.dtype.itemsize for layer in layers)


def device_of(model: nn.Module) -> torch.device:
    """Where a network's first parameter is."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _to_device(inputs: Any, device: torch.device) -> Any:
    return apply_to_collection(inputs, Tensor, lambda t: t.to(device))


def centred_gram(x: Tensor, layer: WatchedLayer) -> GramOfLayer:
    """The Gram of a layer's features at the full precision of its dtype; ``x`` (N, d) is overwritten.

    Raises:
        ValueError: A feature is NaN or infinite; names the layer and the sample.
    """
    n = len(x)
    mean = x.mean(0)  # rounded: what matters is that the same is taken off here and given back by raw_()
    if not torch.isfinite(mean).all():
        if len(bad := (~torch.isfinite(x)).any(1).nonzero().squeeze(1)):
            raise ValueError(
                f"Layer {layer.label!r} puts out NaN or infinity for {len(bad)} of {n} probe samples, first for "
                f"sample {int(bad[0])}. Its graph is not defined: look at the learning rate, the precision or the "
                f"inputs, or leave the layer out."
            )
        mean = x.mean(0, dtype=torch.float64).to(x.dtype)  # finite values, whose sum was too large
    x -= mean
    gram = torch.empty(n, n, device=x.device, dtype=x.dtype)
    with _full_precision(x.device):
        _upper_product(x, gram)
        offset = (x @ mean).double()
    for start in range(0, n, _BLOCK):
        rows, stop = gram[start : start + _BLOCK], start + _BLOCK
        own = rows[:, start:stop].triu()
        rows[:, start:stop] = own + own.triu(1).T
        gram[stop:, start:stop] = rows[:, stop:].T
    return GramOfLayer(layer, gram, offset, float(mean.double().square().sum()))


def _upper_product(x: Tensor, out: Tensor) -> None:
    """Write X Xᵀ to ``out`` on and above the diagonal; only blocks on the diagonal are formed twice."""
    n = len(x)
    if n > _HALVED:
        half = n // 2
        torch.mm(x[:half], x[half:].T, out=out[:half, half:])
        _upper_product(x[:half], out[:half, :half])
        _upper_product(x[half:], out[half:, half:])
        return
    for start in range(0, n, _BLOCK):
        stop = start + _BLOCK
        torch.mm(x[start:stop], x[start:].T, out=out[start:stop, start:])


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products without TF32 and outside autocast; the global settings are restored."""
    backends: Any = torch.backends
    owner: Any = backends.cuda.matmul if device.type == "cuda" else getattr(backends.mkldnn, "matmul", None)
    new = hasattr(
        owner, "fp32_precision"
    )  # since torch 2.9; reading the old setting may raise once the new one is used
    before = owner.fp32_precision if new else torch.get_float32_matmul_precision()
    try:
        if new:
            owner.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if new:
            owner.fp32_precision = before
        else:
            torch.set_float32_matmul_precision(before)


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
        ValueError: There is no such part, no tensor, or the tensor does not have a row a sample.
    """
    tensor = _part(output, layer, samples)
    if tensor.dim() == 0 or len(tensor) != samples:
        raise ValueError(
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
        raise ValueError(
            f"Layer {layer.label!r} puts out shape {tuple(tensor.shape)}, which has no class token. Use pooling='mean' "
            f"or 'flatten', or watch only layers that put out tokens."
        )
    if channels_last and tensor.dim() > 3:
        tensor = tensor.movedim(1, -1)
    return tensor.detach().reshape(samples, -1)


def _is_channels_last(tensor: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensor.dim() not in formats or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=formats[tensor.dim()])


def _part(output: Any, layer: Layer, samples: int) -> Tensor:
    if layer.part is None:
        found = output if isinstance(output, Tensor) else _first_tensor(output, samples)
        if found is None:
            raise ValueError(
                f"Layer {layer.label!r} puts out {type(output).__name__} without a tensor of {samples} rows. Name the "
                f"part that you mean, as in '{layer.name}:0' or '{layer.name}:logits'."
            )
        return found
    for key in layer.part.split("."):
        entries = _entries(output)
        if key not in entries:
            raise ValueError(
                f"The output of layer {layer.name!r} has no part {layer.part!r}; it is {_describe(output)}. Name one "
                f"that it has."
            )
        output = entries[key]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"Part {layer.part!r} of layer {layer.name!r} is {_describe(output)}. Name a part that is a tensor."
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


def _describe(output: Any) -> str:
    entries = ", ".join(_entries(output))
    return f"{type(output).__name__} with parts {entries}" if entries else type(output).__name__


def run(model: nn.Module, inputs: Any, forward: Forward | None = None) -> Any:
    """Run the network on inputs.

    A tensor goes in as ``model(x)``, a tuple as ``model(*inputs)``, a dict as ``model(**inputs)``;
    ``forward(model, inputs)``, where given, does it instead.
    """
    if forward is not None:
        return forward(model, inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


@contextmanager
def _hooks(
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
