"""When snapshots are taken: triggers, plain values that are asked at every moment at which a snapshot could be taken.

Epochs count finished epochs: 0 is the untrained network, 1 the network after its first epoch, and so on, as the
paper counts them. (Lightning's ``current_epoch`` is one less while an epoch runs.) Steps count batches after which an
optimizer has stepped: one an accumulated batch, and one a batch of a GAN, however many optimizers step in it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Literal, cast

Occasion = Literal["start", "step", "drop", "validation", "epoch"]

ENOUGH = 10  # moments of a readable curve
_PER_DECADE = 5  # moments inside an epoch where nobody knows how many steps there will be
_FALL = 0.5 * (1 + 1e-6)  # of the learning rate, where smooth schedules do not reach from one step to the next


@dataclass(frozen=True)
class Run:
    """What is known beforehand of a run's length; infinity where it is not.

    Attributes:
        epochs: Epochs at most.
        steps: Steps at most.
        steps_an_epoch: Steps that an epoch has.

    Example:
        >>> Run(epochs=3, steps_an_epoch=20).total, Run(steps=50, steps_an_epoch=20).total, Run(epochs=1).total
        (60, 50, inf)
    """

    epochs: float = math.inf
    steps: float = math.inf
    steps_an_epoch: float = math.inf

    @property
    def total(self) -> float:
        """Steps that it will have."""
        return min(self.steps, self.epochs * self.steps_an_epoch)

    @property
    def ends(self) -> float:
        """Epochs that it will see the end of, as far as is known."""
        return math.inf if self.total == math.inf else self.total // self.steps_an_epoch

    def epochs_at(self, step: int) -> int:
        """Epochs that are done at the end of a step's batch, before that of its epoch."""
        return int((step - 1) // self.steps_an_epoch)


@dataclass(frozen=True)
class Now:
    """A moment at which a snapshot could be taken.

    Attributes:
        occasion: The ``"start"`` of training, a ``"step"`` of an optimizer, a ``"drop"`` of the learning rate, seen
            before the first step at the lower one, and the end of a ``"validation"`` or of an ``"epoch"``.
        step: Steps that are done.
        epoch: Epochs that are done.
        run: What is known of the run's length.
        minutes: Minutes since the last snapshot.
        dropped: Step at which the learning rate dropped last, or ``None``.
    """

    occasion: Occasion
    step: int
    epoch: int
    run: Run = field(default_factory=Run)
    minutes: float = 0.0
    dropped: int | None = None


class Trigger(ABC):
    """Says when snapshots are due."""

    @property
    def timed(self) -> bool:
        """Whether it goes by the clock, so that it differs from run to run."""
        return False

    @property
    def at_ends_only(self) -> bool:
        """Whether, but for the untrained network, it takes ends of epochs alone."""
        return False

    @abstractmethod
    def share(self, now: Now) -> float:
        """The share of the run's time that snapshots may have taken, with the one that would be taken now.

        0 where none is due, infinity where one is due whatever it takes.
        """


class _Plain(Trigger):
    """A trigger whose moments are due whatever they take."""

    @abstractmethod
    def _is_due(self, now: Now) -> bool: ...

    def share(self, now: Now) -> float:
        """Infinity or 0, see :meth:`Trigger.share`."""
        return math.inf if self._is_due(now) else 0.0


@dataclass(frozen=True)
class every(_Plain):
    """Every so many epochs, starting with the untrained network, or steps, or minutes since the last snapshot.

    Args:
        epochs: Number of epochs.
        steps: Number of steps.
        minutes: Minutes; the next step takes the snapshot. Which one that is differs from run to run.

    Raises:
        ValueError: Not exactly one of them is given, or it is not positive.

    Example:
        >>> [epoch for epoch in range(8) if every(3).share(Now("epoch", 0, epoch))]
        [0, 3, 6]
    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        given = {
            unit: n
            for unit, n in (("epochs", self.epochs), ("steps", self.steps), ("minutes", self.minutes))
            if n is not None
        }
        if len(given) != 1:
            raise ValueError(f"every() needs one of epochs=, steps= and minutes=, got {given or 'none'}.")
        [(unit, n)] = given.items()
        if unit == "minutes" and not n > 0:
            raise ValueError(f"A schedule of every n minutes needs n above 0, got {n}.")
        if unit != "minutes" and n < 1:
            raise ValueError(f"A schedule of every n {unit} needs n of at least 1, got {n}.")

    @property
    def timed(self) -> bool:
        """Whether it counts minutes."""
        return self.minutes is not None

    @property
    def at_ends_only(self) -> bool:
        """Whether it counts epochs."""
        return self.epochs is not None

    def _is_due(self, now: Now) -> bool:
        if self.epochs is not None:
            return now.occasion in ("start", "epoch") and now.epoch % self.epochs == 0
        if self.steps is not None:
            return now.occasion in ("start", "step") and now.step % self.steps == 0
        return now.occasion == "step" and now.minutes >= (self.minutes or 0)


@dataclass(frozen=True)
class at(_Plain):
    """Exactly these epochs, steps or both; 0 is the untrained network.

    Args:
        epochs: Finished epochs.
        steps: Steps that are done.

    Raises:
        ValueError: Nothing is given, or a negative number.

    Example:
        >>> [epoch for epoch in range(100) if at([0, 1, 31, 61]).share(Now("epoch", 0, epoch))]
        [0, 1, 31, 61]
    """

    epochs: Sequence[int] = ()
    steps: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Keep them as tuples, which are values."""
        for unit in ("epochs", "steps"):
            object.__setattr__(self, unit, tuple(getattr(self, unit)))
        if not self.epochs and not self.steps:
            raise ValueError("A schedule of epochs or steps needs numbers from 0 (the untrained network) up, got none.")
        for unit, given in (("epochs", self.epochs), ("steps", self.steps)):
            if given and min(given) < 0:
                raise ValueError(
                    f"A schedule of {unit} needs numbers from 0 (the untrained network) up, got {list(given)}."
                )

    @property
    def at_ends_only(self) -> bool:
        """Whether it names no steps."""
        return not self.steps

    def _is_due(self, now: Now) -> bool:
        return (now.occasion in ("start", "epoch") and now.epoch in self.epochs) or (
            now.occasion in ("start", "step") and now.step in self.steps
        )


@dataclass(frozen=True)
class log_spaced(_Plain):
    """Epochs or steps evenly spaced on a logarithmic axis: dense while the network changes fast, sparse later.

    Args:
        per_decade: How many between one power of ten and the next, where whole numbers allow.
        steps: Steps, not epochs.

    Raises:
        ValueError: ``per_decade`` is below one.

    Example:
        >>> [epoch for epoch in range(101) if log_spaced(4).share(Now("epoch", 0, epoch))]
        [0, 1, 2, 3, 6, 10, 18, 32, 56, 100]
    """

    per_decade: int = 10
    steps: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        if self.per_decade < 1:
            raise ValueError(f"A log-spaced schedule needs per_decade of at least 1, got {self.per_decade}.")

    @property
    def at_ends_only(self) -> bool:
        """Whether it counts epochs."""
        return not self.steps

    def _is_due(self, now: Now) -> bool:
        if now.occasion not in ("start", "step" if self.steps else "epoch"):
            return False
        return _is_on_log_axis(now.step if self.steps else now.epoch, self.per_decade)


@dataclass(frozen=True)
class on_validation(_Plain):
    """The end of every validation in the run (not of the sanity check).

    Example:
        >>> on_validation().share(Now("validation", 500, 0)), on_validation().share(Now("step", 500, 0))
        (inf, 0.0)
    """

    def _is_due(self, now: Now) -> bool:
        return now.occasion == "validation"


@dataclass(frozen=True)
class on_lr_drop(_Plain):
    """Before and after every drop of the learning rate to half or less from one step to the next.

    Args:
        steps: How many steps at the lower rate the network has had when the snapshot after the drop is taken.

    Raises:
        ValueError: ``steps`` is below one.

    Example:
        >>> moments = [Now("drop", 300, 3, dropped=300), *(Now("step", s, 3, dropped=300) for s in (301, 400))]
        >>> [now.step for now in moments if on_lr_drop(steps=100).share(now)]
        [300, 400]
    """

    steps: int = 100

    def __post_init__(self) -> None:
        """Refuse what is no moment after the drop."""
        if self.steps < 1:
            raise ValueError(f"on_lr_drop() needs steps of at least 1, got {self.steps}.")

    def _is_due(self, now: Now) -> bool:
        if now.occasion == "drop":
            return True
        return now.occasion == "step" and now.dropped is not None and now.step == now.dropped + self.steps


@dataclass(frozen=True)
class auto(Trigger):
    """The untrained network, every epoch's end and, in a run of few epochs, steps inside them, within a budget.

    Ten moments, spread over the run on a logarithmic axis, are taken whatever they take: epochs' ends or, where there
    are too few of those, steps between them; all others wait for the next one where they would take the time of all
    snapshots above ``budget`` of the run's. (Where nobody knows how many steps there will be, as in an endless stream,
    the ten are the first of a series of five steps a decade, which goes on within the budget until there have been
    nine epochs.)

    Args:
        budget: Share of the run's time.

    Raises:
        ValueError: ``budget`` is not above 0.

    Example:
        >>> stream = Run(epochs=1, steps=1000)
        >>> [s for s in range(1001) if auto().share(Now("step", s, 0, stream)) == math.inf]
        [1, 2, 6, 13, 32, 75, 178, 422, 1000]
    """

    budget: float = 0.02

    def __post_init__(self) -> None:
        """Refuse what allows nothing."""
        if not self.budget > 0:
            raise ValueError(f"auto() needs a budget above 0, such as 0.02 of the run's time, got {self.budget}.")

    def share(self, now: Now) -> float:
        """See :meth:`Trigger.share`."""
        if now.occasion == "start":
            return math.inf
        epochs, steps = _readable(now.run)
        if now.occasion == "epoch":
            return math.inf if now.epoch in epochs else self.budget
        if now.occasion != "step":
            return 0.0
        if now.step in steps:
            return math.inf
        goes_on = now.run.total == math.inf and now.epoch < ENOUGH - 1
        return self.budget if goes_on and _is_on_log_axis(now.step, _PER_DECADE) else 0.0


@dataclass(frozen=True)
class _asked(_Plain):
    """Epochs to which a function of the user's says yes."""

    function: Callable[[int], bool]

    @property
    def at_ends_only(self) -> bool:
        """It is asked for epochs."""
        return True

    def _is_due(self, now: Now) -> bool:
        return now.occasion in ("start", "epoch") and bool(self.function(now.epoch))


Schedule = Literal["auto"] | int | list[int] | Trigger | list[Trigger] | Callable[[int], bool]


def as_triggers(schedule: Schedule) -> tuple[Trigger, ...]:
    """What a schedule means: ``"auto"``, every n epochs, these epochs, one or several triggers, a function of epochs.

    Raises:
        ValueError: It means nothing.

    Example:
        >>> as_triggers(2), as_triggers([0, 1]), as_triggers([every(steps=500), on_validation()])[1]
        ((every(epochs=2, steps=None, minutes=None),), (at(epochs=(0, 1), steps=()),), on_validation())
    """
    if schedule == "auto":
        return (auto(),)
    if isinstance(schedule, Trigger):
        return (schedule,)
    if isinstance(schedule, int):
        return (every(epochs=schedule),)
    if isinstance(schedule, type) and issubclass(schedule, Trigger):
        raise ValueError(f"schedule={schedule.__name__} is a kind of trigger: write {schedule.__name__}(...) for one.")
    if isinstance(schedule, (list, tuple)):
        triggers = tuple(part for part in schedule if isinstance(part, Trigger))
        epochs = [part for part in schedule if isinstance(part, int)]
        if len(triggers) == len(schedule) > 0:
            return triggers
        if len(epochs) == len(schedule):
            return (at(epochs=epochs),)
    elif callable(schedule):
        return (_asked(cast("Callable[[int], bool]", schedule)),)
    raise ValueError(
        f"schedule={schedule!r} is none: give 'auto', a number of epochs, a list of epochs, or one or several of "
        f"every(...), at(...), log_spaced(...), on_validation() and on_lr_drop()."
    )


def uncovered(schedule: Iterable[Trigger], states: Iterable[tuple[Now, ...]], run: Run) -> int | None:
    """Step of the first of some states of which a schedule takes no snapshot, or ``None``; looks at the first hundred.

    Args:
        schedule: The triggers.
        states: Of each state, the moments at which a snapshot would be of it.
        run: How long the run is; states after its end do not count.

    Example:
        >>> states = [(Now("step", 20 * k, 0), Now("validation", 20 * k, 0)) for k in range(1, 9)]
        >>> uncovered([every(steps=10)], states, Run()), uncovered([every(steps=15)], states, Run())
        (None, 20)
    """
    triggers = list(schedule)
    for moments in islice(states, 100):
        step = moments[-1].step if moments else 1
        if step > run.total:
            return None
        if not any(trigger.share(now) for trigger in triggers for now in moments):
            return step
    return None


def has_dropped(before: float | None, rate: float | None) -> bool:
    """Whether a learning rate has fallen to half or less.

    Example:
        >>> has_dropped(0.1, 0.02), has_dropped(0.1, 0.09), has_dropped(None, 0.1)
        (True, False, False)
    """
    return before is not None and rate is not None and rate < before and rate <= _FALL * before


@dataclass
class Steps:
    """Counts the batches in which an optimizer has stepped, however many did and how often.

    Attributes:
        done: Batches.
        of_optimizers: Steps of all optimizers by then, as Lightning's ``global_step`` counts them.

    Example:
        >>> steps = Steps()
        >>> [steps.advance(of_optimizers) for of_optimizers in (2, 2, 4)], steps.done  # a GAN that skipped a batch
        ([True, False, True], 2)
    """

    done: int = 0
    of_optimizers: int = 0

    def advance(self, of_optimizers: int) -> bool:
        """Take note of a batch; returns whether an optimizer stepped in it."""
        stepped = of_optimizers > self.of_optimizers
        self.done, self.of_optimizers = self.done + stepped, of_optimizers
        return stepped


@lru_cache(maxsize=8)
def _readable(run: Run) -> tuple[frozenset[int], frozenset[int]]:
    """Epochs and steps of the ten moments that show how a run goes.

    Example:
        >>> epochs, steps = _readable(Run(epochs=3, steps_an_epoch=20))
        >>> sorted(epochs), sorted(steps)
        ([0, 1, 2, 3], [1, 2, 4, 8, 15, 30, 60])
        >>> epochs, steps = _readable(Run(epochs=100, steps_an_epoch=20))
        >>> sorted(epochs), sorted(steps)
        ([0, 1, 2, 3, 6, 10, 18, 32, 56, 100], [])
    """
    total = run.total
    if total == math.inf:
        first = [step for step in range(1, 10**4) if _is_on_log_axis(step, _PER_DECADE)]
        return frozenset(), frozenset(first[: ENOUGH - 1])
    ends = int(run.ends)
    if ends >= ENOUGH - 1:
        return frozenset({0, *_spaced(ends, {0})}), frozenset()
    at_ends = {0, *(int(run.steps_an_epoch) * epoch for epoch in range(1, ends + 1))}
    return frozenset(range(ends + 1)), frozenset(_spaced(int(total), at_ends))


def _spaced(last: int, others: set[int]) -> set[int]:
    """The fewest numbers from 1 to ``last``, even on a logarithmic axis, that make ten with the others."""
    chosen: set[int] = set()
    for count in range(2, ENOUGH * ENOUGH):
        chosen = {round(last ** (k / (count - 1))) for k in range(count)}
        if len(chosen | others) >= min(ENOUGH, last + 1):
            break
    return chosen


def _is_on_log_axis(number: int, per_decade: int) -> bool:
    """Whether a whole number is the nearest to a power of ten by so many parts; so is 0.

    Example:
        >>> [n for n in range(101) if _is_on_log_axis(n, 5)]
        [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100]
    """
    if number == 0:
        return True
    k = per_decade * math.log10(number)
    return any(round(10 ** (near / per_decade)) == number for near in (math.floor(k), math.ceil(k)))
