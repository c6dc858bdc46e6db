"""Whether a snapshot is due: what is counted and timed while a fit runs, put to its schedule."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from lightning_ssc.callback.lightning import Training
from lightning_ssc.callback.triggers import Now, Occasion, Run, Steps, Trigger, has_dropped, on_lr_drop

log = logging.getLogger(__name__)


class Pace:
    """How much of a run's time its snapshots have taken, by the clock of one process.

    Args:
        clock: Gives the time in seconds.

    Example:
        >>> times = iter([0, 10, 10, 13, 100, 200])
        >>> pace = Pace(lambda: next(times))
        >>> with pace.taking():  # takes three seconds
        ...     pass
        >>> pace.allows(0.05), pace.allows(0.05)  # of a hundred seconds, and of two hundred
        (False, True)
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = self._last = clock()
        self._spent = self._one = 0.0

    @contextmanager
    def taking(self) -> Iterator[None]:
        """In it a snapshot is taken."""
        self._one, self._last = 0.0, self._clock()
        with self.finishing():
            yield

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """In it more is done for the last snapshot, such as to log it."""
        begun = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - begun
            self._one += seconds
            self._spent += seconds

    def allows(self, share: float) -> bool:
        """Whether snapshots, with one more that takes as long as the last, stay within a share of the time."""
        return self._spent + self._one <= share * (self._clock() - self._start)

    @property
    def minutes(self) -> float:
        """Minutes since a snapshot was begun, or since the start."""
        return (self._clock() - self._last) / 60


class LearningRate:
    """The rate at which most of some parameters are trained.

    Which group of parameters that is, is looked for again only where groups have come or grown: a batch must not have
    to wait until all parameters are counted.

    Args:
        parameters: Identities of the parameters.
    """

    def __init__(self, parameters: frozenset[int] = frozenset()) -> None:
        self._parameters = parameters
        self._seen: list[int] = []
        self._place: int | None = None

    def now(self, training: Training) -> float | None:
        """The rate now, or ``None`` where nothing trains them; without parameters that of a lone optimizer."""
        groups = training.groups
        seen = [len(group["params"]) for group in groups]
        if seen != self._seen:
            sizes = [sum(p.numel() for p in group["params"] if id(p) in self._parameters) for group in groups]
            alone = training.has_one_optimizer and not self._parameters
            self._seen, self._place = seen, sizes.index(max(sizes)) if any(sizes) else 0 if alone else None
        return None if self._place is None else float(groups[self._place]["lr"])


class Agenda:
    """Which moments of a fit are taken. All ranks decide alike, by rank zero's clock.

    Args:
        schedule: The triggers.
        clock: Gives the time in seconds.
        run: How long the fit is, as far as that is known.
        steps: What has been counted by its start.
        learning_rate: The rate by then.
        dropped: Step at which it dropped last.
        is_steered: Whether something in the training goes by what snapshots say; then no clock decides.
    """

    def __init__(
        self,
        schedule: Sequence[Trigger],
        clock: Callable[[], float],
        run: Run | None = None,
        steps: Steps | None = None,
        learning_rate: float | None = None,
        dropped: int | None = None,
        is_steered: bool = False,
    ) -> None:
        self.run, self.learning_rate = run or Run(), learning_rate
        self._schedule, self._steps, self._pace = schedule, steps or Steps(), Pace(clock)
        self._dropped, self._is_steered = dropped, is_steered
        self._taken_at: int | None = None
        self._has_waited = False

    @classmethod
    def of_fit(
        cls,
        schedule: Sequence[Trigger],
        clock: Callable[[], float],
        training: Training,
        restored: Mapping[str, Any],
        is_steered: bool,
    ) -> Agenda:
        """The agenda of a fit that begins, or goes on with what :meth:`state_dict` returned."""
        steps = Steps(**counted) if (counted := restored.get("counted")) else training.steps
        steps.advance(training.of_optimizers)  # a checkpoint may be saved before a batch is counted
        rate, dropped = (restored.get(key) for key in ("learning_rate", "dropped"))
        return cls(schedule, clock, training.run, steps, rate, dropped, is_steered)

    def state_dict(self) -> dict[str, Any]:
        """What is kept with a checkpoint."""
        return {"learning_rate": self.learning_rate, "dropped": self._dropped, "counted": asdict(self._steps)}

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._steps.done

    def advance(self, training: Training) -> bool:
        """Take note of a batch; returns whether an optimizer stepped in it."""
        return self._steps.advance(training.of_optimizers)

    def sees_drop(self, training: Training, rate: float | None) -> bool:
        """Whether the learning rate, of the step to come, has dropped since the one before."""
        dropped = has_dropped(self.learning_rate, rate)
        if any(isinstance(trigger, on_lr_drop) for trigger in self._schedule):
            dropped = training.ranks.broadcast(dropped)  # plateaus of metrics differ between ranks
        if dropped:
            self._dropped = self.step
        return dropped

    def is_due(self, training: Training, occasion: Occasion, *, is_last: bool = False, always: bool = False) -> bool:
        """Whether a snapshot is to be taken now.

        Args:
            training: The fit.
            occasion: What this moment is.
            is_last: Whether the final state, which is taken anyway, is this one.
            always: Whether it is due whatever the schedule says.
        """
        minutes = 0.0
        if occasion == "step" and any(trigger.timed for trigger in self._schedule):
            minutes = training.ranks.broadcast(self._pace.minutes)
        epoch = training.epochs_begun if occasion == "epoch" else training.epochs_done
        now = Now(occasion, self.step, epoch, self.run, minutes, self._dropped)
        share = math.inf if always else max(trigger.share(now) for trigger in self._schedule)
        if share == 0 or (share < math.inf and self._taken_at == now.step):
            return False
        # What the training goes by must not differ from run to run.
        is_bound = share < math.inf and not is_last and not self._is_steered
        if is_bound and not training.ranks.broadcast(self._pace.allows(share)):
            self._say_that_it_waits(training, now, share)
            return False
        return True

    def _say_that_it_waits(self, training: Training, now: Now, share: float) -> None:
        if not self._has_waited and training.is_zero:
            log.warning(
                "No snapshot is taken after step %d (epoch %d), nor after others to come: snapshots would have taken "
                "more than %.3g %% of the run's time so far. schedule=1 takes every epoch, and auto(budget=...) gives "
                "them more time.",
                now.step,
                now.epoch,
                100 * share,
            )
        self._has_waited = True

    @contextmanager
    def taking(self) -> Iterator[None]:
        """In it the snapshot of this moment is taken."""
        self._taken_at = self.step
        with self._pace.taking():
            yield

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """In it more is done for the last snapshot, such as to log it."""
        with self._pace.finishing():
            yield
