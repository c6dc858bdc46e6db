"""Whole snapshots from a thousand to ten thousand inputs and from 5 to 104 layers, within 4 GB.

    python tests/benchmarks/scale.py --data ROOT     (ROOT as torchvision.datasets.CIFAR10 wants it)

Every line is a process of its own; memory is the most that a snapshot took beyond what the process held before it: what
``memory=`` allows, and what the network itself needs for a chunk. The networks are untrained, which changes their
graphs and not the work of forward passes and Grams.
"""

import argparse
import json
import os
import socket
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from activations import images
from measure import PeakMemory, convolutions, log_seconds, own_process, own_processes, take, timed

import recipes.models
from lightning_ssc.capture import Runner, plan_passes, share_layers, trace

STAGES = ("forward", "gram", "solve", "measure", "store", "log")


def part_snapshot(args: argparse.Namespace) -> dict[str, Any]:
    """One snapshot, its stages and the most memory that it took."""
    torch.manual_seed(0)
    model = getattr(recipes.models, args.network)().to(memory_format=torch.channels_last)
    x, y = images(args.data, train=False)
    x = x.contiguous(memory_format=torch.channels_last)
    warm = take(model, convolutions(model)[:1], x[:64], y[:64])  # imports and compilation
    layers = convolutions(model, args.layers)
    watched = trace(Runner(model), layers, x[:8])
    passes = len(plan_passes(watched, args.n, args.memory))
    with PeakMemory() as memory:
        taken = take(model, layers, x[: args.n], y[: args.n], memory=args.memory)
    with tempfile.TemporaryDirectory() as folder:
        log_seconds(warm, x, Path(folder))
        log = log_seconds(taken, x, Path(folder))
    features = sum(layer.features for layer in watched)
    return {
        **taken.seconds,
        **log,
        "extra": memory.extra,
        "layers": len(layers),
        "passes": passes,
        "features": features,
        "gap": max(float(layer.gap.max()) for layer in taken.layers.values()),
        "neighbours": sum(layer.neighbours for layer in taken.layers.values()) / len(layers),
    }


def part_product(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a full matrix product X X' in float32, for as many features as fit a gigabyte, a feature each."""
    count = max(256, int(1e9 / (4 * args.n)))
    x = torch.randn(args.n, count)
    x[:256] @ x.T
    seconds, _ = timed(lambda: x @ x.T)
    return {"a_feature": seconds / count}


def line(label: str, found: dict[str, Any] | None, product: float | None = None) -> None:
    if found is None:
        print(f"  {label:38} failed", flush=True)
        return
    stages = " ".join(f"{key} {found[key]:.1f}" for key in STAGES)
    print(
        f"  {label:38} {found['total']:8.1f} s {found['extra'] / 1e9:6.2f} GB  {found['passes']} passes  {stages}"
        f"  {found['solve'] / found['layers']:.2f} s a layer to solve, {found['neighbours']:.0f} neighbours,"
        f" gap {found['gap']:.0e}",
        flush=True,
    )
    if product is not None:
        share = found["gram"] / (product * found["features"])
        print(f"  {'':38} Grams take {share:.2f} of full matrix products of the same size (target 0.5)", flush=True)


def child(args: argparse.Namespace, part: str, **over: Any) -> dict[str, Any] | None:
    return own_process(__file__, **{**vars(args), **over, "part": part})


def inputs(args: argparse.Namespace) -> None:
    """Twelve convolutions of ResNet-36 from a thousand inputs to ten thousand."""
    memory = args.memory or 3_500_000_000  # holds the widest layer at ten thousand inputs whole
    print(f"ResNet-36, 12 convolutions spread over its depth, memory={memory / 1e9:.1f} GB; seconds, extra memory")
    for n in args.n_list:
        product = child(args, "product", n=n)
        found = child(args, "snapshot", network="resnet36", layers=12, n=n, memory=memory)
        line(f"N = {n}", found, product and product["a_feature"])


def layers(args: argparse.Namespace) -> None:
    """From 5 layers to 104, a thousand inputs."""
    memory = args.memory or 3_300_000_000
    print(f"N = 1000, memory={memory / 1e9:.1f} GB; seconds, extra memory")
    for network, count in (("resnet18", 5), ("resnet18", 20), ("resnet36", 36), ("resnet104", 104)):
        found = child(args, "snapshot", network=network, layers=count, n=1000, memory=memory)
        line(f"{network}, {count} convolutions", found)


def ranks(args: argparse.Namespace) -> None:
    """A snapshot of 20 layers shared over processes of one thread each."""
    print(
        "ResNet-20, 21 convolutions, N = 1000, one thread a process; seconds of a snapshot, layers and features by rank"
    )
    one = None
    for world in (1, 2, 4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        found = own_processes(
            __file__,
            [{"data": args.data, "part": "rank", "world": world, "port": port, "rank": r} for r in range(world)],
        )
        if any(part is None for part in found):
            print(f"  {world} process(es) failed", flush=True)
            continue
        seconds = max(part["seconds"] for part in found)
        one = seconds if one is None else one
        work = ", ".join(f"{part['layers']} ({part['features'] / 1000:.0f}k)" for part in found)
        print(f"  {world} process(es) {seconds:7.1f} s, {seconds / one:.2f} of one; {work}", flush=True)


def part_rank(args: argparse.Namespace) -> dict[str, Any]:
    """The share of one rank: its layers taken, and all graphs gathered, as the callback does it."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{args.port}", rank=args.rank, world_size=args.world)
    torch.manual_seed(0)
    model = recipes.models.cifar_resnet(depth=20).to(memory_format=torch.channels_last)
    x, y = images(args.data, train=False)
    x = x.contiguous(memory_format=torch.channels_last)
    chosen = [
        layer.label for layer in share_layers(trace(Runner(model), convolutions(model), x[:8]), args.rank, args.world)
    ]
    take(model, chosen[:1], x[:64], y[:64])
    dist.barrier()
    start = time.perf_counter()
    taken = take(model, chosen, x[:1000], y[:1000])
    told: list[Any] = [None] * args.world
    dist.all_gather_object(told, taken.layers)
    seconds = time.perf_counter() - start
    dist.destroy_process_group()
    return {"seconds": seconds, "layers": len(chosen), "features": sum(g.features for g in taken.layers.values())}


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"layers": layers, "inputs": inputs, "ranks": ranks}
    parser.add_argument("--data", type=Path, required=True, help="root of torchvision's CIFAR10")
    parser.add_argument("--only", nargs="+", choices=list(tables), default=list(tables), help="some of the tables")
    parser.add_argument("--memory", type=int, help="memory= of the snapshots, in bytes")
    parser.add_argument("--n-list", type=int, nargs="+", default=[1000, 2000, 5000, 10_000], help="inputs")
    hidden = ("part", str), ("network", str), ("layers", int), ("n", int), ("world", int), ("rank", int), ("port", int)
    for name, kind in hidden:
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        warnings.simplefilter("ignore")
        parts = {"snapshot": part_snapshot, "product": part_product, "rank": part_rank}
        print(json.dumps(parts[args.part](args)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    for name in args.only:
        tables[name](args)


if __name__ == "__main__":
    main()
