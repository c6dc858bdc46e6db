"""The report of a run that was really trained, for a few steps, opened in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recipes
from lightning_ssc.analysis import dynamics, find_store, inputs
from lightning_ssc.cli import main as lightning_ssc
from lightning_ssc.functional import pairwise_cka
from recipes.__main__ import main as train
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

FOLDER = Path(recipes.__file__).parent
SHORT = [
    *("--data.copies", "1", "--data.fraction", "0.05"),
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.enable_checkpointing", "false", "--model.milestones", "[1]", "--ssc.probe_size", "100"),
    *("--model.network", "cifar_resnet", "--model.network_args.depth", "8"),
    *("--ssc.heatmap", "false", "--ssc.embedding", "false", "--ssc.neighbours", "0"),  # images for TensorBoard
]


@needs_chromium
def test_the_report_of_a_recipe(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selenium.webdriver.common.keys import Keys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["recipes"])
    monkeypatch.setattr("recipes.__main__.write_figures", lambda *args: None)  # they are not the report's
    with torch.random.fork_rng():
        train(["fit", "--config", str(FOLDER / "quickstart.yaml"), *SHORT])
    run = tmp_path / "runs/quickstart/version_0"
    assert lightning_ssc(["report", str(run), "--out", "report"]) == 0
    store = find_store(run)
    curves, table = dynamics(store), inputs(store.load(2))
    at_end, before = (pairwise_cka([layer.affinity for layer in store.load(t).layers.values()]).numpy() for t in (2, 1))
    names = store.load_card().class_names  # type: ignore[union-attr]
    path = tmp_path / "report" / "index.html"
    open_page(browser, path)

    assert curves.drops().tolist() == [[1, 2]]
    until(browser, lambda: lines(browser) == len(curves.layers) == 5)
    assert f"{curves.modularity[1, 2]:.3f}" in hover_over_curve(browser, line=2, point=1)
    panel = section(browser, "Architecture")
    until(browser, lambda: np.allclose(heatmap(browser), at_end, atol=1e-4))
    found(panel, "input[type=range]")[0].send_keys(Keys.ARROW_LEFT)
    until(browser, lambda: np.allclose(heatmap(browser), before, atol=1e-4))
    panel = section(browser, "Inputs")
    i, tip = hover_over_embedding(browser)
    assert f"class: {names[table.labels[i]]}" in tip.text
    assert found(tip, ".tile")[0].value_of_css_property("background-image").startswith('url("data:image/jpeg')
    wrong = table.confidently_wrong(12)
    assert len(wrong) == 12  # nothing is learned in so few steps
    shown = [tile.get_attribute("aria-label") for tile in found(panel, "#wrong .tile")]
    assert shown == [f"picture of input {j}" for j in wrong]

    assert browser.get_log("browser") == []
    assert requested(browser) == {path.as_uri()}
    assert path.stat().st_size < 8e6
