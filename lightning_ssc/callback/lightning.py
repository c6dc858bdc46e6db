"""The one place that touches Lightning, under whichever of its two import names is installed.

``lightning`` and ``pytorch_lightning`` ship the same code as distinct classes. A callback works in the Trainers of
both, and from LightningCLI, when it derives from every ``Callback`` there is.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

_PACKAGES = [name for name, top in (("lightning.pytorch", "lightning"), ("pytorch_lightning",) * 2) if find_spec(top)]

if TYPE_CHECKING:
    from lightning_fabric.utilities.exceptions import MisconfigurationException as MisconfigurationError
    from pytorch_lightning import Callback, LightningModule

    SIGTERM: tuple[type[BaseException], ...]
    Trainer = Any  # Lightning gives it attributes (datamodule, fast_dev_run) that its type does not show
else:
    _ALL = [import_module(name) for name in _PACKAGES]
    Trainer = Any
    LightningModule = Any
    Callback = type("Callback", tuple(package.Callback for package in _ALL), {})
    SIGTERM = tuple(import_module(f"{name}.utilities.exceptions").SIGTERMException for name in _PACKAGES)
    MisconfigurationError = type(
        "MisconfigurationError",
        tuple(import_module(f"{name}.utilities.exceptions").MisconfigurationException for name in _PACKAGES),
        {"__doc__": "An argument and the Trainer do not go together."},
    )

__all__ = [
    "SIGTERM",
    "Callback",
    "LightningModule",
    "MisconfigurationError",
    "Trainer",
    "agree",
    "epoch_step",
    "first_loader",
    "interruptible",
    "is_last_epoch",
    "learning_rate",
    "metrics_steering",
    "progress",
    "validation_loader",
]


def epoch_step(trainer: Trainer) -> int:
    """The step under which Lightning logs an epoch's metrics, so that all curves of an epoch line up."""
    return max(0, int(trainer.fit_loop.epoch_loop._batches_that_stepped) - 1)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts what runs inside; Lightning ignores it while callbacks hear of the first one."""
    if threading.current_thread() is not threading.main_thread():  # only the main one may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def is_last_epoch(trainer: Trainer, epoch: int) -> bool:
    """Whether training stops when ``epoch`` epochs are finished; ``fit_loop.done`` would say so to the user, too."""
    limits = (epoch, trainer.max_epochs), (trainer.global_step, trainer.max_steps)
    stopped = trainer.should_stop and trainer.fit_loop._can_stop_early  # not before min_epochs
    return stopped or any(limit not in (None, -1) and reached >= limit for reached, limit in limits)


def learning_rate(trainer: Trainer) -> float | None:
    """The learning rate that the first optimizer's first group has now, or ``None`` where there is no optimizer."""
    return float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else None


def metrics_steering(trainer: Trainer) -> list[str]:
    """Metrics that callbacks (early stopping, checkpoints) and learning-rate schedulers go by."""
    callbacks = [getattr(callback, "monitor", None) for callback in trainer.callbacks]
    schedulers = [config.monitor for config in trainer.lr_scheduler_configs]
    return [key for key in (*callbacks, *schedulers) if isinstance(key, str)]


def validation_loader(trainer: Trainer) -> Any:
    """The first validation loader as the user made it, or ``None``.

    The Trainer's own ``val_dataloaders`` come later than the start of fit, with a distributed sampler, and not at all
    with ``limit_val_batches=0``.
    """
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    if not source.is_defined():
        return None
    return first_loader(source.dataloader())


def first_loader(loaders: Any) -> Any:
    """The first loader of what ``val_dataloader()`` may return: one, a list, a dict or a ``CombinedLoader`` of them."""
    while isinstance(loaders, (list, tuple, dict)) or hasattr(loaders, "iterables"):
        loaders = getattr(loaders, "iterables", loaders)  # a CombinedLoader
        if isinstance(loaders, (list, tuple, dict)):
            loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders), None)
    return loaders


def agree(value: Any, error: Exception | None) -> list[Any]:
    """The values of all processes in the order of their ranks, on every process.

    Raises:
        RuntimeError: A process had an error; all of them raise, naming it. A lone process raises its error itself.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        if error is not None:
            raise error
        return [value]
    told: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, (value, None if error is None else f"{type(error).__name__}: {error}"))
    if failed := [f"rank {rank}: {why}" for rank, (_, why) in enumerate(told) if why is not None]:
        raise RuntimeError("SSCMonitor failed on " + "; ".join(failed)) from error
    return [value for value, _ in told]


@contextmanager
def progress(trainer: Trainer, total: int, description: str, patience: float = 2.0) -> Iterator[Callable[[int], None]]:
    """A bar beneath the Trainer's own, of the same kind, for work that turns out to take long.

    Yields a function to call with 1 after each of ``total`` parts, and with 0 to show that one takes long. Nothing is
    shown in the first ``patience`` seconds, or where the Trainer has no progress bar.
    """
    owner = trainer.progress_bar_callback
    start, done, shown = time.monotonic(), 0, ExitStack()
    bar: Callable[[int], object] | None = None

    def advance(parts: int) -> None:
        nonlocal done, bar
        done += parts
        if (
            bar is None
            and time.monotonic() - start > patience
            and done < total
            and owner is not None
            and owner.is_enabled
        ):
            rich = getattr(owner, "progress", None)
            if rich is not None:
                task = rich.add_task(description, total=total, completed=0)
                shown.callback(rich.remove_task, task)
                bar = lambda count: rich.update(task, completed=count, refresh=True)  # noqa: E731
            else:
                line = tqdm(total=total, desc=description, leave=False, position=1, file=sys.stdout)
                shown.callback(line.close)
                bar = lambda count: line.update(count - line.n)  # noqa: E731
        if bar is not None:
            bar(done)

    with shown:
        yield advance
