"""Gram matrices of real activations for the benchmarks: a small ResNet, trained briefly on CIFAR-10."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.datasets import CIFAR10
from torchvision.models.resnet import BasicBlock
from torchvision.transforms.functional import hflip

SAMPLES = {"early": 5000, "middle": 5000, "last": 10_000, "logits": 5000}  # test images kept, by layer
DEPTH = {1: "early", 6: "middle", 9: "last", 10: "logits"}  # where in ResNet20 they are read


class ResNet20(nn.Sequential):
    """ResNet-20 of He et al. for 32 x 32 images, from torchvision's blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.append(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()))
        width = 16
        for planes, stride in ((16, 1), (32, 2), (64, 2)):
            for stride_here in (stride, 1, 1):
                shortcut = None
                if stride_here != 1:
                    shortcut = nn.Sequential(
                        nn.Conv2d(width, planes, 1, stride_here, bias=False), nn.BatchNorm2d(planes)
                    )
                self.append(BasicBlock(width, planes, stride_here, shortcut))
                width = planes
        self.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)))


def images(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as (N, 3, 32, 32) standardised floats and labels; without a root made-up classes, patterns in noise."""
    if root is None:
        count, noise = 20_000 if train else 10_000, torch.Generator().manual_seed(int(train))
        patterns = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        labels = torch.randint(10, (count,), generator=noise)
        return torch.randn(count, 3, 32, 32, generator=noise).add_(patterns[labels], alpha=0.5), labels
    data = CIFAR10(str(root), train=train)
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.491, 0.482, 0.447]), torch.tensor([0.247, 0.243, 0.262])
    return (x - mean[:, None, None]) / std[:, None, None], torch.tensor(data.targets)


def train(
    root: Path | None, epochs: int = 4, count: int = 20_000, device: torch.device | str = "cpu"
) -> Iterator[nn.Module]:
    """A ResNet-20 after each of a few epochs, enough for classes to separate in the last block."""
    torch.manual_seed(0)
    x, y = images(root, train=True)
    x, y = x[:count].to(device), y[:count].to(device)
    model, batch = ResNet20().to(device, memory_format=torch.channels_last), min(128, count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * (count // batch))
    for epoch in range(epochs):
        start, losses = time.perf_counter(), []
        for index in torch.randperm(count)[: count // batch * batch].split(batch):
            inputs = x[index].to(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(hflip(inputs) if torch.rand(()) < 0.5 else inputs), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}, {time.perf_counter() - start:.0f} s", flush=True)
        yield model.eval()
        model.train()


@torch.no_grad()
def save_grams(model: nn.Module, x: Tensor, y: Tensor, most: int, cache: Path, suffix: str = "") -> None:
    """Write the float64 Gram of every layer of DEPTH over the first images, at most ``most`` of them."""
    kept: dict[str, list[Tensor]] = {layer: [] for layer in SAMPLES}
    for start in range(0, len(x), 500):
        h = x[start : start + 500]
        for depth, part in enumerate(model.children()):
            h = part(h)
            if depth in DEPTH and start < min(most, SAMPLES[DEPTH[depth]]):
                kept[DEPTH[depth]].append(h.flatten(1))
    logits = torch.cat(kept["logits"])
    print(f"test accuracy {(logits.argmax(1) == y[: len(logits)]).float().mean():.3f}", flush=True)
    for layer in SAMPLES:
        features = torch.cat(kept.pop(layer))
        gram = torch.zeros(len(features), len(features), dtype=torch.float64, device=features.device)
        for part in features.split(1024, dim=1):
            gram.addmm_(part.double(), part.double().T)
        torch.save(gram.cpu(), cache / f"{layer}{suffix}.pt")


def prepare(
    root: Path | None,
    cache: Path,
    device: torch.device | str = "cpu",
    count: int = 20_000,
    most: int = 10_000,
) -> None:
    """Train the network and write its Grams, also those of one epoch earlier ("-before"), unless they are there.

    Args:
        root: Where CIFAR-10 lies, see :func:`images`.
        cache: Folder for the Grams.
        device: Where to train.
        count: Images to train on.
        most: Test images to keep in a Gram.
    """
    if (cache / "done").exists():
        return
    cache.mkdir(parents=True, exist_ok=True)
    x, y = (part[:most].to(device) for part in images(root, train=False))
    *_, before, last = range(4)
    for epoch, model in enumerate(train(root, last + 1, count, device)):
        if epoch == before:
            save_grams(model, x, y, 2000, cache, "-before")
        elif epoch == last:
            save_grams(model, x, y, most, cache)
    (cache / "done").touch()


def load(cache: Path, layer: str, n: int, unit: bool) -> Tensor:
    """The float64 Gram of the first ``n`` test images, scaled to unit diagonal on request."""
    gram = torch.load(cache / f"{layer}.pt", mmap=True)[:n, :n].clone()
    if unit:
        scale = gram.diagonal().rsqrt().nan_to_num(posinf=0.0)
        gram *= torch.outer(scale, scale)
    return gram
