"""Snapshots of a finished run, taken from its checkpoints.

Checkpoints are read without executing anything (``torch.load(weights_only=True)``). The network and the data come from
import paths that the user names, and are run as any import is.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_ssc.capture import (
    Forward,
    LayerPattern,
    NotRunError,
    Probe,
    Runner,
    WatchedLayer,
    class_names,
    first_loader,
    isolated_random_state,
    make_probe,
    rows,
    trace,
)
from lightning_ssc.pipeline import Past, begin_snapshot, compared, probe_card
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import Moment, Settings, SnapshotStore, differences, own_folder
from lightning_ssc.weights import CheckpointError, load_weights, network_of, read_checkpoint

_SUFFIXES = (".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was taken between two epochs.

    Attributes:
        path: The file.
        moment: When it was taken, as the callback has it.
        learning_rate: That of the first optimizer's first group, or ``None`` where it is not known.
        scheduled: Whether it is the one that a scheduler has already set for the next epoch.
    """

    path: Path
    moment: Moment
    learning_rate: float | None = None
    scheduled: bool = False


def import_object(path: str) -> Any:
    """What an import path such as ``package.module:Name`` leads to.

    Raises:
        ValueError: There is no such module or name.

    Example:
        >>> import_object("torch.nn:Linear")
        <class 'torch.nn.modules.linear.Linear'>
    """
    module_name, _, names = path.partition(":")
    if not names:
        raise ValueError(f"{path!r} is not of the form package.module:Name.")
    try:
        found: Any = import_module(module_name)
        for name in names.split("."):
            found = getattr(found, name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # an import inside the module is missing
        raise ValueError(
            f"There is no module {error.name!r} (for {path!r}); it must be importable from here."
        ) from None
    except AttributeError as error:
        raise ValueError(f"{path!r} leads nowhere: {error}.") from None
    return found


def find_checkpoints(folder: str | Path, progress: Progress = iter) -> list[Checkpoint]:
    """A run's checkpoints that were taken between two epochs, one an epoch, ascending.

    Of a Lightning checkpoint the epoch is in the file. Of any other file, which must hold a state dict, it is the last
    number in the name. Checkpoints from the middle of an epoch are left out; of several of one epoch the last by name
    is taken. Their learning rates are those of the finished epochs; where a scheduler had already moved on, that is
    what the checkpoint of the epoch before holds.

    Args:
        folder: Where they lie, or a version folder of Lightning's with them in ``checkpoints``.
        progress: Wrapped around the files, all of which are read, such as ``tqdm.tqdm``.

    Raises:
        CheckpointError: The folder holds no checkpoints, or one cannot be read.
    """
    root = Path(folder)
    paths = sorted(p for place in (root, root / "checkpoints") for p in place.glob("*") if p.suffix in _SUFFIXES)
    if not paths:
        raise CheckpointError(
            f"There are no checkpoints ({', '.join('*' + s for s in _SUFFIXES)}) in {root} or {root / 'checkpoints'}."
        )
    found = [progress_of(read_checkpoint(path), path) for path in progress(paths)]
    by_epoch = {int(checkpoint.moment.epoch): checkpoint for checkpoint in found if checkpoint is not None}
    if not by_epoch:
        raise CheckpointError(f"All {len(paths)} checkpoints in {root} are from the middle of an epoch.")
    rates = {epoch + checkpoint.scheduled: checkpoint.learning_rate for epoch, checkpoint in by_epoch.items()}
    return [replace(by_epoch[epoch], learning_rate=rates.get(epoch), scheduled=False) for epoch in sorted(by_epoch)]


def progress_of(content: Mapping[str, Any], path: Path) -> Checkpoint | None:
    """Where in training a checkpoint was taken; ``None`` for the middle of an epoch.

    Raises:
        CheckpointError: It does not say so, or not as Lightning does.

    Example:
        >>> progress_of({"weight": torch.zeros(1)}, Path("net-12.pt"))
        Checkpoint(path=PosixPath('net-12.pt'), moment=Moment(step=12, epoch=12, trigger='checkpoint', logged=12), \
learning_rate=None, scheduled=False)
    """
    if "state_dict" not in content or "epoch" not in content:
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise CheckpointError(f"{path} does not say its epoch; put the number of finished epochs in its name.")
        return Checkpoint(path, Moment(int(numbers[-1]), int(numbers[-1]), "checkpoint"))
    try:
        return _progress_in_lightning(content, path)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not say how far training was as checkpoints of Lightning do "
            f"({type(error).__name__}: {error})."
        ) from error


def _progress_in_lightning(content: Mapping[str, Any], path: Path) -> Checkpoint | None:
    groups = [group for state in content.get("optimizer_states", ()) for group in state["param_groups"]]
    rate = float(groups[0]["lr"]) if groups else None
    # Schedulers move on after an epoch's last batch, but for those that wait for the metrics of the whole epoch.
    scheduled = any("num_bad_epochs" not in state for state in content.get("lr_schedulers", ()))
    loops = content.get("loops", {}).get("fit_loop")
    if loops is None:  # saved at the end of an epoch, whose number from 0 it holds
        begun, steps = int(content["epoch"]) + 1, int(content.get("global_step", 0))
        return Checkpoint(path, Moment(steps, begun, "checkpoint", max(0, steps - 1)), rate, scheduled)
    batches = loops["epoch_loop.batch_progress"]
    begun = int(loops["epoch_progress"]["current"]["ready"])
    if begun and not batches["is_last_batch"]:
        return None
    steps = int(loops["epoch_loop.state_dict"]["_batches_that_stepped"])
    return Checkpoint(path, Moment(steps, begun, "checkpoint", max(0, steps - 1)), rate, scheduled)


def new_model(factory: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """A network as it is made.

    Raises:
        CheckpointError: The factory lacks arguments, or makes no network.
    """
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise CheckpointError(f"--model cannot be called: {error}. Give its arguments with --model-arg.") from None
    model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"--model made {type(model).__name__}, not a network (torch.nn.Module).")
    if callable(configure := getattr(model, "configure_model", None)):
        configure()  # where Lightning lets a network make its layers
    return model


def build_model(
    factory: Callable[..., nn.Module],
    content: Mapping[str, Any],
    arguments: Mapping[str, Any],
    network: str | None = None,
) -> nn.Module:
    """The network of a checkpoint, with its weights.

    Args:
        factory: A LightningModule class, which also gets the hyperparameters in the checkpoint that it has arguments
            for, or any function or class that makes the network.
        content: The checkpoint.
        arguments: Arguments of the factory; they go before what the checkpoint holds.
        network: Which network of a checkpoint that holds several: what stands before the names of its weights.

    Raises:
        CheckpointError: The network lacks arguments, or the weights do not fit it.
    """
    accepted = inspect.signature(factory).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    saved = content.get("hyper_parameters", {}) if isinstance(factory, type) else {}
    given = {k: v for k, v in saved.items() if anything or k in accepted} | dict(arguments)
    model = new_model(factory, given)
    weights = content.get("state_dict", content)
    try:
        load_weights(model, weights if network is None else network_of(weights, network))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} --model is to be the class that was trained, with its arguments by --model-arg."
        ) from error
    return model


def probe_source(data: Any) -> tuple[Any, tuple[Any, ...]]:
    """What the callback would have taken its probe from, and the objects that may know the names of the classes.

    Args:
        data: A LightningDataModule (its ``probe_dataloader()``, else its validation data), or what
            :func:`lightning_ssc.capture.probe.make_probe` takes.
    """
    if not hasattr(data, "val_dataloader"):
        return data, (data, getattr(data, "dataset", None))
    data.prepare_data()
    data.setup("fit")
    with isolated_random_state():
        hook = getattr(data, "probe_dataloader", None)
        source = hook() if callable(hook) else first_loader(data.val_dataloader())
    return source, (data, source, getattr(source, "dataset", None))


def analyze(
    factory: Callable[..., nn.Module],
    checkpoints: Sequence[Checkpoint],
    data: Any,
    store: SnapshotStore,
    *,
    layers: str | Sequence[LayerPattern] = "blocks",
    probe_size: int = 1000,
    settings: Settings | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    network: str | None = None,
    device: torch.device | None = None,
    forward: Forward | None = None,
    chunk: int = 256,
    memory: int | None = None,
    progress: Progress = iter,
) -> None:
    """Take a snapshot of every checkpoint: the numbers that :class:`lightning_ssc.SSCMonitor` would have stored.

    Networks run in float32; a run trained in lower precision gives slightly different numbers than it did live.
    Epochs that the store already has are passed over, so an interrupted call goes on where it stopped.

    Args:
        factory: Makes the network, see :func:`build_model`.
        checkpoints: From :func:`find_checkpoints`.
        data: Where the probe comes from, see :func:`probe_source`.
        store: Where the snapshots go.
        layers: Which layers, see :func:`lightning_ssc.capture.layers.select_layers`.
        probe_size: How many inputs to draw from a data set.
        settings: How activations become graphs.
        model_arguments: Arguments of the factory.
        network: Which network of checkpoints that hold several, see :func:`build_model`.
        device: Where the networks run; the CPU by default.
        forward: How a network is run, see :func:`lightning_ssc.capture.Runner`.
        chunk: Samples a forward pass.
        memory: Bytes that activations and Grams may take; by default half of what the device has free.
        progress: Wrapped around the checkpoints, such as ``tqdm.tqdm``.

    Raises:
        CheckpointError: A checkpoint does not fit the network, the network does not run on the probe, or the store is
            of another probe, other settings or other layers.
        MismatchError: A run writes into the store's folder.
        ValueError: A layer is unknown or never runs, or the probe cannot be made.
    """
    settings, device = settings or Settings(), device or torch.device("cpu")
    source, owners = probe_source(data)
    probe = make_probe(source, probe_size)

    def watch(checkpoint: Checkpoint) -> tuple[Runner, list[WatchedLayer]]:
        try:
            model = build_model(factory, read_checkpoint(checkpoint.path), model_arguments or {}, network)
            model = model.to(device)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from error
        runner = Runner(model, forward, device=device, chunk=chunk, memory=memory)
        try:
            return runner, trace(runner, layers, probe.batches, settings.rows)
        except NotRunError as error:
            cause = error.__cause__
            raise CheckpointError(
                f"The network does not run on the inputs of --data ({type(cause).__name__}: {cause}). Give it data of "
                f"the shape that it was trained on."
            ) from error

    _check_alike(store, probe, settings)
    if len(store) and checkpoints:  # also where nothing is left to do
        _check_layers(store, [layer.label for layer in watch(checkpoints[0])[1]])
    claim = own_folder(store.root)
    try:
        store.save_card(probe_card(probe, class_names(*owners), rows(probe.inputs, *owners)))
        past: Past | None = None
        for checkpoint in progress(checkpoints):
            if checkpoint.moment.step in store.steps:
                past = None
                continue
            runner, watched = watch(checkpoint)
            if past is None:
                earlier = [step for step in store.steps if step < checkpoint.moment.step]
                past = Past.recalled(store, earlier[-1]) if earlier else Past()
            begun = begin_snapshot(
                runner, probe, watched, settings, checkpoint.moment, learning_rate=checkpoint.learning_rate
            )
            taken = compared(begun.result(), past)
            past = past.followed_by(taken)
            store.save(taken)
    finally:
        claim.release()


def _check_alike(store: SnapshotStore, probe: Probe, settings: Settings) -> None:
    for step in store.steps:
        header = store.header(step=step)
        other = differences(header, settings, header.layers)
        if header.probe != probe.fingerprint or other:
            raise CheckpointError(
                f"{store.root} already holds snapshots of {'other settings' if other else 'another probe'} "
                f"({'; '.join((str(header.moment), *other))}). Name a new folder with --out, or move them away."
            )


def _check_layers(store: SnapshotStore, layers: list[str]) -> None:
    for step in store.steps:
        header = store.header(step=step)
        if (held := header.layers) != layers:
            raise CheckpointError(
                f"{store.root} already holds snapshots of other layers ({header.moment}: {', '.join(held)}; now "
                f"{', '.join(layers)}). Name a new folder with --out, or move them away."
            )
