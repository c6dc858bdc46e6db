"""Small networks and data that tests share."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 3


def data(n: int = 60, seed: int = 0, size: int = 8) -> TensorDataset:
    """Images of three classes that differ by a pattern under noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    patterns = torch.randn(CLASSES, 3, size, size, generator=torch.Generator().manual_seed(99))
    return TensorDataset(patterns[y] + torch.randn(n, 3, size, size, generator=generator), y)


def convnet(dropout: float = 0.2) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


class Classifier(pl.LightningModule):
    """A classifier as users write it: the network in an attribute, dropout, batch norm, noise in training."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.model = convnet() if net is None else net

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x + 0.1 * torch.randn_like(x)), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(seed=1), batch_size=20, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(seed=2), batch_size=20)


def trainer(root: Any, *callbacks: Any, **kwargs: Any) -> pl.Trainer:
    """A Trainer for the CPU that says little; ``logger=False`` and no checkpoints unless asked for."""
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(default_root_dir=root, callbacks=list(callbacks), num_sanity_val_steps=1, **options | kwargs)
