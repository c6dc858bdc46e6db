"""DenseNet-121 for 32 x 32 images (Huang et al., "Densely Connected Convolutional Networks", 2017)."""

from collections import OrderedDict

from torch import nn
from torchvision.models.densenet import DenseNet


def densenet121(num_classes: int = 10) -> nn.Sequential:
    """Put torchvision's dense blocks (growth 32) behind a 3 x 3 stem without pooling: 120 convolutions.

    The pooling outputs of the blocks, which figures 1 and 2 of the paper watch, are ``transition1.pool``,
    ``transition2.pool``, ``transition3.pool`` and ``pool``.

    Example:
        >>> sum(p.numel() for p in densenet121().parameters())
        6956298
    """
    features = DenseNet(growth_rate=32, block_config=(6, 12, 24, 16), num_init_features=64).features
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 64, 3, padding=1, bias=False),
            block1=features.denseblock1,
            transition1=features.transition1,
            block2=features.denseblock2,
            transition2=features.transition2,
            block3=features.denseblock3,
            transition3=features.transition3,
            block4=features.denseblock4,
            norm=features.norm5,
            relu=nn.ReLU(inplace=True),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(1024, num_classes),
        )
    )
