"""Pictures of the tab: ``python -m recipes.tour RUN --out FOLDER`` shows a stored run as it formed, and its inputs.

The run's snapshots are copied one by one into a folder that `lightning-ssc live` shows in headless Chromium (with
chromedriver and selenium), which sees each as it would one that a training run writes; every state is a frame of
``tab_forming.webp``. Then ``tab_inputs.webp`` is taken.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import time
from pathlib import Path
from threading import Thread
from typing import Any

from PIL import Image

from lightning_ssc.analysis import find_store
from lightning_ssc.live.names import run_name
from lightning_ssc.live.serve import make

WIDTH, HEIGHT = 1280, 700
FRAME = 900  # milliseconds; the last is shown three times as long


def main() -> None:
    """Read the arguments, show the run, write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args()
    store = find_store(args.run)
    with tempfile.TemporaryDirectory() as scratch:
        shown = Path(scratch) / run_name(store.root) / "ssc"
        shown.mkdir(parents=True)
        shutil.copy2(store.root / "probe.npz", shown)
        with make(scratch) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            browser = chromium()
            try:
                browser.get(f"http://127.0.0.1:{server.port}/")
                frames = []
                for count, file in enumerate(sorted(store.files().items()), start=1):
                    shutil.copy(file[1], shown)
                    wait(
                        browser,
                        f"const p = document.querySelector('.plot'); return p?.data?.[0]?.x?.length === {count}",
                    )
                    wait(browser, "return !document.querySelector('main').textContent.includes('being compared')")
                    frames.append(picture(browser))
                last = [FRAME] * (len(frames) - 1) + [3 * FRAME]
                args.out.mkdir(parents=True, exist_ok=True)
                path = args.out / "tab_forming.webp"
                frames[0].save(
                    path, save_all=True, append_images=frames[1:], duration=last, loop=0, quality=70, method=6
                )
                browser.find_element("xpath", "//button[@role='tab'][text()='Inputs']").click()
                wait(browser, "return document.querySelectorAll('.chosen .tiles .tile').length > 0")
                browser.execute_script("document.querySelector('#wrong button')?.click()")
                picture(browser).save(args.out / "tab_inputs.webp", quality=80, method=6)
            finally:
                browser.quit()
                server.shutdown()


def chromium() -> Any:
    """A headless browser."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", f"window-size={WIDTH},{HEIGHT}"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return browser


def wait(browser: Any, script: str) -> None:
    """Until a script says so."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 120).until(lambda b: b.execute_script(script))


def picture(browser: Any) -> Image.Image:
    """What the browser shows, after what moves has come to rest."""
    time.sleep(1.5)
    return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")


if __name__ == "__main__":
    main()
