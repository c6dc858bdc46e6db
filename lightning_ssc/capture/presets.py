"""The presets "blocks", "stages" and "conv": which modules of a network they mean, from the calls of one forward pass.

A unit is a module in which one layer with weights runs (a convolution with its norm and activation, a pooler). A row is
a chain of calls of modules of one type, each more than a unit, that are numbered and hand their output on to the next
as it is, with a row a sample: what a loop makes. The module that makes the calls holds the row. A block is the
outermost module of several units that is not looked through. Looked through, because they are made of blocks or stand
for none, are: what holds a row or has one below; every module of a type of which some instance does (a stage of a
single block), or lies in another one (a U-Net in a U-Net); plain containers; the network itself; and a trunk, the only
module of its type, in which a large share of the network runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterator
from functools import cache
from math import prod
from typing import Literal

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from lightning_ssc.capture.calls import Call
from lightning_ssc.capture.names import named_layers

Preset = Literal["conv", "stages", "blocks"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NUMBERED = re.compile(r"\d[^.]*$")
_SHARE_OF_A_TRUNK = {"blocks": 1 / 3, "stages": 2 / 3}  # of the layers of the network


def chosen(preset: Preset, root: Call) -> list[str]:
    """Names of the modules that a preset means, each once, in the order in which they begin to run.

    Args:
        preset: * ``"blocks"``: every block, and every unit outside of blocks (stem, transitions, classifier);
            * ``"stages"``: every row of blocks, what stands between and around them, and of a plain chain of units
              (a VGG) the poolings that end its stages;
            * ``"conv"``: every convolution.
        root: The calls of a forward pass.

    Example:
        >>> import torch
        >>> from lightning_ssc.capture.calls import observe
        >>> from lightning_ssc.capture.runner import Runner
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 2))
        >>> root = observe(Runner(net), torch.rand(7, 3, 6, 6))
        >>> chosen("blocks", root), chosen("conv", root)
        (['0', '2', '4'], ['0', '2'])
    """
    calls = list(_PRESETS[preset](_Tree(root), root))
    inside = {inner.module for call in calls for inner in call.below()}  # a block's part may be lent to others
    return list(dict.fromkeys(call.name for call in calls if call.module not in inside))


class _Tree:
    """What the presets ask about the calls of a forward pass."""

    def __init__(self, root: Call) -> None:
        self.root = root
        self.kind = cache(_kind)
        self.links = cache(self._links)
        self.rows_below = cache(self._rows_below)
        calls = {call.module: call for call in root.below() if call.name}
        self._instances = Counter(self.kind(module) for module in calls)
        self.of_rows = {self.kind(call.module) for call in calls.values() if self.rows_below(call)}
        self.nested = {kind for call in calls.values() if (kind := self.kind(call.module)) in self._kinds_below(call)}
        self.in_rows = {self.kind(a.module) for call in (root, *root.below()) for a, _ in self.links(call)}
        lists = {f"{name}." for name, module in named_layers(root.module).items() if type(module) is nn.ModuleList}
        self.in_lists = {call.module for call in calls.values() if call.name.rpartition(".")[0] + "." in lists}

    def _kinds_below(self, call: Call) -> set[Hashable]:
        return {self.kind(inner.module) for inner in call.below() if inner.module is not call.module}

    def instances(self, call: Call) -> int:
        """How many modules of its kind the network has run."""
        return self._instances[self.kind(call.module)]

    def _links(self, call: Call) -> list[tuple[Call, Call]]:
        """The pairs of calls made by a call of which one follows the other in a row."""
        large = [part for part in call.parts if len(part.units) > 1 and part.has_rows and _NUMBERED.search(part.name)]
        large = [part for part in large if len(part.parts) > 1 or type(part.module) not in _CONTAINERS]
        links = [
            (a, b)
            for i, a in enumerate(large)
            for b in large[i + 1 :]
            if a.given & b.taken and self.kind(a.module) == self.kind(b.module)
        ]
        return [] if self.instances(call) > 1 and self.adds(call) else links  # the halves of a block may chain, too

    def _rows_below(self, call: Call) -> int:
        """How many calls hold rows that hold no rows themselves, among a call and those below."""
        below = sum(self.rows_below(child) for child in call.children)
        return below or bool(self.links(call))

    def adds(self, call: Call) -> bool:
        """Whether a call makes its output itself, in the shape of an input: it adds, as residual blocks do."""
        made = call.taken.union(*(child.given for child in call.children))
        return not call.given & made and bool(set(call.shapes[:1]) & set(call.shapes_taken))

    def is_trunk(self, call: Call, preset: Preset) -> bool:
        """Whether it is the only module of its kind and holds so much of the network that it stands for no one part."""
        share = len(call.units) / len(self.root.units)
        is_loop = any(part.module in self.in_lists for part in call.parts)
        is_block = self.kind(call.module) in self.in_rows or call.module in self.in_lists
        is_block = is_block or (self.adds(call) and not is_loop)
        return share >= _SHARE_OF_A_TRUNK[preset] and self.instances(call) == 1 and not is_block


def _kind(module: nn.Module) -> Hashable:
    """What makes modules alike: the type and, of plain containers, what they hold."""
    if type(module) in _CONTAINERS:
        return type(module), tuple(_kind(child) for child in module.children())
    return type_before_parametrizations(module)


def _blocks(tree: _Tree, call: Call) -> Iterator[Call]:
    if call.units and call.name and not _is_made_of_blocks(tree, call):
        yield call
    else:
        for child in call.parts:
            yield from _blocks(tree, child)


def _is_made_of_blocks(tree: _Tree, call: Call) -> bool:
    if tree.rows_below(call) or tree.kind(call.module) in tree.of_rows:
        return True
    if type(call.module) in _CONTAINERS:  # several alike are blocks, such as the double convolutions of a U-Net
        return not (tree.instances(call) > 2 and len(call.parts) > 1 and all(part.is_layer for part in call.parts))
    return len(call.units) > 1 and (tree.kind(call.module) in tree.nested or tree.is_trunk(call, "blocks"))


def _stages(tree: _Tree, call: Call) -> Iterator[Call]:
    if not tree.rows_below(call):
        yield from _stages_without_rows(tree, call)
        return
    members = {id(member) for link in tree.links(call) for member in link if not tree.rows_below(member)}
    runs: list[list[Call]] = []
    for part in call.parts:
        if runs and (runs[-1][-1], part) in tree.links(call) and id(part) in members and _same_size(runs[-1][-1], part):
            runs[-1].append(part)
        else:
            runs.append([part])
    is_one_row = len(runs) == 1 and len(members) > 1
    if call.name and (is_one_row or (tree.rows_below(call) == 1 and tree.instances(call) > 1)):
        yield call
        return
    for run in runs:
        if id(run[0]) in members:
            yield run[-1]
        else:
            yield from _stages(tree, run[0])


def _stages_without_rows(tree: _Tree, call: Call) -> Iterator[Call]:
    ends = _poolings(call)
    is_whole = tree.kind(call.module) not in tree.nested and not tree.is_trunk(call, "stages")
    if call.name and not ends and (len(call.units) == 1 or is_whole):
        if call.units:
            yield call
        return
    start = 0
    for end in ends:
        yield call.children[end]
        start = end + 1
    for child in call.children[start:]:
        yield from _stages(tree, child)


def _poolings(call: Call) -> list[int]:
    """Where the stages of a plain chain end: at what has no weights and makes images or sequences smaller."""
    ends: list[int] = []
    if type(call.module) is nn.Sequential:
        for i, child in enumerate(call.children):
            before, after = ((*shapes, ())[0] for shapes in (child.shapes_taken, child.shapes))
            shrinks = len(before) == len(after) > 2 and prod(after) < prod(before)
            if shrinks and not child.units and any(c.units for c in call.children[(ends or [0])[-1] : i]):
                ends.append(i)
    return ends if len(ends) > 1 else []


def _same_size(a: Call, b: Call) -> bool:
    """Whether two outputs differ in one dimension at most, which then is that of the channels."""
    (x, *_), (y, *_) = a.shapes, b.shapes
    return len(x) == len(y) and sum(i != j for i, j in zip(x, y, strict=True)) < 2


def _convolutions(tree: _Tree, call: Call) -> Iterator[Call]:
    if call.name and call.is_layer and any(_is_convolution(module) for module in call.module.modules()):
        yield call
    else:
        for child in call.children:
            yield from _convolutions(tree, child)


def _is_convolution(module: nn.Module) -> bool:
    return any(base.__name__ == "_ConvNd" for base in type(module).__mro__)  # quantised ones have a base of their own


_PRESETS = {"blocks": _blocks, "stages": _stages, "conv": _convolutions}
