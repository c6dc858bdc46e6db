"""What runs in one forward pass: the tree of a network's calls and the tensors that go from one to another.

Nothing here goes by names or by the static structure alone: a module that never runs is not in the tree, a container
that is only iterated over is not either, and a module that runs twice is in it twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_ssc.capture.batches import batch_size
from lightning_ssc.capture.isolation import without_trace
from lightning_ssc.capture.names import named_layers
from lightning_ssc.capture.runner import Runner
from lightning_ssc.capture.samples import some
from lightning_ssc.capture.sharding import reshard

_Known = frozenset[tuple[int, int]]  # tensors by their number and version, which an in-place operation raises


@dataclass(eq=False)
class Call:
    """One call of one module.

    Attributes:
        name: Dotted path of the module; empty for the network itself.
        module: The module; the network for the root of the tree, too.
        taken: Which tensors it was given.
        given: Which tensors it put out.
        shapes_taken: Shapes of the tensors that it was given.
        shapes: Shapes of the tensors that it put out.
        has_rows: Whether one of them has a row a sample, or a column where the batch comes second.
        children: The calls that it made.
    """

    name: str
    module: nn.Module
    taken: _Known = frozenset()
    given: _Known = frozenset()
    shapes_taken: tuple[tuple[int, ...], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    has_rows: bool = False
    children: list[Call] = field(default_factory=list)

    def below(self) -> Iterator[Call]:
        """The calls made by this one and by those, in the order in which they begin."""
        for child in self.children:
            yield child
            yield from child.below()

    @property
    def is_layer(self) -> bool:
        """Whether its module is one layer, whatever runs in it: it has weights and nothing below, or is around a layer.

        The class of an adapter, of a parametrised and of a quantised layer has a ``weight`` like that of the layer.
        """
        return hasattr(type(self.module), "weight") or next(self.module.children(), None) is None

    @cached_property
    def units(self) -> frozenset[nn.Module]:
        """The modules that stand for layers in it: those with weights of which no part with weights runs by itself."""
        inner = frozenset[nn.Module]().union(*(child.units for child in self.children))
        if self.name and (self.is_layer or not inner) and _has_weights(self):
            return frozenset({self.module})
        return inner

    @property
    def parts(self) -> list[Call]:
        """The calls that it made of modules with weights."""
        return [child for child in self.children if child.units]


def _has_weights(call: Call) -> bool:
    """Whether its module has weights of two or more dimensions, packed ones included; scales are none, as in norms."""
    parameters = call.module.parameters()
    return hasattr(type(call.module), "weight") or any(p.dim() > 1 and not _is_scale(p, call) for p in parameters)


def _is_scale(parameter: Tensor, call: Call) -> bool:
    """Whether it holds a number a feature, along one dimension of what its module takes and gives: ``(1, 1, C)``."""
    shape, given = tuple(parameter.shape), call.shapes[:1]
    if given != call.shapes_taken[:1] or not 2 < len(shape) <= len((*given, ())[0]):
        return False
    along = [(size, whole) for size, whole in zip(shape[::-1], given[0][::-1], strict=False) if size > 1]
    return len(along) == 1 and along[0][0] == along[0][1]


def observe(runner: Runner, inputs: Any) -> Call:
    """The tree of calls in a forward pass over a few samples.

    Args:
        runner: The network, left without a trace.
        inputs: Inputs of the network.

    Returns:
        The root: what was run, with the first tensor of the network's output that has a row a sample as its own.
        Tensors are told apart by numbers; none is kept.

    Example:
        >>> import torch
        >>> root = observe(Runner(nn.Sequential(nn.Linear(2, 3), nn.ReLU())), torch.rand(9, 2))
        >>> [call.name for call in root.below()], root.shapes
        (['', '0', '1'], ((7, 3),))
    """
    numbers: Any = WeakTensorKeyDictionary()  # forgets a tensor with its last user, so that memory is the forward's
    count = itertools.count()

    def known(tensors: Sequence[Tensor]) -> _Known:
        """Views are taken for what they are views of; inference tensors have no version."""
        wholes = [t if t._base is None else t._base for t in tensors]
        return frozenset((numbers.setdefault(t, next(count)), 0 if t.is_inference() else t._version) for t in wholes)

    batch = some(inputs)
    samples = batch_size(batch)
    root = Call("", runner.model)
    stack = [root]

    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = tensors_in((args, kwargs))
        call = Call(name, module, known(tensors), shapes_taken=_shapes(tensors))
        stack[-1].children.append(call)
        stack.append(call)

    def leave(name: str, module: nn.Module, args: Any, output: Any) -> None:
        while stack[-1].name != name or stack[-1].module is not module:
            stack.pop()  # its end was not seen: its forward raised, and the network went on
        call = stack.pop()
        tensors = tensors_in(output)
        call.given, call.shapes = known(tensors), _shapes(tensors)
        call.has_rows = any(samples in shape[:2] for shape in call.shapes)

    with without_trace(runner.model), runner.context(), ExitStack() as hooks:
        hooks.callback(reshard, runner.model)  # or what it has gathered would be undone as a trace
        for name, module in {"": runner.model, **named_layers(runner.model)}.items():

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                enter(name, module, args, kwargs)

            def after(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                leave(name, module, args, output)

            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        output = [tensor for tensor in tensors_in(runner(batch)) if tensor.dim() > 0 and len(tensor) == samples][:1]
        root.given, root.shapes = known(output), _shapes(output)
    return root


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a value, through collections, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, f.name) for f in fields(value)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def _shapes(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple((t.size(0),) if t.is_nested else tuple(t.shape) for t in tensors)  # nested ones have no other size
