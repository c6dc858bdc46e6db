"""Where things are: what import-linter's contracts (pyproject.toml) do not say of imports between rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lightning_ssc"
FILES = sorted(ROOT.rglob("*.py"))
# --help is answered at once; importing numba takes a second; TensorBoard starts without waiting for PyTorch
LATE = {
    "cli.py", "functional/active_set.py", "functional/gram_sketch.py", "functional/graph_cka.py",
    "functional/partition.py", "live/server.py",
}  # fmt: skip


def room(path: tuple[str, ...]) -> str:
    return path[0] if path else ""


def imports(file: Path) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """Every name of the package that a file imports, below the package, and whether it does so within a function."""
    tree = ast.parse(file.read_text())
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == ROOT.name:
            for name in node.names:
                yield id(node) in inside, (*node.module.split(".")[1:], name.name)
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == ROOT.name:
                    yield id(node) in inside, tuple(name.name.split(".")[1:])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_room_takes_what_another_keeps_to_itself(file: Path) -> None:
    own = room(file.relative_to(ROOT).parts)
    taken = [path for _, path in imports(file) if room(path) != own and any(p.startswith("_") for p in path)]
    assert [path for path in taken if path != ("version", "__version__")] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_import_hides_in_a_function(file: Path) -> None:
    if str(file.relative_to(ROOT)) not in LATE:
        assert [path for late, path in imports(file) if late] == []


def test_imports_are_seen() -> None:
    assert (False, ("snapshots", "Settings")) in list(imports(ROOT / "recorder.py"))
    assert (True, ("functional", "_kernel", "solve_rows")) in list(imports(ROOT / "functional" / "active_set.py"))


# What Lightning keeps to itself, outside callback/lightning.py: a logger's prefix, the logger of fast_dev_run, what
# Fabric wraps around a module, and a key of checkpoint files.
PRIVATE = {
    "capture/runner.py": {"_strategy", "_original_module", "_FabricModule"},
    "replay.py": {"_batches_that_stepped"},
    "writers.py": {"_prefix", "_DummyExperiment"},
}
LIGHTNINGS = {
    "_batches_that_stepped", "_can_stop_early", "_data_source", "_DummyExperiment", "_FabricModule", "_original_module",
    "_prefix", "_strategy", "_generate_state_key", "_logger_connector",
}  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_private_names_of_lightning_are_in_one_file(file: Path) -> None:
    name, nodes = str(file.relative_to(ROOT)), list(ast.walk(ast.parse(file.read_text())))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and not is_own(node)}
    used |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    if name != "callback/lightning.py":
        assert used & LIGHTNINGS <= PRIVATE.get(name, set())


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"
