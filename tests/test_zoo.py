"""The networks of the zoo that these tests' requirements have; ``python tests/zoo.py`` takes them all."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.zoo import TABLE, cell, check, expand
from tests.zoo_networks import networks

NETWORKS = {f"{network.package}/{network.name}": network for network in networks()}
SMALL = [
    "torchvision/resnet18", "torchvision/squeezenet1_1", "torchvision/mobilenet_v3_small", "transformers/bert",
    "transformers/gpt2", "transformers/t5", "timm/convnext_atto", "timm/regnety_002", "peft/bert Lora",
    "segmentation_models_pytorch/Unet", "diffusers/UNet2DModel", "torch_geometric/GCN",
]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_network(name: str) -> None:
    network = NETWORKS[name]
    if find_spec(network.package) is None:
        pytest.skip(f"{network.package} is not installed; pip install '.[zoo]' has it")
    assert network.blocks
    assert check(network).faults == []


def test_names_are_their_own() -> None:
    assert len(NETWORKS) == len(list(networks()))
    assert len({network.package for network in NETWORKS.values()}) >= 12
    assert sum(bool(network.blocks) for network in NETWORKS.values()) >= 40


def test_table_says_what_is_expected() -> None:
    page = (Path(__file__).parents[1] / ".site/pages/layers.md").read_text(encoding="utf-8")
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    assert [row[0] for row in rows[2:]] == list(TABLE)
    for title, blocks, stages, conv in rows[2:]:
        network = NETWORKS[TABLE[title]]
        assert blocks == cell(expand(network.blocks)), title
        assert not network.stages or stages == cell(expand(network.stages)), title
        assert conv == "none" or int(conv) > 0, title
