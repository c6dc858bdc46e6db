"""The one place that touches Lightning, under whichever of its two import names is installed.

``lightning`` and ``pytorch_lightning`` ship the same code as distinct classes. A callback works in the Trainers of
both, and from LightningCLI, when it derives from every ``Callback`` there is.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

_PACKAGES = [name for name, top in (("lightning.pytorch", "lightning"), ("pytorch_lightning",) * 2) if find_spec(top)]

if TYPE_CHECKING:
    from lightning_fabric.utilities.exceptions import MisconfigurationException as MisconfigurationError
    from pytorch_lightning import Callback, LightningModule

    Trainer = Any  # Lightning gives it attributes (datamodule, fast_dev_run) that its type does not show
else:
    _ALL = [import_module(name) for name in _PACKAGES]
    Trainer = Any
    LightningModule = Any
    Callback = type("Callback", tuple(package.Callback for package in _ALL), {})
    MisconfigurationError = type(
        "MisconfigurationError",
        tuple(import_module(f"{name}.utilities.exceptions").MisconfigurationException for name in _PACKAGES),
        {"__doc__": "An argument and the Trainer do not go together."},
    )

__all__ = [
    "Callback",
    "LightningModule",
    "MisconfigurationError",
    "Trainer",
    "epoch_step",
    "gather",
    "validation_loader",
]


def epoch_step(trainer: Trainer) -> int:
    """The step under which Lightning logs an epoch's metrics, so that all curves of an epoch line up."""
    return max(0, int(trainer.fit_loop.epoch_loop._batches_that_stepped) - 1)


def validation_loader(trainer: Trainer) -> Any:
    """The first validation loader as the user made it, or ``None``.

    The Trainer's own ``val_dataloaders`` come later than the start of fit, with a distributed sampler, and not at all
    with ``limit_val_batches=0``.
    """
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    if not source.is_defined():
        return None
    loaders = source.dataloader()
    loaders = getattr(loaders, "iterables", loaders)  # a CombinedLoader
    while isinstance(loaders, (list, tuple, dict)):
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders), None)
    return loaders


def gather(value: Any) -> list[Any]:
    """The values of all processes in the order of their ranks, on every process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
