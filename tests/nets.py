"""Small networks, data, loops and a logger that tests share."""

from __future__ import annotations

from collections.abc import Callable
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


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    """With momentum, whose state is part of a training."""
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def train(
    net: nn.Module,
    steps: torch.optim.Optimizer,
    after: Callable[[int], Any] = lambda epoch: None,
    epochs: range = range(1, 3),
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> None:
    """Train without a Trainer: epochs of two steps each, with what is to be done at their ends."""
    x, y = data(40, seed=1).tensors
    for epoch in epochs:
        for part in (slice(20), slice(20, 40)):
            steps.zero_grad()
            backward(nn.functional.cross_entropy(net(x[part]), y[part]))
            steps.step()
        after(epoch)


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


class Logs:
    """A logger that keeps what it gets: values by tag and step, and how often it was called."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {}
        self.calls = 0

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.calls += 1
        for tag, value in metrics.items():
            self.values.setdefault(tag, {})[step] = value


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
