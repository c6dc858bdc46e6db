"""Labels in doubt: those that were changed are found, by graphs alone as well; and where two runs part."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_ssc import SnapshotStore, snapshot
from lightning_ssc.analysis import Dynamics, doubts, parting
from lightning_ssc.cli import main
from lightning_ssc.snapshots import Moment, SnapshotError
from tests.runs import doubtful_run

N, CLASSES = 90, 3
NAMES = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def wrong() -> list[int]:
    return [4, 31, 77]


@pytest.fixture(scope="module")
def store(wrong: list[int], tmp_path_factory: pytest.TempPathFactory) -> SnapshotStore:
    """Classes apart in the last layers and not in the first, at three moments; some labels were changed."""
    return doubtful_run(tmp_path_factory.mktemp("run") / "ssc", wrong)


def test_changed_labels_are_in_doubt(store: SnapshotStore, wrong: list[int]) -> None:
    found = doubts(store)
    assert (found.layers, found.steps) == (["0", "1"], [10, 20])
    assert sorted(found.in_doubt().tolist()) == wrong
    assert sorted(found.ranked()[:3].tolist()) == wrong
    assert found.suggestions[wrong].tolist() == [i % CLASSES for i in wrong]
    assert (found.against[wrong] > 0.5).all()
    margins = [layer.of_inputs["ridge_margin"] for step in (10, 20) for _, layer in store.layers(step)]
    assert found.doubt == pytest.approx(-torch.stack(margins).double().mean(0).numpy())


def test_graphs_alone_vote_where_no_probe_was_kept(store: SnapshotStore, wrong: list[int], tmp_path: Path) -> None:
    old = SnapshotStore(tmp_path)
    taken = store.load(20)
    old.save(replace(taken, layers={name: replace(layer, of_inputs={}) for name, layer in taken.layers.items()}))
    found = doubts(old, layers=["0"])
    assert sorted(found.ranked()[:3].tolist()) == wrong
    assert set(wrong) <= set(found.in_doubt().tolist())
    assert found.doubt.min() >= -1
    assert found.doubt.max() <= 1


def test_what_cannot_be_asked_is_named(store: SnapshotStore, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="holds no layer 'fc', only 0, 1"):
        doubts(store, layers=["fc"])
    with pytest.raises(SnapshotError, match="There are no snapshots"):
        doubts(SnapshotStore(tmp_path))
    SnapshotStore(tmp_path).save(snapshot(nn.Sequential(nn.Linear(3, 2)), torch.rand(9, 3), layers="Linear"))
    with pytest.raises(SnapshotError, match="no class labels that could be doubted"):
        doubts(SnapshotStore(tmp_path))


def test_the_command_lists_them(
    store: SnapshotStore, wrong: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["labels", str(store.root), "--csv", str(tmp_path / "labels.csv"), "--count", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"3 of {N} labels are in doubt, by 0, 1."
    assert len(said) == 1 + 2 + 1
    with (tmp_path / "labels.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == N
    assert [int(line["input"]) for line in lines[:3]] == doubts(store).in_doubt().tolist()
    first = int(lines[0]["input"])
    assert (lines[0]["suggestion"], lines[0]["label"]) == (NAMES[first % 3], NAMES[(first + 1) % 3])
    assert [line["in_doubt"] for line in lines].count("True") == 3


def curves(values: list[list[float]], spread: float, layers: list[str], steps: list[int]) -> Dynamics:
    table = np.array(values)
    moments = [Moment(step, step / 10) for step in steps]
    spreads = {"modularity": np.full(table.shape, spread)}
    return Dynamics(layers, moments, np.full(len(steps), np.nan), {"modularity": table}, spreads)


class TestParting:
    def test_is_the_first_difference_beyond_noise(self) -> None:
        one = curves([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], 0.01, ["a", "b"], [0, 10, 20])
        other = curves([[0.9, 0.2, 0.1], [0.9, 0.5, 0.32], [0.9, 0.9, 0.9]], 0.01, ["c", "b", "a"], [0, 10, 20])
        found = parting(one, other)
        assert found is not None
        assert (found.moment.step, found.layer, found.measure.name) == (10, "b", "modularity")
        assert found.deviations == pytest.approx(0.1 / (0.01 * 2**0.5))
        assert str(found) == "epoch 1, b: modularity 0.400 ± 0.020 and 0.500 ± 0.020"

    def test_is_none_within_noise_or_without_any(self) -> None:
        one = curves([[0.1], [0.3]], 0.02, ["a"], [0, 10])
        assert parting(one, curves([[0.12], [0.25]], 0.02, ["a"], [0, 10])) is None
        assert parting(one, curves([[0.9], [0.9]], 0.02, ["b"], [0, 10])) is None
        assert parting(one, curves([[0.9], [0.9]], np.nan, ["a"], [0, 10])) is None

    def test_equal_runs_are_told_apart_in_one_of_twenty_cases_at_most(self) -> None:
        """However many places are compared."""
        rng, apart = np.random.default_rng(0), 0
        layers, steps = list("abcde"), [0, 10, 20, 30]
        for _ in range(300):
            one, other = (curves(rng.normal(0.5, 0.01, (4, 5)).tolist(), 0.01, layers, steps) for _ in range(2))
            apart += parting(one, other) is not None
        assert apart <= 25
