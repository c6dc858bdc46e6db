"""What counts as free memory, and that capture keeps to its budget."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_ssc.capture import Runner, capture, trace
from lightning_ssc.capture import memory as memory_module
from lightning_ssc.capture.memory import free_memory, left_in_groups
from lightning_ssc.functional import grams as grams_module


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def test_a_container_may_have_less_than_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, mounted = tmp_path / "own", tmp_path / "mounted"
    own.write_text("0::/job/step\n")
    group(mounted, {})  # the root has no limit, and no file for one
    group(
        mounted / "job",
        {"memory.max": "9000", "memory.current": "5000", "memory.stat": "anon 1\ninactive_file 2000"},
    )
    group(mounted / "job" / "step", {"memory.max": "max", "memory.current": "1", "memory.stat": "inactive_file 0"})
    assert list(left_in_groups(own, mounted)) == [9000 - 5000 + 2000]
    monkeypatch.setattr(memory_module, "left_in_groups", lambda: left_in_groups(own, mounted))
    assert free_memory(torch.device("cpu")) == 6000


def test_version_one_of_control_groups(tmp_path: Path) -> None:
    own, mounted = tmp_path / "own", tmp_path / "mounted"
    own.write_text("5:devices:/\n4:cpu,memory:/of/the/host\n0::/\n")  # a path that the container does not see
    files = {"memory.limit_in_bytes": "700", "memory.usage_in_bytes": "900", "memory.stat": "total_inactive_file 100"}
    group(mounted / "memory", files)
    assert list(left_in_groups(own, mounted)) == [0]  # and not less than nothing


def test_without_control_groups_all_that_is_free_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(left_in_groups(tmp_path / "none", tmp_path)) == []
    monkeypatch.setattr(memory_module, "left_in_groups", lambda: iter(()))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 5}))
    assert free_memory(torch.device("cpu")) == 5


class Counts(TorchDispatchMode):
    """Bytes of all tensors alive that were made inside, now and at most."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.gone, key, storage.nbytes())

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class Wide(nn.Module):
    """Puts out more than all that is watched; itself it is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, 100)


@pytest.mark.parametrize("precise", [False, True])  # Grams in float64, as raw samples or a large tau ask for
@pytest.mark.parametrize("room", [5, 2, 0.4])  # layers that fit one pass; the last case cuts them
def test_activations_and_grams_stay_within_the_budget(
    room: float, precise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grams_module, "_AT_ONCE", 40_000)
    n, chunk, d = 600, 16, 1000
    net = nn.Sequential(*(nn.Linear(d, d, bias=False) for _ in range(5)), Wide())
    x = torch.randn(n, d)
    watched = trace(Runner(net), "Linear", x)
    budget = 2 * 4 * n * n + int(room * 4 * n * d)
    most: dict[str, int] = {}

    @contextmanager
    def watch(stage: str) -> Iterator[None]:
        most["between"] = max(most.get("between", 0), counts.most)
        counts.most = counts.now
        yield
        most[stage] = max(most.get(stage, 0), counts.most)
        counts.most = counts.now

    with Counts([x, *net.parameters()]) as counts:
        for _, gram in capture(Runner(net, chunk=chunk, memory=budget), watched, x, timed=watch, precise=precise):
            del gram
    mirrored, small = 8 * (3 * 256 * 256 + 40_000), 50_000  # with what is in float64 at once
    assert most["gram"] > budget / 2  # it was counted
    assert most["gram"] <= budget + mirrored + small
    assert most["between"] <= budget + small  # the buffers of the pass before are gone
    assert most["forward"] <= budget + 4 * chunk * d * 103
    assert mirrored + small < 4 * n * d  # less than a layer held twice would be
