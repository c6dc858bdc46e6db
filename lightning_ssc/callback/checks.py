"""What does not go together with a monitor in a Trainer: refused, or said, before training starts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from lightning_ssc.callback.lightning import Callback, MisconfigurationError, Training
from lightning_ssc.callback.triggers import Now, Run, Trigger, uncovered

log = logging.getLogger(__name__)


def refuse_what_does_not_go_together(
    training: Training,
    monitor: Callback,
    *,
    weights: str,
    background: bool,
    schedule: Sequence[Trigger],
    steered: Sequence[str],
) -> None:
    """Refuse what cannot be watched, or would change the training.

    Args:
        training: The fit.
        monitor: The callback, whose place among the others matters.
        weights: Which weights it watches.
        background: Whether results come late.
        schedule: When it takes snapshots.
        steered: Metrics of it that something in the training goes by.

    Raises:
        MisconfigurationException: The message says what to change.
    """
    if training.sharded_by is not None:
        raise MisconfigurationError(
            f"SSCMonitor does not support {training.sharded_by}, which shards the model: no process holds whole "
            f"layers. Use strategy='ddp', or ModelParallelStrategy with fully_shard (FSDP2), or take snapshots of "
            f"checkpoints with lightning_ssc.snapshot()."
        )
    averages = training.averages_before
    if weights != "training" and not averages:
        raise MisconfigurationError(
            f"weights={weights!r} needs one of Lightning's callbacks that average weights in the Trainer, "
            f"such as EMAWeightAveraging, and there is none. Add one, or use weights='training'."
        )
    if weights != "training" and monitor in averages:
        raise MisconfigurationError(
            f"weights={weights!r} needs SSCMonitor behind {type(averages[-1]).__name__} in the Trainer's "
            f"callbacks: before it, it would see the average that was before the step."
        )
    if background and steered:
        raise MisconfigurationError(
            f"{steered[0]!r} steers the training, and background=True would bring it late, by a time that differs "
            f"from run to run. Use background=False, or monitor another metric."
        )
    if steered and any(trigger.timed for trigger in schedule):
        raise MisconfigurationError(
            f"{steered[0]!r} steers the training, and every(minutes=...) would bring it at steps that differ from "
            f"run to run. Use every(steps=...), or monitor another metric."
        )


def say_what_is_lacking(
    schedule: Sequence[Trigger], run: Run, checkpoints: Iterable[tuple[str, str, Iterable[tuple[Now, ...]]]]
) -> None:
    """Say where a schedule takes less than it seems to.

    Args:
        schedule: The triggers.
        run: How long the fit is.
        checkpoints: Those that go by a metric of the monitor, see :meth:`Training.checkpoints`.
    """
    if run.ends == 0 and all(trigger.at_ends_only for trigger in schedule):
        log.warning(
            "No epoch is known to end in this run, and schedule= takes only ends of epochs: there will be the "
            "untrained network and the final state. schedule='auto' or every(steps=...) shows what is between."
        )
    # A checkpoint that is saved when no snapshot is taken carries a value of an earlier state.
    for metric, trigger, saved in checkpoints:
        step = uncovered(schedule, saved, run)
        if step is not None and trigger:
            log.warning(
                "ModelCheckpoint(monitor=%r) saves at moments, first at step %d, at which no snapshot is taken: its "
                "value is then that of an earlier state. Add %s to schedule=.",
                metric,
                step,
                trigger,
            )
        elif step is not None:
            log.warning(
                "ModelCheckpoint(monitor=%r, train_time_interval=...) saves by the clock, when no snapshot is taken: "
                "its value is that of an earlier state. Use every_n_train_steps= there and every(steps=) in schedule=.",
                metric,
            )
