"""Finished runs of recipes, as their trainers left them."""

from __future__ import annotations

from pathlib import Path

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ssc import SnapshotStore
from lightning_ssc.analysis import Inputs, find_store, inputs, similarity
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
        planned = yaml.safe_load((found[-1] / "config.yaml").read_text())["trainer"]["max_epochs"]
        if find_store(found[-1]).epochs[-1] != planned:
            raise FileNotFoundError(
                f"the run in {found[-1]} has not come to its end, epoch {planned}: wait for it, or go on with it by "
                f"--config {self.recipes}/{name}.yaml --ckpt_path <its last checkpoint>"
            )
        return found[-1]

    def store(self, name: str) -> SnapshotStore:
        """Its snapshots."""
        return find_store(self.folder(name))

    def heatmap(self, name: str, epoch: int | None = None) -> tuple[Table, list[str]]:
        """SSC-CKA between its layers, after an epoch or the last one, and the layers' names."""
        store = self.store(name)
        found = similarity(store.load(store.epochs[-1] if epoch is None else epoch), linear=False)
        return found.ssc, found.rows

    def accuracy(self, name: str) -> tuple[float, float]:
        """Accuracy on all test images after the last epoch, and the seconds from the first event to that one."""
        events = EventAccumulator(str(self.folder(name)), size_guidance={"scalars": 0}).Reload()
        accuracy = events.Scalars("val/accuracy")
        return accuracy[-1].value, accuracy[-1].wall_time - events.FirstEventTimestamp()

    def last_convolution(self, name: str) -> Inputs:
        """The probe as the graph of the last convolution sees it."""
        taken = self.store(name).load(self.store(name).epochs[-1])
        return inputs(taken, list(taken.layers)[-1])
