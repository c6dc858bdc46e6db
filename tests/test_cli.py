import csv
import io
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import docstring_parser
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from lightning_ssc import Settings, SnapshotStore, SSCMonitor, cli, plots, snapshot
from lightning_ssc.analysis import dynamics, inputs
from lightning_ssc.capture import make_probe
from lightning_ssc.cli import main
from lightning_ssc.replay import (
    CheckpointError,
    build_model,
    find_checkpoints,
    import_object,
    load_weights,
    progress_of,
)
from lightning_ssc.snapshots import Claim
from lightning_ssc.snapshots.codec import FORMAT
from lightning_ssc.weights import read_checkpoint
from recipes.models import cifar_resnet, vgg11
from tests.nets import Classifier, convnet, data, trainer
from tests.pacing import hasty
from tests.runs import HOSTILE, made_run

# -- What --model and --data name in these tests


class Configured(Classifier):
    """A LightningModule with a hyperparameter that decides its shape."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 3)))
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.2)]


class Data(pl.LightningDataModule):
    """A data module whose probe is not its validation data."""

    def __init__(self, size: int = 45) -> None:
        super().__init__()
        self.size = size
        self.class_names = ["cat", "dog", "bird"]

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(data(seed=1), batch_size=20, shuffle=True)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(data(seed=2), batch_size=20)

    def probe_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(data(self.size, seed=5), batch_size=20, shuffle=True)


class Late(pl.LightningModule):
    """A LightningModule that makes its layers where Lightning lets it."""

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, x: Any) -> Any:
        return self.net(x)


class Empty(pl.LightningModule):
    """No weights to fill."""


OTHER_SHAPE = (torch.rand(30, 5), torch.arange(30) % 3)
NO_FUNCTION = 7


def bare_net() -> nn.Module:
    return convnet()


MODULE = "tests.test_cli"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with the callback and a checkpoint of every epoch."""
    root = tmp_path_factory.mktemp("live")
    torch.manual_seed(0)
    monitor = SSCMonitor(layers="Linear", schedule=1, probe_size=30)
    checkpoints = ModelCheckpoint(root / "checkpoints", save_top_k=-1, every_n_epochs=1, save_last=True)
    fit = trainer(
        root,
        monitor,
        checkpoints,
        max_epochs=3,
        enable_checkpointing=True,
        logger=pl.loggers.CSVLogger(root, name="", version=0),
    )
    fit.fit(Configured(width=6), datamodule=Data())
    return root


def analyze(root: Path, out: Path, *more: str, model: str = "Configured", probe: str = "Data") -> int:
    arguments = [
        "--model",
        f"{MODULE}:{model}",
        "--data",
        f"{MODULE}:{probe}",
        "--checkpoints",
        str(root / "checkpoints"),
    ]
    return main(["analyze", *arguments, "--out", str(out), "--layers", "Linear", "--probe-size", "30", *more])


def test_a_memory_budget_for_checkpoints(live: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze(live, tmp_path / "ssc", "--memory", "1000", "--chunk", "8") != 0
    assert "A memory budget of 0.0 MB does not hold the Gram matrices of 30 samples" in capsys.readouterr().err


def test_checkpoints_give_the_numbers_that_were_logged_live(live: Path, tmp_path: Path) -> None:
    root = live
    assert analyze(root, tmp_path / "ssc") == 0
    before, after = (SnapshotStore(folder) for folder in (root / "version_0" / "ssc", tmp_path / "ssc"))
    assert after.epochs == [1, 2, 3]  # epoch 0 has no checkpoint
    assert [after.header(e).step for e in after.epochs] == [before.header(e).step for e in after.epochs]
    then, now = dynamics(before, [1, 2, 3]), dynamics(after)
    assert now.drops().tolist() == then.drops().tolist() == [[2, 3]]
    assert then.learning_rate == pytest.approx([0.05, 0.05, 0.01])
    assert now.learning_rate == pytest.approx([np.nan, 0.05, 0.01], nan_ok=True)  # a checkpoint holds the next epoch's
    assert now.layers == then.layers
    for curve in ("modularity", "cka_to_final", "cka_to_previous", "linear_cka_to_final"):
        assert not np.isnan(getattr(now, curve)[1:]).any()
        assert getattr(now, curve) == pytest.approx(getattr(then, curve), abs=1e-5, nan_ok=True)
    with (root / "version_0" / "metrics.csv").open(newline="") as file:
        logged = {
            (int(line["step"]), tag): float(value)
            for line in csv.DictReader(file)
            for tag, value in line.items()
            if value
        }
    for i, name in enumerate(now.layers):
        for tag, curve in (
            ("ssc/modularity", now.modularity),
            ("ssc/cka_to_final", now.cka_to_final),
            ("linear_cka/cka_to_final", now.linear_cka_to_final),
        ):
            live_values = [logged[step, f"{tag}/{name}"] for step in [moment.logged for moment in now.moments]]
            assert curve[:, i].tolist() == pytest.approx(live_values, abs=1e-5), (tag, name)
    assert torch.equal(after.load(3).predictions, before.load(3).predictions)  # type: ignore[arg-type]
    card, live_card = after.load_card(), before.load_card()
    assert card is not None
    assert live_card is not None
    assert (card.fingerprint, card.class_names) == (live_card.fingerprint, ("cat", "dog", "bird"))


def test_analyze_passes_on_what_it_is_told(live: Path, tmp_path: Path) -> None:
    told = ["--layers", "Linear", "ReLU", "--tau", "20", "--tol", "1e-4", "--no-normalize", "--no-linear-cka"]
    assert analyze(live, tmp_path / "a", *told, "--pooling", "mean", "--groups", "communities", "--solver", "admm") == 0
    header = SnapshotStore(tmp_path / "a").header(1)
    assert Settings(**header.settings) == Settings(20.0, False, "admm", 1e-4, None, "mean", False, "communities")
    assert header.layers == ["model.1", "model.2", "model.3"]


def test_blocks_are_analyzed_where_nothing_is_said(live: Path, tmp_path: Path) -> None:
    paths = ["--checkpoints", str(live), "--out", str(tmp_path)]
    assert main(["analyze", "--model", f"{MODULE}:Configured", "--data", f"{MODULE}:Data", *paths]) == 0
    store = SnapshotStore(tmp_path)
    names = ["model.1", "model.3"]
    assert (store.header(1).layers, len(store.load(1).layers[names[0]].gap)) == (names, 45)


def test_options_from_a_file(live: Path, tmp_path: Path) -> None:
    (tmp_path / "analyze.yaml").write_text(
        f"model: {MODULE}:Configured\nmodel_arg: {{width: 6}}\ndata: {MODULE}:Data\ncheckpoints: {live}\n"
        f"out: {tmp_path / 'ssc'}\nlayers: [ReLU]\nprobe_size: 20\ntau: 5\n"
    )
    assert main(["analyze", "--config", str(tmp_path / "analyze.yaml"), "--data-arg", "size=25", "--tau", "7"]) == 0
    store = SnapshotStore(tmp_path / "ssc")
    assert (store.header(1).layers, store.header(1).settings["tau"]) == (["model.2"], 7)
    assert len(store.load(1).layers["model.2"].gap) == 20


def test_an_interrupted_analysis_goes_on(live: Path, tmp_path: Path, capsys: Any) -> None:
    root = live
    assert analyze(root, tmp_path) == 0
    store = SnapshotStore(tmp_path)
    store.path(store.steps[1]).unlink()
    stamp = store.path(store.steps[0]).stat().st_mtime_ns
    assert analyze(root, tmp_path) == 0
    assert store.epochs == [1, 2, 3]
    assert store.path(store.steps[0]).stat().st_mtime_ns == stamp
    assert analyze(root, tmp_path, "--tau", "20") == 1
    assert "other settings" in capsys.readouterr().err
    assert analyze(root, tmp_path, "--data-arg", "size=33") == 1
    assert "another probe" in capsys.readouterr().err


def test_analyze_keeps_out_of_a_folder_that_a_run_writes_into(live: Path, tmp_path: Path, capsys: Any) -> None:
    claim = Claim(tmp_path / "ssc")
    assert analyze(live, tmp_path / "ssc") == 1
    assert f"is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert SnapshotStore(tmp_path / "ssc").steps == []
    claim.release()
    assert analyze(live, tmp_path / "ssc") == 0
    assert not (tmp_path / "ssc" / "run.lock").exists()


def test_analyze_refuses_a_folder_of_other_layers(live: Path, tmp_path: Path, capsys: Any) -> None:
    assert analyze(live, tmp_path / "ssc") == 0
    assert analyze(live, tmp_path / "ssc", "--layers", "ReLU") == 1  # though no epoch is missing
    assert "other layers (epoch 1: model.1, model.3; now model.2)" in capsys.readouterr().err


def test_arguments_go_before_saved_hyperparameters(live: Path, tmp_path: Path, capsys: Any) -> None:
    assert analyze(live, tmp_path / "same", "--model-arg", "width=6") == 0
    assert analyze(live, tmp_path / "other", "--model-arg", "width=7") == 1
    assert "size mismatch" in capsys.readouterr().err


def test_layers_made_late_are_filled(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "checkpoints").mkdir()
    net = Late()
    net.configure_model()
    torch.save({"state_dict": net.state_dict(), "epoch": 0}, tmp_path / "checkpoints" / "x.ckpt")
    assert analyze(tmp_path, tmp_path / "ssc", model="Late") == 0
    filled = build_model(Late, {"state_dict": net.state_dict()}, {})
    assert torch.equal(filled.get_parameter("net.1.weight"), net.net[1].weight)
    assert analyze(tmp_path, tmp_path / "none", model="Empty") == 1
    assert "no weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        (["--model-arg", "nosuch=1"], 2, "has no argument 'nosuch' for --model-arg, only width"),
        (["--data-arg", "nosuch=1"], 2, "has no argument 'nosuch' for --data-arg, only size"),
        (["--model", f"{MODULE}:NO_FUNCTION"], 2, "no class or function"),
        (["--device", "foo"], 2, "--device foo cannot be used"),
        (["--device", "meta"], 2, "--device meta cannot be used"),
        (["--data", f"{MODULE}:OTHER_SHAPE"], 1, "does not run on the inputs of --data"),
    ],
)
def test_ordinary_mistakes_get_a_message(
    live: Path, tmp_path: Path, capsys: Any, more: list[str], status: int, says: str
) -> None:
    assert analyze(live, tmp_path, *more) == status
    assert says in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(live: Path, tmp_path: Path, capsys: Any) -> None:
    assert analyze(live, tmp_path, "--device", "cuda") == 2
    assert "--device cuda cannot be used" in capsys.readouterr().err


WHOLE: dict[str, Any] = {"state_dict": nn.Linear(2, 2).state_dict(), "epoch": 0, "hyper_parameters": {}}


@pytest.mark.parametrize(
    "content",
    [
        b"", b".", b"0", b"(((", b"c", b"\x80\x02.", b"\x80\x02K\x01.", b"PK\x03\x04" + b"0" * 50,
        {**WHOLE, "loops": {"fit_loop": {}}},
        {**WHOLE, "loops": None},
        {**WHOLE, "epoch": None},
        {**WHOLE, "optimizer_states": [{}]},
        {**WHOLE, "hyper_parameters": None},
        {**WHOLE, "state_dict": [1]},
        {**WHOLE, "state_dict": {"weight": 1, "bias": 2}},
        {1: torch.zeros(1)},
        [1],
    ],
)  # fmt: skip
def test_a_malformed_checkpoint_is_named(tmp_path: Path, capsys: Any, content: Any) -> None:
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "x1.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert analyze(tmp_path, tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert str(path) in message
    assert "weights_only" not in message
    assert "checkpoint ()" not in message  # an error without words is named by its kind


def test_checkpoints_are_found_in_a_version_folder(live: Path, tmp_path: Path) -> None:
    root = live
    read: list[Path] = []
    found = find_checkpoints(root, lambda paths: (read.extend(paths), paths)[1])
    assert found == find_checkpoints(root / "checkpoints")
    assert len(read) == 4  # of three epochs and the last
    with pytest.raises(CheckpointError, match="There are no checkpoints"):
        find_checkpoints(tmp_path)


def test_checkpoints_of_a_plain_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    net = bare_net()
    for epoch in (2, 10):
        torch.save(net.state_dict(), tmp_path / "checkpoints" / f"net-{epoch}.pt")
    assert analyze(tmp_path, tmp_path / "ssc", model="bare_net") == 0
    assert SnapshotStore(tmp_path / "ssc").epochs == [2, 10]


def test_a_network_that_does_not_fit(live: Path, tmp_path: Path, capsys: Any) -> None:
    root = live
    assert analyze(root, tmp_path, model="bare_net") == 1
    assert "lacks" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_weights(nn.Linear(2, 2), nn.Linear(3, 2).state_dict())


def test_weights_are_found_inside_a_module_and_through_compile() -> None:
    net = convnet()
    wrapped = {f"model._orig_mod.{name}": value for name, value in convnet().state_dict().items()}
    load_weights(net, wrapped | {"metric.total": torch.zeros(1)})
    assert torch.equal(net[0].weight, wrapped["model._orig_mod.0.weight"])


@pytest.mark.parametrize(
    ("own", "given"),
    [
        ("", "model."),
        ("", "module."),
        ("", "model.module._orig_mod."),
        ("", "model._checkpoint_wrapped_module."),
        ("model.", ""),
        ("model._orig_mod.", ""),
        ("net.inner.", "model."),
        ("net.inner.", "inner."),
    ],
)
def test_weights_are_found_behind_any_prefix(own: str, given: str) -> None:
    net, other = convnet(), convnet()
    outer: nn.Module = net
    for name in reversed(own.split(".")[:-1]):
        outer = nn.ModuleDict({name: outer})
    load_weights(outer, {f"{given}{name}": value for name, value in other.state_dict().items()} | {"loss.scale": 1})
    assert torch.equal(net[0].weight, other[0].weight)
    assert torch.equal(net[5].running_var, other[5].running_var)


def test_which_of_several_networks_is_asked(tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    trained, average = bare_net().state_dict(), bare_net().state_dict()
    weights = {f"model.{k}": v for k, v in trained.items()} | {f"ema.{k}": v for k, v in average.items()}
    torch.save(weights, tmp_path / "checkpoints" / "net-1.pt")
    assert analyze(tmp_path, tmp_path / "ssc", model="bare_net") == 1
    assert "2 networks that fit: 'ema', 'model'. Say which is meant" in capsys.readouterr().err
    probe = make_probe(Data().probe_dataloader(), 30)
    for name, state in (("model", trained), ("ema", average)):
        assert analyze(tmp_path, tmp_path / name, "--network", name, model="bare_net") == 0
        net = bare_net()
        net.load_state_dict(state)
        layer = snapshot(net, probe.inputs, probe.labels, layers="Linear").layers["9"]
        assert torch.equal(SnapshotStore(tmp_path / name).load(1).layers["9"].coef.to_dense(), layer.coef.to_dense())
    small = nn.Linear(2, 2)
    shapes = {f"a.{k}": v for k, v in nn.Linear(3, 2).state_dict().items()}
    load_weights(small, shapes | {f"b.{k}": v for k, v in nn.Linear(2, 2).state_dict().items()})  # one of them fits


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), path := tmp_path / "x1.ckpt")
    content = path.read_bytes()

    class Failing(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            if self.tell() > 0:
                raise OSError(5, "Input/output error")
            return super().read(*args)

        def readinto(self, *args: Any) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", lambda *args: Failing(content))
    with pytest.raises(CheckpointError, match=r"x1\.ckpt cannot be read \(Input/output error\)\.$"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("ready", "last", "expected"),
    [(0, False, 0), (3, True, 3), (3, False, None)],
)
def test_the_epoch_of_a_checkpoint(ready: int, last: bool, expected: int | None) -> None:
    loops = {
        "epoch_loop.batch_progress": {"is_last_batch": last},
        "epoch_progress": {"current": {"ready": ready}},
        "epoch_loop.state_dict": {"_batches_that_stepped": 9},
    }
    found = progress_of({"state_dict": {}, "epoch": 7, "loops": {"fit_loop": loops}}, Path("x.ckpt"))
    assert (None if found is None else found.moment.epoch) == expected
    assert progress_of({"state_dict": {}, "epoch": 7}, Path("x.ckpt")).moment.epoch == 8  # type: ignore[union-attr]


def test_a_checkpoint_on_validation_end_counts_its_epoch(tmp_path: Path) -> None:
    """ModelCheckpoint may save before Lightning has counted the epoch as finished."""
    saver = ModelCheckpoint(tmp_path / "v", monitor="val_loss", save_top_k=-1, save_on_train_epoch_end=False)
    middle = ModelCheckpoint(tmp_path / "m", save_top_k=-1, every_n_train_steps=2)
    fit = trainer(tmp_path, saver, middle, enable_checkpointing=True)
    fit.fit(Configured(), datamodule=Data())
    assert [c.moment.epoch for c in find_checkpoints(tmp_path / "v")] == [1, 2]
    assert [c.moment.epoch for c in find_checkpoints(tmp_path / "m")] == [
        2
    ]  # step 2 of 3 is the middle, step 6 the end


class Boom:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def test_a_pickle_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {"state_dict": {}, "epoch": 0, "hyper_parameters": {"x": Boom()}}, tmp_path / "checkpoints" / "evil.ckpt"
    )
    assert analyze(tmp_path, tmp_path / "out") == 1
    assert "add_safe_globals" in capsys.readouterr().err
    store = made_run(tmp_path / "ssc")
    store.path(10).write_bytes(pickle.dumps(Boom()))
    (tmp_path / "ssc" / "probe.npz").write_bytes(pickle.dumps(Boom()))
    assert main(["report", str(tmp_path / "ssc")]) == 0
    assert "step_000000010.npz" in caplog.text
    assert "probe.npz" in caplog.text
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", ["truncated", "newer", "empty", "text", "indices", "objects"])
@pytest.mark.parametrize("command", ["export", "compare"])
def test_a_broken_snapshot_fails_with_its_name(tmp_path: Path, capsys: Any, damage: str, command: str) -> None:
    store = made_run(tmp_path / "ssc", n=12, layers=("a",))
    path = store.path(20)
    arrays = dict(np.load(path))
    if damage == "newer":
        header = bytes(arrays["header"]).replace(f'"format": {FORMAT}'.encode(), b'"format": 99')
        np.savez(path, **arrays | {"header": np.frombuffer(header, np.uint8)})
    elif damage == "indices":  # far outside the graph
        np.savez(path, **arrays | {"0/col": np.full_like(arrays["0/col"], 60000)})
    elif damage == "objects":
        np.savez(path, **arrays | {"0/value": np.array([Boom()], dtype=object)})
    else:
        whole = path.read_bytes()
        path.write_bytes({"truncated": whole[: len(whole) // 3], "empty": b"", "text": b"hello"}[damage])
    arguments = {
        "export": ["export", str(tmp_path), "--csv", str(tmp_path / "csv")],
        "compare": ["compare", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "out")],
    }
    assert main(arguments[command]) == 1
    message = capsys.readouterr().err
    assert "step_000000020.npz" in message
    assert ("Upgrade" in message) == (damage == "newer")
    assert "Traceback" not in message
    assert not Path("executed").exists()


def test_export_writes_inside_its_folder_whatever_names_say(tmp_path: Path, capsys: Any) -> None:
    made_run(tmp_path / "run", layers=("../../escape", "/absolute/path", HOSTILE), class_names=("../up", "b", "c"))
    assert main(["export", str(tmp_path / "run" / ".." / "run"), "--csv", str(tmp_path / "csv")]) == 0
    printed = capsys.readouterr().out.split()
    assert sorted(printed) == sorted(str(path) for path in (tmp_path / "csv").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"run", "csv"}
    assert "../../escape" in (tmp_path / "csv" / "layers.csv").read_text()


def test_compare_writes_a_rectangle_with_the_names_of_both(tmp_path: Path, capsys: Any) -> None:
    made_run(tmp_path / "resnet" / "ssc", layers=("r.a", "r.b"))
    made_run(tmp_path / "vgg" / "ssc", layers=("v.x", "v.y", "v.z"), seed=50)
    assert main(["compare", str(tmp_path / "resnet"), str(tmp_path / "vgg"), "-o", str(tmp_path / "out")]) == 0
    assert "r.a  v." in capsys.readouterr().out
    lines = (tmp_path / "out" / "similarity.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [
        [r, v] for r in ("r.a", "r.b") for v in ("v.x", "v.y", "v.z")
    ]
    assert {"similarity.png", "similarity.svg", "cka_to_final_a.png", "modularity_b.svg"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_compare_takes_snapshots_by_their_steps(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 50)):
        made_run(tmp_path / name / "ssc", seed=seed)
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    by_epoch, by_step = (tmp_path / by / "similarity.csv" for by in ("epoch", "step"))
    assert main(["compare", *paths, "--epoch-a", "1", "--epoch-b", "0", "--out", str(by_epoch.parent)]) == 0
    assert main(["compare", *paths, "--step-a", "10", "--step-b", "0", "--out", str(by_step.parent)]) == 0
    assert by_step.read_text() == by_epoch.read_text()


def test_compare_a_resnet_and_a_vgg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for name, net in (("resnet", cifar_resnet(depth=8)), ("vgg", vgg11())):
        SnapshotStore(tmp_path / "cifar" / name / "ssc").save(snapshot(net, x, torch.arange(20) % 10, layers="conv"))
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(plots, "save", lambda figures, *_: drawn.update(figures) or [])
    runs = [str(tmp_path / "cifar" / name) for name in ("resnet", "vgg")]
    assert main(["compare", *runs, "--out", str(tmp_path / "out")]) == 0
    axes = drawn["similarity"].axes[0]
    assert axes.images[0].get_array().shape == (9, 8)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("cifar/resnet", "cifar/vgg")
    rows, columns = ([t.get_text() for t in labels()] for labels in (axes.get_yticklabels, axes.get_xticklabels))
    assert (rows[0], rows[3:6]) == ("stem.0", ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"])
    assert (columns[0], columns[-1]) == ("stage1.0.0", "stage5.1.0")


def test_compare_refuses_different_probes_and_missing_epochs(tmp_path: Path, capsys: Any) -> None:
    made_run(tmp_path / "a")
    made_run(tmp_path / "b", probe="another")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 1
    assert "different probes" in capsys.readouterr().err
    assert (
        main(["compare", str(tmp_path / "a"), str(tmp_path / "a"), "--epoch-b", "9", "--out", str(tmp_path / "out")])
        == 1
    )
    assert "epochs [0, 1, 2]" in capsys.readouterr().err


ANALYZE = ["analyze", "--data", "b:c", "--checkpoints", "c", "--out", "d", "--model"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND|command"),
        (["report"], r"report\.run"),
        (["report", "run", "--nosuch"], "unrecognized arguments: --nosuch"),
        (["unknown", "x"], "'unknown'"),
        (["export", "run"], r"export\.csv|--csv"),
        (["compare", "a", "b", "--epoch-a", "soon"], '"epoch_a"(.|\\n)*soon'),
        (ANALYZE[:-1], r"analyze\.model|--model"),
        ([*ANALYZE, "a"], "'a' is not of the form package.module:Name"),
        ([*ANALYZE, "nowhere:X"], "There is no module 'nowhere'"),
        ([*ANALYZE, "torch.nn:Nothing"], "'torch.nn:Nothing' leads nowhere"),
        ([*ANALYZE, "a:b", "--model-arg", "depth"], '"model_arg"(.|\\n)*depth'),
        ([*ANALYZE, "a:b", "--solver", "lasso"], '"solver"(.|\\n)*lasso'),
    ],
)
def test_mistakes_in_the_command_line_exit_with_two(arguments: list[str], says: str, capsys: Any) -> None:
    try:
        status: Any = main(arguments)
    except SystemExit as error:  # argparse's own
        status = error.code
    assert status == 2
    assert re.search(f"error: (.|\\n)*({says})", capsys.readouterr().err)


def test_report_prints_table_1_and_takes_a_reference(tmp_path: Path, capsys: Any) -> None:
    store = made_run(tmp_path / "a" / "ssc")
    other = made_run(tmp_path / "b" / "ssc", seed=50)
    out = tmp_path / "out"
    assert (
        main(["report", str(tmp_path / "a"), "--out", str(out), "--reference", str(tmp_path / "b"), "--figures"]) == 0
    )
    table = inputs(store.load(2))
    printed = capsys.readouterr().out
    for value in (table.ssc_accuracy, table.network_accuracy, table.agreement):
        assert f"{value:.1%}" in printed
    assert (out / "table1.csv").read_text().splitlines()[1] == ",".join(map(str, table.table1().values()))
    assert (out / "figures" / "cka_to_reference.png").is_file()
    assert main(["export", str(tmp_path / "a"), "--csv", str(out), "--reference", str(tmp_path / "b")]) == 0
    with (out / "dynamics.csv").open(newline="") as file:
        found = [float(line["cka_to_reference"]) for line in csv.DictReader(file)]
    assert found == dynamics(store, reference=other.load(2)).cka_to_reference.ravel().tolist()
    assert main(["report", str(tmp_path / "a"), "--out", str(out), "--reference", str(tmp_path / "nowhere")]) == 1
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_a_missing_run_exits_with_one(tmp_path: Path, capsys: Any) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 1
    assert "no snapshots" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_help_page_has_an_example_and_the_exit_status(command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    page = capsys.readouterr().out
    assert f"  lightning-ssc {command} " in page
    assert "Exit status:" in page
    assert "130  interrupted" in page


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_is_explained(command: str, capsys: Any) -> None:
    """Settings stand behind ``**settings`` in the signature of analyze: they have to be found there."""
    parameters = signature(cli.COMMANDS[command]).parameters
    assert {entry.arg_name for entry in docstring_parser.parse(cli.COMMANDS[command].__doc__).params} == set(parameters)
    with pytest.raises(SystemExit):
        main([command, "--help"])
    page = capsys.readouterr().out
    names = [n for n in parameters if n != "settings"] + [f.name for f in fields(Settings) if "settings" in parameters]
    for name in names:
        assert re.search(rf"^  (-o OUT, )?(--)?{name.replace('_', '[-_]')}[^\n]*\s+\S", page, re.MULTILINE), name


def test_a_function_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def shapes(model: str, *, sample: Sequence[str], port: int = 0, model_arg: dict[str, Any] | None = None) -> None:
        """Show shapes.

        Args:
            model: A network.
            sample: Shapes of a sample.
            port: A port.
            model_arg: Its arguments.
        """
        print(model, sample, port, model_arg)

    monkeypatch.setitem(cli.COMMANDS, "shapes", shapes)
    assert main(["shapes", "net", "--sample", "3x4", "5", "--model-arg", "width=6", "--model-arg=path=a=b"]) == 0
    assert capsys.readouterr().out == "net ['3x4', '5'] 0 {'width': 6, 'path': 'a=b'}\n"
    with pytest.raises(SystemExit):
        main(["shapes", "net"])
    assert re.search(r"shapes\.sample|--sample", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["shapes", "--help"])
    page = capsys.readouterr().out
    assert "Shapes of a sample (required)" in page
    assert "A port (default: 0)" in page


def test_layers_are_shown(capsys: Any) -> None:
    assert main(["layers", "torchvision.models:resnet18", "--input", "3x32x32", "--model-arg", "num_classes=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "features", "conv", "stages", "blocks"]
    found = {" ".join(line.split()) for line in lines}
    assert {"conv1 Conv2d 16,384 conv stages blocks", "layer1 Sequential 4,096 stages"} <= found
    assert {"0 BasicBlock 4,096 blocks", "relu ReLU 4,096 runs 2 times", "fc Linear 3 stages blocks"} <= found


_SIZES = ["--model-arg", "in_features=4", "--model-arg", "out_features=2"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["torch.nn:Nothing", "--input", "3"], 2, "leads nowhere"),
        (["torch.nn:ReLU", "--input", "3,4"], 2, "--input 3,4 is no shape; write it as 3x224x224 or 128"),
        (["torch.nn:Linear", "--input", "3"], 1, "Give its arguments with --model-arg"),
        (["torch.nn:Linear", "--input", "4", *_SIZES], 1, "single Linear with no layers inside"),
        (["torchvision.models:squeezenet1_0", "--input", "4x64x64"], 1, "does not run on inputs of shape 4x64x64"),
    ],
)
def test_layers_that_cannot_be_shown(arguments: list[str], status: int, message: str, capsys: Any) -> None:
    assert main(["layers", *arguments]) == status
    assert message in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = """
import sys
from lightning_ssc.cli import COMMANDS, main
for command in ([], *([name] for name in COMMANDS)):
    try:
        main([*command, "--help"])
    except SystemExit:
        pass
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_progress_is_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_run(tmp_path)
    monkeypatch.setattr(cli, "time", hasty())
    assert main(["export", str(tmp_path), "--csv", str(tmp_path / "csv")]) == 0
    assert "reading: 1 of 3" in capsys.readouterr().err


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "lightning_ssc", "report", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.startswith("lightning-ssc report: There are no snapshots")


def test_import_paths_do_not_hide_what_is_missing_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        import_object("broken_module:Net")
