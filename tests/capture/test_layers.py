from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_ssc.capture import Runner
from lightning_ssc.capture.layers import select_layers
from lightning_ssc.capture.names import named_layers


def names(model: nn.Module, patterns: object, size: int = 32) -> list[str]:
    return [layer.name for layer in select_layers(Runner(model), patterns, torch.rand(3, 3, size, size))]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return torchvision.models.resnet18(weights=None)


def test_conv_is_every_convolution(resnet: nn.Module) -> None:
    found = names(resnet, "conv")
    assert found == [name for name, module in resnet.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(found) == 20


def test_presets_of_a_resnet(resnet: nn.Module) -> None:
    assert names(resnet, "stages") == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert names(resnet, "blocks") == ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "fc"]


def test_a_lone_wrapper_is_looked_through(resnet: nn.Module) -> None:
    wrapped = nn.Sequential(OrderedDict(net=nn.Sequential(OrderedDict(model=resnet))))
    assert names(wrapped, "stages") == [f"net.model.{name}" for name in names(resnet, "stages")]
    assert names(wrapped, "blocks") == [f"net.model.{name}" for name in names(resnet, "blocks")]


def test_blocks_of_other_families() -> None:
    dense = names(torchvision.models.DenseNet(4, (3, 2, 2, 2), 8, num_classes=3), "blocks")
    assert sum("denselayer" in name for name in dense) == 9
    assert sum("transition" in name for name in dense) == 3
    assert (dense[0], dense[-1]) == ("features.conv0", "classifier")
    vit = torchvision.models.VisionTransformer(16, 8, 3, 2, 8, 16)
    assert names(vit, "blocks", 16) == [
        "conv_proj",
        *(f"encoder.layers.encoder_layer_{i}" for i in range(3)),
        "heads.head",
    ]


def test_blocks_that_sometimes_hold_equal_parts_are_blocks_all_the_same() -> None:
    mobile = torchvision.models.mobilenet_v3_small(weights=None)
    assert {f"features.{i}" for i in range(1, 12)} <= set(names(mobile, "blocks"))


def test_a_group_of_equal_blocks_is_a_stage() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv2(self.conv1(x))

    class Group(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(Block(), Block())

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    net = nn.Sequential(OrderedDict(a=Group(), b=Group(), fc=nn.Linear(32, 2)))
    assert names(net, "stages") == ["a", "b", "fc"]
    assert names(net, "blocks") == ["a.layer.0", "a.layer.1", "b.layer.0", "b.layer.1", "fc"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layer1.0.conv1", ["layer1.0.conv1"]),
        ("layer*.0", ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]),
        ("layer1.?", ["layer1.0", "layer1.1"]),
        ("layer1.**.conv2", ["layer1.0.conv2", "layer1.1.conv2"]),
        ("layer?", ["layer1", "layer2", "layer3", "layer4"]),
        ("Linear", ["fc"]),
        (nn.Linear, ["fc"]),
        (["fc", "conv1", "fc"], ["conv1", "fc"]),
        (["stages", "Linear"], ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]),
    ],
)
def test_patterns(resnet: nn.Module, pattern: object, expected: list[str]) -> None:
    assert names(resnet, pattern) == expected


def test_a_part_of_an_output_can_be_named() -> None:
    net = nn.Sequential(OrderedDict(rnn=nn.LSTM(4, 5)))
    layers = select_layers(Runner(net), ["rnn:1.0", "rnn"], torch.rand(3, 2, 4))
    assert [(layer.name, layer.part, layer.label) for layer in layers] == [
        ("rnn", None, "rnn"),
        ("rnn", "1.0", "rnn:1.0"),
    ]


def test_unknown_names_list_the_nearest(resnet: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"No layer matches 'layer5\.0'. Nearest names: .*layer\d\.0") as error:
        names(resnet, ["layer5.0"])
    assert "preset" in str(error.value)
    with pytest.raises(ValueError, match="'Conv3d'"):
        names(resnet, nn.Conv3d)
    with pytest.raises(ValueError, match="finds nothing to watch"):
        names(nn.Sequential(nn.Linear(32, 2)), "conv")


def test_compiled_modules_go_by_their_own_names() -> None:
    net = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 3, 1), b=nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(32, 2))))
    plain = {preset: names(net, preset) for preset in ("conv", "stages", "blocks")}
    whole = torch.compile(net, backend="eager")
    assert {preset: names(whole, preset) for preset in plain} == plain
    net.b = torch.compile(net.b, backend="eager")  # type: ignore[assignment]
    assert {preset: names(net, preset) for preset in plain} == plain
    assert list(named_layers(net)) == ["a", "b", "b.0", "b.1"]
    assert names(net, "b._orig_mod.0") == ["b.0"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)))


@pytest.mark.parametrize(
    ("net", "layers", "message"),
    [
        (Tied(), ["b"], "Layer 'b' is the same module as 'a', by which it goes here. Name 'a': where it runs several"),
        (nn.Linear(6, 3), "blocks", r"single Linear with no layers inside. Give nn.Sequential\(network\), whose"),
    ],
    ids=["tied", "bare"],
)  # fmt: skip
def test_networks_that_need_another_word(net: nn.Module, layers: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_layers(Runner(net), layers, torch.rand(3, 6))  # type: ignore[arg-type]
