"""The classifier is what puts out what the network returns, and the last hidden layer what feeds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ssc import SnapshotStore, snapshot
from lightning_ssc.analysis import last_hidden_layer
from tests.capture.test_presets import GPT, IMAGES, TOKENS, Bert, DoubleConv, Stack, UNet
from tests.nets import convnet

X = torch.rand(9, 6, generator=torch.Generator().manual_seed(0))


class Auxiliary(nn.Module):
    """A second head that runs after the classifier, and puts out as many numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x).relu()
        logits, other = self.head(h), self.auxiliary(h)
        return {"logits": logits, "other": other}


class LogProbabilities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu()).log_softmax(1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.stack = nn.Embedding(11, 4), Stack(2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.stack(self.words(tokens))


@pytest.mark.parametrize(
    ("net", "inputs", "layers", "hidden"),
    [
        (Bert(), TOKENS, "blocks", "pooler.dense"),
        (Bert(), TOKENS, "stages", "pooler"),
        (Bert(), TOKENS, ["encoder.layer.*"], "encoder.layer.2"),
        (GPT(), TOKENS, "blocks", "h.2"),
        (Auxiliary(), X, "blocks", "body"),
        (LogProbabilities(), X, "blocks", "body"),
        (nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3)), X, "blocks", "0"),
        (Encoder(), TOKENS, "blocks", "stack.layer.1"),
        (UNet(DoubleConv), IMAGES, "blocks", "up2"),
    ],
)
def test_the_last_hidden_layer_feeds_what_the_network_returns(
    net: nn.Module, inputs: Tensor, layers: Any, hidden: str, tmp_path: Any
) -> None:
    """Whatever the number of classes: here there are two, as in none of these classifiers."""
    taken = snapshot(net, inputs, torch.arange(9) % 2, layers=layers)
    assert last_hidden_layer(taken) == hidden
    store = SnapshotStore(tmp_path)
    store.save(taken)
    assert last_hidden_layer(store.load(0)) == hidden


@pytest.mark.parametrize("memory", [None, 100_000])
def test_nc3_is_of_the_classifiers_weights_and_what_it_is_given(memory: int | None) -> None:
    """By its definition in float64, in one pass and in several, with a class that the probe has not."""
    torch.manual_seed(0)
    net = convnet(dropout=0.5)
    x, y = torch.randn(50, 3, 8, 8), torch.arange(50) % 2
    taken = snapshot(net, x, y, layers=["0", "4", "9"], chunk=16, memory=memory)
    net.eval()
    with torch.no_grad():
        hidden = net[:-1](x).double()
    means = torch.stack([hidden[y == k].mean(0) for k in (0, 1)])
    weight, apart = net[9].weight.detach().double()[:2], means - means.mean(0)
    expected = (weight / weight.norm() - apart / apart.norm()).norm() ** 2
    assert {name for name, layer in taken.layers.items() if "nc3" in layer.values} == {"9"}
    assert taken.layers["9"].values["nc3"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("net", "labels"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 16)), torch.arange(30) % 3),  # an embedding
        (nn.Sequential(nn.Linear(4, 8), nn.Conv1d(1, 1, 6)), torch.arange(30) % 3),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), None),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), torch.zeros(30).long()),
    ],
)
def test_nc3_is_left_out_where_there_is_no_linear_classifier(net: nn.Module, labels: torch.Tensor | None) -> None:
    x = torch.randn(30, 4) if not isinstance(net[1], nn.Conv1d) else torch.randn(30, 1, 4)  # type: ignore[index]
    taken = snapshot(net, x, labels, layers=["0", "1"])
    assert all("nc3" not in layer.values for layer in taken.layers.values())
