"""Runs as they go: every way in which a Trainer starts, stops and resumes, and the loggers that it may have."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    Callback,
    LambdaCallback,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
)
from torch.utils.data import DataLoader

import lightning_ssc.callback.lightning as lightning_module
from lightning_ssc import Images, SnapshotStore, SSCMonitor, snapshot, writers
from tests.nets import Classifier, convnet, data, trainer
from tests.pacing import hasty

# A ModelCheckpoint of another folder, by which nothing of the first run is overwritten.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed", "ignore:You're resuming from a checkpoint that ended before the epoch"
)


def monitor(**kwargs: Any) -> SSCMonitor:
    options = {"layers": "stages", "schedule": 1, "probe_size": 20, "heatmap": False, "embedding": False}
    return SSCMonitor(**{**options, **kwargs})


def fit(root: Path, *callbacks: Any, resume: Path | None = None, **kwargs: Any) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    kept = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    run = trainer(root, *callbacks, enable_checkpointing=kept, **kwargs)
    run.fit(Classifier(), ckpt_path=resume, weights_only=True)
    return run


def epochs(watching: SSCMonitor) -> list[float]:
    assert watching.store is not None
    return [taken.epoch for taken in watching.store]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"max_steps": 4, "max_epochs": -1}, [0, 1, 4 / 3]),  # stops in its second epoch of three steps
        ({"max_epochs": 2, "val_check_interval": 2}, [0, 1, 2]),
        ({"max_epochs": 2, "limit_val_batches": 0}, [0, 1, 2]),
        ({"max_epochs": 2, "num_sanity_val_steps": 2}, [0, 1, 2]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [0, 1, 2, 3]),
        ({"fast_dev_run": 2}, [0, 1]),
        ({"max_epochs": 1, "accumulate_grad_batches": 2}, [0, 1]),
        ({"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1}, [0, 1, 2]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_trainer_settings(tmp_path: Path, how: dict[str, Any], expected: list[float]) -> None:
    watching = monitor()
    pl.seed_everything(0, verbose=False)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, callbacks=[watching], enable_model_summary=False, **options | how
    )
    run.fit(Classifier())
    assert epochs(watching) == expected


@pytest.mark.parametrize("schedule", [[0], [0, 2]])
def test_a_final_state_within_an_epoch_says_how_much_of_it_was_done(tmp_path: Path, schedule: list[int]) -> None:
    watching = monitor(schedule=schedule)
    fit(tmp_path, watching, max_steps=4, max_epochs=-1)  # the first of three steps of the second epoch
    assert epochs(watching) == [0, 4 / 3]


def test_nothing_is_taken_in_validation_or_test(tmp_path: Path) -> None:
    watching = monitor()
    run = trainer(tmp_path, watching)
    run.validate(Classifier(), verbose=False)
    assert watching.store is None
    assert not list(tmp_path.iterdir())


def test_several_fits_with_one_callback(tmp_path: Path) -> None:
    watching = monitor()
    first = fit(tmp_path / "a", watching, max_epochs=1)
    assert epochs(watching) == [0, 1]
    fit(tmp_path / "b", watching, max_epochs=2)
    assert epochs(watching) == [0, 1, 2]
    assert SnapshotStore(tmp_path / "a" / "ssc").epochs == [0, 1]
    first.fit_loop.max_epochs = 3  # the same Trainer goes on: its own callback starts a folder of its own
    first.fit(first.lightning_module)
    assert watching.store is not None
    assert (watching.store.root.name, epochs(watching)) == ("ssc-1", [2, 3])


@pytest.mark.parametrize(
    "when",
    [
        {"every_n_train_steps": 2},  # in the middle of an epoch
        {"every_n_epochs": 1, "save_on_train_epoch_end": False},  # before the snapshot of its epoch
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},  # after it
    ],
    ids=["mid epoch", "before the snapshot", "after the snapshot"],
)
def test_resuming_from_any_checkpoint(tmp_path: Path, when: dict[str, Any]) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", filename="{step}", save_top_k=-1, **when)
    fit(tmp_path, monitor(), kept, max_epochs=3, check_val_every_n_epoch=1)
    checkpoints = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints:
        resumed = monitor(store=tmp_path / f"after-{checkpoint.stem}")
        again = ModelCheckpoint(tmp_path / "again", **when)
        fit(tmp_path, resumed, again, max_epochs=4, resume=checkpoint)
        assert epochs(resumed) == [0, 1, 2, 3, 4], checkpoint.stem
        rates = {taken.epoch: taken.learning_rate for taken in resumed.store}  # type: ignore[union-attr]
        assert rates == {0: None, 1: 0.05, 2: 0.05, 3: 0.05, 4: 0.05}


def test_resuming_in_the_same_folder_doubles_nothing(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)
    fit(tmp_path, monitor(store=tmp_path / "ssc"), kept, max_epochs=3)
    resumed = monitor(store=tmp_path / "ssc")
    again = ModelCheckpoint(tmp_path / "again")
    fit(tmp_path, resumed, again, max_epochs=4, resume=tmp_path / "kept" / "epoch=0.ckpt")
    assert epochs(resumed) == [0, 1, 2, 3, 4]
    aside = (tmp_path / "ssc" / "superseded").iterdir()  # what the first run had gone on to after the checkpoint
    assert sorted(path.name for path in aside) == ["step_000000006.npz", "step_000000009.npz"]


def test_resuming_without_the_old_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", save_last=True)
    fit(tmp_path, monitor(), kept, max_epochs=1)
    for path in (tmp_path / "ssc").iterdir():
        path.unlink()
    resumed = monitor()
    again = ModelCheckpoint(tmp_path / "again")
    fit(tmp_path, resumed, again, max_epochs=2, resume=tmp_path / "kept" / "last.ckpt")
    assert epochs(resumed) == [1, 2]  # the checkpoint is of epoch 1, which can be taken again
    assert "The snapshots of steps [0, 3] are gone from" in caplog.text


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_damaged_snapshot_is_named_and_the_others_are_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, on_error: Any
) -> None:
    class Damages(Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                (tmp_path / "ssc" / "step_000000003.npz").write_bytes(b"noise")

    written: list[Any] = []
    watching = monitor(on_error=on_error, store=tmp_path / "ssc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writers, "log_history", lambda loggers, table, root: written.append(table))
        try:
            fit(tmp_path, Damages(), watching, max_epochs=3)
            assert on_error == "warn"
            assert "step_000000003.npz is not a readable snapshot" in caplog.text
        except Exception as error:
            assert on_error == "raise"
            assert "step_000000003.npz is not a readable snapshot" in str(error)  # noqa: PT017
    assert written[0].epochs.tolist() == [0, 2, 3]


def test_a_removed_folder_does_not_stop_the_run(tmp_path: Path) -> None:
    class Removes(Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                for path in (tmp_path / "ssc").iterdir():
                    path.unlink()
                (tmp_path / "ssc").rmdir()

    watching = monitor(store=tmp_path / "ssc", on_error="warn")
    assert fit(tmp_path, Removes(), watching, max_epochs=3).current_epoch == 3
    assert epochs(watching) == [2, 3]


def test_a_failing_logger_costs_no_snapshot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(pl.loggers.CSVLogger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            if any(tag.startswith("ssc/") for tag in metrics):
                raise ConnectionError("the logging server is gone")

    watching = monitor(on_error="warn")
    fit(tmp_path, watching, max_epochs=2, logger=Broken(tmp_path))
    assert epochs(watching) == [0, 1, 2]
    assert "the logging server is gone" in caplog.text


def test_both_import_names(tmp_path: Path) -> None:
    other = pytest.importorskip("lightning.pytorch", reason="the package lightning is not installed")

    class Module(other.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = convnet()

        forward = Classifier.forward
        training_step = Classifier.training_step
        configure_optimizers = Classifier.configure_optimizers
        train_dataloader = Classifier.train_dataloader

    assert isinstance(SSCMonitor(), (other.Callback))
    assert isinstance(SSCMonitor(), pl.Callback)
    watching = monitor(probe=data(30))
    run = other.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=watching,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    run.fit(Module())
    assert epochs(watching) == [0, 1]
    assert "ssc/modularity/model.0" in run.callback_metrics


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = pl.loggers.WandbLogger(save_dir=tmp_path, offline=True)
    fit(tmp_path, monitor(heatmap=True), max_epochs=1, logger=logger)
    tags = set(dict(logger.experiment.summary))
    logger.experiment.finish()
    assert {"ssc/modularity/model.0", "ssc/cka_to_final/model.0", "ssc/pairwise_cka"} <= tags
    assert list(tmp_path.rglob("*.wandb"))
    assert len(list(tmp_path.rglob("media/images/ssc/pairwise_cka*.png"))) == 2


def test_mlflow_on_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = pl.loggers.MLFlowLogger(save_dir=str(tmp_path / "runs"))
    fit(tmp_path, monitor(heatmap=True), max_epochs=1, logger=logger)
    client = mlflow.MlflowClient(f"file:{tmp_path / 'runs'}")
    history = client.get_metric_history(logger.run_id, "ssc/cka_to_final/model.0")
    assert [point.step for point in history] == [0, 2]
    assert 0 < history[0].value < 0.9999 < history[1].value <= 1 + 1e-6  # the last is the final one
    assert list((tmp_path / "runs").rglob("*ssc*pairwise_cka*"))


def test_a_plain_loop(tmp_path: Path) -> None:
    """Without a Trainer: snapshots of a network between steps of one's own, to a store and to a logger."""
    x, y = data(60).tensors
    net, store = convnet(), SnapshotStore(tmp_path / "store")
    logger = pl.loggers.CSVLogger(tmp_path)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for epoch in range(3):
        taken = snapshot(net, x, y, layers="conv", epoch=epoch, step=10 * epoch)
        store.save(taken)
        writers.log_snapshot([logger], taken, writers.scalars_of(taken), Images())
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    logger.save()
    rows = list(csv.DictReader(next(tmp_path.rglob("metrics.csv")).read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "10", "20"]
    assert all(row["ssc/modularity/0"] for row in rows)
    assert store.epochs == [0, 1, 2]


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_a_bar_for_snapshots_that_take_long(tmp_path: Path, bar: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars only where it believes in a terminal
    with monkeypatch.context() as patch:
        patch.setattr(lightning_module, "time", hasty())
        pl.seed_everything(0, verbose=False)
        shows = bar()
        run = trainer(tmp_path, monitor(layers="**"), shows, max_epochs=1, enable_progress_bar=True)
        places = []
        spy = LambdaCallback(on_train_batch_end=lambda *args: places.append(getattr(shows, "train_progress_bar", None)))
        run.callbacks.append(spy)
        run.fit(Classifier())
    out = capsys.readouterr()
    assert "SSC epoch 1" in out.out + out.err
    if bar is RichProgressBar:  # Lightning finds its own bar by place, so that ours must not have moved it
        assert all(place.description.startswith("Epoch 0") for place in places)
    quick = trainer(tmp_path, monitor(layers="**"), bar(), max_epochs=1, enable_progress_bar=True)
    quick.fit(Classifier())
    out = capsys.readouterr()
    assert "SSC epoch" not in out.out + out.err


def test_a_bar_of_the_user_s_own_gets_none(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Lightning's base class does not say whether it is shown."""

    class Own(ProgressBar):
        def disable(self) -> None: ...

    monkeypatch.setattr(lightning_module, "time", hasty())
    watching = monitor(layers="**")
    trainer(tmp_path, watching, Own(), max_epochs=1, enable_progress_bar=True).fit(Classifier())
    assert epochs(watching) == [0, 1]
    assert "SSC epoch" not in "".join(capsys.readouterr())


def test_one_line_a_snapshot_on_request(tmp_path: Path, capsys: Any) -> None:
    fit(tmp_path, monitor(verbose=True), max_epochs=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SSC epoch")]
    assert len(lines) == 2
    assert "SSC epoch 1: 3 layers, modularity" in lines[1]


def test_states_in_checkpoints_are_plain(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", save_last=True)
    watching = monitor()
    fit(tmp_path, watching, kept, max_epochs=1)
    state = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["callbacks"][watching.state_key]
    assert json.loads(json.dumps(state)) == state
    assert state["steps"] == [0, 3]


def test_sharded_strategies_are_refused(tmp_path: Path) -> None:
    class Sharded(pl.strategies.SingleDeviceStrategy):
        restore_checkpoint_after_setup = True

    run = trainer(tmp_path, monitor(), strategy=Sharded())
    with pytest.raises(Exception, match=r"does not support Sharded, which shards the model.*strategy='ddp'"):
        run.fit(Classifier())


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_lightnings_sharded_strategies_are_of_that_kind(name: str) -> None:
    kind = getattr(pl.strategies, name)
    assert kind.restore_checkpoint_after_setup.fget(object.__new__(kind))


@pytest.mark.parametrize("missing", ["lightning", "pytorch_lightning"])
def test_either_import_name_alone(missing: str, tmp_path: Path) -> None:
    present = "lightning.pytorch" if missing == "pytorch_lightning" else "pytorch_lightning"
    pytest.importorskip(present, reason=f"{present} is not installed")
    code = f"""
        import importlib.util, sys, warnings
        warnings.simplefilter("ignore")
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] == {missing!r} else find(name, *a)
        sys.modules[{missing!r}] = None
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        import {present} as pl
        from lightning_ssc import SSCMonitor

        class Net(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.fc = torch.nn.Linear(4, 2)
            def forward(self, x):
                return self.fc(x)
            def training_step(self, batch, i):
                return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), 0.1)

        data = TensorDataset(torch.rand(20, 4), torch.arange(20) % 2)
        watching = SSCMonitor(probe=data, layers="Linear", schedule=1, store=False)
        pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=watching, logger=False, enable_checkpointing=False,
                   enable_progress_bar=False, enable_model_summary=False).fit(Net(), DataLoader(data, 10))
        print("epochs", watching.store.epochs)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "epochs [0, 1]" in done.stdout, done.stderr[-2000:]


def test_a_fabric_loop() -> None:
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    x, y = data(30).tensors
    net = convnet()
    plain = snapshot(net, x, y, layers="conv")
    wrapped = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.1))[0]
    taken = snapshot(wrapped, x, y, layers="conv")
    assert list(taken.layers) == list(plain.layers)
    half = taken.layers["4"].coef.to_dense()
    assert not torch.equal(half, plain.layers["4"].coef.to_dense())  # run in the precision that Fabric trains in
    torch.testing.assert_close(half, plain.layers["4"].coef.to_dense(), rtol=0.2, atol=0.05)


def test_loaders_that_yield_nothing_are_named(tmp_path: Path) -> None:
    class Empty(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ValueError, match="The probe's loader yields no batch"):
        fit(tmp_path, monitor(probe=DataLoader(Empty(), batch_size=4)))
