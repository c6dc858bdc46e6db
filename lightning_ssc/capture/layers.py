"""Which modules of a network are meant: names, globs, types and the presets of :mod:`lightning_ssc.capture.presets`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast, get_args

import torch
from torch import nn

from lightning_ssc.capture.calls import Call, observe
from lightning_ssc.capture.names import Layer, clean_name, named_layers
from lightning_ssc.capture.presets import Preset, chosen
from lightning_ssc.capture.runner import Runner

LayerPattern = str | type[nn.Module]


def select_layers(runner: Runner, patterns: str | type[nn.Module] | Sequence[LayerPattern], inputs: Any) -> list[Layer]:
    """The layers that the patterns select, each once.

    A pattern is one of

    * a preset: ``"blocks"`` every block (a residual block, a dense layer, a transformer layer), with the stem and the
      classifier that stand outside; ``"stages"`` every row of blocks, with what stands between and around; ``"conv"``
      every convolution. Presets go by what runs in one forward pass, see :func:`lightning_ssc.capture.presets.chosen`;
    * a module's name, ``"layer1.0.conv1"``;
    * a glob over names, in which ``*`` stops at a dot and ``**`` does not: ``"layer*.0"``, ``"encoder.**.mlp"``;
    * a module type, as a class or by its class name: ``nn.Conv2d`` or ``"Conv2d"``.

    Names and globs may end in ``:part`` to say which part of a tuple, dict or dataclass output is meant:
    ``"lstm:0"``, ``"encoder:last_hidden_state"``, ``"rnn:1.0"``.

    Args:
        runner: The network.
        patterns: One pattern or several.
        inputs: Inputs of the network, of which a few are run where a preset is asked for.

    Returns:
        The selected layers in the order of ``named_modules``.

    Raises:
        ValueError: A pattern selects nothing; the message lists the nearest names.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 2))
        >>> x = torch.rand(7, 3, 6, 6)
        >>> [layer.name for layer in select_layers(Runner(net), "conv", x)]
        ['0', '2']
        >>> [layer.name for layer in select_layers(Runner(net), ["Linear", "0"], x)]
        ['0', '4']
    """
    modules = named_layers(runner.model)
    if not modules:
        raise ValueError(no_layers(runner.model))
    calls = cache(lambda: observe(runner, inputs))
    selected: dict[tuple[str, str | None], Layer] = {}
    for pattern in [patterns] if isinstance(patterns, (str, type)) else patterns:
        found = _match(modules, pattern, calls)
        if not found:
            raise ValueError(_nothing_found(runner.model, pattern, modules))
        for layer in found:
            known = selected.get((layer.name, layer.part))
            if known is None or layer.named:
                selected[layer.name, layer.part] = layer
    position = {name: i for i, name in enumerate(modules)}
    return sorted(selected.values(), key=lambda layer: (position[layer.name], layer.part or ""))


def _match(modules: dict[str, nn.Module], pattern: LayerPattern, calls: Callable[[], Call]) -> list[Layer]:
    if isinstance(pattern, type):
        return [Layer(name) for name, module in modules.items() if isinstance(module, pattern)]
    if pattern in get_args(Preset):
        return [Layer(name) for name in chosen(cast("Preset", pattern), calls())]
    path, _, part = pattern.partition(":")
    path = clean_name(path)
    if path in modules:
        return [Layer(path, part or None, named=True)]
    if any(c in path for c in "*?"):
        regex = re.compile(_glob_to_regex(path))
        return [Layer(name, part or None) for name in modules if regex.fullmatch(name)]
    return [Layer(n, part or None) for n, m in modules.items() if path in (c.__name__ for c in type(m).__mro__)]


def _glob_to_regex(glob: str) -> str:
    return re.escape(glob).replace(r"\*\*", ".*").replace(r"\*", "[^.]*").replace(r"\?", "[^.]")


def no_layers(model: nn.Module) -> str:
    """What to say of a network in which no modules are to be seen."""
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        return f"The network is a {kind}, which shows no layers. Give the module that it was made from."
    return f"The network is a single {kind} with no layers inside. Give nn.Sequential(network), whose layer is '0'."


def _nothing_found(model: nn.Module, pattern: LayerPattern, modules: dict[str, nn.Module]) -> str:
    text = pattern if isinstance(pattern, str) else pattern.__name__
    kinds = sorted({type(m).__name__ for m in modules.values()})
    if text in get_args(Preset):
        return (
            f"The preset layers={text!r} finds nothing to watch in this network, which is made of "
            f"{', '.join(kinds)}. Name its layers instead, e.g. layers={list(modules)[:3]}."
        )
    path = clean_name(text.partition(":")[0])
    names = {id(module): name for name, module in modules.items()}
    for other, module in model.named_modules(remove_duplicate=False):
        if clean_name(other) == path and id(module) in names:
            first = names[id(module)]
            return (
                f"Layer {path!r} is the same module as {first!r}, by which it goes here. Name {first!r}: where it runs "
                f"several times, every run is watched, as '{first}.call1', '{first}.call2', ..."
            )
    near = difflib.get_close_matches(path, [*modules, *kinds], n=5, cutoff=0.3)
    return (
        f"No layer matches {text!r}. Nearest names: {', '.join(near or list(modules)[:5])}. A pattern is a name as in "
        f"model.named_modules(), a glob such as 'layer*.0', a module type, or a preset {get_args(Preset)}."
    )
