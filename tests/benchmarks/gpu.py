"""What a machine with a GPU makes of this project, in eight minutes: tests, solver, capture, snapshots, training.

    python tests/benchmarks/gpu.py --data ROOT --out gpu.json     (ROOT as torchvision.datasets.CIFAR10 wants it)

Without ``--data`` images are made up, patterns of ten classes in noise; a network trained on real ones has graphs that
say more of the solver. Every stage is a process of its own with a limit of time: one that fails or is stopped keeps
what it had found, and the others run. Seconds on the GPU stand beside those of the same machine's CPU with all of its
cores, ``ratio`` being how many times as long the CPU takes. Memory is the most that torch allocates on the card beyond
what it held before. ``--pretend`` tries all of this script on a machine without a GPU, in sizes that say nothing.

The exit status is 0 when nothing failed or was stopped, 1 when something was, and 2 when there is no GPU.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import activations
import pytest
import torch
from measure import PeakMemory, convolutions, finish, log_seconds, plain_forward, take, timed
from overhead import network, train

from lightning_ssc.capture import Runner, capture, trace
from lightning_ssc.functional import self_expression
from lightning_ssc.pipeline import Stopwatch
from tests.pretend import pretend_gpu

Case = tuple[dict[str, Any], Callable[[], dict[str, Any]]]  # what it is called, and the work that finds its figures


class Stage(NamedTuple):
    """A part of the benchmark: its cases, in order of their cost, and the seconds that it may take."""

    cases: Callable[[argparse.Namespace], Iterator[Case]]
    limit: float
    title: str


class Sizes(NamedTuple):
    """How large everything is."""

    n: tuple[int, ...]  # samples of a solve
    tau: tuple[float, ...]
    raw: int  # samples of a solve of raw activations, whose graph is complete
    admm: int  # samples of a solve by ADMM
    probe: tuple[int, int]  # inputs of a snapshot; the first number is compared with the CPU
    network: str
    images: int  # that networks are trained on
    epochs: int


FULL = Sizes((1000, 2000, 5000, 10_000), (10.0, 100.0), 500, 2000, (1000, 10_000), "resnet18", 10_000, 4)
PRETEND = Sizes((60, 120), (10.0,), 60, 60, (60, 120), "resnet20", 128, 3)


def suite(args: argparse.Namespace) -> Iterator[Case]:
    """The tests that run on a GPU."""

    class Count:
        def __init__(self) -> None:
            self.passed, self.failed = 0, list[str]()

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            self.passed += report.when == "call" and report.passed
            if report.failed:
                self.failed.append(report.nodeid)

    def work() -> dict[str, Any]:
        count, chosen = Count(), ["-k", "pretend"] if args.pretend else ["-m", "cuda"]
        os.chdir(Path(__file__).parents[2])
        status = pytest.main(["tests", "-n", "0", "-p", "no:cacheprovider", *chosen], plugins=[count])
        found = {"passed": count.passed, "failed": len(count.failed)}
        return found if status == 0 else {**found, "error": "; ".join(count.failed) or f"pytest says {status!r}"}

    yield {"device": "pretend" if args.pretend else "cuda"}, work


def solver(args: argparse.Namespace) -> Iterator[Case]:
    """Solves of Grams in float32, as a snapshot forms them, of activations of a ResNet-20; the dearest come last."""
    sizes: Sizes = args.sizes
    unit = itertools.product(sizes.n, activations.SAMPLES, sizes.tau)
    problems = [(n, layer, "unit", tau, "active_set") for n, layer, tau in unit if n <= activations.SAMPLES[layer]]
    problems += [(sizes.raw, layer, "raw", 10.0, "active_set") for layer in activations.SAMPLES]
    problems += [(sizes.admm, "last", "unit", 10.0, "admm")]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        activations.prepare(args.data, cache, "cuda", 2 * sizes.images, max(sizes.n))
        for name in ("cpu", "cuda"):  # compilation and libraries
            self_expression(gram=activations.load(cache, "last", 50, True).to(name), tau=10.0)
        for n, layer, length, tau, name in sorted(problems, key=lambda p: (p[2] == "raw", p[3], p[0])):

            def work(n: int = n, layer: str = layer, length: str = length, tau: float = tau, name: Any = name) -> Any:
                gram = activations.load(cache, layer, n, length == "unit").float()
                on_device = gram.cuda()
                with PeakMemory("cuda") as memory:
                    seconds, found = timed(
                        lambda: self_expression(gram=on_device, tau=tau, solver=name, normalize=False)
                    )
                on_cpu, expected = timed(lambda: self_expression(gram=gram, tau=tau, solver=name, normalize=False))
                objective = (found.objective.cpu() - expected.objective).abs() / expected.objective.clamp_min(1e-12)
                return {
                    **compared(seconds, on_cpu),
                    "worst_gap": float(found.gap.max()),
                    "other_objective": float(objective.max()),
                    "neighbours": found.coef.values().numel() / n,
                    "rounds": found.n_iter,
                    "memory_mb": memory.extra / 1e6,
                }

            yield {"layer": layer, "lengths": length, "n": n, "tau": tau, "solver": name}, work


def captures(args: argparse.Namespace) -> Iterator[Case]:
    """Grams of all convolutions, beside the plain forward passes that they take."""
    x, _ = probe(args)

    def seconds_of(n: int, device: str) -> tuple[float, float, dict[str, float]]:
        stopwatch = Stopwatch()

        @contextmanager
        def finished(stage: str) -> Iterator[None]:
            with stopwatch(stage):
                yield
                finish()

        model = network(args.sizes.network).to(device)
        runner = Runner(model)
        watched = trace(runner, convolutions(model), x[:8])
        plain_forward(model, x[:64].to(device))
        floor, _ = timed(lambda: plain_forward(model, x[:n].to(device)))
        total, _ = timed(lambda: [None for _ in capture(runner, watched, x[:n], timed=finished)])
        return floor, total, dict(stopwatch.seconds)

    for n in args.sizes.probe:

        def work(n: int = n) -> dict[str, Any]:
            with PeakMemory("cuda") as memory:
                floor, total, stages = seconds_of(n, "cuda")
            on_cpu = seconds_of(n, "cpu")[1] if n == args.sizes.probe[0] else None
            return {**compared(total, on_cpu), "plain_forward": floor, **stages, "memory_mb": memory.extra / 1e6}

        yield {"network": args.sizes.network, "n": n}, work


def snapshots(args: argparse.Namespace) -> Iterator[Case]:
    """Whole snapshots of all convolutions; work of the GPU that a stage leaves over is waited for in the next one."""
    x, y = probe(args)
    for n in args.sizes.probe:

        def work(n: int = n) -> dict[str, Any]:
            def taken(device: str) -> Any:
                model = network(args.sizes.network).to(device)
                take(model, convolutions(model)[:1], x[:64], y[:64])  # imports, compilation and libraries
                return timed(lambda: take(model, convolutions(model), x[:n], y[:n]))

            with PeakMemory("cuda") as memory:
                seconds, found = taken("cuda")
            on_cpu = taken("cpu")[0] if n == args.sizes.probe[0] else None
            with tempfile.TemporaryDirectory() as folder:
                log = log_seconds(found, x[:n], Path(folder))
            stages = {stage: found.seconds[stage] for stage in ("forward", "gram", "solve")}
            gap = max(float(layer.gap.max()) for layer in found.layers.values())
            return {**compared(seconds, on_cpu), **stages, **log, "worst_gap": gap, "memory_mb": memory.extra / 1e6}

        yield {"network": args.sizes.network, "n": n}, work


def training(args: argparse.Namespace) -> Iterator[Case]:
    """Epochs with a Trainer, without the callback and with it; networks are trained alike if the card can."""
    sizes: Sizes = args.sizes
    x, y = activations.images(args.data, train=True)
    inputs, labels = probe(args)
    n = sizes.probe[0]
    torch.backends.cudnn.deterministic = True
    bare: dict[str, Any] = {}
    for mode in ("none", "foreground", "background"):

        def work(mode: str = mode) -> dict[str, Any]:
            found = train(
                sizes.network, x[: sizes.images], y[: sizes.images], (inputs[:n], labels[:n]), mode,
                layers=None, epochs=sizes.epochs, device="cuda",
            )  # fmt: skip
            if mode == "none":
                bare.update(found)
            return {
                "epoch_seconds": found["total"],
                "added": found["total"] - bare["total"] if bare else None,
                "same_weights": found["weights"] == bare["weights"] if bare else None,
                **{stage: found.get(stage) for stage in ("forward", "gram", "solve", "measure", "store", "log")},
                "memory_mb": found["extra"] / 1e6,
            }

        yield {"network": sizes.network, "images": sizes.images, "n": n, "monitor": mode}, work


STAGES = {
    "tests": Stage(suite, 120, "Tests on the GPU"),
    "solver": Stage(solver, 150, "Solves, Grams of a ResNet-20's layers; seconds on the GPU and the CPU"),
    "capture": Stage(captures, 40, "Grams of all convolutions; seconds"),
    "snapshot": Stage(snapshots, 80, "Snapshots of all convolutions (target at ten thousand inputs: 60 s); seconds"),
    "training": Stage(training, 85, "Epochs of training, with a snapshot each; seconds"),
}


def probe(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and classes of the largest probe."""
    x, y = activations.images(args.data, train=False)
    return x[: max(args.sizes.probe)].contiguous(memory_format=torch.channels_last), y[: max(args.sizes.probe)]


def compared(seconds: float, on_cpu: float | None) -> dict[str, float | None]:
    return {"seconds": seconds, "cpu_seconds": on_cpu, "ratio": on_cpu and on_cpu / seconds}


def run(name: str, args: argparse.Namespace) -> int:
    """Run a stage's cases in this process, and print what each finds as a line of JSON; 1 if one failed."""
    start, failed = time.perf_counter(), False
    with pretend_gpu() if args.pretend and name != "tests" else nullcontext():  # tests pretend by themselves
        for label, work in STAGES[name].cases(args):
            found: dict[str, Any] = {"left_out": "left out for want of time"}
            if time.perf_counter() - start < STAGES[name].limit / 2:  # or the next one may take too long
                try:
                    found = work()
                except Exception as error:
                    found = {"error": f"{type(error).__name__}: {error}"}
            failed = failed or "error" in found
            print(json.dumps({**label, **found}), flush=True)
    return int(failed)


def stage(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A stage in a process of its own, its table printed as it comes: outcome, seconds and cases."""
    print(f"\n{STAGES[name].title}", flush=True)
    words = [f"--part={name}"] + ["--pretend"] * args.pretend + ([f"--data={args.data}"] if args.data else [])
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    start, cases, columns = time.perf_counter(), [], None
    command = [sys.executable, __file__, *words]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        timer = threading.Timer(STAGES[name].limit, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:  # among whatever libraries print
            if line.startswith('{"'):
                cases.append(json.loads(line))
                columns = show(cases[-1], columns)
        status = process.wait()
        stopped = not timer.is_alive()
        timer.cancel()
        errors.seek(0)
        last = errors.read()[-1500:]
    outcome = "stopped" if stopped else "failed" if status else "done"
    if outcome != "done":
        print(f"  {name} {outcome} after {time.perf_counter() - start:.0f} s", flush=True)
    if status not in (0, 1):
        print(last, file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    return {"outcome": outcome, "seconds": seconds, "cases": cases, "errors": last if status else ""}


def show(case: dict[str, Any], columns: list[str] | None) -> list[str]:
    """Print a line of a table, under a head where its columns are not those before; returns its columns."""
    notes = [case[name] for name in ("error", "left_out") if name in case]
    cells = {name: value for name, value in case.items() if name not in ("error", "left_out")}
    if not notes and list(cells) != columns:
        columns = list(cells)
        print("  " + " ".join(f"{name:>13}" for name in columns))
    values = [f"{cell(value):>13}" for value in cells.values()]
    print("  " + " ".join(values + notes), flush=True)
    return columns or []


def cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures belong to."""
    card = None if args.pretend else torch.cuda.get_device_properties(0)
    cpus = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(": ", 1)[1] for line in cpus if line.startswith("model name")]
    return {
        "card": card.name if card else "pretend",
        "card_memory_gb": card.total_memory / 1e9 if card else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    """Run the stages, print their tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="root of torchvision's CIFAR10; made-up images without it")
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES), help="some of the stages")
    parser.add_argument("--pretend", action="store_true", help="try this script, in small sizes on a pretend GPU")
    parser.add_argument("--part", choices=list(STAGES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.sizes = PRETEND if args.pretend else FULL
    if not (args.pretend or torch.cuda.is_available()):
        print("There is no CUDA device that torch can use. --pretend tries this script without one.")
        return 2
    if args.part:
        warnings.simplefilter("ignore")
        return run(args.part, args)
    results: dict[str, Any] = {"machine": machine(args), "data": str(args.data or "made up"), "stages": {}}
    print(", ".join(f"{name} {cell(value)}" for name, value in results["machine"].items()))
    start = time.perf_counter()
    for name in args.only:
        results["stages"][name] = stage(name, args)
        results["seconds"] = time.perf_counter() - start
        if args.out:  # after every stage: what is found stays found
            args.out.write_text(json.dumps(results, indent=1))
    failed = [name for name, found in results["stages"].items() if found["outcome"] != "done"]
    print(f"\n{results['seconds']:.0f} s; " + (f"not done: {', '.join(failed)}" if failed else "all stages done"))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
