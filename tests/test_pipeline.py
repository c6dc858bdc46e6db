"""What a snapshot holds is of its own moment alone, and its certificate is of what it holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ssc import Snapshot, SnapshotStore, SSCMonitor, snapshot
from lightning_ssc.capture import Runner, capture, trace
from lightning_ssc.pipeline import Past, compared
from tests.definitions import certificates
from tests.nets import Classifier, convnet, data, trainer
from tests.runs import random_coef, taken

X, Y = data(30).tensors


@pytest.mark.parametrize("how", [{}, {"preset": "paper"}, {"solver": "admm"}], ids=["default", "paper", "admm"])
def test_a_snapshot_does_not_depend_on_the_one_before(tmp_path: Path, how: dict[str, Any]) -> None:
    kept = {}
    for schedule in ([0, 1], [1]):
        torch.manual_seed(0)
        options = {"layers": ["model.0", "model.4"], "probe": (X, Y), "heatmap": False, "embedding": False}
        ssc = SSCMonitor(schedule=schedule, store=tmp_path / str(len(schedule)), **options, **how)
        trainer(tmp_path, ssc, max_epochs=1).fit(Classifier())
        kept[len(schedule)] = ssc.store.load(1)
    for name, layer in kept[1].layers.items():
        assert torch.equal(layer.coef.to_dense(), kept[2].layers[name].coef.to_dense())


def seen_by_the_solver(net: nn.Module, inputs: Tensor, layers: list[str], normalize: bool) -> dict[str, Tensor]:
    """The Grams of a network's layers over some inputs, in single precision as they are captured."""
    runner, grams = Runner(net), {}
    watched = trace(runner, layers, inputs)
    for layer, gram in capture(runner, watched, inputs, precise=not normalize):
        grams[layer.label] = gram.unit_() if normalize else gram.raw_(precise=True)
    return grams


@pytest.mark.parametrize(
    ("how", "dtype"),
    [({"tau": 100.0, "normalize": False}, torch.float64), ({"tau": 10.0, "normalize": True}, torch.float32)],
    ids=["raw", "unit length"],
)
def test_the_stored_certificate_is_that_of_the_stored_weights(
    tmp_path: Path, how: dict[str, Any], dtype: torch.dtype
) -> None:
    """Taken, written and read: whoever has the network again can prove the graph."""
    torch.manual_seed(0)
    net, inputs, tau = convnet(), 20 * X, how["tau"]
    store, layers = SnapshotStore(tmp_path), ["0", "4", "9"]
    store.save(snapshot(net, inputs, Y, layers=layers, **how))
    grams = seen_by_the_solver(net, inputs, layers, how["normalize"])
    for name, layer in store.load(0).layers.items():
        gap = certificates(grams[name], layer.coef, tau)[1]
        torch.testing.assert_close(layer.gap.double(), gap, rtol=1e-6, atol=1e-12)
        assert layer.values["gap"] == layer.gap.max().item() <= 1e-5
        assert (layer.coef.dtype, layer.converged) == (dtype, True)
        rounded = certificates(grams[name], layer.coef.float(), tau)[1]
        assert bool((rounded <= 1e-5).all()) == (dtype == torch.float32)


def test_a_part_of_an_epoch_needs_its_step() -> None:
    """Or it would take the place of the epoch in a store."""
    options = {"inputs": X, "layers": ["0"], "linear_cka": False}
    with pytest.raises(ValueError, match=r"epoch=1\.5 is no whole number by which snapshots differ: give step=, too"):
        snapshot(convnet(), **options, epoch=1.5)
    taken = snapshot(convnet(), **options, epoch=1.5, step=7)
    assert (taken.step, taken.epoch) == (7, 1.5)


def followed(store: SnapshotStore, states: list[Snapshot], past: Past) -> list[float]:
    """Since when the layer has been settled at each of some snapshots, which are stored."""
    since = []
    for state in states:
        state = compared(state, past)
        store.save(state)
        past = past.followed_by(state)
        since.append(state.layers["conv"].values["settled"])
    return since


def test_a_layer_is_settled_since_it_became_what_it_is(tmp_path: Path) -> None:
    """Also where the run was resumed meanwhile: what it became then is found again."""
    first, second, third = (random_coef(40, seed) for seed in (0, 1, 2))
    nearly = second + 0.02 * third
    graphs = [first, second, nearly, second, third, nearly, 3 * nearly]
    states = [taken({"conv": graph}, epoch=t, step=10 * t) for t, graph in enumerate(graphs)]
    whole = followed(SnapshotStore(tmp_path / "whole"), states, Past())
    assert whole == [0, 10, 10, 10, 40, 50, 50]
    for resumed in (3, 5):
        store = SnapshotStore(tmp_path / str(resumed))
        before = followed(store, states[:resumed], Past())
        past = Past.recalled(store, 10 * (resumed - 1))
        assert before + followed(store, states[resumed:], past) == whole
        assert store.load(step=60).start == 0
