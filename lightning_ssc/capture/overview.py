"""A network's layers at a glance: what each preset would watch, and why some layers cannot be watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from lightning_ssc.capture.calls import observe
from lightning_ssc.capture.layers import no_layers
from lightning_ssc.capture.names import Layer, named_layers
from lightning_ssc.capture.presets import Preset, chosen
from lightning_ssc.capture.runner import Forward, Runner, unwrapped
from lightning_ssc.capture.trace import LeftOut, try_layers
from lightning_ssc.settings import FLAT, Pooling, Rows, Settings


@dataclass(frozen=True)
class LayerRow:
    """One module in an overview.

    Attributes:
        name: Its name.
        kind: Its type.
        features: Features a sample; ``None`` where it cannot be watched.
        calls: How often it runs in one forward pass.
        presets: The presets that watch it.
        why_not: Why it cannot be watched; empty where it can.
    """

    name: str
    kind: str
    features: int | None
    calls: int
    presets: tuple[Preset, ...]
    why_not: str


def overview(runner: Runner, inputs: Any, how: Rows = FLAT) -> list[LayerRow]:
    """Every module of a network in the order of ``named_modules``, from a forward pass over a few samples.

    Raises:
        ValueError: The network is a single layer.

    Example:
        >>> import torch
        >>> for row in overview(Runner(nn.Sequential(nn.Linear(2, 3), nn.ReLU())), torch.rand(7, 2)):
        ...     print(row.name, row.kind, row.features, row.presets)
        0 Linear 3 ('stages', 'blocks')
        1 ReLU 3 ()
    """
    modules = named_layers(runner.model)
    if not modules:
        raise ValueError(no_layers(runner.model))
    root = observe(runner, inputs)
    meant = {preset: set(chosen(preset, root)) for preset in get_args(Preset)}
    tried = try_layers(runner, [Layer(name) for name in modules], inputs, how)
    rows = []
    for name, module in modules.items():
        calls = [call for call in tried if call.layer.name == name]
        watched = [call for call in calls if not isinstance(call, LeftOut)]
        refused = [str(call.error) for call in calls if isinstance(call, LeftOut)]
        rows.append(
            LayerRow(
                name=name,
                kind=type(module).__name__,
                features=watched[0].features if watched else None,
                calls=len(calls),
                presets=tuple(preset for preset, names in meant.items() if name in names and watched),
                why_not="" if watched else (refused or ["never runs"])[0],
            )
        )
    return rows


def as_text(rows: Sequence[LayerRow]) -> str:
    """An overview as a table, indented as modules lie in one another."""
    names = [f"{'  ' * row.name.count('.')}{row.name.rpartition('.')[2]}  {row.kind}" for row in rows]
    width = max(map(len, names), default=0)
    lines = [f"{'layer':{width}}  {'features':>10}  {'  '.join(get_args(Preset))}"]
    for row, name in zip(rows, names, strict=True):
        features = "" if row.features is None else f"{row.features:,}"
        marks = "  ".join(f"{preset if preset in row.presets else '':{len(preset)}}" for preset in get_args(Preset))
        note = f"runs {row.calls} times" if row.calls > 1 and not row.why_not else row.why_not
        lines.append(f"{name:{width}}  {features:>10}  {marks}  {note}".rstrip())
    return "\n".join(lines)


def show_layers(
    model: nn.Module,
    inputs: Any,
    *,
    pooling: Pooling = "flatten",
    forward: Forward | None = None,
    batch_dim: int | None = None,
) -> None:
    """Print a network's modules with what each preset would watch, their features a sample, and why some are left out.

    Args:
        model: The network, left as it was.
        inputs: At least two samples as its forward takes them: a tensor, a tuple of tensors, or a dict of tensors.
        pooling: How activations become features, see :class:`~lightning_ssc.Settings`.
        forward: ``forward(model, inputs)`` runs the network, where ``model(inputs)`` would not do.
        batch_dim: Which dimension of what layers put out is the sample, where it is not found, see the same.

    Raises:
        ValueError: The network is a single layer.

    Example:
        >>> import torch
        >>> show_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), torch.rand(7, 3, 8, 8))
        layer         features  conv  stages  blocks
        0  Conv2d          144  conv  stages  blocks
        1  ReLU            144
        2  Flatten         144
    """
    inner, context = unwrapped(model)
    how = Settings(pooling=pooling, batch_dim=batch_dim).rows
    print(as_text(overview(Runner(inner, forward, context), inputs, how)))
