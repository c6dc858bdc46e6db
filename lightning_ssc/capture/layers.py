"""Which modules of a network are watched: names, globs, types and the presets "conv", "stages" and "blocks".

Nothing here runs the network. The order of execution, and layers that never run or run several times, come to
light in one traced forward pass (:func:`lightning_ssc.capture.trace`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn
from torch.nn.modules.conv import _ConvNd

Preset = Literal["conv", "stages", "blocks"]
LayerPattern = str | type[nn.Module]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """One module that a pattern selected, before the network has run.

    Attributes:
        name: Dotted path of the module, without the prefixes that ``torch.compile`` adds.
        part: Which part of the module's output is meant, as dotted keys, indices or attributes; ``None`` for all of it.
        named: Whether the user wrote this very name, so that a layer that never runs is a mistake to report.
    """

    name: str
    part: str | None = None
    named: bool = False

    @property
    def label(self) -> str:
        """The name that tags and plots carry."""
        return self.name if self.part is None else f"{self.name}:{self.part}"


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule by its name, seen through ``torch.compile``.

    A compiled submodule appears twice in ``named_modules`` (the wrapper and ``_orig_mod``); here it appears once,
    under the name that the user gave it.

    Example:
        >>> list(named_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
        ['0', '1']
    """
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        clean = _clean(name)
        if clean:
            modules[clean] = module  # _orig_mod comes after its wrapper and replaces it
    return modules


def select_layers(model: nn.Module, patterns: str | type[nn.Module] | Sequence[LayerPattern]) -> list[Layer]:
    """The layers that the patterns select, each once.

    A pattern is one of

    * a preset: ``"conv"`` every convolution; ``"stages"`` the top-level parts that own parameters; ``"blocks"`` the
      repeated building blocks inside them (residual block, dense layer, transformer layer) with stem and classifier.
      A lone wrapper such as ``self.model`` is looked through; normalisation layers outside a block do not count;
    * a module's name, ``"layer1.0.conv1"``;
    * a glob over names, in which ``*`` stops at a dot and ``**`` does not: ``"layer*.0"``, ``"encoder.**.mlp"``;
    * a module type, as a class or by its class name: ``nn.Conv2d`` or ``"Conv2d"``.

    Names and globs may end in ``:part`` to say which part of a tuple, dict or dataclass output is meant:
    ``"lstm:0"``, ``"encoder:last_hidden_state"``, ``"rnn:1.0"``.

    Args:
        model: The network.
        patterns: One pattern or several.

    Returns:
        The selected layers in the order of ``named_modules``.

    Raises:
        ValueError: A pattern selects nothing; the message lists the nearest names.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> [layer.name for layer in select_layers(net, "conv")]
        ['0', '2']
        >>> [layer.name for layer in select_layers(net, ["Linear", "0"])]
        ['0', '4']
    """
    modules = named_layers(model)
    selected: dict[tuple[str, str | None], Layer] = {}
    for pattern in [patterns] if isinstance(patterns, (str, type)) else patterns:
        found = _match(model, modules, pattern)
        if not found:
            raise ValueError(_nothing_found(pattern, modules))
        for layer in found:
            known = selected.get((layer.name, layer.part))
            if known is None or layer.named:
                selected[layer.name, layer.part] = layer
    position = {name: i for i, name in enumerate(modules)}
    return sorted(selected.values(), key=lambda layer: (position[layer.name], layer.part or ""))


def _match(model: nn.Module, modules: dict[str, nn.Module], pattern: LayerPattern) -> list[Layer]:
    if isinstance(pattern, type):
        return [Layer(name) for name, module in modules.items() if isinstance(module, pattern)]
    if pattern in get_args(Preset):
        return [Layer(name) for name in _PRESETS[pattern](model)]
    path, _, part = pattern.partition(":")
    path = _clean(path)
    if path in modules:
        return [Layer(path, part or None, named=True)]
    if any(c in path for c in "*?"):
        regex = re.compile(_glob_to_regex(path))
        return [Layer(name, part or None) for name in modules if regex.fullmatch(name)]
    return [Layer(n, part or None) for n, m in modules.items() if path in (c.__name__ for c in type(m).__mro__)]


def _clean(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _glob_to_regex(glob: str) -> str:
    return re.escape(glob).replace(r"\*\*", ".*").replace(r"\*", "[^.]*").replace(r"\?", "[^.]")


def _nothing_found(pattern: LayerPattern, modules: dict[str, nn.Module]) -> str:
    text = pattern if isinstance(pattern, str) else pattern.__name__
    kinds = sorted({type(m).__name__ for m in modules.values()})
    if text in get_args(Preset):
        return (
            f"The preset layers={text!r} finds nothing to watch in this network, which is made of "
            f"{', '.join(kinds) or 'no submodules'}. Name its layers instead, e.g. layers={list(modules)[:3]}."
        )
    near = difflib.get_close_matches(text.partition(":")[0], [*modules, *kinds], n=5, cutoff=0.3)
    return (
        f"No layer matches {text!r}. Nearest names: {', '.join(near or list(modules)[:5])}. A pattern is a name as in "
        f"model.named_modules(), a glob such as 'layer*.0', a module type, or a preset {get_args(Preset)}."
    )


def _owns_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _parts(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Children that own parameters, with their names, seen through compile wrappers."""
    named = [(f"{prefix}{name}", child) for name, child in module.named_children() if _owns_parameters(child)]
    if len(named) == 1 and named[0][0].endswith("_orig_mod"):
        return _parts(named[0][1], f"{named[0][0]}.")
    return named


def _is_norm(module: nn.Module) -> bool:
    """A leaf whose parameters are all vectors: normalisation, scale or bias, which has no representation of its own."""
    return next(module.children(), None) is None and all(p.dim() < 2 for p in module.parameters())


def _top_parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    parts = _parts(model)
    while len(parts) == 1 and _parts(parts[0][1]):
        name, module = parts[0]
        parts = _parts(module, f"{name}.")
    return [(name, part) for name, part in parts if not _is_norm(part)]


def _conv(model: nn.Module) -> Iterator[str]:
    return (name for name, module in named_layers(model).items() if isinstance(module, _ConvNd))


def _stages(model: nn.Module) -> Iterator[str]:
    return (_clean(name) for name, _ in _top_parts(model))


def _blocks(model: nn.Module) -> Iterator[str]:
    instances: dict[type[nn.Module], list[nn.Module]] = {}
    for module in model.modules():
        if _parts(module) and type(module) not in _CONTAINERS:
            instances.setdefault(type(module), []).append(module)
    repeated = {kind for kind, modules in instances.items() if len(modules) > 1}

    def is_row(module: nn.Module) -> bool:
        kinds = {type(m) for _, m in _inside_containers(module)}
        return len(kinds) == 1 and kinds <= repeated

    # A type that is always a row of equal blocks (a dense block, a wide ResNet's group) is a stage, not a block.
    blocks = {kind for kind in repeated if not all(is_row(m) for m in instances[kind])}

    def walk(name: str, module: nn.Module) -> Iterator[str]:
        inner = _inside_containers(module, f"{name}.")
        if type(module) in blocks or (not inner and not _is_norm(module)):
            yield _clean(name)
        else:
            for child_name, child in inner:
                yield from walk(child_name, child)

    for name, part in _top_parts(model):
        yield from walk(name, part)


def _inside_containers(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The parts of a module, with plain containers replaced by what they hold."""
    parts = []
    for name, child in _parts(module, prefix):
        parts += _inside_containers(child, f"{name}.") if type(child) in _CONTAINERS else [(name, child)]
    return parts


_PRESETS = {"conv": _conv, "stages": _stages, "blocks": _blocks}
