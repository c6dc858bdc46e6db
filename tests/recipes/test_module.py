"""The classifier against the protocol of section 3.2."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from recipes.module import Classifier


class Blobs(pl.LightningDataModule):
    """Images of one colour a class: learnt in a few steps."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.num_classes = num_classes

    def train_dataloader(self):
        labels = torch.arange(64) % self.num_classes
        images = torch.eye(3)[labels % 3][:, :, None, None].expand(-1, -1, 8, 8) + 0.1 * torch.randn(64, 3, 8, 8)
        return DataLoader(TensorDataset(images, labels), 16)

    val_dataloader = train_dataloader


def fit(model, data, max_epochs=5, ckpt_path=None):
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_epochs=max_epochs, **quiet)
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return trainer


def tiny(num_classes=2, **kwargs):
    return Classifier("cifar_resnet", num_classes, {"depth": 8, "width": 4}, **kwargs)


@pytest.mark.parametrize("channels_last", [False, True])
def test_it_learns_and_logs(channels_last):
    pl.seed_everything(0)
    trainer = fit(tiny(channels_last=channels_last), Blobs())
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"} <= set(trainer.callback_metrics)


def test_channels_last_reaches_every_convolution():
    model = tiny(channels_last=True)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            assert module.weight.is_contiguous(memory_format=torch.channels_last), name
    x = torch.randn(2, 3, 8, 8)
    plain = tiny()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


def test_optimiser_is_the_papers():
    [optimizer], [scheduler] = Classifier("vgg11").configure_optimizers()
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 5e-4)
    rates = []
    for _ in range(100):
        rates.append(group["lr"])
        optimizer.step()
        scheduler.step()
    expected = [0.1] * 30 + [0.02] * 30 + [0.004] * 30 + [0.0008] * 10
    assert rates == pytest.approx(expected)


def test_network_and_data_of_different_classes():
    with pytest.raises(ValueError, match=r"network tells 10 classes apart and Blobs has 3: .*num_classes=3"):
        fit(tiny(10), Blobs(3))


def test_checkpoint_of_different_classes(tmp_path):
    trainer = fit(tiny(2), Blobs(2), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match=r"checkpoint is of a network for 2 classes and the data has 3"):
        fit(tiny(3), Blobs(3), ckpt_path=tmp_path / "two.ckpt")


def test_checkpoint_rebuilds_the_network(tmp_path):
    model = tiny(2)
    fit(model, Blobs(2), max_epochs=1).save_checkpoint(tmp_path / "two.ckpt")
    again = Classifier.load_from_checkpoint(tmp_path / "two.ckpt", weights_only=True)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_unknown_network_lists_the_nearest():
    with pytest.raises(ValueError, match=r"no network 'resnet34' .* resnet36"):
        Classifier("resnet34")
