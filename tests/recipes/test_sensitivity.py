"""How results move, on a made block whose classes lie in different directions."""

import math

import pytest
import torch

from lightning_ssc.functional import affinity, class_affinity, modularity, self_expression
from recipes.sensitivity import SETTINGS, Block, draws_of, line_of, outcome


@pytest.fixture
def block():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    x = torch.eye(8)[labels] * 3 + torch.randn(60, 8, generator=generator)
    return Block("made", "last block", x @ x.T, labels)


def test_draws_are_balanced_and_differ_and_of_all_inputs_there_is_one(block):
    drawn = list(draws_of(block.labels, 12, 4))
    assert len({tuple(places.tolist()) for places in drawn}) == 4
    assert all(block.labels[places].bincount().tolist() == [4, 4, 4] for places in drawn)
    assert [places.tolist() for places in draws_of(block.labels, 60, 4)] == [list(range(60))]


def test_an_outcome_is_that_of_the_drawn_inputs(block):
    solved = self_expression(gram=block.gram)
    found = outcome(block.gram, block.labels, {})
    assert found["modularity"] == modularity(affinity(solved.coef), block.labels)
    assert found["gap"] == float(solved.gap.max()) < 1e-5
    shares = class_affinity(affinity(solved.coef), block.labels)
    assert found["ssc_label"] == float((shares.argmax(1) == block.labels).double().mean()) > 0.8


def test_a_line_is_mean_and_spread_of_its_draws(block):
    line = line_of(block, 30, 3, {"tau": 5.0})
    each = [outcome(block.gram[p][:, p], block.labels[p], {"tau": 5.0})["modularity"]
            for p in draws_of(block.labels, 30, 3)]  # fmt: skip
    assert line["modularity"] == pytest.approx(sum(each) / 3)
    assert line["modularity_spread"] == pytest.approx(float(torch.tensor(each).std()))
    assert math.isnan(line_of(block, 60, 3, {})["modularity_spread"])


def test_settings_differ_in_scale_and_solver_alone(block):
    found = {name: outcome(block.gram, block.labels, how) for name, how in SETTINGS.items()}
    ours, raw = found["unit length, exact"], found["raw, exact"]
    paper, admm = found["paper: raw, ADMM, 100 iterations"], found["unit length, ADMM, 100 iterations"]
    assert max(ours["gap"], raw["gap"]) < 1e-5 < min(paper["gap"], admm["gap"])
    assert ours["modularity"] > raw["modularity"]
    assert admm["modularity"] == pytest.approx(ours["modularity"], abs=0.02)
