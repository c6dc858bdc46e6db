"""The last snapshot is of the network that fit leaves behind, whoever has changed it and however training ended."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn

from lightning_ssc import SSCMonitor, every, snapshot
from lightning_ssc.analysis import dynamics
from lightning_ssc.snapshots import Store
from tests.nets import Classifier, convnet, data, trainer

LAYER = "model.9"
PROBE = tuple(tensor[:20] for tensor in data(seed=2).tensors)


def monitor(**kwargs: Any) -> SSCMonitor:
    images = {"heatmap": False, "embedding": False, "neighbours": 0}
    return SSCMonitor(**{"layers": [LAYER], "probe": PROBE, "schedule": 1, "store": False, **images, **kwargs})


def fit(root: Path, *callbacks: Any, model: Any = None, **kwargs: Any) -> Classifier:
    pl.seed_everything(0, verbose=False)
    model = Classifier() if model is None else model
    trainer(root, *callbacks, **{"max_epochs": 3, **kwargs}).fit(model)
    return model


def graph(model: nn.Module) -> Tensor:
    return snapshot(model, *PROBE, layers=[LAYER]).layers[LAYER].coef.to_dense()


def stored(store: Store | None, step: int) -> Tensor:
    assert store is not None
    return store.load_layer(layer=LAYER, step=step).coef.to_dense()


def without_batch_norm() -> Classifier:
    return Classifier(nn.Sequential(*(part for part in convnet() if not isinstance(part, nn.BatchNorm2d))))


class Restores(pl.Callback):
    """A user's own averaging, or the best weights: others than training ended with."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.mul_(0.5).add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


class RestoresItself(Classifier):
    def on_train_end(self) -> None:
        Restores().on_train_end(None, self)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*is not supported by the SWALR")
@pytest.mark.parametrize("first", ["monitor", "other"])
@pytest.mark.parametrize(
    ("make", "other", "epochs"),
    [
        (Classifier, lambda: EMAWeightAveraging(decay=0.7), [0, 1, 2, 3]),
        (without_batch_norm, lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1), None),
        (Classifier, lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1), [0, 1, 2, 3, 4]),
        (Classifier, Restores, [0, 1, 2, 3]),
        (RestoresItself, pl.Callback, [0, 1, 2, 3]),
    ],
    ids=["EMA", "SWA", "SWA with batch norm", "a callback", "the module"],
)
def test_other_weights_at_the_end(tmp_path: Path, make: Any, other: Any, epochs: Any, first: str) -> None:
    layer = LAYER if make is not without_batch_norm else "model.7"
    watching, changes = monitor(layers=[layer]), other()
    order = [watching, changes] if first == "monitor" else [changes, watching]
    model = fit(tmp_path, *order, model=make())
    store = watching.store
    assert store is not None
    final = snapshot(model, *PROBE, layers=[layer]).layers[layer].coef.to_dense()
    torch.testing.assert_close(store.load(step=store.steps[-1]).layers[layer].coef.to_dense(), final)
    assert store.epochs == (epochs or [0, 1, 2, 3])
    assert store.header(step=store.steps[-1]).previous == store.steps[-2]
    assert "on_train_end" not in vars(model)
    table = dynamics(store)
    assert table.cka_to_final[-1, 0] == pytest.approx(1)
    assert model.training  # as Lightning leaves it


class Keeps(pl.Callback):
    """Keeps the training and the averaged weights of every epoch's end, as averaging callbacks hold them."""

    def __init__(self, averaging: WeightAveraging) -> None:
        self.averaging, self.trained, self.averages = averaging, {}, {}  # type: ignore[var-annotated]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.trained[trainer.global_step] = copy.deepcopy(pl_module.model)
        self.averages[trainer.global_step] = copy.deepcopy(self.averaging._average_model.module.model)  # type: ignore[union-attr]


def graph_of(network: nn.Module) -> Tensor:
    return graph(Classifier(network))


@pytest.mark.parametrize("background", [False, True])
def test_both_weights_are_two_series(tmp_path: Path, background: bool) -> None:
    averaging = EMAWeightAveraging(decay=0.7, update_starting_at_step=3)
    keeps, watching = Keeps(averaging), monitor(weights="both", background=background)
    model = fit(tmp_path, averaging, keeps, watching)
    trained, averages = watching.store, watching.store_of_average
    assert trained is not None
    assert averages is not None
    assert trained.steps == [0, 3, 6, 9]
    assert averages.steps == [6, 9]  # there is an average from the fourth step on
    for step in (3, 6, 9):
        torch.testing.assert_close(stored(trained, step), graph_of(keeps.trained[step]))
    for step in (6, 9):
        torch.testing.assert_close(stored(averages, step), graph_of(keeps.averages[step]))
    torch.testing.assert_close(stored(averages, 9), graph(model))
    plain = fit(tmp_path, EMAWeightAveraging(decay=0.7, update_starting_at_step=3))
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True))


def test_the_average_alone(tmp_path: Path) -> None:
    averaging = EMAWeightAveraging(decay=0.7)
    keeps, watching = Keeps(averaging), monitor(weights="average")
    model = fit(tmp_path, averaging, keeps, watching)
    for step in (3, 6, 9):
        torch.testing.assert_close(stored(watching.store, step), graph_of(keeps.averages[step]))
    torch.testing.assert_close(stored(watching.store, 9), graph(model))
    assert watching.store_of_average is None


def test_both_series_are_resumed(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", save_last=True)
    first = monitor(weights="both", store=True)
    fit(tmp_path, EMAWeightAveraging(decay=0.7), first, kept, max_epochs=1, enable_checkpointing=True)
    again = monitor(weights="both", store=True)
    kept = ModelCheckpoint(tmp_path / "kept", save_last=True)
    run = trainer(tmp_path, EMAWeightAveraging(decay=0.7), again, kept, max_epochs=2, enable_checkpointing=True)
    run.fit(Classifier(), ckpt_path=tmp_path / "kept" / "last.ckpt", weights_only=True)
    for one, other, name in (
        (first.store, again.store, "ssc"),
        (first.store_of_average, again.store_of_average, "ssc_average"),
    ):
        assert one.root == other.root == tmp_path / name  # type: ignore[union-attr]
    assert again.store.steps == [0, 3, 6]  # type: ignore[union-attr]
    assert again.store_of_average.steps == [3, 6]  # type: ignore[union-attr]
    tags = {tag for tag in run.callback_metrics if "modularity/" in tag}
    assert tags == {f"ssc/modularity/{LAYER}", f"ssc_average/modularity/{LAYER}"}


def test_a_resumed_run_goes_on_from_the_training_weights(tmp_path: Path) -> None:
    """The final state took the place of the last epoch's snapshot; the checkpoint of that epoch has other weights."""
    averaging = EMAWeightAveraging(decay=0.7)
    keeps, first = Keeps(averaging), monitor(store=True)
    callbacks = averaging, first, keeps, ModelCheckpoint(tmp_path / "kept", save_last=True)
    model = fit(tmp_path, *callbacks, max_epochs=1, enable_checkpointing=True)
    torch.testing.assert_close(stored(first.store, 3), graph(model))
    again = monitor(store=True)
    callbacks = EMAWeightAveraging(decay=0.7), again, ModelCheckpoint(tmp_path / "kept", save_last=True)
    run = trainer(tmp_path, *callbacks, max_epochs=2, enable_checkpointing=True)
    run.fit(Classifier(), ckpt_path=tmp_path / "kept" / "last.ckpt", weights_only=True)
    assert again.store.steps == [0, 3, 6]  # type: ignore[union-attr]
    torch.testing.assert_close(stored(again.store, 3), graph_of(keeps.trained[3]))


def test_what_does_not_go_with_averages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights must be 'training', 'average' or 'both', got 'ema'"):
        monitor(weights="ema")
    with pytest.raises(Exception, match="weights='average' needs one of Lightning's callbacks that average"):
        fit(tmp_path, monitor(weights="average"))
    with pytest.raises(Exception, match="weights='both' needs SSCMonitor behind EMAWeightAveraging"):
        fit(tmp_path, monitor(weights="both"), EMAWeightAveraging())


class Stops(pl.Callback):
    """Ends the training after some batches, in its own way."""

    def __init__(self, how: str, batches: int) -> None:
        self.how, self.batches = how, batches

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.batches -= 1
        if self.batches == 0:
            if self.how == "should_stop":
                trainer.should_stop = True
            else:
                raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["should_stop", "Ctrl-C", "early stopping"])
@pytest.mark.parametrize("background", [False, True])
def test_a_run_that_ends_early_ends_with_the_weights_that_there_are(tmp_path: Path, how: str, background: bool) -> None:
    ends: Any = Stops(how, 4)
    if how == "early stopping":
        ends = EarlyStopping("val_loss", min_delta=100.0, patience=0, check_on_train_epoch_end=False)
    watching, model = monitor(background=background, schedule=[0]), Classifier()
    if how == "Ctrl-C":
        with pytest.raises(SystemExit):
            fit(tmp_path, watching, ends, model=model)
    else:
        fit(tmp_path, watching, ends, model=model, val_check_interval=2)
    store = watching.store
    assert store is not None
    steps = 4 if how != "early stopping" else store.steps[-1]
    assert store.steps == [0, steps]
    assert store.header(step=steps).epoch == pytest.approx(steps / 3)
    torch.testing.assert_close(stored(store, steps), graph(model))


@pytest.mark.parametrize("second", [False, True])
def test_ctrl_c_leaves_the_final_snapshot_out(
    tmp_path: Path, second: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second one, while the final snapshot is taken; and one in a validation, when the weights are averaged ones."""
    watching = monitor(schedule=[0])
    stops: list[Any] = [Stops("Ctrl-C", 4)]
    if second:
        original = SSCMonitor._record

        def interrupted(self: Any, training: Any, recorder: Any, occasion: str) -> None:
            if occasion == "interrupt":
                raise KeyboardInterrupt
            original(self, training, recorder, occasion)

        monkeypatch.setattr(SSCMonitor, "_record", interrupted)
    else:

        class InValidation(pl.Callback):
            def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
                if not trainer.sanity_checking:
                    raise KeyboardInterrupt

        stops = [EMAWeightAveraging(decay=0.7), InValidation()]
    with pytest.raises(SystemExit):
        fit(tmp_path, watching, *stops)
    assert watching.store.steps == [0]  # type: ignore[union-attr]
    assert ("It is left out." in caplog.text) == second


def test_every_step_up_to_an_average(tmp_path: Path) -> None:
    watching = monitor(schedule=every(steps=1), weights="training")
    model = fit(tmp_path, watching, EMAWeightAveraging(decay=0.7), max_epochs=1)
    assert watching.store.steps == [0, 1, 2, 3]  # type: ignore[union-attr]
    torch.testing.assert_close(stored(watching.store, 3), graph(model))
