"""The one place that touches Lightning and its Trainers, under whichever of its two import names is installed.

``lightning`` and ``pytorch_lightning`` ship the same code as distinct classes. A callback works in the Trainers of
both, and from LightningCLI, when it derives from every ``Callback`` there is.

Beside Trainers, three things that Lightning keeps to itself are read where they are met: a logger's prefix and the
logger of ``fast_dev_run`` in ``writers.py``, what Fabric wraps around a module in ``capture/runner.py``, and the count
of steps in checkpoint files in ``replay.py``; ``tests/test_rooms.py`` holds the list.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm.auto import tqdm

from lightning_ssc.callback.triggers import Now, Run, Steps
from lightning_ssc.capture import Forward, Runner, first_loader, isolated_random_state
from lightning_ssc.capture.names import named_layers
from lightning_ssc.ranks import Ranks

_PACKAGES = [name for name, top in (("lightning.pytorch", "lightning"), ("pytorch_lightning",) * 2) if find_spec(top)]

if TYPE_CHECKING:
    from lightning_fabric.utilities.exceptions import MisconfigurationException as MisconfigurationError
    from pytorch_lightning import Callback, LightningModule
    from pytorch_lightning.callbacks import BaseFinetuning

    SIGTERM: tuple[type[BaseException], ...]
    _SWA: tuple[type, ...]
    _AVERAGING: tuple[type, ...]
    _CHECKPOINT: tuple[type, ...]
    Trainer = Any  # Lightning gives it attributes (datamodule, fast_dev_run) that its type does not show
else:
    _ALL = [import_module(name) for name in _PACKAGES]
    Trainer = Any
    LightningModule = Any
    Callback = type("Callback", tuple(package.Callback for package in _ALL), {})
    BaseFinetuning = type("BaseFinetuning", tuple(package.callbacks.BaseFinetuning for package in _ALL), {})
    _SWA = tuple(package.callbacks.StochasticWeightAveraging for package in _ALL)
    _CHECKPOINT = tuple(package.callbacks.ModelCheckpoint for package in _ALL)
    _AVERAGING = (*_SWA, *(package.callbacks.WeightAveraging for package in _ALL))
    SIGTERM = tuple(import_module(f"{name}.utilities.exceptions").SIGTERMException for name in _PACKAGES)
    MisconfigurationError = type(
        "MisconfigurationError",
        tuple(import_module(f"{name}.utilities.exceptions").MisconfigurationException for name in _PACKAGES),
        {"__doc__": "An argument and the Trainer do not go together."},
    )

__all__ = [
    "SIGTERM",
    "BaseFinetuning",
    "Callback",
    "LightningModule",
    "MisconfigurationError",
    "Trainer",
    "Training",
    "interruptible",
]


class StrategyRanks(Ranks):
    """The processes of a Trainer, which talk through its strategy where that can."""

    def __init__(self, trainer: Trainer) -> None:
        self._strategy = trainer.strategy

    def broadcast(self, value: Any) -> Any:
        """The value of rank zero, on every process."""
        return self._strategy.broadcast(value)


class Training:
    """What a monitor has to know of a Trainer: every attribute of one, private ones too, is named here and only here.

    Args:
        trainer: The Trainer.
        module: Its module.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer, self._module = trainer, module

    # -- Where

    @property
    def sharded_by(self) -> str | None:
        """Name of a strategy that shards the model so that its layers cannot be watched, ``None`` for any other."""
        strategy = self._trainer.strategy
        in_lockstep = any(kind.__name__ == "ModelParallelStrategy" for kind in type(strategy).__mro__)
        return type(strategy).__name__ if strategy.restore_checkpoint_after_setup and not in_lockstep else None

    @property
    def fixes_gradients(self) -> str | None:
        """Name of a strategy that settles before training which parameters have gradients, ``None`` for any other.

        One device settles nothing, and DDP is wrapped anew by :meth:`regroup_gradients`.
        """
        strategy = self._trainer.strategy
        kinds = {kind.__name__ for kind in type(strategy).__mro__}
        free = not strategy.restore_checkpoint_after_setup and kinds & {"SingleDeviceStrategy", "DDPStrategy"}
        return None if free else type(strategy).__name__

    def regroup_gradients(self) -> None:
        """Have DDP wait for the gradients that there are from now on; all processes have to ask for it."""
        strategy = self._trainer.strategy
        if isinstance(strategy.model, nn.parallel.DistributedDataParallel):
            strategy.model.reducer._remove_autograd_hooks()  # its own wait for gradients that will not come
            strategy.model = self._module
            strategy.configure_ddp()
            strategy._pl_static_graph_delay_done = False

    @property
    def module(self) -> LightningModule:
        """What is trained."""
        return self._module

    @property
    def ranks(self) -> Ranks:
        """How the processes talk."""
        return StrategyRanks(self._trainer)

    @property
    def is_alone(self) -> bool:
        """Whether there is one process."""
        return int(self._trainer.world_size) == 1

    @property
    def is_zero(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self._trainer.is_global_zero)

    @property
    def folder(self) -> Path | None:
        """Where the run's files go, or ``None`` where it is to write none; all ranks have to ask together."""
        folder = self._trainer.log_dir or self._trainer.default_root_dir
        return None if self._trainer.fast_dev_run else Path(folder)

    def found_again(self, state: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint says of a run, with where the checkpoint lies: its folder may have been moved with it."""
        return {**state, "checkpoint": self._trainer.ckpt_path} if state and self._trainer.ckpt_path else state

    @property
    def loggers(self) -> list[Any]:
        """The run's loggers."""
        return list(self._trainer.loggers)

    def callbacks(self, kind: type[Any] | tuple[type[Any], ...]) -> list[Any]:
        """The Trainer's callbacks of a kind."""
        return [callback for callback in self._trainer.callbacks if isinstance(callback, kind)]

    @property
    def steered_by(self) -> list[str]:
        """Metrics that callbacks (early stopping, checkpoints) and learning-rate schedulers go by."""
        callbacks = [getattr(callback, "monitor", None) for callback in self._trainer.callbacks]
        schedulers = [config.monitor for config in self._trainer.lr_scheduler_configs]
        return [key for key in (*callbacks, *schedulers) if isinstance(key, str)]

    def publish(self, scalars: dict[str, float]) -> None:
        """Let checkpoints and early stopping go by these."""
        self._trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in scalars.items()})

    def print(self, text: str) -> None:
        """Print a line without breaking a progress bar."""
        self._module.print(text)

    # -- How the network runs

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        device: torch.device = self._trainer.strategy.root_device
        return device

    def runner(self, forward: Forward | None, chunk: int, memory: int | None) -> Runner:
        """The module as validation runs it: in the Trainer's precision, on its device.

        Args:
            forward: What the user gave to run it.
            chunk: Samples a forward pass.
            memory: Bytes for activations and Grams; by default half of what this process may count as its own.
        """
        plugin, device = self._trainer.precision_plugin, self.device
        return Runner(
            self._module,
            forward,
            self._validating,
            device,
            chunk,
            memory,
            processes=int(self._trainer.num_devices),
            transfer=self._transferred,
            precision=plugin.forward_context,
        )

    @contextmanager
    def _validating(self) -> Iterator[None]:
        """The Trainer says that it validates, which hooks and networks may ask for."""
        state = self._trainer.state
        stage = state.stage
        self._trainer.validating = True
        try:
            yield
        finally:
            state.stage = stage

    def _transferred(self, batch: Any) -> Any:
        """A batch as ``validation_step`` would get it: through the hooks of the module and of the data module."""
        batch = self._trainer.precision_plugin.convert_input(batch)
        batch = self._module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self._trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    # -- Data

    def probe_source(self) -> Any:
        """What ``probe_dataloader()`` of the data module or the module gives, else the validation data, or ``None``.

        Validation data are those that the Trainer has asked for. Where it has not, or not yet (``limit_val_batches=0``,
        ``check_val_every_n_epoch``), the module or the data module is asked, and what that changes in it, its
        generators included, is undone.
        """
        owners = self._trainer.datamodule, self._module
        source = self._trainer.fit_loop.epoch_loop.val_loop._data_source
        with isolated_random_state(*owners):
            for owner in owners:
                if callable(hook := getattr(owner, "probe_dataloader", None)):
                    return first_loader(hook())
            if (loaders := self._trainer.val_dataloaders) is not None:
                return first_loader(loaders)
            return first_loader(source.dataloader()) if source.is_defined() else None

    @property
    def datamodule(self) -> Any:
        """The data module, or ``None``."""
        return self._trainer.datamodule

    # -- When

    @property
    def run(self) -> Run:
        """What is known of the run's length."""
        trainer = self._trainer

        def limit(value: int | None) -> float:
            return math.inf if value is None or value == -1 else value

        batches = trainer.num_training_batches
        return Run(
            epochs=limit(trainer.max_epochs),
            steps=limit(trainer.max_steps) / self._optimizers,
            steps_an_epoch=math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else math.inf,
        )

    @property
    def _optimizers(self) -> int:
        """How many optimizers may step in a batch, each of which Lightning counts."""
        return 1 if self._module.automatic_optimization else max(1, len(self._trainer.optimizers))

    @property
    def of_optimizers(self) -> int:
        """Steps that were taken, of all optimizers."""
        return int(self._trainer.global_step)

    @property
    def steps(self) -> Steps:
        """Steps that were taken by a run that nobody has counted them for: with one optimizer one a batch."""
        logged = int(self._trainer.fit_loop.epoch_loop._batches_that_stepped)
        return Steps(self.of_optimizers if self._module.automatic_optimization else logged, self.of_optimizers)

    @property
    def is_fitting(self) -> bool:
        """Whether this is fit and not the check before it, also in its validation."""
        return self._trainer.state.fn == "fit" and not self._trainer.sanity_checking

    def logged(self, in_batch: bool) -> int:
        """The step under which Lightning logs now, so that all curves line up.

        Args:
            in_batch: Whether this is a batch's end or the validation after it, by when Lightning has not yet counted
                the batch.
        """
        stepped = int(self._trainer.fit_loop.epoch_loop._batches_that_stepped)
        return stepped if in_batch else max(0, stepped - 1)

    @property
    def epochs_begun(self) -> int:
        """Epochs that are done, with the one that is running or just ends."""
        return self.epochs_done + 1

    @property
    def epochs_done(self) -> int:
        """Epochs that are done; while one runs or just ends, without that one."""
        return int(self._trainer.current_epoch)

    def epoch(self, running: bool) -> float:
        """Epochs that are done, a fraction inside one; NaN there if its length is unknown.

        Args:
            running: Whether an epoch is running or just ends. Else training is over, and Lightning has counted an epoch
                that was left early as done, or it has not begun.
        """
        epochs = self.epochs_begun if running else self.epochs_done
        return epochs - self._left_of_epoch if epochs else 0

    @property
    def _left_of_epoch(self) -> float:
        """Share of the last epoch that was not run; 0 at its end, NaN where its length is unknown."""
        progress, batches = self._trainer.fit_loop.epoch_loop.batch_progress, self._trainer.num_training_batches
        done = progress.current.processed
        if done == 0 or (progress.is_last_batch and done == progress.current.ready):
            return int(done == 0)
        return 1 - done / batches if math.isfinite(batches) else math.nan

    @property
    def is_new(self) -> bool:
        """Whether no step has been taken, in this fit or one that it resumes."""
        return int(self._trainer.global_step) == 0

    @property
    def is_behind_epoch(self) -> bool:
        """Whether a checkpoint was resumed that was saved with an epoch's last batch, before the epoch's end."""
        return not self.is_new and bool(self._trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)

    def stops_after(self, epoch: int) -> bool:
        """Whether training stops when ``epoch`` epochs are done; ``fit_loop.done`` would say so to the user, too."""
        trainer = self._trainer
        limits = (epoch, trainer.max_epochs), (trainer.global_step, trainer.max_steps)
        stopped = trainer.should_stop and trainer.fit_loop._can_stop_early  # not before min_epochs
        return stopped or any(limit not in (None, -1) and reached >= limit for reached, limit in limits)

    def parameters_of(self, layers: Iterable[str]) -> frozenset[int]:
        """Identities of the parameters of some layers, by the layers' names."""
        modules = named_layers(self._module)
        return frozenset(id(parameter) for name in layers for parameter in modules[name].parameters())

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizers' groups of parameters."""
        return [group for optimizer in self._trainer.optimizers for group in optimizer.param_groups]

    @property
    def has_one_optimizer(self) -> bool:
        """Whether one optimizer trains everything."""
        return len(self._trainer.optimizers) == 1

    def checkpoints(self, metrics: Iterable[str]) -> Iterator[tuple[str, str, Iterator[tuple[Now, ...]]]]:
        """Checkpoints that go by some metrics.

        Yields:
            The metric, the trigger that takes every state that the checkpoint saves (empty where none can), and those
            states: of each, the moments at which a snapshot would be of it.
        """
        trainer, run = self._trainer, self.run
        for checkpoint in self.callbacks(_CHECKPOINT):
            if checkpoint.monitor not in metrics:
                continue
            every_steps, every_epochs = checkpoint._every_n_train_steps, checkpoint._every_n_epochs
            if checkpoint._train_time_interval is not None:
                yield checkpoint.monitor, "", iter([()])
            elif every_steps:
                each = every_steps // math.gcd(every_steps, self._optimizers)
                states = ((Now("step", step, run.epochs_at(step), run),) for step in count(each, each))
                yield checkpoint.monitor, f"every(steps={each})", states
            elif every_epochs and checkpoint._should_save_on_train_epoch_end(trainer):
                yield checkpoint.monitor, f"every(epochs={every_epochs})", self._ends_of_epochs(run, every_epochs)
            elif every_epochs:
                yield checkpoint.monitor, "on_validation()", self._validations(run, every_epochs)

    @staticmethod
    def _ends_of_epochs(run: Run, each: int) -> Iterator[tuple[Now, ...]]:
        for epoch in count(each, each):
            step = int(epoch * run.steps_an_epoch) if math.isfinite(run.steps_an_epoch) else 1
            yield Now("step", step, epoch - 1, run), Now("epoch", step, epoch, run)

    def _validations(self, run: Run, each: int) -> Iterator[tuple[Now, ...]]:
        """Validations that a checkpoint follows, where they can be foretold; the first one else."""
        trainer, batches = self._trainer, self._trainer.num_training_batches
        between, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
        if between is None or not math.isfinite(between):
            yield (Now("validation", 1, 0, run),)
            return
        between, length = int(between), int(run.steps_an_epoch) if math.isfinite(batches) else 0
        for number in range(1, 1000):
            if not math.isfinite(batches):
                epoch, batch = 0, number * between
            elif epochs is None:  # every so many batches, across epochs
                epoch, batch = divmod(number * between - 1, int(batches))
                batch += 1
            else:  # every so many batches of every so many epochs
                epoch, batch = divmod(number - 1, int(batches // between))
                epoch, batch = epochs * (epoch + 1) - 1, (batch + 1) * between
            in_epoch = length if batch == batches else batch // trainer.accumulate_grad_batches
            step = epoch * length + in_epoch
            if (epoch + 1) % each == 0:
                yield Now("step", step, epoch, run), Now("validation", step, epoch, run)

    # -- Whose weights

    @property
    def _averaging(self) -> Any:
        """Lightning's callback that averages weights, or ``None``."""
        return next((callback for callback in self._trainer.callbacks if isinstance(callback, _AVERAGING)), None)

    @property
    def averages_before(self) -> list[Any]:
        """Callbacks up to the one of Lightning's that averages weights; none where there is no such one."""
        averaging, callbacks = self._averaging, self._trainer.callbacks
        return [] if averaging is None else callbacks[: callbacks.index(averaging) + 1]

    @property
    def is_average(self) -> bool:
        """Whether the module holds the averaged weights right now."""
        average = self._average()
        if average is None:
            return False
        pairs = zip(average.parameters(), self._module.parameters(), strict=True)
        return all(torch.equal(averaged.to(own.device), own) for averaged, own in pairs)

    def _average(self) -> nn.Module | None:
        """The averaged weights, once there are any."""
        averaging = self._averaging
        model = getattr(averaging, "_average_model", None)
        if model is None or isinstance(averaging, _SWA):
            return model if model is not None and averaging._initialized else None
        return model.module if int(model.n_averaged) > 0 else None

    @contextmanager
    def averaged(self) -> Iterator[bool]:
        """The module with its averaged weights, and then with its own again; ``False`` where there are none yet."""
        average = self._average()
        if average is None or self.is_average:
            yield average is not None
            return
        # As the callbacks themselves do it: EMA averages buffers, too, SWA leaves the module's.
        pairs: list[tuple[torch.Tensor, torch.Tensor]]
        pairs = list(zip(self._module.parameters(), average.parameters(), strict=True))
        if not isinstance(self._averaging, _SWA):
            pairs += zip(self._module.buffers(), average.buffers(), strict=True)
        before = [own.detach().clone() for own, _ in pairs]
        try:
            for own, averaged in pairs:
                own.data.copy_(averaged.data)
            yield True
        finally:
            for (own, _), value in zip(pairs, before, strict=True):
                own.data.copy_(value)

    @property
    def is_validating(self) -> bool:
        """Whether a validation runs, in which averaging callbacks have put their weights into the module."""
        return bool(self._trainer.validating)

    def afterwards(self, action: Callable[[], object]) -> Callable[[], None]:
        """Do something once training is over for all callbacks and the module, from a callback's ``on_train_end``.

        Callbacks average weights, and modules load the best ones, in hooks of that name, and the strategy is taken down
        right after those.

        Returns:
            What takes it back.
        """
        module, own = self._module, self._module.on_train_end
        before = vars(module).get("on_train_end")

        def take_back() -> None:
            if before is None:
                vars(module).pop("on_train_end", None)
            else:
                vars(module)["on_train_end"] = before

        def both() -> None:
            take_back()
            own()
            action()

        vars(module)["on_train_end"] = both
        return take_back

    def bar(self, total: int, description: str) -> AbstractContextManager[Callable[[int], None]]:
        """A bar beneath the Trainer's own, see :func:`_progress_bar`."""
        return _progress_bar(self._trainer.progress_bar_callback, total, description)


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


@contextmanager
def _progress_bar(owner: Any, total: int, description: str, patience: float = 2.0) -> Iterator[Callable[[int], None]]:
    """A bar beneath a Trainer's own, of the same kind, for work that turns out to take long.

    Yields a function to call with 1 after each of ``total`` parts, and with 0 to show that one takes long. Nothing is
    shown in the first ``patience`` seconds, or where the Trainer has no progress bar.
    """
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
            and getattr(owner, "is_enabled", False)  # which Lightning's base class of bars does not have
        ):
            rich = getattr(owner, "progress", None)
            if rich is not None:
                task = rich.add_task(description, total=total, completed=0)
                # Hidden, not removed: Lightning finds its own bars by their places.
                shown.callback(rich.update, task, visible=False)
                bar = lambda count: rich.update(task, completed=count, refresh=True)  # noqa: E731
            else:
                line = tqdm(total=total, desc=description, leave=False, position=1, file=sys.stdout)
                shown.callback(line.close)
                bar = lambda count: line.update(count - line.n)  # noqa: E731
        if bar is not None:
            bar(done)

    with shown:
        yield advance
