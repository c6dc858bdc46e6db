"""Which parameters act on what a network puts out through which layers: what may be frozen with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_ssc.capture.calls import tensors_in
from lightning_ssc.capture.isolation import seed_everything, without_trace
from lightning_ssc.capture.names import Layer
from lightning_ssc.capture.runner import Runner
from lightning_ssc.capture.samples import some
from lightning_ssc.capture.trace import WatchedLayer, hooked


def parameters_through(runner: Runner, layers: Sequence[WatchedLayer], inputs: Any) -> dict[str, list[str]]:
    """The parameters that act on the network's output through a layer and those before it alone.

    Once these layers stay as they are, nothing is lost by freezing such parameters, and no gradient has to go below the
    layer. One that acts in another way as well (tied weights, a skip past the layers) is not among them. They are
    found by walking through autograd's graph of one forward pass, not by names.

    Args:
        runner: The network, left without a trace.
        layers: What :func:`lightning_ssc.capture.trace` returned.
        inputs: Inputs of the network, of which some are run.

    Returns:
        Names of parameters by the layer's label, in the order of the layers; each parameter with the first layer that
        it is out of the way with. Those that are frozen already are with none.

    Example:
        >>> from torch import nn
        >>> from lightning_ssc.capture.trace import trace
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> runner, x = Runner(net), torch.rand(9, 2)
        >>> parameters_through(runner, trace(runner, ["1", "2"], x), x)
        {'1': ['0.weight', '0.bias', '1.weight', '1.bias'], '2': ['2.weight', '2.bias']}
    """
    places = {(watched.layer, watched.call): place for place, watched in enumerate(layers)}
    put_out: dict[Any, int] = {}  # nodes of the graph, by the first layer whose output they are

    def record(layer: Layer, call: int, output: Any, given: Sequence[Tensor]) -> None:
        if (layer, call) in places:
            for node in _nodes(output):
                put_out[node] = min(places[layer, call], put_out.get(node, len(layers)))

    with (
        without_trace(runner.model),
        hooked(runner.model, [watched.layer for watched in layers], record),
        runner.context(),
        torch.enable_grad(),
    ):
        seed_everything(0)
        output = runner(some(inputs))
    names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
    reached = _reached(_nodes(output), put_out, len(layers), names)
    order = list(names.values())
    return {watched.label: sorted(reached[place], key=order.index) for place, watched in enumerate(layers)}


def _nodes(output: Any) -> list[Any]:
    return [tensor.grad_fn for tensor in tensors_in(output) if tensor.grad_fn is not None]


def _reached(roots: Sequence[Any], put_out: dict[Any, int], layers: int, names: dict[int, str]) -> dict[int, list[str]]:
    """Walk from the output with all layers in the way, then without the last one, and so on.

    Returns:
        Names of parameters by the layer that they were behind.
    """
    behind: dict[int, list[Any]] = defaultdict(list)  # nodes that a layer keeps from being walked to
    behind[layers] = list(roots)
    seen, found = set[Any](), defaultdict[int, list[str]](list)  # holding on to nodes keeps them what they are
    for place in range(layers, -1, -1):
        left = behind[place]
        while left:
            node = left.pop()
            if node is None or node in seen:
                continue
            if (first := put_out.get(node, layers)) < place:
                behind[first].append(node)
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)  # of a leaf
            if variable is not None and id(variable) in names:
                found[place].append(names[id(variable)])
            left += [following for following, _ in node.next_functions]
    return found
