"""A snapshot by several processes of one thread each: seconds, bytes sent, peak memory, and how far apart results are.

`overhead.py --only ranks sharded` prints these tables: a network that every process holds (as under DDP), and one
whose weights they share (FSDP2, tensor parallel). Each process is one of its own, talking to the others by gloo.
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
from measure import PeakMemory, convolutions, own_processes
from torch import Tensor, distributed, nn

from lightning_ssc import Recorder
from lightning_ssc.ranks import Ranks
from lightning_ssc.snapshots import Snapshot, SnapshotStore
from recipes.models import cifar_resnet

WIDTH, DEPTH = 2048, 16  # of the network whose weights are shared


def replicated(args: argparse.Namespace) -> tuple[nn.Module, list[str], Tensor, Tensor]:
    """ResNet-20 and all its convolutions, with test images of CIFAR-10."""
    x, y = images(args.data, train=False)
    model = cifar_resnet(depth=20).to(memory_format=torch.channels_last)
    return model, convolutions(model), x[: args.n].contiguous(memory_format=torch.channels_last), y[: args.n]


def shared(args: argparse.Namespace) -> tuple[nn.Module, list[str], Tensor, Tensor]:
    """Pairs of wide linear layers, and noise: weights outweigh activations."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    pairs = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)) for _ in range(DEPTH // 2)]
    model = nn.Sequential(*pairs, nn.Linear(WIDTH, 10))
    for layer in (layer for pair in pairs for layer in pair if isinstance(layer, nn.Linear)):
        nn.init.kaiming_normal_(layer.weight)  # or deep layers hardly tell inputs apart
    x, y = torch.randn(args.n, WIDTH), torch.arange(args.n) % 10
    if args.mode != "whole":
        mesh = init_device_mesh("cpu", (args.world,))
        for pair in pairs:
            if args.mode == "fsdp2":
                fully_shard(pair, mesh=mesh)
            else:
                parallelize_module(pair, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        if args.mode == "fsdp2":
            fully_shard(model, mesh=mesh)
    return model, [str(i) for i in range(len(pairs))], x, y  # of ten features a graph is not the only one


def part(args: argparse.Namespace) -> dict[str, Any]:
    """One process's share of a snapshot, after a small one that compiles and connects."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.world > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port))
        distributed.init_process_group("gloo", rank=args.rank, world_size=args.world)
    model, layers, x, y = (replicated if args.mode == "replicated" else shared)(args)
    held = sum(getattr(p, "to_local", lambda p=p: p)().nbytes for p in model.parameters())
    Recorder(model, (x[:40], y[:40]), layers).record(0)
    ranks = Ranks()
    recorder = Recorder(model, (x, y), layers, ranks=ranks)
    ranks.all_true(True)
    start, worked = time.perf_counter(), time.process_time()
    with PeakMemory() as memory:
        recorder.record(0)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    found = {"total": seconds, "cpu": worked, "sent": ranks.sent, "extra": memory.extra, "held": held}
    if args.rank == 0:
        taken = recorder.store.load(0)
        found |= {"stages": taken.seconds, "apart": 0.0}
        if args.world == 1:
            SnapshotStore(args.against).save(taken)
        else:
            found["apart"] = apart(taken, SnapshotStore(args.against).load(0))
    if args.world > 1:
        distributed.barrier()
        distributed.destroy_process_group()
    return found


def apart(one: Snapshot, other: Snapshot) -> float:
    """The largest difference of a layer's coefficients, to the largest of them."""
    pairs = [(one.layers[name].coef.to_dense(), layer.coef.to_dense()) for name, layer in other.layers.items()]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def run(world: int, mode: str, against: str, data: Path, n: int) -> list[dict[str, Any]]:
    """What every one of some processes has found; empty where one has failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"world": world, "port": port, "mode": mode, "against": against, "data": data, "n": n}
    found = own_processes(__file__, [{**options, "rank": rank} for rank in range(world)])
    return [one for one in found if one is not None] if all(found) else []


def line(label: str, found: list[dict[str, Any]], floor: dict[str, Any]) -> None:
    """A row; ratios are those to one process."""
    if not found:
        print(f"  {label:42} not run")
        return
    seconds, work = found[0]["total"], max(one["cpu"] for one in found)
    sent, extra, held = (max(one[key] for one in found) / 1e6 for key in ("sent", "extra", "held"))
    stages = " ".join(f"{key} {found[0]['stages'][key]:.1f}" for key in ("forward", "gram", "solve", "measure"))
    print(
        f"  {label:42} {seconds:6.1f} s {seconds / floor['total']:5.2f} x, busy {work:6.1f} s "
        f"{work / floor['cpu']:5.2f} x, sent {sent:6.1f} MB, {extra:5.0f} MB beside weights of {held:4.0f} MB, "
        f"apart {found[0]['apart']:.0e}  {stages}",
        flush=True,
    )


def table(title: str, rows: list[tuple[str, int, str]], args: argparse.Namespace, n: int) -> None:
    """Rows of label, number of processes and mode; the first is one process alone, which the others are held to."""
    print(f"{title}, N = {n}; one thread each, the most of any process, stages of rank zero")
    with tempfile.TemporaryDirectory() as folder:
        floor: list[dict[str, Any]] = []
        for label, world, mode in rows:
            found = run(world, mode, folder, args.data, n)
            floor = floor or found
            if not floor:
                raise SystemExit("one process alone has failed")
            line(label, found, floor[0])


def ranks(args: argparse.Namespace) -> None:
    """A network that every process holds, by 1, 2 and 4 of them."""
    for n in (args.n, 2 * args.n):
        rows = [(f"{world} process(es)", world, "replicated") for world in (1, 2, 4)]
        table("ResNet-20, 21 convolutions", rows, args, n)


def sharded(args: argparse.Namespace) -> None:
    """A network of wide linear layers, held by one and by two processes, and shared between two."""
    rows = [("one process", 1, "whole"), ("DDP, 2 processes", 2, "whole"), ("FSDP2, 2 processes", 2, "fsdp2"),
            ("tensor parallel, 2 processes", 2, "tensor parallel")]  # fmt: skip
    table(f"{DEPTH} linear layers of width {WIDTH}", rows, args, args.n)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    for name, kind in (("n", int), ("rank", int), ("world", int), ("port", int), ("mode", str), ("against", str)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    warnings.simplefilter("ignore")
    print(json.dumps(part(parser.parse_args())))
