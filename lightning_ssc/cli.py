"""The command ``lightning-ssc``: report, analyze, compare, export."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_ssc.version import __version__

OK, FAILED, USAGE = 0, 1, 2
_SECONDS_BETWEEN_LINES = 5.0

_DESCRIPTION = """\
Read what SSCMonitor stored of a run: how the layers of a network formed, settled and relate.

  lightning-ssc report runs/version_0                 one HTML page, and figures as PNG and SVG
  lightning-ssc export runs/version_0 --csv tables    every table as a CSV file
  lightning-ssc compare runs/resnet runs/vgg          two networks on the same probe
  lightning-ssc analyze --model net:Net --checkpoints runs/version_0/checkpoints \\
                        --data net:data --out runs/version_0/ssc
                                                      snapshots of a run trained without SSCMonitor
"""

_EPILOG = """\
A RUN is the folder of snapshots (ssc), the version folder of a Lightning logger that holds it, or any folder above
with the snapshots of exactly one run below it.

Exit status:
  0    done
  1    a run, a checkpoint or data cannot be used; the message says which and what to do
  2    the command line is wrong
  130  interrupted by Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        SystemExit: 0
    """
    options = _parser().parse_args(arguments)
    from lightning_ssc.snapshots import SnapshotError  # late, so that --help is answered at once

    try:
        options.run_command(options)
    except _UsageError as error:
        print(f"lightning-ssc {options.command}: error: {error}", file=sys.stderr)
        return USAGE
    except (SnapshotError, ValueError, ImportError, OSError) as error:
        print(f"lightning-ssc {options.command}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return OK


class _UsageError(Exception):
    """A mistake in the command line that argparse cannot see."""


def _report(options: argparse.Namespace) -> None:
    from lightning_ssc.live.report import read_run, write_report

    summary = read_run(options.run, options.layer, options.reference, _progress("reading"))
    path = write_report(summary, options.out, _progress("drawing"))
    print(f"Page:    {path}\nFigures: {path.parent / 'figures'}")
    if summary.inputs is not None:
        print(f"Table 1: {path.parent / 'table1.csv'}")
        for name, value in summary.inputs.table1().items():
            print(f"  {name.replace('_', ' '):18}  {f'{value:.1%}' if isinstance(value, float) else value}")


def _export(options: argparse.Namespace) -> None:
    from lightning_ssc.live.report import read_run

    summary = read_run(options.run, options.layer, options.reference, _progress("reading"))
    for path in summary.to_csv(options.csv):
        print(path)


def _compare(options: argparse.Namespace) -> None:
    from lightning_ssc.analysis import compare, find_store
    from lightning_ssc.live.report import run_names, write_comparison

    stores = find_store(options.run_a), find_store(options.run_b)
    epochs = options.epoch_a, options.epoch_b
    comparison = compare(*stores, epochs=epochs, progress=_progress("reading"))
    names = run_names((stores[0].root, stores[1].root), epochs)
    for path in write_comparison(comparison, names, Path(options.out), _progress("drawing")):
        print(path)
    print(f"\nThe layer of {names[1]} most like each layer of {names[0]}, with their SSC-CKA:")
    for row, column, value in comparison.closest():
        print(f"  {row}  {column}  {value:.2f}")


def _analyze(options: argparse.Namespace) -> None:
    import torch

    from lightning_ssc.replay import analyze, find_checkpoints, import_object
    from lightning_ssc.snapshots import Settings, SnapshotStore

    sys.path.insert(0, os.getcwd())  # as python -m does, so that a script beside the runs can be named
    try:
        factory, data = import_object(options.model), import_object(options.data)
    except ValueError as error:
        raise _UsageError(error) from None
    _check_arguments("model", options.model, factory, options.model_arg)
    try:
        device = torch.device(options.device)
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch was built without the device
        raise _UsageError(f"--device {options.device} cannot be used: {str(error).partition(chr(10))[0]}") from None
    if callable(data):
        _check_arguments("data", options.data, data, options.data_arg)
        data = data(**dict(options.data_arg))
    elif options.data_arg:
        raise _UsageError(f"--data {options.data} is no class or function, so it takes no --data-arg.")
    settings = Settings(
        tau=options.tau,
        normalize=not options.raw,
        solver=options.solver,
        tol=options.tol,
        preset=options.preset,
        pooling=options.pooling,
        linear_cka=not options.no_linear_cka,
    )
    checkpoints = find_checkpoints(options.checkpoints, _progress("checkpoints"))
    store = SnapshotStore(options.out)
    analyze(
        factory,
        checkpoints,
        data,
        store,
        layers=options.layers[0] if len(options.layers) == 1 else options.layers,
        probe_size=options.probe_size,
        settings=settings,
        model_arguments=dict(options.model_arg),
        device=device,
        chunk=options.chunk,
        memory=options.memory,
        progress=_progress("epochs"),
    )
    print(f"Snapshots of epochs {', '.join(str(epoch) for epoch in store.epochs)}: {store.root}")


def _check_arguments(option: str, path: str, factory: Any, arguments: Sequence[tuple[str, Any]]) -> None:
    """Refuse a factory that cannot be called, and names that it has no argument for."""
    if not callable(factory):
        raise _UsageError(f"--{option} {path} is {type(factory).__name__}, no class or function.")
    accepted = inspect.signature(factory).parameters.values()
    names = [parameter.name for parameter in accepted]
    unknown = [key for key, _ in arguments if key not in names]
    if unknown and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in accepted):
        raise _UsageError(
            f"--{option} {path} has no argument {unknown[0]!r} for --{option}-arg, only {', '.join(names) or 'none'}."
        )


def _progress(what: str) -> Any:
    """A progress bar on a terminal, elsewhere a line every few seconds; both on standard error."""

    def wrap(items: Sequence[Any]) -> Iterable[Any]:
        from tqdm import tqdm

        return iter(tqdm(items, desc=what, leave=False)) if sys.stderr.isatty() else _lines(items, what)

    return wrap


def _lines(items: Sequence[Any], what: str) -> Iterable[Any]:
    said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
            print(f"{what}: {done} of {len(items)}", file=sys.stderr, flush=True)
            said = time.monotonic()
        yield item


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-ssc", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"lightning-ssc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, summary: str, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run_command=run)
        return sub

    sub = command(
        "report",
        _report,
        "write one HTML page of a run, and its figures",
        "Write one self-contained HTML page of a run, index.html, and its figures as PNG and SVG.\n\n"
        "The page opens from disk without a network: curves by layer, heatmaps by epoch, spectral embeddings, the\n"
        "confidently wrong inputs with their neighbours, and the settings of the run.\n\n"
        "  lightning-ssc report runs/version_0 --out report",
    )
    sub.add_argument("run", metavar="RUN", help="the run's folder")
    sub.add_argument(
        "-o", "--out", metavar="DIR", help="where to write (default: 'report' inside the snapshots' folder)"
    )
    _add_layer(sub)
    _add_reference(sub)

    sub = command(
        "analyze",
        _analyze,
        "take the snapshots of a finished run from its checkpoints",
        "Take the snapshots of a finished run from its checkpoints: what SSCMonitor would have stored, for runs\n"
        "trained without it. Checkpoints are read without executing anything in them; --model and --data are\n"
        "imported as Python imports any module, from the current folder too.\n\n"
        "  lightning-ssc analyze --model train:Classifier --checkpoints runs/version_0 \\\n"
        "      --data train:CIFAR10Data --data-arg root=data --layers conv --out runs/version_0/ssc\n\n"
        "Networks run in float32. Checkpoints from the middle of an epoch are left out, epochs that DIR already holds\n"
        "are passed over.",
    )
    required = sub.add_argument_group("what to read (required)")
    required.add_argument(
        "--model", required=True, metavar="MODULE:NAME",
        help="a LightningModule class (it also gets the hyperparameters in the checkpoint), or a function or class "
        "that makes the network",
    )  # fmt: skip
    required.add_argument(
        "--checkpoints", required=True, metavar="DIR",
        help="folder of .ckpt files, or of state dicts (.pt, .pth) whose names end in the number of finished epochs; "
        "or the version folder of a run that has such a folder",
    )  # fmt: skip
    required.add_argument(
        "--data", required=True, metavar="MODULE:NAME",
        help="where the probe comes from: a LightningDataModule (its probe_dataloader(), else its validation data), a "
        "Dataset, a DataLoader, (inputs, labels), or a class or function that makes one of these",
    )  # fmt: skip
    required.add_argument("--out", required=True, metavar="DIR", help="folder for the snapshots")
    for name, what in (("model", "--model"), ("data", "--data")):
        sub.add_argument(
            f"--{name}-arg", action="append", default=[], type=_key_value, metavar="KEY=VALUE",
            help=f"an argument of {what}, may be repeated; the value is read as JSON, else as text",
        )  # fmt: skip
    sub.add_argument(
        "--layers", nargs="+", default=["blocks"], metavar="PATTERN",
        help="conv, blocks, stages, or names, globs and types of modules (default: blocks)",
    )  # fmt: skip
    sub.add_argument("--probe-size", type=int, default=1000, metavar="N", help="inputs in the probe (default: 1000)")
    sub.add_argument("--tau", type=float, default=10.0, help="weight of the fit (default: 10)")
    sub.add_argument("--raw", action="store_true", help="do not scale samples to unit length")
    sub.add_argument(
        "--solver", choices=("active_set", "admm"), default="active_set",
        help="active_set, exact, or admm, the paper's Algorithm 1 (default: active_set)",
    )  # fmt: skip
    sub.add_argument("--tol", type=float, default=1e-5, help="relative duality gap asked for (default: 1e-5)")
    sub.add_argument("--preset", choices=("paper",), help="the published setting, whatever the other options say")
    sub.add_argument(
        "--pooling", choices=("flatten", "mean", "cls"), default="flatten",
        help="keep every activation, average over space or tokens, or take the class token (default: flatten)",
    )  # fmt: skip
    sub.add_argument("--no-linear-cka", action="store_true", help="do not keep what linear CKA needs")
    sub.add_argument("--device", default="cpu", help="where the networks run (default: cpu)")
    sub.add_argument("--chunk", type=int, default=256, metavar="N", help="inputs a forward pass (default: 256)")
    sub.add_argument(
        "--memory", type=int, metavar="BYTES",
        help="what activations and Gram matrices may take (default: half of what the device has free)",
    )  # fmt: skip

    sub = command(
        "compare",
        _compare,
        "compare two networks on the same probe",
        "Draw the similarity of every layer of one network to every layer of another, and the curves of both. Both\n"
        "runs must have used the same probe; the layers and the architectures may differ.\n\n"
        "  lightning-ssc compare runs/resnet/version_0 runs/vgg/version_0 --out comparison",
    )
    sub.add_argument("run_a", metavar="RUN_A", help="the first run, the rows of the heatmap")
    sub.add_argument("run_b", metavar="RUN_B", help="the second run, its columns")
    sub.add_argument("-o", "--out", metavar="DIR", default="comparison", help="where to write (default: comparison)")
    for which in "ab":
        sub.add_argument(
            f"--epoch-{which}", type=int, metavar="EPOCH", help=f"snapshot of RUN_{which.upper()} (default: last)"
        )

    sub = command(
        "export",
        _export,
        "write every table of a run as a CSV file",
        "Write every table of a run as a CSV file: dynamics, layers, heatmaps, similarity, blocks, embeddings,\n"
        "neighbours, jumps, run and, where the probe has labels, inputs and table1 (of the paper).\n\n"
        "  lightning-ssc export runs/version_0 --csv tables",
    )
    sub.add_argument("run", metavar="RUN", help="the run's folder")
    sub.add_argument("--csv", required=True, metavar="DIR", help="where to write")
    _add_layer(sub)
    _add_reference(sub)
    return parser


def _add_layer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="the layer from which single inputs are read (default: the last before the classifier)",
    )


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference",
        metavar="RUN",
        help="a run on the same probe with whose last snapshot layers of the same name are compared",
    )


def _key_value(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` with the value as JSON where it is that, else as text.

    Example:
        >>> _key_value("depth=14"), _key_value("root=data")
        (('depth', 14), ('root', 'data'))
    """
    key, separator, value = text.partition("=")
    if not separator or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
