"""Every stage of a Trainer, its tuners and its ways to end: what takes snapshots, and what takes none."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric import Fabric
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint, Timer
from pytorch_lightning.tuner import Tuner
from torch.utils.data import DataLoader

from lightning_ssc import Recorder, SSCMonitor, every, on_validation
from tests.callback.test_triggers import Streamed
from tests.nets import Classifier, convnet, data, optimizer, trainer


def monitor(**kwargs: Any) -> SSCMonitor:
    images = {"heatmap": False, "embedding": False, "neighbours": 0}
    return SSCMonitor(**{"layers": ["model.9"], "probe_size": 20, "schedule": 1, **images, **kwargs})


class Tuned(Classifier):
    """With what tuners set."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.05, 20

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> Any:
        return DataLoader(data(seed=1), batch_size=self.batch_size)


FINDERS = {
    "lr_find": lambda: LearningRateFinder(num_training_steps=4),
    "scale_batch_size": lambda: BatchSizeFinder(max_trials=1, steps_per_trial=1, init_val=20),
}


@pytest.mark.filterwarnings("ignore:.*lr_find", "ignore:.*scheduler", "ignore:.*log_every_n_steps")
@pytest.mark.parametrize("first", ["monitor", "tuner"])
@pytest.mark.parametrize("how", list(FINDERS))
def test_tuning_callbacks_take_no_snapshots(tmp_path: Path, how: str, first: str) -> None:
    watching, finder = monitor(), FINDERS[how]()
    pl.seed_everything(0, verbose=False)
    model, order = Tuned(), [watching, finder] if first == "monitor" else [finder, watching]
    run = trainer(tmp_path, *order, max_epochs=2)
    run.fit(model)
    batches = -(-60 // model.batch_size)
    assert watching.store is not None
    assert watching.store.steps == [0, batches, 2 * batches]
    assert [path.name for path in tmp_path.iterdir()] == ["ssc"]
    torch.testing.assert_close(watching.store.header(2).learning_rate, model.lr)


@pytest.mark.filterwarnings("ignore:.*lr_find", "ignore:.*scheduler")
def test_tuners_take_no_snapshots(tmp_path: Path) -> None:
    watching, model = monitor(), Tuned()
    run = trainer(tmp_path, watching, max_epochs=1)
    Tuner(run).lr_find(model, num_training=4)
    Tuner(run).scale_batch_size(model, max_trials=1, steps_per_trial=1, init_val=20)
    assert watching.store is None
    assert not list(tmp_path.iterdir())
    run.fit(model)
    assert watching.store.epochs == [0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_take_no_snapshots(tmp_path: Path, stage: str) -> None:
    class Stages(Classifier):
        test_step = Classifier.validation_step

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0])

        test_dataloader = predict_dataloader = Classifier.val_dataloader

    watching, model = monitor(schedule=[every(steps=1), on_validation()]), Stages()
    run = trainer(tmp_path, watching, max_epochs=1)
    getattr(run, stage)(model, **({} if stage == "predict" else {"verbose": False}))
    assert watching.store is None
    assert not list(tmp_path.iterdir())
    run.fit(model)
    steps = watching.store.steps  # type: ignore[union-attr]
    getattr(run, stage)(model, **({} if stage == "predict" else {"verbose": False}))
    assert watching.store.steps == steps == [0, 1, 2, 3]  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_bare_trainer(tmp_path: Path) -> None:
    watching = monitor()
    run = pl.Trainer(barebones=True, accelerator="cpu", max_epochs=2, callbacks=[watching], default_root_dir=tmp_path)
    run.fit(Classifier())
    assert watching.store.epochs == [0, 1, 2]  # type: ignore[union-attr]


def test_fast_dev_run_by_default(tmp_path: Path) -> None:
    watching = monitor(schedule="auto")
    run = trainer(tmp_path, watching, fast_dev_run=2)
    run.fit(Classifier())
    assert watching.store.steps == [0, 1, 2]  # type: ignore[union-attr]
    assert not list(tmp_path.iterdir())


def test_max_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends inside an epoch when its time is up, here after some looks at the clock."""
    looks = count()
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, stage=None: float(next(looks)))
    watching = monitor(schedule="auto")
    trainer(tmp_path, watching, max_epochs=-1, max_time=timedelta(seconds=5)).fit(Classifier())
    steps = watching.store.steps  # type: ignore[union-attr]
    assert steps[:2] == [0, 1]
    assert 2 < steps[-1] < 6


class Resumable:
    """A loader of three batches that knows where it is."""

    def __init__(self) -> None:
        self.at = 0

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        batches = list(DataLoader(data(seed=1), batch_size=20))
        for batch in batches[self.at :]:
            self.at = (self.at + 1) % len(batches)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class Resumed(Classifier):
    def train_dataloader(self) -> Any:
        return Resumable()


@pytest.mark.parametrize(
    ("model", "how", "epochs"),
    [
        (Resumed, {"max_epochs": 2}, [step / 3 for step in range(7)]),
        (Streamed, {"max_steps": 6, "max_epochs": -1}, None),
    ],
    ids=["a loader that can be resumed", "an endless one"],
)
def test_resuming_inside_an_epoch_by_steps(tmp_path: Path, model: Any, how: dict[str, Any], epochs: Any) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", filename="{step}", save_top_k=-1, every_n_train_steps=2)
    first = monitor(schedule=every(steps=1))
    trainer(tmp_path, first, kept, enable_checkpointing=True, **how).fit(model())
    for step in (2, 4):
        again, other = monitor(schedule=every(steps=1), store=tmp_path / f"from-{step}"), tmp_path / f"again-{step}"
        kept = ModelCheckpoint(other, filename="{step}", every_n_train_steps=2)
        with pytest.warns(UserWarning, match="The dirpath has changed"):
            trainer(tmp_path, again, kept, enable_checkpointing=True, **how).fit(
                model(), ckpt_path=tmp_path / "kept" / f"step={step}.ckpt", weights_only=True
            )
        assert again.store is not None
        assert again.store.steps == [0, 1, 2, 3, 4, 5, 6]
        moments = [again.store.header(step=s).moment for s in again.store.steps]
        assert [moment.logged for moment in moments] == [0, 0, 1, 2, 3, 4, 5]
        if epochs:
            assert [moment.epoch for moment in moments] == pytest.approx(epochs)


@pytest.mark.parametrize("background", [False, True])
def test_a_loop_of_ones_own_by_steps(background: bool) -> None:
    """A Recorder inside an epoch of a loop under Fabric, by its own steps."""
    fabric = Fabric(accelerator="cpu")
    torch.manual_seed(0)
    net = convnet()
    network, steps = fabric.setup(net, optimizer(net))
    recorder = Recorder(network, (data(30).tensors), layers=["9"], background=background)
    recorder.record(step=0)
    for step, (x, y) in enumerate(DataLoader(data(seed=1), batch_size=10), start=1):
        steps.zero_grad()
        fabric.backward(torch.nn.functional.cross_entropy(network(x), y))
        steps.step()
        if step % 2 == 0:
            recorder.record(step=step)
    recorder.finish()
    assert recorder.store.steps == [0, 2, 4, 6]
    with torch.no_grad():
        net[9].weight.mul_(0.5)
    assert recorder.record(step=6) is not None  # other weights: it takes the place
    changed = recorder.store.header(step=6)
    recorder.finish()
    assert recorder.store.steps == [0, 2, 4, 6]
    assert changed.previous == 4
