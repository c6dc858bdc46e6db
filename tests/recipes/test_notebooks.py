"""The notebooks run as they stand, but for their parameters, which are made small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "recipes" / "notebooks").glob("*.ipynb"))
SMALL = {
    "finetuning": "EPOCHS, PROBE = 1, 40",
    "plain_pytorch": "EPOCHS, PROBE = 2, 40",
    "quickstart": "EPOCHS, PROBE = 1, 40",
    "transformer": "EPOCHS, SENTENCES, PROBE = 1, 200, 40",
}
SHOWN = {
    "finetuning": ["accuracy ", "image/png"],
    "plain_pytorch": ["ssc/modularity", "image/png"],
    "quickstart": ["<iframe srcdoc", "epoch "],
    "transformer": ["accuracy on held-out", "image/png"],
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read(path)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    names = parameters.source.partition("=")[0]
    assert names == SMALL[path.stem].partition("=")[0]
    parameters.source = SMALL[path.stem]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert all(part in said for part in SHOWN[path.stem])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
