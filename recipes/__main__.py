"""Train a network and watch it: ``python -m recipes fit --config recipes/quickstart.yaml``.

A LightningCLI over three groups of settings: ``data`` (recipes.data), ``model`` (recipes.module) and ``ssc``
(lightning_ssc.SSCMonitor), beside Lightning's own ``trainer``. ``--config`` may be given several times, later files
override earlier ones, and every setting is also an option: ``--ssc.layers conv --trainer.max_epochs 3``.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from rich.table import Table

from lightning_ssc import SSCMonitor
from lightning_ssc.analysis import Dynamics, dynamics, similarity
from lightning_ssc.live.figures import file_name
from lightning_ssc.plots import dynamics_figures, evenly, heatmap, short_names
from lightning_ssc.snapshots import Store
from recipes.data import ImageData
from recipes.module import Classifier


class RecipeCLI(LightningCLI):
    """Adds the monitor, tells the model how many classes the data has, and sums a run up when it is over."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit`` and ``validate``: there is no third split to test on."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the ``ssc`` group."""
        parser.add_lightning_class_args(SSCMonitor, "ssc")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Choose the precision where none is named, and say so."""
        trainer = (self.config if self.subcommand is None else self.config[self.subcommand]).trainer
        if trainer.precision is None:
            trainer.precision = precision_on(trainer.accelerator)
            print(f"Precision: {trainer.precision}, by the device (--trainer.precision names another)")

    def after_fit(self) -> None:
        """Print the table, write the figures, and say how to see more."""
        trainer: Any = self.trainer  # its connectors set attributes that type checkers do not see
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        store = next(callback for callback in trainer.callbacks if isinstance(callback, SSCMonitor)).store
        assert store is not None
        console = Console()
        table = dynamics(store)
        console.print(summary(table))
        accuracy = trainer.callback_metrics.get("val/accuracy")
        if accuracy is not None:
            console.print(f"Accuracy on the validation images: {accuracy:.1%}")
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        write_figures(store, table, folder / "figures")
        console.print(f"Figures: {folder / 'figures'}", soft_wrap=True)
        console.print(f"Look:    tensorboard --logdir {folder}   (the tab Subspaces)", soft_wrap=True)


def precision_on(accelerator: str) -> str:
    """The precision to train in: ``bf16-mixed`` where the device has instructions for it, float32 elsewhere.

    An epoch of ResNet-20 on one core of an AMD EPYC takes 54 s with them against 98 s in float32; on one without,
    bfloat16 takes ten times the time of float32.

    Args:
        accelerator: As in Lightning's Trainer.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
    return "bf16-mixed" if on_cpu and fast_in_bfloat16() else "32-true"


def fast_in_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 by instructions of its own, as PyTorch knows it."""
    return torch.cpu._is_avx512_bf16_supported()


def summary(table: Dynamics) -> Table:
    """One line a layer: its modularity before and after, and when it had settled."""
    first, last = table.moments[0], table.moments[-1]
    lines = Table("layer", title="How the layers' affinity graphs formed")
    for heading in (f"modularity, {first}", str(last), f"SSC-CKA to final above 0.9 from {table.unit}"):
        lines.add_column(heading, justify="right")
    for i, (name, settled) in enumerate(zip(short_names(table.layers), table.settled(0.9), strict=True)):
        when = "never" if math.isnan(settled) else f"{settled:.0f}"
        lines.add_row(name, f"{table.modularity[0, i]:.2f}", f"{table.modularity[-1, i]:.2f}", when)
    return lines


def write_figures(store: Store, table: Dynamics, folder: Path, heatmaps: int = 4) -> None:
    """Write a run's curves, and the heatmaps of some of its snapshots, as PNG files.

    Args:
        store: The snapshots.
        table: Their curves.
        folder: Where to write.
        heatmaps: How many snapshots get a heatmap, spread evenly from the first to the last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for family, figure in dynamics_figures(table).items():
        figure.savefig(folder / f"{family}.png", dpi=150, bbox_inches="tight")
    for place in evenly(len(table.epochs), heatmaps):
        moment = table.moments[place]
        found = similarity(store.load(step=moment.step), linear=False)
        figure = heatmap(found.ssc, found.rows, title=f"SSC-CKA between layers, {moment}")
        figure.savefig(folder / f"heatmap_{file_name(moment)}.png", dpi=150, bbox_inches="tight")


def main(args: list[str] | None = None, run: bool = True) -> RecipeCLI:
    """Run the command line, or only build what it describes.

    Args:
        args: Arguments instead of those of the process.
        run: Whether they begin with a subcommand that is to be run.
    """
    # Advice that does not hold here: batches are cut from memory, everything is logged by the epoch, and a model's size
    # in megabytes is that of its float32 weights in mixed precision, too.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Precision .* is not supported by the model summary.*")
    warnings.filterwarnings("ignore", "The number of training batches .* is smaller than the logging interval.*")
    return RecipeCLI(
        Classifier,
        ImageData,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # Classifier takes plain values, so its checkpoints load without it
        args=args,
        run=run,
    )


if __name__ == "__main__":
    main()
