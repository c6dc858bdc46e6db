from __future__ import annotations

import logging
import pickle
import sys
import warnings
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from google.protobuf import text_format
from matplotlib.figure import Figure
from matplotlib.image import imread
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from lightning_ssc import Images, SnapshotStore, SSCMonitor, every, snapshot, writers
from lightning_ssc.analysis import dynamics, neighbours
from lightning_ssc.functional import modularity
from lightning_ssc.measures import CURVES
from lightning_ssc.snapshots import ProbeCard
from tests.nets import Classifier, data, trainer
from tests.runs import taken

LAYERS = ["model.0", "model.4", "model.9"]


def monitor(**kwargs: Any) -> SSCMonitor:
    """A small monitor without images, which take most of the time."""
    return SSCMonitor(
        **{"schedule": 1, "probe_size": 30, "heatmap": False, "embedding": False, "neighbours": 0, **kwargs}
    )


def fit(
    root: Path, *callbacks: Any, seed: int = 0, resume: str | None = None, **kwargs: Any
) -> tuple[Classifier, pl.Trainer]:
    """Train; ``resume`` names a checkpoint in ``root / "kept"``, where :func:`checkpoints` puts them."""
    pl.seed_everything(seed, verbose=False)
    model = Classifier()
    run = trainer(
        root, *callbacks, enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks), **kwargs
    )
    run.fit(model, ckpt_path=None if resume is None else root / "kept" / resume, weights_only=True)
    return model, run


def checkpoints(root: Path, **kwargs: Any) -> ModelCheckpoint:
    return ModelCheckpoint(root / "kept", **{"save_last": True, "save_top_k": -1, **kwargs})


def events(root: Path) -> EventAccumulator:
    (folder,) = {path.parent for path in root.rglob("events.out.tfevents*")}
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return found.Reload()


def scalars(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SSCMonitor, pl.Trainer]:
    """Three epochs under a monitor with everything on, with a reference from a run of another seed."""
    root = tmp_path_factory.mktemp("run")
    fit(root / "reference", monitor(), max_epochs=1)
    images = {"heatmap": True, "embedding": True, "neighbours": 2, "projector": True}
    watching = monitor(reference=root / "reference" / "ssc", **images)
    _, finished = fit(root / "main", watching, max_epochs=3, logger=TensorBoardLogger(root / "main"), seed=1)
    return root / "main", watching, finished


def test_every_tag_family_is_in_the_event_file(run: tuple[Path, SSCMonitor, pl.Trainer]) -> None:
    found = events(run[0])
    families = {
        "ssc": ["modularity", "cka_to_final", "cka_to_previous", "cka_to_reference", "gap", "nnz_per_input"],
        "linear_cka": ["cka_to_final", "cka_to_previous"],
    }
    tags = set(found.Tags()["scalars"])
    for category, members in families.items():
        for family in members:
            assert {f"{category}/{family}/{layer}" for layer in LAYERS} <= tags, family
    assert {f"ssc/seconds/{stage}" for stage in ("forward", "gram", "solve", "log", "total")} <= tags
    images = set(found.Tags()["images"])
    assert {"ssc/pairwise_cka", "linear_cka/pairwise_cka", *(f"ssc/embedding/{layer}" for layer in LAYERS)} <= images
    assert {tag for tag in images if "neighbours" in tag} == {"ssc/neighbours/model.4"}  # the last hidden layer
    assert {f"ssc/curves/{f}" for f in ("modularity", "cka_to_final", "linear_cka_to_final")} <= images
    assert len(found.Images("ssc/pairwise_cka")) == 4  # the untrained network and three epochs


def test_one_chart_a_family(run: tuple[Path, SSCMonitor, pl.Trainer]) -> None:
    found = events(run[0])
    (event,) = found.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {f"{c.title}/{chart.title}": chart.multiline.tag for c in layout.category for chart in c.chart}
    assert list(charts["ssc/modularity"]) == ["ssc/modularity/.*"]
    assert set(charts) == {record.tag for record in CURVES}


def test_steps_are_those_of_lightnings_epoch_metrics(run: tuple[Path, SSCMonitor, pl.Trainer]) -> None:
    found = events(run[0])
    epochs = [step for step, _ in scalars(found, "val_loss")]
    assert epochs == [2, 5, 8]
    assert [image.step for image in found.Images("ssc/neighbours/model.4")] == [0, *epochs]
    for tag in ("ssc/modularity/model.0", "ssc/cka_to_final/model.0", "linear_cka/cka_to_final/model.0"):
        assert [step for step, _ in scalars(found, tag)] == [0, *epochs], tag
    assert [step for step, _ in scalars(found, "ssc/cka_to_previous/model.9")] == epochs
    assert [image.step for image in found.Images("ssc/pairwise_cka")] == [0, *epochs]
    # Curves grow with every snapshot; at the end they are drawn once more, with those to the final state.
    assert [image.step for image in found.Images("ssc/curves/modularity")] == [0, *epochs, epochs[-1]]
    assert [image.step for image in found.Images("ssc/curves/cka_to_final")] == [epochs[-1]]


def test_neighbours_are_of_the_same_inputs_in_every_snapshot(
    run: tuple[Path, SSCMonitor, pl.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, drawn = run[1].store, []
    assert store is not None
    monkeypatch.setattr(writers.plots, "neighbours", lambda *given, **_: drawn.append(given) or Figure())
    card, ignore = store.load_card(), lambda *_, **__: None
    logger = SimpleNamespace(log_metrics=ignore, log_image=ignore, experiment=None)
    for one in store:
        writers.log_snapshot([logger], one, {}, Images(False, False, 3), card)
    assert [given[0] for given in drawn] == [[0, 1, 2]] * 4  # one of each class
    assert drawn[0][1].tolist() != drawn[3][1].tolist()
    assert np.array_equal(drawn[3][1], neighbours(store.load_layer(3, "model.4"))[0])
    assert np.array_equal(drawn[0][2], card.images)  # type: ignore[union-attr]


def test_the_projector_gets_points_classes_and_pictures(run: tuple[Path, SSCMonitor, pl.Trainer]) -> None:
    root, watching, _ = run
    store = watching.store
    assert store is not None
    final, card = store.load(3), store.load_card()
    assert card is not None
    (path,) = root.rglob("projector_config.pbtxt")
    config = text_format.Parse(path.read_text(), ProjectorConfig())
    assert [e.tensor_name for e in config.embeddings] == [f"ssc/{layer}:00008" for layer in LAYERS]
    for entry, layer in zip(config.embeddings, LAYERS, strict=True):
        points = np.loadtxt(path.parent / entry.tensor_path, delimiter="\t")
        affinity = final.layers[layer].affinity.double().to_dense().numpy()
        values = np.linalg.eigvalsh(affinity)[::-1][: points.shape[1]].clip(min=0)
        assert points.shape == (30, 16)
        assert np.allclose((points**2).sum(0), values, atol=1e-4)  # eigenvectors by the roots of their eigenvalues
        assert np.allclose(affinity @ points, points * values, atol=1e-3)
        header, *rows = [line.split("\t") for line in (path.parent / entry.metadata_path).read_text().splitlines()]
        assert header == ["input", "class", "network"]
        expected = zip(final.labels.tolist(), final.predictions.tolist(), strict=True)  # type: ignore[union-attr]
        assert rows == [[str(i), f"class {y}", f"class {p}"] for i, (y, p) in enumerate(expected)]
        sheet = (imread(path.parent / entry.sprite.image_path) * 255).round().astype(int)
        width, height = entry.sprite.single_image_dim
        assert (width, height, sheet.shape) == (8, 8, (48, 48, 3))
        for i in (0, 7, 29):
            row, column = divmod(i, 6)
            tile = sheet[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert abs(tile - card.images[i]).max() <= 1  # type: ignore[index]


def test_the_projector_takes_oblong_pictures_and_names_with_tabs(tmp_path: Path) -> None:
    coef = np.zeros((5, 5))
    coef[[0, 1, 2], [1, 2, 0]] = 1  # inputs 3 and 4 are isolated
    final = taken({"a/b": coef, "empty": np.zeros((5, 5))}, [0, 1, 0, 1, 0])
    pictures = np.full((5, 20, 40, 3), 60, dtype=np.uint8)
    with SummaryWriter(tmp_path) as experiment:
        writers.log_projector(
            [SimpleNamespace(experiment=experiment), SimpleNamespace()],
            final,
            ProbeCard("", pictures, ("cat\tdog", "b")),
        )
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (entry,) = config.embeddings  # an empty graph has no points
    assert np.loadtxt(tmp_path / entry.tensor_path, delimiter="\t")[3:].tolist() == [[0, 0, 0]] * 2
    assert (tmp_path / entry.metadata_path).read_text().splitlines()[:2] == ["input\tclass", "0\tcat dog"]
    sheet = imread(tmp_path / entry.sprite.image_path)
    assert sheet.shape == (96, 96, 3)
    assert sheet[:16, :32] == pytest.approx(60 / 255, abs=0.01)
    assert sheet[17:32, :32] == pytest.approx(1.0)


def test_the_learning_rate_is_that_of_the_finished_epoch(tmp_path: Path) -> None:
    class Scheduled(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.2)]

    watching = monitor(schedule=[0, 1, 2], layers="stages")
    trainer(tmp_path, watching, max_epochs=3).fit(Scheduled())
    store = watching.store
    assert store is not None
    assert store.epochs == [0, 1, 2, 3]  # by the time of the last the scheduler has moved on
    assert [store.header(epoch).learning_rate for epoch in store.epochs] == [
        None,
        *map(pytest.approx, (0.05, 0.01, 0.01)),
    ]
    assert dynamics(store).drops().tolist() == [[1, 2]]


def test_values_are_those_of_the_graphs(run: tuple[Path, SSCMonitor, pl.Trainer]) -> None:
    root, watching, finished = run
    found, store = events(root), SnapshotStore(next(root.rglob("ssc")))
    assert store.epochs == [0, 1, 2, 3]
    assert store.root == watching.store.root  # type: ignore[union-attr]
    table = dynamics(store)
    for i, layer in enumerate(LAYERS):
        for tag, column in (
            (f"ssc/modularity/{layer}", table.modularity),
            (f"ssc/cka_to_final/{layer}", table.cka_to_final),
            (f"linear_cka/cka_to_final/{layer}", table.linear_cka_to_final),
        ):
            assert [value for _, value in scalars(found, tag)] == pytest.approx(column[:, i], abs=1e-6)
        assert scalars(found, f"ssc/cka_to_final/{layer}")[-1][1] == pytest.approx(1)
        final = store.load(3)
        assert float(finished.callback_metrics[f"ssc/modularity/{layer}"]) == pytest.approx(
            modularity(final.layers[layer].affinity, final.labels),
            abs=1e-6,  # type: ignore[arg-type]
        )
        assert max(value for _, value in scalars(found, f"ssc/gap/{layer}")) <= 1e-5
    assert np.allclose(table.cka_to_previous[1:, 1], [v for _, v in scalars(found, "ssc/cka_to_previous/model.4")])


def test_the_graphs_are_those_of_the_network(run: tuple[Path, SSCMonitor, pl.Trainer]) -> None:
    _, watching, finished = run
    stored = watching.store.load(3)  # type: ignore[union-attr]
    chosen = data(seed=2).tensors[0][stored.indices]
    again = snapshot(finished.lightning_module, chosen, stored.labels, layers=LAYERS)
    for layer in LAYERS:
        one, other = again.layers[layer].coef.to_dense(), stored.layers[layer].coef.to_dense()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    finished.lightning_module.eval()
    with torch.no_grad():
        logits = finished.lightning_module(chosen)
    assert torch.equal(stored.predictions, logits.argmax(1))  # type: ignore[arg-type]
    torch.testing.assert_close(stored.confidence, logits.softmax(1).amax(1))


def test_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    plain, one = fit(tmp_path / "a", max_epochs=3)
    watched, other = fit(
        tmp_path / "b",
        monitor(layers="**", heatmap=True, embedding=True),
        max_epochs=3,
        logger=TensorBoardLogger(tmp_path / "b"),
    )
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    momentum = [[s["momentum_buffer"] for s in t.optimizers[0].state.values()] for t in (one, other)]
    assert all(torch.equal(a, b) for a, b in zip(*momentum, strict=True))
    assert torch.equal(one.callback_metrics["val_loss"], other.callback_metrics["val_loss"])


def test_the_schedule_and_the_final_state(tmp_path: Path) -> None:
    for schedule, expected in (([1, 3], [1, 3, 4]), (2, [0, 2, 4]), ([0], [0, 4]), (lambda e: e == 2, [2, 4])):
        watching = monitor(schedule=schedule, layers="stages", store=tmp_path / str(expected))
        fit(tmp_path, watching, max_epochs=4)
        assert watching.store.epochs == expected  # type: ignore[union-attr]


def test_a_monitored_layer_steers_other_callbacks(tmp_path: Path) -> None:
    tag = "ssc/modularity/model.4"
    keep = ModelCheckpoint(tmp_path / "kept", monitor=tag, mode="max", save_top_k=1)
    stop = EarlyStopping(monitor=tag, mode="max", patience=1, min_delta=10.0)
    _, finished = fit(tmp_path, monitor(), keep, stop, max_epochs=9)
    assert finished.current_epoch == 2
    assert keep.best_model_score is not None
    assert 0 < float(keep.best_model_score) <= 1


def test_probes_in_order_of_preference(tmp_path: Path) -> None:
    class Module(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(data(seed=1), batch_size=20)

        def val_dataloader(self) -> Any:
            return [DataLoader(data(seed=2), batch_size=20)]

    class WithProbe(Module):
        def probe_dataloader(self) -> Any:
            return DataLoader(data(seed=3), batch_size=20, shuffle=True)

    def probed(probe: Any, datamodule: Any, **kwargs: Any) -> int:
        watching = monitor(probe=probe, layers="model.9", probe_size=1000)
        trainer(tmp_path, watching, max_epochs=1, **kwargs).fit(Classifier(), datamodule=datamodule)
        found = watching.recorder.probe.inputs  # type: ignore[union-attr]
        return next(seed for seed in range(9) if torch.equal(found, data(seed=seed).tensors[0]))

    assert probed(data(seed=4), WithProbe()) == 4
    assert probed(DataLoader(data(seed=4), batch_size=7, shuffle=True), WithProbe()) == 4
    assert probed(data(seed=5).tensors, WithProbe()) == 5
    assert probed(None, WithProbe()) == 3
    assert probed(None, Module()) == 2
    assert probed(None, Module(), limit_val_batches=0) == 2
    assert probed(None, None) == 2


def test_without_a_probe_it_says_what_to_do(tmp_path: Path) -> None:
    class Bare(Classifier):
        val_dataloader = pl.LightningModule.val_dataloader
        validation_step = pl.LightningModule.validation_step

    with pytest.raises(Exception, match="SSCMonitor found no probe: pass probe=") as error:
        trainer(tmp_path, monitor(), max_epochs=1).fit(Bare())
    assert type(error.value).__name__ == "MisconfigurationError"


def test_an_unknown_layer_fails_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No layer matches 'model\.44'\. Nearest names: .*model\.4"):
        fit(tmp_path, monitor(layers=["model.44"]))


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
        seed_everything: 1
        trainer:
          accelerator: cpu
          max_epochs: 1
          logger: false
          enable_checkpointing: false
          enable_progress_bar: false
          enable_model_summary: false
          default_root_dir: {tmp_path}
          callbacks:
            - class_path: lightning_ssc.SSCMonitor
              init_args: {{layers: [Conv2d, model.9], probe_size: 30, schedule: [0, 1], tau: 5, solver: admm, tol: 0.1}}
        """
    )
    monkeypatch.setattr(sys, "argv", ["run", "fit", "--config", str(config)])
    cli = LightningCLI(Classifier, save_config_callback=None)
    (watching,) = (c for c in cli.trainer.callbacks if isinstance(c, SSCMonitor))
    store = watching.store
    assert store is not None
    assert store.epochs == [0, 1]
    header = store.header(1)
    assert header.layers == LAYERS
    assert (header.settings["tau"], header.settings["solver"]) == (5.0, "admm")


def test_two_runs_in_one_folder_are_kept_apart(tmp_path: Path) -> None:
    first, second = monitor(layers="model.9"), monitor(layers="model.9")
    fit(tmp_path, first, max_epochs=1)
    fit(tmp_path, second, max_epochs=2)
    assert (first.store.root.name, second.store.root.name) == ("ssc", "ssc-1")  # type: ignore[union-attr]
    assert (first.store.epochs, second.store.epochs) == ([0, 1], [0, 1, 2])  # type: ignore[union-attr]
    with pytest.raises(Exception, match=r"already holds the snapshots of another run \(steps \[0, 3\]\)"):
        fit(tmp_path, monitor(store=tmp_path / "ssc"))


@pytest.mark.parametrize("how", [{"fast_dev_run": True}, {}])
def test_runs_that_write_no_files(tmp_path: Path, how: dict[str, Any]) -> None:
    watching = monitor(store=False, layers="model.9")
    fit(tmp_path, watching, max_epochs=1, **how)
    assert watching.store is not None
    assert watching.store.epochs == [0, 1]
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("loggers", [[], [CSVLogger], [TensorBoardLogger, CSVLogger]])
def test_loggers_as_they_are(tmp_path: Path, loggers: list[Any]) -> None:
    fit(tmp_path, monitor(), logger=[make(tmp_path, name=make.__name__) for make in loggers])
    tables = list(tmp_path.rglob("metrics.csv"))
    assert len(tables) == (CSVLogger in loggers)
    for table in tables:
        text = table.read_text()
        assert all(tag in text for tag in ("ssc/modularity/model.0", "ssc/cka_to_final/model.9"))
    assert len(list(tmp_path.rglob("events.out*"))) == (TensorBoardLogger in loggers)


def test_resuming_continues_the_history(tmp_path: Path) -> None:
    whole = monitor(store=tmp_path / "whole")
    fit(tmp_path, whole, max_epochs=4)

    fit(tmp_path, monitor(store=tmp_path / "first"), checkpoints(tmp_path), max_epochs=2)
    resumed = monitor(store=tmp_path / "second")
    fit(tmp_path, resumed, checkpoints(tmp_path), max_epochs=4, seed=7, resume="last.ckpt")
    store = resumed.store
    assert store is not None
    assert store.root == tmp_path / "second"
    assert store.epochs == [0, 1, 2, 3, 4]
    assert store.steps == [0, 3, 6, 9, 12]
    assert [store.header(epoch).moment.logged for epoch in store.epochs] == [0, 2, 5, 8, 11]
    for epoch in (0, 1, 2):
        one, other = store.load(epoch), whole.store.load(epoch)  # type: ignore[union-attr]
        assert torch.equal(one.layers["model.4"].coef.to_dense(), other.layers["model.4"].coef.to_dense())
    assert dynamics(store).cka_to_final.shape == (5, 3)


def test_resuming_with_another_probe_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, monitor(), checkpoints(tmp_path), max_epochs=1)
    with pytest.raises(Exception, match="The probe differs from the one of the snapshots in"):
        fit(tmp_path, monitor(probe_size=31), checkpoints(tmp_path), max_epochs=2, resume="last.ckpt")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_keeps_its_curves(tmp_path: Path, error: type[BaseException]) -> None:
    class Stops(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.current_epoch == 2:
                raise error

    with pytest.raises((SystemExit, RuntimeError)):
        fit(tmp_path, monitor(), Stops(), max_epochs=5, logger=TensorBoardLogger(tmp_path))
    assert [step for step, _ in scalars(events(tmp_path), "ssc/cka_to_final/model.9")] == [0, 2, 5]


def test_errors_are_raised_or_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                module.model[4].weight.data.fill_(float("nan"))

    with pytest.raises(ValueError, match=r"Layer 'model\.4' puts out NaN or infinity"):
        fit(tmp_path / "raise", Breaks(), monitor(), max_epochs=3)
    watching = monitor(on_error="warn")
    with caplog.at_level(logging.WARNING, "lightning_ssc"):
        fit(tmp_path / "warn", Breaks(), watching, max_epochs=3)
    assert "Layer 'model.4' puts out NaN or infinity" in caplog.text
    assert watching.store.epochs == [0, 1]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'warn', got 'ignore'"):
        monitor(on_error="ignore")


def test_a_full_disk_is_reported_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SnapshotStore.save

    def save(self: SnapshotStore, taken: Any) -> None:
        if taken.epoch == 1:
            raise OSError(28, f"No space left on device: '{self.path(1)}'")
        original(self, taken)

    monkeypatch.setattr(SnapshotStore, "save", save)
    watching = monitor(on_error="warn", layers="stages")
    with caplog.at_level(logging.WARNING, "lightning_ssc"):
        _, finished = fit(tmp_path, watching, max_epochs=2, logger=TensorBoardLogger(tmp_path))
    assert "No space left on device" in caplog.text
    assert finished.current_epoch == 2
    assert [step for step, _ in scalars(events(tmp_path), "ssc/cka_to_final/model.0")] == [0, 5]  # of what was stored
    assert watching.store.epochs == [0, 2]  # type: ignore[union-attr]


def test_a_reference_can_be_a_checkpoint(tmp_path: Path) -> None:
    first, _ = fit(tmp_path / "a", monitor(), checkpoints(tmp_path), max_epochs=1)
    watching = monitor(reference=tmp_path / "kept" / "last.ckpt")
    plain, _ = fit(tmp_path / "b", max_epochs=1)
    model, finished = fit(tmp_path / "c", watching, max_epochs=1)
    assert torch.equal(first.model[0].weight, model.model[0].weight)  # same seed: the run ends where its target is
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True))
    for layer in LAYERS:
        assert float(finished.callback_metrics[f"ssc/cka_to_reference/{layer}"]) == pytest.approx(1, abs=1e-4)


def test_two_monitors_in_one_trainer(tmp_path: Path) -> None:
    blocks, convs = monitor(), monitor(layers="conv", name="convs", linear_cka=False)
    assert blocks.state_key != convs.state_key
    fit(tmp_path, blocks, convs, checkpoints(tmp_path), max_epochs=1, logger=TensorBoardLogger(tmp_path))
    found = events(tmp_path)
    assert {f"convs/cka_to_final/{layer}" for layer in LAYERS[:2]} <= set(found.Tags()["scalars"])
    (event,) = found.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [c.title for c in layout.category] == ["ssc", "linear_cka", "convs", "convs_linear_cka"]
    assert (blocks.store.root.name, convs.store.root.name) == ("ssc", "convs")  # type: ignore[union-attr]
    again = monitor(), monitor(layers="conv", name="convs", linear_cka=False)
    fit(tmp_path, *again, checkpoints(tmp_path), max_epochs=2, resume="last.ckpt")
    assert [m.store.epochs for m in again] == [[0, 1, 2]] * 2  # type: ignore[union-attr]
    with pytest.raises(Exception, match="state_key` must be unique"):
        fit(tmp_path, monitor(), monitor(layers="conv"))


def test_a_probe_without_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lightning_ssc"):
        _, finished = fit(tmp_path, monitor(probe=data(30).tensors[:1]))
    assert sum("no class labels" in record.message for record in caplog.records) == 1
    assert not any("modularity" in name for name in finished.callback_metrics)
    assert any("cka_to_previous" in name for name in finished.callback_metrics)


@pytest.mark.parametrize("where", ["on_train_end", "validate"])
def test_the_history_is_written_once(tmp_path: Path, where: str) -> None:
    class Breaks(pl.Callback):
        def on_train_end(self, *_: Any) -> None:
            if where == "on_train_end":
                raise RuntimeError("later")

        def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.state.fn == "validate":
                raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):  # noqa: PT012
        model, finished = fit(tmp_path, monitor(), Breaks(), max_epochs=1, logger=TensorBoardLogger(tmp_path))
        finished.validate(model)
    assert [step for step, _ in scalars(events(tmp_path), "ssc/cka_to_final/model.0")] == [0, 2]


def test_a_monitored_layer_is_known_after_a_resume(tmp_path: Path) -> None:
    tag = "ssc/modularity/model.0"
    fit(tmp_path, monitor(schedule=3), checkpoints(tmp_path, monitor=tag, mode="max"), max_epochs=1)
    again = checkpoints(tmp_path, monitor=tag, mode="max")
    fit(tmp_path, monitor(schedule=3), again, max_epochs=2, resume="last.ckpt")
    assert again.best_model_score is not None


def test_a_run_stopped_within_an_epoch_goes_on_as_lightning_does(tmp_path: Path) -> None:
    watching = monitor(store=tmp_path / "ssc")
    _, stopped = fit(tmp_path, watching, max_steps=4, max_epochs=-1)  # in the second epoch of three steps
    stopped.save_checkpoint(tmp_path / "kept" / "stopped.ckpt")
    assert watching.store.steps == [0, 3, 4]  # type: ignore[union-attr]
    resumed = monitor(store=tmp_path / "ssc")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")
        fit(tmp_path, resumed, max_epochs=3, resume="stopped.ckpt")
    store = resumed.store
    assert store is not None
    # For Lightning the second epoch ended with its first step; the snapshot says how much of it was done.
    assert {step: store.header(step=step).epoch for step in store.steps} == {0: 0, 3: 1, 4: 4 / 3, 7: 3}


def test_a_resumed_run_does_not_mix_with_another(tmp_path: Path) -> None:
    fit(tmp_path, monitor(store=tmp_path / "a"), checkpoints(tmp_path), max_epochs=1)
    fit(tmp_path, monitor(store=tmp_path / "b"), max_epochs=1, seed=5)
    with pytest.raises(Exception, match=r"b already holds the snapshots of another run \(steps \[0, 3\]\)"):
        fit(tmp_path, monitor(store=tmp_path / "b"), checkpoints(tmp_path), max_epochs=2, resume="last.ckpt")


def test_a_monitor_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(monitor(schedule=3))).schedule == (every(epochs=3),)


def test_of_very_many_layers_some_embeddings_are_drawn() -> None:
    class Logger:
        def __init__(self) -> None:
            self.experiment = SimpleNamespace(add_image=lambda tag, *_, **__: tags.append(tag))

        def log_metrics(self, *_: Any, **__: Any) -> None: ...

    tags: list[str] = []
    ring = np.roll(np.eye(12), 1, 1)
    for count, expected in ((24, 24), (104, 24)):
        tags.clear()
        made = taken({f"layer{i}": ring for i in range(count)})
        writers.log_snapshot([Logger()], made, {}, Images(heatmap=False, embedding=True))
        assert len(set(tags)) == len(tags) == expected
        assert tags[0] == "ssc/embedding/layer0"
        assert tags[-1] == f"ssc/embedding/layer{count - 1}"


def test_after_an_error_in_drawing_no_more_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Logger:
        experiment = SimpleNamespace(add_image=lambda *_, **__: 1 / 0)

        def log_metrics(self, *_: Any, **__: Any) -> None: ...

    calls: list[float] = []
    go_on, original = Event(), writers.spectral_embedding

    def slow(affinity: Any, *args: Any, **kwargs: Any) -> Any:
        layer = float(affinity.values().max())  # threads begin them in any order
        calls.append(layer)
        assert layer <= 2 or go_on.wait(60)
        return original(affinity, *args, **kwargs)

    monkeypatch.setattr(writers, "spectral_embedding", slow)
    made = taken({f"layer{i}": (i + 1) * np.roll(np.eye(12), 1, 1) for i in range(8)})
    with pytest.raises(ZeroDivisionError):
        writers.log_snapshot([Logger()], made, {}, Images(heatmap=False, embedding=True))
    go_on.set()
    assert len(calls) <= 4  # the one that was drawn, the next, and those that both threads have begun
