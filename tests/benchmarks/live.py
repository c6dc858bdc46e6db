"""What the page costs: ``python tests/benchmarks/live.py`` prints seconds in Chromium and the server's memory.

A store of synthetic graphs is made first, with a value of everything that is measured (``--store DIR`` keeps it, and
takes one that is there); ``--distinct`` of its snapshots differ and are repeated. Then ``lightning-ssc live`` serves it
in a process of its own, and headless Chromium uses the page; a time ends when what was asked for is drawn, and of
several of a kind the longest counts. Of logging, the seconds are those of one snapshot's scalars and pictures into
TensorBoard's files, in the thread that trains: in the foreground all of it, with ``background=True`` what is left.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import psutil
import readers
import torch

from lightning_ssc import measures, writers
from lightning_ssc.analysis import Dynamics, stored
from lightning_ssc.background import Background
from lightning_ssc.snapshots import LayerGraph, Moment, Snapshot, SnapshotHeader, SnapshotStore, codec
from tests.browser import chromium

ROOT = Path(__file__).resolve().parents[2]
RUNS = 10  # in one folder, for the list
FIRST = "first curves, of a server just started"
HEATMAP = "heatmap at another position of the slider"
EMBEDDING = "embedding of another layer"
INPUT = "another input through all layers"
GROWN = "one more snapshot, from its reading on"
NOTICED = "one more snapshot, from its file on"
LIST = "list of ten runs, of a server just started"
MEMORY = "memory of the server, GB"
TARGETS = {FIRST: 2.0, HEATMAP: 0.3, EMBEDDING: 1.0, INPUT: 1.0, GROWN: 1.0, NOTICED: 5.0, LIST: 1.0, MEMORY: 1.0}


def make(root: Path, args: argparse.Namespace) -> None:
    """Write the runs: the first one, and nine that are links to its files."""
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        readers.make(Path(scratch), args.distinct, args.layers, args.inputs, args.neighbours)
        seed, store = SnapshotStore(scratch), SnapshotStore(folder(root, 0))
        rng = np.random.default_rng(0)
        every = -(-args.snapshots // args.distinct)
        for t in range(args.snapshots):
            if t % every == 0:
                taken = replace(filled(seed.load(step=seed.steps[t // every]), rng), moment=Moment(100 * t, t))
                store.save(taken)
            else:
                repeat(store, taken, Moment(100 * t, t))
        card = seed.load_card()
        assert card is not None
        store.save_card(card)
    for number in range(1, RUNS):
        folder(root, number).mkdir(parents=True)
        for path in folder(root, 0).iterdir():
            os.link(path, folder(root, number) / path.name)


def repeat(store: SnapshotStore, taken: Snapshot, moment: Moment) -> None:
    """Store a snapshot once more as that of another moment: of two headers in a file the last one counts."""
    path = store.root / f"step_{moment.step:09d}.npz"
    shutil.copyfile(store.path(taken.step), path)
    header = codec.encode(replace(taken, moment=moment))["header"]
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with archive.open("header.npy", "w") as entry:
            np.lib.format.write_array(entry, header)


def folder(root: Path, number: int) -> Path:
    return root / f"version_{number}" / "ssc"


def filled(taken: Snapshot, rng: np.random.Generator) -> Snapshot:
    """A snapshot with a value of all that a run keeps: synthetic graphs have no activations to measure."""
    kept = [record for record in measures.CURVES if record.over not in ("final", "reference")]

    def fill(layer: LayerGraph) -> LayerGraph:
        names = [name for record in kept for name in ([record.name, record.spread_name][: 1 + record.spread])]
        made = {name: float(rng.random()) for name in names}
        columns = {record.name: torch.from_numpy(rng.integers(0, 10, len(layer.gap))) for record in measures.INPUTS}
        return replace(layer, values={**made, **layer.values}, of_inputs={**columns, **layer.of_inputs})

    return replace(taken, layers={name: fill(layer) for name, layer in taken.layers.items()})


@contextmanager
def served(root: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server of its own; its address and process."""
    words = [sys.executable, "-m", "lightning_ssc", "live", str(root), "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address is not None
            yield address[0], psutil.Process(process.pid)
        finally:
            process.terminate()


def page(root: Path, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Seconds until what is asked of the page is drawn, and the server's memory, in gigabytes."""
    store = SnapshotStore(folder(root, 0))
    last = store.steps[-1]
    newest = replace(store.load(step=last), moment=Moment(100 * args.snapshots, args.snapshots), previous=last)
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.set_script_timeout(250)

        def until(holds: str, act: str = "", since: str = "performance.now()") -> float:
            """Seconds in the page from what is done there until something holds."""
            script = (
                f"const $ = (selector) => document.querySelector(selector); {act}; const since = {since};"
                f"const look = () => {{ if ({holds}) arguments[0]((performance.now() - since) / 1000);"
                f"else requestAnimationFrame(look); }}; look();"
            )
            found: float = browser.execute_async_script(script)
            return found

        def put(selector: str, value: object, event: str, attribute: str = "value") -> str:
            return f"const box = $('{selector}'); box.{attribute} = {value}; box.dispatchEvent(new Event('{event}'))"

        def spread(count: int) -> list[int]:
            return [int(i) for i in np.linspace(1, count - 3, 7)]

        with served(root) as (address, process):
            browser.get(address)
            yield FIRST, until("$('#panel-0 .js-line')", since="0")

            until("$('#heatmap-one')?.data", "$('#tab-1').click()")
            before, moved = "const z = $('#heatmap-one').data[0].z", "$('#heatmap-one').data[0].z !== z"
            slide = "#panel-1 input[type=range]"
            yield HEATMAP, max(until(moved, f"{before}; {put(slide, t, 'input')}") for t in spread(args.snapshots))

            until("$('#embedding')?.data && $('#path')?.data", "$('#tab-2').click()")
            before, moved = "const x = $('#embedding').data[0].x", "$('#embedding').data[0].x !== x"
            choose = [put("#panel-2 select", i, "change", "selectedIndex") for i in spread(args.layers)]
            yield EMBEDDING, max(until(moved, f"{before}; {change}") for change in choose)
            before, moved = "const y = $('#path').data[0].y", "$('#path').data[0].y !== y"
            choose = [put("#panel-2 .chosen input", i, "change") for i in spread(args.inputs)]
            yield INPUT, max(until(moved, f"{before}; {change}") for change in choose)

            until("!document.body.textContent.includes('are being compared')", "$('#tab-0').click()")
            yield MEMORY, process.memory_info().rss / 1e9
            store.save(newest)
            written = time.time()
            until(f"$('#panel-0 .plot').data[0].x.length > {args.snapshots}")
            yield NOTICED, time.time() - written
            drawn = browser.execute_script("return performance.now()")
            asked = "performance.getEntriesByType('resource').findLast((e) => e.name.includes('/run?')).startTime"
            yield GROWN, (drawn - browser.execute_script(f"return {asked}")) / 1000
            store.path(newest.step).unlink()
        with served(root) as (address, _):
            browser.get(address)
            until(f"document.querySelectorAll('.picker .menu input').length === {RUNS}")
            asked = "performance.getEntriesByType('resource').find((e) => e.name.includes('/runs')).duration"
            yield LIST, browser.execute_script(f"return {asked}") / 1000


def logging(root: Path, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Seconds of logging one snapshot, with scalars, heatmaps and curves, into TensorBoard's files."""
    from pytorch_lightning.loggers import TensorBoardLogger

    store = SnapshotStore(folder(root, 0))
    headers = [header for header in store.headers() if isinstance(header, SnapshotHeader)]
    whole = store.load(step=store.steps[-1])
    for count in sorted({min(20, args.layers), args.layers}):
        names = list(whole.layers)[:count]
        taken = replace(
            whole,
            layers={name: whole.layers[name] for name in names},
            pairs={name: table[:count, :count] for name, table in whole.pairs.items()},
        )
        table = stored([replace(header, layers=names) for header in headers])
        for where, worker in (("in the foreground", None), ("with background=True", Background(0))):
            with tempfile.TemporaryDirectory() as logs:
                loggers = [TensorBoardLogger(logs)]
                seconds = [log_once(loggers, taken, table, worker) for _ in range(5)]
            yield f"{count} layers, {where}", float(np.median(seconds))
            if worker is not None:
                worker.close()


def log_once(loggers: list[Any], taken: Snapshot, table: Dynamics, worker: Background | None) -> float:
    """Seconds that the thread which trains is held up."""
    begun = time.perf_counter()
    elsewhere = None if worker is None else worker.do
    drawing = writers.log_snapshot(
        loggers, taken, writers.scalars_of(taken), writers.Images(), curves=lambda: table, elsewhere=elsewhere
    )
    writers.flush(loggers)
    held = time.perf_counter() - begun
    if drawing is None:
        return held
    pictures = drawing.result()
    begun = time.perf_counter()
    writers.log_images(loggers, pictures, taken.step)
    writers.flush(loggers)
    return held + time.perf_counter() - begun


def main() -> None:
    """Make the runs, use the page, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="folder for the runs, which is kept; by default one for now")
    sizes = {"snapshots": 100, "layers": 104, "inputs": 1000, "neighbours": 30, "distinct": 5}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"default: {size}")
    tables = {"page": page, "logging": logging}
    parser.add_argument("--only", nargs="+", choices=list(tables), default=list(tables))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = args.store or Path(scratch)
        if not folder(root, RUNS - 1).is_dir():
            make(root, args)
        print(
            f"{args.layers} layers x {args.snapshots} snapshots x {args.inputs} inputs, {args.neighbours} neighbours;"
        )
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; seconds (target)", flush=True)
        for name in args.only:
            for what, found in tables[name](root, args):
                target = f" ({TARGETS[what]})" if what in TARGETS else ""
                print(f"  {what:50} {found:6.2f}{target}", flush=True)


if __name__ == "__main__":
    main()
