"""What is refused of other people's weights; that the true ones are right is tested in test_converged.py."""

import pytest
import torch

from recipes.models import cifar_resnet
from recipes.public_weights import check_accuracy, public_resnet


def test_a_missing_file_is_named_with_its_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*resnet20\.th: fetch it from .*akamaster.*--weights"):
        public_resnet(20, tmp_path)


def test_a_depth_that_was_not_published():
    with pytest.raises(ValueError, match="the public ResNets have 20, 44, 56 layers, not 32"):
        public_resnet(32, None)


def test_weights_of_another_network(tmp_path):
    torch.save({"state_dict": cifar_resnet(depth=8, shortcut="pad").state_dict()}, tmp_path / "resnet20.th")
    with pytest.raises(ValueError, match=r"resnet20\.th does not hold the weights of a ResNet-20: "):
        public_resnet(20, tmp_path)


def test_an_accuracy_that_is_not_the_known_one():
    labels = torch.zeros(1000)
    with pytest.raises(ValueError, match=r"ResNet-56 is right on 85\.00% of 1000 images, where 93\.39% are known"):
        check_accuracy(56, (torch.arange(1000) >= 850).long(), labels)
    everything = torch.zeros(10_000)
    assert check_accuracy(56, (torch.arange(10_000) >= 9339).long(), everything) == 0.9339
    with pytest.raises(ValueError, match=r"93\.30% of 10000 images"):  # all images leave nothing to chance
        check_accuracy(56, (torch.arange(10_000) >= 9330).long(), everything)
