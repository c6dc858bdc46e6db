"""The benchmark of a GPU, on a pretend one: it has to run where nobody can try it beforehand."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """``tests/benchmarks/gpu.py``, which imports its neighbours by their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("gpu")


@pytest.fixture
def args(gpu: Any) -> Namespace:
    sizes = gpu.PRETEND._replace(n=(40,), raw=30, admm=30, probe=(30, 40), images=16)
    return Namespace(pretend=True, data=None, sizes=sizes)


@pytest.mark.parametrize("stage", ["solver", "capture"])
def test_a_stage_finds_its_figures(gpu: Any, args: Namespace, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.run(stage, args) == 0
    cases = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"')]
    assert len(cases) == {"solver": 9, "capture": 2}[stage]
    for case in cases:
        assert case["seconds"] > 0
        assert "error" not in case
    if stage == "solver":
        assert max(case["worst_gap"] for case in cases if case["solver"] == "active_set") <= 1e-5
        assert max(case["other_objective"] for case in cases if case["solver"] == "active_set") <= 1e-5


def test_a_case_that_fails_is_one_of_many(
    gpu: Any, args: Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cases(args: Namespace) -> Iterator[Any]:
        yield {"n": 1}, lambda: {"seconds": 1 / 0}
        yield {"n": 2}, lambda: {"seconds": 2.0}

    monkeypatch.setitem(gpu.STAGES, "solver", gpu.Stage(cases, 100.0, "Solves"))
    assert gpu.run("solver", args) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert "ZeroDivisionError" in first["error"]
    assert second == {"n": 2, "seconds": 2.0}
    monkeypatch.setitem(gpu.STAGES, "solver", gpu.Stage(cases, 0.0, "Solves"))
    assert gpu.run("solver", args) == 0
    assert all("left_out" in json.loads(line) for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(("ends", "outcome"), [("os.abort()", "failed"), ("time.sleep(600)", "stopped")])
def test_a_stage_that_does_not_end_well_keeps_what_it_has_found(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, outcome: str
) -> None:
    script, out = tmp_path / "part.py", tmp_path / "out.json"
    script.write_text(
        "import json, os, sys, time\n"
        'print("from a library", json.dumps({"n": 1}), sep="\\n", flush=True)\n'
        f'if "--part=solver" in sys.argv:\n    {ends}\n'
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    limits = {"solver": 2.0 if outcome == "stopped" else 100.0, "capture": 100.0}
    monkeypatch.setattr(gpu, "STAGES", {name: gpu.Stage(None, limit, name) for name, limit in limits.items()})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--pretend", "--out", str(out)])
    assert gpu.main() == 1
    stages = json.loads(out.read_text())["stages"]
    assert {name: stage["outcome"] for name, stage in stages.items()} == {"solver": outcome, "capture": "done"}
    assert [stage["cases"] for stage in stages.values()] == [[{"n": 1}]] * 2


def test_without_a_gpu_it_says_so(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "no CUDA device" in capsys.readouterr().out
