"""Snapshots solved beside training: the same results, in order, and nothing lost that can be kept."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_all_start_methods
from pathlib import Path
from threading import Event, Thread, Timer, current_thread, main_thread
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

import lightning_ssc.callback.lightning as lightning_module
import lightning_ssc.capture.runner as runner_module
import lightning_ssc.recorder as recorder_module
from lightning_ssc import Snapshot, SnapshotStore, SSCMonitor, pipeline, writers
from lightning_ssc.background import Background
from lightning_ssc.callback.lightning import Training
from lightning_ssc.functional.grams import CentredGram
from lightning_ssc.pipeline import Pending, begin_snapshot
from lightning_ssc.ranks import Ranks
from tests.nets import Classifier, data, trainer
from tests.pacing import Gate, assert_no_thread_is_left, hasty, settle


def monitor(**kwargs: Any) -> SSCMonitor:
    images = {"heatmap": False, "embedding": False, "neighbours": 0}
    options = {"schedule": 1, "probe_size": 30, "background": True, **images}
    return SSCMonitor(**{**options, **kwargs})


def fit(root: Path, *callbacks: Any, resume: Path | None = None, **kwargs: Any) -> tuple[Classifier, pl.Trainer]:
    pl.seed_everything(0, verbose=False)
    model = Classifier()
    kept = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    run = trainer(root, *callbacks, enable_checkpointing=kept, **kwargs)
    run.fit(model, ckpt_path=resume, weights_only=True)
    return model, run


class At(pl.Callback):
    """Does something at the end of one batch of one epoch."""

    def __init__(self, epoch: int, action: Callable[[], Any], batch: int = 1) -> None:
        self.epoch, self.action, self.batch = epoch, action, batch

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if (trainer.current_epoch, args[-1]) == (self.epoch, self.batch):
            self.action()


def logged(root: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of the monitor but the seconds."""
    (folder,) = {path.parent for path in root.rglob("events.out.tfevents*")}
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in found.Tags()["scalars"] if "ssc" in tag or "linear_cka" in tag]
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags if "/seconds/" not in tag}


def test_the_same_as_in_the_foreground(tmp_path: Path) -> None:
    stores, weights, scalars = [], [], []
    for background in (False, True):
        root, watching = tmp_path / str(background), monitor(background=background, layers="**")
        model, finished = fit(root, watching, max_epochs=3, logger=TensorBoardLogger(root))
        stores.append(watching.store)
        weights.append([*model.state_dict().values(), *(s["momentum_buffer"] for s in momentum(finished))])
        scalars.append(logged(root))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert scalars[0] == scalars[1]
    assert len(scalars[0]) > 40
    for one, other in zip(*stores, strict=True):
        assert (one.epoch, one.step, one.learning_rate) == (other.epoch, other.step, other.learning_rate)
        assert set(one.seconds) == set(other.seconds) == {"forward", "gram", "solve", "measure", "total"}
        assert torch.equal(one.predictions, other.predictions)
        for name, layer in one.layers.items():
            for part in ("coef", "gap"):
                a, b = (getattr(of, part).to_dense() for of in (layer, other.layers[name]))
                assert torch.equal(a, b)
            assert torch.equal(layer.linear.pairs, other.layers[name].linear.pairs)


def momentum(run: pl.Trainer) -> Any:
    return run.optimizers[0].state.values()


def test_training_goes_on_and_results_come_in_order(tmp_path: Path, gate: Gate) -> None:
    seen: list[tuple[int, int, list[int]]] = []  # epoch, batch, epochs logged by then

    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            seen.append((trainer.current_epoch, args[-1], watching.recorder.steps))

    watching = monitor(verbose=True)
    shut, opened = (
        At(0, lambda: gate.shut(watching.recorder), batch=2),
        At(1, lambda: (gate.open.set(), settle(watching.recorder)), batch=1),
    )
    fit(tmp_path, shut, opened, watching, Looks(), max_epochs=2, logger=TensorBoardLogger(tmp_path))
    assert seen[3:] == [(1, 0, [0]), (1, 1, [0, 3]), (1, 2, [0, 3])]  # epoch 1 was begun, and came at the next batch
    assert [step for step, _ in logged(tmp_path)["ssc/modularity/model.0"]] == [0, 2, 5]
    assert gate.calls == ["model.0", "model.4", "model.9"] * 3


def test_a_slow_worker_holds_one_snapshot(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next snapshot waits for the one before, and the end of fit for the last."""
    solved_when_begun: list[int] = []

    def begin(*args: Any, **kwargs: Any) -> Pending:
        solved_when_begun.append(len(gate.calls))
        return begin_snapshot(*args, **kwargs)

    def solve_later() -> None:
        gate.shut(watching.recorder)
        Thread(target=lambda: (time.sleep(0.5), gate.open.set())).start()

    monkeypatch.setattr(recorder_module, "begin_snapshot", begin)
    watching = monitor()
    fit(tmp_path, At(0, solve_later, batch=2), watching, max_epochs=2)
    assert solved_when_begun == [0, 3, 6]
    assert len(gate.calls) == 9
    assert watching.store.epochs == [0, 1, 2]  # type: ignore[union-attr]
    assert_no_thread_is_left()


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_failure_is_reported_as_in_the_foreground(
    tmp_path: Path, gate: Gate, on_error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate.fails_on = 5
    watching = monitor(on_error=on_error)
    callbacks = At(1, lambda: settle(watching.recorder), batch=0), watching
    if on_error == "raise":
        with pytest.raises(ValueError, match=r"Layer 'model\.4': no solution"):
            fit(tmp_path, *callbacks, max_epochs=3)
        assert watching.store.epochs == [0]  # type: ignore[union-attr]
    else:
        fit(tmp_path, *callbacks, max_epochs=3)
        assert "SSCMonitor goes on after an error: ValueError: Layer 'model.4': no solution" in caplog.text
        assert watching.store.epochs == [0, 2, 3]  # type: ignore[union-attr]


def test_activations_that_are_not_finite(tmp_path: Path) -> None:
    def break_down(model: pl.LightningModule) -> None:
        model.model[4].weight.data.fill_(float("nan"))  # type: ignore[index, union-attr]

    class Breaks(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            break_down(pl_module)

    with pytest.raises(ValueError, match=r"Layer 'model\.4' puts out NaN or infinity"):
        fit(tmp_path, Breaks(), monitor(), max_epochs=2)


def test_a_failing_snapshot_does_not_take_the_next_with_it(
    tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure of epoch 1 comes to light only when epoch 2 is due."""

    class Opens(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.current_epoch == 1:
                gate.open.set()

    gate.fails_on = 4
    watching = monitor(on_error="warn")
    fit(tmp_path, At(0, lambda: gate.shut(watching.recorder), batch=2), Opens(), watching, max_epochs=2)
    assert watching.store.epochs == [0, 2]  # type: ignore[union-attr]
    assert "no solution" in caplog.text


@pytest.fixture
def sigint() -> Iterator[Callable[[], None]]:
    """Sends Ctrl-C to this process, which heeds it even where a shell has started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("again", [False, True])
def test_control_c_waits_for_the_worker_and_a_second_one_does_not(
    tmp_path: Path,
    gate: Gate,
    again: bool,
    sigint: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    class Waits(logging.Handler):
        """Acts a moment after the monitor has said that it waits."""

        def emit(self, record: logging.LogRecord) -> None:
            if "finishes the snapshot" in record.getMessage():
                Timer(0.3, sigint if again else gate.open.set).start()

    def interrupt() -> None:
        waits = Waits()
        log = logging.getLogger("lightning_ssc.callback.monitor")
        log.addHandler(waits)
        request.addfinalizer(lambda: log.removeHandler(waits))
        sigint()

    watching = monitor()
    with pytest.raises(SystemExit):
        fit(tmp_path, At(0, lambda: gate.shut(watching.recorder), batch=2), At(1, interrupt), watching, max_epochs=3)
    assert "SSCMonitor finishes the snapshot of epoch 1; Ctrl-C leaves it out." in caplog.text
    assert ("It is left out." in caplog.text) == again
    assert watching.store.epochs == ([0] if again else [0, 1])  # type: ignore[union-attr]
    gate.open.set()  # what was left out is still in the worker's hands
    assert_no_thread_is_left()


def test_control_c_while_the_next_snapshot_waits_loses_nothing(
    tmp_path: Path, gate: Gate, sigint: Callable[[], None]
) -> None:
    class Interrupts(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.current_epoch == 1:
                Timer(0.3, sigint).start()
                Timer(1.0, gate.open.set).start()

    watching = monitor()
    with pytest.raises(SystemExit):
        fit(tmp_path, At(0, lambda: gate.shut(watching.recorder), batch=2), Interrupts(), watching, max_epochs=3)
    assert watching.store.epochs == [0, 1, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize("when", ["save", "log"])
def test_control_c_while_a_snapshot_is_written_loses_nothing(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it is stored it is found again, and afterwards nobody says that it was left out."""
    interrupted: list[int] = []
    owner, name = (SnapshotStore, "save") if when == "save" else (writers, "log_snapshot")
    original = getattr(owner, name)

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        if next(a for a in args if isinstance(a, Snapshot)).epoch == 1 and not interrupted:
            interrupted.append(1)
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupt)
    watching = monitor()
    with pytest.raises(SystemExit):
        fit(tmp_path, watching, max_epochs=3)
    assert interrupted
    # What there is in the end is taken, too, perhaps at the end of an epoch.
    assert watching.store.epochs[:2] == [0, 1]  # type: ignore[union-attr]
    assert "left out." not in caplog.text


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_the_end_of_fit_shows_what_it_waits_for(
    tmp_path: Path, gate: Gate, bar: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ends(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            gate.shut(watching.recorder)

    original, shown = Training.bar, []

    @contextmanager
    def watched(self: Training, *args: Any) -> Iterator[Callable[[int], None]]:
        capsys.readouterr()  # forget the bar of the forward passes
        with original(self, *args) as advance:

            def shows(parts: int) -> None:
                advance(parts)
                if parts == 0 and not gate.open.is_set():
                    shown.append("".join(capsys.readouterr()))
                    gate.open.set()

            yield shows

    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars only where it believes in a terminal
    monkeypatch.setattr(lightning_module, "time", hasty())
    monkeypatch.setattr(Training, "bar", watched)
    watching = monitor(schedule=[0])
    fit(tmp_path, Ends(), watching, bar(), max_epochs=1, enable_progress_bar=True)
    assert gate.calls == ["model.0", "model.4", "model.9"] * 2
    assert "SSC epoch 1" in shown[0]


@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="processes do not fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12, wherever a thread lives
def test_two_monitors_and_loaders_that_fork_while_the_threads_wait(tmp_path: Path, gate: Gate) -> None:
    open_at_fork: list[bool] = []

    class Forks(Classifier):
        def train_dataloader(self) -> Any:
            open_at_fork.append(gate.open.is_set())
            return DataLoader(data(seed=1), batch_size=20, num_workers=1, multiprocessing_context="fork")

    pl.seed_everything(0, verbose=False)
    first, second = monitor(layers=["model.0"]), monitor(layers=["model.4"], name="deep")
    shut, opened = At(0, lambda: (settle(first.recorder), gate.shut(second.recorder)), batch=2), At(1, gate.open.set)
    run = trainer(tmp_path, shut, first, second, opened, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    run.fit(Forks())
    assert open_at_fork == [True, False]
    assert [of.store.epochs for of in (first, second)] == [[0, 1, 2]] * 2  # type: ignore[union-attr]


def test_what_another_rank_has_failed_in_is_not_solved(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[Pending] = []
    told: list[str] = []
    together = Ranks.raise_together

    def begin_and_hold(*args: Any, **kwargs: Any) -> Pending:
        if begun:
            gate.open.set()
        else:
            gate.open.clear()
        begun.append(begin_snapshot(*args, **kwargs))
        return begun[-1]

    def fails_once(self: Ranks, error: Exception | None) -> None:
        if begun and not told:
            while not any(graph.running() for graph in begun[0].graphs.values()):
                time.sleep(0.001)
            told.append("SSC failed on rank 1")
            raise RuntimeError(*told)
        together(self, error)

    monkeypatch.setattr(recorder_module, "begin_snapshot", begin_and_hold)
    monkeypatch.setattr(Ranks, "raise_together", fails_once)
    watching = monitor(on_error="warn")
    fit(tmp_path, watching, max_epochs=1)
    assert told[0] in caplog.text
    assert [graph.cancelled() for graph in begun[0].graphs.values()] == [False, True, True]
    assert watching.store.epochs == [1]  # type: ignore[union-attr]


def test_a_second_control_c_while_images_are_drawn_leaves_nothing_out(
    tmp_path: Path,
    gate: Gate,
    sigint: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    original = writers.log_snapshot

    def interrupt(loggers: Any, taken: Snapshot, *args: Any, **kwargs: Any) -> None:
        if taken.epoch == 1:
            raise KeyboardInterrupt
        original(loggers, taken, *args, **kwargs)

    def stop() -> None:
        Timer(0.3, gate.open.set).start()
        sigint()

    monkeypatch.setattr(writers, "log_snapshot", interrupt)
    watching = monitor()
    with pytest.raises(SystemExit):
        fit(tmp_path, At(0, lambda: gate.shut(watching.recorder), batch=2), At(1, stop), watching, max_epochs=3)
    assert "SSCMonitor finishes the snapshot of epoch 1" in caplog.text
    assert "left out." not in caplog.text
    assert watching.store.epochs == [0, 1]  # type: ignore[union-attr]


def test_a_budget_that_is_too_small_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not hold the Gram matrices of 30 samples"):
        fit(tmp_path, monitor(memory=1000, on_error="warn"), max_epochs=1)


def test_communities_are_those_of_the_foreground(tmp_path: Path) -> None:
    found = []
    for background in (False, True):
        watching = monitor(groups="communities", background=background)
        fit(tmp_path / str(background), watching, max_epochs=1)
        found.append(watching.store.load_layer(1, "model.4").communities)  # type: ignore[union-attr]
    assert torch.equal(*found)


def test_a_process_that_has_to_end_is_not_held_up(tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    def terminate() -> None:
        raise SIGTERMException

    watching = monitor()
    with pytest.raises(SIGTERMException):
        fit(tmp_path, At(0, lambda: gate.shut(watching.recorder), batch=2), At(1, terminate), watching, max_epochs=3)
    assert "The snapshot of epoch 1 was not finished and is left out." in caplog.text
    assert watching.store.epochs == [0]  # type: ignore[union-attr]


def test_the_last_checkpoint_has_nothing_pending(tmp_path: Path) -> None:
    """Lightning does not go on with a finished run, so that nothing could be taken again."""
    stored: list[list[int]] = []

    class Looks(ModelCheckpoint):
        def on_train_epoch_end(self, *args: Any) -> None:
            stored.append(watching.recorder.steps)

    watching = monitor()
    fit(tmp_path, watching, Looks(tmp_path), max_epochs=2)
    assert stored[-1] == [0, 3, 6]


def test_a_stop_that_waits_for_min_epochs_is_not_the_end(tmp_path: Path) -> None:
    last: list[bool] = []

    class Stops(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            trainer.should_stop = True
            last.append(Training(trainer, module).stops_after(trainer.current_epoch + 1))

    fit(tmp_path, Stops(), min_epochs=3, max_epochs=5)
    assert last == [False, False, True]


def test_resuming_with_work_pending(tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """The process dies while epoch 1 is being solved: the checkpoint of epoch 1 takes it again."""
    kept = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)

    class Dies(BaseException):
        pass

    def die() -> None:
        monitors[0].recorder.close()  # type: ignore[union-attr]  # what is being solved does not reach the disk
        raise Dies

    monitors = [monitor(store=tmp_path / "ssc")]
    shut = At(0, lambda: gate.shut(monitors[0].recorder), batch=2)
    with pytest.raises(Dies):
        fit(tmp_path, shut, At(1, die), *monitors, kept, max_epochs=3)
    gate.open.set()
    state = torch.load(tmp_path / "kept" / "epoch=0.ckpt", weights_only=True)["callbacks"][monitors[0].state_key]
    assert (state["steps"], state["pending"]) == ([0, 3], 3)
    assert monitors[0].store.epochs == [0]  # type: ignore[union-attr]
    resumed = monitor(store=tmp_path / "ssc")
    again = ModelCheckpoint(tmp_path / "kept")
    fit(tmp_path, resumed, again, max_epochs=3, resume=tmp_path / "kept" / "epoch=0.ckpt")
    assert "The snapshot of step 3 was still being solved when the run ended. It is taken again" in caplog.text
    assert "are gone" not in caplog.text
    assert resumed.store.steps == [0, 3, 6, 9]  # type: ignore[union-attr]
    straight = monitor(store=tmp_path / "straight")
    fit(tmp_path, straight, max_epochs=1)
    one, other = (of.store.load_layer(1, "model.4").coef.to_dense() for of in (resumed, straight))  # type: ignore[union-attr]
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["early stopping", "checkpoint", "scheduler"])
def test_training_is_not_steered_by_what_comes_late(tmp_path: Path, how: str) -> None:
    class Scheduled(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return [optimizer], [{"scheduler": plateau, "monitor": tag}]

    tag = "ssc/modularity/model.0"
    steering: dict[str, Any] = {
        "early stopping": [EarlyStopping(tag)],
        "checkpoint": [ModelCheckpoint(tmp_path, monitor=tag)],
        "scheduler": [],
    }
    run = trainer(tmp_path, monitor(), *steering[how], enable_checkpointing=how == "checkpoint")
    with pytest.raises(Exception, match=r"'ssc/modularity/model\.0' steers the training, and background=True"):
        run.fit(Scheduled() if how == "scheduler" else Classifier())


def test_advice_names_the_layer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning raised in a thread would change the filters of all others, so the solver's is collected and logged."""
    with caplog.at_level(logging.WARNING, "lightning_ssc"):
        fit(tmp_path, monitor(tau=1.0, layers=["model.0"]), max_epochs=1)
    assert "Layer 'model.0': tau = 1 is too small for any edge" in caplog.text


def gram(number: float = 0.0, n: int = 8) -> CentredGram:
    return CentredGram(torch.eye(n), torch.zeros(n, dtype=torch.float64), number)


def bring(worker: Background, solve: Any, count: int, futures: list[Any]) -> Thread:
    """Hand Grams over beside the test, which a worker without room would hold up for ever."""

    def submit() -> None:
        for number in range(count):
            futures.append(worker.submit(solve, gram(number)))  # noqa: PERF401  # each is seen when it is there

    bringer = Thread(target=submit, daemon=True)
    bringer.start()
    return bringer


def test_grams_wait_within_a_limit() -> None:
    size, opened, order, futures = gram().centred.nbytes, Event(), [], []

    def solve(of: CentredGram) -> Any:
        assert opened.wait(30)
        order.append(of.gain)
        return of.gain

    worker = Background(limit=2 * size + 1)
    bringer = bring(worker, solve, 4, futures)
    bringer.join(0.3)
    assert bringer.is_alive()
    assert len(futures) == 2  # the third has no room
    opened.set()
    bringer.join(30)
    assert [future.result(30) for future in futures] == order == [0, 1, 2, 3]
    opened.clear()
    again = bring(worker, solve, 2, futures)
    again.join(30)
    assert not again.is_alive()  # there is as much room as before, though neither is solved
    opened.set()
    assert [future.result(30) for future in futures[4:]] == [0, 1]
    worker.close()


def test_a_gram_larger_than_the_limit_is_taken_alone() -> None:
    worker = Background(limit=1)
    assert [worker.submit(lambda of: of.gain, gram(k)).result(30) for k in (1, 2)] == [1, 2]
    worker.close()


def test_room_is_given_back_where_a_gram_cannot_be_handed_over() -> None:
    errors: list[str] = []

    def submit_twice() -> None:
        for _ in range(2):  # the second would wait for ever for the room of the first
            try:
                worker.submit(lambda of: None, gram())  # type: ignore[arg-type, return-value]
            except RuntimeError as error:
                errors.append(str(error))

    worker = Background(limit=100)
    worker.close()
    bringer = Thread(target=submit_twice, daemon=True)
    bringer.start()
    bringer.join(30)
    assert errors == ["cannot schedule new futures after shutdown"] * 2


def test_closing_gives_up_what_has_not_begun() -> None:
    begun, opened = Event(), Event()

    def solve(of: CentredGram) -> Any:
        begun.set()
        assert opened.wait(30)

    worker = Background(limit=10**9)
    first, second = worker.submit(solve, gram()), worker.submit(solve, gram())
    assert begun.wait(30)
    worker.close()
    assert second.cancelled()
    opened.set()
    assert first.exception(30) is None


def test_the_budget_is_that_of_the_foreground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or passes would be planned otherwise, and Grams rounded otherwise; those that wait may take as much again."""
    budgets, limits = [], []
    original, worker = pipeline.capture, Background.__init__

    def capture(*args: Any, **kwargs: Any) -> Any:
        budgets.append(args[0].memory)
        return original(*args, **kwargs)

    def init(self: Background, limit: int) -> None:
        limits.append(limit)
        worker(self, limit)

    monkeypatch.setattr(pipeline, "capture", capture)
    monkeypatch.setattr(Background, "__init__", init)
    for background in (False, True):
        fit(tmp_path, monitor(memory=40_000, background=background, schedule=[1]), max_epochs=1)
    assert budgets == [40_000, 40_000]
    assert limits == [40_000]


def test_ranks_share_the_memory_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cpu": 8000, "cuda": 500}
    monkeypatch.setattr(runner_module, "free_memory", lambda device: free[device.type])
    strategy, plugin = SimpleNamespace(root_device=torch.device("cuda", 3)), SimpleNamespace(forward_context=None)
    run = SimpleNamespace(num_devices=4, strategy=strategy, precision_plugin=plugin)
    on_a_gpu = Training(run, Classifier()).runner(None, 256, None)  # type: ignore[arg-type]
    assert (on_a_gpu.budget(), on_a_gpu.budget_of_waiting()) == (250, 500)  # Grams wait on the host, not on the GPU
    strategy.root_device = torch.device("cpu")
    assert Training(run, Classifier()).runner(None, 256, None).budget() == 1000  # type: ignore[arg-type]


def test_results_are_logged_from_the_main_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, set[Any]] = {"log": set(), "solve": set()}
    original = pipeline.solve_layer

    class Logs(TensorBoardLogger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            threads["log"].add(current_thread())
            super().log_metrics(metrics, step)

    def solve(*args: Any) -> Any:
        threads["solve"].add(current_thread())
        return original(*args)

    monkeypatch.setattr(pipeline, "solve_layer", solve)
    fit(tmp_path, monitor(), max_epochs=1, logger=Logs(tmp_path))
    assert threads["log"] == {main_thread()}
    assert len(threads["solve"]) == 1
    assert threads["solve"] != {main_thread()}


def test_pictures_are_drawn_beside_training_and_logged_in_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[str]] = {"draw": set(), "log": set()}
    curves, log_image = writers.cards.curves, writers.log_image

    def draw(table: Any, **options: Any) -> Any:
        threads["draw"].add(current_thread().name)
        return curves(table, **options)

    def write(loggers: Any, tag: str, image: Any, step: int) -> None:
        threads["log"].add(current_thread().name)
        log_image(loggers, tag, image, step)

    monkeypatch.setattr(writers.cards, "curves", draw)
    monkeypatch.setattr(writers, "log_image", write)
    watching = monitor(heatmap=True)
    recorded = {}
    for background in (False, True):
        watching = monitor(heatmap=True, background=background)
        logger = TensorBoardLogger(tmp_path / str(background))
        fit(tmp_path / str(background), watching, max_epochs=2, logger=logger)
        found = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
        recorded[background] = {
            (tag, image.step): image.encoded_image_string
            for tag in found.Tags()["images"]
            for image in found.Images(tag)
        }
        mine = current_thread().name
        if not background:
            assert threads == {"draw": {mine}, "log": {mine}}
    assert len(threads["draw"]) == 2  # the history at the end of fit is drawn here
    assert threads["log"] == {mine}
    assert recorded[True] == recorded[False]
    assert {step for tag, step in recorded[True] if tag == "ssc/curves/modularity"} == {0, 2, 5}
