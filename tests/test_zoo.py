"""The networks of the zoo that these tests' requirements have; ``python tests/zoo.py`` takes them all."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.zoo import check
from tests.zoo_networks import networks

NETWORKS = {f"{network.library}/{network.name}": network for network in networks()}
SMALL = [
    "torchvision/resnet18", "torchvision/squeezenet1_1", "torchvision/mobilenet_v3_small", "transformers/bert",
    "transformers/gpt2", "transformers/t5", "timm/convnext_atto", "timm/regnety_002", "peft/bert Lora",
    "segmentation_models_pytorch/Unet", "diffusers/UNet2DModel", "torch_geometric/GCN",
]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_network(name: str) -> None:
    network = NETWORKS[name]
    if find_spec(network.library) is None:
        pytest.skip(f"{network.library} is not installed; pip install '.[zoo]' has it")
    assert network.blocks
    assert check(network).faults == []


def test_names_are_their_own() -> None:
    assert len(NETWORKS) == len(list(networks()))
    assert len({network.library for network in NETWORKS.values()}) >= 12
    assert sum(bool(network.blocks) for network in NETWORKS.values()) >= 40
