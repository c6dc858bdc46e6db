"""The command ``lightning-ssc``: every command is a function, its options and its help are signature and docstring."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from lightning_ssc.progress import Progress
from lightning_ssc.settings import Settings
from lightning_ssc.version import __version__

OK, FAILED, USAGE = 0, 1, 2
_SECONDS_BETWEEN_LINES = 5.0
_DRAWING = ("matplotlib", "PIL", "plotly", "tensorboard", "werkzeug")  # what the extra "report" brings

_DESCRIPTION = "Read what SSCMonitor stored of a run: how the layers of a network formed, settled and relate."

_EPILOG = """\
A RUN is the folder of snapshots (ssc), the version folder of a Lightning logger that holds it, or any folder above
with the snapshots of exactly one run below it.

Exit status:
  0    done
  1    a run, a checkpoint or data cannot be used; the message says which and what to do
  2    the command line is wrong
  130  interrupted by Ctrl-C
"""


class _UsageError(Exception):
    """A mistake in the command line that only the command itself can see."""


# -- Commands. What is slow to import is imported in them, so that --help is answered at once.


def live(
    path: str,
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    browser: bool = True,
) -> None:
    """Show the runs below a folder in the browser, while they train and afterwards.

    The same page is the tab Subspaces of TensorBoard (tensorboard --logdir PATH). Only this machine is answered unless
    another --host is asked for.

      lightning-ssc live lightning_logs

    Args:
        path: The folder that holds the runs.
        port: The port; 0 takes a free one.
        host: The address to listen at.
        browser: Open the page where there is a screen.
    """
    from lightning_ssc.live.serve import serve

    serve(path, host, port, browser)


def report(
    run: str,
    *,
    out: Path | None = None,
    figures: bool = False,
    layer: str | None = None,
    reference: str | None = None,
) -> None:
    """Write one HTML page of a run.

    The page is that of 'lightning-ssc live' with its data in it; it opens from disk without a network. Of the inputs it
    holds a choice of moments.

      lightning-ssc report runs/version_0 --out report

    Args:
        run: The run's folder.
        out: Where to write; by default 'report' inside the snapshots' folder.
        figures: Write the figures, too, as PNG and SVG.
        layer: The layer from which single inputs are read; by default the last before the classifier.
        reference: A run on the same probe with whose last snapshot layers of the same name are compared.
    """
    from lightning_ssc import analysis
    from lightning_ssc.live import report as page

    path = page.report(run, out, layer=layer, reference=reference, figures=figures, progress=_progress("reading"))
    print(f"Page:    {path}")
    if figures:
        print(f"Figures: {path.parent / 'figures'}")
    table = page.single_inputs(analysis.find_store(run), layer)
    if table is not None:
        print(f"Table 1: {path.parent / 'table1.csv'}")
        for name, value in table.table1().items():
            print(f"  {name.replace('_', ' '):18}  {f'{value:.1%}' if isinstance(value, float) else value}")


def export(run: str, *, csv: Path, layer: str | None = None, reference: str | None = None) -> None:
    """Write every table of a run as a CSV file.

    The tables are dynamics, layers, heatmaps, similarity, blocks, embeddings, neighbours, jumps, run and, where the
    probe has labels, classes, inputs and table1 (of the paper).

      lightning-ssc export runs/version_0 --csv tables

    Args:
        run: The run's folder.
        csv: Where to write.
        layer: The layer from which single inputs are read; by default the last before the classifier.
        reference: A run on the same probe with whose last snapshot layers of the same name are compared.
    """
    from lightning_ssc import analysis
    from lightning_ssc.live.report import read_reference

    summary = analysis.summarise(
        analysis.find_store(run), layer=layer, reference=read_reference(reference), progress=_progress("reading")
    )
    for path in summary.to_csv(csv):
        print(path)


def compare(
    run_a: str,
    run_b: str,
    *,
    out: Path = Path("comparison"),
    epoch_a: int | None = None,
    epoch_b: int | None = None,
    step_a: int | None = None,
    step_b: int | None = None,
) -> None:
    """Compare two networks on the same probe.

    Draws the similarity of every layer of one network to every layer of another, and the curves of both, and says where
    two runs of one architecture part. Both runs must have used the same probe; the layers and the architectures may
    differ.

      lightning-ssc compare runs/resnet/version_0 runs/vgg/version_0 --out comparison

    Args:
        run_a: The first run, the rows of the heatmap.
        run_b: The second run, its columns.
        out: Where to write.
        epoch_a: Epoch of the snapshot of the first run; by default its last.
        epoch_b: Epoch of the snapshot of the second run; by default its last.
        step_a: Step of the snapshot of the first run, where it lies inside an epoch.
        step_b: Step of the snapshot of the second run.
    """
    from lightning_ssc import analysis
    from lightning_ssc.live.figures import write_comparison
    from lightning_ssc.live.names import run_names

    stores = analysis.find_store(run_a), analysis.find_store(run_b)
    epochs, steps = (epoch_a, epoch_b), (step_a, step_b)
    comparison = analysis.compare(*stores, epochs=epochs, steps=steps, progress=_progress("reading"))
    names = run_names((stores[0].root, stores[1].root), epochs, steps)
    for path in write_comparison(comparison, names, out, _progress("drawing")):
        print(path)
    print(f"\nThe layer of {names[1]} most like each layer of {names[0]}, with their SSC-CKA:")
    for row, column, value in comparison.closest():
        print(f"  {row}  {column}  {value:.2f}")
    parting = analysis.parting(comparison.one, comparison.other)
    print(
        "\nThe runs differ beyond noise at no moment and layer that both hold, in nothing that has a standard error."
        if parting is None
        else f"\nThe runs part at {parting} (with intervals of 95 %, {parting.deviations:.1f} standard errors apart)."
    )


def labels(run: str, *, csv: Path = Path("labels.csv"), count: int = 20, layers: Sequence[str] = ()) -> None:
    """List the inputs whose label is in doubt.

    They are those that their neighbours in the last layers, and a linear probe fitted to all other inputs, vote
    against, over the later half of the snapshots. What votes are the other inputs of the probe: give it some hundred a
    class.

      lightning-ssc labels runs/version_0 --csv labels.csv

    Args:
        run: The run's folder.
        csv: Where to write all inputs, the label most in doubt first.
        count: How many to print.
        layers: Layers that vote; by default the last one before the classifier and what follows.
    """
    from lightning_ssc import analysis

    store = analysis.find_store(run)
    card = store.load_card()  # before what takes long
    names = () if card is None else card.class_names
    found = analysis.doubts(store, layers or None, progress=_progress("reading"))
    csv.parent.mkdir(parents=True, exist_ok=True)
    found.to_csv(csv, names)
    listed = found.in_doubt()
    print(f"{len(listed)} of {len(found.labels)} labels are in doubt, by {', '.join(found.layers)}.")
    for i in listed[:count].tolist():
        given, suggested = (
            names[c] if 0 <= c < len(names) else str(c) for c in (int(found.labels[i]), int(found.suggestions[i]))
        )
        print(f"  {found.indices[i]:>6}  {given}, rather {suggested}  {found.doubt[i]:+.2f}  {found.against[i]:.0%}")
    print(f"All: {csv}")


def analyze(
    *,
    model: str,
    checkpoints: Path,
    data: str,
    out: Path,
    model_arg: dict[str, Any] | None = None,
    data_arg: dict[str, Any] | None = None,
    network: str | None = None,
    layers: Sequence[str] = ("blocks",),
    probe_size: int = 1000,
    device: str = "cpu",
    chunk: int = 256,
    memory: int | None = None,
    **settings: Any,
) -> None:
    r"""Take the snapshots of a finished run from its checkpoints.

    They are what SSCMonitor would have stored, for runs trained without it. Checkpoints are read without executing
    anything in them; --model and --data are imported as Python imports any module, from the current folder too.

      lightning-ssc analyze --model train:Classifier --checkpoints runs/version_0 \
          --data train:CIFAR10Data --data-arg root=data --layers conv --out runs/version_0/ssc

    Networks run in float32. Checkpoints from the middle of an epoch are left out, epochs that are in --out already are
    passed over.

    Args:
        model: MODULE:NAME of a LightningModule class (it also gets the hyperparameters in the checkpoint), or of a
            function or class that makes the network.
        checkpoints: Folder of .ckpt files, or of state dicts (.pt, .pth) whose names end in the number of finished
            epochs; or the version folder of a run that has such a folder.
        data: MODULE:NAME of where the probe comes from: a LightningDataModule (its probe_dataloader(), else its
            validation data), a Dataset, a DataLoader, (inputs, labels), or a class or function that makes one of these.
        out: Folder for the snapshots.
        model_arg: KEY=VALUE, an argument of --model, its value read as YAML; may be repeated.
        data_arg: KEY=VALUE, an argument of --data, its value read as YAML; may be repeated.
        network: Which network of checkpoints that hold several (an average beside the trained one): what stands before
            the names of its weights, such as ema.
        layers: conv, blocks, stages, or names, globs and types of modules.
        probe_size: Inputs in the probe.
        device: Where the networks run.
        chunk: Inputs a forward pass.
        memory: Bytes that activations and Gram matrices may take; by default half of what the device has free.
        settings: How activations become graphs.
    """
    import torch

    from lightning_ssc import replay
    from lightning_ssc.snapshots import SnapshotStore

    try:
        factory, source = replay.import_object(model), replay.import_object(data)
    except ValueError as error:
        raise _UsageError(error) from None
    model_arguments, data_arguments = model_arg or {}, data_arg or {}
    _check_arguments("model", model, factory, model_arguments)
    try:
        on = torch.device(device)
        torch.zeros(1, device=on).tolist()
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch was built without the device
        raise _UsageError(f"--device {device} cannot be used: {str(error).partition(chr(10))[0]}") from None
    if callable(source):
        _check_arguments("data", data, source, data_arguments)
        source = source(**data_arguments)
    elif data_arguments:
        raise _UsageError(f"--data {data} is no class or function, so it takes no --data-arg.")
    graphs = Settings(**settings)
    store = SnapshotStore(out)
    replay.analyze(
        factory,
        replay.find_checkpoints(checkpoints, _progress("checkpoints")),
        source,
        store,
        layers=layers[0] if len(layers) == 1 else layers,
        probe_size=probe_size,
        settings=graphs,
        model_arguments=model_arguments,
        network=network,
        device=on,
        chunk=chunk,
        memory=memory,
        progress=_progress("epochs"),
    )
    print(f"Snapshots of epochs {', '.join(str(epoch) for epoch in store.epochs)}: {store.root}")


def layers(
    model: str,
    *,
    input: str,  # the name of the option
    model_arg: dict[str, Any] | None = None,
) -> None:
    """Show a network's layers, and which of them each preset would watch.

    Prints the tree of modules with their features a sample and, where one cannot be watched, the reason. The network
    runs on random numbers; where these will not do as its inputs (tokens, several tensors), call
    lightning_ssc.show_layers(model, inputs).

      lightning-ssc layers torchvision.models:resnet18 --input 3x224x224 --model-arg num_classes=10

    Args:
        model: MODULE:NAME of a network, or of a function or class that makes one.
        input: Shape of one input, such as 3x224x224.
        model_arg: KEY=VALUE, an argument of the function or class, its value read as YAML; may be repeated.
    """
    import torch

    from lightning_ssc import replay
    from lightning_ssc.capture import show_layers

    try:
        shape = [int(size) for size in input.split("x")]
    except ValueError:
        raise _UsageError(f"--input {input} is no shape; write it as 3x224x224 or 128.") from None
    try:
        found = replay.import_object(model)
    except ValueError as error:
        raise _UsageError(error) from None
    if not isinstance(found, torch.nn.Module):
        _check_arguments("model", model, found, model_arg or {})
        found = replay.new_model(found, model_arg or {})
    try:
        show_layers(found, torch.rand(7, *shape))
    except (RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"{model} does not run on inputs of shape {input} ({type(error).__name__}: {error}). Give --input the "
            f"shape of one sample, or call lightning_ssc.show_layers(model, inputs) with inputs that it takes."
        ) from error


COMMANDS = {command.__name__: command for command in (live, report, analyze, compare, labels, export, layers)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        SystemExit: 0
    """
    sys.path.insert(0, os.getcwd())  # as python -m does, so that a script beside the runs can be named
    given = _parser().parse_args(_dotted(sys.argv[1:] if arguments is None else arguments))
    options = given[given.command].as_dict()
    del options["config"]
    from lightning_ssc.snapshots import SnapshotError  # late, so that --help is answered at once

    try:
        COMMANDS[given.command](**options)
    except _UsageError as error:
        print(f"lightning-ssc {given.command}: error: {error}", file=sys.stderr)
        return USAGE
    except (SnapshotError, ValueError, ImportError, OSError) as error:
        print(f"lightning-ssc {given.command}: {error}{_remedy(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return OK


def _remedy(error: Exception) -> str:
    """What to install where a module that draws is missing."""
    missing = isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in _DRAWING
    return ". All that draws comes with: pip install 'lightning-ssc[report]'" if missing else ""


def _check_arguments(option: str, path: str, factory: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse a factory that cannot be called, and names that it has no argument for."""
    if not callable(factory):
        raise _UsageError(f"--{option} {path} is {type(factory).__name__}, no class or function.")
    accepted = inspect.signature(factory).parameters.values()
    names = [parameter.name for parameter in accepted]
    unknown = [key for key in arguments if key not in names]
    if unknown and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in accepted):
        raise _UsageError(
            f"--{option} {path} has no argument {unknown[0]!r} for --{option}-arg, only {', '.join(names) or 'none'}."
        )


def _progress(what: str) -> Progress:
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


# -- From functions to a command line


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help as docstrings have it, with defaults."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").replace("``", "").removesuffix(".")
        if action.required and action.option_strings:
            return f"{text} (required)"
        if action.default is None or action.default is False or action.default == argparse.SUPPRESS:
            return text
        return f"{text} (default: {' '.join(action.default) if isinstance(action.default, list) else action.default})"


class _Parser(ArgumentParser):
    """Options as command lines have them: ``--probe-size N``, ``--figures``, ``--layers A B``, ``-o`` for ``--out``."""

    def add_argument(self, *names: str, **options: Any) -> Any:
        """Add an argument that jsonargparse has found in a signature."""
        if options.get("type") is bool:
            del options["type"]
            options["action"] = ActionYesNo(no_prefix="no-")
        elif names[-1].endswith("+"):  # a sequence, to which --layers+ would append
            names, options = names[:1], {**options, "action": "store", "type": str, "nargs": "+"}
            if "default" in options:
                options["default"] = list(options["default"])  # jsonargparse writes into it
        short = ["-o"] if "--out" in names else []
        return super().add_argument(
            *short, *(name.replace("_", "-") if name.startswith("--") else name for name in names), **options
        )


def _parser() -> ArgumentParser:
    parser = _Parser(
        "lightning-ssc",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        version=__version__,
        formatter_class=_Help,
        allow_abbrev=True,
    )
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        description = (inspect.getdoc(command) or "").partition("\n\nArgs:")[0]
        sub = _Parser(description=description, epilog=_EPILOG, print_config=None)
        sub.add_argument("--config", action="config", help="YAML file of options.")
        sub.add_function_arguments(command, as_group=False, as_positional=True)
        commands.add_subcommand(name, sub, help=description.partition("\n")[0])
    return parser


def _dotted(arguments: Sequence[str]) -> list[str]:
    """``--model-arg KEY=VALUE`` as jsonargparse writes one entry of a dict, ``--model-arg.KEY=VALUE``.

    Example:
        >>> _dotted(["analyze", "--model-arg", "depth=14", "--data-arg=root=data", "--layers", "conv"])
        ['analyze', '--model-arg.depth=14', '--data-arg.root=data', '--layers', 'conv']
    """
    line = "\0".join(["", *arguments])
    return re.sub(r"\0(--\w+-arg)[\0=](?=\w+=)", r"\0\1.", line).split("\0")[1:]
