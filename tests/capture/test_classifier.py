"""The classifier is what puts out what the network returns, and the last hidden layer what feeds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ssc import SnapshotStore, snapshot
from lightning_ssc.analysis import last_hidden_layer
from tests.capture.test_presets import GPT, IMAGES, TOKENS, Bert, DoubleConv, Stack, UNet

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
