"""Models as they come: the callback watches them as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_ssc import SSCMonitor
from tests.nets import CLASSES, Classifier, convnet, data, trainer


def small_loader(size: int = 32) -> DataLoader[Any]:
    return DataLoader(data(16, size=size), batch_size=8)


def watch(
    root: Path, model: pl.LightningModule, *, size: int = 32, layers: Any = "blocks", **kwargs: Any
) -> SSCMonitor:
    """One step of training with a snapshot before and after."""
    options = {k: kwargs.pop(k) for k in list(kwargs) if k in ("precision", "accumulate_grad_batches")}
    monitor = SSCMonitor(layers, schedule=1, probe_size=16, heatmap=False, embedding=False, store=False, **kwargs)
    run = trainer(root, monitor, max_epochs=1, limit_train_batches=1, limit_val_batches=1, **options)
    run.fit(model, small_loader(size), small_loader(size))
    assert monitor.store is not None
    assert monitor.store.epochs == [0, 1]
    taken = monitor.store.load(1)
    for name, layer in taken.layers.items():
        assert layer.converged, name
        assert f"ssc/gap/{name}" in run.callback_metrics
    return monitor


@pytest.mark.parametrize(
    ("make", "size", "count"),
    [
        (lambda: torchvision.models.resnet18(num_classes=CLASSES), 32, 10),
        (lambda: torchvision.models.vgg11_bn(num_classes=CLASSES), 32, 11),
        (lambda: torchvision.models.densenet121(num_classes=CLASSES), 32, 63),
        (lambda: torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=CLASSES), 32, 5),
    ],
    ids=["resnet18", "vgg11_bn", "densenet121", "vision transformer"],
)
def test_unmodified_torchvision_models(tmp_path: Path, make: Any, size: int, count: int) -> None:
    monitor = watch(tmp_path, Classifier(make()), size=size)
    assert len(monitor.store.load(1).layers) == count  # type: ignore[union-attr]


class Autoencoder(pl.LightningModule):
    """Without labels, without validation_step, in parts that no forward() joins."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(inplace=True))
        self.decoder = nn.Linear(12, 192)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        return (self.decoder(self.encoder(x)) - x.flatten(1)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_an_autoencoder_without_labels(tmp_path: Path) -> None:
    images = TensorDataset(data(40).tensors[0])
    options: dict[str, Any] = {"heatmap": False, "embedding": False, "store": False, "schedule": 1, "probe_size": 20}
    monitor = SSCMonitor(
        "stages", images, forward=lambda m, x: m.decoder(m.encoder(x)), groups="communities", **options
    )
    run = trainer(tmp_path, monitor, max_epochs=1)
    run.fit(Autoencoder(), DataLoader(images, 10))
    assert {"ssc/modularity/encoder", "ssc/modularity/decoder"} <= set(run.callback_metrics)
    assert float(run.callback_metrics["ssc/modularity/encoder"]) > 0.1  # what Louvain maximises
    with pytest.raises(RuntimeError, match=r"Autoencoder does not run .* Say with forward="):
        trainer(tmp_path, SSCMonitor("stages", images, **options)).fit(Autoencoder(), DataLoader(images, 10))


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")
def test_frozen_batch_norm_stays_frozen(tmp_path: Path) -> None:
    model = Classifier()
    model.model[1].eval()
    seen: list[bool] = []
    model.model[1].register_forward_hook(lambda m, *_: seen.append(m.training))
    statistics = model.model[1].running_mean.clone()
    watch(tmp_path, model, size=8)
    assert not any(seen)
    assert torch.equal(model.model[1].running_mean, statistics)


@pytest.mark.parametrize("how", ["before", "after", "part"])
def test_compiled(tmp_path: Path, how: str) -> None:
    model: Any = Classifier()
    if how == "before":
        model = torch.compile(model, backend="eager")
    elif how == "part":
        model.model = torch.compile(model.model, backend="eager")
    else:
        model.configure_model = lambda: model.model.compile(backend="eager")
    monitor = watch(tmp_path, model, size=8)
    assert list(monitor.store.load(1).layers) == ["model.0", "model.4", "model.9"]  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "32-true"])
def test_precisions(tmp_path: Path, precision: str) -> None:
    model = Classifier()
    monitor = watch(tmp_path, model, size=8, precision=precision)
    values = monitor.store.load(1).layers["model.0"].coef.values()  # type: ignore[union-attr]
    assert values.dtype == torch.float32


def test_channels_last_and_configure_model(tmp_path: Path) -> None:
    class Late(Classifier):
        def __init__(self) -> None:
            super().__init__(nn.Identity())

        def configure_model(self) -> None:
            if isinstance(self.model, nn.Identity):
                self.model = convnet().to(memory_format=torch.channels_last)

    monitor = watch(tmp_path, Late(), size=8, layers="conv")
    assert [layer.channels_last for layer in monitor.recorder.watched] == [True, True]


def test_a_forward_of_several_tensors(tmp_path: Path) -> None:
    class Two(Classifier):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.model(x * scale[:, None, None, None])

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, scale, y = batch
            return nn.functional.cross_entropy(self(x, scale), y)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.training_step(batch, batch_idx)

    x, y = data(30).tensors
    loader = DataLoader(TensorDataset(x, torch.rand(30), y), 10)
    for forward in (None, lambda m, inputs: m.model(inputs[0])):
        monitor = SSCMonitor(schedule=1, probe_size=20, heatmap=False, embedding=False, store=False, forward=forward)
        trainer(tmp_path, monitor, max_epochs=1).fit(Two(), loader, loader)
        assert monitor.store.load(1).labels is not None  # type: ignore[union-attr]


@pytest.mark.parametrize(("pooling", "features"), [("flatten", 17 * 16), ("mean", 16), ("cls", 16)])
def test_tokens_of_a_transformer(tmp_path: Path, pooling: Any, features: int) -> None:
    net = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=CLASSES)
    layers = ["model.encoder.layers.encoder_layer_0"]
    monitor = watch(tmp_path, Classifier(net), layers=layers, pooling=pooling)
    assert monitor.store.load(1).layers[layers[0]].features == features  # type: ignore[union-attr]


def test_several_labels_at_once_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class MultiLabel(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return nn.functional.binary_cross_entropy_with_logits(self(x), y)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.training_step(batch, batch_idx)

    loader = DataLoader(TensorDataset(data(30).tensors[0], torch.rand(30, CLASSES).round()), 10)
    monitor = SSCMonitor(schedule=1, probe_size=20, heatmap=False, embedding=False, store=False)
    run = trainer(tmp_path, monitor, max_epochs=2)
    run.fit(MultiLabel(), loader, loader)
    assert sum("no class labels" in record.message for record in caplog.records) == 1
    assert not any(tag.startswith("ssc/modularity") for tag in run.callback_metrics)
    assert any(tag.startswith("ssc/cka_to_previous") for tag in run.callback_metrics)
