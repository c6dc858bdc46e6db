"""VGG with batch normalisation for 32 x 32 images (Simonyan & Zisserman, 2015) and one linear classifier.

Five stages of 3 x 3 convolutions, each closed by max pooling. VGG-24 and VGG-29 are the paper's: more convolutions in
each stage. The paper gives only their number (21 and 26); how they are spread over the stages is our choice.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn
from torchvision.ops import Conv2dNormActivation


def vgg(depths: Sequence[int], num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """Build a VGG from the number of convolutions in each of its five stages.

    The convolutions keep their biases, as in the original, though batch normalisation makes them redundant.

    Args:
        depths: Convolutions in each of the five stages.
        num_classes: Outputs of the classifier.
        width: Channels of the first stage; the others have 2, 4, 8 and 8 times as many.

    Raises:
        ValueError: The width is below 1.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}; 64 is the original's, 16 runs in minutes on a CPU")
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, (depth, factor) in enumerate(zip(depths, (1, 2, 4, 8, 8), strict=True), start=1):
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks.append(Conv2dNormActivation(channels, factor * width, 3, bias=True))
            channels = factor * width
        parts[f"stage{stage}"] = nn.Sequential(*blocks, nn.MaxPool2d(2))
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = nn.Linear(channels, num_classes)
    return nn.Sequential(parts)


def vgg11(num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """VGG-11: 8 convolutions.

    Example:
        >>> sum(p.numel() for p in vgg11().parameters())
        9231114
    """
    return vgg([1, 1, 2, 2, 2], num_classes, width)


def vgg16(num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """VGG-16: 13 convolutions."""
    return vgg([2, 2, 3, 3, 3], num_classes, width)


def vgg24(num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """VGG-24: 21 convolutions."""
    return vgg([3, 3, 5, 5, 5], num_classes, width)


def vgg29(num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """VGG-29: 26 convolutions."""
    return vgg([4, 4, 6, 6, 6], num_classes, width)
