"""What reading a run costs: ``python tests/benchmarks/readers.py --against DIR`` prints seconds of the commands.

A store of synthetic graphs is made once by this checkout, with everything that it measures when a snapshot is taken,
and, where ``--against`` names an older checkout, once more by its code from the same graphs, in its own format. Then
``report``, ``export`` and ``compare`` (with a copy of the store) read them, each in a process of its own, one after
the other. Seconds are wall time of the whole command; beside them stands the time on processors, which is the one to
compare where other processes run. The older ``report`` writes its figures, too, for it always does.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "report": ("report", "{run}", "--out", "{out}/report"),
    "export": ("export", "{run}", "--csv", "{out}/tables"),
    "compare": ("compare", "{run}", "{run}", "--out", "{out}/comparison"),
}


def make(folder: Path, snapshots: int, layers: int, inputs: int, neighbours: int) -> None:
    """Write a store with the ``lightning_ssc`` that is imported, this checkout's or an older one's."""
    import numpy as np
    import torch

    try:
        import lightning_ssc.snapshots as kept
    except ModuleNotFoundError:
        kept = importlib.import_module("lightning_ssc.store")  # as it was called
    from lightning_ssc.functional.gram_sketch import gram_sketch

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    labels = torch.arange(inputs) % 10
    measured = hasattr(kept, "Moment")  # format 2 keeps what was measured
    if measured:
        from lightning_ssc import measures
        from lightning_ssc.pipeline import Past, compared

        past = Past()

    def graph(share: float, layer: int) -> Any:
        """Neighbours drawn near an input's class, more so the later the snapshot, with weights that drift."""
        fixed = np.random.default_rng(layer)
        columns = fixed.integers(0, inputs, (inputs, neighbours))
        moved = rng.random(columns.shape) > share
        columns = np.where(moved, rng.integers(0, inputs, columns.shape), columns)
        columns = np.where(columns == np.arange(inputs)[:, None], (columns + 1) % inputs, columns)
        rows = np.repeat(np.arange(inputs), neighbours)
        weights = rng.normal(size=rows.size).astype(np.float32)
        coo = torch.sparse_coo_tensor(np.stack([rows, columns.ravel()]), torch.from_numpy(weights), (inputs, inputs))
        coef = coo.coalesce().to_sparse_csr()
        x = torch.from_numpy(fixed.normal(size=(inputs, 32)) + (1 - share) * rng.normal(size=(inputs, 32)))
        return kept.LayerGraph(coef, torch.full((inputs,), 1e-6), True, 64, gram_sketch((x @ x.T).float()))

    store = kept.SnapshotStore(folder)
    for t in range(snapshots):
        taken = {f"net.layer{i}": graph(t / max(1, snapshots - 1), i) for i in range(layers)}
        common = {"labels": labels, "predictions": labels.roll(1), "confidence": torch.full((inputs,), 0.5)}
        common |= {"settings": {"tau": 10.0}, "probe": "made", "seconds": {"total": 1.0}, "learning_rate": 0.1}
        if measured:
            for layer in taken.values():
                layer.values.update(measures.of_layer(layer.measurable(labels)))
            before = compared(kept.Snapshot(kept.Moment(100 * t, t), taken, **common), past)  # as a run does
            past = past.followed_by(before)
        else:
            before = kept.Snapshot(t, 100 * t, taken, **common)
        store.save(before)
    pictures = rng.integers(0, 255, (inputs, 32, 32, 3), dtype=np.uint8)
    store.save_card(kept.ProbeCard("made", pictures, tuple(f"class {c}" for c in range(10))))


def child(checkout: Path, words: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a Python process that imports ``lightning_ssc`` from a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], env=environment, check=True, stdout=subprocess.DEVNULL, cwd=checkout)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Make the stores, run the commands, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="DIR", help="an older checkout to compare with")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    sizes = {"snapshots": 100, "layers": 40, "inputs": 1000, "neighbours": 30}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"default: {size}")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make, args.snapshots, args.layers, args.inputs, args.neighbours)
        return
    checkouts = {"this": ROOT, **({} if args.against is None else {"older": args.against.resolve()})}
    print(f"{args.snapshots} snapshots x {args.layers} layers x {args.inputs} inputs, {args.neighbours} neighbours;")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; wall seconds (processor seconds)", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, checkout in checkouts.items():
            words = [f"--{size}={getattr(args, size)}" for size in sizes]
            child(checkout, [str(Path(__file__).resolve()), f"--make={scratch}/{name}/ssc", *words])
        for command in args.commands:
            found = {}
            for name, checkout in checkouts.items():
                words = [
                    word.format(run=f"{scratch}/{name}", out=f"{scratch}/{name}/out") for word in COMMANDS[command]
                ]
                found[name] = child(checkout, ["-m", "lightning_ssc", *words])
            columns = "  ".join(f"{name} {wall:7.1f} ({cpu:6.1f})" for name, (wall, cpu) in found.items())
            ratios = [old / new for old, new in zip(found["older"], found["this"], strict=True)] if args.against else []
            print(f"  {command:8} {columns}" + "".join(f"  {ratio:5.1f}x" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()
