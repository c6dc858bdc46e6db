"""What a snapshot holds is of its own moment alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_ssc import SSCMonitor
from tests.nets import Classifier, data, trainer

X, Y = data(30).tensors


@pytest.mark.parametrize("how", [{}, {"preset": "paper"}, {"solver": "admm"}], ids=["default", "paper", "admm"])
def test_a_snapshot_does_not_depend_on_the_one_before(tmp_path: Path, how: dict[str, Any]) -> None:
    taken = {}
    for schedule in ([0, 1], [1]):
        torch.manual_seed(0)
        options = {"layers": ["model.0", "model.4"], "probe": (X, Y), "heatmap": False, "embedding": False}
        ssc = SSCMonitor(schedule=schedule, store=tmp_path / str(len(schedule)), **options, **how)
        trainer(tmp_path, ssc, max_epochs=1).fit(Classifier())
        taken[len(schedule)] = ssc.store.load(1)
    for name, layer in taken[1].layers.items():
        assert torch.equal(layer.coef.to_dense(), taken[2].layers[name].coef.to_dense())
