"""Two epochs with ``SSCMonitor()`` as first written, on networks of the zoo: the weights are those of a fit without."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_ssc import SSCMonitor
from tests.zoo_networks import N, Network

FITS = {
    "BERT": "transformers/bert", "GPT-2": "transformers/gpt2", "T5": "transformers/t5", "LoRA": "peft/bert Lora",
    "ViT": "timm/vit_tiny_patch16_224", "ConvNeXt": "timm/convnext_atto", "Swin": "timm/swin_tiny_patch4_window7_224",
    "U-Net": "segmentation_models_pytorch/Unet", "GNN": "torch_geometric/GCN", "diffusion": "diffusers/UNet2DModel",
    "detection": "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", "VAE": "monai/VarAutoEncoder",
}  # fmt: skip


class Fit(pl.LightningModule):
    """A network of the zoo, trained as users do: inputs in a batch with a label, which a detector turns to boxes."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.net, self.network = network.make(), network
        inputs = network.inputs()
        self.names = list(inputs) if isinstance(inputs, dict) else None
        tensors = list(inputs.values()) if isinstance(inputs, dict) else inputs
        self.tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        self.detects = "rcnn" in network.name

    def forward(self, *x: Tensor) -> Any:
        if self.network.forward is not None:
            return self.network.forward(self.net, x[0])
        return self.net(*x) if self.names is None else self.net(**dict(zip(self.names, x, strict=True)))

    def _loss(self, batch: Sequence[Tensor]) -> Tensor:
        *x, y = batch
        if self.detects and self.net.training:
            boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0]])
            targets = [{"boxes": boxes, "labels": label[None] + 1} for label in y]
            return torch.stack(list(self.net(list(x[0]), targets).values())).sum()
        if self.detects:
            return torch.zeros(())
        output = next(t for t in _tensors(self(*x)) if t.is_floating_point())
        return (output.flatten(1).mean(1) - y).square().mean()

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.tensors, torch.arange(N) % 3), N // 2, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.tensors, torch.arange(N) % 3), N // 2)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [t for value in values for t in _tensors(value)] if isinstance(output, (dict, list, tuple)) else []


def fit(network: Network, *callbacks: pl.Callback) -> nn.Module:
    """Train a network for two epochs from one seed."""
    pl.seed_everything(0, verbose=False)
    module = Fit(network)
    with tempfile.TemporaryDirectory() as folder:
        pl.Trainer(
            accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, callbacks=list(callbacks),
        ).fit(module)  # fmt: skip
        for monitor in callbacks:  # before its folder goes
            assert isinstance(monitor, SSCMonitor)
            assert monitor.store is not None
            assert monitor.store.epochs == [0, 1, 2]
            assert len(monitor.store.load(2).layers) > 2
    return module


def check_fit(network: Network) -> list[str]:
    """What is wrong with a fit under a monitor; empty where its weights are those of a fit without one."""
    plain, watched = fit(network).state_dict(), fit(network, SSCMonitor()).state_dict()
    different = [key for key in plain if not torch.equal(plain[key], watched[key])]
    return [f"weights differ: {', '.join(different[:5])}"] if different else []
