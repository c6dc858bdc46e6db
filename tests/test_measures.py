"""One record a quantity: what is made from the records, and what they say of themselves."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_ssc import measures, snapshot, writers
from lightning_ssc.functional.health import sample
from lightning_ssc.functional.probes import margin, ridge_probe
from lightning_ssc.measures import CURVES, MEASURES
from lightning_ssc.snapshots import Snapshot

PAGE = (Path(__file__).parents[1] / ".site" / "pages" / "curves.md").read_text()


@pytest.fixture(scope="module")
def taken() -> Snapshot:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return snapshot(net, torch.randn(40, 6), torch.arange(40) % 3, layers="Linear")


def test_the_page_of_curves_has_the_table_that_the_records_make() -> None:
    assert measures.markdown() in PAGE


def test_names_and_tags_are_their_own() -> None:
    assert len({record.name for record in MEASURES}) == len({record.tag for record in MEASURES}) == len(MEASURES)
    for record in MEASURES:
        assert re.fullmatch(r"(ssc|linear_cka)/[a-z0-9_]+", record.tag)
        assert record.meaning.endswith(".")
        assert record.title
        assert record.axis
        assert len(record.needs) >= 1


def test_whatever_a_layer_measures_is_kept_and_told(taken: Snapshot) -> None:
    records = [record for record in CURVES if record.over in ("layer", "history")]
    of_layer = {record.name for record in records} | {record.spread_name for record in records if record.spread}
    for name, layer in taken.layers.items():
        assert set(layer.values) == of_layer - (set() if name == "2" else {"nc3"})  # of the classifier alone
        assert set(layer.of_inputs) == {record.name for record in measures.INPUTS}
        assert {len(column) for column in layer.of_inputs.values()} == {40}
    tags = writers.scalars_of(taken)
    for record in CURVES:
        assert (f"{measures.tag(record)}/2" in tags) == (record.over in ("layer", "history"))


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


def test_the_linear_probe_is_of_some_of_many_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_PROBED", 20)
    labels = torch.arange(60) % 2
    x = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 6 * labels
    x = x - x.mean(0)
    margins = measures.of_inputs({"gram": x @ x.T, "labels": labels})["ridge_margin"]
    known = ~margins.isnan()
    assert torch.equal(known.nonzero()[:, 0], sample(60, 20))
    part = x[known] - x[known].mean(0)
    expected = margin(ridge_probe(part @ part.T, labels[known]), labels[known])
    torch.testing.assert_close(margins[known], expected.half(), rtol=0, atol=1e-3)
    values = measures.of_layer({"ridge_margin": margins})
    assert values["ridge_accuracy"] == 1
    assert values["ridge_accuracy_spread"] == 0


def test_of_inputs_all_alike_no_probe_says_anything() -> None:
    known = {"gram": torch.zeros(6, 6), "labels": torch.arange(6) % 2}
    values = measures.of_layer({**known, **measures.of_inputs(known)})
    for name in ("nearest_neighbour_accuracy", "ridge_accuracy", "effective_rank", "rankme"):
        assert math.isnan(values[name])
