"""The statistics behind the claims table, on runs whose answer is known."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from lightning_ssc.analysis import Dynamics
from lightning_ssc.snapshots import Moment
from recipes import claims
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
    assert claims.rank([0.1, 0.2, 0.3, 0.4, 0.5]) == ("rank correlation with depth 1.00", True)
    assert not claims.rank([0.5, 0.4, 0.3, 0.2, 0.1])[1]
    assert not claims.rank([0.1, 0.9, 0.2, 0.8, 0.3])[1]
    assert claims.rank([3.0, 3.0, 3.0]) == ("the same in all layers", False)


RATES = [0.1, 0.1, 0.1, 0.02, 0.02, 0.02]  # the drop shows in epoch 3


def test_a_drop_is_a_jump_only_if_the_epochs_around_it_gain_less():
    [(text, held)] = claims.jumps_at_drops(table([[0.1], [0.2], [0.25], [0.6], [0.65], [1.0]], RATES))
    assert (text, held) == ("epoch 3: 1 of 1 layers, mean gain before, of and after 0.050, 0.350, 0.050", True)
    [(_, held)] = claims.jumps_at_drops(table([[0.1], [0.2], [0.3], [0.4], [0.6], [1.0]], RATES))
    assert not held
    late = table([[0.1], [0.2], [0.25], [0.6], [1.0]], RATES[:5])  # the epoch after is the last: 1 whatever happens
    assert claims.jumps_at_drops(late) == []


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


def verdicts(reverse):
    """Verdicts on a run that is as the paper says, or on one with its layers in reverse."""
    order = slice(None, None, -1) if reverse else slice(None)
    saturated = np.arange(6)[:, None] > np.arange(4)  # one layer after the other
    rising = np.where(saturated, 1.0, 0.5) * [0.1, 0.3, 0.5, 0.7]
    made = table(SHALLOW_FIRST[:, order], RATES, rising[:, order])
    linear = np.minimum(1, SHALLOW_FIRST + 0.4)[:, order] if not reverse else 0.9 * SHALLOW_FIRST[:, order]
    linear[-1] = 1
    made = dataclasses.replace(made, curves={**made.curves, "linear_cka_to_final": linear})
    return {claim.text: claim.held for claim in claims.claims_of_dynamics("made", made)}


def test_verdicts_on_dynamics():
    assert all(verdicts(reverse=False).values()), verdicts(reverse=False)
    found = verdicts(reverse=True)
    assert found.pop("a jump at each learning-rate drop")  # layers in another order jump as they did
    assert not any(found.values()), found


def test_without_a_drop_no_jump_holds():
    flat = table(SHALLOW_FIRST, [0.1] * 6, SHALLOW_FIRST)
    flat = dataclasses.replace(flat, curves={**flat.curves, "linear_cka_to_final": SHALLOW_FIRST})
    found = {claim.text: claim.held for claim in claims.claims_of_dynamics("flat", flat)}
    assert not found["a jump at each learning-rate drop"]
    assert "the jump is smaller in shallow layers" not in found
    assert not found["linear CKA settles earlier"]  # at the same epochs


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


def test_statistics_of_heatmaps():
    matrix = blocks(3, 3)
    assert claims.neighbours_alike(matrix) == pytest.approx((4 * 0.9 + 0.1) / 5)
    assert claims.others_alike(matrix) == pytest.approx((12 * 0.9 + 18 * 0.1) / 30)
    assert claims.two_blocks(matrix) == pytest.approx(0.8)
    assert claims.two_blocks(blocks(6)) == pytest.approx(0)
    assert claims.stands_out(blocks(4, 2)) == pytest.approx(0.8)
    assert claims.stands_out(blocks(1, 1, 1, 1, 1, 1)) == pytest.approx(0)


class Made:
    """Runs whose heatmaps are given."""

    def __init__(self, heatmaps):
        self.heatmaps = heatmaps

    def heatmap(self, name, epoch=None):
        found = self.heatmaps[name] if epoch is None else self.heatmaps[name, epoch]
        return found, [f"conv{i}" for i in range(len(found))]

    def accuracy(self, name):
        return 0.9, 1.0

    def store(self, name):
        return SimpleNamespace(epochs=[1, 4])


def architecture(reverse):
    order = slice(None, None, -1) if reverse else slice(None)
    layer = np.arange(8)
    board = np.where((layer[:, None] + layer) % 2 == 0, 1.0, 0.2)
    heatmaps = {}
    for family in (claims.VGGS, claims.RESNETS):
        heatmaps |= {name: blocks(4, 4, within=w) for name, w in zip(family[order], (0.5, 0.7, 0.9), strict=True)}
    two = (blocks(3, 3, 6, within=w) for w in (0.9, 0.7, 0.5))
    heatmaps |= dict(zip(claims.DATA[order], two, strict=True)) if claims.DATA[2] not in claims.RESNETS else {}
    early, late = blocks(6, 3), blocks(3, 3, 3)
    heatmaps |= {(claims.EPOCHS, 1): late if reverse else early, (claims.EPOCHS, 4): early if reverse else late}
    heatmaps[claims.EPOCHS] = late if reverse else board
    heatmaps |= {name: blocks(3, 3, 6, within=w) for name, w in zip(claims.DATA[:2][order], (0.9, 0.8), strict=True)}
    return {(c.text, c.run): c.held for c in claims.claims_of_architecture(Made(heatmaps))}


@pytest.mark.parametrize("reverse", [False, True])
def test_verdicts_on_architecture(reverse):
    found = architecture(reverse)
    assert found["blocks show in deeper networks", ", ".join(claims.VGGS)] != reverse
    assert found["blocks show in deeper networks", ", ".join(claims.RESNETS)] != reverse
    assert found["one large block early, small ones later", claims.EPOCHS] != reverse
    assert found["a chess-board in ResNets", claims.EPOCHS] != reverse


def finished(folder, epochs, accuracy, planned=4):
    """A made run of eight layers, as the recipes' trainer leaves it."""
    made_run(folder / "ssc", n=12, epochs=epochs, layers=[f"net.conv{i}" for i in range(8)], images=False)
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": planned}}))
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("val/accuracy", accuracy, 0)


def test_the_tables_and_figures_come_from_the_latest_runs(tmp_path, capsys, monkeypatch):
    runs = tmp_path
    for name in {*claims.DYNAMICS, claims.EPOCHS, *claims.DATA, *claims.VGGS, *claims.RESNETS}:
        (runs / name / "version_2").mkdir(parents=True)  # an older one, that nobody reads
        finished(runs / name / "version_10", range(5) if name in claims.DYNAMICS else (1, 4), accuracy=0.1)
    monkeypatch.setattr("sys.argv", ["claims", "--runs", str(runs), "--figures", str(runs / "figures")])
    claims.main()
    printed = capsys.readouterr().out
    assert "| `small/vgg11.yaml` | 10.0% |" in printed
    assert printed.count("| modularity rises with depth |") == len(claims.DYNAMICS)
    drawn = {path.name for path in (runs / "figures").iterdir()}
    assert drawn == {
        *(f"small_dynamics_{name}.png" for name in claims.DYNAMICS),
        *(f"small_{name}.png" for name in ("epochs", "data", "depth_vgg", "depth_resnet")),
    }


def test_a_missing_run_is_named_with_its_command(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no run in .*vgg99: python -m recipes fit --config recipes/small/vgg99"
    ):
        claims.Runs(tmp_path, "recipes/small").store("vgg99")


def test_an_unfinished_run_is_named(tmp_path):
    finished(tmp_path / "vgg11" / "version_10", epochs=(1, 4), accuracy=0.1, planned=9)
    with pytest.raises(FileNotFoundError, match=r"version_10 has not come to its end, epoch 9: wait for it, or go on"):
        claims.Runs(tmp_path, "recipes/small").store("vgg11")


def test_every_run_of_the_claims_is_a_recipe():
    recipes = {path.stem for path in (Path(claims.__file__).parent / "small").glob("*.yaml")}
    assert recipes == {*claims.DYNAMICS, claims.EPOCHS, *claims.DATA, *claims.VGGS, *claims.RESNETS}
