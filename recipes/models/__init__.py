"""The networks of the paper for 32 x 32 images, each a function of the number of classes.

Every network is an ``nn.Sequential`` of named parts, so the order of its modules is the order in which they run.
Weights start as the layers of PyTorch, and in DenseNets the blocks of torchvision, draw them.
"""

from recipes.models.densenet import densenet, densenet121
from recipes.models.resnet import cifar_resnet, resnet18, resnet36, resnet53, resnet104
from recipes.models.vgg import vgg11, vgg16, vgg24, vgg29
from recipes.models.wide_resnet import wide_resnet16, wide_resnet28, wide_resnet64

__all__ = [
    "cifar_resnet",
    "densenet",
    "densenet121",
    "resnet18",
    "resnet36",
    "resnet53",
    "resnet104",
    "vgg11",
    "vgg16",
    "vgg24",
    "vgg29",
    "wide_resnet16",
    "wide_resnet28",
    "wide_resnet64",
]
