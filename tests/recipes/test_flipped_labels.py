"""Who finds changed labels: the areas that are reported, of doubts that are known."""

import pytest
import torch

from recipes.flipped_labels import ASKED, flipped, found


def test_labels_are_changed_to_others_in_the_share_that_was_asked_for():
    labels = torch.arange(400) % 10
    given, changed = flipped(labels, 0.4, seed=1)
    assert int(changed.sum()) == 160
    assert torch.equal(given != labels, changed)
    assert set(given[changed].tolist()) == set(range(10))


def test_areas_are_of_the_layers_that_were_asked():
    changed = torch.tensor([True, True, False, False])
    right, wrong, none = torch.tensor([3.0, 2, 1, 0]), torch.tensor([0.0, 1, 2, 3]), torch.zeros(4)
    areas = found({"neighbours": [wrong, wrong, right, none]}, none, changed)
    assert areas["neighbours, last block"] == areas["neighbours, last block and classifier"] == 1
    assert areas["neighbours, last three blocks"] == 0
    assert areas["softmax, trained on clean labels"] == pytest.approx(0.5)
    assert len(areas) == len(ASKED) + 1
