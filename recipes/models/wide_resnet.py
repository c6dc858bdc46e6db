"""Wide ResNets (Zagoruyko & Komodakis, "Wide Residual Networks", 2016): 6 n + 4 layers, k times as wide, with dropout.

The number in a network's name is also its number of convolutions: three 1 x 1 shortcuts stand in for the classifier and
the two layers that the usual count adds (two shortcuts at k = 1, whose first stage is as wide as its stem).
"""

from collections import OrderedDict

import torch
from torch import nn


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each after its batch norm and ReLU, dropout between them, and a shortcut around them.

    Where the shape changes the shortcut is a 1 x 1 convolution of the activated input, as in the authors' code.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        active = self.relu1(self.bn1(x))
        out: torch.Tensor = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(active)))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(depth: int, widen_factor: int, num_classes: int = 10, dropout: float = 0.3) -> nn.Sequential:
    """Build a Wide ResNet of ``depth`` = 6 n + 4 layers, 16, 32 and 64 times ``widen_factor`` channels wide."""
    widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Conv2d(3, 16, 3, padding=1, bias=False))
    channels = 16
    for stage, width in enumerate(widths, start=1):
        blocks: list[nn.Module] = []
        for i in range((depth - 4) // 6):
            blocks.append(WideBlock(channels, width, 2 if stage > 1 and i == 0 else 1, dropout))
            channels = width
        parts[f"layer{stage}"] = nn.Sequential(*blocks)
    parts["norm"] = nn.BatchNorm2d(channels)
    parts["relu"] = nn.ReLU(inplace=True)
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = nn.Linear(channels, num_classes)
    return nn.Sequential(parts)


def wide_resnet16(num_classes: int = 10, widen_factor: int = 2, dropout: float = 0.3) -> nn.Sequential:
    """Wide ResNet-16 by ``widen_factor``: 16 convolutions."""
    return wide_resnet(16, widen_factor, num_classes, dropout)


def wide_resnet28(num_classes: int = 10, widen_factor: int = 2, dropout: float = 0.3) -> nn.Sequential:
    """Wide ResNet-28 by ``widen_factor``: 28 convolutions.

    Example:
        >>> sum(p.numel() for p in wide_resnet28(widen_factor=10).parameters())
        36479194
    """
    return wide_resnet(28, widen_factor, num_classes, dropout)


def wide_resnet64(num_classes: int = 10, widen_factor: int = 2, dropout: float = 0.3) -> nn.Sequential:
    """Wide ResNet-64 by ``widen_factor``: 64 convolutions."""
    return wide_resnet(64, widen_factor, num_classes, dropout)
