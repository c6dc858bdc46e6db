"""FreezeSettled, a callback that goes by what SSCMonitor says has settled."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from lightning_ssc.callback.agenda import LearningRate
from lightning_ssc.callback.lightning import BaseFinetuning, LightningModule, MisconfigurationError, Trainer, Training
from lightning_ssc.callback.monitor import SSCMonitor
from lightning_ssc.callback.triggers import has_dropped
from lightning_ssc.recorder import Recorder

_SNAPSHOTS = 3  # at which a layer must have been what it is: two in a row are alike by chance of when they were taken


class FreezeSettled(BaseFinetuning):
    """Freeze layers from the bottom up once they have settled, or say that they could be frozen.

    A layer has settled when its affinity graph has been what it is now (``ssc/settled/<layer>`` of an
    :class:`~lightning_ssc.SSCMonitor` in the same Trainer) for a share of the run. When all layers up to one have,
    every parameter that acts on the network's output through them alone needs no gradient any more: the backward pass
    ends there, batch norm among them is in evaluation mode, and the optimizer passes them over, weight decay and
    momentum included. The last watched layer and what puts out the network's output are never frozen.

    By default it changes nothing and says what could be frozen.

    A run that is resumed goes on with what was frozen. Under DDP all processes freeze the same, and the module is
    wrapped anew, so that ``find_unused_parameters`` is not needed and ``static_graph=True`` works. After training,
    parameters and batch norm are as they were before it.

    Args:
        action: ``"advise"`` prints a line whenever more layers have settled; ``"freeze"`` freezes them.
        patience: For what share of the run's steps a layer must have been what it is; of those so far where the run's
            length is not known. At least at three snapshots.
        unfreeze_on_lr_drop: Train everything again when the learning rate drops to half or less from one step to the
            next, when settled layers tend to move again. Those that do not move are frozen again.
        name: The series of the monitor to go by: its ``name``, with the name of the probe where it has several.

    Raises:
        ValueError: An argument is out of range.
        MisconfigurationException: There is no such monitor in the Trainer, or it solves in the background, so that what
            is frozen would depend on the clock; or a strategy that does not let parameters be frozen while it trains.

    Example:
        >>> freezing = FreezeSettled("freeze", patience=0.2)
        >>> freezing.frozen
        ()
    """

    def __init__(
        self,
        action: Literal["advise", "freeze"] = "advise",
        patience: float = 0.1,
        unfreeze_on_lr_drop: bool = True,
        name: str = "ssc",
    ) -> None:
        super().__init__()
        if action not in ("advise", "freeze"):
            raise ValueError(f"action must be 'advise' or 'freeze', got {action!r}.")
        if not 0 <= patience < 1:
            raise ValueError(f"patience is a share of the run, at least 0 and below 1; got {patience}.")
        self.action, self.patience, self.unfreeze_on_lr_drop, self.name = action, patience, unfreeze_on_lr_drop, name
        self._forget()

    def _forget(self) -> None:
        self._settled: tuple[str, ...] = ()
        self._since = 0  # the step from which on layers can have settled: that of the last drop
        self._rate: float | None = None
        self._seen: int | None = None  # step of the last snapshot that was heard of
        self._monitor: SSCMonitor | None = None
        self._recorder: Recorder | None = None
        self._through: dict[str, list[str]] = {}
        self._learning_rate = LearningRate()
        self._held: list[nn.Parameter] = []
        self._still: list[nn.Module] = []

    @property
    def frozen(self) -> tuple[str, ...]:
        """The watched layers that are frozen, from the bottom up."""
        return self._settled if self.action == "freeze" else ()

    @property
    def settled(self) -> tuple[str, ...]:
        """The watched layers that have settled with all below them, whether or not they are frozen."""
        return self._settled

    @property
    def monitor(self) -> str | None:
        """What training is steered by, as that of an early stopping is called."""
        return f"{self.name}/settled" if self.action == "freeze" else None

    # -- Lightning's hooks

    @property
    def state_key(self) -> str:
        """Key of the callback's state in a checkpoint, by the monitor's name."""
        return f"{type(self).__qualname__}{ {'name': self.name} }"

    def state_dict(self) -> dict[str, Any]:
        """What has settled, since when layers can have, and the learning rate of the last step."""
        return {"settled": list(self._settled), "since": self._since, "rate": self._rate, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was frozen, from the first batch on."""
        self._settled = tuple(state_dict["settled"])
        self._since, self._rate, self._seen = state_dict["since"], state_dict["rate"], state_dict["seen"]

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Nothing: what has settled is known from the training alone."""

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        """Nothing at the start of an epoch: snapshots may lie inside it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be frozen while it is trained."""
        training = Training(trainer, pl_module)
        if self.action == "freeze" and training.fixes_gradients is not None:
            raise MisconfigurationError(
                f"FreezeSettled(action='freeze') does not support {training.fixes_gradients}, which lays out gradients "
                f"before training. Use one device or strategy='ddp', or action='advise'."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: groups of the optimizers stay what they are."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Freeze what the last snapshot says, or train everything again after a drop of the learning rate."""
        training = Training(trainer, pl_module)
        if self._monitor is None or self._recorder is None:
            self._monitor, self._recorder = self._found(training)
            self._begin(training, self._recorder)
        steps = self._recorder.steps
        rate = self._learning_rate.now(training)
        if self.unfreeze_on_lr_drop and self._settled and self._drops(training, rate):
            self._thaw(training, self._monitor.step)
        self._rate = rate
        if steps and steps[-1] != self._seen:
            self._seen = steps[-1]
            self._consider(training, self._recorder)
        for module in self._still:
            module.eval()  # whatever has called train() since

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the network trainable."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the network trainable."""
        self._release()

    # -- When

    def is_due(self, recorder: Recorder, layer: str, done: float) -> bool:
        """Whether a layer may be frozen now, once all below it are; to be overridden by other rules.

        Args:
            recorder: What takes the snapshots, of which the last has just been taken.
            layer: Label of a watched layer.
            done: Share of the run that is done; 1 where its length is not known.
        """
        steps, now = recorder.steps, recorder.steps[-1]
        since = max(self._since, recorder.scalars.get(f"{self.name}/settled/{layer}", now))
        lasts = (now - since) * done >= self.patience * now
        return lasts and sum(step >= since for step in steps) >= _SNAPSHOTS

    # -- Parts of them

    def _found(self, training: Training) -> tuple[SSCMonitor, Recorder]:
        series = {r.name: (m, r) for m in training.callbacks(SSCMonitor) for r in m.recorders}
        if self.name not in series:
            raise MisconfigurationError(
                f"FreezeSettled(name={self.name!r}) needs an SSCMonitor of that name in the Trainer; "
                f"there is {', '.join(map(repr, series)) or 'none'}."
            )
        return series[self.name]

    def _begin(self, training: Training, recorder: Recorder) -> None:
        """Learn what is trained through which layer, while everything is, and go on with what was frozen."""
        self._through = recorder.parameters_through()
        self._learning_rate = LearningRate(training.parameters_of(w.layer.name for w in recorder.watched))
        self._settled = tuple(label for label in self._through if label in self._settled)
        if self.frozen:
            self._freeze(training)

    def _drops(self, training: Training, rate: float | None) -> bool:
        return bool(training.ranks.broadcast(has_dropped(self._rate, rate)))  # plateaus of metrics differ between ranks

    def _consider(self, training: Training, recorder: Recorder) -> None:
        """Take in what has settled, on all ranks alike: all are told what a snapshot says."""
        now = recorder.steps[-1]
        done = now / training.run.total if training.run.total < math.inf else 1.0
        settled = []
        for watched in recorder.watched[:-1]:
            if watched.is_output or not (watched.label in self._settled or self.is_due(recorder, watched.label, done)):
                break
            settled.append(watched.label)
        if len(settled) > len(self._settled):
            self._settled = tuple(settled)
            if self.action == "freeze":
                self._freeze(training)
            self._tell(training, now)

    def _freeze(self, training: Training) -> None:
        names = {name for label in self._settled for name in self._through[label]}
        held = [parameter for name, parameter in training.module.named_parameters() if name in names]
        chosen = set(map(id, held))
        self._held = held
        for parameter in held:
            parameter.requires_grad_(False)
            parameter.grad = None  # or the optimizer would go on with the last one
        self._still = [
            module
            for whole in training.module.modules()
            if (own := [id(p) for p in whole.parameters()]) and chosen.issuperset(own)
            for module in whole.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        ]
        training.regroup_gradients()

    def _thaw(self, training: Training, step: int) -> None:
        were, self._settled, self._since = self._settled, (), step
        if self.action == "freeze":
            self._release()
            training.regroup_gradients()
        training.print(
            f"FreezeSettled: the learning rate has dropped at step {step}; "
            f"{'all layers are trained again' if self.action == 'freeze' else 'layers may move again'} "
            f"({were[-1]} and below had settled)."
        )

    def _release(self) -> None:
        for parameter in self._held:
            parameter.requires_grad_(True)
        for module in self._still:
            module.train()
        self._held, self._still = [], []

    def _tell(self, training: Training, step: int) -> None:
        of_all = dict(training.module.named_parameters())
        names = [name for label in self._settled for name in self._through[label]]
        share = _size([of_all[name] for name in names]) / _size(of_all.values())
        print_as = "no longer trained" if self.action == "freeze" else "could be frozen: FreezeSettled('freeze') does"
        training.print(
            f"FreezeSettled: {self._settled[-1]} and below have settled by step {step} "
            f"({len(self._settled)} layers, {100 * share:.0f} % of the parameters), {print_as}."
        )


def _size(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters if isinstance(parameter, Tensor))
