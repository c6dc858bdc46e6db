import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lightning_ssc.analysis import Dynamics, dynamics
from lightning_ssc.snapshots import Moment, SnapshotError, SnapshotStore
from tests import definitions
from tests.runs import made_run, random_coef, taken

NAN = float("nan")


def cka_by_definition(coef1: np.ndarray, coef2: np.ndarray) -> float:
    return definitions.cka(*(torch.from_numpy(np.abs(coef) + np.abs(coef).T) for coef in (coef1, coef2)))


def modularity_by_definition(coef: np.ndarray, labels: list[int]) -> float:
    a = np.abs(coef) + np.abs(coef).T
    k, m2 = a.sum(1), a.sum()
    return sum(
        (a[i, j] - k[i] * k[j] / m2) / m2 for i in range(len(a)) for j in range(len(a)) if labels[i] == labels[j]
    )


def table(curve: list[list[float]], epochs: list[int], rates: list[float] | None = None) -> Dynamics:
    rate = np.full(len(epochs), np.nan) if rates is None else np.array(rates)
    layers = [f"layer{i}" for i in range(np.shape(curve)[1])]
    return Dynamics(layers, [Moment(epoch, epoch) for epoch in epochs], rate, {"cka_to_final": np.array(curve)})


def test_every_curve_is_its_definition(tmp_path: Path) -> None:
    labels = [0, 1, 2] * 4
    coefs = {epoch: {f"l{i}": random_coef(12, 10 * epoch + i) for i in range(2)} for epoch in (0, 2, 5)}
    store = SnapshotStore(tmp_path)
    for epoch, layers in coefs.items():
        store.save(taken(layers, labels, epoch=epoch, step=7 * epoch))
    reference = taken({"l1": random_coef(12, 99)}, labels)
    curves = dynamics(store, reference=reference)
    assert (curves.layers, curves.epochs.tolist(), curves.steps.tolist()) == (["l0", "l1"], [0, 2, 5], [0, 14, 35])
    for t, epoch in enumerate((0, 2, 5)):
        for i, name in enumerate(("l0", "l1")):
            coef = coefs[epoch][name]
            assert curves.modularity[t, i] == pytest.approx(modularity_by_definition(coef, labels), abs=1e-6)
            assert curves.cka_to_final[t, i] == pytest.approx(cka_by_definition(coef, coefs[5][name]), abs=1e-6)
            if t:
                before = coefs[(0, 2, 5)[t - 1]][name]
                assert curves.cka_to_previous[t, i] == pytest.approx(cka_by_definition(coef, before), abs=1e-6)
        assert curves.cka_to_reference[t, 1] == pytest.approx(
            cka_by_definition(coefs[epoch]["l1"], random_coef(12, 99)), abs=1e-6
        )
    assert np.isnan(curves.cka_to_previous[0]).all()
    assert np.isnan(curves.cka_to_reference[:, 0]).all()  # the reference has no such layer
    assert np.isnan(curves.linear_cka_to_final).all()  # not kept


def test_a_layer_that_an_early_snapshot_lacks_leaves_a_gap(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    store.save(taken({"a": random_coef(9, 0)}, epoch=0))
    store.save(taken({"a": random_coef(9, 1), "b": random_coef(9, 2)}, epoch=1))
    curves = dynamics(store)
    assert np.isnan(curves.cka_to_final[0, 1])
    assert curves.cka_to_final[1].tolist() == pytest.approx([1, 1])
    assert np.isnan(curves.modularity).all()  # no labels


def test_a_layer_has_settled_when_it_stays_above() -> None:
    curves = table([[0.95, 0.2, NAN], [0.5, 0.9, NAN], [0.95, 0.95, NAN], [1.0, 1.0, NAN]], [0, 10, 20, 30])
    assert curves.settled().tolist() == pytest.approx([20, 10, NAN], nan_ok=True)
    assert curves.settled(0.4).tolist() == pytest.approx([0, 10, NAN], nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_correlation_is_spearmans(seed: int) -> None:
    epochs = np.random.default_rng(seed).integers(0, 6, 9)  # with ties
    curve = (np.arange(7)[:, None] >= epochs).astype(float)
    assert table(curve.tolist(), list(range(7))).depth_correlation() == pytest.approx(
        spearmanr(epochs, np.arange(9)).statistic
    )


def test_no_rank_correlation_where_all_layers_settle_together() -> None:
    assert np.isnan(table([[0.1, 0.1], [1, 1]], [0, 1]).depth_correlation())
    assert np.isnan(table([[NAN, 1.0], [NAN, 1.0]], [0, 1]).depth_correlation())


def test_jumps_span_the_snapshots_about_a_drop() -> None:
    curves = table([[0.1], [0.2], [0.7], [1.0]], [0, 25, 35, 60], [NAN, 0.1, 0.02, 0.01])
    assert curves.drops().tolist() == [[25, 35], [35, 60]]
    assert curves.jumps().ravel().tolist() == pytest.approx([0.5, 0.3])


@pytest.mark.parametrize(
    "rates",
    [
        None,  # snapshots of an older version, or of no Trainer
        [NAN, NAN, 0.1, 0.1],
        [0.1] * 4,
        [0.01, 0.1, 0.08, 0.05],  # a warm-up and a smooth fall
    ],
)
def test_without_a_drop_there_is_no_jump(rates: list[float] | None) -> None:
    curves = table([[0.1], [0.2], [0.7], [1.0]], [0, 25, 35, 60], rates)
    assert curves.drops().shape == (0, 2)
    assert curves.jumps().shape == (0, 1)


def test_different_probes_are_not_compared(tmp_path: Path) -> None:
    store = made_run(tmp_path, epochs=(0, 1))
    store.save(taken({"net.fc": random_coef(30, 0)}, epoch=2, step=20, probe="another"))
    with pytest.raises(SnapshotError, match="epoch 0 and epoch 2"):
        dynamics(store)
    with pytest.raises(SnapshotError, match="reference"):
        dynamics(store, [0, 1], reference=store.load(2))


def test_the_csv_file_holds_every_value(tmp_path: Path) -> None:
    store = made_run(tmp_path, layers=("a", 'b, "quoted"'))
    curves = dynamics(store)
    curves.to_csv(tmp_path / "curves.csv")
    with (tmp_path / "curves.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert [line["layer"] for line in lines[:2]] == ["a", 'b, "quoted"']
    assert [float(line["modularity"]) for line in lines] == curves.modularity.ravel().tolist()
    assert lines[3]["epoch"] == "1"


def test_a_reference_named_now_stands_for_the_one_of_the_run(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    store.save(taken({"l0": random_coef(12, 0), "l1": random_coef(12, 1)}, [0, 1, 2] * 4, epoch=0, step=0))
    held = store.load(0)
    values = {name: {**layer.values, "cka_to_reference": 0.25} for name, layer in held.layers.items()}
    store.save(replace(held, layers={name: layer.with_values(values[name]) for name, layer in held.layers.items()}))
    assert dynamics(store).cka_to_reference.tolist() == [[0.25, 0.25]]
    other = taken({"l1": random_coef(12, 99)}, [0, 1, 2] * 4)
    found = dynamics(store, reference=other).cka_to_reference[0]
    assert np.isnan(found[0])  # the new one has no such layer
    assert found[1] == pytest.approx(cka_by_definition(random_coef(12, 1), random_coef(12, 99)), abs=1e-6)


def test_what_was_not_measured_then_is_measured_now_and_what_is_unknown_is_passed_over(tmp_path: Path) -> None:
    store, labels = SnapshotStore(tmp_path), [0, 1, 2] * 4
    store.save(taken({"l0": random_coef(12, 0)}, labels, epoch=0, step=0))
    held = store.load(0)
    layer = held.layers["l0"].with_values({"of_a_later_version": 1.0, "gap": 0.125})
    store.save(replace(held, layers={"l0": layer}))
    curves = dynamics(store)
    assert curves.gap[0, 0] == 0.125
    assert curves.modularity[0, 0] == pytest.approx(modularity_by_definition(random_coef(12, 0), labels), abs=1e-6)


def test_steps_are_the_time_where_epochs_are_not_known() -> None:
    moments = [Moment(step, NAN) for step in (0, 50, 90)]
    curve, rate = np.array([[0.1], [0.95], [1.0]]), np.array([0.1, 0.1, 0.01])
    curves = Dynamics(["fc"], moments, rate, {"cka_to_final": curve})
    assert (curves.unit, curves.times.tolist()) == ("step", [0, 50, 90])
    assert (curves.settled().tolist(), curves.drops().tolist()) == ([50], [[50, 90]])


def test_cells_are_never_formulas(tmp_path: Path) -> None:
    values = np.array([[-1.0, 2, 3, 4, 5]])
    table = Dynamics(["=cmd|x", "+a", "@b", "-c", "plain"], [Moment(3, 1)], np.array([0.1]), {"=value": values})
    table.to_csv(tmp_path / "x.csv")
    cells = [line.split(",")[3:] for line in (tmp_path / "x.csv").read_text().splitlines()]
    assert cells[0] == ["layer", "'=value"]
    assert cells[1:] == [["'=cmd|x", "-1.0"], ["'+a", "2.0"], ["'@b", "3.0"], ["'-c", "4.0"], ["plain", "5.0"]]
