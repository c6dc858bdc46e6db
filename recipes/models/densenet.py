"""DenseNets for 32 x 32 images (Huang et al., "Densely Connected Convolutional Networks", 2017)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn
from torchvision.models.densenet import DenseNet


def densenet(
    num_classes: int = 10, growth_rate: int = 12, block_config: Sequence[int] = (4, 4, 4), stem: int = 24
) -> nn.Sequential:
    """Put torchvision's dense blocks behind a 3 x 3 stem without pooling.

    The pooling outputs of the blocks, which figures 1 and 2 of the paper watch, are ``transition1.pool``,
    ``transition2.pool`` and so on, and ``pool`` for the last block.

    Args:
        num_classes: Outputs of the classifier.
        growth_rate: Channels that each dense layer adds.
        block_config: Dense layers in each block.
        stem: Channels of the first convolution.
    """
    features = DenseNet(growth_rate=growth_rate, block_config=tuple(block_config), num_init_features=stem).features
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Conv2d(3, stem, 3, padding=1, bias=False))
    for i in range(1, len(block_config)):
        parts[f"block{i}"] = features.get_submodule(f"denseblock{i}")
        parts[f"transition{i}"] = features.get_submodule(f"transition{i}")
    parts[f"block{len(block_config)}"] = features.get_submodule(f"denseblock{len(block_config)}")
    parts["norm"] = features.norm5
    parts["relu"] = nn.ReLU(inplace=True)
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = nn.Linear(features.norm5.num_features, num_classes)
    return nn.Sequential(parts)


def densenet121(num_classes: int = 10) -> nn.Sequential:
    """DenseNet-121 (growth 32): 120 convolutions.

    Example:
        >>> sum(p.numel() for p in densenet121().parameters())
        6956298
    """
    return densenet(num_classes, growth_rate=32, block_config=(6, 12, 24, 16), stem=64)
