"""Stores of format 1, whose key was the epoch: what was computed from them then is computed now."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_ssc import SnapshotStore
from lightning_ssc.analysis.dynamics import dynamics
from lightning_ssc.cli import main
from lightning_ssc.snapshots import Settings, SnapshotError, continued_folder

FOLDER = Path(__file__).parent / "format_1"
THEN: dict[str, Any] = json.loads((FOLDER / "dynamics.json").read_text())  # logging steps, one less than steps done


def gone_on_with(root: Path, state: dict[str, Any]) -> tuple[Path, list[int]]:
    """The folder and the steps that a run with the same probe, settings and layers finds."""
    header = SnapshotStore(root).header(0)
    settings = Settings(**header.settings)
    claim, steps = continued_folder(root, state, THEN["probe"], settings, header.layers, named=False)
    return claim.root, steps


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER / "run", tmp_path / "run"))


def test_it_is_read() -> None:
    store = SnapshotStore(FOLDER / "run")
    assert (store.steps, store.epochs) == ([0, 10, 20], [0, 1, 2])
    assert [store.header(step=step).moment.logged for step in store.steps] == THEN["steps"]
    assert store.load(1).step == store.load(step=10).step == 10
    assert list(store.load(2).layers) == THEN["layers"]
    assert store.labels(20).tolist() == [0, 1, 2] * 4  # type: ignore[union-attr]
    card = store.load_card()
    assert card is not None
    assert (card.fingerprint, card.class_names) == (THEN["probe"], ("a", "b", "c"))


@pytest.mark.parametrize(
    "curve", [name for name, values in THEN.items() if name not in ("probe", "layers", "epochs", "steps", "reference")]
)
def test_what_it_measures_is_what_it_measured(curve: str) -> None:
    now = getattr(dynamics(SnapshotStore(FOLDER / "run")), curve)
    np.testing.assert_allclose(now, np.array(THEN[curve], dtype=float), rtol=1e-6)


def test_steps_that_are_all_zero_are_told_apart() -> None:
    store = SnapshotStore(FOLDER / "plain")
    assert (store.steps, store.epochs) == ([0, 1, 2], [0, 1, 2])
    assert [store.load(epoch).epoch for epoch in store.epochs] == [0, 1, 2]


def test_export(tmp_path: Path) -> None:
    assert main(["export", str(FOLDER / "run"), "--csv", str(tmp_path)]) == 0
    assert any(path.stat().st_size for path in tmp_path.glob("**/*.csv"))


def test_a_damaged_file_is_named_and_leaves_the_others(root: Path) -> None:
    (root / "epoch_000001.npz").write_bytes(b"PK")
    store = SnapshotStore(root)
    assert store.epochs == [0, 2]
    assert store.load(2).step == 20
    with pytest.raises(SnapshotError, match=r"epoch_000001\.npz is not a readable snapshot .* Delete the file"):
        store.load(1)


def test_a_run_goes_on_with_it(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = {"root": str(root), "epochs": [0, 1], "steps": [0, 9], "pending": None, "probe": THEN["probe"]}
    assert gone_on_with(root, state) == (root, [0, 10])
    assert (root / "superseded" / "epoch_000002.npz").is_file()  # taken after the checkpoint
    assert SnapshotStore(root).epochs == [0, 1]
    store = SnapshotStore(root)
    store.save(store.load(1))  # taken again, in the format of today
    assert (store.steps, store.path(10).name) == ([0, 10], "step_000000010.npz")
    assert not (root / "epoch_000001.npz").exists()


def test_a_snapshot_that_was_pending_is_said_to_be_missing(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "epoch_000002.npz").unlink()
    state = {"root": str(root), "epochs": [0, 1, 2], "steps": [0, 9, 19], "pending": 2, "probe": THEN["probe"]}
    assert gone_on_with(root, state) == (root, [0, 10])
    assert "The snapshot of step 20 was still being solved" in caplog.text
    assert "are gone" not in caplog.text
