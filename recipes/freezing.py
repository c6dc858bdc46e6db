"""What freezing settled layers saves, and what it costs: ``python -m recipes.freezing --data.root ROOT``.

Trains each network without freezing, with ``FreezeSettled`` and with layers frozen at fixed times (FreezeOut, Brock et
al. 2017: its times, not its rates), all under the same monitor. It can be stopped at any time: finished trainings are
skipped and a begun one is taken up at its last epoch. Two numbers say what was saved, without snapshots: seconds of the
processor in training batches, with one thread, and floating-point operations of forward and backward passes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import auto_cli
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.flop_counter import FlopCounterMode

from lightning_ssc import FreezeSettled, Recorder, SSCMonitor
from recipes.__main__ import precision_on
from recipes.converged import Images
from recipes.data import CIFAR10, ImageData
from recipes.module import Classifier
from recipes.tables import markdown

NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet-20": {"network": "cifar_resnet", "network_args": {"depth": 20}},
    "DenseNet": {"network": "densenet", "network_args": {"growth_rate": 8, "block_config": [4, 4, 4], "stem": 16}},
}
METHODS = ("nothing", "FreezeSettled", "fixed times")


class FixedTimes(FreezeSettled):
    """Layers frozen one after the other at fixed times, by FreezeOut's cubic schedule.

    Args:
        first: The time of the first layer before it is cubed, as a share of the run; the paper advises 0.8.

    Example:
        >>> [round(FixedTimes().time(place, 5), 2) for place in range(5)]
        [0.51, 0.61, 0.73, 0.86, 1.0]
    """

    def __init__(self, first: float = 0.8) -> None:
        super().__init__("freeze", unfreeze_on_lr_drop=False)
        self.first = first

    def time(self, place: int, layers: int) -> float:
        """The share of the run after which a layer is frozen."""
        return (self.first + (1 - self.first) * place / (layers - 1)) ** 3

    def is_due(self, recorder: Recorder, layer: str, done: float) -> bool:
        """Whether its time has come."""
        labels = [watched.label for watched in recorder.watched]
        return done >= self.time(labels.index(layer), len(labels))


class Account(pl.Callback):
    """Counts what training takes, snapshots left out; first among the callbacks, whose work it counts otherwise.

    Args:
        freezing: What freezes layers, if anything does.
    """

    def __init__(self, freezing: FreezeSettled | None = None) -> None:
        self.freezing, self._begun, self._images, self._operations = freezing, 0.0, 0, 0
        self._counter: FlopCounterMode | None = None
        self.kept: dict[str, Any] = {"seconds": 0.0, "operations": 0, "frozen": []}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock and, in each epoch's second batch, by when layers are frozen, count operations."""
        self._begun = time.process_time()
        if batch_idx == 1:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop them."""
        self.kept["seconds"] += time.process_time() - self._begun
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._operations, self._counter = self._counter.get_total_flops() // len(batch[0]), None
        self._images += len(batch[0])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Note what the epoch took, and what is frozen."""
        self.kept["operations"] += self._operations * self._images
        self._images = 0
        self.kept["frozen"].append(len(self.freezing.frozen) if self.freezing else 0)

    def state_dict(self) -> dict[str, Any]:
        """What was counted so far."""
        return dict(self.kept)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.kept = dict(state_dict)


def train(
    network: str, method: str, seed: int, data: ImageData, epochs: int, size: int, folder: Path
) -> dict[str, Any]:
    """One training, from its last epoch on where it was begun; of one that is done what it came to.

    Args:
        network: One of :data:`NETWORKS`.
        method: One of :data:`METHODS`.
        seed: Of weights and order of the images.
        data: The images.
        epochs: How many; the rate drops to a fifth after six and nine tenths of them.
        size: Inputs in the probe.
        folder: Where its checkpoint, its snapshots and its result lie.
    """
    done = folder / "result.json"
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    pl.seed_everything(seed, verbose=False)
    milestones = (round(0.6 * epochs), round(0.9 * epochs))
    precision: Any = precision_on("cpu")
    model = Classifier(**NETWORKS[network], lr=0.05, milestones=milestones, channels_last=True)
    freezing = {"FreezeSettled": FreezeSettled("freeze"), "fixed times": FixedTimes()}.get(method)
    account = Account(freezing)
    monitor = SSCMonitor(probe_size=size, schedule=1, heatmap=False, store=folder / "ssc")
    callbacks = [account, *([] if freezing is None else [freezing]), monitor]
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks, ModelCheckpoint(folder, filename="epoch", save_last=True)],
        check_val_every_n_epoch=epochs + 1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    trainer.fit(model, data, ckpt_path=last if last.exists() else None, weights_only=last.exists() or None)
    accuracy = trainer.validate(model, data, verbose=False)[0]["val/accuracy"]
    line = {"network": network, "method": method, "seed": seed, "epochs": epochs, "precision": precision}
    line |= {"accuracy": accuracy, **account.kept}
    folder.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(line | {"images": len(data.train)}))
    return train(network, method, seed, data, epochs, size, folder)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown of trainings: means over the seeds that every method of a network has, against freezing nothing."""
    rows = []
    for network in dict.fromkeys(line["network"] for line in lines):
        of_method = {
            method: {line["seed"]: line for line in lines if (line["network"], line["method"]) == (network, method)}
            for method in METHODS
        }
        seeds = sorted(set.intersection(*(set(found) for found in of_method.values())))
        for method in METHODS if seeds else ():
            pairs = [(of_method[method][seed], of_method["nothing"][seed]) for seed in seeds]
            saved = {
                what: 1 - mean(one[what] for one, _ in pairs) / mean(other[what] for _, other in pairs)
                for what in ("seconds", "operations")
            }
            rows.append(
                [
                    network,
                    ", ".join(map(str, seeds)),
                    method,
                    ", ".join(f"{one['accuracy']:.1%}" for one, _ in pairs),
                    f"{100 * mean(one['accuracy'] - other['accuracy'] for one, other in pairs):+.1f}",
                    f"{saved['seconds']:.0%}",
                    f"{saved['operations']:.0%}",
                    "; ".join(" ".join(map(str, one["frozen"])) for one, _ in pairs),
                ]
            )
    headings = ["network", "seeds", "frozen by", "accuracy", "points", "time saved", "operations saved"]
    return markdown([*headings, "layers frozen, by epoch"], rows)


def freezing(
    data: Images = Images(),  # noqa: B008  (a value)
    fraction: float = 1.0,
    epochs: int = 30,
    networks: Sequence[str] = tuple(NETWORKS),
    seeds: Sequence[int] = (0, 1),
    probe_size: int = 1000,
    out: Path = Path("runs/freezing"),
) -> None:
    """Train with and without freezing, and print what it saves and costs.

    Args:
        data: Where CIFAR-10 is.
        fraction: Share of its 50,000 training images.
        epochs: How many.
        networks: Which networks, of ResNet-20 and DenseNet.
        seeds: Of weights and order of the images.
        probe_size: Inputs of the probe.
        out: Where trainings lie; those that are there are not run again.
    """
    torch.set_num_threads(1)  # so that seconds of the processor are those of the work
    lines = []
    for seed in seeds:
        for network in networks:
            for method in METHODS:
                images = CIFAR10(data.root, fraction=fraction, seed=seed, batch_size=64)
                name = f"{fraction}-{epochs}-{network}-{seed}-{method}".replace(" ", "-")
                lines.append(train(network, method, seed, images, epochs, probe_size, out / name))
                print(json.dumps(lines[-1]), flush=True)
    print(table(lines))


if __name__ == "__main__":
    auto_cli(freezing, as_positional=False)
