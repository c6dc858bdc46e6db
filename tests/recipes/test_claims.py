"""The statistics behind the claims table, on runs whose answer is known."""

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_ssc.analysis import Dynamics
from recipes import claims
from tests.runs import made_run


def table(cka, rate, modularity=None):
    cka = np.asarray(cka, dtype=float)
    nan = np.full_like(cka, np.nan)
    epochs = np.arange(len(cka))
    layers = [f"layer{i}" for i in range(cka.shape[1])]
    modularity = nan if modularity is None else np.asarray(modularity, dtype=float)
    return Dynamics(layers, epochs, epochs, np.asarray(rate, dtype=float), modularity, cka, nan, nan, nan)


def test_rank_correlation_is_one_sided():
    assert claims.rank([0.1, 0.2, 0.3, 0.4, 0.5])[1]
    assert not claims.rank([0.5, 0.4, 0.3, 0.2, 0.1])[1]
    assert claims.rank([0.5, 0.4, 0.3, 0.2, 0.1], upwards=False)[1]
    assert not claims.rank([0.1, 0.9, 0.2, 0.8, 0.3])[1]
    assert claims.rank([3.0, 3.0, 3.0]) == ("the same in all layers", False)
    assert claims.rank([1, 2, np.nan, 4, 5, 6]) == claims.rank([1, 2, 4, 5, 6])


def test_a_drop_is_a_jump_only_if_the_epochs_around_it_gain_less():
    rates = [0.1, 0.1, 0.1, 0.02, 0.02, 0.02]
    jumps = table([[0.1], [0.2], [0.25], [0.6], [0.65], [1.0]], rates)
    assert claims.gains(jumps) == [("0.050, **0.350**, 0.050", True)]
    glides = table([[0.1], [0.2], [0.3], [0.4], [0.6], [1.0]], rates)
    assert claims.gains(glides) == [("0.100, **0.100**, 0.200", False)]


def test_order_of_runs():
    assert claims.in_order([1, 2, 3], upwards=True)
    assert not claims.in_order([1, 3, 3], upwards=True)
    assert claims.in_order([3, 2, 1], upwards=False)


def test_similarity_of_layers():
    heatmap = np.kron(np.eye(2), np.full((3, 3), 0.8)) + 0.1
    np.fill_diagonal(heatmap, 1.0)
    assert claims.largest(heatmap) == 0.5
    assert claims.neighbours_alike(heatmap) == pytest.approx((4 * 0.9 + 0.1) / 5)
    assert claims.others_alike(heatmap) == pytest.approx((12 * 0.9 + 18 * 0.1) / 30)


@pytest.fixture
def runs(tmp_path):
    names = {*claims.DYNAMICS, claims.EPOCHS, *claims.DATA, *claims.VGGS, *claims.RESNETS}
    for name in names:
        epochs = range(5) if name in claims.DYNAMICS else (1, 4)
        for version in (2, 10):
            folder = tmp_path / name / f"version_{version}"
            layers = [f"net.conv{i}" for i in range(8)]
            made_run(folder / "ssc", epochs=tuple(epochs), layers=layers, seed=version)
            with SummaryWriter(str(folder)) as writer:
                writer.add_scalar("val/accuracy", version / 100, 0)
    return tmp_path


def test_the_tables_and_figures_come_from_the_latest_runs(runs, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["claims", "--runs", str(runs), "--figures", str(runs / "figures")])
    claims.main()
    printed = capsys.readouterr().out
    assert "| `small/vgg11.yaml` | 10.0% |" in printed  # of version 10, not 2
    assert printed.count("| modularity rises with depth |") == len(claims.DYNAMICS)
    assert all(line.endswith(("| yes |", "| **no** |")) for line in printed.splitlines() if line.startswith("| blocks"))
    drawn = {path.name for path in (runs / "figures").iterdir()}
    assert drawn == {
        *(f"small_dynamics_{name}.png" for name in claims.DYNAMICS),
        *(f"small_{name}.png" for name in ("epochs", "data", "depth_vgg", "depth_resnet")),
    }


def test_a_missing_run_is_named_with_its_command(runs):
    with pytest.raises(
        FileNotFoundError, match=r"no run in .*vgg99: python -m recipes fit --config recipes/small/vgg99"
    ):
        claims.Runs(runs).store("vgg99")


def test_every_run_of_the_claims_is_a_recipe():
    from pathlib import Path

    recipes = {path.stem for path in (Path(claims.__file__).parent / "small").glob("*.yaml")}
    assert recipes == {*claims.DYNAMICS, claims.EPOCHS, *claims.DATA, *claims.VGGS, *claims.RESNETS}
