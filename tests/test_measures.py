"""One record a quantity: what is made from the records, and what they say of themselves."""

from __future__ import annotations

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


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        measures.measure("modularty")
