"""FreezeSettled: what it freezes, when, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_ssc import FreezeSettled, SSCMonitor
from tests import processes
from tests.nets import Classifier, trainer

LAYERS = ["model.0", "model.4", "model.9"]
BELOW = ["model.0.weight", "model.0.bias", "model.1.weight", "model.1.bias", "model.4.weight", "model.4.bias"]


class Slow(Classifier):
    """Trained so slowly that every layer has settled from the start, but for the weight decay; the rate may drop."""

    def __init__(self, drops: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.drops = drops

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-4, momentum=0.9, weight_decay=1.0)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [*self.drops], gamma=0.1)]


class Notes(pl.Callback):
    """What is frozen, in which mode batch norm is, and every parameter and buffer, at the end of each epoch."""

    def __init__(self) -> None:
        self.frozen: dict[int, list[str]] = {}
        self.batch_norm: dict[int, list[bool]] = {}
        self.states: dict[int, dict[str, Tensor]] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        self.frozen[epoch] = [name for name, p in pl_module.named_parameters() if not p.requires_grad]
        assert all(p.grad is None for p in pl_module.parameters() if not p.requires_grad)
        self.batch_norm[epoch] = [
            module.training for module in pl_module.modules() if isinstance(module, nn.BatchNorm2d)
        ]
        self.states[epoch] = {name: value.clone() for name, value in pl_module.state_dict().items()}


def monitor(**kwargs: Any) -> SSCMonitor:
    options = {"layers": LAYERS, "probe_size": 20, "schedule": 1, "heatmap": False, "store": False}
    return SSCMonitor(**{**options, **kwargs})


def fit(root: Path, *callbacks: Any, model: Classifier | None = None, **kwargs: Any) -> Classifier:
    pl.seed_everything(0, verbose=False)
    model = Slow() if model is None else model
    path = kwargs.pop("ckpt_path", None)
    trainer(root, *callbacks, **{"max_epochs": 5, **kwargs}).fit(model, ckpt_path=path, weights_only=path and True)
    return model


def test_settled_layers_are_frozen_with_what_acts_through_them_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    freezing, notes = FreezeSettled("freeze"), Notes()
    model = fit(tmp_path, freezing, monitor(), notes)
    assert notes.frozen == {1: [], 2: [], 3: BELOW, 4: BELOW, 5: BELOW}  # at the third snapshot, that after epoch 2
    assert notes.batch_norm == {1: [True, True], 2: [True, True], **{epoch: [False, True] for epoch in (3, 4, 5)}}
    kept = [*BELOW, "model.1.running_mean", "model.1.running_var", "model.1.num_batches_tracked"]
    for name, value in notes.states[2].items():
        assert torch.equal(value, notes.states[5][name]) == (name in kept), name
    assert freezing.frozen == ("model.0", "model.4")
    assert all(parameter.requires_grad for parameter in model.parameters())  # afterwards
    assert all(module.training for module in model.modules())
    said = [line for line in capsys.readouterr().out.splitlines() if "FreezeSettled" in line]
    held = sum(dict(model.named_parameters())[name].numel() for name in BELOW)
    share = f"{100 * held / sum(p.numel() for p in model.parameters()):.0f} %"
    assert said == [
        f"FreezeSettled: model.4 and below have settled by step 6 (2 layers, {share} of the parameters), "
        f"no longer trained."
    ]


class Moves(pl.Callback):
    """The first layer shows another colour, which is noise of its own, in every epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        weight = nn.init.zeros_(pl_module.model[0].weight)
        weight.data[:, trainer.current_epoch % 3, 1, 1] = 1


def test_a_layer_that_moves_keeps_those_above_it_trained(tmp_path: Path) -> None:
    notes, freezing = Notes(), FreezeSettled("freeze")
    fit(tmp_path, freezing, Moves(), monitor(), notes)
    assert notes.frozen[5] == []
    assert freezing.settled == ()


def test_advice_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advising = FreezeSettled()
    states = [fit(tmp_path, *callbacks).state_dict() for callbacks in ([], [monitor(), advising])]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert advising.settled == ("model.0", "model.4")
    assert advising.frozen == ()
    assert "could be frozen: FreezeSettled('freeze') does." in capsys.readouterr().out


@pytest.mark.parametrize("unfreeze", [True, False])
def test_a_drop_of_the_rate_trains_everything_again(tmp_path: Path, unfreeze: bool) -> None:
    notes = Notes()
    freezing = FreezeSettled("freeze", unfreeze_on_lr_drop=unfreeze)
    fit(tmp_path, freezing, monitor(), notes, model=Slow(drops=(3,)), max_epochs=6)
    # Snapshots after epochs 3, 4 and 5 are those since the drop.
    again: dict[int, list[str]] = {4: [], 5: []} if unfreeze else {4: BELOW, 5: BELOW}
    assert notes.frozen == {1: [], 2: [], 3: BELOW, **again, 6: BELOW}


def test_patience_is_a_share_of_the_run(tmp_path: Path) -> None:
    notes = Notes()
    fit(tmp_path, FreezeSettled("freeze", patience=0.8), monitor(), notes)
    assert [epoch for epoch, frozen in notes.frozen.items() if frozen] == [5]


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_resumed_run_goes_on_as_if_it_had_not_been_interrupted(tmp_path: Path, epochs: int) -> None:
    """Before and after layers were frozen."""
    whole, rest = Notes(), Notes()
    fit(tmp_path / "whole", FreezeSettled("freeze"), monitor(), whole, model=Slow(drops=(4,)))
    kept = tmp_path / "kept" / "last.ckpt"
    options = {"enable_checkpointing": True}
    for upto, notes, path in ((epochs, Notes(), None), (5, rest, kept)):
        callbacks = (
            FreezeSettled("freeze"),
            monitor(store=tmp_path / "ssc"),
            notes,
            ModelCheckpoint(kept.parent, save_last=True),
        )
        fit(tmp_path, *callbacks, model=Slow(drops=(4,)), max_epochs=upto, ckpt_path=path, **options)
    for epoch in rest.frozen:
        assert rest.frozen[epoch] == whole.frozen[epoch]
        assert rest.batch_norm[epoch] == whole.batch_norm[epoch]


@pytest.mark.parametrize("static", [False, True])
def test_processes_freeze_the_same(tmp_path: Path, static: bool) -> None:
    assert processes.distributed(processes.freeze_over_ranks, 2, tmp_path, static) == [0, 0]
    one, other = (torch.load(tmp_path / f"frozen-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["frozen"] == other["frozen"] == {1: [], 2: [], 3: BELOW, 4: [], 5: []}
    for epoch in (3, 5):
        assert all(torch.equal(one["states"][epoch][name], other["states"][epoch][name]) for name in BELOW)
    head = [one["states"][epoch]["model.9.weight"] for epoch in (2, 3)]
    assert not torch.equal(*head)
    assert torch.equal(one["states"][5]["model.9.weight"], other["states"][5]["model.9.weight"])


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([FreezeSettled("freeze")], "needs an SSCMonitor of that name in the Trainer; there is none"),
        ([FreezeSettled(name="convs"), monitor()], "needs an SSCMonitor of that name in the Trainer; there is 'ssc'"),
        ([FreezeSettled("freeze"), monitor(background=True)], "'ssc/settled' steers the training"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, callbacks: list[pl.Callback], message: str) -> None:
    with pytest.raises(Exception, match=message):
        fit(tmp_path, *callbacks, max_epochs=1)


@pytest.mark.parametrize(
    ("more", "message"), [({"action": "stop"}, "action must be"), ({"patience": 1}, "patience is")]
)
def test_arguments_out_of_range_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreezeSettled(**more)
