"""The paper's training (section 3.2) as a LightningModule."""

from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import MultiStepLR
from torchmetrics.classification import MulticlassAccuracy

from recipes import models


class Classifier(LightningModule):
    """A classifier of images, trained by SGD with a learning rate that drops in steps.

    Logs ``train/loss``, ``train/accuracy``, ``val/loss`` and ``val/accuracy`` once an epoch.

    Args:
        network: One of ``recipes.models``.
        num_classes: Classes to tell apart; the command line takes it from the data.
        network_args: Further arguments of the network, such as ``{"widen_factor": 10}``.
        lr: Learning rate at the start.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        milestones: Epochs after which the learning rate drops.
        gamma: Factor of each drop.
        channels_last: Keep weights and images in channels-last memory format, the faster one on GPUs.
        compile: Run the network through ``torch.compile``.

    Raises:
        ValueError: There is no such network, or it takes no such argument.

    Example:
        >>> Classifier("resnet")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: no network 'resnet' in recipes.models; the nearest are resnet...
    """

    def __init__(
        self,
        network: str = "resnet18",
        num_classes: int = 10,
        network_args: dict[str, Any] | None = None,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        milestones: tuple[int, ...] = (30, 60, 90),
        gamma: float = 0.2,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if network not in models.__all__:
            near = get_close_matches(network, models.__all__, n=4, cutoff=0)
            raise ValueError(f"no network {network!r} in recipes.models; the nearest are {', '.join(near)}")
        self.save_hyperparameters()
        self.num_classes = num_classes
        build = getattr(models, network)
        known = [name for name in signature(build).parameters if name != "num_classes"]
        if unknown := sorted(set(network_args or {}) - set(known)):
            raise ValueError(
                f"{network} takes no argument {unknown[0]!r} in network_args; it takes {', '.join(known) or 'none'}"
            )
        self.network = build(num_classes=num_classes, **(network_args or {}))
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network.to(memory_format=self.memory_format)
        if compile:
            self.network.compile()
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def setup(self, stage: str) -> None:
        """Refuse data of another number of classes.

        Raises:
            ValueError: The data has more or fewer classes than the network.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        classes = getattr(data, "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise ValueError(
                f"the network tells {self.num_classes} classes apart and {type(data).__name__} has "
                f"{classes}: build it with num_classes={classes}"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another number of classes.

        Raises:
            ValueError: The checkpoint's network has more or fewer classes than this one.
        """
        classes = checkpoint["hyper_parameters"]["num_classes"]
        if classes != self.num_classes:
            raise ValueError(
                f"the checkpoint is of a network for {classes} classes and the data has {self.num_classes}: "
                "use the data it was trained on, or train anew"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.network(images.to(memory_format=self.memory_format))
        return logits

    def on_train_epoch_start(self) -> None:
        """Log the epoch's learning rate."""
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of images and labels."""
        return self._step("train", self.train_accuracy, batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure loss and accuracy on a batch of images and labels."""
        self._step("val", self.val_accuracy, batch)

    def _step(self, split: str, accuracy: MulticlassAccuracy, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy(logits, labels)
        values: dict[str, Tensor | MulticlassAccuracy] = {f"{split}/loss": loss, f"{split}/accuracy": accuracy}
        self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD whose learning rate is multiplied by ``gamma`` after every milestone."""
        hparams = self.hparams
        optimizer = torch.optim.SGD(
            self.parameters(), hparams["lr"], momentum=hparams["momentum"], weight_decay=hparams["weight_decay"]
        )
        return [optimizer], [MultiStepLR(optimizer, list(hparams["milestones"]), hparams["gamma"])]
