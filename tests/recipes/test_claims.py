"""The statistics behind the claims table, on runs whose answer is known."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from lightning_ssc import SnapshotStore
from lightning_ssc.analysis import Dynamics
from lightning_ssc.snapshots import Moment
from recipes import claims
from recipes.runs import Runs
from recipes.tables import read_table
from tests.runs import made_run


def table(cka, rate, modularity=None):
    cka = np.asarray(cka, dtype=float)
    nan = np.full_like(cka, np.nan)
    moments = [Moment(epoch, epoch) for epoch in range(len(cka))]
    layers = [f"layer{i}" for i in range(cka.shape[1])]
    modularity = nan if modularity is None else np.asarray(modularity, dtype=float)
    curves = {"modularity": modularity, "cka_to_final": cka, "linear_cka_to_final": nan}
    return Dynamics(layers, moments, np.asarray(rate, dtype=float), curves)


def test_rank_correlation():
    assert claims.rank([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(1)
    assert claims.rank([0.5, 0.4, 0.3, 0.2, 0.1]) == pytest.approx(-1)
    assert not claims.is_strong(claims.rank([0.1, 0.9, 0.2, 0.8, 0.3]))
    assert claims.rank([3.0, 3.0, 3.0]) == 0
    assert 0.3 < claims.rank_by_chance(20) < 0.45  # the table of Spearman's test has 0.38


RATES = [0.1, 0.1, 0.1, 0.02, 0.02, 0.02]  # the drop shows in epoch 3


def test_a_drop_is_a_jump_only_if_the_epochs_around_it_gain_less():
    found = claims.jumps(table([[0.1], [0.2], [0.25], [0.6], [0.65], [1.0]], RATES))
    expected = {"epoch 3: share of layers": 1, "gain at 3": 0.35, "beside 3": 0.05}
    assert found.measured == pytest.approx(expected)
    assert found.held
    assert not claims.jumps(table([[0.1], [0.2], [0.3], [0.4], [0.6], [1.0]], RATES)).held
    late = table([[0.1], [0.2], [0.25], [0.6], [1.0]], RATES[:5])  # the epoch after is the last: 1 whatever happens
    assert claims.gains_at_drops(late) == []
    assert not claims.jumps(late).held


SHALLOW_FIRST = np.array(
    [
        [0.30, 0.20, 0.10, 0.00],
        [0.91, 0.50, 0.20, 0.10],
        [0.92, 0.55, 0.25, 0.15],
        [0.93, 0.91, 0.62, 0.55],
        [0.94, 0.93, 0.92, 0.60],
        [1.00, 1.00, 1.00, 1.00],
    ]
)
LOOKS = (claims.rises, claims.saturates, claims.settles, claims.grows_with_depth, claims.linear_is_earlier)


@pytest.mark.parametrize("reverse", [False, True])
def test_verdicts_on_dynamics(reverse):
    order = slice(None, None, -1) if reverse else slice(None)
    saturated = np.arange(6)[:, None] > np.arange(4)  # one layer after the other
    rising = np.where(saturated, 1.0, 0.5) * [0.1, 0.3, 0.5, 0.7]
    made = table(SHALLOW_FIRST[:, order], RATES, rising[:, order])
    linear = np.minimum(1, SHALLOW_FIRST + 0.4)[:, order] if not reverse else 0.9 * SHALLOW_FIRST[:, order]
    linear[-1] = 1
    made = dataclasses.replace(made, curves={**made.curves, "linear_cka_to_final": linear})
    assert [look(made).held for look in LOOKS] == [not reverse] * len(LOOKS)
    assert claims.jumps(made).held, "layers in another order jump as they did"
    assert claims.rises(made).measured["last layer"] == pytest.approx(rising[-1, 0 if reverse else -1])


def test_curves_are_of_blocks_at_the_ends_of_epochs():
    made = table(SHALLOW_FIRST, RATES, SHALLOW_FIRST)
    layers = ["net.stem.0", "net.layer1.0.conv1", "net.layer1.0.downsample.0", "net.layer1.0"]
    moments = [Moment(step, step / 2) for step in range(6)]
    found = claims.of_epochs(dataclasses.replace(made, layers=layers, moments=moments))
    assert found.layers == ["net.stem.0", "net.layer1.0"]
    assert found.epochs.tolist() == [0, 1, 2]
    assert found.cka_to_final.tolist() == SHALLOW_FIRST[::2, [0, 3]].tolist()
    assert found.learning_rate.tolist() == RATES[::2]


def test_order_of_runs():
    assert claims.in_order([1, 2, 3], upwards=True)
    assert not claims.in_order([1, 3, 3], upwards=True)
    assert claims.in_order([3, 2, 1], upwards=False)


def blocks(*sizes, within=0.9, between=0.1):
    matrix = np.full((sum(sizes),) * 2, between)
    starts = np.cumsum([0, *sizes])
    for a, b in pairwise(starts):
        matrix[a:b, a:b] = within
    np.fill_diagonal(matrix, 1.0)
    return matrix


def test_what_stands_out():
    assert claims.stands_out(blocks(4, 2)) == pytest.approx(0.8)
    assert claims.stands_out(blocks(1, 1, 1, 1, 1, 1)) == pytest.approx(0)


class Made:
    """Runs whose heatmaps are given."""

    def __init__(self, heatmaps):
        self.heatmaps = heatmaps

    def snapshot(self, name, epoch=None):
        return self.heatmaps.get((name, epoch), blocks(8))

    def store(self, name):
        return SimpleNamespace(epochs=[0, 1, 4])


@pytest.mark.parametrize("reverse", [False, True])
def test_verdicts_on_architecture(reverse, monkeypatch):
    monkeypatch.setattr(claims, "heatmap", lambda taken: taken)
    order = slice(None, None, -1) if reverse else slice(None)
    deeper = zip(claims.VGGS[order], (0.5, 0.7, 0.9), strict=True)
    more = zip(claims.DATA[order], (0.9, 0.7, 0.5), strict=True)
    heatmaps = {(name, None): blocks(4, 4, within=w) for name, w in deeper}
    heatmaps |= {(name, None): blocks(3, 3, 6, within=w) for name, w in more}
    early, late = blocks(6, 3), blocks(3, 3, 3)
    heatmaps |= {(claims.EPOCHS, 1): late if reverse else early, (claims.EPOCHS, 4): early if reverse else late}
    found = [look(Made(heatmaps)) for look in (claims.blocks, claims.starved, claims.early_block)]
    assert [of.held for of in found] == [not reverse] * 3
    assert found[0].measured["vgg24, cut in 2"] == pytest.approx(0.4 if reverse else 0.8)
    assert found[1].chance == pytest.approx({"5 %": 0, "50 %": 0, "100 %": 0})


def test_numbers_of_one_seed_have_no_spread():
    assert claims.over_seeds([{"a": 0.12345}]) == "a 0.123"


def finished(folder, epochs, accuracies, planned=4):
    """A made run of nine convolutions and a block, as the recipes' trainer leaves it."""
    layers = ["network.stem", *(f"network.layer1.{b}.conv{c}" for b in (0, 1, 2, 3) for c in (1, 2))]
    layers += ["network.layer1.2"]
    made_run(folder / "ssc", n=12, epochs=epochs, layers=layers, images=False)
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": planned}}))
    with SummaryWriter(str(folder)) as writer:
        for step, accuracy in enumerate(accuracies):
            writer.add_scalar("val/accuracy", accuracy, step)


def test_lines_come_from_the_latest_runs_of_every_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_DRAWS", 5)
    of_claims = {name for claim in claims.CLAIMS for name in claim.runs}
    for seed, names in {"a": of_claims - {"vgg16"}, "b": {"vgg11", "resnet20"}}.items():
        for name in names:
            run = tmp_path / seed / claims.FOLDER / name
            (run / "version_2").mkdir(parents=True)  # an older one, that nobody reads
            accuracies = (0.2, 0.7) if name == "vgg24" else (0.2, 0.91)
            epochs = range(5) if name in claims.DYNAMICS else (0, 1, 4)
            finished(run / "version_10", epochs, accuracies)
    monkeypatch.setattr(claims, "draw", lambda *args: None)
    claims.claims([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    lines = {(line["claim"], line["runs"]): line for line in read_table(tmp_path / "out" / "claims.csv")}
    assert len(lines) == len(claims.CLAIMS)
    of = {runs: line for (_, runs), line in lines.items() if "neighbours label" in line["claim"]}
    assert [of[f"narrow/{name}"]["seeds"] for name in claims.VGGS] == ["2", "0", "1"]
    assert of["narrow/vgg16"]["measured"] == "not run yet"
    assert of["narrow/vgg24"]["held"] == "not shown", "70 % right, and not standing still"
    assert of["narrow/vgg11"]["held"] in ("yes", "no")
    assert of["narrow/vgg11"]["accuracy"] == "vgg11 0.91 ± 0"
    assert "±" in lines["modularity rises with depth", "narrow/resnet20"]["measured"]


def test_the_figures_of_complete_runs_are_drawn(tmp_path):
    finished(tmp_path / "resnet20" / "version_0", range(5), (0.9,))
    for epoch, name in enumerate(claims.VGGS):
        finished(tmp_path / name / "version_0", (0, 4 if epoch else 3), (0.9,))  # the first has not come to its end
    claims.draw(Runs(tmp_path, "recipes/narrow"), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"dynamics_resnet20.png"}


@pytest.mark.parametrize(
    ("name", "accuracies", "expected"),
    [
        ("resnet20", [0.5, 0.91], True),
        ("resnet20", [0.80, 0.801], False),
        ("resnet20_data5", [0.60, 0.601], True),
        ("resnet20_data5", [0.55, 0.60], False),
    ],
)
def test_when_a_network_has_converged(name, accuracies, expected):
    assert claims.is_converged(name, SimpleNamespace(accuracies=lambda of: accuracies)) == expected


def test_what_was_watched_beside_convolutions_is_left_out(tmp_path):
    layers = [
        "network.stem.0",
        "network.layer1.0.conv1",
        "network.layer1.0",
        "network.stage1.0.0",
        "network.classifier",
    ]
    made_run(tmp_path, n=12, epochs=(1,), layers=layers, images=False)
    taken = claims.of_convolutions(SnapshotStore(tmp_path).load(1))
    assert list(taken.layers) == ["stem.0", "layer1.0.conv1", "stage1.0.0"]
    assert claims.heatmap(taken).shape == (3, 3)


def test_a_missing_run_is_named_with_its_command(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no run in .*vgg99: python -m recipes fit --config recipes/narrow/vgg99"
    ):
        Runs(tmp_path, "recipes/narrow").store("vgg99")


def test_an_unfinished_run_is_named(tmp_path):
    finished(tmp_path / "vgg11" / "version_10", (1, 4), (0.1,), planned=9)
    with pytest.raises(FileNotFoundError, match=r"version_10 has not come to its end: wait for it, or go on"):
        Runs(tmp_path, "recipes/narrow").store("vgg11")


def test_every_run_of_the_claims_is_a_recipe():
    recipes = {path.stem for path in (Path(claims.__file__).parent / claims.FOLDER).glob("*.yaml")}
    assert recipes >= {name for claim in claims.CLAIMS for name in claim.runs}
