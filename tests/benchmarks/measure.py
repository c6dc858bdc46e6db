"""What the benchmarks of whole snapshots share: networks, one snapshot by stage, and processes of their own."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that wait must not take the other's core

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # recipes are not installed, but run from a checkout

from lightning_ssc import Snapshot, SnapshotStore, writers
from lightning_ssc.capture import Runner, make_probe, pictures, trace
from lightning_ssc.pipeline import Past, Stopwatch, begin_snapshot, compared
from lightning_ssc.snapshots import Moment, ProbeCard, Settings


class PeakMemory(AbstractContextManager["PeakMemory"]):
    """The most memory that is held inside, beyond what was held before, in bytes.

    A GPU's is what torch has allocated there, the host's that of this process, sampled often.
    """

    extra = 0

    def __init__(self, device: str = "cpu") -> None:
        self._on_gpu = device == "cuda"

    def __enter__(self) -> "PeakMemory":
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        process, self._over = psutil.Process(), threading.Event()
        before = process.memory_info().rss

        def watch() -> None:
            while not self._over.wait(0.005):
                self.extra = max(self.extra, process.memory_info().rss - before)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self.extra = torch.cuda.max_memory_allocated() - self._before
            return
        self._over.set()
        self._thread.join()


def convolutions(model: nn.Module, count: int | None = None) -> list[str]:
    """All convolutions of a network, or some spread evenly over its depth."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if count is None or count >= len(layers):
        return layers
    return [layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)]


def take(
    model: nn.Module, layers: Sequence[str], x: Tensor, y: Tensor, memory: int | None = None, chunk: int = 256
) -> Snapshot:
    """One snapshot, as the callback takes it."""
    runner = Runner(model, memory=memory, chunk=chunk)
    return begin_snapshot(runner, make_probe((x, y)), trace(runner, layers, x), Settings(), Moment(0, 0)).result()


def log_seconds(taken: Snapshot, x: Tensor, folder: Path) -> dict[str, float]:
    """Seconds of comparing a snapshot (``"measure"``), of storing it, and of logging it with all images."""

    class Logger:
        experiment = SummaryWriter(str(folder))

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            for tag, value in metrics.items():
                self.experiment.add_scalar(tag, value, step)

    stopwatch, logger, card = Stopwatch(), Logger(), ProbeCard("", pictures(x))
    with stopwatch("measure"):
        taken = compared(taken, Past(taken, taken))
    with stopwatch("store"):
        SnapshotStore(folder).save(taken)
    with stopwatch("log"):
        writers.log_snapshot([logger], taken, writers.scalars_of(taken), writers.Images(), card)
        logger.experiment.flush()
    return dict(stopwatch.seconds)


@torch.no_grad()
def plain_forward(model: nn.Module, x: Tensor, chunk: int = 256) -> None:
    """The floor: the probe through the network, and nothing else."""
    model.eval()
    for part in x.split(chunk):
        model(part)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, a GPU's work included, and its result."""
    finish()
    start = time.perf_counter()
    result = work()
    finish()
    return time.perf_counter() - start, result


def finish() -> None:
    """Wait for what a GPU has still to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def own_process(script: str, **options: Any) -> dict[str, Any] | None:
    """Run one part of a benchmark in a process of its own, which prints JSON last; None where it fails."""
    return own_processes(script, [options])[0]


def own_processes(script: str, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    """Run parts of a benchmark at the same time, each in a process of its own."""
    started = []
    for options in runs:
        words = [f"--{key}={value}" for key, value in options.items() if value is not None and type(value) is not list]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([sys.executable, script, *words], stdout=pipe, stderr=pipe, text=True))
    found: list[dict[str, Any] | None] = []
    for process in started:
        out, err = process.communicate()
        if process.returncode:
            print(err[-800:], file=sys.stderr)
        found.append(None if process.returncode else json.loads(out.splitlines()[-1]))
    return found
