"""Networks whose weights several processes share, as tests run them in processes of their own (tests/processes.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric import Fabric
from torch import nn

from lightning_ssc import Recorder, SSCMonitor, snapshot
from tests.nets import trainer
from tests.processes import join


class Blocks(nn.Module):
    """Linear layers with something between them, as tensor parallelism wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b, self.head = nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.act(self.a(x))))


@contextmanager
def gathered(net: nn.Module) -> Iterator[list[tuple[nn.Module, torch.Tensor, int]]]:
    """Layers that are about to run, on what, and how many weights this process holds whole by then."""
    from torch.distributed.tensor import DTensor

    looks: list[tuple[nn.Module, torch.Tensor, int]] = []

    def look(layer: nn.Module, given: tuple[torch.Tensor]) -> None:
        held = sum(p.numel() for p in net.parameters() if not isinstance(p, DTensor))
        looks.append((layer, given[0], held))

    with ExitStack() as stack:
        for layer in net.modules():
            stack.enter_context(layer.register_forward_pre_hook(look))
        yield looks


def share_weights(world: int, root: Path) -> None:
    """Networks whose weights two processes share, by FSDP2 and by tensor parallelism, against the same one unshared."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    rank, told = join(world), {}
    mesh = init_device_mesh("cpu", (world,))
    x, y = torch.randn(31, 6, generator=torch.Generator().manual_seed(1)), torch.arange(31) % 3
    for kind in ("fsdp", "tensor parallel"):
        torch.manual_seed(0)
        net = Blocks()
        alone = snapshot(net, x, y, "**") if rank == 0 else None
        if kind == "fsdp":
            for module in (net.a, net.b, net):
                fully_shard(module, mesh=mesh)
        else:
            parallelize_module(net, mesh, {"a": ColwiseParallel(), "b": RowwiseParallel()})
        held = {name: type(parameter).__name__ for name, parameter in net.named_parameters()}
        watching = Recorder(net, (x, y), "**")
        with gathered(net) as looks:
            watching.record(0)
        told[f"{kind} ran"] = sum(len(given) for layer, given, _ in looks if layer is net.a)
        told[f"{kind} gathered"] = max(count for *_, count in looks)
        told[kind] = [layer.label for layer in watching.watched]
        told[f"{kind} as before"] = held == {name: type(p).__name__ for name, p in net.named_parameters()}
        if alone is not None:
            taken = watching.store.load(0)
            told[f"{kind} apart"] = max(
                float((layer.coef.to_dense() - alone.layers[name].coef.to_dense()).abs().max())
                for name, layer in taken.layers.items()
            )
            told[f"{kind} predictions"] = bool(torch.equal(taken.predictions, alone.predictions))
    refusals = {"named": ({"layers": ["act"]}, ValueError), "reference": ({"reference": root / "w.pt"}, RuntimeError)}
    if rank == 0:
        torch.save(Blocks().state_dict(), root / "w.pt")
    torch.distributed.barrier()
    for name, (options, kind_of_error) in refusals.items():
        try:
            Recorder(net, (x, y), **{"layers": "**", **options}).record(0)
        except (kind_of_error, RuntimeError) as error:
            told[name] = str(error)
    (root / f"told-{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


def share(net: nn.Module, mesh: Any) -> nn.Module:
    """Share a network's weights over a mesh as Lightning makes it, with sides for data and for tensors."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    if mesh["tensor_parallel"].size() > 1:
        parallelize_module(net, mesh["tensor_parallel"], {"a": ColwiseParallel(), "b": RowwiseParallel()})
    if mesh["data_parallel"].size() > 1:
        for module in (net.a, net.b, net):
            fully_shard(module, mesh=mesh["data_parallel"])
    return net


class Sharded(pl.LightningModule):
    """A module that shards its weights where Lightning lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Blocks()

    def configure_model(self) -> None:
        share(self.net, self.device_mesh)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self) -> Any:
        x, y = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)), torch.arange(40) % 3
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=10)


def probe() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(30, 6, generator=torch.Generator().manual_seed(1)), torch.arange(30) % 3


def unsharded(net: nn.Module) -> dict[str, torch.Tensor]:
    """All weights, whole, for which all processes have to ask."""
    return {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in net.state_dict().items()}


def fit(
    root: Path, sides: tuple[int, int], *callbacks: Any, epochs: int = 2, ckpt_path: Path | None = None, **options: Any
) -> Sharded:
    """Train with weights shared over so many processes for data and for tensors."""
    from pytorch_lightning.strategies import ModelParallelStrategy

    pl.seed_everything(0, verbose=False)
    strategy, model = ModelParallelStrategy(*sides), Sharded()
    run = trainer(root, *callbacks, max_epochs=epochs, strategy=strategy, devices=sides[0] * sides[1], **options)
    run.fit(model, ckpt_path=ckpt_path, weights_only=True)
    return model


def monitor(store: Path, **options: Any) -> SSCMonitor:
    return SSCMonitor("Linear", probe=probe(), heatmap=False, store=store, schedule=1, **options)


def train_sharded(world: int, root: Path) -> None:
    """Train under FSDP2 and tensor parallel, with a monitor and without, and leave the final weights behind."""
    for how, sides in (("fsdp", (world, 1)), ("tensor parallel", (1, world))):
        weights = [unsharded(fit(root, sides, *watched).net) for watched in ((), (monitor(root / how),))]
        if torch.distributed.get_rank() == 0:
            torch.save(weights, root / f"{how}.pt")


def resume_sharded(world: int, root: Path) -> None:
    """Go on with a run of one epoch, from a checkpoint of which every process has written its part."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    for epochs in (1, 2):
        kept = ModelCheckpoint(root / "kept", save_last=True)
        last = root / "kept" / "last.ckpt"
        net = fit(root, (world, 1), monitor(root / "ssc"), kept, epochs=epochs, enable_checkpointing=True,
                  ckpt_path=last if epochs > 1 else None).net  # fmt: skip
    weights = unsharded(net)
    if torch.distributed.get_rank() == 0:
        torch.save(weights, root / "weights.pt")


def loop_of_fabric(world: int, root: Path) -> None:
    """A loop of Fabric's with weights shared by FSDP2, and a Recorder in it."""
    from lightning_fabric.strategies import ModelParallelStrategy

    fabric = Fabric(
        accelerator="cpu",
        devices=world,
        strategy=ModelParallelStrategy(share, data_parallel_size=world, tensor_parallel_size=1),
    )
    fabric.launch()
    torch.manual_seed(0)
    net = fabric.setup_module(Blocks())
    steps = fabric.setup_optimizers(torch.optim.SGD(net.parameters(), lr=0.1))
    recorder = Recorder(net, probe(), "Linear", store=root / "ssc")
    recorder.record(0)
    x, y = probe()
    for epoch in (1, 2):
        fabric.backward(nn.functional.cross_entropy(net(x), y))
        steps.step()
        steps.zero_grad()
        recorder.record(epoch)
    recorder.finish()
    weights = unsharded(net.module)
    if fabric.global_rank == 0:
        torch.save(weights, root / "weights.pt")


def share_over_a_mesh(world: int, root: Path) -> None:
    """A network over four processes in two rows of two: FSDP2 one way, tensor parallel the other."""
    from torch.distributed.device_mesh import init_device_mesh

    rank = join(world)
    torch.manual_seed(0)
    net = Blocks()
    if rank == 0:
        torch.save(net.state_dict(), root / "weights.pt")
    share(net, init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data_parallel", "tensor_parallel")))
    recorder = Recorder(net, probe(), "Linear", store=root / "ssc")
    recorder.record(0)
    torch.distributed.destroy_process_group()
