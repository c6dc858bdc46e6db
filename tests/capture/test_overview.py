"""A network's layers at a glance."""

from __future__ import annotations

import pytest
import torch

from lightning_ssc import show_layers
from lightning_ssc.capture import Runner
from lightning_ssc.capture.overview import overview
from tests.capture.test_presets import IMAGES, TOKENS, Bert, Detector


def test_every_module_is_there_with_its_presets_and_features() -> None:
    rows = {row.name: row for row in overview(Runner(Bert()), TOKENS)}
    assert list(rows) == [name for name, _ in Bert().named_modules() if name]
    assert rows["encoder.layer.1"].presets == ("blocks",)
    assert rows["encoder"].presets == ("stages",)
    assert (rows["encoder"].features, rows["classifier"].features) == (6 * 4, 3)
    assert rows["encoder.layer"].why_not == "never runs"
    assert (rows["positions"].presets, rows["positions"].features) == ((), None)


def test_why_layers_are_left_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    net = Detector()
    net.spare = torch.nn.Linear(2, 2)
    show_layers(net, IMAGES)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")}
    assert "puts out shape (448, 4) for 7 samples" in lines["roi0"]
    assert "the same for every input" in lines["bias"]
    assert lines["spare"].endswith("never runs")
    assert lines["neck"].split()[-2:] == ["stages", "blocks"]
