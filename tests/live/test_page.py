"""The page of made runs in a browser: from a server and as a report, which differ in nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from lightning_ssc.analysis import dynamics, embeddings, inputs, neighbours
from lightning_ssc.functional import pairwise_cka
from lightning_ssc.live.report import report
from lightning_ssc.live.serve import make
from lightning_ssc.snapshots import ProbeCard, SnapshotStore
from tests.browser import (
    found,
    heatmap,
    hover_over_curve,
    hover_over_embedding,
    lines,
    needs_chromium,
    open_page,
    requested,
    section,
    until,
)
from tests.runs import HOSTILE, made_run

pytestmark = needs_chromium


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which a folder is served."""
    with make(folder) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def shown(folder: Path, way: str) -> Iterator[Path | str]:
    if way == "report":
        yield report(folder, folder.parent / "out")
    else:
        with served(folder) as address:
            yield address


@pytest.mark.parametrize("way", ["live", "report"])
def test_the_page_works(browser: Any, tmp_path: Path, way: str) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    names = (f"net.{HOSTILE}", "net.b", "net.fc")
    store = made_run(tmp_path / "logs" / "v" / "ssc", layers=names, class_names=(HOSTILE, "dog", "bird"))
    last, table = store.load(step=20), dynamics(store)

    def charts() -> list[str]:
        return [title.text for title in found(browser, "#panel-0 figcaption b")]

    with shown(tmp_path / "logs", way) as address:
        open_page(browser, address)

        # Training: a line a layer, fewer of them after a switch by keyboard or by range, values under the pointer.
        until(browser, lambda: lines(browser) == 3)
        until(browser, lambda: charts() == ["Modularity of the affinity graphs", "SSC-CKA to now (epoch 2)"])
        next(b for b in found(browser, ".choice button") if b.text.startswith("Health")).click()
        until(browser, lambda: charts() == ["Isolated inputs", "Neighbours an input", "Worst relative duality gap"])
        next(b for b in found(browser, ".choice button") if b.text == "All 9").click()
        until(browser, lambda: len(charts()) == 9)  # measures that the run has values of
        found(browser, ".layers input")[0].send_keys(Keys.SPACE)
        until(browser, lambda: lines(browser) == 2)
        assert f"epoch 1, step 10: {table.modularity[1, 1]:.3f}" in hover_over_curve(browser, line=0, point=1)
        found(browser, ".side input[type=search]")[0].send_keys("1-2")
        next(b for b in found(browser, ".side button") if b.text == "Filtered").click()
        until(browser, lambda: lines(browser) == 2 and len(found(browser, ".layers input")) == 2)
        assert HOSTILE in found(browser, ".layers .name")[0].text
        details = found(browser, "#panel-0 details.as-table")[0]
        found(details, "summary")[0].click()
        until(browser, lambda: len(found(details, "tbody tr")) == 3)

        # Architecture: the slider changes the heatmap to that of its moment; the one beside it and the difference.
        panel = section(browser, "Architecture")
        tables = [pairwise_cka([g.affinity for g in store.load(step=s).layers.values()]).numpy() for s in (0, 10, 20)]
        until(browser, lambda: np.allclose(heatmap(browser), tables[2], atol=1e-4))
        found(panel, "input[type=range]")[0].send_keys(Keys.ARROW_LEFT)
        until(browser, lambda: np.allclose(heatmap(browser), tables[1], atol=1e-4))
        assert found(panel, "output")[0].text == "epoch 1"
        Select(found(panel, "select")[1]).select_by_value("moment")
        until(browser, lambda: np.allclose(heatmap(browser, "difference"), tables[1] - tables[0], atol=2e-4))

        # The row of one layer, chosen by keyboard too, has its values as a table.
        profile = found(panel, "#profile")[0].find_element("xpath", "./ancestor::figure")
        Select(found(profile, "select")[0]).select_by_index(0)
        found(profile, "summary")[0].click()
        until(browser, lambda: len(found(profile, "tbody tr")) == 3)
        until(browser, lambda: found(profile, "tbody tr:nth-child(2) td")[0].text == f"{tables[1][0, 1]:.3f}")

        # Inputs: a point's picture and classes under the pointer, another layer, a chosen input and its neighbours.
        panel = section(browser, "Inputs")
        i, tip = hover_over_embedding(browser)
        assert last.labels is not None
        assert f"class: {(HOSTILE, 'dog', 'bird')[int(last.labels[i])]}" in tip.text
        picture = found(tip, ".tile")[0]
        assert picture.get_attribute("aria-label") == f"picture of input {i}"
        assert picture.value_of_css_property("background-image").startswith('url("data:image/jpeg')
        Select(found(panel, "select")[0]).select_by_index(1)
        until(browser, lambda: "Inputs in b" in panel.text)
        drawn = until(browser, lambda: browser.execute_script(PLACES))
        assert distances(np.array(drawn)) == pytest.approx(distances(embeddings(last)["net.b"]), abs=0.01)
        number = found(panel, "input[type=number]")[0]
        number.clear()
        number.send_keys("7", Keys.ENTER)
        nearest = [j for j in neighbours(last.layers["net.b"])[0][7] if j >= 0]

        def tiles() -> list[str | None]:
            chosen = found(panel, ".chosen .tiles .tile")
            return [tile.get_attribute("aria-label") for tile in chosen]

        until(browser, lambda: tiles() == [f"picture of input {j}" for j in nearest])
        wrong = [tile.get_attribute("aria-label") for tile in found(panel, "#wrong .tile")]
        assert wrong == [f"picture of input {j}" for j in inputs(last).confidently_wrong()]
        found(panel, "#wrong button")[0].click()
        until(browser, lambda: found(panel, ".chosen input")[0].get_attribute("value") == str(wrong[0]).split()[-1])

        # This run, by keyboard; headings skip no level; Plotly's button saves a picture, which takes a blob.
        browser.switch_to.active_element.send_keys(Keys.NULL)
        found(browser, "[role=tab][aria-selected=true]")[0].send_keys(Keys.ARROW_RIGHT)
        until(browser, lambda: "setting tau" in found(browser, "#panel-3")[0].text)
        assert HOSTILE in found(browser, "#panel-3 .card.wide th")[-3].text
        levels = [int(h.tag_name[1]) for h in found(browser, "h1, h2, h3") if h.is_displayed()]
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert browser.execute_async_script(TO_IMAGE).startswith("data:image/png")

        # Names are only names, and nothing was asked of any other place.
        assert found(browser, "img") == []
        assert browser.get_log("browser") == []
        origin = address.as_uri() if isinstance(address, Path) else address
        assert all(url.startswith(origin) for url in requested(browser))


PLACES = "const t = document.getElementById('embedding').data?.[0]; return t && t.x.map((x, i) => [x, t.y[i]])"
TO_IMAGE = "Plotly.toImage('heatmap-one', {width: 200, height: 200}).then(arguments[0], (e) => arguments[0]('' + e))"


def distances(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What turning points leaves as it was."""
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def test_a_new_snapshot_appears_and_what_was_chosen_stays(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    all_of_it = made_run(tmp_path / "all" / "ssc", layers=("a", "b"))
    store = SnapshotStore(tmp_path / "logs" / "v" / "ssc")
    store.save(all_of_it.load(step=0))
    store.save(all_of_it.load(step=10))
    count = "return document.querySelector('#panel-0 .plot').data[0].x.length"
    shown = "return document.querySelector('#panel-0 .plot')._fullLayout.yaxis.range"
    with served(tmp_path / "logs") as address:
        open_page(browser, address)
        until(browser, lambda: lines(browser) == 2)
        found(browser, ".layers input")[0].send_keys(Keys.SPACE)
        until(browser, lambda: lines(browser) == 1)
        area = found(browser, "#panel-0 .plot .nsewdrag")[0]
        ActionChains(browser).move_to_element(area).click_and_hold().move_by_offset(60, 60).release().perform()
        zoomed = until(browser, lambda: (now := browser.execute_script(shown))[1] < 1 and now)
        store.save(all_of_it.load(step=20))
        until(browser, lambda: browser.execute_script(count) == 3)
        assert lines(browser) == 1
        assert browser.execute_script(shown) == pytest.approx(zoomed)


def test_what_is_looked_at_closely_stays_so_at_another_moment(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    store = made_run(tmp_path / "logs" / "ssc", layers=("a", "b"), images=False)
    store.save_card(ProbeCard("made", None, (), tuple(f"row {i} {HOSTILE}" for i in range(30))))
    shown = (
        "const l = document.getElementById('embedding')._fullLayout; return l && [...l.xaxis.range, ...l.yaxis.range]"
    )
    with served(tmp_path / "logs") as address:
        open_page(browser, address)
        panel = section(browser, "Inputs")
        area = until(browser, lambda: found(browser, "#embedding .nsewdrag"))[0]
        before = browser.execute_script(shown)
        ActionChains(browser).move_to_element(area).click_and_hold().move_by_offset(60, 60).release().perform()
        zoomed = until(browser, lambda: (now := browser.execute_script(shown)) != before and now)
        title = found(panel, "figcaption b")[0]
        found(panel, "input[type=range]")[0].send_keys(Keys.ARROW_LEFT)
        until(browser, lambda: title.text.endswith("epoch 1"))
        until(browser, lambda: browser.execute_script(shown) == pytest.approx(zoomed))

        # Inputs that are no pictures are shown by their rows.
        assert found(panel, ".chosen .tile.big")[0].text.startswith("row 0 </script>")
        assert all(tile.text.startswith("row ") for tile in found(panel, ".chosen .tiles .tile"))
        shares = found(browser, "#path")[0].find_element("xpath", "./ancestor::figure")
        found(shares, "summary")[0].click()
        until(browser, lambda: len(found(shares, "tbody tr")) == 2)
        assert browser.get_log("browser") == []


@pytest.mark.parametrize("lacking", ["images and labels", "snapshots", "confidence", "everything"])
def test_the_page_of_a_poor_run_works(browser: Any, tmp_path: Path, lacking: str) -> None:
    few = lacking == "snapshots"
    poor = lacking == "images and labels"
    layers = ("fc",) if few else ("conv", "fc")
    if lacking == "everything":
        (tmp_path / "logs").mkdir()
    else:
        store = made_run(
            tmp_path / "logs", images=not poor, labels=not poor, epochs=(0,) if few else (0, 1), layers=layers
        )
        if lacking == "confidence":
            store.save(replace(store.load(1), confidence=None))
    with served(tmp_path / "logs") as address:
        open_page(browser, address)
        if lacking == "everything":
            assert "No snapshots yet" in found(browser, "main")[0].text
            made_run(tmp_path / "logs" / "first" / "ssc", epochs=(0,))  # it appears by itself
            until(browser, lambda: lines(browser) == 3)
        else:
            until(browser, lambda: lines(browser) == len(layers))
            for name in ("Architecture", "Inputs", "This run"):
                assert section(browser, name).is_displayed()
                until(browser, lambda: not browser.find_elements("css selector", ".notice.loading"))
            section(browser, "Inputs")
            until(browser, lambda: found(browser, "#embedding .scatterlayer .point"))
            assert bool(found(browser, "#wrong button")) == few
            assert not found(browser, ".notice.error")
        assert browser.get_log("browser") == []


def test_the_page_fits_a_phone(browser: Any, tmp_path: Path) -> None:
    made_run(tmp_path / "logs" / "ssc", layers=[f"net.{'long' * 12}{i}" for i in range(5)])
    size = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        with served(tmp_path / "logs") as address:
            open_page(browser, address)
            for name in ("Training", "Architecture", "Inputs", "This run"):
                section(browser, name)
                until(browser, lambda: browser.execute_script("return document.documentElement.scrollWidth") <= 390)
                if name == "Architecture":
                    ticks = until(browser, lambda: found(browser, "#heatmap-one .ytick text"))
                    names = [tick.get_attribute("textContent") for tick in ticks]
                    assert names == [f"longl…glong{i}" for i in range(5)]
            assert browser.get_log("browser") == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_and_light_have_contrast(browser: Any, tmp_path: Path) -> None:
    """WCAG AA: 4.5 to 1 between every colour of text and what is behind it."""
    made_run(tmp_path / "logs" / "ssc", epochs=(0,), layers=("fc",))
    with served(tmp_path / "logs") as address:
        for theme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": theme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            open_page(browser, address)
            names = ["paper", "panel", "warn-panel", "ink", "soft", "accent", "warning", "error"]
            colours = dict(zip(names, browser.execute_script(COLOURS, names), strict=True))
            assert (luminance(colours["paper"]) < 0.2) == (theme == "dark")
            for text in ("ink", "soft", "accent"):
                for behind in ("paper", "panel"):
                    assert contrast(colours[text], colours[behind]) >= 4.5, (theme, text, behind)
            assert contrast(colours["soft"], colours["warn-panel"]) >= 4.5
            assert contrast(colours["error"], colours["paper"]) >= 4.5
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


COLOURS = """const style = getComputedStyle(document.documentElement);
return arguments[0].map((name) => style.getPropertyValue(`--${name}`))"""


def luminance(colour: str) -> float:
    parts = np.array([int(colour.strip()[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
