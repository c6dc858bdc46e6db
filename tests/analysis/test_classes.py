"""What was measured of classes: from a snapshot to a file."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_ssc.analysis import by_class, dynamics, summarise
from lightning_ssc.functional import affinity
from lightning_ssc.functional.partition import partition
from lightning_ssc.measures import of_classes
from lightning_ssc.snapshots import MemoryStore
from tests.runs import made_run, random_coef, taken


def test_a_run_is_what_its_snapshots_measured(tmp_path: Path) -> None:
    store = made_run(tmp_path)
    found = by_class(store)
    assert found is not None
    assert found.classes.tolist() == [0, 1, 2]
    for t, step in enumerate(store.steps):
        for i, (_, layer) in enumerate(store.layers(step)):
            expected = partition(affinity(layer.coef), store.labels(step)).by_class  # type: ignore[arg-type]
            assert found.tables["class_modularity"][t, i].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_classes_are_those_of_the_labels_that_are_known() -> None:
    store, labels = MemoryStore(), [0, 0, 3, 3, 3, -1, -1, 0]
    store.save(taken({"fc": random_coef(8, 0, 1.0)}, labels))
    found = by_class(store)
    assert found is not None
    table = found.tables["class_modularity"][0, 0]
    assert np.isnan(table).tolist() == [False, True, True, False]
    layer = store.load_layer(layer="fc", step=0)
    known = torch.tensor(labels) >= 0
    part = affinity(layer.coef).to_dense()[known][:, known]
    assert table[[0, 3]].tolist() == pytest.approx(partition(part, torch.tensor(labels)[known]).by_class.tolist())
    of_communities = replace(layer, communities=torch.arange(8) % 2)
    assert torch.equal(of_classes(of_communities.measurable(torch.tensor(labels)))["class_modularity"],
                       layer.of_classes["class_modularity"])  # fmt: skip


def test_as_a_file(tmp_path: Path) -> None:
    store = made_run(tmp_path / "run")
    summarise(store).to_csv(tmp_path / "csv")
    with (tmp_path / "csv" / "classes.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 3 * 3
    assert list(lines[5].values())[:5] == ["0", "0", "net.conv2", "2", "bird"]
    expected = store.of_classes(0)["net.conv2"]["class_modularity"]
    assert float(lines[5]["class_modularity"]) == float(expected[2])


def test_of_what_has_no_labels_there_is_none(tmp_path: Path) -> None:
    assert by_class(made_run(tmp_path, labels=False)) is None


def test_no_modularity_is_above_the_ceiling_which_the_classes_set(tmp_path: Path) -> None:
    store = made_run(tmp_path, n=60)
    table = dynamics(store)
    of_layers = [
        partition(layer.affinity, store.labels(step)).ceiling  # type: ignore[arg-type]
        for step in store.steps
        for _, layer in store.layers(step)
    ]
    assert table.ceiling == pytest.approx(max(of_layers))
    assert table.ceiling == pytest.approx(1 - 1 / 3, abs=0.02)
    assert np.isnan(replace(table, curves={"modularity": table.modularity}).ceiling)
