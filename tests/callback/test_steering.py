"""What checkpoints that go by a layer carry, and whose learning rate a snapshot keeps."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_ssc import SSCMonitor, every, on_validation
from lightning_ssc.callback.lightning import Training
from lightning_ssc.callback.triggers import Run
from tests.callback.test_triggers import Adversarial, Streamed
from tests.nets import Classifier, convnet, trainer

TAG = "ssc/modularity/model.9"


def monitor(**kwargs: Any) -> SSCMonitor:
    images = {"heatmap": False, "embedding": False, "neighbours": 0}
    return SSCMonitor(**{"layers": ["model.9"], "probe_size": 20, "schedule": 1, "store": False, **images, **kwargs})


class Notes(ModelCheckpoint):
    """Notes of every checkpoint whether the last snapshot is of the weights that it saves."""

    def __init__(self, watching: SSCMonitor, root: Path, **kwargs: Any) -> None:
        super().__init__(root, monitor=TAG, mode="max", save_top_k=-1, filename="{step}-{epoch}", **kwargs)
        self.watching, self.current = watching, []  # type: ignore[var-annotated]

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        recorder = self.watching.recorder
        assert recorder is not None
        value = recorder.scalars[TAG]
        assert float(trainer.callback_metrics[TAG]) == pytest.approx(value)
        self.current.append(recorder.steps[-1] == self.watching._agenda.step)
        super()._save_checkpoint(trainer, filepath)


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.parametrize(
    ("saves", "schedule", "how", "remedy"),
    [
        ({}, 1, {}, ""),
        ({}, "auto", {"max_epochs": 12}, ""),
        ({}, [0, 2], {"max_epochs": 3}, "every(epochs=1)"),
        ({"every_n_epochs": 2}, 2, {"max_epochs": 4}, ""),
        ({"every_n_train_steps": 2}, every(steps=2), {}, ""),
        ({"every_n_train_steps": 2}, "auto", {"max_epochs": 5}, "every(steps=2)"),
        ({"every_n_train_steps": 3}, 1, {}, "every(steps=3)"),  # saved before the epoch's end is taken
        ({"every_n_train_steps": 4}, every(steps=2), {"max_epochs": 4, "accumulate_grad_batches": 2}, ""),
        ({"every_n_train_steps": 2}, every(steps=2), {"model": Adversarial}, "every(steps=1)"),
        ({"every_n_train_steps": 2}, every(steps=2), {"model": Streamed, "max_steps": 8, "max_epochs": -1}, ""),
        ({"save_on_train_epoch_end": False}, 1, {}, "on_validation()"),
        ({"save_on_train_epoch_end": False}, on_validation(), {}, ""),
        ({"save_on_train_epoch_end": False}, every(steps=3), {}, ""),  # the state that validation sees
        ({}, [every(steps=2)], {"val_check_interval": 2, "check_val_every_n_epoch": None}, ""),
        ({}, [every(steps=3)], {"val_check_interval": 2, "check_val_every_n_epoch": None}, "on_validation()"),
        ({}, every(steps=6), {"check_val_every_n_epoch": 2, "max_epochs": 4}, ""),
        ({"train_time_interval": timedelta(0)}, every(steps=2), {}, "every_n_train_steps="),
    ],
)  # fmt: skip
def test_a_checkpoint_has_a_value_of_its_state_or_the_run_says_that_it_has_not(
    tmp_path: Path, saves: Any, schedule: Any, how: Any, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    watching, model = monitor(schedule=schedule), how.pop("model", Classifier)()
    notes = Notes(watching, tmp_path / "kept", **saves)
    pl.seed_everything(0, verbose=False)
    try:
        trainer(tmp_path, watching, notes, enable_checkpointing=True, **how).fit(model)
    except Exception as error:
        assert "could not find the monitored key" in str(error)  # noqa: PT017  # Lightning's own word for the first
    said = [record.getMessage() for record in caplog.records if "ModelCheckpoint(monitor" in record.getMessage()]
    assert len(said) == bool(remedy)
    assert all(remedy in text for text in said)
    assert notes.current or remedy
    assert all(notes.current) == (not remedy) or not notes.current


@pytest.mark.parametrize("validates_every", [None, 1, 2, 3])
@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_validations_are_foretold(accumulated: int, validates_every: int | None) -> None:
    """Against walking through all batches of the epochs and asking of each whether a validation follows."""
    for batches, between, each in product((3, 7), (1, 2, 3, 7), (1, 2)):
        if validates_every is not None and between > batches:
            continue  # which Lightning refuses
        known = SimpleNamespace(num_training_batches=batches, val_check_batch=between)
        known.check_val_every_n_epoch, known.accumulate_grad_batches = validates_every, accumulated
        run = Run(steps_an_epoch=-(-batches // accumulated))
        foretold = islice(Training(known, None)._validations(run, each), 12)
        walked, step = [], 0
        for total, (epoch, batch) in enumerate(product(range(100), range(1, batches + 1)), start=1):
            step += batch % accumulated == 0 or batch == batches
            if validates_every is None:
                follows = total % between == 0
            else:
                follows = (epoch + 1) % validates_every == 0 and batch % between == 0
            if follows and (epoch + 1) % each == 0:
                walked.append((step, epoch))
        assert [(moments[0].step, moments[0].epoch) for moments in foretold] == walked[:12]


class Parts(Classifier):
    """Two optimizers, one of two groups; the last layer is trained at a rate of its own."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        head, body = self.model[9].parameters(), [*self.model[:4].parameters()]
        groups = [{"params": body, "lr": 0.01}, {"params": head, "lr": 0.03}]
        self.model[4].requires_grad_(False)
        return [torch.optim.SGD(self.model[5].parameters(), lr=0.05), torch.optim.SGD(groups, lr=0.07)]


@pytest.mark.parametrize(
    ("layers", "rate"),
    [
        (["model.9"], 0.03),
        (["model.0"], 0.01),
        (["model.5"], 0.05),
        (["model.0", "model.9"], 0.01),
        (["model.4"], None),
    ],
)
def test_the_learning_rate_is_that_of_the_watched_layers(tmp_path: Path, layers: list[str], rate: float | None) -> None:
    watching = monitor(layers=layers)
    trainer(tmp_path, watching, max_epochs=1).fit(Parts())
    assert watching.store is not None
    assert watching.store.header(1).learning_rate == rate


def test_layers_without_parameters_go_with_a_lone_optimizer(tmp_path: Path) -> None:
    watching = monitor(layers=["model.8"])
    trainer(tmp_path, watching, max_epochs=1).fit(Classifier(convnet()))
    assert watching.store is not None
    assert watching.store.header(1).learning_rate == 0.05
