"""What the callback costs a training run: time by stage, memory, and the share of an epoch, beside its peers.

    python tests/benchmarks/overhead.py --data ROOT     (ROOT as torchvision.datasets.CIFAR10 wants it)

Every line of the first three tables is a process of its own. Memory is what a call takes beyond what the process held
before. Peers (pytorch-cka 1.1, torch-cka 0.21 with seaborn and pandas) are optional and skipped where absent; they
compute linear CKA between the layers and no graphs. The fourth table trains a network with a Trainer, with the callback
and without; its seconds are scaled to an epoch of 50,000 images. The last two are of several processes (`ranks.py`).
"""

import argparse
import contextlib
import io
import json
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from activations import images
from measure import PeakMemory, convolutions, finish, log_seconds, own_process, plain_forward, take, timed
from ranks import ranks, sharded
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import recipes.models
from lightning_ssc import SSCMonitor
from recipes.models import cifar_resnet
from recipes.module import Classifier

EPOCH = 50_000
STAGES = ("forward", "gram", "solve", "measure", "store", "log")
PEERS = ("pytorch-cka", "torch-cka")


def data(args: argparse.Namespace, train: bool = False) -> tuple[Tensor, Tensor]:
    x, y = images(args.data, train)
    return x.contiguous(memory_format=torch.channels_last), y


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = cifar_resnet(depth=20) if name == "resnet20" else getattr(recipes.models, name)()
    return model.to(memory_format=torch.channels_last)


def part_forward(args: argparse.Namespace) -> dict[str, Any]:
    model, (x, _) = network(args.network), data(args)
    plain_forward(model, x[:64])
    with PeakMemory() as memory:
        seconds, _ = timed(lambda: plain_forward(model, x[: args.n]))
    return {"total": seconds, "extra": memory.extra}


def part_ours(args: argparse.Namespace) -> dict[str, Any]:
    model, (x, y) = network(args.network), data(args)
    warm = take(model, convolutions(model)[:1], x[:64], y[:64])  # imports and compilation
    layers = convolutions(model, args.layers)
    with PeakMemory() as memory:
        taken = take(model, layers, x[: args.n], y[: args.n], memory=args.memory, chunk=args.chunk)
    with tempfile.TemporaryDirectory() as folder:
        log_seconds(warm, x, Path(folder))
        log = log_seconds(taken, x, Path(folder))
    gap = max(float(layer.gap.max()) for layer in taken.layers.values())
    return {**taken.seconds, **log, "extra": memory.extra, "gap": gap}


def part_peer(args: argparse.Namespace) -> dict[str, Any]:
    model, (x, _) = network(args.network).eval(), data(args)
    names = [layer.name for layer in convolutions(model, args.layers)]
    loader = DataLoader(TensorDataset(x[: args.n], torch.zeros(args.n)), batch_size=args.n)
    if args.part == "pytorch-cka":
        from cka import compute_cka

        with PeakMemory() as memory:
            seconds, _ = timed(lambda: compute_cka(model, model, loader, layers=names, device="cpu", progress=False))
    else:
        from torch_cka import CKA

        peer = CKA(model, model, model1_layers=names, model2_layers=names, device="cpu")
        with PeakMemory() as memory, torch.no_grad():
            seconds, _ = timed(lambda: peer.compare(loader))
    return {"total": seconds, "extra": memory.extra}


def part_steps(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a training step of 128 images."""
    model, (x, y) = network(args.network), data(args, train=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)

    def step(i: int) -> None:
        batch = slice(128 * i % 40_000, 128 * i % 40_000 + 128)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()

    step(0)
    with PeakMemory() as memory:
        seconds, _ = timed(lambda: [step(i) for i in range(1, args.steps + 1)])
    return {"total": seconds / args.steps, "extra": memory.extra}


class Clock(pl.Callback):
    """Seconds of every epoch, the callback's work at its end included, and of the end of fit."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        finish()
        self.last = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        finish()
        self.seconds.append(time.perf_counter() - self.last)


def part_trainer(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the epochs of a network on some images, with the callback or without."""
    torch.set_num_threads(args.threads)
    (x, y), (probe_x, probe_y) = data(args, train=True), data(args)
    return train(
        args.network, x[: args.images], y[: args.images], (probe_x[: args.n], probe_y[: args.n]), args.mode,
        layers=args.layers, epochs=args.epochs,
    )  # fmt: skip


def train(
    name: str,
    x: Tensor,
    y: Tensor,
    probe: tuple[Tensor, Tensor],
    mode: str,
    *,
    layers: int | None,
    epochs: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Seconds of a Trainer's epochs, memory, and seconds of a snapshot by stage.

    Args:
        name: Network: ``"resnet20"`` or one of ``recipes.models``.
        x: (N, 3, 32, 32) images to train on.
        y: (N,) their classes.
        probe: Images and classes of the callback's probe.
        mode: ``"none"`` is without the callback, ``"foreground"`` and ``"background"`` are with it.
        layers: Convolutions to watch; all of them where this is None.
        epochs: At least three: the first and the last do not count.
        device: ``"cpu"`` or ``"cuda"``.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    network, depth = ("cifar_resnet", {"depth": 20}) if name == "resnet20" else (name, None)
    model = Classifier(network, network_args=depth, lr=0.05, milestones=(9,), channels_last=True)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    clock = Clock()
    callbacks: list[pl.Callback] = []
    with tempfile.TemporaryDirectory() as folder:
        if mode != "none":
            chosen = [layer.name for layer in convolutions(model, layers)]
            callbacks = [SSCMonitor(layers=chosen, probe=probe, schedule=1, background=mode == "background")]
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            callbacks=[*callbacks, clock],
            logger=pl.loggers.TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with PeakMemory(device) as memory:
            trainer.fit(model, loader)
        events = EventAccumulator(trainer.log_dir).Reload()
        told = {stage: f"ssc/seconds/{stage}" for stage in STAGES if mode != "none"}
        stages = {stage: [event.value for event in events.Scalars(tag)][2:-1] for stage, tag in told.items()}
    weights = float(sum(p.double().abs().sum() for p in model.parameters()))
    # Between the first and the last epoch: what the worker has left over is part of the next one.
    total = sum(clock.seconds[1:-1]) / (epochs - 2)
    means = {stage: sum(seconds) / len(seconds) for stage, seconds in stages.items()}
    return {"total": total, "extra": memory.extra, "weights": weights, **means}


def child(args: argparse.Namespace, part: str, **over: Any) -> dict[str, Any] | None:
    """One part in a process of its own."""
    return own_process(__file__, **{**vars(args), **over, "part": part})


def line(label: str, found: dict[str, Any] | None, floor: float) -> None:
    if found is None:
        print(f"  {label:42} not run")
        return
    stages = " ".join(f"{key} {found[key]:.1f}" for key in STAGES if key in found)
    ratio = found["total"] / floor
    print(f"  {label:42} {found['total']:8.1f} s {ratio:7.2f} x {found['extra'] / 1e6:8.0f} MB  {stages}", flush=True)


def snapshots(args: argparse.Namespace) -> None:
    """One snapshot of ResNet-36 against the plain forward pass, and its share of an epoch."""
    print(f"ResNet-36, 36 convolutions, N = {args.n}; seconds, times the plain forward pass, extra memory, stages")
    floor = child(args, "forward", network="resnet36")
    assert floor is not None
    line("plain forward pass of the probe", floor, floor["total"])
    ours = child(args, "ours", network="resnet36")
    line("snapshot", ours, floor["total"])
    steps = child(args, "steps", network="resnet36")
    if ours and steps:
        epoch = steps["total"] * EPOCH / 128
        print(f"  a step of 128 images takes {steps['total']:.2f} s (mean of {args.steps}), so an epoch {epoch:.0f} s")
        share = (ours["total"] + ours["measure"] + ours["store"] + ours["log"]) / epoch
        print(f"  the snapshot, stored and logged, is {share:.1%} of it (target 3 %)", flush=True)


def peers(args: argparse.Namespace) -> None:
    """The same layers and inputs by the peers, and by a snapshot with a tenth of torch-cka's memory."""
    print(f"ResNet-36, 12 convolutions spread over its depth, N = {args.n}; seconds, times ours, extra memory")
    ours = child(args, "ours", network="resnet36", layers=12)
    assert ours is not None
    found = {peer: child(args, peer, network="resnet36", layers=12) for peer in PEERS}
    line("snapshot", ours, ours["total"])
    for peer, result in found.items():
        line(peer, result, ours["total"])
    if result := found["torch-cka"]:
        tight = child(args, "ours", network="resnet36", layers=12, memory=args.tight, chunk=32)
        line(f"snapshot, memory={args.tight / 1e6:.0f} MB, chunk=32", tight, ours["total"])
        if tight:
            print(f"  that is {tight['extra'] / result['extra']:.2f} of torch-cka's memory (target 0.1)", flush=True)


def sizes(args: argparse.Namespace) -> None:
    """Snapshots of ResNet-20 by layers and inputs."""
    print("ResNet-20; seconds, times the plain forward pass, extra memory, stages")
    for n in (500, 1000, 2000):
        floor = child(args, "forward", network="resnet20", n=n)
        assert floor is not None
        for layers in (5, 21):
            line(
                f"{layers} convolutions, N = {n}",
                child(args, "ours", network="resnet20", n=n, layers=layers),
                floor["total"],
            )


def training(args: argparse.Namespace) -> None:
    """Epochs with a Trainer, without the callback and with it, by layers and inputs."""
    n, many = args.n, EPOCH / args.images
    print(f"{args.network} with a Trainer, {args.images} images an epoch; threads of training and solver, extra memory")
    grid = [(None, n)] if args.network == "resnet36" else [(5, n), (None, n // 2), (None, n)]
    for threads, spare, sizes in ((1, "a core to spare", grid), (2, "no core to spare", grid[-1:])):
        bare = child(args, "trainer", mode="none", threads=threads)
        if bare is None:
            continue
        label = f"{threads} thread(s), {spare}, no callback"
        print(f"  {label:52} {bare['total']:7.1f} s an epoch {bare['extra'] / 1e6:6.0f} MB", flush=True)
        for layers, inputs in sizes:
            for mode in ("foreground", "background"):
                found = child(args, "trainer", mode=mode, threads=threads, layers=layers, n=inputs)
                if found is None:
                    continue
                label = f"{'all' if layers is None else layers} convolutions, N = {inputs}, {mode}"
                added = found["total"] - bare["total"]
                stages = " ".join(f"{key} {found[key]:.1f}" for key in STAGES)
                same = "" if found["weights"] == bare["weights"] else "  OTHER WEIGHTS"
                print(
                    f"    {label:50} {found['total']:7.1f} s an epoch {found['extra'] / 1e6:6.0f} MB, {added:5.1f} s"
                    f" added, {added / (bare['total'] * many):5.1%} of an epoch of 50,000{same}\n{'':55}{stages}",
                    flush=True,
                )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {
        "snapshots": snapshots,
        "peers": peers,
        "sizes": sizes,
        "training": training,
        "ranks": ranks,
        "sharded": sharded,
    }
    parser.add_argument("--data", type=Path, required=True, help="root of torchvision's CIFAR10")
    parser.add_argument("--only", nargs="+", choices=list(tables), default=list(tables), help="some of the tables")
    parser.add_argument("--n", type=int, default=1000, help="probe inputs")
    parser.add_argument("--steps", type=int, default=200, help="training steps of ResNet-36 that are timed")
    parser.add_argument("--images", type=int, default=10_000, help="images an epoch of the Trainer's runs")
    parser.add_argument(
        "--epochs", type=int, default=4, help="epochs of the Trainer's runs; the first and last do not count"
    )
    parser.add_argument(
        "--tight", type=int, default=120_000_000, help="memory= of the snapshot that is to take a tenth"
    )
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet36"], help="of the Trainer's runs")
    for name, kind in (
        ("part", str),
        ("mode", str),
        ("layers", int),
        ("memory", int),
        ("threads", int),
    ):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--chunk", type=int, default=256, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        parts = {"forward": part_forward, "ours": part_ours, "steps": part_steps, "trainer": part_trainer}
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = parts.get(args.part, part_peer)(args)
        print(json.dumps(found))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    for name in args.only:
        tables[name](args)


if __name__ == "__main__":
    main()
