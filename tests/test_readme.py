"""The README, and the pages that it leads to, say what is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from torch import nn
from torch.utils.data import DataLoader

from tests.nets import Classifier, convnet, data

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = ROOT / ".site" / "pages"
TEXTS = [README, ROOT / ".github" / "CONTRIBUTING.md", ROOT / "recipes" / "README.md", *sorted(PAGES.glob("*.md"))]


def block(text: Path, language: str, containing: str) -> str:
    (found,) = (b for b in re.findall(rf"```{language}\n(.*?)```", text.read_text(), re.S) if containing in b)
    return found


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(data(seed=1), batch_size=20)

    def val_dataloader(self) -> Any:
        return DataLoader(data(seed=2), batch_size=20)


class Named(Classifier):
    """A classifier with a layer called fc, as in the README."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.fc = convnet()[:-1], nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.fc(self.model(x))


@pytest.mark.filterwarnings("ignore:.*litlogger")
def test_the_callback_in_twelve_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code = block(README, "python", "callbacks=[monitor]")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    exec(code, {"model": Named(), "datamodule": Data()})
    assert "[0, 1, 2, 3, 4, 5] tensor(" in capsys.readouterr().out
    assert list(tmp_path.rglob("events.out*"))


def test_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    inputs, labels = data(30).tensors
    trained: list[Any] = []
    given = {"network": convnet(), "inputs": inputs, "labels": labels, "loggers": [], "train_one_epoch": trained.append}
    exec(block(PAGES / "adding.md", "python", "Recorder("), given)
    assert capsys.readouterr().out.startswith("[0, 1, 2, 3] ")
    assert len(trained) == 3
    assert len(list((tmp_path / "my_run").glob("step_*.npz"))) == 4


def test_commands() -> None:
    assert (ROOT / block(README, "bash", "quickstart").split("--config ")[1].strip()).is_file()
    assert block(README, "bash", "pytest").strip() == 'pip install ".[dev]" && python -m pytest'


def test_the_readme_is_a_screen_and_a_half_long() -> None:
    assert len(README.read_text().splitlines()) <= 90


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_links_lead_to_and_tests_are_there(text: Path) -> None:
    for link in re.findall(r"\]\((?!https:)([^)#]+)", text.read_text()):
        assert (text.parent / link).is_file(), link
    for name in re.findall(r"test_\w+\.py", text.read_text()):
        assert list((ROOT / "tests").rglob(name)), name


def test_every_page_is_a_click_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(\.site/pages/(\w+\.md)\)", README.read_text()))
    assert linked == {path.name for path in PAGES.glob("*.md")}
