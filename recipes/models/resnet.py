"""ResNets for 32 x 32 images (He et al., "Deep Residual Learning for Image Recognition", 2015).

Their blocks are those of torchvision. The paper names the networks by their convolutions, the 1 x 1 shortcuts counted:
ResNet-36, 53 and 104 are the well-known ResNet-34, 50 and 101.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import Conv2dNormActivation


def resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    widths: Sequence[int] = (64, 128, 256, 512),
    num_classes: int = 10,
) -> nn.Sequential:
    """Build a 3 x 3 stem, stages of residual blocks, global average pooling and a linear classifier.

    Args:
        block: torchvision's ``BasicBlock`` or ``Bottleneck``.
        depths: Blocks in each stage; every stage but the first halves the image.
        widths: Channels in each stage, before the block's own expansion.
        num_classes: Outputs of the classifier.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=Conv2dNormActivation(3, widths[0], 3))
    channels = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        blocks: list[nn.Module] = []
        for i in range(depth):
            stride = 2 if stage > 1 and i == 0 else 1
            out = width * block.expansion
            shortcut = None
            if stride > 1 or channels != out:
                shortcut = Conv2dNormActivation(channels, out, 1, stride, activation_layer=None)
            blocks.append(block(channels, width, stride, shortcut))
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


def cifar_resnet(num_classes: int = 10, depth: int = 20, width: int = 16) -> nn.Sequential:
    """Build the small ResNet of He et al., section 4.2: three stages of equal depth, 16, 32 and 64 channels wide.

    Its shortcuts are 1 x 1 convolutions where the shape changes (option B of the article), so it has ``depth + 1``
    convolutions: the classifier is one of the ``depth`` layers.

    Args:
        num_classes: Outputs of the classifier.
        depth: Layers, 6 n + 2 for n blocks a stage: 8, 14, 20, 32, 56, ...
        width: Channels of the first stage; the others have two and four times as many.

    Raises:
        ValueError: The depth isn't 6 n + 2.

    Example:
        >>> sum(p.numel() for p in cifar_resnet(depth=20).parameters())
        272474
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"a ResNet of three stages has 6 n + 2 layers (8, 14, 20, 32, 44, 56, ...), not {depth}")
    return resnet(BasicBlock, [depth // 6] * 3, (width, 2 * width, 4 * width), num_classes)
