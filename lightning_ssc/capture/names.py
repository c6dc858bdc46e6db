"""The names of a network's modules, as users write them, and the layers that are meant by them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


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
    under the name that the user gave it. What ``torch.nn.utils.parametrize`` puts below a layer is part of that layer.

    Example:
        >>> list(named_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
        ['0', '1']
    """
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        clean = clean_name(name)
        if clean and "parametrizations" not in clean.split("."):
            modules[clean] = module  # _orig_mod comes after its wrapper and replaces it
    return modules


def clean_name(name: str) -> str:
    """A module's name without the prefixes that ``torch.compile`` adds.

    Example:
        >>> clean_name("_orig_mod.encoder._orig_mod.0")
        'encoder.0'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
