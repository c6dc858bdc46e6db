"""What users see when they go wrong: every message, to the letter. Each names the cause and the remedy."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from torch import nn

from lightning_ssc import SnapshotStore, SSCMonitor, snapshot
from lightning_ssc.callback.triggers import as_triggers, log_spaced
from lightning_ssc.capture import WatchedLayer, plan_passes
from lightning_ssc.capture.names import Layer
from tests.nets import Classifier, convnet, data, trainer

X, Y = data(30).tensors


class Bare(Classifier):
    """No validation data."""

    val_dataloader = pl.LightningModule.val_dataloader
    validation_step = pl.LightningModule.validation_step


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Any) -> Any:
        return self.make(x)


def returning(make: Any, layers: str) -> None:
    snapshot(nn.Sequential(OrderedDict(m=Returns(make))), X, layers=layers, forward=lambda net, x: net.m(x))


def fit(root: Path, model: Any = None, **kwargs: Any) -> None:
    options = {"schedule": 1, "probe_size": 20, "heatmap": False, "embedding": False, **kwargs}
    trainer(root, SSCMonitor(**options), max_epochs=1).fit(Classifier() if model is None else model)


def unused(root: Path) -> None:
    net = Classifier()
    net.spare = nn.Linear(2, 2)
    fit(root, net, layers=["spare"])


def not_finite(root: Path) -> None:
    net = convnet()
    nn.init.constant_(net[4].weight[0], float("inf"))
    snapshot(net, X, Y, layers="conv")


def other_probe(root: Path) -> None:
    fit(root, store=root / "a")
    fit(root, store=root / "b", reference=root / "a", probe_size=21)


def occupied(root: Path) -> None:
    fit(root, store=root / "a")
    fit(root, store=root / "a")


def empty_reference(root: Path) -> None:
    (root / "nothing").mkdir()
    fit(root, reference=root / "nothing")


def damaged(root: Path) -> None:
    store = SnapshotStore(root)
    store.save(snapshot(convnet(), X, Y, layers="conv"))
    store.path(0).write_bytes(b"PK\x03\x04")
    store.load(0)


def newer(root: Path) -> None:
    np.savez(root / "step_000000000.npz", header=np.frombuffer(b'{"format": 99}', np.uint8))
    SnapshotStore(root).load(0)


MESSAGES: list[tuple[str, Any, str]] = [
    (
        "an unknown layer",
        lambda root: fit(root, layers=["model.5", "model.44"]),
        "No layer matches 'model.44'. Nearest names: model.4, model.9, model.8, model.7, model.6. A pattern is a "
        "name as in model.named_modules(), a glob such as 'layer*.0', a module type, or a preset ('conv', "
        "'stages', 'blocks').",
    ),
    (
        "a preset that finds nothing",
        lambda root: snapshot(nn.Sequential(nn.Linear(8, 2)), X, layers="conv"),
        "The preset layers='conv' finds nothing to watch in this network, which is made of Linear. Name its "
        "layers instead, e.g. layers=['0'].",
    ),
    (
        "a named layer that never runs",
        unused,
        "These layers never run in a forward pass over the probe: spare. Watch the modules that run, or say with "
        "forward= how the network is to be run.",
    ),
    (
        "no validation data and no probe",
        lambda root: fit(root, Bare()),
        "SSCMonitor found no probe: pass probe= (a data set, a loader or tensors), give the data module a "
        "probe_dataloader(), or give the Trainer validation data.",
    ),
    (
        "a probe of two samples",
        lambda root: snapshot(convnet(), X[:2], Y[:2]),
        "The probe has 2 samples; a graph over inputs needs at least 3. Give it more data.",
    ),
    (
        "labels of the wrong length",
        lambda root: snapshot(convnet(), X, Y[:-1]),
        "The probe has 30 inputs and 29 labels. Give one label for every input, or none.",
    ),
    (
        "inputs of different lengths",
        lambda root: snapshot(convnet(), (X, X[:-1])),
        "A probe needs tensors that agree in their first dimension, the sample; found sizes [30, 29]. Use forward= "
        "to give the network what is the same for all samples.",
    ),
    (
        "a probe_size below three",
        lambda root: SSCMonitor(probe_size=2),
        "probe_size must be at least 3, got 2; 500 to 2000 make readable curves.",
    ),
    (
        "a schedule of every zero epochs",
        lambda root: SSCMonitor(schedule=0),
        "A schedule of every n epochs needs n of at least 1, got 0.",
    ),
    (
        "a schedule of no epochs",
        lambda root: as_triggers([]),
        "A schedule of epochs or steps needs numbers from 0 (the untrained network) up, got none.",
    ),
    (
        "a wrong on_error",
        lambda root: SSCMonitor(on_error="ignore"),  # type: ignore[arg-type]
        "on_error must be 'raise' or 'warn', got 'ignore'.",
    ),
    (
        "activations that are not finite",
        not_finite,
        "Layer '4' puts out NaN or infinity for 30 of 30 samples, first for sample 0. Its graph is not "
        "defined: look at the learning rate, the precision or the inputs, or leave the layer out.",
    ),
    (
        "an output without a tensor",
        lambda root: returning(lambda x: {"a": "text"}, "m"),
        "Layer 'm' puts out dict without a tensor of 7 rows. Name the part that you mean, as in 'm:0' or 'm:logits'.",
    ),
    (
        "a part that is not there",
        lambda root: returning(lambda x: {"a": x}, "m:b"),
        "The output of layer 'm' has no part 'b'; it is dict with parts a. Name one that it has.",
    ),
    (
        "a part that is no tensor",
        lambda root: returning(lambda x: {"a": "text"}, "m:a"),
        "Part 'a' of layer 'm' is str. Name a part that is a tensor.",
    ),
    (
        "an output without a row a sample",
        lambda root: returning(lambda x: x.flatten(1)[:2], "m"),
        "Layer 'm' puts out shape (2, 192) for 7 samples; its first dimension must be the sample. Watch a layer "
        "with batch-first output (an LSTM with batch_first=True, say), or another part of it, or say "
        "with batch_dim= which dimension is the sample.",
    ),
    (
        "a class token of images",
        lambda root: snapshot(convnet(), X, Y, layers="conv", pooling="cls"),
        "Layer '0' puts out shape (7, 6, 8, 8), which has no class token. Use pooling='mean' or 'flatten', or "
        "watch only layers that put out tokens.",
    ),
    (
        "a memory budget too small",
        lambda root: plan_passes([WatchedLayer(Layer("a"), 0, "a", 100)], 1000, 1_000_000),
        "A memory budget of 1.0 MB does not hold the Gram matrices of 1000 samples; it takes at least 8.0 MB. "
        "Raise memory= or use a smaller probe.",
    ),
    (
        "a folder of another run",
        occupied,
        "store=ROOT/a already holds the snapshots of another run (steps [0, 3]). Name a new folder, or move "
        "those away.",
    ),
    (
        "a reference of another probe",
        other_probe,
        "reference=ROOT/a was taken on another probe, so its graphs cannot be compared. Use the "
        "same probe data, probe_size and transforms for both runs.",
    ),
    (
        "a reference without snapshots",
        empty_reference,
        "reference=ROOT/nothing holds no snapshots. Name a run's folder of snapshots, one of its files, or a "
        "checkpoint of this network.",
    ),
    (
        "a damaged snapshot",
        damaged,
        "There is no snapshot of epoch 0 in ROOT; it holds epochs []. ROOT/step_000000000.npz is not a readable "
        "snapshot (File is not a zip file). Delete the file; the run's other snapshots are not affected.",
    ),
    (
        "a snapshot of a newer version",
        newer,
        "There is no snapshot of epoch 0 in ROOT; it holds epochs []. ROOT/step_000000000.npz has snapshot format 99; "
        "this version of lightning_ssc reads up to 2. Upgrade lightning-ssc to read it.",
    ),
    (
        "an epoch that was not taken",
        lambda root: SnapshotStore(root).load(3),
        "There is no snapshot of epoch 3 in ROOT; it holds epochs [].",
    ),
    (
        "a setting that does not exist",
        lambda root: SSCMonitor(solver="lars"),  # type: ignore[arg-type]
        "solver must be one of 'active_set', 'admm', got 'lars'.",
    ),
    (
        "a pooling that does not exist",
        lambda root: snapshot(convnet(), X, Y, pooling="men"),  # type: ignore[arg-type]
        "pooling must be a function or one of 'flatten', 'mean', 'cls', 'last', got 'men'.",
    ),
    (
        "a negative tau",
        lambda root: SSCMonitor(tau=-1),
        "tau must be positive and finite, got -1.",
    ),
    (
        "a schedule without its argument",
        lambda root: SSCMonitor(schedule=log_spaced),  # type: ignore[arg-type]
        "schedule=log_spaced is a kind of trigger: write log_spaced(...) for one.",
    ),
    (
        "arrays for tensors",
        lambda root: snapshot(convnet(), np.zeros((30, 3, 8, 8)), Y),
        "A probe needs inputs in tensors, found ndarray. Give it tensors (torch.from_numpy turns arrays into them), a "
        "data set or a DataLoader.",
    ),
    (
        "a reference that is no checkpoint",
        lambda root: fit(root, reference=root / "missing.ckpt"),
        "reference=ROOT/missing.ckpt does not exist. Name a run's folder of snapshots, one of its files, or a "
        "checkpoint of this network.",
    ),
]


@pytest.mark.parametrize(("use", "message"), [row[1:] for row in MESSAGES], ids=[row[0] for row in MESSAGES])
def test_message(tmp_path: Path, use: Any, message: str) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011
        use(tmp_path)
    assert str(error.value).replace(str(tmp_path), "ROOT") == message
