import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_ssc import snapshot
from lightning_ssc.analysis import dynamics, embeddings, find_store, inputs, last_hidden_layer, neighbours, summarise
from lightning_ssc.snapshots import SnapshotError, SnapshotStore
from tests.runs import layer_graph, made_run, random_coef, taken

# Input 3 is isolated. Inputs 0, 1 are of class 0, inputs 2, 3, 4 of class 1.
COEF = np.zeros((5, 5))
COEF[0, 1], COEF[0, 2], COEF[4, 2], COEF[1, 4] = 0.6, -0.2, 0.5, 0.1
LABELS = [0, 0, 1, 1, 1]


def test_shares_and_labels_by_hand() -> None:
    table = inputs(taken({"a": COEF}, LABELS, [0, 1, 1, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.95]), "a")
    assert table.shares[:3].ravel().tolist() == pytest.approx([0.75, 0.25, 0.6 / 0.7, 0.1 / 0.7, 0.2 / 0.7, 0.5 / 0.7])
    assert table.ssc_labels.tolist() == [0, 0, 1, -1, 1]
    assert table.isolated.tolist() == [False, False, False, True, False]
    assert table.ssc_accuracy == pytest.approx(4 / 5)  # the isolated input counts as wrong
    assert table.network_accuracy == pytest.approx(3 / 5)
    assert table.agreement == pytest.approx(2 / 5)
    assert table.confidently_wrong().tolist() == [4, 1]
    assert table.confidently_wrong(1).tolist() == [4]


def test_without_predictions_there_is_no_agreement() -> None:
    table = inputs(taken({"a": COEF}, LABELS))
    assert np.isnan(table.agreement)
    assert np.isnan(table.network_accuracy)
    assert table.confidently_wrong().tolist() == []


def test_classes_that_only_the_network_names_are_counted() -> None:
    assert inputs(taken({"a": COEF}, LABELS, [3, 0, 0, 0, 0], [0.5] * 5)).shares.shape == (5, 4)


def test_errors_name_the_culprit() -> None:
    with pytest.raises(SnapshotError, match="no class labels"):
        inputs(taken({"a": COEF}))
    with pytest.raises(SnapshotError, match="no layer 'b', only a"):
        inputs(taken({"a": COEF}, LABELS), "b")
    with pytest.raises(SnapshotError, match="no layers"):
        last_hidden_layer(taken({}))


def test_neighbours_are_the_largest_entries_of_each_row() -> None:
    coef = random_coef(25, 0)
    affinity = np.abs(coef) + np.abs(coef).T
    nearest, weight = neighbours(layer_graph(coef), k=6)
    for i, row in enumerate(affinity):
        order = [j for j in np.argsort(-row, kind="stable") if row[j] > 0][:6]
        assert nearest[i, : len(order)].tolist() == order
        assert weight[i, : len(order)].tolist() == pytest.approx(row[order].tolist(), rel=1e-6)


def test_missing_neighbours_and_ties() -> None:
    nearest, weight = neighbours(layer_graph(COEF), k=3)
    assert nearest[3].tolist() == [-1, -1, -1]
    assert weight[3].tolist() == [0, 0, 0]
    tied = np.zeros((4, 4))
    tied[0, 1:] = 0.5
    assert neighbours(layer_graph(tied), k=2)[0][0].tolist() == [1, 2]
    with pytest.raises(ValueError, match="at least 1"):
        neighbours(layer_graph(COEF), k=0)


def test_the_embedding_spans_the_leading_eigenvectors() -> None:
    coef = random_coef(20, 1)
    affinity = np.abs(coef) + np.abs(coef).T
    points = embeddings(taken({"a": coef}))["a"]
    values, vectors = np.linalg.eigh(affinity)
    for k in range(2):
        assert abs(points[:, k] @ vectors[:, -1 - k]) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(affinity @ points[:, 0] - values[-1] * points[:, 0]) < 1e-4


def test_a_graph_with_too_few_edges_has_no_embedding() -> None:
    one_edge = np.zeros((5, 5))
    one_edge[0, 1] = 1
    snapshot = taken({"dead": np.zeros((5, 5)), "edge": one_edge})
    assert np.isnan(embeddings(snapshot)["dead"]).all()
    assert np.isnan(embeddings(snapshot, normalized=True)["edge"]).all()


def test_the_layer_before_the_classifier_is_found() -> None:
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))
    x, y = torch.rand(24, 6), torch.arange(24) % 3
    assert last_hidden_layer(snapshot(net, x, y, layers="Linear")) == "2"
    assert last_hidden_layer(snapshot(net, x, y, layers=["0", "2"])) == "2"  # no classifier among them
    assert last_hidden_layer(snapshot(net, x, y, layers=["4"])) == "4"


def test_csv_of_inputs(tmp_path: Path) -> None:
    table = inputs(taken({"a": COEF}, LABELS, [0, 1, 1, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.95]))
    table.to_csv(tmp_path / "inputs.csv", ["cat"])
    with (tmp_path / "inputs.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["ssc_label"] for line in lines] == ["0", "0", "1", "-1", "1"]
    assert float(lines[0]["share 0: cat"]) == pytest.approx(0.75)
    assert float(lines[0]["share 1: 1"]) == pytest.approx(0.25)
    assert lines[3]["isolated"] == "True"


def test_a_run_is_found_from_the_folders_around_it(tmp_path: Path) -> None:
    made_run(tmp_path / "runs" / "version_0" / "ssc", epochs=(0,))
    for folder in ("runs", "runs/version_0", "runs/version_0/ssc"):
        assert find_store(tmp_path / folder).root == tmp_path / "runs" / "version_0" / "ssc"
    made_run(tmp_path / "runs" / "version_0" / "ssc").set_aside([10])  # and what a resumed run has replaced
    made_run(tmp_path / "runs" / "version_0" / "ssc" / "copy")
    assert find_store(tmp_path / "runs").epochs == [0, 2]
    made_run(tmp_path / "runs" / "version_1" / "ssc", epochs=(0,))
    with pytest.raises(SnapshotError, match=r"several runs.*version_0/ssc, .*version_1/ssc"):
        find_store(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SnapshotError, match="no snapshots"):
        find_store(tmp_path / "empty")
    with pytest.raises(SnapshotError, match="not a folder"):
        find_store(tmp_path / "nowhere")


def test_a_summary_agrees_with_the_tables_it_is_made_of(tmp_path: Path) -> None:
    store = made_run(tmp_path)
    summary = summarise(store)
    last = store.load(2)
    assert summary.layer == "net.fc"
    assert summary.nearest.tolist() == neighbours(last.layers["net.fc"])[0].tolist()
    assert summary.layers.agreement.tolist() == [inputs(last, name).agreement for name in last.layers]
    assert summary.heatmaps[-1] == pytest.approx(summary.similarity.ssc)
    assert [len(summary.blocks), summary.heatmaps.shape] == [3, (3, 3, 3)]
    written = summary.to_csv(tmp_path / "tables")
    assert {path.name for path in written} == {path.name for path in (tmp_path / "tables").iterdir()}
    assert len(written) == 12
    lines = {path.stem: list(csv.DictReader(path.read_text().splitlines())) for path in written}
    assert [float(line["gain"]) for line in lines["jumps"]] == summary.dynamics.jumps().ravel().tolist()
    assert [(line["before"], line["after"]) for line in lines["jumps"]] == [("1", "2")] * 3
    assert float(lines["run"][0]["depth_correlation"]) == pytest.approx(
        summary.dynamics.depth_correlation(), nan_ok=True
    )
    table = inputs(last)
    assert [dict(line) for line in lines["table1"]] == [
        {
            "layer": "net.fc",
            "epoch": "2",
            "ssc_label_accuracy": str(table.ssc_accuracy),
            "network_accuracy": str(table.network_accuracy),
            "agreement": str(table.agreement),
        }
    ]


def test_a_snapshot_without_any_of_the_layers_has_an_empty_heatmap(tmp_path: Path) -> None:
    store = made_run(tmp_path, epochs=(0,), n=12, layers=("a", "b"))
    store.save(taken({"c": random_coef(12, 0), "d": random_coef(12, 3)}, [0, 1, 2] * 4, epoch=1))
    assert np.isnan(summarise(store).heatmaps[0]).all()


def test_a_summary_with_a_reference_has_its_curves(tmp_path: Path) -> None:
    store = made_run(tmp_path / "a")
    other = made_run(tmp_path / "b", seed=500).load(2)
    expected = dynamics(store, reference=other).cka_to_reference
    assert summarise(store, reference=other).dynamics.cka_to_reference.tolist() == expected.tolist()
    assert not np.isnan(expected).any()


def test_pictures_of_another_probe_are_not_shown(tmp_path: Path) -> None:
    store = made_run(tmp_path / "one")
    made_run(tmp_path / "other", probe="another")
    (tmp_path / "other" / "probe.npz").replace(tmp_path / "one" / "probe.npz")
    summary = summarise(SnapshotStore(store.root))
    assert summary.images is None
    assert summary.class_names == ()
