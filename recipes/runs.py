"""Finished runs of recipes, as their trainers left them."""

from __future__ import annotations

from pathlib import Path

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ssc import Snapshot, SnapshotStore
from lightning_ssc.analysis import find_store, similarity
from lightning_ssc.analysis.dynamics import Table


def versions(folder: Path) -> list[Path]:
    """Version folders of a run, the latest last."""
    return sorted(folder.glob("version_*"), key=lambda path: int(path.name.rsplit("_", 1)[1]))


class Runs:
    """The runs below a folder, by recipe.

    Args:
        root: The folder.
        recipes: Folder of the recipes, for messages.
    """

    def __init__(self, root: Path, recipes: str) -> None:
        self.root, self.recipes = root, recipes

    def folder(self, name: str) -> Path:
        """The latest version of a run.

        Raises:
            FileNotFoundError: There is none, or it has not come to its end.
        """
        found = versions(self.root / name)
        if not found:
            raise FileNotFoundError(
                f"no run in {self.root / name}: python -m recipes fit --config {self.recipes}/{name}.yaml"
            )
        if not self.is_done(name):
            raise FileNotFoundError(
                f"the run in {found[-1]} has not come to its end: wait for it, or go on with it by "
                f"--config {self.recipes}/{name}.yaml --ckpt_path <its last checkpoint>"
            )
        return found[-1]

    def is_done(self, name: str) -> bool:
        """Whether its latest version has come to the end of its last epoch."""
        for version in versions(self.root / name)[-1:]:
            planned = yaml.safe_load((version / "config.yaml").read_text())["trainer"]["max_epochs"]
            stores = list(version.rglob("step_*.npz"))
            return bool(stores) and bool(find_store(version).epochs[-1] == planned)
        return False

    def store(self, name: str) -> SnapshotStore:
        """Its snapshots."""
        return find_store(self.folder(name))

    def snapshot(self, name: str, epoch: int | None = None) -> Snapshot:
        """What there is of an epoch, or of the last one."""
        store = self.store(name)
        return store.load(store.epochs[-1] if epoch is None else epoch)

    def heatmap(self, name: str, epoch: int | None = None) -> tuple[Table, list[str]]:
        """SSC-CKA between its layers, after an epoch or the last one, and the layers' names."""
        found = similarity(self.snapshot(name, epoch), linear=False)
        return found.ssc, found.rows

    def accuracies(self, name: str) -> list[float]:
        """Accuracy on all test images after the epochs at which it was measured."""
        events = EventAccumulator(str(self.folder(name)), size_guidance={"scalars": 0}).Reload()
        return [event.value for event in events.Scalars("val/accuracy")]
