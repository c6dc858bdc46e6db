"""When snapshots are due: each trigger as a value, and what a run under it takes."""

from __future__ import annotations

import math
import sys
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, IterableDataset

from lightning_ssc import SSCMonitor, at, auto, every, log_spaced, on_lr_drop, on_validation
from lightning_ssc.analysis import dynamics
from lightning_ssc.callback.agenda import LearningRate
from lightning_ssc.callback.triggers import ENOUGH, Now, Run, Trigger, as_triggers
from tests.nets import Classifier, data, trainer


def monitor(**kwargs: Any) -> SSCMonitor:
    images = {"heatmap": False, "embedding": False, "neighbours": 0}
    return SSCMonitor(**{"layers": ["model.9"], "probe_size": 20, "store": False, **images, **kwargs})


def fit(watching: SSCMonitor, root: Path, model: Any = None, *callbacks: Any, **kwargs: Any) -> list[int]:
    """Train; returns the steps of the snapshots."""
    pl.seed_everything(0, verbose=False)
    model = Classifier() if model is None else model
    trainer(root, watching, *callbacks, **kwargs).fit(model)
    assert watching.store is not None
    return watching.store.steps


class Stream(IterableDataset[Any]):
    """Samples without a known number; of one epoch's length, or without an end."""

    def __init__(self, length: int | None = None) -> None:
        self.length = length

    def __iter__(self) -> Any:
        source = data(seed=1)
        return (source[i % len(source)] for i in (count() if self.length is None else range(self.length)))


class Streamed(Classifier):
    def __init__(self, length: int | None = None) -> None:
        super().__init__()
        self.length = length

    def train_dataloader(self) -> Any:
        return DataLoader(Stream(self.length), batch_size=4)


class Adversarial(Classifier):
    """Two optimizers that step by hand: one in every batch, the other in every second."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        for part, optimizer in enumerate(self.optimizers()):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            if part == 0 or batch_idx % 2:
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.model[:4], self.model[4:])]


class Accumulates(Classifier):
    """Steps by hand after every second batch."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()

    def train_dataloader(self) -> Any:
        return DataLoader(data(seed=1), batch_size=5)


def due(trigger: Trigger, moments: list[Now]) -> list[int]:
    return [now.step for now in moments if trigger.share(now)]


def epochs(trigger: Trigger, last: int) -> list[int]:
    moments = [Now("start", 0, 0), *(Now("epoch", 10 * epoch, epoch) for epoch in range(1, last + 1))]
    return [now.epoch for now in moments if trigger.share(now)]


def steps(trigger: Trigger, last: int, run: Run | None = None) -> list[int]:
    moments = [Now("start", 0, 0), *(Now("step", step, 0, run or Run()) for step in range(1, last + 1))]
    return due(trigger, moments)


def test_every_kind_of_schedule() -> None:
    def of(schedule: Any, last: int) -> list[int]:
        (trigger,) = as_triggers(schedule)
        return epochs(trigger, last)

    assert of(2, 6) == of(every(epochs=2), 6) == [0, 2, 4, 6]
    assert of([0, 1, 31], 40) == of(at([0, 1, 31]), 40) == [0, 1, 31]
    assert of(lambda epoch: epoch == 3, 4) == [3]
    assert of(log_spaced(3), 1000) == [0, 1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
    assert steps(every(steps=3), 10) == [0, 3, 6, 9]
    assert steps(at(steps=[2, 7]), 10) == [2, 7]
    assert steps(log_spaced(3, steps=True), 100) == [0, 1, 2, 5, 10, 22, 46, 100]
    assert due(every(minutes=5), [Now("step", n, 0, minutes=n) for n in range(8)]) == [5, 6, 7]
    assert epochs(every(steps=3), 9) == [0]  # steps are taken at steps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: every(0), "every n epochs needs n of at least 1, got 0"),
        (lambda: every(steps=0), "every n steps needs n of at least 1, got 0"),
        (lambda: every(minutes=0), "every n minutes needs n above 0, got 0"),
        (lambda: every(), "needs one of epochs=, steps= and minutes=, got none"),
        (lambda: every(epochs=1, steps=2), "needs one of epochs=, steps= and minutes=, got .*steps"),
        (lambda: at([]), "from 0"),
        (lambda: at([3, -1]), r"epochs needs numbers from 0 .* got \[3, -1\]"),
        (lambda: log_spaced(0), "at least 1, got 0"),
        (lambda: on_lr_drop(0), "at least 1, got 0"),
        (lambda: auto(budget=0), "budget above 0"),
        (lambda: as_triggers("epochs"), "schedule='epochs' is none: give 'auto'"),  # type: ignore[arg-type]
        (lambda: as_triggers([1, every(2)]), "is none: give"),  # type: ignore[list-item]
        (lambda: as_triggers(every), r"is a kind of trigger: write every\(...\)"),  # type: ignore[arg-type]
    ],
)
def test_wrong_schedules(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "run",
    [
        Run(epochs=1, steps_an_epoch=5000),
        Run(epochs=3, steps_an_epoch=22),
        Run(epochs=9, steps_an_epoch=1),
        Run(epochs=100, steps_an_epoch=391),
        Run(steps=30),
        Run(epochs=2, steps=700, steps_an_epoch=500),
    ],
    ids=str,
)
def test_auto_takes_ten_moments_of_any_run_whatever_they_take(run: Run) -> None:
    taken = [0]
    for step in range(1, int(run.total) + 1):
        done = int(step / run.steps_an_epoch)
        now = Now("step", step, done, run)
        end = Now("epoch", step, done, run)
        is_end = step % run.steps_an_epoch == 0
        if auto().share(now) == math.inf or (is_end and auto().share(end) == math.inf):
            taken.append(step)
        assert not is_end or auto().share(end) > 0  # every epoch's end, where there is time
    assert len(taken) in (ENOUGH, ENOUGH + 1)
    assert taken[-1] == run.total
    gaps = [b / a for a, b in pairwise(taken[1:])]
    assert max(gaps) < max(5, 2 * run.total ** (1 / (ENOUGH - 1)))  # no hole in a logarithmic axis


def test_auto_goes_on_in_a_stream_of_unknown_length() -> None:
    shares = {s: auto(0.1).share(Now("step", s, 0, Run(epochs=1))) for s in range(1, 1001)}
    always = [s for s, share in shares.items() if share == math.inf]
    assert always == [1, 2, 3, 4, 6, 10, 16, 25, 40]
    assert [s for s, share in shares.items() if share == 0.1] == [63, 100, 158, 251, 398, 631, 1000]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (every(steps=2), [0, 2, 4, 6]),
        (at(steps=[1, 5], epochs=[1]), [1, 3, 5, 6]),
        (log_spaced(3, steps=True), [0, 1, 2, 5, 6]),
        ([every(steps=4), at(epochs=[1])], [0, 3, 4, 6]),
        (on_validation(), [2, 4, 6]),
        ("auto", [0, 1, 2, 3, 4, 5, 6]),
    ],
    ids=str,
)
def test_a_run_of_two_epochs_of_three_steps(tmp_path: Path, schedule: Any, expected: list[int]) -> None:
    watching = monitor(schedule=schedule)
    assert fit(watching, tmp_path, max_epochs=2, val_check_interval=2, check_val_every_n_epoch=None) == expected
    moments = [watching.store.header(step=step).moment for step in expected]  # type: ignore[union-attr]
    assert [m.epoch for m in moments] == [pytest.approx(step / 3) for step in expected]
    assert [m.logged for m in moments] == [max(0, step - 1) for step in expected]


@pytest.mark.parametrize(
    ("model", "how", "expected", "logged"),
    [
        (Classifier, {"accumulate_grad_batches": 2}, [0, 1, 2, 3, 4], [0, 0, 1, 2, 3]),  # of three batches an epoch
        (Adversarial, {}, [0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 2, 3, 4, 5]),
        (Accumulates, {"max_epochs": 1}, [0, 1, 2, 3, 4, 5, 6], [0, 1, 3, 5, 7, 9, 11]),  # Lightning counts batches
    ],
    ids=["accumulation", "two optimizers", "accumulation by hand"],
)
def test_steps_are_those_of_optimizers(
    tmp_path: Path, model: Any, how: dict[str, Any], expected: list[int], logged: list[int]
) -> None:
    weights: dict[int, Any] = {}

    class Weights(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            weights[trainer.fit_loop.epoch_loop._batches_that_stepped] = torch.cat(
                [p.detach().flatten() for p in module.parameters()]
            )

    watching = monitor(schedule=every(steps=1))
    assert fit(watching, tmp_path, model(), Weights(), **{"max_epochs": 2, **how}) == expected
    moments = [watching.store.header(step=step).moment for step in expected]  # type: ignore[union-attr]
    assert [moment.logged for moment in moments] == logged
    at_snapshots = [weights[step] for step in logged[1:]]
    assert not any(torch.equal(a, b) for a, b in pairwise(at_snapshots))


def test_max_steps_of_several_optimizers(tmp_path: Path) -> None:
    """Lightning counts the steps of all optimizers: the run has five batches, three were expected."""
    assert fit(monitor(), tmp_path, Adversarial(), max_steps=6, max_epochs=-1) == [0, 1, 2, 3, 5]


def test_minutes_by_a_clock(tmp_path: Path) -> None:
    watching = monitor(schedule=[at([0]), every(minutes=2)])
    ticks = count(step=20)  # seconds from one look at the clock to the next
    watching._clock = lambda: float(next(ticks))
    taken = fit(watching, tmp_path, max_epochs=4)
    assert taken[0] == 0
    assert taken[-1] == 12
    assert 3 <= len(taken) < 10


def test_a_budget_bites_once_it_is_spent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watching = monitor()
    watching._clock = count(step=1.0).__next__  # a snapshot takes a look or two at the clock, like a step
    taken = fit(watching, tmp_path, max_epochs=14)
    always = [0, 3, 6, 9, 12, 15, 18, 24, 33, 42]
    assert taken == always
    assert len([r for r in caplog.records if "more than 2 % of the run's time" in r.getMessage()]) == 1
    spared = monitor(schedule=auto(budget=5.0))
    spared._clock = count(step=1.0).__next__
    assert fit(spared, tmp_path, max_epochs=14) == [3 * epoch for epoch in range(15)]


def test_what_steers_the_training_does_not_go_by_the_clock(tmp_path: Path) -> None:
    tag = "ssc/modularity/model.9"
    kept = ModelCheckpoint(tmp_path, monitor=tag, mode="max")
    watching = monitor()
    watching._clock = count(step=1.0).__next__
    assert fit(watching, tmp_path, None, kept, max_epochs=14, enable_checkpointing=True) == [
        3 * epoch for epoch in range(15)
    ]
    with pytest.raises(Exception, match=r"'ssc/modularity/model.9' steers the training, and every\(minutes"):
        fit(monitor(schedule=every(minutes=1)), tmp_path, None, kept, enable_checkpointing=True)


def test_the_group_that_trains_the_layers_is_looked_for_where_groups_change() -> None:
    class Counted:
        looks = 0

        def numel(self) -> int:
            Counted.looks += 1
            return 1

    watched, others = [Counted(), Counted()], [Counted(), Counted(), Counted()]
    training: Any = SimpleNamespace(groups=[{"params": others, "lr": 0.1}], has_one_optimizer=True)
    rate = LearningRate(frozenset(map(id, watched)))
    assert rate.now(training) is None  # they are frozen
    training.groups.append({"params": watched, "lr": 0.01})
    assert [rate.now(training) for _ in range(3)] == [0.01] * 3
    assert Counted.looks == len(watched)
    training.groups[1]["lr"] = 0.001
    assert rate.now(training) == 0.001
    assert LearningRate().now(training) == 0.1  # of layers without parameters


@pytest.mark.parametrize("how", ["step", "epoch", "plateau"])
def test_before_and_after_a_drop_of_the_learning_rate(tmp_path: Path, how: str) -> None:
    class Scheduled(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            if how == "plateau":
                scheduler: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.1, -1, threshold=9)
                return [optimizer], [{"scheduler": scheduler, "monitor": "val_loss", "interval": "epoch"}]
            scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3 if how == "step" else 1], 0.1)
            return [optimizer], [{"scheduler": scheduler, "interval": how}]

    watching = monitor(schedule=on_lr_drop(steps=2))
    taken = fit(watching, tmp_path, Scheduled(), max_epochs=3)
    assert taken[:2] == [3, 5]  # after an epoch of three steps
    rates = [watching.store.header(step=step).learning_rate for step in taken[:2]]  # type: ignore[union-attr]
    assert rates == [pytest.approx(0.05), pytest.approx(0.005)]
    if how != "plateau":
        assert taken == [3, 5, 9]
        assert dynamics(watching.store).drops().tolist() == [[1, pytest.approx(5 / 3)]]  # type: ignore[arg-type]


def test_a_smooth_fall_of_the_learning_rate_is_no_drop(tmp_path: Path) -> None:
    class Scheduled(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, 8)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    assert fit(monitor(schedule=on_lr_drop()), tmp_path, Scheduled(), max_epochs=2) == [6]


@pytest.mark.parametrize(
    ("length", "how", "expected"),
    [
        (None, {"max_steps": 30, "max_epochs": -1}, [0, 1, 2, 3, 5, 7, 10, 14, 21, 30]),
        (120, {"max_epochs": 1}, [0, 1, 2, 3, 4, 6, 10, 16, 25, 30]),
    ],
    ids=["endless", "of one epoch"],
)
def test_a_stream_gets_a_readable_curve(
    tmp_path: Path, length: int | None, how: dict[str, Any], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From YAML to TensorBoard: ten moments of one long epoch, at the steps under which Lightning logs."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
        seed_everything: 1
        model: {{length: {"null" if length is None else length}}}
        trainer:
          accelerator: cpu
          max_epochs: {how["max_epochs"]}
          max_steps: {how.get("max_steps", -1)}
          limit_val_batches: 0
          enable_checkpointing: false
          enable_progress_bar: false
          enable_model_summary: false
          logger:
            class_path: TensorBoardLogger
            init_args: {{save_dir: {tmp_path}}}
          callbacks:
            - class_path: lightning_ssc.SSCMonitor
              init_args: {{layers: [model.9], probe_size: 20, heatmap: false, embedding: false, neighbours: 0}}
        """
    )
    monkeypatch.setattr(sys, "argv", ["run", "fit", "--config", str(config)])
    cli = LightningCLI(Streamed, save_config_callback=None)
    (watching,) = (c for c in cli.trainer.callbacks if isinstance(c, SSCMonitor))
    assert watching.store is not None
    assert watching.store.steps == expected
    assert dynamics(watching.store).unit == "step"
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    for tag in ("ssc/modularity/model.9", "ssc/cka_to_final/model.9"):
        assert [event.step for event in found.Scalars(tag)] == [max(0, step - 1) for step in expected]


def test_a_stream_under_a_schedule_of_epochs_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for schedule, said in ((1, 1), (every(steps=3), 0), ([at([0]), on_validation()], 0)):
        caplog.clear()
        taken = fit(monitor(schedule=schedule), tmp_path, Streamed(), max_steps=6, max_epochs=-1, limit_val_batches=0)
        assert {0, 6} <= set(taken)
        assert len([r for r in caplog.records if "No epoch is known to end" in r.getMessage()]) == said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", (auto(),)),
        ("5", (every(epochs=5),)),
        ("[0, 1, 31]", (at([0, 1, 31]),)),
        ("{class_path: lightning_ssc.every, init_args: {steps: 500}}", (every(steps=500),)),
        ("lightning_ssc.on_validation", (on_validation(),)),
        (
            "[{class_path: lightning_ssc.at, init_args: {steps: [1, 2]}}, lightning_ssc.on_lr_drop,"
            " {class_path: lightning_ssc.log_spaced, init_args: {steps: true}}]",
            (at(steps=[1, 2]), on_lr_drop(), log_spaced(steps=True)),
        ),
        ("{class_path: lightning_ssc.auto, init_args: {budget: 0.1}}", (auto(budget=0.1),)),
    ],
)
def test_yaml_can_say_every_schedule(
    text: str, expected: tuple[Trigger, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
        trainer:
          accelerator: cpu
          logger: false
          callbacks:
            - class_path: lightning_ssc.SSCMonitor
              init_args: {{schedule: {text}}}
        """
    )
    monkeypatch.setattr(sys, "argv", ["run", "--config", str(config)])
    cli = LightningCLI(Classifier, run=False, seed_everything_default=False)
    (watching,) = (c for c in cli.trainer.callbacks if isinstance(c, SSCMonitor))
    assert watching.schedule == expected
    assert hash(watching.schedule) == hash(expected)
