"""From a network and its probe to one Gram matrix a layer, within a memory budget.

Hooks live for the length of one pass over the probe. Each copies what its layer puts out at once (an in-place
activation may overwrite it a moment later) into a buffer of shape (N, d); when the pass is over each buffer is reduced
to its N x N Gram and freed. Where the buffers of all layers do not fit the budget, the layers are shared out over
several passes, and a layer that does not fit alone is taken in slices of its features, whose Grams add up. Every pass
but the last ends with its deepest layer, so that shallow layers, whose activations are the largest, cost little of it.

Several processes go through the same passes, turn by turn: each runs its share of the samples and sends what they give
to the process that owns the layer, which forms its Gram. A network whose work they share, too (tensor parallel), is run
on the same samples by all of them, from which each keeps its own layers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_ssc.capture.batches import batch_size, take
from lightning_ssc.capture.classifier import Head
from lightning_ssc.capture.disk import NoRoomError, on_disk
from lightning_ssc.capture.isolation import seed_everything, without_trace
from lightning_ssc.capture.names import Layer
from lightning_ssc.capture.outputs import OutputError, Returned, View, features, returned
from lightning_ssc.capture.plan import FeatureSlice, goes_to_disk, plan_shared, room, share_layers
from lightning_ssc.capture.processes import Alone, Processes
from lightning_ssc.capture.runner import Runner
from lightning_ssc.capture.samples import chunks
from lightning_ssc.capture.sharding import is_sharded, runs_apart
from lightning_ssc.capture.spread import Post, rows_a_turn, turns
from lightning_ssc.capture.tokens import masks_mark_tokens, view_of
from lightning_ssc.capture.trace import WatchedLayer, hooked, in_one_chunk
from lightning_ssc.functional.grams import CentredGram, centred_gram, in_memory
from lightning_ssc.settings import FLAT, Rows

log = logging.getLogger(__name__)


class _EnoughError(BaseException):
    """Ends a forward pass whose layers have all run; not an Exception, which a network's own code might catch."""


class _Wanted(NamedTuple):
    """Where the features of a layer go during a turn; nowhere where another process has run the samples."""

    part: FeatureSlice
    place: Tensor | None
    watched: WatchedLayer


def capture(
    runner: Runner,
    layers: Sequence[WatchedLayer],
    inputs: Any,
    how: Rows = FLAT,
    *,
    processes: Processes | None = None,
    timed: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext(),
    outputs: dict[int, Returned] | None = None,
    head: Head | None = None,
    precise: bool = False,
) -> Iterator[tuple[WatchedLayer, CentredGram]]:
    """The Gram matrices of the layers over the probe, one after the other, each when it is whole.

    Args:
        runner: The network, left without a trace. Of several passes all but the last are ended early, by an exception
            that its ``forward`` must let through. Grams are formed on its device.
        layers: What :func:`lightning_ssc.capture.trace` returned, or some of it.
        inputs: The probe's inputs, on any device; they are moved to the network's a chunk at a time.
        how: How activations become features, see :func:`lightning_ssc.capture.outputs.features`.
        processes: Those that do this together, with equal arguments. Each has to take all of its layers, or the others
            wait for it. By default a lone one.
        timed: ``timed("forward")`` and ``timed("gram")`` are opened around the two stages.
        outputs: Gains what the network returned, a chunk at a time, by its first sample and on the CPU, if that is one
            row of numbers a sample, or has such ``logits``. Several processes each gain what they have run.
        head: Listens to what the classifier is given, once for every sample; of several processes each to what it runs.
        precise: Form Grams in double precision.

    Yields:
        Each layer of this process (:func:`lightning_ssc.capture.plan.share_layers`) with its Gram. Take what is needed
        of it before asking for the next one.

    Raises:
        ValueError: Activations hold NaN or infinity (names layer and sample), or the budget is too small for one
            feature.
        RuntimeError: So it is on one of several processes, or the network does not run there.
    """
    n = batch_size(inputs)
    processes = Alone() if processes is None else processes
    model, device, rank, ranks = runner.model, runner.device, processes.rank, processes.size
    assert device is not None
    home = torch.device("cpu") if runner.grams_on_cpu else device
    sharded, spread = is_sharded(model), is_spread(model, layers, ranks)
    memory = min(processes.everyones(processes.together(runner.budget)))
    disk = goes_to_disk(layers, n, memory, runner.grams_on_cpu)
    passes = plan_shared(layers, n, memory, ranks, staged=spread, disk=disk)
    marks = masks_mark_tokens(inputs, model)
    owners = [next(r for r in range(ranks) if layer in share_layers(layers, r, ranks)) for layer in layers]
    cut = dict.fromkeys(layers[s.layer].label for group in passes for s in group if s.start > 0)
    log.debug(
        "%d layers of %d samples: %.1f MB of activations in %d passes, because memory=%.1f MB leaves %.1f MB beside "
        "%s; layers too large for one pass: %s",
        len(layers), n, n * sum(layer.bytes_a_sample for layer in layers) / 1e6, len(passes), memory / 1e6,
        room(layers, n, memory, disk) / 1e6,
        "Gram matrices on disk" if disk else "two Gram matrices", ", ".join(map(repr, cut)) or "none",
    )  # fmt: skip
    parts: dict[int, CentredGram] = {}
    form = partial(centred_gram, precise=precise, room=on_disk if disk else in_memory)
    left_out: dict[int, NoRoomError] = {}
    failed: Exception | None = None
    for number, group in enumerate(passes):
        mine = [s for s in group if owners[s.layer] == rank]
        # Memory may be short on one process alone: none gets to a turn that another does not take.
        buffers = processes.together(partial(_buffers, mine, layers, n, home))
        last = number == len(passes) - 1
        early = not (last or sharded)  # a sharded network left halfway would keep the weights that it has gathered
        chunk, post = n if in_one_chunk(layers, n, memory) else runner.chunk, None
        if spread:
            chunk = min(
                chunk, -(-n // ranks), rows_a_turn(group, layers, owners, ranks, n, room(layers, n, memory, disk))
            )
            post = Post(processes, group, layers, owners, buffers, home)
        with timed("forward"), without_trace(model):
            for turn in turns(chunks(inputs, chunk), ranks if spread else 1):
                rows = turn.of(rank)
                places = partial(_own, buffers, rows) if post is None else partial(post.places, turn)
                whole = head if last else None  # other passes may not reach the classifier
                run = partial(_run, runner, group, layers, places, inputs, rows, how, marks, whole, cut=early)
                before, failed = failed, None
                given, output = processes.together(partial(_unless, before, run))
                if post is not None:
                    post.deliver(turn, given)
                if outputs is not None and last and output is not None:
                    outputs[rows.start] = output
                del output, given, places, run  # or they would be held while Grams are formed
        post = None
        for s in mine:
            layer = layers[s.layer]
            try:
                with timed("gram"):
                    if s.layer in left_out:
                        del buffers[s.layer]
                        continue
                    gram = _formed(partial(form, buffers.pop(s.layer), onto=parts.pop(s.layer, None)), layer)
            except NoRoomError as error:
                log.warning("Layer %r is left out of this snapshot: %s", layer.label, error)
                left_out[s.layer] = error
                if len(left_out) == owners.count(rank):
                    failed = error
                    break
                continue
            except Exception as error:
                failed = error
                break  # the others hear of it in the next turn
            if s.stop == layer.features:
                yield layer, gram
            else:
                parts[s.layer] = gram
            del gram
        if failed is not None and (ranks == 1 or last):
            raise failed


def is_spread(model: nn.Module, layers: Sequence[WatchedLayer], ranks: int) -> bool:
    """Whether each of several processes runs samples of its own, which takes some memory for features on their way.

    What a layer that mixes samples puts out is of the chunk, so that all run the same ones.
    """
    return ranks > 1 and runs_apart(model) and not any(layer.mixes for layer in layers)


def _unless(failed: Exception | None, action: Callable[[], Any]) -> Any:
    """What an action gives, but where something has failed before."""
    if failed is not None:
        raise failed
    return action()


def _buffers(
    parts: Sequence[FeatureSlice], layers: Sequence[WatchedLayer], n: int, home: torch.device
) -> dict[int, Tensor]:
    """Room for the features ``(N, d)`` of some slices, by layer."""
    return {p.layer: torch.empty(n, p.stop - p.start, device=home, dtype=layers[p.layer].dtype) for p in parts}


def _own(buffers: Mapping[int, Tensor], rows: slice) -> dict[int, Tensor]:
    """Where features of some samples go in a lone process."""
    return {layer: buffer[rows] for layer, buffer in buffers.items()}


def _run(
    runner: Runner,
    group: Sequence[FeatureSlice],
    layers: Sequence[WatchedLayer],
    places: Callable[[], dict[int, Tensor]],
    inputs: Any,
    rows: slice,
    how: Rows,
    marks: bool | None,
    head: Head | None,
    *,
    cut: bool,
) -> tuple[dict[int, Tensor], Returned | None]:
    """Run the network on some samples, up to the last layer that is wanted where the pass may be cut short.

    Returns:
        Features by layer, where they have been put, and what the network returned, where that may be logits.
    """
    given = places()
    wanted = {
        (layers[s.layer].layer, layers[s.layer].call): _Wanted(s, given.get(s.layer), layers[s.layer]) for s in group
    }
    output, samples = None, take(inputs, rows)
    view = view_of(samples, runner.model, marks)
    keep = partial(_keep, wanted, set(wanted) if cut else set(), rows, view, how)
    seed_everything(rows.start)  # a network that is random even now is so in the same way every time
    with (
        _cut_short(runner.model) if cut else nullcontext(),
        hooked(runner.model, [layer for layer, _ in wanted], keep) as seen,
        nullcontext() if head is None else head.listening(rows),
        runner.context(),
    ):
        output = runner(samples)
    if missing := [layer.label for layer, call in wanted if seen[layer] <= call]:
        raise ValueError(
            f"Layer {missing[0]!r} ran for the first samples of the probe but not for samples {rows.start} to "
            f"{rows.stop - 1}. Watch only layers that run for every input."
        )
    return given, returned(output, view)


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
    view: View,
    how: Rows,
    layer: Layer,
    call: int,
    output: Any,
    given: Sequence[Tensor],
) -> None:
    """Copy what a layer has just put out to its place, and end the pass if it was the last one missing."""
    if (layer, call) in wanted:
        part, place, watched = wanted[layer, call]
        if place is not None:
            found = features(output, watched.source, view, how, watched.channels_last, watched.axis, watched.shape)
            if found.shape[1] != watched.features:
                raise OutputError(
                    f"Layer {watched.label!r} puts out {found.shape[1]} features a sample for samples {rows.start} to "
                    f"{rows.stop - 1} and {watched.features} for the first ones, as of sequences of other lengths. Use "
                    f"pooling='mean' or 'last', fill them up with pad=0.0, or watch a layer behind that."
                )
            place[:] = found[:, part.start : part.stop]
    if missing:
        missing.discard((layer, call))
        if not missing:
            raise _EnoughError


def _formed(form: Callable[[], CentredGram], layer: WatchedLayer) -> CentredGram:
    try:
        return form()
    except ValueError as error:
        raise ValueError(
            f"Layer {layer.label!r} puts out {error}. Its graph is not defined: look at the learning rate, the "
            f"precision or the inputs, or leave the layer out."
        ) from error
