import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from werkzeug.test import Client

from lightning_ssc.analysis import dynamics, embeddings, find_blocks, inputs, neighbours
from lightning_ssc.functional import pairwise_cka
from lightning_ssc.live import folder, server
from lightning_ssc.live.folder import LogFolder
from lightning_ssc.live.serve import page
from lightning_ssc.snapshots import SUPERSEDED, ProbeCard, SnapshotStore
from lightning_ssc.snapshots.claim import CLAIM, Claim
from tests.live.pages import unpack
from tests.runs import made_run


def client(root: Path) -> Client:
    return Client(page(LogFolder(root)))


def asked(on: Client, path: str, **query: Any) -> Any:
    answer = on.get(path, query_string=query)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one probe, and a third on another."""
    root = tmp_path_factory.mktemp("logs")
    made_run(root / "one" / "version_0" / "ssc")
    made_run(root / "one" / "version_1" / "ssc", seed=5)
    made_run(root / "other" / "ssc", probe="another", epochs=(0, 1), labels=False, images=False)
    return root


@pytest.fixture
def site(root: Path) -> Client:
    return client(root)


def test_every_run_below_a_folder_is_listed(site: Client) -> None:
    runs = asked(site, "/runs")["runs"]
    assert [(run["name"], run["snapshots"]) for run in runs] == [
        ("one/version_0", 3),
        ("one/version_1", 3),
        ("other", 2),
    ]
    assert all(run["bytes"] > 1000 and run["age"] >= 0 for run in runs)


def test_a_run_is_what_its_snapshots_measured(root: Path, site: Client) -> None:
    run = asked(site, "/run", run="one/version_0")
    store = SnapshotStore(root / "one/version_0/ssc")
    table = dynamics(store)
    assert (run["layers"], run["short"]) == (table.layers, ["conv1", "conv2", "fc"])
    assert [moment["step"] for moment in run["moments"]] == [0, 10, 20]
    assert [moment["epoch"] for moment in run["moments"]] == [0, 1, 2]
    assert run["drops"] == [[1, 2]]
    assert (run["size"], run["classes"], run["labels"], run["pictures"]) == (30, ["cat", "dog", "bird"], True, True)
    assert run["troubles"] == []
    measured = {measure["name"]: unpack(measure["values"]) for measure in run["measures"]}
    assert measured == {}  # of a store as old as this one: what was not measured then is computed
    measured = {m["name"]: unpack(m["values"]) for m in asked(site, "/computed", run="one/version_0")["measures"]}
    for name in ("modularity", "nnz_per_input", "gap"):
        assert measured[name] == pytest.approx(table.curves[name], rel=1e-6)


def test_curves_to_the_latest_snapshot_come_bit_by_bit(
    root: Path, site: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_ssc.live.source._SLICE", 0.0)
    known = []
    for _ in range(10):
        found = asked(site, "/computed", run="one/version_0")
        known.append(sum(int(np.isfinite(unpack(measure["values"])).sum()) for measure in found["measures"]))
        if found["done"]:
            break
    monkeypatch.setattr("lightning_ssc.live.source._SLICE", 9.0)
    found = asked(site, "/computed", run="one/version_0")
    table = dynamics(SnapshotStore(root / "one/version_0/ssc"))
    assert (found["done"], found["latest"]) == (True, 20)
    assert known == sorted(known)
    final = [measure for measure in found["measures"] if measure["over"] == "final"]
    assert [measure["name"] for measure in final] == ["cka_to_final", "linear_cka_to_final", "debiased_cka_to_final"]
    for measure in final:
        assert unpack(measure["values"]) == pytest.approx(table.curves[measure["name"]], abs=1e-6)


def test_heatmaps_are_those_of_their_snapshots(root: Path, site: Client) -> None:
    for step in (0, 10):
        found = asked(site, "/heatmap", run="one/version_0", step=step)
        layers = SnapshotStore(root / "one/version_0/ssc").load(step=step).layers.values()
        table = pairwise_cka([layer.affinity for layer in layers]).numpy()
        assert unpack(found["pairwise_cka"]["values"]) == pytest.approx(table, abs=1e-4)
        assert found["pairwise_cka"]["blocks"]["starts"] == find_blocks(table).starts
        assert unpack(found["pairwise_linear_cka"]["values"]).diagonal() == pytest.approx(1, abs=1e-4)


def test_what_was_measured_of_classes_is_told_by_layer(root: Path, site: Client) -> None:
    found = asked(site, "/classes", run="one/version_0", step=10)["class_modularity"]
    stored = SnapshotStore(root / "one/version_0/ssc").of_classes(10)
    expected = np.stack([of_layer["class_modularity"].numpy() for of_layer in stored.values()])
    assert unpack(found["values"]) == pytest.approx(expected, abs=1e-4)


def test_two_runs_are_compared_layer_by_layer(root: Path, site: Client) -> None:
    one, other = (SnapshotStore(root / f"one/version_{v}/ssc").load(step=20).layers.values() for v in (0, 1))
    query = {"run": "one/version_0", "step": 20, "other_run": "one/version_1", "other_step": 20}
    found = asked(site, "/between", **query)
    table = pairwise_cka([layer.affinity for layer in one], [layer.affinity for layer in other]).numpy()
    assert unpack(found["tables"]["pairwise_cka"]) == pytest.approx(table, abs=1e-4)
    assert found["rows"] == found["columns"] == ["conv1", "conv2", "fc"]
    answer = site.get("/between", query_string={**query, "other_run": "other", "other_step": 10})
    assert answer.status_code == 422
    assert "different probes" in json.loads(answer.text)["error"]


def test_inputs_are_those_of_the_layer_and_moment(root: Path, site: Client) -> None:
    snapshot, at = SnapshotStore(root / "one/version_0/ssc").load(step=10), {"run": "one/version_0", "step": 10}
    table = inputs(snapshot, "net.conv2")
    found = asked(site, "/samples", **at)
    assert unpack(found["labels"]).tolist() == table.labels.tolist()
    assert unpack(found["predictions"]).tolist() == table.predictions.tolist()  # type: ignore[union-attr]
    assert unpack(found["confidence"]) == pytest.approx(table.confidence, abs=1e-4)
    assert found["indices"] is None
    for normalized in (0, 1):
        points = asked(site, "/embedding", **at, layer="net.conv2", normalized=normalized)["points"]
        exact = embeddings(snapshot, ["net.conv2"], normalized=bool(normalized))["net.conv2"]
        assert unpack(points) == pytest.approx(exact, abs=0.01)
    around = asked(site, "/neighbours", **at, layer="net.conv2")
    nearest = neighbours(snapshot.layers["net.conv2"])[0]
    assert unpack(around["nearest"]).tolist() == nearest.tolist()
    assert unpack(around["shares"]) == pytest.approx(table.shares, abs=1e-4)
    path = asked(site, "/input", **at, index=7)
    assert path["layers"] == list(snapshot.layers)
    assert unpack(path["nearest"])[1].tolist() == nearest[7].tolist()
    history = asked(site, "/history", run="one/version_0", layer="net.conv2", index=7)
    assert history["steps"] == [0, 10, 20]
    assert unpack(history["shares"])[1] == pytest.approx(table.shares[7], abs=1e-4)
    pictures = asked(site, "/pictures", run="one/version_0")
    assert (pictures["columns"], pictures["rows"], pictures["width"]) == (6, 5, 8)


def test_a_probe_without_labels_and_pictures(site: Client) -> None:
    at = {"run": "other", "step": 10}
    assert asked(site, "/run", run="other")["labels"] is False
    assert set(asked(site, "/samples", **at).values()) == {None}
    assert asked(site, "/neighbours", **at, layer="net.fc")["shares"] is None
    assert asked(site, "/input", **at, index=0)["shares"] is None
    assert asked(site, "/pictures", run="other") == {}


def test_what_is_left_out_is_told_with_the_reason(tmp_path: Path) -> None:
    store = made_run(tmp_path / "logs" / "a", labels=False, images=False, epochs=(0, 1))
    store.save_card(ProbeCard("made", None, (), tuple(f"row {i}" for i in range(30))))
    first = store.load(0)
    layers = {name: layer.which_took(float(i)) for i, (name, layer) in enumerate(first.layers.items())}
    values = {"nnz_per_input": 3.0, "gap": 1e-6}
    layers = {name: layer.with_values(values) for name, layer in layers.items()}
    store.save(replace(first, layers=layers, notes=("Two layers are not watched.",)))
    site = client(tmp_path / "logs")
    run = asked(site, "/run", run="a")
    assert run["notes"] == [{"text": "Two layers are not watched.", "moment": "epoch 0"}]
    seconds = unpack(run["layer_seconds"])
    assert seconds[0].tolist() == [0.0, 1.0, 2.0]
    assert np.isnan(seconds[1]).all()
    why = {of["title"]: of["why"] for of in run["unmeasured"]}
    assert why["Modularity of the affinity graphs"] == "the probe has no class labels"
    assert "Neighbours an input" not in why
    assert run["pictures"]
    assert asked(site, "/pictures", run="a")["texts"][7] == "row 7"
    assert {measure["group"] for measure in run["measures"]} == {"health"}


def test_nothing_but_what_is_named_is_served(site: Client) -> None:
    for path in (
        "/../pyproject.toml",
        "/style.css/../../serve.py",
        "//etc/passwd",
        "/page/main.js",
        "/%2e%2e/x",
        "/server.py",
    ):
        assert site.get(path).status_code == 404, path
    for run in (
        "..",
        "/etc",
        "one/../one/version_0",
        "one/version_0/ssc",
        "one",
        "",
        "one\\version_0",
        "one/version_0\0",
    ):
        answer = site.get("/run", query_string={"run": run})
        assert answer.status_code == 404, run
        assert "error" in json.loads(answer.text)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_answered(site: Client, method: str) -> None:
    assert {site.open(path, method=method).status_code for path in ("/runs", "/main.js", "/plotly.js")} == {405}
    assert site.open("/", method=method).status_code in (404, 405)


def test_every_answer_says_what_it_is(site: Client) -> None:
    kinds = {"/": "text/html", "/main.js": "text/javascript", "/plotly.js": "text/javascript", "/style.css": "text/css"}
    for path, kind in {**kinds, "/runs": "application/json", "/run": "application/json", "/none": "text/plain"}.items():
        answer = site.get(path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff", path
        assert answer.mimetype == kind
    policy = site.get("/").headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "default-src 'none'" in policy
    assert "<script>" not in site.get("/").text


def test_other_sites_that_lead_here_get_nothing(site: Client) -> None:
    for host, status in {
        "evil.example": 404,
        "evil.example:7000": 404,
        "localhost:80": 200,
        "127.0.0.1": 200,
        "[::1]:80": 200,
    }.items():
        assert site.get("/runs", headers={"Host": host}).status_code == status, host


def test_bad_questions_are_told_what_is_wrong(site: Client) -> None:
    for path, query, status, words in (
        ("/heatmap", {"run": "one/version_0", "step": "x"}, 400, "step has to be a number"),
        ("/heatmap", {"run": "one/version_0", "step": "-1"}, 400, "step has to be a number"),
        ("/heatmap", {"run": "one/version_0"}, 400, "step is missing"),
        ("/heatmap", {"run": "one/version_0", "step": "15"}, 404, "no snapshot of step 15"),
        ("/embedding", {"run": "one/version_0", "step": "10", "layer": "x"}, 404, "holds no layer 'x'"),
        ("/input", {"run": "one/version_0", "step": "10", "index": "30"}, 404, "no input 30"),
    ):
        answer = site.get(path, query_string=query)
        assert answer.status_code == status
        assert words in json.loads(answer.text)["error"]


def test_links_out_of_the_log_folder_are_not_read(tmp_path: Path) -> None:
    outside, logs = tmp_path / "outside", tmp_path / "logs"
    made_run(outside / "secret")
    made_run(logs / "mine" / "ssc")
    made_run(logs / "mixed" / "ssc")
    (logs / "linked").symlink_to(outside)
    (logs / "mixed" / "ssc" / "step_000000030.npz").symlink_to(outside / "secret" / "step_000000020.npz")
    site = client(logs)
    assert [run["name"] for run in asked(site, "/runs")["runs"]] == ["mine", "mixed"]
    mixed = asked(site, "/run", run="mixed")
    assert mixed["moments"] == []
    assert "step_000000030.npz: a link out of the log folder" in mixed["troubles"][0]
    assert site.get("/samples", query_string={"run": "mixed", "step": 0}).status_code == 404


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    store = made_run(tmp_path / "ssc", epochs=(0, 1, 2, 3))
    whole = store.path(10).read_bytes()
    store.path(10).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "ssc" / "step_000000040.77.partial").write_bytes(whole[:99])
    moved = store.load(step=0)
    SnapshotStore(tmp_path / "ssc").save(replace(moved, probe="another"))
    newer = whole.replace(b'"format": 2', b'"format": 9')
    (tmp_path / "ssc" / "step_000000050.npz").write_bytes(newer)
    site = client(tmp_path)
    run = asked(site, "/run", run=tmp_path.name)
    assert [moment["step"] for moment in run["moments"]] == [20, 30]
    assert len(run["troubles"]) == 3
    for words in ("step_000000010.npz", "step_000000050.npz", "epoch 0 is of another probe"):
        assert any(words in text for text in run["troubles"]), words
    assert asked(site, "/computed", run=tmp_path.name)["done"]
    answer = site.get("/heatmap", query_string={"run": tmp_path.name, "step": 10})
    assert answer.status_code == 422
    assert "step_000000010.npz" in json.loads(answer.text)["error"]


def test_new_snapshots_and_runs_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_PAUSE", 0.0)
    monkeypatch.setattr(folder, "_SHARE", 0)
    site = client(tmp_path)
    assert asked(site, "/runs") == {"runs": []}
    store = made_run(tmp_path / "a" / "ssc", epochs=(0, 1))
    (before,) = asked(site, "/runs")["runs"]
    assert len(asked(site, "/run", run="a")["moments"]) == 2
    again = replace(store.load(step=10), moment=replace(store.load(step=10).moment, step=20, epoch=2))
    store.save(again)
    (after,) = asked(site, "/runs")["runs"]
    assert (before["snapshots"], after["snapshots"]) == (2, 3)
    assert before["signature"] != after["signature"]
    assert len(asked(site, "/run", run="a")["moments"]) == 3
    made_run(tmp_path / "a" / "ssc" / SUPERSEDED, epochs=(0,))
    made_run(tmp_path / "b" / "convs", epochs=(0,))
    assert [run["name"] for run in asked(site, "/runs")["runs"]] == ["a", "b/convs"]


def test_a_run_that_crashed_is_seen_to_be(tmp_path: Path) -> None:
    made_run(tmp_path / "a" / "ssc", epochs=(0,))

    def state() -> str:
        (run,) = asked(client(tmp_path), "/runs")["runs"]
        return str(run["state"])

    assert state() == "over"
    claim = Claim(tmp_path / "a" / "ssc")
    assert state() == "running"
    lock = tmp_path / "a" / "ssc" / CLAIM
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "start": 1.0}))  # another process had this number
    assert state() == "crashed"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "host": "far"}))
    assert state() == "elsewhere"
    claim.release()


def test_what_is_superseded_is_called_so_everywhere() -> None:
    assert folder._SUPERSEDED == SUPERSEDED


def test_a_page_without_plotly_says_what_to_install(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    server.plotly.cache_clear()
    monkeypatch.setattr(server, "files", lambda package: (_ for _ in ()).throw(ModuleNotFoundError(package)))
    answer = site.get("/plotly.js")
    server.plotly.cache_clear()
    assert answer.status_code == 500
    assert "pip install 'lightning-ssc[report]'" in answer.text
