"""Parameters that act through layers, against what gets a gradient once the layers' outputs are cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ssc.capture import Runner, parameters_through, trace
from tests.nets import convnet


class Skips(nn.Module):
    """A skip past the second layer, which shares its weights with the third, and an offset of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(4))
        self.first, self.second, self.third, self.head = (nn.Linear(4, 4) for _ in range(4))
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu_(self.first(x + self.offset))
        return self.head(self.third(torch.relu_(self.second(first))) + first)


class Tokens(nn.Module):
    """A class token in front of blocks, of which one is run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(6, 8), nn.Parameter(torch.zeros(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.last = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        return self.head(self.last(self.block(self.block(tokens)))[:, 0])


class Detach:
    """A hook that cuts off what some calls of a module put out."""

    def __init__(self, name: str, cut: set[tuple[str, int]]) -> None:
        self.calls = iter([(name, call) in cut for call in range(9)])

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.detach() if next(self.calls) else output


@pytest.mark.parametrize(
    ("make", "layers", "shape"),
    [
        (convnet, ["0", "2", "4", "9"], (9, 3, 8, 8)),
        (Skips, ["first", "second", "third", "head"], (9, 4)),
        (Tokens, ["block", "last", "head"], (9, 5, 6)),
        (Tokens, ["last"], (9, 5, 6)),
    ],
)
def test_they_are_those_that_get_no_gradient_once_the_layers_are_cut_off(
    make: Callable[[], nn.Module], layers: list[str], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net, x = make(), torch.rand(shape)
    runner = Runner(net)
    watched = trace(runner, layers, x)
    found = parameters_through(runner, watched, x)
    assert list(found) == [layer.label for layer in watched]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    net.eval()
    frozen: list[str] = []
    for count, layer in enumerate(watched, start=1):
        frozen += found[layer.label]
        cut = {(one.layer.name, one.call) for one in watched[:count]}
        hooks = [net.get_submodule(name).register_forward_hook(Detach(name, cut)) for name in layers]
        net.zero_grad()
        if (out := net(x).sum()).requires_grad:
            out.backward()
        for hook in hooks:
            hook.remove()
        assert set(frozen) == {name for name, parameter in net.named_parameters() if parameter.grad is None}
