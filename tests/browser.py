"""The page in headless Chromium, used as a reader would."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Where every test has to run (CI is set) a missing browser is an error of these tests, not a reason to skip them.
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and find_spec("selenium")) and not os.environ.get("CI"),
    reason="chromium, chromedriver or selenium is not there",
)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser that keeps its files in ``profile``."""
    from selenium import webdriver

    if CHROMIUM is None or DRIVER is None:
        pytest.fail("chromium and chromedriver have to be there where CI is set; as root, .ci/run installs them")
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


def open_page(browser: Any, address: Path | str) -> None:
    """Open a page, from disk or of a server, and wait until it shows its run."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get("data:text/html,")  # so that the log of this page begins here
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(address.as_uri() if isinstance(address, Path) else address)
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


def until(browser: Any, holds: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait for what a page comes to; what holds is returned."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.05, [StaleElementReferenceException]).until(lambda _: holds())


def section(browser: Any, name: str) -> Any:
    """Open a section; the part of the page that is it."""
    tab = next(tab for tab in found(browser, "[role=tab]") if tab.text == name)
    tab.click()
    return found(browser, f"#{tab.get_attribute('aria-controls')}")[0]


def lines(browser: Any) -> int:
    """How many lines the first chart of Training shows."""
    return len(found(browser, "#panel-0 figure:first-child .scatterlayer .trace"))


def hover_over_curve(browser: Any, line: int, point: int) -> str:
    """What the first chart says when the pointer is on a point of a line."""
    from selenium.webdriver.common.action_chains import ActionChains

    plot = found(browser, "#panel-0 .plot")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    target = until(browser, lambda: found(found(plot, ".scatterlayer .trace")[line], ".point"))[point]
    ActionChains(browser).move_to_element(target).perform()
    until(browser, lambda: found(plot, ".hoverlayer .hovertext"))
    text: str = found(plot, ".hoverlayer")[0].text
    return text


def heatmap(browser: Any, name: str = "one") -> np.ndarray[Any, Any]:
    """The numbers that a heatmap of Architecture shows."""
    script = f"return document.getElementById('heatmap-{name}').data?.[0].z"
    shown = until(browser, lambda: browser.execute_script(script))
    return np.array(shown, dtype=float)


def hover_over_embedding(browser: Any) -> tuple[int, Any]:
    """Put the pointer on an input; its number, and what pops up."""
    from selenium.webdriver.common.action_chains import ActionChains

    embedding, tip = found(browser, "#embedding")[0], found(browser, ".tip")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", embedding)
    for candidate in until(browser, lambda: found(embedding, ".scatterlayer .trace:first-child .point")):
        ActionChains(browser).move_to_element(candidate).perform()
        if tip.is_displayed():
            break
    number = re.search(r"Input (\d+)", tip.text)
    assert number is not None
    return int(number[1]), tip
