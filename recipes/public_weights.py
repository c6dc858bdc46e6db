"""Networks that others have trained on CIFAR-10 to convergence, and published.

Y. Idelbayev, "Proper ResNet Implementation for CIFAR10/CIFAR100 in PyTorch" (akamaster/pytorch_resnet_cifar10 on
GitHub, BSD 2-clause): the ResNets of He et al. 2015 with shortcuts that have no parameters. The files are
``resnet20.th`` and so on.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from recipes.data import Images, Split
from recipes.models import cifar_resnet

ACCURACY = {20: 0.9173, 44: 0.9310, 56: 0.9339}  # on the 10,000 test images, by depth
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
_TEST_IMAGES = 10_000
_PARTS = {"conv1.": "stem.0.", "bn1.": "stem.1.", "linear.": "classifier."}  # the others are named as ours


def public_resnet(depth: int, folder: Path) -> nn.Sequential:
    """A converged ResNet, in evaluation mode.

    Args:
        depth: 20, 44 or 56.
        folder: Folder of ``resnet<depth>.th``.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: There is no such network, or the file holds the weights of another one.
    """
    if depth not in ACCURACY:
        raise ValueError(f"the public ResNets have {', '.join(map(str, ACCURACY))} layers, not {depth}")
    path = folder / f"resnet{depth}.th"
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}: fetch it from the folder pretrained_models of "
            f"https://github.com/akamaster/pytorch_resnet_cifar10 and name its folder with --weights"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network = cifar_resnet(depth=depth, shortcut="pad")
    try:
        network.load_state_dict({our_name(name): value for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of a ResNet-{depth}: {error}") from error
    return network.eval()


def our_name(name: str) -> str:
    """The name of a parameter in our network.

    Example:
        >>> our_name("module.conv1.weight"), our_name("module.layer1.0.conv1.weight")
        ('stem.0.weight', 'layer1.0.conv1.weight')
    """
    name = name.removeprefix("module.")
    return next((ours + name.removeprefix(theirs) for theirs, ours in _PARTS.items() if name.startswith(theirs)), name)


def as_published(test: Split) -> Images:
    """Test images normalised as these networks want them."""
    return Images(test, MEAN, STD)


def check_accuracy(depth: int, predictions: Tensor, labels: Tensor) -> float:
    """The share of right predictions, which has to be what is known of the network.

    Args:
        depth: 20, 44 or 56.
        predictions: ``(N,)`` classes that the network gave to test images.
        labels: ``(N,)`` their classes.

    Raises:
        ValueError: It lies further from it than a draw of N of the 10,000 test images explains (four standard errors).

    Example:
        >>> right = torch.arange(1000) < 917
        >>> round(check_accuracy(20, right.long(), torch.ones(1000)), 3)
        0.917
    """
    known, count = ACCURACY[depth], len(labels)
    accuracy = float((predictions == labels).double().mean())
    drawn = math.sqrt(known * (1 - known) / count * (1 - count / _TEST_IMAGES))
    if abs(accuracy - known) > 4 * drawn + 2 / _TEST_IMAGES:  # and two images for the rounding of other machines
        raise ValueError(
            f"ResNet-{depth} is right on {accuracy:.2%} of {count} images, where {known:.2%} are known: these are "
            "other weights, other images or another normalisation"
        )
    return accuracy
