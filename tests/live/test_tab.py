"""The tab in a real TensorBoard, of real fits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_ssc import SSCMonitor
from lightning_ssc.live.plugin import SubspacesPlugin
from tests.browser import found, lines, needs_chromium, until
from tests.nets import Classifier, trainer

pytestmark = needs_chromium

ENTRY = ("subspaces", "lightning_ssc.live.plugin:SubspacesPlugin")


def fit(folder: Path, name: str) -> None:
    monitor = SSCMonitor(layers="Conv2d", probe_size=30)
    logger = TensorBoardLogger(folder, name=name)
    trainer(folder, monitor, max_epochs=1, logger=logger).fit(Classifier())


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


def test_two_runs_and_the_switch_to_dark(browser: Any, tensorboard: str, logs: Path) -> None:
    fit(logs, "one")
    fit(logs, "two")
    browser.get(f"{tensorboard}#subspaces")
    browser.switch_to.frame(until(browser, lambda: found(browser, "iframe"), 60)[0])
    try:
        until(browser, lambda: lines(browser) == 2, 30)
        until(browser, lambda: len(found(browser, ".picker .menu input")) == 2)
        found(browser, ".picker summary")[0].click()
        next(box for box in found(browser, ".picker .menu input") if not box.is_selected()).click()
        until(browser, lambda: lines(browser) == 4)  # over each other, a style of line a run
        dashes = "return [...document.querySelector('#panel-0 .plot').data].map((trace) => trace.line.dash)"
        assert browser.execute_script(dashes) == ["solid", "solid", "dash", "dash"]
        assert browser.execute_script("return document.documentElement.dataset.theme") == "light"
        browser.execute_script("window.parent.document.body.classList.add('dark-mode')")  # as TensorBoard's switch does
        until(browser, lambda: browser.execute_script("return document.documentElement.dataset.theme") == "dark")
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(34, 38, 42)"
    finally:
        browser.switch_to.default_content()
