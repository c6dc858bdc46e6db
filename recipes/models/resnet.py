"""ResNets for 32 x 32 images (He et al., "Deep Residual Learning for Image Recognition", 2015).

Their blocks are those of torchvision. The paper names the networks by their convolutions, the 1 x 1 shortcuts counted:
ResNet-36, 53 and 104 are the well-known ResNet-34, 50 and 101.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import Conv2dNormActivation


class PadShortcut(nn.Module):
    """The shortcut without parameters (option A of the article): every other pixel, and channels of zeros around.

    Args:
        channels: Channels of the input.
        out: Channels of the output, half of the new ones before those of the input and half behind.
        stride: Pixels from one that is kept to the next.

    Example:
        >>> import torch
        >>> PadShortcut(1, 3, 2)(torch.arange(4.0).view(1, 1, 2, 2)).flatten().tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        before = (out - channels) // 2
        self.padding = (0, 0, 0, 0, before, out - channels - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, out, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    widths: Sequence[int] = (64, 128, 256, 512),
    num_classes: int = 10,
    shortcut: Literal["convolution", "pad"] = "convolution",
) -> nn.Sequential:
    """Build a 3 x 3 stem, stages of residual blocks, global average pooling and a linear classifier.

    Args:
        block: torchvision's ``BasicBlock`` or ``Bottleneck``.
        depths: Blocks in each stage; every stage but the first halves the image.
        widths: Channels in each stage, before the block's own expansion.
        num_classes: Outputs of the classifier.
        shortcut: What a shortcut is where the shape changes: a 1 x 1 convolution with batch norm, or
            :class:`PadShortcut`.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=Conv2dNormActivation(3, widths[0], 3))
    channels = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        blocks: list[nn.Module] = []
        for i in range(depth):
            stride = 2 if stage > 1 and i == 0 else 1
            out = width * block.expansion
            across: nn.Module | None = None
            if stride > 1 or channels != out:
                across = (
                    PadShortcut(channels, out, stride)
                    if shortcut == "pad"
                    else Conv2dNormActivation(channels, out, 1, stride, activation_layer=None)
                )
            blocks.append(block(channels, width, stride, across))
            channels = out
        parts[f"layer{stage}"] = nn.Sequential(*blocks)
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = nn.Linear(channels, num_classes)
    return nn.Sequential(parts)


def resnet18(num_classes: int = 10) -> nn.Sequential:
    """ResNet-18: 20 convolutions.

    Example:
        >>> sum(p.numel() for p in resnet18().parameters())
        11173962
    """
    return resnet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)


def resnet36(num_classes: int = 10) -> nn.Sequential:
    """ResNet-34 of He et al.: 36 convolutions."""
    return resnet(BasicBlock, [3, 4, 6, 3], num_classes=num_classes)


def resnet53(num_classes: int = 10) -> nn.Sequential:
    """ResNet-50 of He et al.: 53 convolutions."""
    return resnet(Bottleneck, [3, 4, 6, 3], num_classes=num_classes)


def resnet104(num_classes: int = 10) -> nn.Sequential:
    """ResNet-101 of He et al.: 104 convolutions."""
    return resnet(Bottleneck, [3, 4, 23, 3], num_classes=num_classes)


def cifar_resnet(
    num_classes: int = 10, depth: int = 20, width: int = 16, shortcut: Literal["convolution", "pad"] = "convolution"
) -> nn.Sequential:
    """Build the small ResNet of He et al., section 4.2: three stages of equal depth, 16, 32 and 64 channels wide.

    Its shortcuts are 1 x 1 convolutions where the shape changes (option B of the article), so it has ``depth + 1``
    convolutions: the classifier is one of the ``depth`` layers. With ``shortcut="pad"`` they have no parameters
    (option A, which public weights are mostly of), and it has ``depth - 1``.

    Args:
        num_classes: Outputs of the classifier.
        depth: Layers, 6 n + 2 for n blocks a stage: 8, 14, 20, 32, 56, ...
        width: Channels of the first stage; the others have two and four times as many.
        shortcut: ``"convolution"`` or ``"pad"``.

    Raises:
        ValueError: The depth isn't 6 n + 2, or there is no such shortcut.

    Example:
        >>> [sum(p.numel() for p in cifar_resnet(depth=20, shortcut=s).parameters()) for s in ("convolution", "pad")]
        [272474, 269722]
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"a ResNet of three stages has 6 n + 2 layers (8, 14, 20, 32, 44, 56, ...), not {depth}")
    if shortcut not in ("convolution", "pad"):
        raise ValueError(f"shortcut must be 'convolution' or 'pad', not {shortcut!r}")
    return resnet(BasicBlock, [depth // 6] * 3, (width, 2 * width, 4 * width), num_classes, shortcut)
