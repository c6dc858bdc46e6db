"""Several probes in one monitor: series of the same weights at the same moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor

from lightning_ssc import SnapshotStore, SSCMonitor, every, snapshot
from lightning_ssc.functional import cka
from tests.nets import Classifier, data, trainer

LAYER = "model.9"


def shifted() -> tuple[Tensor, Tensor]:
    x, y = data(24, seed=5).tensors
    return x + 2, y


def monitor(**kwargs: Any) -> SSCMonitor:
    options = {"layers": [LAYER], "probe_size": 20, "schedule": 1, "heatmap": False}
    return SSCMonitor(**{**options, "probes": {"test": None, "shifted": shifted()}, **kwargs})


@pytest.mark.parametrize("background", [False, True])
def test_each_probe_is_a_series_of_the_same_weights(tmp_path: Path, background: bool) -> None:
    watching, model = monitor(background=background), Classifier()
    run = trainer(tmp_path, watching)
    run.fit(model)
    assert list(watching.stores) == ["ssc_test", "ssc_shifted"]
    test, other = (SnapshotStore(tmp_path / name) for name in watching.stores)
    assert test.steps == other.steps == [0, 3, 6]
    assert watching.store is watching.stores["ssc_test"]
    for store, (inputs, labels) in (
        (test, (data(seed=2).tensors[0][test.load(step=6).indices], test.labels(6))),
        (other, shifted()),
    ):
        alone = snapshot(model, inputs, labels, layers=[LAYER])
        torch.testing.assert_close(
            store.load(step=6).layers[LAYER].coef.to_dense(), alone.layers[LAYER].coef.to_dense()
        )
    tags = {tag for tag in run.callback_metrics if "modularity/" in tag}
    assert tags == {f"ssc_{name}/modularity/{LAYER}" for name in ("test", "shifted")}


def test_a_probe_beside_does_not_change_the_training(tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [monitor(store=False)]):
        torch.manual_seed(0)
        model = Classifier()
        trainer(tmp_path, *callbacks).fit(model)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_each_probe_has_both_weights(tmp_path: Path) -> None:
    watching = monitor(weights="both", store=False)
    trainer(tmp_path, EMAWeightAveraging(decay=0.7), watching).fit(Classifier())
    names = ["ssc_test", "ssc_test_average", "ssc_shifted", "ssc_shifted_average"]
    assert {name: store.steps[-1] for name, store in watching.stores.items()} == dict.fromkeys(names, 6)
    assert watching.store_of_average is watching.stores["ssc_test_average"]


def test_all_probes_are_resumed_by_name(tmp_path: Path) -> None:
    last = tmp_path / "kept" / "last.ckpt"
    first = monitor()
    kept = ModelCheckpoint(last.parent, save_last=True)
    trainer(tmp_path, first, kept, max_epochs=1, enable_checkpointing=True).fit(Classifier())
    more = {"test": None, "new": data(21, seed=7).tensors, "shifted": shifted()}
    again, kept = monitor(probes=more), ModelCheckpoint(last.parent, save_last=True)
    run = trainer(tmp_path, again, kept, max_epochs=2, enable_checkpointing=True)
    run.fit(Classifier(), ckpt_path=last, weights_only=True)
    assert [store.steps for store in again.stores.values()] == [[0, 3, 6], [6], [0, 3, 6]]
    assert {name: store.root for name, store in first.stores.items()}.items() <= {
        name: store.root for name, store in again.stores.items()
    }.items()


def test_a_checkpoint_as_reference_is_run_on_every_probe(tmp_path: Path) -> None:
    model = Classifier()
    other = Classifier()
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    watching = monitor(reference=tmp_path / "weights.pt", store=False, schedule=every(steps=3))
    trainer(tmp_path, watching, max_epochs=1).fit(model)
    for store, (x, _) in zip(watching.stores.values(), (data(seed=2).tensors, shifted()), strict=True):
        last = store.load(step=3)
        then = snapshot(other, x if last.indices is None else x[last.indices], layers=[LAYER])
        value = cka(last.layers[LAYER].affinity, then.layers[LAYER].affinity)
        assert last.layers[LAYER].values["cka_to_reference"] == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"probe": shifted()}, "probe= and probes= do not go together"),
        ({"probes": {}}, "probes= names no probe"),
        ({"probes": {"a/b": None}}, "probes= has the name 'a/b'"),
        ({"probes": {"test_average": None}}, "not end in '_average'"),
    ],
)
def test_what_is_no_set_of_probes_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        monitor(**more)
