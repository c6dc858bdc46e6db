"""What a bare installation lacks is done without, or named with its remedy."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_ssc import Recorder, __version__, cli
from tests.nets import convnet, data

ROOT = Path(__file__).parents[1]


class Board:
    """A logger that takes images."""

    def __init__(self) -> None:
        self.experiment = SimpleNamespace(add_image=self.add_image)
        self.images: list[str] = []
        self.scalars: set[str] = set()

    def add_image(self, tag: str, image: Any, **how: Any) -> None:
        self.images.append(tag)

    def log_metrics(self, scalars: dict[str, float], step: int) -> None:
        self.scalars |= scalars.keys()


@pytest.mark.filterwarnings("default")  # as in a run
@pytest.mark.parametrize("there", [True, False])
def test_without_matplotlib_numbers_are_logged_and_it_is_said_what_is_missing(
    there: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    if not there:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    board = Board()
    inputs, labels = data(12).tensors
    recorder = Recorder(convnet(), (inputs, labels), layers="conv", loggers=[board])
    for epoch in range(2):
        recorder.record(epoch=epoch)
    recorder.finish()
    assert {"ssc/modularity/0", "ssc/cka_to_final/0"} <= board.scalars
    assert bool(board.images) == there
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (not there)
    assert all("matplotlib" in one and "pip install 'lightning-ssc[report]'" in one for one in said)


def test_a_command_names_the_extra_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(convnet(), data(12).tensors, layers="conv", store=tmp_path / "ssc")
    recorder.record(epoch=0)
    recorder.finish()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["report", str(tmp_path), "--figures"]) == cli.FAILED
    said = capsys.readouterr().err
    assert "matplotlib" in said
    assert "pip install 'lightning-ssc[report]'" in said


@pytest.mark.parametrize(
    ("name", "drawing"), [("werkzeug.serving", True), ("PIL", True), ("train", False), (None, False)]
)
def test_what_draws_alone_is_named_with_the_extra(name: str | None, drawing: bool) -> None:
    assert ("[report]" in cli._remedy(ModuleNotFoundError("No module", name=name))) == drawing


def test_what_draws_is_what_the_extra_brings() -> None:
    report = re.search(r"^report = \[.*?\n\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert report is not None
    names = {name.replace("pillow", "PIL") for name in re.findall(r'"(\w+)>', report[0])}
    assert names == set(cli._DRAWING)


def test_package_citation_and_changelog_agree_on_the_release() -> None:
    changelog = ROOT / ".ci" / "changelog.py"
    if not changelog.is_file():
        pytest.skip(".ci is not part of the sdist")
    assert runpy.run_path(str(changelog))["disagreements"](f"v{__version__}") == []
