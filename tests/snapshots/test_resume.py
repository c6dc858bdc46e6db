"""Folders of runs: two at once get two, and a resumed run goes on only with what can be compared."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_ssc import Images, Recorder, Settings, SnapshotStore, SSCMonitor
from lightning_ssc.snapshots import MismatchError, free_folder
from tests.nets import Classifier, convnet, data, trainer

PROBE = data(20).tensors
LAYERS = ["4", "9"]


def recorder(store: Path, **kwargs: Any) -> Recorder:
    torch.manual_seed(0)
    images = Images(heatmap=False, embedding=False, neighbours=0)
    return Recorder(convnet(), PROBE, kwargs.pop("layers", LAYERS), store=store, images=images, **kwargs)


def left_behind(store: Path, *steps: int, settings: Settings | None = None) -> dict[str, Any]:
    """A run of some steps that has ended; returns its state."""
    watching = recorder(store, settings=settings)
    for step in steps:
        watching.record(step=step)
    watching.close()
    return watching.state_dict()


def test_two_at_once_get_two_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = (recorder(tmp_path / "ssc", fallback=True) for _ in range(2))
    assert [watching.store.root.name for watching in (first, second)] == ["ssc", "ssc-1"]  # type: ignore[attr-defined]
    assert f"Snapshots go to {tmp_path / 'ssc'}.\n" in caplog.text
    assert f"Snapshots go to {tmp_path / 'ssc-1'}: {tmp_path / 'ssc'} is in use by process" in caplog.text
    with pytest.raises(MismatchError, match=r"store=.*ssc is in use by process \d+ on .*\. Name a new folder, or end"):
        recorder(tmp_path / "ssc")
    first.close()
    assert recorder(tmp_path / "ssc").store.root == tmp_path / "ssc"  # type: ignore[attr-defined]


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, named: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"store=.*file/ssc cannot be written \(Not a directory\)\. Name another folder"):
        free_folder(tmp_path / "file" / "ssc", named=named)


@pytest.mark.parametrize("spelling", [".", "./", "..", "here/"])
def test_a_folder_however_it_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    state = left_behind(Path(spelling), 0)
    placed = (tmp_path / "inner" / spelling).resolve()
    assert SnapshotStore(placed).steps == [0]
    beside = recorder(Path(spelling), fallback=True)
    assert beside.store.root == placed.with_name(f"{placed.name}-1")  # type: ignore[attr-defined]
    beside.close()
    assert recorder(Path(spelling), resume=state).steps == [0]


def test_a_monitor_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    watching = SSCMonitor("model.9", probe=PROBE, heatmap=False, embedding=False, store=".", schedule=[0, 1])
    trainer(tmp_path / "other", watching, max_epochs=1).fit(Classifier())
    assert SnapshotStore(tmp_path).epochs == [0, 1]


@pytest.mark.parametrize(
    ("settings", "layers", "said"),
    [
        (Settings(tau=50), LAYERS, "tau was 10.0 and is 50"),
        (Settings(preset="paper"), LAYERS, "preset was None and is 'paper'"),
        (Settings(solver="admm", normalize=False), LAYERS, "normalize was True and is False; solver was 'active_set'"),
        (Settings(pooling="mean"), LAYERS, "pooling was 'flatten' and is 'mean'"),
        (Settings(pad=0.0), LAYERS, "pad was None and is 0.0"),
        (Settings(), ["0", "9"], "layers that are not watched any more: 4; layers that were not watched: 0."),
    ],
    ids=["tau", "preset", "solver and normalize", "pooling", "pad", "layers"],
)
def test_one_history_is_of_one_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: Settings, layers: list[str], said: str
) -> None:
    state = left_behind(tmp_path / "ssc", 0, 2)
    with pytest.raises(MismatchError, match="were taken with other settings") as error:
        recorder(tmp_path / "ssc", resume=state, settings=settings, layers=layers)
    assert said in str(error.value)
    assert "on_mismatch='new'" in str(error.value)
    other = recorder(tmp_path / "ssc", resume=state, settings=settings, layers=layers, on_mismatch="new")
    assert (other.store.root.name, other.steps) == ("ssc-1", [])  # type: ignore[attr-defined]
    assert said in caplog.text
    assert other.state_dict()["run"] != state["run"]
    assert SnapshotStore(tmp_path / "ssc").steps == [0, 2]


def test_inside_an_epoch(tmp_path: Path) -> None:
    watching = recorder(tmp_path / "ssc")
    for step in (0, 2, 5):
        watching.record(step / 4, step)
    state = watching.state_dict()
    watching.record(7 / 4, 7)  # after the checkpoint
    watching.close()
    resumed = recorder(tmp_path / "ssc", resume=state)
    resumed.record(5 / 4, 5)  # once more: it is there
    resumed.record(8 / 4, 8)
    assert [(taken.step, taken.epoch, taken.previous) for taken in resumed.store] == [
        (0, 0, None),
        (2, 0.5, 0),
        (5, 1.25, 2),
        (8, 2, 5),
    ]


def test_a_last_snapshot_that_cannot_be_read_is_gone_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = left_behind(tmp_path / "ssc", 0, 2)
    SnapshotStore(tmp_path / "ssc").path(2).write_bytes(b"noise")
    resumed = recorder(tmp_path / "ssc", resume=state)
    resumed.record(step=4)
    assert resumed.store.load(step=4).previous is None
    assert "step_000000002.npz is not a readable snapshot" in caplog.text
    assert "The next snapshot is not compared with it." in caplog.text


class TestMoved:
    def test_named(self, tmp_path: Path) -> None:
        state = left_behind(tmp_path / "old", 0, 2)
        (tmp_path / "old").rename(tmp_path / "new")
        resumed = recorder(tmp_path / "new", resume=state)
        resumed.record(step=4)
        assert SnapshotStore(tmp_path / "new").steps == [0, 2, 4]

    def test_another_run_s_folder_is_not_taken_for_it(self, tmp_path: Path) -> None:
        state = left_behind(tmp_path / "old", 0, 2)
        left_behind(tmp_path / "other", 0, 2)  # with the same probe, settings, layers and steps
        shutil.rmtree(tmp_path / "old")
        with pytest.raises(MismatchError, match="other already holds the snapshots of another run"):
            recorder(tmp_path / "other", resume=state)

    @pytest.mark.filterwarnings("ignore:The dirpath has changed")
    def test_with_the_checkpoint_of_a_trainer(self, tmp_path: Path) -> None:
        def fit(root: Path, epochs: int, resume: Path | None = None) -> SSCMonitor:
            pl.seed_everything(0, verbose=False)
            watching = SSCMonitor("model.9", probe=PROBE, heatmap=False, embedding=False)
            saving = ModelCheckpoint(save_last=True)
            run = trainer(root, watching, saving, max_epochs=epochs, enable_checkpointing=True, logger=True)
            run.fit(Classifier(), ckpt_path=resume, weights_only=True)
            return watching

        fit(tmp_path / "a", 1)
        (tmp_path / "a").rename(tmp_path / "b")
        last = tmp_path / "b" / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
        resumed = fit(tmp_path / "b", 2, last)
        assert resumed.store is not None
        assert "version_1" in str(resumed.store)
        assert resumed.store.epochs == [0, 1, 2]
