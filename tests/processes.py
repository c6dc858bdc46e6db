"""Training runs in processes of their own, started from a server that has imported everything once."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_ssc import (
    FreezeSettled,
    Images,
    Recorder,
    SnapshotStore,
    SSCMonitor,
    auto,
    every,
    pipeline,
    recorder,
    snapshot,
)
from lightning_ssc.capture import Returned, Runner, capture, passes, trace
from lightning_ssc.capture.spread import Post
from lightning_ssc.metrics import AffinityModularity, LinearCKA
from lightning_ssc.ranks import Ranks
from tests.nets import Classifier, Logs, convnet, data, optimizer, train, trainer

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.processes", "tests.preload"])


def start(target: Callable[..., None], *args: Any, **env: str) -> ForkServerProcess:
    """Run a function of this module in a new process."""
    process = _CONTEXT.Process(target=_quiet, args=(target, args, env), daemon=True)
    process.start()
    return process


def _quiet(target: Callable[..., None], args: tuple[Any, ...], env: dict[str, str]) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target(*args)


def distributed(target: Callable[..., None], world: int, *args: Any, patience: float = 120) -> list[int | None]:
    """Run a function on every rank of a gloo group; returns the exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    processes = [start(target, world, *args, **shared, LOCAL_RANK=str(rank)) for rank in range(world)]
    for process in processes:
        process.join(timeout=patience)
    return [process.exitcode for process in processes]


def train_distributed(world: int, root: Path, layers: str | list[str] = "**", background: bool = False) -> None:
    """Train over ranks and leave the final weights behind."""
    pl.seed_everything(0, verbose=False)
    monitor = SSCMonitor(
        layers=layers,
        schedule=1,
        probe_size=30,
        heatmap=False,
        embedding=False,
        store=root / "ssc",
        background=background,
    )
    model = Classifier()
    run = trainer(root, monitor, max_epochs=2, strategy="ddp", devices=world)
    run.fit(model)
    tags = sorted(tag for tag in run.callback_metrics if tag.startswith("ssc/modularity/"))
    torch.save({tag: run.callback_metrics[tag] for tag in tags}, root / f"metrics-{run.global_rank}.pt")
    if run.is_global_zero:
        torch.save(model.state_dict(), root / "weights.pt")


def decide_by_the_clock(world: int, root: Path) -> None:
    """The clock of rank zero hurries, that of rank one stands still."""
    monitor = SSCMonitor(
        schedule=[every(minutes=1), auto()],
        probe_size=30,
        heatmap=False,
        embedding=False,
        neighbours=0,
        store=root / "ssc",
    )
    monitor._clock = count(step=25.0 if os.environ["LOCAL_RANK"] == "0" else 0.0).__next__
    run = trainer(root, monitor, max_epochs=11, strategy="ddp", devices=world)
    run.fit(Classifier())
    assert monitor.recorder is not None
    torch.save(monitor.recorder.steps, root / f"steps-{run.global_rank}.pt")


class BreaksOnRankOne(pl.Callback):
    """NaN in what rank one's network makes of its share of the probe."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_rank == 1:
            nn.init.constant_(pl_module.model[4].bias, float("nan"))


class Looks(pl.Callback):
    """Lets the worker finish within an epoch, and notes which snapshots are stored by its end."""

    def __init__(self, monitor: SSCMonitor) -> None:
        self.monitor = monitor
        self.stored: list[list[int]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        while self.monitor.recorder is not None and self.monitor.recorder.busy:  # all ranks have solved by its end
            time.sleep(0.01)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stored.append(self.monitor.recorder.steps if self.monitor.recorder else [])


def collect_between_snapshots(world: int, root: Path) -> None:
    """Epochs without a snapshot of their own, at the end of which the one before is collected."""
    monitor = SSCMonitor(
        schedule=[0, 3], probe_size=30, heatmap=False, embedding=False, store=root / "ssc", background=True
    )
    looks = Looks(monitor)
    run = trainer(root, monitor, looks, max_epochs=3, strategy="ddp", devices=world)
    run.fit(Classifier())
    torch.save(looks.stored, root / f"stored-{run.global_rank}.pt")


def fail_in_the_worker_of_one_rank(world: int, root: Path) -> None:
    """A layer of one rank's share cannot be solved, which comes to light when the next snapshot is due."""
    original = pipeline.solve_layer

    def solve(layer: Any, *args: Any) -> Any:
        if os.environ["LOCAL_RANK"] == "1":
            raise ValueError(f"Layer {layer.label!r}: no solution")
        return original(layer, *args)

    pipeline.solve_layer = solve
    monitor = SSCMonitor(schedule=1, probe_size=30, heatmap=False, embedding=False, store=root / "ssc", background=True)
    _told(trainer(root, monitor, max_epochs=2, strategy="ddp", devices=world), root)


def fail_on_one_rank(world: int, root: Path, background: bool) -> None:
    """One rank's snapshot fails: both have to hear of it, and neither may wait for the other."""
    monitor = SSCMonitor(
        schedule=1, probe_size=30, heatmap=False, embedding=False, store=root / "ssc", background=background
    )
    run = trainer(root, BreaksOnRankOne(), monitor, max_epochs=1, strategy="ddp", devices=world)
    _told(run, root)


def _told(run: pl.Trainer, root: Path) -> None:
    """Fit, and leave behind what the rank is told when that fails."""
    try:
        run.fit(Classifier())
    except Exception as error:
        (root / f"error-{run.global_rank}").write_text(str(error))


def probe_by_rank(world: int, root: Path) -> None:
    """A probe that is another one on every rank."""
    monitor = SSCMonitor(schedule=1, probe=data(30, seed=int(os.environ["LOCAL_RANK"])), store=root / "ssc")
    _told(trainer(root, monitor, max_epochs=1, strategy="ddp", devices=world), root)


def resume_damaged(world: int, root: Path) -> None:
    """Resume when the last snapshot of the run is damaged."""
    for epochs, checkpoint in ((1, None), (2, root / "kept" / "last.ckpt")):
        pl.seed_everything(0, verbose=False)
        monitor = SSCMonitor(
            schedule=1, probe_size=30, heatmap=False, embedding=False, store=root / "ssc", on_error="warn"
        )
        kept = ModelCheckpoint(root / "kept", save_last=True)
        run = trainer(root, monitor, kept, max_epochs=epochs, strategy="ddp", devices=world, enable_checkpointing=True)
        run.fit(Classifier(), ckpt_path=checkpoint, weights_only=True)
        run.strategy.barrier()
        if run.is_global_zero:
            (root / "ssc" / "step_000000002.npz").write_bytes(b"noise")
        run.strategy.barrier()


def resume_over_more(world: int, root: Path) -> None:
    """Go on over several processes with a run that one has begun."""
    monitor = SSCMonitor("**", schedule=1, probe_size=30, heatmap=False, store=root / "ssc")
    run = trainer(root, monitor, max_epochs=2, strategy="ddp", devices=world)
    run.fit(Classifier(), ckpt_path=root / "one.ckpt", weights_only=True)
    run.save_checkpoint(root / "two.ckpt")


def join(world: int) -> int:
    """Join the gloo group; returns the rank."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    return rank


def record(world: int, root: Path) -> None:
    """Recorders under DDP, in the foreground and in the background, after rank zero has done it all by itself."""
    told: dict[str, Any] = {"modularity": [], "logged": []}

    def run(name: str, wrap: Callable[[nn.Module], nn.Module], background: bool, reference: str = "checkpoint") -> None:
        torch.manual_seed(0)
        net, logs = wrap(convnet()), Logs()
        watching = Recorder(
            net,
            data(30).tensors,
            ["0", "4", "9"],
            store=root / name,
            loggers=[logs],
            images=Images(heatmap=False, embedding=False, neighbours=0),
            reference=root / reference,
            background=background,
        )
        watching.record(0)
        train(net, optimizer(net), lambda epoch: (watching.poll(), watching.record(epoch)))
        watching.finish()
        modularity = {tag: value for tag, value in watching.scalars.items() if tag.startswith("ssc/modularity/")}
        told["modularity"].append(modularity)
        told["logged"].append(list(logs.values.get("ssc/cka_to_final/4", {})))

    if os.environ["LOCAL_RANK"] == "0":
        torch.manual_seed(1)
        torch.save(convnet().state_dict(), root / "checkpoint")
        SnapshotStore(root / "another probe").save(snapshot(convnet(), *data(30, seed=1).tensors, ["0"]))
        run("alone", lambda net: net, background=False)
        told = {"modularity": [], "logged": []}
    rank = join(world)
    run("foreground", DistributedDataParallel, background=False)
    run("background", DistributedDataParallel, background=True)
    for what, where, reference in (
        ("folder", "foreground", "checkpoint"),
        ("reference", "fresh", "another probe"),
    ):
        try:
            run(where, DistributedDataParallel, background=False, reference=reference)
        except RuntimeError as error:
            told[what] = str(error)
    (root / f"told-{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


class Talks(nn.Module):
    """A layer whose forward talks to the other processes, as one that normalises over all of them does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(torch.ones(1))
        return x


def spread(world: int, root: Path) -> None:
    """Grams of a network whose forward talks, over processes and by one, in one pass and in several, and failures."""
    rank, ranks = join(world), Ranks()
    torch.manual_seed(0)
    net = nn.Sequential(convnet(), Talks(), nn.Linear(3, 5).double(), Talks(), nn.Linear(5, 2).double())
    net[0].append(nn.Identity())
    run = lambda model, x: model[4](model[3](model[2](model[1](model[0](x)).double())))  # noqa: E731
    x = data(31).tensors[0]
    told: dict[str, Any] = {}
    for name, memory, chunk in (("one pass", None, 256), ("several", 2 * 31 * 31 * 8 + 31 * 60 * 8, 4)):
        runner = Runner(net, run, chunk=chunk, memory=memory)
        layers = trace(runner, "**", x)
        outputs: dict[int, Returned] = {}
        sent = ranks.sent
        shared = {layer.label: gram for layer, gram in capture(runner, layers, x, processes=ranks, outputs=outputs)}
        told[f"bytes {name}"] = ranks.sent - sent
        told[f"rows {name}"] = {start: len(output.rows) for start, output in outputs.items()}
        alone = {layer.label: gram for layer, gram in capture(Runner(net, run), layers, x)}
        told[f"layers {name}"] = list(shared)
        told[f"apart {name}"] = max(
            float((gram.centred - alone[label].centred).abs().max() / alone[label].centred.abs().max())
            for label, gram in shared.items()
        )
        told[f"features {name}"] = {layer.label: layer.bytes_a_sample for layer in layers}

    def bare(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Without what talks: no exchange within a forward is left half done."""
        return model[4](model[2](model[0](x).double()))

    def breaks(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if rank == 1:
            raise OSError(5, "Input/output error")
        return bare(model, x)

    def solve(layer: Any, *args: Any) -> Any:
        if rank == 1:
            raise ValueError("no solution")
        return original(layer, *args)

    original = pipeline.solve_layer

    def short(*args: Any, **options: Any) -> Any:
        raise MemoryError("no room")

    watching = Recorder(Runner(net, run, memory=2 * 31 * 31 * 8 + 31 * 60 * 8), (x,), ["0.0", "0.4", "2", "4"])
    for name, forward, owner, what, instead in (
        ("forward", breaks, pipeline, "solve_layer", pipeline.solve_layer),
        ("solve", bare, pipeline, "solve_layer", solve),
        ("room", bare, Post, "places", short if rank == 1 else Post.places),
        ("buffers", bare, passes, "_buffers", short if rank == 1 else passes._buffers),
        ("gram", bare, passes, "_formed", short if rank == 1 else passes._formed),
        ("look", bare, recorder, "fingerprint", short if rank == 1 else recorder.fingerprint),
    ):
        watching._runner = replace(watching._runner, forward=forward)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, what, instead)
            try:
                watching.record(0)
            except RuntimeError as error:
                told[f"failed {name}"] = str(error)
    watching._runner = replace(watching._runner, forward=run)
    watching.record(0)
    told["steps"] = watching.store.steps
    (root / f"told-{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


def talk(world: int, root: Path) -> None:
    """Everything that ranks tell one another."""
    rank, ranks = join(world), Ranks()

    def failed(act: Callable[[], Any]) -> tuple[str, str] | None:
        try:
            act()
        except Exception as error:
            return f"{type(error).__name__}: {error}", repr(error.__cause__)
        return None

    def divide() -> float:
        return 1 / 0

    acted: list[int] = []
    mine = ValueError(f"no {rank}")
    told = {
        "who": (ranks.rank, ranks.size),
        "everyones": ranks.everyones({"rank": rank}),
        "all_true": (ranks.all_true(True), ranks.all_true(rank == 0), ranks.all_true(False)),
        "gather": ranks.gather([rank] * 3),
        "broadcast": ranks.broadcast(f"of {rank}"),
        "from_zero": ranks.from_zero(lambda: acted.append(rank) or f"from {rank}"),
        "on_zero": ranks.on_zero(lambda: acted.append(rank) or f"on {rank}"),
        "no failure": failed(lambda: ranks.raise_together(None)),
        "of one": failed(lambda: ranks.raise_together(mine if rank == 1 else None)),
        "of both": failed(lambda: ranks.raise_together(mine)),
        "together": ranks.together(lambda: f"mine {rank}"),
        "together of one": failed(lambda: ranks.together(divide if rank == 0 else str)),
        "of zero": failed(lambda: ranks.on_zero(divide)),
        "of zero, asked": failed(lambda: ranks.from_zero(divide)),
        "acted": acted,
        "still together": ranks.everyones(rank),
    }
    (root / f"told-{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


def measure_metrics(world: int, root: Path) -> None:
    """Update torchmetrics on each rank's part of the data, uneven and in unequal batches; leave the values behind."""
    rank = join(world)
    x1, x2, labels = torch.load(root / "data.pt")
    mine = torch.arange(len(labels))[:41] if rank == 0 else torch.arange(len(labels))[41:]
    cka, modular = LinearCKA(compute_with_cache=False), AffinityModularity(compute_with_cache=False)
    for part in mine.split(9 + rank):
        cka.update(x1[part], x2[part])
        modular.update(x1[part], labels[part])
    for _ in range(2):  # the states must come back unharmed after the first synchronisation
        values = cka.compute(), modular.compute()
    cka, modular = LinearCKA(), AffinityModularity()
    if rank == 0:  # and the other has no inputs
        cka.update(x1.double(), x2)
        modular.update(x1, labels)
    values += cka.compute(), modular.compute()
    none, refused = LinearCKA(), ""
    try:
        none.compute()
    except ValueError as error:
        refused = str(error)
    torch.save((*values, refused), root / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def freeze_over_ranks(world: int, root: Path, static: bool) -> None:
    """Train with settled layers frozen, and trained again after a drop of the rate."""
    from tests.callback.test_freezing import Notes, Slow, fit, monitor

    notes = Notes()
    strategy = DDPStrategy(static_graph=True) if static else "ddp"
    callbacks = FreezeSettled("freeze"), monitor(store=root / "ssc"), notes
    fit(root, *callbacks, model=Slow(drops=(3,)), strategy=strategy, devices=world)
    torch.save({"frozen": notes.frozen, "states": notes.states}, root / f"frozen-{os.environ['LOCAL_RANK']}.pt")
