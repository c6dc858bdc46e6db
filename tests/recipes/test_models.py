"""The networks against the counts of the paper and of the literature."""

import pytest
import torch
from torch import nn

from lightning_ssc.capture import Runner, trace
from recipes import models
from recipes.module import Classifier

# name, arguments, convolutions (the paper's), parameters for 10 classes, where that number is from
NETWORKS = [
    ("resnet18", {}, 20, 11_173_962, "CIFAR ResNet-18"),
    ("resnet36", {}, 36, 21_282_122, "CIFAR ResNet-34"),
    ("resnet53", {}, 53, 23_520_842, "CIFAR ResNet-50"),
    ("resnet104", {}, 104, 42_512_970, "CIFAR ResNet-101"),
    ("vgg11", {}, 8, 9_231_114, "CIFAR VGG-11 with batch norm"),
    ("vgg16", {}, 13, 14_728_266, "CIFAR VGG-16 with batch norm"),
    ("vgg24", {}, 21, 25_537_674, "ours"),
    ("vgg29", {}, 26, 31_034_826, "ours"),
    ("wide_resnet16", {"widen_factor": 10}, 16, 17_116_634, "WRN-16-10"),
    ("wide_resnet28", {"widen_factor": 10}, 28, 36_479_194, "WRN-28-10"),
    ("wide_resnet28", {}, 28, 1_467_610, "WRN-28-2"),
    ("wide_resnet64", {}, 64, 3_795_418, "ours"),
    ("densenet121", {}, 120, 6_956_298, "CIFAR DenseNet-121"),
    ("densenet", {}, 27, 102_730, "ours"),
    ("vgg11", {"width": 16}, 8, 579_786, "ours"),
    ("cifar_resnet", {"depth": 20}, 21, 272_474, "CIFAR ResNet-20, option B"),
    ("cifar_resnet", {"depth": 20, "shortcut": "pad"}, 19, 269_722, "ResNet-20 of the article, option A: 0.27 million"),
    ("cifar_resnet", {"depth": 56, "shortcut": "pad"}, 55, 853_018, "ResNet-56 of the article, option A: 0.85 million"),
    ("cifar_resnet", {"depth": 56}, 57, 855_770, "CIFAR ResNet-56, option B"),
]


@pytest.mark.parametrize(("name", "arguments", "convolutions", "parameters", "source"), NETWORKS)
def test_convolutions_and_parameters(name, arguments, convolutions, parameters, source):
    with torch.device("meta"):
        net = getattr(models, name)(**arguments)
        images = torch.empty(2, 3, 32, 32)
    assert sum(p.numel() for p in net.parameters()) == parameters, source
    ran = []
    for layer in (order := [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]):
        net.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    net(images)
    assert len(ran) == convolutions
    assert ran == order


def test_every_network_is_counted():
    assert {name for name, *_ in NETWORKS} == set(models.__all__)


@pytest.mark.parametrize("name", models.__all__)
def test_number_of_classes(name):
    with torch.device("meta"):
        assert getattr(models, name)(num_classes=100)(torch.empty(2, 3, 32, 32)).shape == (2, 100)


BLOCKS = {"cifar_resnet": 9, "resnet18": 8, "resnet104": 33, "wide_resnet28": 12, "densenet121": 58 + 3, "vgg16": 13}


@pytest.mark.parametrize(("name", "blocks"), BLOCKS.items())
def test_blocks_lie_between_stem_and_classifier(name, blocks):
    net = getattr(models, name)()
    layers = [layer.label for layer in trace(Runner(net), "blocks", torch.randn(2, 3, 32, 32))]
    stem = [] if name.startswith("vgg") else ["stem"]  # a VGG's first block is its stem
    assert [layers[: len(stem)], layers[-1]] == [stem, "classifier"]
    assert len(layers) - len(stem) - 1 == blocks


def test_pooling_outputs_of_densenet_have_the_widths_of_the_article():
    with torch.device("meta"):
        net, x = models.densenet121(), torch.empty(2, 3, 32, 32)
    pools = ["transition1.pool", "transition2.pool", "transition3.pool", "pool"]
    with torch.no_grad():
        shapes = {}
        for name in pools:
            net.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: shapes.update({name: output.shape[1:]})
            )
        net(x)
    assert [tuple(shapes[name]) for name in pools] == [(128, 16, 16), (256, 8, 8), (512, 4, 4), (1024, 1, 1)]


def test_dropout_is_in_every_wide_block():
    drops = [m for m in models.wide_resnet16(dropout=0.3).modules() if isinstance(m, nn.Dropout)]
    assert [drop.p for drop in drops] == [0.3] * 6


def test_impossible_depth_is_named():
    with pytest.raises(ValueError, match=r"6 n \+ 2 layers .* not 18"):
        models.cifar_resnet(depth=18)


def test_a_padded_shortcut_keeps_every_other_pixel_between_channels_of_zeros():
    x = torch.randn(2, 3, 4, 4)
    out = models.resnet.PadShortcut(3, 6, 2)(x)
    assert out.shape == (2, 6, 2, 2)
    assert torch.equal(out[:, 1:4], x[:, :, [0, 2]][..., [0, 2]])
    assert not out[:, [0, 4, 5]].any()


def test_arguments_that_a_network_does_not_take_are_named():
    with pytest.raises(ValueError, match=r"vgg11 takes no argument 'widen_factor' in network_args; it takes width"):
        Classifier("vgg11", network_args={"widen_factor": 4})
    with pytest.raises(ValueError, match=r"resnet18 takes no argument 'width' in network_args; it takes none"):
        Classifier("resnet18", network_args={"width": 4})
    with pytest.raises(ValueError, match="shortcut must be 'convolution' or 'pad', not 'none'"):
        models.cifar_resnet(shortcut="none")
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        models.vgg11(width=0)
