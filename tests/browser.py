"""A report in headless Chromium: opened from disk, used as a reader would."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Where every test has to run (CI is set) a missing browser is an error of these tests, not a reason to skip them.
needs_chromium = pytest.mark.skipif(
    (CHROMIUM is None or DRIVER is None) and "CI" not in os.environ, reason="chromium or chromedriver is not there"
)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser that keeps its files in ``profile``."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "window-size=1280,1000", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def open_page(browser: Any, path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get("data:text/html,")  # so that the log of this page begins here
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(path.as_uri())
    WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.body.dataset.ready") == "yes")


def requested(browser: Any) -> set[str]:
    """Addresses that were asked for since the last call, without what is inside the page."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls += [m["params"]["url"] for m in messages if m["method"] == "Network.webSocketCreated"]
    return {url for url in urls if not url.startswith(("data:", "blob:", "chrome:"))}


def found(parent: Any, selector: str) -> list[Any]:
    """Elements by CSS selector."""
    elements: list[Any] = parent.find_elements("css selector", selector)
    return elements


def lines(browser: Any) -> int:
    """How many layers the first chart shows."""
    return len(found(browser, "#curves figure:first-child .scatterlayer .trace"))


def hover_over_curve(browser: Any, line: int, point: int) -> str:
    """What the first chart says when the pointer is on a point of a line."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    plot = found(browser, "#curves .plot")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    target = found(found(plot, ".scatterlayer .trace")[line], ".point")[point]
    ActionChains(browser).move_to_element(target).perform()
    WebDriverWait(browser, 5).until(lambda _: found(plot, ".hoverlayer .hovertext"))
    text: str = found(plot, ".hoverlayer")[0].text
    return text


def step_back(browser: Any) -> tuple[str, np.ndarray[Any, Any]]:
    """Move the slider by one to the left; the epoch that it then names, and the heatmap."""
    from selenium.webdriver.common.keys import Keys

    found(browser, "#epoch")[0].send_keys(Keys.ARROW_LEFT)
    shown = browser.execute_script("return document.getElementById('heatmap').data[0].z")
    return found(browser, "#epoch-value")[0].text, np.array(shown, dtype=float)


def hover_over_embedding(browser: Any) -> tuple[int, Any]:
    """Put the pointer on an input; its number, and what pops up."""
    from selenium.webdriver.common.action_chains import ActionChains

    embedding, tip = found(browser, "#embedding")[0], found(browser, "#tip")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", embedding)
    assert not tip.is_displayed()
    for candidate in found(embedding, ".scatterlayer .trace .point"):
        ActionChains(browser).move_to_element(candidate).perform()
        if tip.is_displayed():
            break
    number = re.search(r"Input (\d+)", tip.text)
    assert number is not None
    return int(number[1]), tip
