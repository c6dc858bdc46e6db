"""What the presets mean in networks of every make, each in a few lines; tests/zoo.py has the real ones."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_ssc.capture import Runner, trace

TOKENS = torch.randint(0, 11, (9, 6), generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.rand(9, 6, generator=torch.Generator().manual_seed(0))


def watched(net: nn.Module, layers: Any, inputs: Tensor, forward: Any = None) -> list[str]:
    return [layer.label for layer in trace(Runner(net, forward), layers, inputs)]


def conv(a: int, b: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, stride, 1)


class Layer(nn.Module):
    """A transformer's layer: parts with weights in modules of their own, added to what goes in."""

    def __init__(self, crossed: bool = False, linear: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.query, self.value, self.norm1 = linear(4, 4), linear(4, 4), nn.LayerNorm(4)
        self.mlp, self.norm2 = nn.Sequential(linear(4, 8), nn.GELU(), linear(8, 4)), nn.LayerNorm(4)
        self.cross = linear(4, 4) if crossed else None

    def forward(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor]:
        scores = self.query(x) @ x.mT
        x = self.norm1(x + scores.softmax(-1) @ self.value(x))
        if self.cross is not None and memory is not None:
            x = x + self.cross(memory)
        return (self.norm2(x + self.mlp(x)),)


class Positions(nn.Module):
    """Without a row a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(torch.arange(tokens.shape[1])[None])


class Stack(nn.Module):
    """Layers in a ModuleList, which never runs itself."""

    def __init__(self, depth: int = 3, **options: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Layer(**options) for _ in range(depth)])

    def forward(self, x: Tensor, *memory: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, *memory)[0]
        return x


class Bert(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(11, 4), Positions()
        self.encoder, self.pooler = Stack(**options), nn.Sequential(OrderedDict(dense=nn.Linear(4, 4), act=nn.Tanh()))
        self.classifier = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoder(self.words(tokens) + self.positions(tokens))
        return self.classifier(self.pooler(x[:, 0]))


class GPT(nn.Module):
    """The list of layers lies in the network itself."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.wte, self.h = nn.Embedding(11, 4), nn.ModuleList([Layer() for _ in range(depth)])
        self.ln_f, self.head = nn.LayerNorm(4), nn.Linear(4, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        for layer in self.h:
            (x,) = layer(x)
        return self.head(self.ln_f(x))


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.encoder, self.decoder = nn.Embedding(11, 4), Stack(2), Stack(2, crossed=True)
        self.lm_head = nn.Linear(4, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.shared(tokens)
        return self.lm_head(self.decoder(self.shared(tokens.flip(1)), self.encoder(x)))


class Shared(nn.Module):
    """One layer that runs three times, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer0, self.head = nn.Embedding(11, 4), Layer(), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        for _ in range(3):
            (x,) = self.layer0(x)
        return self.head(x[:, 0])


class Residual(nn.Module):
    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = conv(a, b, stride), nn.BatchNorm2d(b), conv(b, b)
        self.shortcut = nn.Conv2d(a, b, 1, stride) if a != b or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.bn(self.conv1(x)).relu_())
        out += self.shortcut(x)
        return out.relu_()


class Stage(nn.Module):
    """A norm and a convolution to shrink, then blocks, as in ConvNeXt; of one block in the first instance."""

    def __init__(self, a: int, b: int, depth: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.BatchNorm2d(a), conv(a, b, 2))
        self.blocks = nn.Sequential(*[Residual(b, b) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Numbered(nn.Sequential):
    """Blocks by names of their own in a class of its own, as in RegNet."""

    def __init__(self, a: int, b: int, depth: int) -> None:
        blocks = {f"b{i + 1}": Residual(b if i else a, b, 1 if i else 2) for i in range(depth)}
        super().__init__(OrderedDict(blocks))


class Head(nn.Module):
    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(features), nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.mean((2, 3))))


def chain(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


class Inception(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.branch1 = conv(a, b)
        self.branch2 = nn.Sequential(nn.Sequential(conv(a, b), nn.ReLU()), nn.Sequential(conv(b, b), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x)], 1)


class Dense(nn.Module):
    def __init__(self, a: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(a, 4), conv(4, 2)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv2(self.conv1(torch.cat(features, 1)).relu())


class DenseBlock(nn.ModuleDict):
    def __init__(self, a: int, depth: int) -> None:
        super().__init__({f"denselayer{i + 1}": Dense(a + 2 * i) for i in range(depth)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DoubleConv(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(conv(a, b), nn.GELU(), conv(b, b), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


def double_conv(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(conv(a, b), nn.GELU(), conv(b, b), nn.GELU())


class UNet(nn.Module):
    def __init__(self, block: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.down1, self.down2, self.bottleneck = block(3, 4), block(4, 8), block(8, 8)
        self.up1, self.up2, self.out = block(16, 4), block(8, 4), nn.Conv2d(4, 2, 1)
        self.pool, self.larger = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        x = self.larger(self.bottleneck(self.pool(b)))
        x = self.larger(self.up1(torch.cat([x, b], 1)))
        return self.out(self.up2(torch.cat([x, a], 1)))


class Skip(nn.Module):
    """A U-Net whose inside is a smaller one, as in DynUNet and pix2pix."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.down, self.inside, self.up = Residual(4, 4, 2), inside, Residual(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.interpolate(self.inside(self.down(x)), x.shape[2:])
        return self.up(torch.cat([x, y], 1))


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = conv(4, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return self.cheap(y) + y


class Ghost(nn.Module):
    """Two halves of one type that chain, and a shortcut around both."""

    def __init__(self) -> None:
        super().__init__()
        self.ghost1, self.ghost2 = Half(), Half()

    def forward(self, x: Tensor) -> Tensor:
        return self.ghost2(self.ghost1(x)).add_(x)


class Windows(nn.Module):
    """Two attentions of one type that chain by names that are not numbered, as in MaxViT."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.window, self.grid = conv(4, 4), Residual(4, 4), Residual(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.grid(self.window(self.conv(x)))


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, as peft has it: what is around stands in for the layer."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.base_layer, self.lora_a, self.lora_b = nn.Linear(a, b), nn.Linear(a, 2), nn.Linear(2, b)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_b(self.lora_a(x))


class Patches(nn.Module):
    """Layers that see all patches of all images as rows, as in MobileViT, inside a block that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.layer, self.project = conv(4, 4), nn.ModuleList([Layer(), Layer()]), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2).mT.unflatten(1, (-1, 4)).flatten(0, 1)
        for layer in self.layer:
            (y,) = layer(y)
        return self.project(y.unflatten(0, (len(x), -1)).flatten(1, 2).mT.unflatten(2, x.shape[2:]))


class Hand(nn.Module):
    """A small network as people write it by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.pool = conv(3, 4), conv(4, 4), nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv2(self.pool(self.conv1(x).relu())).relu())
        return self.fc2(self.fc1(x.flatten(1)).relu())


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def vgg() -> nn.Module:
    def stage(a: int, b: int) -> list[nn.Module]:
        return [conv(a, b), nn.ReLU(), conv(b, b), nn.ReLU(), nn.MaxPool2d(2)]

    features = nn.Sequential(*stage(3, 4), *stage(4, 4), *stage(4, 4))
    classifier = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    return chain(features=features, flat=nn.Flatten(), classifier=classifier)


def convnext() -> nn.Module:
    return chain(stem=conv(3, 4), stages=nn.Sequential(*[Stage(4, 4, d) for d in (2, 1, 2)]), head=Head(4))


def normed(how: Callable[..., nn.Module]) -> nn.Module:
    return nn.Sequential(how(nn.Linear(6, 8)), nn.ReLU(), how(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3))


def layers(pattern: str, *numbers: int) -> list[str]:
    return [pattern.format(number) for number in numbers]


BERT = ["words", *layers("encoder.layer.{}", 0, 1, 2), "pooler.dense", "classifier"]
UNET = ["down1", "down2", "bottleneck", "up1", "up2", "out"]

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, list[str], list[str]]] = {
    "BERT": (Bert, TOKENS, BERT, ["words", "encoder", "pooler", "classifier"]),
    "BERT with adapters": (lambda: Bert(linear=Adapted), TOKENS, BERT, ["words", "encoder", "pooler", "classifier"]),
    "GPT": (GPT, TOKENS, ["wte", *layers("h.{}", 0, 1, 2), "head"], ["wte", "h.2", "head"]),
    "GPT of one layer": (lambda: GPT(1), TOKENS, ["wte", "h.0", "head"], ["wte", "h.0", "head"]),
    "encoder and decoder": (
        Translator, TOKENS,
        ["shared.call1", "shared.call2", *layers("encoder.layer.{}", 0, 1), *layers("decoder.layer.{}", 0, 1),
         "lm_head"],
        ["shared.call1", "shared.call2", "encoder", "decoder", "lm_head"],
    ),
    "one layer three times": (
        Shared, TOKENS, ["words", *layers("layer0.call{}", 1, 2, 3), "head"],
        ["words", *layers("layer0.call{}", 1, 2, 3), "head"],
    ),
    "ConvNeXt": (
        convnext, IMAGES,
        [
            "stem", "stages.0.downsample.1", "stages.0.blocks.0", "stages.0.blocks.1", "stages.1.downsample.1",
            "stages.1.blocks.0", "stages.2.downsample.1", "stages.2.blocks.0", "stages.2.blocks.1", "head",
        ],
        ["stem", "stages.0", "stages.1", "stages.2", "head"],
    ),
    "RegNet": (
        lambda: chain(stem=conv(3, 4), s1=Numbered(4, 4, 1), s2=Numbered(4, 8, 2), head=Head(8)), IMAGES,
        ["stem", "s1.b1", "s2.b1", "s2.b2", "head"], ["stem", "s1", "s2", "head"],
    ),
    "lone inverted residuals": (
        lambda: chain(
            features=nn.Sequential(conv(3, 4), Residual(4, 4), Residual(4, 8, 2), Residual(8, 8), Residual(8, 4, 2)),
            head=Head(4),
        ),
        IMAGES, [*layers("features.{}", 0, 1, 2, 3, 4), "head"],
        ["features.0", "features.1", "features.3", "features.4", "head"],
    ),
    "stages of one block each": (
        lambda: chain(conv1=conv(3, 4), layer1=nn.Sequential(Residual(4, 4)), layer2=nn.Sequential(Residual(4, 8)),
                      head=Head(8)),
        IMAGES, ["conv1", "layer1.0", "layer2.0", "head"], ["conv1", "layer1", "layer2", "head"],
    ),
    "Inception": (
        lambda: chain(conv1=conv(3, 4), inception3a=Inception(4, 4), inception3b=Inception(8, 4), pool=nn.MaxPool2d(2),
                      inception4a=Inception(8, 4), head=Head(8)),
        IMAGES, ["conv1", "inception3a", "inception3b", "inception4a", "head"],
        ["conv1", "inception3b", "inception4a", "head"],
    ),
    "DenseNet": (
        lambda: chain(conv0=conv(3, 4), denseblock1=DenseBlock(4, 2), transition1=conv(8, 4, 2),
                      denseblock2=DenseBlock(4, 2), head=Head(8)),
        IMAGES,
        ["conv0", *layers("denseblock1.denselayer{}", 1, 2), "transition1", *layers("denseblock2.denselayer{}", 1, 2),
         "head"],
        ["conv0", "denseblock1", "transition1", "denseblock2", "head"],
    ),
    "U-Net": (lambda: UNet(DoubleConv), IMAGES, UNET, UNET),
    "U-Net of plain Sequentials": (lambda: UNet(double_conv), IMAGES, UNET, UNET),
    "halves of a block that chain": (
        lambda: chain(stem=conv(3, 4), blocks=nn.Sequential(Ghost(), Ghost()), head=Head(4)), IMAGES,
        ["stem", "blocks.0", "blocks.1", "head"], ["stem", "blocks", "head"],
    ),
    "halves of a block without a number": (
        lambda: chain(stem=conv(3, 4), blocks=nn.Sequential(Windows(), Windows()), head=Head(4)), IMAGES,
        ["stem", "blocks.0", "blocks.1", "head"], ["stem", "blocks", "head"],
    ),
    "patches as rows": (
        lambda: chain(stem=conv(3, 4), layer1=nn.Sequential(Residual(4, 4), Patches()), layer2=Patches(), head=Head(4)),
        IMAGES, ["stem", "layer1.0", "layer1.1", "layer2", "head"], ["stem", "layer1", "layer2", "head"],
    ),
    "a U-Net in a U-Net": (
        lambda: chain(stem=conv(3, 4), net=Skip(Skip(conv(4, 4))), head=Head(4)), IMAGES,
        ["stem", "net.down", "net.inside.down", "net.inside.inside", "net.inside.up", "net.up", "head"],
        ["stem", "net.down", "net.inside.down", "net.inside.inside", "net.inside.up", "net.up", "head"],
    ),
    "VGG": (
        vgg, IMAGES, [*layers("features.{}", 0, 2, 5, 7, 10, 12), "classifier.0", "classifier.2"],
        ["features.4", "features.9", "features.14", "classifier"],
    ),
    "by hand": (Hand, IMAGES, ["conv1", "conv2", "fc1", "fc2"], ["conv1", "conv2", "fc1", "fc2"]),
    "in a wrapper": (
        lambda: Wrapper(Wrapper(Hand())), IMAGES, layers("model.model.{}", *("conv1", "conv2", "fc1", "fc2")),  # type: ignore[arg-type]
        layers("model.model.{}", *("conv1", "conv2", "fc1", "fc2")),  # type: ignore[arg-type]
    ),
    "autoencoder": (
        Autoencoder, ROWS, ["encoder.0", "encoder.2", "decoder.0", "decoder.2"], ["encoder", "decoder"]
    ),
    "weight norm": (lambda: normed(parametrizations.weight_norm), ROWS, ["0", "2", "4"], ["0", "2", "4"]),
    "spectral norm": (lambda: normed(parametrizations.spectral_norm), ROWS, ["0", "2", "4"], ["0", "2", "4"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_and_stages(name: str) -> None:
    make, inputs, blocks, stages = NETWORKS[name]
    torch.manual_seed(0)
    net = make()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert watched(net, "blocks", inputs) == blocks
    assert watched(net, "stages", inputs) == stages
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_blocks_of_a_network_that_a_lightning_module_runs_in_parts() -> None:
    net = Wrapper(Bert())
    assert watched(net, "blocks", TOKENS, lambda m, x: m.model.encoder(m.model.words(x))) == [
        "model.words", *layers("model.encoder.layer.{}", 0, 1, 2)
    ]  # fmt: skip


def test_conv_is_every_convolution_that_runs_adapters_and_parametrisations_included() -> None:
    class AdaptedConv(Adapted):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.base_layer, self.lora_a, self.lora_b = conv(4, 4), conv(4, 2), nn.Conv2d(2, 4, 1)

    net = chain(a=conv(3, 4), b=AdaptedConv(), c=parametrizations.weight_norm(conv(4, 4)), d=Residual(4, 4))
    net.spare = conv(3, 4)
    assert watched(net, "conv", IMAGES, lambda m, x: m.d(m.c(m.b(m.a(x))))) == ["a", "b", "c", "d.conv1", "d.conv2"]


class Detector(nn.Module):
    """Boxes of all images in one tensor, a scale for all of them, and a bias that is the same for every input."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck = Residual(3, 4), Residual(4, 4)
        self.roi0, self.roi1 = nn.Linear(4, 4), nn.Linear(4, 2)
        self.scale, self.bias = nn.Linear(1, 4), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.neck(self.backbone(x)).flatten(2).mT.flatten(0, 1)
        scores = self.roi1(self.roi0(cells) * self.scale(torch.ones(1)))
        return scores.unflatten(0, (len(x), -1)).mean(1) + self.bias(torch.ones(len(x), 1))


def test_what_has_no_row_a_sample_is_left_out_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    for pattern, left in (("blocks", "4 of the 6 layers"), ("Linear", "4 of the 4"), (["*"], "4 of the 6")):
        caplog.clear()
        with caplog.at_level(logging.INFO, "lightning_ssc"):
            if pattern == "Linear":
                with pytest.raises(ValueError, match=r"Layer 'roi0'|Layer 'scale'"):
                    watched(Detector(), pattern, IMAGES)
                continue
            assert watched(Detector(), pattern, IMAGES) == ["backbone", "neck"]
        (line,) = [record for record in caplog.records if "not watched" in record.getMessage()]
        assert line.levelno == logging.INFO
        assert line.getMessage().startswith(left)
        assert "(no row a sample: " in line.getMessage()
        assert "the same for every input: bias)" in line.getMessage()
        assert all(name in line.getMessage() for name in ("roi0", "roi1", "scale"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("roi0", "puts out shape .* for 7 samples"), ("bias", "'bias' puts out the same for every input.*Leave it out")],
)
def test_a_layer_named_exactly_is_an_error(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        watched(Detector(), ["backbone", name], IMAGES)


@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_a_layer_that_starts_at_a_constant_is_watched(bias: float) -> None:
    """Training will change it; a network that has collapsed is no reason to leave its layers out for good either."""
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    nn.init.zeros_(net[1].weight)
    nn.init.constant_(net[1].bias, bias)
    assert watched(net, "blocks", ROWS) == ["0", "1", "2"]


def test_inputs_that_are_all_the_same_are_no_reason_to_leave_layers_out() -> None:
    assert watched(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), "blocks", torch.ones(9, 6)) == ["0", "1"]


class Constants(nn.Module):
    """What networks put out that does not depend on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.time, self.positions = Bias(), nn.Linear(4, 4), nn.Embedding(9, 4)
        self.words, self.head = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor, t: Tensor) -> Tensor:
        x = self.bias(self.words(tokens)) + self.time(t[:, None] * torch.ones(4))[:, None]
        ids = tokens.ne(99).int().cumsum(1)  # as RoBERTa counts them
        return self.head(x + self.positions(ids))


class Bias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.zeros_like(x[..., :1]))


def test_what_does_not_depend_on_the_sample_is_found_by_where_it_comes_from() -> None:
    def labels(t: Tensor) -> list[str]:
        return [layer.label for layer in trace(Runner(Constants()), ["Linear", "Embedding"], (TOKENS, t))]

    assert labels(torch.full((9,), 3.0)) == ["words", "head"]
    assert labels(torch.arange(9.0)) == ["words", "time", "head"]
