import base64
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from lightning_ssc.analysis import dynamics, embeddings, find_store, inputs, summarise
from lightning_ssc.functional import pairwise_cka
from lightning_ssc.live import report as reports
from lightning_ssc.live import server
from lightning_ssc.live.bundle import bundle
from lightning_ssc.live.names import run_name, run_names
from lightning_ssc.live.packing import pack, pack_coarsely, sprite
from lightning_ssc.live.report import page, report
from lightning_ssc.measures import CURVES
from lightning_ssc.plots import dynamics_figures
from lightning_ssc.snapshots import Moment, ProbeCard, SnapshotError, SnapshotStore
from tests.live.pages import contents, unpack
from tests.runs import HOSTILE, made_run, random_coef, taken


def test_packed_numbers_come_back() -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 2))
    values[0, 0, 0] = np.nan
    packed = pack_coarsely(values)
    assert np.nanmax(abs(unpack(packed) - values)) <= np.nanmax(abs(values)) / 65532 + 1e-12
    assert np.isnan(unpack(packed)[0, 0, 0])
    assert np.isnan(unpack(pack_coarsely([np.nan, np.inf]))).all()
    assert unpack(pack_coarsely([0.0, 0.0])).tolist() == [0, 0]


def test_a_sprite_holds_every_picture_at_its_place() -> None:
    images = np.zeros((7, 16, 8, 3), dtype=np.uint8)
    images[:] = np.linspace(0, 250, 7, dtype=np.uint8)[:, None, None, None]
    sheet = sprite(images)
    pixels = imread(io.BytesIO(base64.b64decode(sheet["uri"].partition(",")[2])), format="jpg")
    for i in range(7):
        row, column = divmod(i, sheet["columns"])
        tile = pixels[16 * row : 16 * row + 16, 8 * column : 8 * column + 8].astype(int)
        assert abs(tile - int(images[i, 0, 0, 0])).max() <= 4  # JPEG


def test_a_report_carries_what_the_routes_would_answer(tmp_path: Path) -> None:
    store = made_run(tmp_path / "net" / "version_3" / "ssc")
    pieces = contents(page(store))
    name = "net/version_3"
    assert [run["name"] for run in pieces["runs",]["runs"]] == [name]
    curves = {measure["name"]: unpack(measure["values"]) for measure in pieces["computed", name]["measures"]}
    table = dynamics(store)
    for key in ("modularity", "cka_to_final", "linear_cka_to_final"):
        assert curves[key] == pytest.approx(table.curves[key], abs=1e-6)
    for step in (0, 10, 20):
        snapshot = store.load(step=step)
        graphs = [layer.affinity for layer in snapshot.layers.values()]
        heatmap = unpack(pieces["heatmap", name, step]["pairwise_cka"]["values"])
        assert heatmap == pytest.approx(pairwise_cka(graphs).numpy(), abs=1e-4)
        for layer, points in embeddings(snapshot).items():
            assert unpack(pieces["embedding", name, step, layer, 0]["points"]) == pytest.approx(points, abs=0.01)
        shares = unpack(pieces["neighbours", name, step, "net.fc"]["shares"])
        assert shares == pytest.approx(inputs(snapshot, "net.fc").shares, abs=1e-4)
    assert ("neighbours", name, 20, "net.conv1") in pieces
    assert unpack(pieces["classes", name, 20]["class_modularity"]["values"]).shape == (3, 3)
    assert ("pictures", name) in pieces


def test_a_report_of_a_large_run_is_small_enough(tmp_path: Path) -> None:
    """Counted from one snapshot of two layers: each further one takes as much as this."""
    layers, n, snapshots, moments = 40, 1000, 100, 5
    few = 2
    classes = (np.arange(n) % 10).tolist()
    one = taken({"fc": random_coef(n, 0, density=0.02)}, classes, classes, [0.5] * n)
    pairs = dict.fromkeys(("pairwise_cka", "pairwise_linear_cka"), torch.eye(few))
    store = SnapshotStore(tmp_path / "ssc")
    store.save(replace(one, layers={f"layer{i}": one.layers["fc"] for i in range(few)}, pairs=pairs))
    pictures = np.random.default_rng(0).integers(0, 255, (n, 64, 64, 3), dtype=np.uint8)  # noise, the worst for JPEG
    store.save_card(ProbeCard("made", pictures))
    size: dict[str, int] = {}
    for key, piece in reports.contents(store, "run").items():
        kind = json.loads(key)[0]
        size[kind] = size.get(kind, 0) + len(json.dumps(piece))
    tables = len(pairs) * len(json.dumps(pack_coarsely(np.eye(layers))))
    curves = len(CURVES) * len(json.dumps(pack(np.ones((snapshots, layers)))))
    times = {"heatmap": snapshots, "embedding": (moments + 1) * layers / (2 * few), "samples": moments}
    times |= {"neighbours": (layers + moments) / few}
    whole = sum(times.get(kind, 1) * length for kind, length in size.items()) + snapshots * tables + curves
    assert 5e6 < whole + len(server.plotly()) < 20e6


def test_the_page_names_no_address_to_load_from(tmp_path: Path) -> None:
    html = page(made_run(tmp_path))
    own = re.sub(
        r"<script.*?>.*?</script>", "", html, flags=re.DOTALL
    )  # plotly.js names addresses that it does not ask
    addresses = re.findall(r"(?:src|href|action)=(\S+)", own)
    assert addresses
    assert all(address.startswith(('"#', '"data:')) for address in addresses)
    assert "default-src 'none'" in html
    assert "://" not in own


def test_names_with_markup_stay_names(tmp_path: Path) -> None:
    store = made_run(tmp_path / HOSTILE.replace("/", "_"), layers=(f"a.{HOSTILE}", "a.b"), class_names=(HOSTILE, "dog"))
    html = page(store)
    assert html.count("<img") == 0
    assert html.count("</script>") == 3  # data, plotly, page
    (run,) = (piece for key, piece in contents(html).items() if key[0] == "run")
    assert run["layers"][0] == f"a.{HOSTILE}"
    assert run["classes"][0] == HOSTILE


def test_modules_become_one_script() -> None:
    script = bundle("main.js")
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    wanted = re.findall(r'modules\["(\w+\.js)"\] = ', script)
    assert set(wanted) == set(server.MODULES) - {"start.js"}
    for name in wanted:  # nothing is used before it is there
        for needed in re.findall(
            r'= modules\["(\w+\.js)"\];', script.split(f'modules["{name}"] = ')[1].split("\n})();")[0]
        ):
            assert wanted.index(needed) < wanted.index(name)


@pytest.mark.parametrize("lacking", ["images", "labels", "card"])
def test_what_a_run_lacks_is_left_out(tmp_path: Path, lacking: str) -> None:
    store = made_run(tmp_path / "v" / "ssc", images=lacking != "images", labels=lacking != "labels")
    if lacking == "card":
        (store.root / "probe.npz").unlink()
    pieces = contents(page(store))
    (run,) = (piece for key, piece in pieces.items() if key[0] == "run")
    assert run["pictures"] == any(key[0] == "pictures" for key in pieces) == (lacking == "labels")
    assert run["labels"] == (lacking != "labels")
    if lacking == "card":
        assert run["classes"] == ["class 0", "class 1", "class 2"]


def test_a_report_is_a_page_and_figures(tmp_path: Path) -> None:
    made_run(tmp_path / "version_0" / "ssc", layers=("../../up", "a/b"))
    path = report(tmp_path / "version_0", figures=True)
    assert path == tmp_path / "version_0" / "ssc" / "report" / "index.html"
    names = {p.name for p in (path.parent / "figures").iterdir()}
    assert {"modularity.png", "modularity.svg", "heatmap_epoch_002.png", "embeddings.svg"} <= names
    assert {"confidently_wrong_1.png", "heatmap_linear.png"} <= names
    everything = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert all(p.is_relative_to("version_0/ssc") for p in everything)  # whatever the layers are called
    assert find_store(tmp_path).epochs == [0, 1, 2]  # the report is no run


def test_a_run_of_one_snapshot_and_one_layer(tmp_path: Path) -> None:
    made_run(tmp_path / "ssc", epochs=(0,), layers=("fc",))
    assert report(tmp_path, tmp_path / "out").is_file()


def test_a_damaged_snapshot_is_named_and_the_rest_is_there(tmp_path: Path, caplog: Any) -> None:
    store = made_run(tmp_path / "ssc")
    whole = store.path(10).read_bytes()
    store.path(10).write_bytes(whole[: len(whole) // 2])
    path = report(tmp_path)
    assert "step_000000010.npz" in caplog.text
    (run,) = (piece for key, piece in contents(path.read_text()).items() if key[0] == "run")
    assert [moment["step"] for moment in run["moments"]] == [0, 20]
    assert "step_000000010.npz" in run["troubles"][0]
    for step in (0, 20):
        store.path(step).write_bytes(b"")
    with pytest.raises(SnapshotError, match=r"step_000000000\.npz.*step_000000020\.npz"):
        report(tmp_path)


def test_a_layer_and_a_reference_are_asked_for(tmp_path: Path) -> None:
    store, other = made_run(tmp_path / "a" / "ssc"), made_run(tmp_path / "b" / "ssc", seed=9)
    pieces = contents(page(store, layer="net.conv1", reference=other.load(2)))
    run = pieces["run", run_name(store.root)]
    assert run["hidden"] == "net.conv1"
    curves = {measure["name"]: unpack(measure["values"]) for measure in run["measures"]}
    exact = dynamics(store, reference=other.load(2)).curves
    for key in ("cka_to_reference", "linear_cka_to_reference"):
        assert curves[key] == pytest.approx(exact[key], abs=1e-6)
    with pytest.raises(SnapshotError, match=r"no layer 'net.x', only net.conv1"):
        page(store, layer="net.x")
    with pytest.raises(SnapshotError, match="different probes"):
        page(store, reference=made_run(tmp_path / "c" / "ssc", probe="another").load(2))


def test_a_run_whose_epochs_have_no_end_is_shown_by_steps(tmp_path: Path) -> None:
    stream = SnapshotStore(tmp_path / "ssc")
    for snapshot in made_run(tmp_path / "made"):
        stream.save(replace(snapshot, moment=Moment(snapshot.step, float("nan"))))
    (run,) = (piece for key, piece in contents(page(stream)).items() if key[0] == "run")
    assert ([moment["epoch"] for moment in run["moments"]], run["unit"]) == ([None] * 3, "step")
    assert set(dynamics_figures(summarise(stream).dynamics)) > {"modularity", "cka_to_final"}


def test_a_report_takes_no_more_threads_than_its_work_is_worth(tmp_path: Path) -> None:
    made_run(tmp_path, n=300, epochs=range(4))
    code = (
        "import sys, time; from lightning_ssc.cli import main; from lightning_ssc.live import report; "
        "wall, cpu = time.perf_counter(), time.process_time(); main(sys.argv[1:]); "
        "print((time.process_time() - cpu) / (time.perf_counter() - wall))"
    )
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}
    words = [sys.executable, "-c", code, "report", str(tmp_path)]
    done = subprocess.run(words, env=os.environ | threads, check=True, capture_output=True, text=True)
    assert float(done.stdout.split()[-1]) <= 1.3  # processors kept busy


def test_run_names_tell_runs_apart(tmp_path: Path) -> None:
    one, other = Path("/x/net/v/ssc"), Path("/y/net/v/ssc")
    assert run_names((one, other)) == ("x/net/v", "y/net/v")
    assert run_names((one, one), (1, 2)) == ("net/v, epoch 1", "net/v, epoch 2")
    assert run_names((one, Path("/z/w/ssc"))) == ("net/v", "z/w")
