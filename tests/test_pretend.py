"""The pretend GPU itself: on a machine with a real one, both are held to the same."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.pretend import PretendGPU, pretend_gpu

Action = Callable[[Tensor, Tensor], Any]

# Of a (4, 4) tensor on the host and one on the GPU, with positive entries.
MIXED: dict[str, Action] = {
    "sum": lambda host, card: host + card,
    "product": lambda host, card: card @ host,
    "in place": lambda host, card: card.add_(host),
    "list": lambda host, card: torch.cat([host, card]),
    "condition": lambda host, card: torch.where(card > 2, host, host),
    "scalar of the GPU": lambda host, card: host * card.sum(),
    "index on the GPU": lambda host, card: host[card.argmax(1)],
    "mask on the GPU": lambda host, card: host[card > 2],
    "value on the host": lambda host, card: card.__setitem__(card.argmax(1), host),
    "sparse": lambda host, card: card.to_sparse() @ host,
    "out": lambda host, card: torch.mm(card, card, out=host),
    "layer": lambda host, card: nn.Linear(4, 2)(card),
    "generator": lambda host, card: torch.rand(3, device=card.device, generator=torch.Generator()),
    "numpy": lambda host, card: card.numpy(),
    "array": lambda host, card: np.asarray(card),
}
ON_THE_GPU: dict[str, Action] = {
    "scalar of the host": lambda host, card: card * host.sum(),
    "number": lambda host, card: torch.where(card > 2, 0.0, card),
    "index on the host": lambda host, card: card[host.argmax(1)],
    "cuda": lambda host, card: host.cuda(),
    "to": lambda host, card: host.to(card.device, torch.float64),
    "to another": lambda host, card: host.to(card),
    "dtype": lambda host, card: card.double(),
    "made": lambda host, card: torch.arange(3, device=card.device),
    "from a list": lambda host, card: torch.as_tensor([1, 2], device=card.device),
    "from a tensor": lambda host, card: torch.as_tensor(host, device=card.device),
    "like": lambda host, card: torch.zeros_like(host, device=card.device),
    "new": lambda host, card: card.new_full((2,), 7.0),
    "sparse": lambda host, card: card.to_sparse().values(),
    "decomposition": lambda host, card: torch.linalg.eigh(card @ card.T).eigenvectors,
    "view": lambda host, card: card.T[1:].diagonal(),
    "deep copy": lambda host, card: copy.deepcopy(card),
    "copied into": lambda host, card: card.copy_(host),
    "assigned to": lambda host, card: (card.__setitem__(slice(0, 2), host[:2]), card)[1],
    "gradient": lambda host, card: torch.autograd.grad(card.requires_grad_().sum(), card)[0],
    "parameter": lambda host, card: nn.Linear(4, 2).to(card.device).weight,
    "layer": lambda host, card: nn.Linear(4, 2).to(card.device)(card),
    "buffer": lambda host, card: nn.BatchNorm1d(2).to(card.device).running_mean,
}
ON_THE_HOST: dict[str, Action] = {
    "cpu": lambda host, card: card.cpu(),
    "to": lambda host, card: card.to("cpu", non_blocking=True),
    "to another": lambda host, card: card.to(host),
    "copied into": lambda host, card: host.copy_(card),
    "like": lambda host, card: torch.empty_like(card, device="cpu"),
    "parameter": lambda host, card: nn.Linear(4, 2).to(card.device).cpu().weight,
}
WAITING: dict[str, Action] = {
    "item": lambda host, card: card[0, 0].item(),
    "bool": lambda host, card: bool(card.any()),
    "float": lambda host, card: float(card.sum()),
    "int": lambda host, card: int(card.sum()),
    "list": lambda host, card: card.tolist(),
    "range": lambda host, card: card[: card.argmax()],
    "row": lambda host, card: card[card[0].argmax()],
    "nonzero": lambda host, card: card.nonzero(),
    "mask": lambda host, card: card[card > 2],
    "masked values": lambda host, card: card.__setitem__(card > -1, 2 * card.flatten()),
    "unique": lambda host, card: card.unique(),
    "equal": lambda host, card: torch.equal(card, card),
    "sparse": lambda host, card: card.to_sparse(),
    "repeat": lambda host, card: card[0].repeat_interleave(card.argmax(1)),
    "eigenvectors": lambda host, card: torch.linalg.eigh(card),
    "download": lambda host, card: card.cpu(),
    "upload": lambda host, card: host.to(card.device),
    "from a list": lambda host, card: torch.tensor([1.0, 2.0], device=card.device),
}
NOT_WAITING: dict[str, Action] = {
    "sum": lambda host, card: card.sum(),
    "product": lambda host, card: card @ card,
    "range": lambda host, card: card[1:3],
    "index": lambda host, card: card[card.argmax(1)],
    "masked number": lambda host, card: card.__setitem__(card > 2, 0.0),
    "made": lambda host, card: torch.arange(3, device=card.device),
    "repeat": lambda host, card: card[0].repeat_interleave(card.argmax(1) * 0 + 2, output_size=8),
    "factor": lambda host, card: torch.linalg.cholesky_ex(card),
    "of the host": lambda host, card: (bool(host.any()), host.nonzero()),
}


def operands(device: torch.device) -> tuple[Tensor, Tensor]:
    table = torch.arange(1.0, 17.0).view(4, 4)
    return table, table.to(device)


@pytest.mark.parametrize("name", MIXED)
def test_devices_do_not_mix(gpu: torch.device, name: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match=r"device|cuda|cpu"):
        MIXED[name](*operands(gpu))


@pytest.mark.parametrize("name", ON_THE_GPU)
def test_on_the_gpu(gpu: torch.device, name: str) -> None:
    found = ON_THE_GPU[name](*operands(gpu))
    assert found.device == gpu
    assert found.is_cuda
    assert not found.is_cpu


@pytest.mark.parametrize("name", ON_THE_HOST)
def test_on_the_host(gpu: torch.device, name: str) -> None:
    found = ON_THE_HOST[name](*operands(gpu))
    assert found.device.type == "cpu"
    assert not found.is_cuda


@pytest.mark.parametrize("name", WAITING)
def test_the_host_waits_once(pretend: PretendGPU, name: str) -> None:
    host, card = operands(torch.device("cuda"))
    pretend.waits.clear()
    WAITING[name](host, card)
    assert pretend.waits.total() == 1


@pytest.mark.parametrize("name", NOT_WAITING)
def test_the_host_does_not_wait(pretend: PretendGPU, name: str) -> None:
    host, card = operands(torch.device("cuda"))
    pretend.waits.clear()
    NOT_WAITING[name](host, card)
    assert pretend.waits.total() == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_real_gpu_waits_for_the_same() -> None:
    host, card = operands(torch.device("cuda"))
    for action in (*WAITING.values(), *NOT_WAITING.values()):  # libraries wait while they are loaded
        action(host, card.clone())
    waiting = set()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for action in (*WAITING.values(), *NOT_WAITING.values()):
            try:
                action(host, card.clone())
            except RuntimeError:
                waiting.add(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waiting == set(WAITING.values())


def test_gradients_are_where_their_parameters_are(pretend: PretendGPU) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).cuda()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.rand(8, 4).cuda()).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.is_cuda for p in net.parameters())
    assert not all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    with pytest.raises(RuntimeError, match="same device"):
        net(torch.rand(8, 4))


def test_threads_pretend_too_with_streams_of_their_own(pretend: PretendGPU) -> None:
    found: list[Any] = []
    stream = torch.cuda.Stream()

    def work() -> None:
        with torch.cuda.stream(stream):
            found.extend([torch.zeros(2, device="cuda").is_cuda, torch.cuda.current_stream() == stream])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, True]
    assert torch.cuda.current_stream() == torch.cuda.default_stream() != stream


def test_what_ends_leaves_nothing_behind() -> None:
    before = torch.cuda.is_available, torch.cuda.Stream, threading.Thread.run
    with pretend_gpu():
        x = torch.ones(1, device="cuda")
    assert not x.is_cuda
    assert before == (torch.cuda.is_available, torch.cuda.Stream, threading.Thread.run)
