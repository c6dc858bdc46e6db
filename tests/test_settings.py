"""What SSCMonitor's settings take from YAML and a command line, and what of them snapshots keep."""

from __future__ import annotations

from functools import partial

import pytest
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_ssc import Settings, SSCMonitor
from lightning_ssc.cli import _parser


def halves(x: Tensor, first: bool = True) -> Tensor:
    x = x.flatten(1)
    return x[:, : x.shape[1] // 2] if first else x[:, x.shape[1] // 2 :]


def test_a_function_by_its_import_path() -> None:
    """As LightningCLI reads it and writes it."""
    parser = ArgumentParser()
    parser.add_class_arguments(SSCMonitor, "monitor")
    given = parser.parse_args(
        ["--monitor.pooling", f"{__name__}.halves", "--monitor.pad", "0", "--monitor.batch_dim=1"]
    )
    assert f"pooling: {__name__}.halves" in parser.dump(given)
    monitor = SSCMonitor(**given.monitor.as_dict())
    kept = monitor.settings.stored()
    assert (kept["pooling"], kept["pad"], kept["batch_dim"]) == ("halves", 0.0, 1)
    assert callable(monitor.settings.pooling)
    with pytest.raises(SystemExit):
        parser.parse_args(["--monitor.pooling", "men"])


def test_the_command_line_takes_them_too() -> None:
    needed = ["analyze", "--model", "a:B", "--checkpoints", "c", "--data", "d:E", "--out", "o"]
    given = (
        _parser().parse_args([*needed, "--pooling", f"{__name__}.halves", "--pad", "1.5", "--batch-dim", "1"]).analyze
    )
    assert (given.pooling.__name__, given.pad, given.batch_dim) == ("halves", 1.5, 1)


def test_functions_are_kept_by_name() -> None:
    assert Settings(pooling=partial(halves, first=False)).stored()["pooling"] == "halves(first=False)"
    assert Settings(pooling=halves).stored()["pooling"] == "halves"


@pytest.mark.parametrize(
    ("how", "message"),
    [({"pad": float("nan")}, "pad must be a finite number"), ({"batch_dim": -1}, "batch_dim must be the number of a")],
)
def test_values_that_are_none(how: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**how)  # type: ignore[arg-type]
