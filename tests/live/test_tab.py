"""The tab in a real TensorBoard, of real fits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest
from pytorch_lightning import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_ssc import SSCMonitor
from lightning_ssc.live.plugin import SubspacesPlugin
from tests.browser import found, heatmap, hover_over_curve, lines, needs_chromium, requested, section, until
from tests.nets import Classifier, trainer

pytestmark = needs_chromium

ENTRY = ("subspaces", "lightning_ssc.live.plugin:SubspacesPlugin")


class Paced(Callback):
    """Lets an epoch end when it is told to, after its snapshot is stored."""

    def __init__(self) -> None:
        self.go: Queue[None] = Queue()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.go.get()


def fit(folder: Path, name: str, *more: Callback, epochs: int = 1) -> None:
    monitor = SSCMonitor(layers="Conv2d", probe_size=30, schedule=1)
    logger = TensorBoardLogger(folder, name=name)
    trainer(folder, monitor, *more, max_epochs=epochs, logger=logger).fit(Classifier())


@contextmanager
def going_on(folder: Path, name: str, epochs: int) -> Iterator[Queue[None]]:
    """A fit in the middle of its first epoch's end; what is put into the queue lets it go on."""
    paced = Paced()
    thread = Thread(target=fit, args=(folder, name, paced), kwargs={"epochs": epochs})
    thread.start()
    try:
        yield paced.go
    finally:
        for _ in range(epochs):
            paced.go.put(None)
        thread.join()


@contextmanager
def tab(browser: Any, address: str) -> Iterator[None]:
    """The frame of the tab, which is found in TensorBoard's list and clicked."""
    browser.get("data:text/html,")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(address)
    until(browser, lambda: [entry.click() or entry for entry in found(browser, "[data-plugin-id=subspaces]")], 60)
    browser.switch_to.frame(until(browser, lambda: found(browser, "iframe"), 60)[0])
    try:
        yield
    finally:
        browser.switch_to.default_content()


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def tensorboard(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a TensorBoard, which finds the plugin as it would that of an installed package."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    installed = {(e.name, e.value) for e in entry_points(group="tensorboard_plugins")}
    if ENTRY not in installed:
        site = tmp_path_factory.mktemp("site") / "here-0.dist-info"
        site.mkdir()
        (site / "METADATA").write_text("Metadata-Version: 2.1\nName: here\nVersion: 0\n")
        (site / "entry_points.txt").write_text(f"[tensorboard_plugins]\n{' = '.join(ENTRY)}\n")
        environment["PYTHONPATH"] += os.pathsep + str(site.parent)
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0", "--load_fast", "false"]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if address := re.search(r"http://localhost:\d+/", line):
                    break
            else:
                pytest.fail("TensorBoard did not start")
            Thread(target=process.stderr.read, daemon=True).start()
            yield address[0]
        finally:
            process.terminate()


def test_the_package_announces_the_tab() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'[project.entry-points.tensorboard_plugins]\n{ENTRY[0]} = "{ENTRY[1]}"' in text
    assert SubspacesPlugin.plugin_name == ENTRY[0]


MOMENTS = "return document.querySelector('#panel-0 .plot')?.data?.[0]?.x.length"
ZOOM = "return document.querySelector('#panel-0 .plot')._fullLayout.yaxis.range"


def test_a_fit_is_watched_while_it_writes(browser: Any, tensorboard: str, logs: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    with going_on(logs, "one", epochs=4) as go:
        until(browser, lambda: len(list(logs.glob("one/*/ssc/step_*"))) == 2, 60)
        with tab(browser, tensorboard):
            # Its curves are there; a layer is switched off by keyboard, and a part of the chart is looked at closely.
            until(browser, lambda: lines(browser) == 2, 120)
            assert "epoch 1, step 3: " in hover_over_curve(browser, line=1, point=1)
            found(browser, ".layers input")[0].send_keys(Keys.SPACE)
            until(browser, lambda: lines(browser) == 1)
            area = found(browser, "#panel-0 .plot .nsewdrag")[0]
            ActionChains(browser).move_to_element(area).click_and_hold().move_by_offset(50, 50).release().perform()
            zoomed = until(browser, lambda: (now := browser.execute_script(ZOOM))[1] < 1 and now)
            panel = section(browser, "Architecture")
            until(browser, lambda: heatmap(browser).shape == (2, 2))
            found(panel, "input[type=range]")[0].send_keys(Keys.ARROW_LEFT)
            until(browser, lambda: found(panel, "output")[0].text == "epoch 0")
            section(browser, "Training")

            # An epoch's end is seen by itself, and nothing of this is lost.
            go.put(None)
            until(browser, lambda: len(list(logs.glob("one/*/ssc/step_*"))) == 3, 60)
            written = time.monotonic()
            until(browser, lambda: browser.execute_script(MOMENTS) == 3)
            assert time.monotonic() - written < 5 + os.getloadavg()[0]  # on a machine with other work, later
            assert lines(browser) == 1
            assert browser.execute_script(ZOOM) == pytest.approx(zoomed)
            section(browser, "Architecture")
            assert found(panel, "output")[0].text == "epoch 0"
            assert found(panel, "input[type=range]")[0].get_attribute("max") == "2"

            # A chosen input, in another layer, stays chosen, too.
            panel = section(browser, "Inputs")
            Select(until(browser, lambda: found(panel, "select"))[0]).select_by_index(0)
            number = until(browser, lambda: found(panel, ".chosen input"))[0]
            number.clear()
            number.send_keys("7", Keys.ENTER)
            until(browser, lambda: "input 7 at epoch 2" in panel.text)
            go.put(None)
            until(browser, lambda: "input 7 at epoch 3" in panel.text)  # the slider was at the end, and follows the run
            assert found(panel, ".chosen .tile.big")[0].get_attribute("aria-label") == "picture of input 7"
            section(browser, "This run")
            assert "The run is going on." in found(browser, "#panel-3 .notice")[0].text
    assert all(url.startswith(tensorboard) for url in requested(browser))
    assert [entry for entry in browser.get_log("browser") if "/plugin/subspaces/" in entry["message"]] == []


def test_two_runs_and_the_switch_to_dark(browser: Any, tensorboard: str, logs: Path) -> None:
    fit(logs, "two")
    with tab(browser, tensorboard):
        until(browser, lambda: lines(browser) == 2, 120)
        until(browser, lambda: len(found(browser, ".picker .menu input")) == len(list(logs.glob("*/*/ssc"))))
        found(browser, ".picker summary")[0].click()
        next(box for box in found(browser, ".picker .menu input") if not box.is_selected()).click()
        until(browser, lambda: lines(browser) == 4)  # over each other, a style of line a run
        dashes = "return [...document.querySelector('#panel-0 .plot').data].map((trace) => trace.line.dash)"
        assert browser.execute_script(dashes) == ["solid", "solid", "dash", "dash"]
        assert browser.execute_script("return document.documentElement.dataset.theme") == "light"
        browser.execute_script("window.parent.document.body.classList.add('dark-mode')")  # as TensorBoard's switch does
        until(browser, lambda: browser.execute_script("return document.documentElement.dataset.theme") == "dark")
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(34, 38, 42)"
