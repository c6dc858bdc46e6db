import base64
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from lightning_ssc.analysis import Dynamics, Similarity, find_blocks, find_store, inputs, neighbours, summarise
from lightning_ssc.live.report import pack, page, report, run_names, sprite
from lightning_ssc.measures import CURVES, measure
from lightning_ssc.snapshots import Moment, SnapshotError
from tests.browser import (
    hover_over_curve,
    hover_over_embedding,
    lines,
    needs_chromium,
    open_page,
    requested,
    step_back,
)
from tests.runs import HOSTILE, made_run, random_coef, taken

pytest.importorskip("plotly")


def contents(html: str) -> dict[str, Any]:
    """The JSON that a page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def unpack(packed: dict[str, Any]) -> np.ndarray:
    q = np.frombuffer(base64.b64decode(packed["data"]), "<i2").astype(float)
    return np.where(q == -32768, np.nan, q * packed["scale"]).reshape(packed["shape"])


def test_packed_numbers_come_back() -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 2))
    values[0, 0, 0] = np.nan
    packed = pack(values)
    assert np.nanmax(abs(unpack(packed) - values)) <= np.nanmax(abs(values)) / 65532 + 1e-12
    assert np.isnan(unpack(packed)[0, 0, 0])
    assert np.isnan(unpack(pack([np.nan, np.inf]))).all()
    assert unpack(pack([0.0, 0.0])).tolist() == [0, 0]


def test_a_sprite_holds_every_picture_at_its_place() -> None:
    images = np.zeros((7, 16, 8, 3), dtype=np.uint8)
    images[:] = np.linspace(0, 250, 7, dtype=np.uint8)[:, None, None, None]
    sheet = sprite(images)
    pixels = imread(io.BytesIO(base64.b64decode(sheet["uri"].partition(",")[2])), format="jpg")
    for i in range(7):
        row, column = divmod(i, sheet["columns"])
        tile = pixels[16 * row : 16 * row + 16, 8 * column : 8 * column + 8].astype(int)
        assert abs(tile - int(images[i, 0, 0, 0])).max() <= 4  # JPEG


def test_the_page_carries_the_numbers_of_the_run(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "version_3" / "ssc"))
    data = contents(page(summary))
    assert data["layers"] == ["conv1", "conv2", "fc"]
    assert data["epochs"] == [0, 1, 2]
    assert data["drops"] == [[1, 2]]
    assert "between epochs 1 and 2 SSC-CKA to final rose by" in data["bottom_up"]
    assert data["families"][0]["title"] == "Modularity of the affinity graphs"
    assert unpack(data["families"][0]["values"]) == pytest.approx(summary.dynamics.modularity, abs=1e-4)
    assert unpack(data["heatmaps"]) == pytest.approx(summary.heatmaps, abs=1e-4)
    assert unpack(data["embeddings"][0])[2] == pytest.approx(summary.embedding["net.fc"], abs=1e-4)
    assert data["nearest"] == summary.nearest.tolist()
    assert summary.inputs is not None
    assert unpack(data["shares"]) == pytest.approx(summary.inputs.shares, abs=1e-4, nan_ok=True)
    assert data["wrong"] == [29, 28]
    assert data["label_table"]["rows"][1][1] == "93.3%"
    about = dict(data["about"]["rows"])
    assert about["setting tau"] == "10.0"
    assert about["version of torch"]


def test_the_page_of_a_large_run_is_small_enough(tmp_path: Path) -> None:
    layers, epochs, n = [f"layer{i}" for i in range(40)], 100, 1000
    small = summarise(made_run(tmp_path, epochs=(0,)))
    graph = taken({"fc": random_coef(n, 0, density=0.02)}, labels=(np.arange(n) % 10).tolist())
    curve, rng = np.ones((epochs, 40)), np.random.default_rng(0)
    moments = [Moment(epoch, epoch) for epoch in range(epochs)]
    points = {name: rng.normal(size=(n, 2)) for name in layers}
    columns = {f.name: np.repeat(getattr(small.layers, f.name), 40)[:40] for f in fields(small.layers)}
    summary = replace(
        small,
        size=n,
        layer=layers[-1],
        dynamics=Dynamics(layers, moments, curve[:, 0], {record.name: curve for record in CURVES}),
        layers=replace(small.layers, **columns),
        heatmaps=np.ones((epochs, 40, 40)),
        blocks=[find_blocks(np.ones((40, 40)))] * epochs,
        similarity=Similarity(layers, layers, np.ones((40, 40)), np.ones((40, 40))),
        inputs=inputs(graph),
        nearest=neighbours(graph.layers["fc"])[0],
        embedding=points,
        embedding_normalized=points,
        images=rng.integers(0, 255, (n, 64, 64, 3), dtype=np.uint8),  # noise, which JPEG can do least with
    )
    assert 5e6 < len(page(summary).encode()) < 20e6


def test_the_page_names_no_address_to_load_from(tmp_path: Path) -> None:
    html = page(summarise(made_run(tmp_path)))
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)  # plotly.js names addresses that it does not ask
    addresses = re.findall(r"(?:src|href|action)=(\S+)", own)
    assert addresses
    assert all(address.startswith(('"#', '"data:')) for address in addresses)
    assert "default-src 'none'" in html
    assert "://" not in own


def test_names_with_markup_stay_names(tmp_path: Path) -> None:
    store = made_run(tmp_path / HOSTILE.replace("/", "_"), layers=(f"a.{HOSTILE}", "a.b"), class_names=(HOSTILE, "dog"))
    html = page(summarise(store))
    assert html.count("<img") == 0
    assert html.count("</script>") == 4 - 1  # data, plotly, page
    assert contents(html)["layers"][0].endswith(HOSTILE)
    assert contents(html)["class_names"][0] == HOSTILE


@pytest.mark.parametrize("lacking", ["images", "labels", "linear and class names"])
def test_what_a_run_lacks_is_left_out(tmp_path: Path, lacking: str) -> None:
    store = made_run(tmp_path / "ssc", images=lacking != "images", labels=lacking != "labels")
    if lacking == "linear and class names":
        (store.root / "probe.npz").unlink()
    data = contents(page(summarise(store)))
    assert (data["sprite"] is None) == (lacking != "labels")
    assert (data["labels"] is None) == (lacking == "labels")
    if lacking == "labels":
        assert (data["label_table"], data["wrong"]) == (None, [])
        assert data["families"][0]["title"] == "SSC-CKA to the final state"
    if lacking == "linear and class names":
        assert data["class_names"] == ["class 0", "class 1", "class 2"]


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


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    store = made_run(tmp_path / "ssc")
    whole = store.path(10).read_bytes()
    store.path(10).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SnapshotError, match=r"step_000000010\.npz"):
        report(tmp_path)


def test_without_plotly_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"lightning-ssc\[report\]"):
        page(summarise(made_run(tmp_path)))


def test_a_report_takes_no_more_threads_than_its_work_is_worth(tmp_path: Path) -> None:
    made_run(tmp_path, n=500, epochs=range(8))
    code = (
        "import sys, time; from lightning_ssc.cli import main; from lightning_ssc.live import report; "
        "wall, cpu = time.perf_counter(), time.process_time(); main(sys.argv[1:]); "
        "print((time.process_time() - cpu) / (time.perf_counter() - wall))"
    )
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}
    words = [sys.executable, "-c", code, "report", str(tmp_path)]
    done = subprocess.run(words, env=os.environ | threads, check=True, capture_output=True, text=True)
    assert float(done.stdout.split()[-1]) <= 1.3  # processors kept busy


def test_plotly_is_imported_late() -> None:
    code = "import sys, lightning_ssc.live.report; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_texts_claim_what_the_run_has(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "ssc"), reference=made_run(tmp_path / "other", seed=9).load(2))
    texts = {family["title"]: family["text"] for family in contents(page(summary))["families"]}
    assert "drops" in texts["SSC-CKA to the final state"]
    assert measure("cka_to_reference").meaning in texts["SSC-CKA to the reference"]
    steady = replace(summary, dynamics=replace(summary.dynamics, learning_rate=np.full(3, 0.1)))
    texts = {family["title"]: family["text"] for family in contents(page(steady))["families"]}
    assert "drops" not in texts["SSC-CKA to the final state"]


def test_what_spans_decades_is_packed_as_logarithms(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "ssc"))
    gaps = np.array([[1e-9, 1e-5, 0.5]] * 3)
    packed = {}
    for values in (gaps, 0 * gaps):
        table = replace(summary.dynamics, curves={**summary.dynamics.curves, "gap": values})
        families = contents(page(replace(summary, dynamics=table)))["families"]
        packed[bool(values.any())] = next(f for f in families if f["title"] == measure("gap").title)
    assert 10 ** unpack(packed[True]["values"]) == pytest.approx(gaps, rel=1e-3)
    assert (packed[True]["log"], packed[False]["log"]) == (True, False)
    assert unpack(packed[False]["values"]).tolist() == (0 * gaps).tolist()


def test_run_names_tell_runs_apart(tmp_path: Path) -> None:
    one, other = Path("/x/net/v/ssc"), Path("/y/net/v/ssc")
    assert run_names((one, other)) == ("x/net/v", "y/net/v")
    assert run_names((one, one), (1, 2)) == ("net/v, epoch 1", "net/v, epoch 2")
    assert run_names((one, Path("/z/w/ssc"))) == ("net/v", "z/w")


# -- In a browser


@needs_chromium
def test_the_page_works_from_disk(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    summary = summarise(made_run(tmp_path / "ssc", layers=(f"net.{HOSTILE}", "net.b", "net.fc"),
                                 class_names=(HOSTILE, "dog", "bird")))  # fmt: skip
    path = tmp_path / "index.html"
    path.write_text(page(summary), encoding="utf-8")
    open_page(browser, path)

    # Curves: a line a layer, and fewer of them after a switch by keyboard.
    assert len(browser.find_elements(By.CSS_SELECTOR, "#curves .plot")) == 7
    assert lines(browser) == 3
    browser.find_element(By.CSS_SELECTOR, "#switches input").send_keys(Keys.SPACE)
    WebDriverWait(browser, 5).until(lambda _: lines(browser) == 2)

    # Hovering over a curve shows its value.
    assert f"epoch 1: {summary.dynamics.modularity[1, 1]:.3f}" in hover_over_curve(browser, line=0, point=1)

    # The slider changes the heatmap to that of its epoch.
    assert browser.find_element(By.ID, "epoch-value").text == "2"
    epoch, shown = step_back(browser)
    assert epoch == "1"
    assert shown == pytest.approx(summary.heatmaps[1], abs=1e-4)

    # Hovering over a point of the embedding shows its picture and classes.
    i, tip = hover_over_embedding(browser)
    label = summary.class_names[int(summary.inputs.labels[i])]  # type: ignore[union-attr]
    assert f"class: {label}" in tip.text
    picture = tip.find_element(By.CSS_SELECTOR, ".tile")
    assert picture.get_attribute("aria-label") == f"picture of input {i}"
    assert picture.value_of_css_property("background-image").startswith('url("data:image/jpeg')

    # Another layer moves the points; a number chooses an input.
    Select(browser.find_element(By.ID, "embedding-layer")).select_by_index(1)
    x = browser.execute_script("const t = document.getElementById('embedding').data[0]; return [t.customdata, t.x]")
    assert x[1] == pytest.approx(summary.embedding["net.b"][x[0], 0].tolist(), abs=1e-4)
    number = browser.find_element(By.ID, "input-number")
    number.clear()
    number.send_keys("7")
    assert browser.find_element(By.CSS_SELECTOR, "#card h4").text == "Input 7"
    tiles = browser.find_elements(By.CSS_SELECTOR, "#card li .tile")
    expected = [f"picture of input {j}" for j in summary.nearest[7] if j >= 0]
    assert [tile.get_attribute("aria-label") for tile in tiles] == expected

    # A number that is no input gives way to the one shown.
    number.send_keys("999", Keys.TAB)
    assert number.get_attribute("value") == "7"
    Select(browser.find_element(By.ID, "embedding-layer")).select_by_index(0)

    # Plotly's button saves a picture, which takes a blob.
    script = (
        "Plotly.toImage('heatmap', {width: 200, height: 200}).then(arguments[0], (e) => arguments[0]('error ' + e))"
    )
    assert browser.execute_async_script(script).startswith("data:image/png")

    # Layers are named with the symbol and colour of their lines, and headings skip no level.
    swatches = browser.find_elements(By.CSS_SELECTOR, "#switches .swatch")
    assert [swatch.text[0] for swatch in swatches] == ["●", "■", "▲"]
    levels = [int(h.tag_name[1]) for h in browser.find_elements(By.CSS_SELECTOR, "h1, h2, h3, h4, h5")]
    assert all(after <= before + 1 for before, after in pairwise(levels))

    # Confidently wrong inputs, a table in place of a picture, and names that are still only names.
    assert len(browser.find_elements(By.CSS_SELECTOR, "#wrong-cards .card")) == 2
    details = browser.find_element(By.CSS_SELECTOR, "#curves details")
    details.find_element(By.TAG_NAME, "summary").click()
    WebDriverWait(browser, 5).until(lambda _: len(details.find_elements(By.CSS_SELECTOR, "tbody tr")) == 3)
    assert browser.find_elements(By.CSS_SELECTOR, "main img") == []
    assert HOSTILE in browser.find_element(By.CSS_SELECTOR, "#layer-table tbody th").text
    for selector in ("#heatmap .ytick text", "#embedding .legendtext"):
        drawn = browser.find_elements(By.CSS_SELECTOR, selector)
        assert HOSTILE in [text.get_attribute("textContent") for text in drawn]
    assert "cloud" not in browser.execute_script("return document.body.innerHTML.toLowerCase()").split("<script")[0]

    assert browser.get_log("browser") == []
    assert requested(browser) == {path.as_uri()}


@needs_chromium
@pytest.mark.parametrize("lacking", ["images", "labels", "snapshots", "confidence"])
def test_the_page_of_a_poor_run_works(browser: Any, tmp_path: Path, lacking: str) -> None:
    from selenium.webdriver.common.by import By

    store = made_run(
        tmp_path / "ssc",
        images=lacking != "images",
        labels=lacking != "labels",
        epochs=(0,) if lacking == "snapshots" else (0, 1),
        layers=("fc",) if lacking == "snapshots" else ("conv", "fc"),
    )
    if lacking == "confidence":
        store.save(replace(store.load(1), confidence=None))
    path = tmp_path / "index.html"
    path.write_text(page(summarise(store)), encoding="utf-8")
    open_page(browser, path)
    assert browser.get_log("browser") == []
    assert requested(browser) == {path.as_uri()}
    assert browser.find_elements(By.CSS_SELECTOR, "#embedding .scatterlayer .point")
    assert bool(browser.find_elements(By.ID, "wrong")) == (lacking not in ("labels", "confidence"))


@needs_chromium
def test_the_page_fits_a_phone(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(page(summarise(made_run(tmp_path / "ssc", layers=[f"net.{'long' * 12}{i}" for i in range(5)]))))
    size = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        open_page(browser, path)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        ticks = browser.find_elements("css selector", "#heatmap .ytick text")
        assert [tick.get_attribute("textContent") for tick in ticks] == [f"longl…glong{i}" for i in range(5)]
        assert browser.get_log("browser") == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
