"""One record a quantity: what is made from the records, and what they say of themselves."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_ssc import measures, snapshot, writers
from lightning_ssc.measures import CURVES, MEASURES
from lightning_ssc.snapshots import Snapshot

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def taken() -> Snapshot:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return snapshot(net, torch.randn(40, 6), torch.arange(40) % 3, layers="Linear")


def test_the_readme_has_the_table_that_the_records_make() -> None:
    assert measures.markdown() in README


def test_names_and_tags_are_their_own() -> None:
    assert len({record.name for record in MEASURES}) == len({record.tag for record in MEASURES}) == len(MEASURES)
    for record in MEASURES:
        assert re.fullmatch(r"(ssc|linear_cka)/[a-z_]+", record.tag)
        assert record.meaning.endswith(".")
        assert record.title
        assert record.axis
        assert len(record.needs) >= 1


def test_whatever_a_layer_measures_is_kept_and_told(taken: Snapshot) -> None:
    of_layer = {record.name for record in CURVES if record.over == "layer"}
    for layer in taken.layers.values():
        assert set(layer.values) == of_layer
    tags = writers.scalars_of(taken)
    for record in CURVES:
        assert (f"{measures.tag(record)}/0" in tags) == (record.over == "layer")


def test_tables_between_layers_are_kept(taken: Snapshot) -> None:
    assert set(taken.pairs) == {record.name for record in measures.TABLES}
    for table in taken.pairs.values():
        assert table.diagonal().tolist() == pytest.approx([1.0, 1.0])


def test_what_is_missing_gives_no_value(taken: Snapshot) -> None:
    layer = taken.layers["0"]
    without = measures.of_layer(layer.measurable(None))
    assert "modularity" not in without
    assert "gap" in without


def test_values_of_before_are_kept(taken: Snapshot) -> None:
    done = {"gap": 0.25}
    assert measures.of_layer(taken.layers["0"].measurable(taken.labels), done)["gap"] == 0.25


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_effective_rank_counts_directions_of_equal_variance(rank: int) -> None:
    x = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    x = torch.linalg.qr(torch.cat([torch.ones(30, 1, dtype=torch.float64), x], 1)).Q[:, 1 : rank + 1]  # centred
    assert measures.of_layer({"gram": x @ x.T})["effective_rank"] == pytest.approx(rank)


def test_effective_rank_is_the_participation_ratio_of_the_covariance(taken: Snapshot) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(40, 6)
    with torch.no_grad():
        variances = torch.linalg.eigvalsh(torch.cov(net[0](x).double().T))
    expected = float(variances.sum() ** 2 / variances.square().sum())
    assert taken.layers["0"].values["effective_rank"] == pytest.approx(expected, rel=1e-4)


def test_effective_rank_of_a_constant_layer_is_nan() -> None:
    assert math.isnan(measures.of_layer({"gram": torch.zeros(4, 4)})["effective_rank"])


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        measures.measure("modularty")
