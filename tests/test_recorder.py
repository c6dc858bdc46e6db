"""A Recorder in loops of one's own: plain, of Fabric, in the background, resumed, over processes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_ssc import Images, Recorder, Settings, SnapshotStore, SSCMonitor, snapshot
from lightning_ssc.analysis import dynamics
from lightning_ssc.snapshots import MemoryStore, MismatchError, Moment, Snapshot, Store
from lightning_ssc.weights import CheckpointError
from tests import definitions, processes
from tests.nets import Classifier, Logs, convnet, data, optimizer, train, trainer
from tests.pacing import Gate, assert_no_thread_is_left, settle

PROBE = data(30).tensors
LAYERS = ["0", "4", "9"]
NO_IMAGES = Images(heatmap=False, embedding=False, neighbours=0)


def recorder(network: nn.Module, **kwargs: Any) -> Recorder:
    return Recorder(network, PROBE, **{"layers": LAYERS, "images": NO_IMAGES, **kwargs})


def network(seed: int = 0) -> nn.Sequential:
    """With dropout and batch norm, which a snapshot must leave alone."""
    torch.manual_seed(seed)
    return convnet()


def recorded(watching: Recorder, net: nn.Module) -> Recorder:
    """The untrained network and two epochs."""
    watching.record(0)
    train(net, optimizer(net), watching.record)
    watching.finish()
    return watching


def assert_same_numbers(one: Store, other: Store) -> None:
    """Bit for bit, but for names of triggers, logged steps and seconds."""
    assert one.steps == other.steps
    for a, b in zip(one, other, strict=True):
        for key in ("step", "epoch", "settings", "probe", "learning_rate", "previous", "start"):
            assert getattr(a, key) == getattr(b, key), key
        for key in ("labels", "predictions", "confidence"):
            assert torch.equal(getattr(a, key), getattr(b, key)), key
        assert list(a.layers) == list(b.layers)
        for layer, twin in zip(a.layers.values(), b.layers.values(), strict=True):
            assert layer.coef.dtype == twin.coef.dtype
            assert torch.equal(layer.coef.to_dense(), twin.coef.to_dense())
            assert torch.equal(layer.gap, twin.gap)
            assert torch.equal(layer.linear.pairs, twin.linear.pairs)
            assert layer.values == twin.values
        assert a.pairs.keys() == b.pairs.keys()
        assert all(torch.equal(table, b.pairs[name]) for name, table in a.pairs.items())


def cka(one: Snapshot, other: Snapshot, layer: str) -> float:
    return definitions.cka(one.layers[layer].affinity, other.layers[layer].affinity)


class Run(NamedTuple):
    watching: Recorder
    logs: Logs
    reference: Snapshot
    net: nn.Module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A plain loop: three snapshots in a folder, with a reference and a logger."""
    reference, net, logs = snapshot(network(seed=1), *PROBE, layers=LAYERS), network(), Logs()
    folder = tmp_path_factory.mktemp("plain") / "ssc"
    watching = recorder(net, store=folder, loggers=[logs], reference=reference)
    return Run(recorded(watching, net), logs, reference, net)


class TestPlainLoop:
    def test_what_is_stored_is_what_the_definitions_say(self, run: Run) -> None:
        store = SnapshotStore(run.watching.store.root)  # type: ignore[attr-defined]
        taken = list(store)
        assert [(t.step, t.epoch, t.previous) for t in taken] == [(0, 0, None), (1, 1, 0), (2, 2, 1)]
        for i, (now, header) in enumerate(zip(taken, store.headers(), strict=True)):
            assert header.layers == LAYERS
            for name in LAYERS:
                values = header.values[name]
                assert values["cka_to_reference"] == pytest.approx(cka(now, run.reference, name), abs=1e-7)
                assert ("cka_to_previous" in values) == ("linear_cka_to_previous" in values) == (i > 0)
                if i > 0:
                    assert values["cka_to_previous"] == pytest.approx(cka(now, taken[i - 1], name), abs=1e-7)
                    assert values["cka_to_start"] == pytest.approx(cka(now, taken[0], name), abs=1e-7)
                    assert values["cka_to_start_spread"] > 0
                assert header.start == (0 if i else None)
            table = [
                [definitions.cka(a.affinity, b.affinity) for b in now.layers.values()] for a in now.layers.values()
            ]
            np.testing.assert_allclose(store.pairs(now.step)["pairwise_cka"], table, atol=1e-6)

    def test_loggers_get_what_is_stored_and_the_way_to_the_final_state(self, run: Run) -> None:
        logs, taken = run.logs, list(run.watching.store)
        for name in LAYERS:
            for measured in ("modularity", "gap", "nnz_per_input", "effective_rank", "cka_to_reference"):
                expected = {t.step: t.layers[name].values[measured] for t in taken}
                assert logs.values[f"ssc/{measured}/{name}"] == expected
            assert list(logs.values[f"linear_cka/cka_to_previous/{name}"]) == [1, 2]
            to_final = {t.step: cka(t, taken[-1], name) for t in taken}
            assert logs.values[f"ssc/cka_to_final/{name}"] == pytest.approx(to_final, abs=1e-7)
            assert to_final[0] < to_final[2] == pytest.approx(1)
            assert list(logs.values[f"linear_cka/cka_to_final/{name}"]) == [0, 1, 2]
        assert {f"ssc/seconds/{stage}" for stage in ("forward", "gram", "solve", "total", "store", "log")} <= set(
            logs.values
        )

    def test_readers_find_the_same_curves(self, run: Run) -> None:
        logs, curves = run.logs, dynamics(run.watching.store)
        assert curves.epochs.tolist() == [0, 1, 2]
        for i, name in enumerate(LAYERS):
            assert curves.modularity[:, i].tolist() == list(logs.values[f"ssc/modularity/{name}"].values())
            assert curves.cka_to_final[:, i].tolist() == list(logs.values[f"ssc/cka_to_final/{name}"].values())

    def test_training_is_the_same_without_it(self, run: Run) -> None:
        alone = network()
        train(alone, optimizer(alone))
        assert alone.training
        assert all(module.training for module in run.net.modules())
        for name, value in run.net.state_dict().items():
            assert torch.equal(value, alone.state_dict()[name]), name

    def test_memory_holds_what_a_folder_holds(self, run: Run) -> None:
        net = network()
        watching = recorded(recorder(net, reference=run.reference), net)
        assert isinstance(watching.store, MemoryStore)
        assert_same_numbers(watching.store, run.watching.store)
        assert set(watching.state_dict()) == {"steps", "pending", "probe"}  # no folder, which nobody could resume

    def test_what_record_returns(self) -> None:
        watching = recorder(network(), name="convs")
        values = watching.record(0)
        layer = watching.store.load(0).layers["4"]
        assert values["convs/modularity/4"] == layer.values["modularity"]
        assert "convs/cka_to_previous/4" not in values
        assert watching.record(1)["convs_linear_cka/cka_to_previous/4"] == pytest.approx(1)  # of the same network


class TestFabric:
    def test_a_loop_of_fabric(self, tmp_path: Path) -> None:
        """One wrapped by Fabric with its loggers, beside a plain one: the same numbers, and images in TensorBoard."""
        logger = TensorBoardLogger(tmp_path, name="run")
        fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
        net = network()
        wrapped, steps = fabric.setup(net, optimizer(net))
        images = Images(heatmap=True, embedding=False, neighbours=2)
        watching = recorder(wrapped, store=tmp_path / "ssc", loggers=fabric.loggers, images=images)
        watching.record(0)
        train(wrapped, steps, watching.record, backward=fabric.backward)
        watching.finish()
        net = network()
        assert_same_numbers(watching.store, recorded(recorder(net), net).store)

        found = EventAccumulator(str(logger.log_dir), size_guidance={"images": 0, "scalars": 0}).Reload()
        for taken in watching.store:
            (value,) = (e.value for e in found.Scalars("ssc/modularity/4") if e.step == taken.step)
            assert value == pytest.approx(taken.layers["4"].values["modularity"], rel=1e-6)
        assert [e.step for e in found.Scalars("ssc/cka_to_final/4")] == [0, 1, 2]
        for tag in ("ssc/pairwise_cka", "ssc/neighbours/4"):
            assert [image.step for image in found.Images(tag)] == [0, 1, 2], tag
        assert [image.step for image in found.Images("ssc/curves/modularity")] == [
            0,
            1,
            2,
            2,
        ]  # and with all at the end
        assert not [tag for tag in found.Tags()["images"] if "embedding" in tag]


class TestMonitor:
    @pytest.mark.parametrize("background", [False, True])
    def test_the_same_training_gives_the_same_numbers(self, tmp_path: Path, background: bool) -> None:
        """A Trainer under an SSCMonitor, and the same steps in a loop under a Recorder."""
        options = {"layers": ["model.0", "model.9"], "probe": PROBE, "tau": 20.0}
        monitor = SSCMonitor(
            **options, schedule=1, store=tmp_path / "monitor", heatmap=False, embedding=False, neighbours=0
        )
        pl.seed_everything(0, verbose=False)
        trained = Classifier()
        run = trainer(tmp_path, monitor, max_epochs=2, limit_val_batches=0)
        run.fit(trained)

        pl.seed_everything(0, verbose=False)
        model = Classifier()
        watching = Recorder(
            model,
            PROBE,
            options["layers"],  # type: ignore[arg-type]
            settings=Settings(tau=20.0),
            store=tmp_path / "recorder",
            images=NO_IMAGES,
            background=background,
        )
        steps, loader, done = model.configure_optimizers(), model.train_dataloader(), 0
        watching.record(0, 0)
        for epoch in (1, 2):
            for i, batch in enumerate(loader):
                steps.zero_grad()
                model.training_step(batch, i).backward()
                steps.step()
                watching.poll()
                done += 1
            watching.record(epoch, done, learning_rate=0.05)
        watching.finish()

        for name, value in trained.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name
        assert monitor.store is not None
        assert monitor.store.steps == [0, 3, 6]
        assert_same_numbers(watching.store, monitor.store)
        assert [taken.learning_rate for taken in watching.store] == [None, 0.05, 0.05]
        untimed = {tag: value for tag, value in watching.scalars.items() if "/seconds/" not in tag}
        assert untimed.keys() == {tag for tag in run.callback_metrics if "ssc/" in tag or "cka/" in tag} - {
            tag for tag in run.callback_metrics if "/seconds/" in tag
        }
        for tag, value in untimed.items():
            assert run.callback_metrics[tag] == torch.tensor(value), tag


class TestBackground:
    def test_training_goes_on_while_a_snapshot_is_solved(self, tmp_path: Path, gate: Gate) -> None:
        logs = Logs()
        watching = recorder(network(), store=tmp_path / "ssc", loggers=[logs], background=True)
        gate.open.clear()
        assert watching.record(0) == {}  # nothing is known yet
        assert (watching.busy, watching.pending, watching.steps) == (True, Moment(0, 0), [])
        assert watching.poll() == {}
        assert SnapshotStore(tmp_path / "ssc").steps == []
        gate.open.set()
        settle(watching)
        assert watching.pending == Moment(0, 0)  # solved, and neither stored nor logged before anybody asks
        assert "ssc/modularity/4" not in logs.values
        known = watching.poll()
        assert known["ssc/modularity/4"] == logs.values["ssc/modularity/4"][0]
        assert (watching.busy, watching.pending, watching.steps) == (False, None, [0])
        assert SnapshotStore(tmp_path / "ssc").steps == [0]
        watching.close()
        assert_no_thread_is_left()

    def test_finish_waits_for_the_last_one(self, tmp_path: Path, gate: Gate) -> None:
        logs = Logs()
        watching = recorder(network(), store=tmp_path / "ssc", loggers=[logs], background=True)
        watching.record(0)
        known = watching.record(1)  # waits for the one before, whose values it returns
        assert "ssc/modularity/4" in known
        assert "ssc/cka_to_previous/4" not in known
        watching.finish()
        assert watching.store.epochs == [0, 1]
        assert watching.scalars["ssc/cka_to_previous/4"] == pytest.approx(1)
        assert list(logs.values["ssc/cka_to_final/4"]) == [0, 1]
        assert gate.calls == LAYERS * 2
        assert_no_thread_is_left()

    def test_close_gives_up_what_has_not_begun(self, gate: Gate) -> None:
        watching = recorder(network(), background=True)
        gate.open.clear()
        watching.record(0)
        watching.close()
        gate.open.set()
        assert_no_thread_is_left()
        assert len(gate.calls) <= 1  # only the layer that was being solved goes on to its end
        assert (watching.pending, watching.steps, len(watching.store)) == (None, [], 0)

    def test_a_layer_that_cannot_be_solved_is_told_by_the_next_call(self, gate: Gate) -> None:
        gate.fails_on = 2
        watching = recorder(network(), background=True)
        watching.record(0)
        with pytest.raises(ValueError, match="Layer '4': no solution"):
            watching.record(1)
        watching.record(1)
        watching.finish()
        assert watching.store.epochs == [1]


class TestResume:
    def test_a_run_goes_on(self, tmp_path: Path) -> None:
        """The state goes through a file as plain values; the second half is as if there had been no break."""
        net, logs = network(), Logs()
        steps = optimizer(net)
        first = recorder(net, store=tmp_path / "ssc")
        first.record(0)
        train(net, steps, first.record, range(1, 2))
        state = json.loads(json.dumps(first.state_dict()))
        first.close()
        second = recorder(net, store=tmp_path / "ssc", loggers=[logs], resume=state)
        assert second.steps == [0, 1]
        second.prepare()
        assert second.scalars["ssc/modularity/4"] == first.scalars["ssc/modularity/4"]
        train(net, steps, second.record, range(2, 3))
        second.finish()
        assert second.store.steps == [0, 1, 2]
        assert list(logs.values["ssc/modularity/4"]) == [2]  # of what was logged before nothing is logged again
        assert list(logs.values["ssc/cka_to_final/4"]) == [0, 1, 2]
        net = network()
        assert_same_numbers(second.store, recorded(recorder(net), net).store)

    def test_in_another_folder(self, tmp_path: Path) -> None:
        first = recorder(network(), store=tmp_path / "one")
        first.record(0)
        second = recorder(network(), store=tmp_path / "two", resume=first.state_dict())
        second.record(1)
        assert (SnapshotStore(tmp_path / "one").steps, SnapshotStore(tmp_path / "two").steps) == ([0], [0, 1])

    def test_what_came_after_the_state_is_set_aside(self, tmp_path: Path) -> None:
        first = recorder(network(), store=tmp_path / "ssc")
        first.record(0)
        state = first.state_dict()
        first.record(1)
        first.close()
        second = recorder(network(seed=1), store=tmp_path / "ssc", resume=state)
        assert second.steps == second.store.steps == [0]
        assert [path.name for path in (tmp_path / "ssc" / "superseded").iterdir()] == ["step_000000001.npz"]
        second.record(1)
        assert second.store.load(1).previous == 0

    def test_with_a_snapshot_that_was_never_stored(
        self, tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = recorder(network(), store=tmp_path / "ssc", background=True)
        first.record(0)
        gate.shut(first)
        first.record(1)
        state = first.state_dict()
        assert (state["steps"], state["pending"]) == ([0, 1], 1)
        first.close()  # as if the process were killed
        gate.open.set()
        second = recorder(network(), store=tmp_path / "ssc", resume=state)
        assert "The snapshot of step 1 was still being solved when the run ended." in caplog.text
        assert second.steps == [0]
        second.record(1)
        assert second.store.epochs == [0, 1]

    def test_a_folder_of_another_run_is_refused(self, tmp_path: Path) -> None:
        for name in ("mine", "theirs"):
            recorder(network(), store=tmp_path / name).record(0)
        before = SnapshotStore(tmp_path / "theirs").path(0).read_bytes()
        state = recorder(network(), store=tmp_path / "empty").state_dict() | {"root": str(tmp_path / "mine")}
        message = r"store=.*theirs already holds the snapshots of another run \(steps \[0\]\)\. Name a new folder, or"
        for resume in (None, {}, state):
            with pytest.raises(MismatchError, match=message):
                recorder(network(), store=tmp_path / "theirs", resume=resume)
        another = recorder(network(), store=tmp_path / "theirs", fallback=True)
        assert another.store.root.name == "theirs-1"  # type: ignore[attr-defined]
        assert SnapshotStore(tmp_path / "theirs").path(0).read_bytes() == before

    def test_a_state_of_another_probe_is_refused(self, tmp_path: Path) -> None:
        first = recorder(network(), store=tmp_path / "ssc")
        first.record(0)
        with pytest.raises(MismatchError, match=r"The probe differs from the one of the snapshots in .*ssc, so"):
            Recorder(network(), data(30, seed=5).tensors, LAYERS, store=tmp_path / "ssc", resume=first.state_dict())
        assert SnapshotStore(tmp_path / "ssc").steps == [0]


class TestReference:
    @pytest.mark.parametrize("kind", ["snapshot", "file", "folder", "checkpoint"])
    def test_is_the_same_however_it_is_given(self, tmp_path: Path, kind: str) -> None:
        other = network(seed=1)
        taken = snapshot(other, *PROBE, layers=LAYERS)
        store = SnapshotStore(tmp_path / "other")
        store.save(taken)
        torch.save({"state_dict": other.state_dict()}, tmp_path / "other.ckpt")
        given = {
            "snapshot": taken,
            "file": store.path(0),
            "folder": str(tmp_path / "other"),
            "checkpoint": tmp_path / "other.ckpt",
        }
        net = network()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        watching = recorder(net, reference=given[kind])
        watching.record(0)
        now = watching.store.load(0)
        for name in LAYERS:
            values = now.layers[name].values
            assert values["cka_to_reference"] == pytest.approx(cka(now, taken, name), abs=1e-7)
            assert 0 <= values["linear_cka_to_reference"] <= 1
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]), name  # weights of a checkpoint are only lent

    def test_of_another_probe_is_refused(self) -> None:
        other = snapshot(network(), *data(30, seed=5).tensors, layers=LAYERS)
        with pytest.raises(MismatchError, match="was taken on another probe, so its graphs cannot be compared"):
            recorder(network(), reference=other).record(0)

    def test_that_cannot_be_loaded_is_refused_every_time(self, tmp_path: Path) -> None:
        """Or later records would go on without what the user asked for."""
        watching = recorder(network(), reference=tmp_path / "other.ckpt")
        for epoch in range(2):
            with pytest.raises(CheckpointError, match=r"reference=.*other\.ckpt does not exist"):
                watching.record(epoch)
        assert watching.steps == []
        torch.save(network(seed=1).state_dict(), tmp_path / "other.ckpt")  # what the message asks for
        watching.record(2)
        assert "cka_to_reference" in watching.store.load(2).layers["4"].values

    def test_a_network_among_several(self, tmp_path: Path) -> None:
        trained, average = network(seed=1), network(seed=2)
        weights = {
            **{f"model.{name}": value for name, value in trained.state_dict().items()},
            **{f"ema._orig_mod.{name}": value for name, value in average.state_dict().items()},
        }
        torch.save({"state_dict": weights, "epoch": 3}, path := tmp_path / "last.ckpt")
        message = (
            r"reference=.*last\.ckpt: .* 2 networks that fit: 'ema', 'model'\. Say which .* reference='FILE:model'"
        )
        with pytest.raises(CheckpointError, match=message):
            recorder(network(), reference=path).record(0)
        with pytest.raises(CheckpointError, match="holds no network 'mean', only 'model', 'ema'"):
            recorder(network(), reference=f"{path}:mean").record(0)
        for name, other in (("model", trained), ("ema", average)):
            watching = recorder(network(), reference=f"{path}:{name}")
            watching.record(0)
            now, then = watching.store.load(0), snapshot(other, *PROBE, layers=LAYERS)
            assert now.layers["4"].values["cka_to_reference"] == pytest.approx(cka(now, then, "4"), abs=1e-7)


class TestWhen:
    def test_record_has_to_know_when_it_is(self) -> None:
        watching = recorder(network())
        with pytest.raises(ValueError, match=r"give it epoch=, step= or both\.$"):
            watching.record()
        assert len(watching.store) == 0

    def test_steps_without_epochs(self) -> None:
        watching = recorder(network())
        watching.record(step=0)
        watching.record(step=7, trigger="steps", logged=6)
        (_, moment) = (taken.moment for taken in watching.store)
        assert (moment.step, moment.trigger, moment.logged) == (7, "steps", 6)
        assert np.isnan(moment.epoch)
        assert watching.store.epochs == []

    def test_a_fraction_of_an_epoch_needs_its_step(self) -> None:
        watching = recorder(network())
        watching.record(1)
        for epoch in (1.5, float("nan")):
            with pytest.raises(ValueError, match=f"epoch={epoch} is no whole number .*: give step=, too"):
                watching.record(epoch)
        watching.record(1.5, step=3)
        assert [(t.step, t.epoch) for t in watching.store] == [(1, 1), (3, 1.5)]

    def test_a_moment_is_taken_once(self, gate: Gate) -> None:
        watching = recorder(network())
        first = dict(watching.record(0))
        assert watching.record(0) == first
        assert gate.calls == LAYERS
        assert watching.holds(0)
        assert not watching.holds(1)

    def test_after_the_finish(self) -> None:
        """Finishing again compares everything with the new last one, and nothing where there is no new one."""
        logs = Logs()
        watching = recorder(network(), loggers=[logs], background=True)
        watching.record(0)
        watching.finish()
        calls = logs.calls
        watching.finish()
        assert logs.calls == calls
        assert logs.values["ssc/cka_to_final/4"] == {0: pytest.approx(1)}
        watching.record(1)
        watching.finish()
        assert watching.store.epochs == [0, 1]
        assert list(logs.values["ssc/cka_to_final/4"]) == [0, 1]
        assert_no_thread_is_left()

    def test_finish_without_a_snapshot(self) -> None:
        logs = Logs()
        recorder(network(), loggers=[logs]).finish()
        assert logs.values == {}


def test_a_failed_snapshot_leaves_the_recorder_whole(gate: Gate) -> None:
    net = network()
    watching = recorder(net)
    gate.fails_on = 2
    with pytest.raises(ValueError, match="Layer '4': no solution"):
        watching.record(0)
    assert (watching.steps, watching.pending) == ([], None)
    nn.init.constant_(net[4].bias, float("nan"))
    with pytest.raises(ValueError, match="Layer '4' puts out NaN or infinity"):
        watching.record(0)
    nn.init.zeros_(net[4].bias)
    watching.record(0)
    assert watching.store.epochs == [0]


def test_what_was_said_and_what_layers_took_is_kept(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shift, self.last = nn.Linear(4, 8), nn.Linear(1, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.first(x) + self.shift(torch.ones(1, 1))))

    texts = [f"row {i}" for i in range(20)]
    made = Recorder(Scaled(), torch.rand(20, 4), layers="Linear", store=tmp_path / "a", texts=texts)
    for epoch in range(3):
        if epoch == 2:
            logging.getLogger("lightning_ssc.anywhere").warning("Something is left out.")
        made.record(epoch)
    made.finish()
    assert isinstance(made.store, SnapshotStore)
    first, second, third = (made.store.header(epoch) for epoch in range(3))
    assert len(first.notes) == 1
    assert "1 of the 3 layers that 'Linear' selects are not watched" in first.notes[0]
    assert "shift" in first.notes[0]
    assert (second.notes, third.notes) == ((), ("Something is left out.",))
    assert list(first.layer_seconds) == ["first", "last"]
    assert 0 < sum(first.layer_seconds.values()) <= first.seconds["total"]
    assert made.store.load(0).layers["first"].seconds == first.layer_seconds["first"]
    assert made.store.load_card().texts == tuple(texts)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="There are 20 texts for the 30 inputs"):
        recorder(network(), texts=texts)


def test_what_is_wrong_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No layer matches 'convs'"):
        recorder(network(), layers=["convs"], store=tmp_path / "ssc")
    assert not (tmp_path / "ssc").exists()


def test_processes_store_what_one_stores(tmp_path: Path) -> None:
    """Every rank trains on the same batches, so that averaged gradients are those of one process, bit for bit."""
    assert processes.distributed(processes.record, 2, tmp_path) == [0, 0]
    alone = SnapshotStore(tmp_path / "alone")
    assert alone.epochs == [0, 1, 2]
    assert "cka_to_reference" in alone.header(2).values["4"]
    for name in ("foreground", "background"):
        assert_same_numbers(SnapshotStore(tmp_path / name), alone)
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2)]
    final = {f"ssc/modularity/{name}": layer.values["modularity"] for name, layer in alone.load(2).layers.items()}
    for rank in range(2):
        assert told[rank]["modularity"] == [final, final]  # every rank knows
        assert told[rank]["logged"] == ([[0, 1, 2]] * 2 if rank == 0 else [[], []])  # and one logs
        assert "store=" in told[rank]["folder"]
        assert "another probe" in told[rank]["reference"]
        for refused in ("folder", "reference"):  # what rank zero alone sees is said on all
            assert told[rank][refused].startswith("SSC failed on rank 0: MismatchError: ")
