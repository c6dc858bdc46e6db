"""A network with the way in which it is run on inputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_ssc.capture.memory import free_memory

Forward = Callable[[nn.Module, Any], Any]

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True)
class Runner:
    """A network with the way in which it is run on the probe.

    Attributes:
        model: The network.
        forward: ``forward(model, inputs)`` runs it, where calling it on the inputs would not do.
        context: Opened around the forward pass (a precision plugin's autocast).
        device: Where it runs; by default where its first parameter is.
        chunk: Samples a forward pass.
        memory: Bytes that activations and Grams may take; by default half of what the device has free.

    Raises:
        ValueError: ``chunk`` or ``memory`` is no positive whole number.

    Example:
        >>> Runner(nn.Linear(2, 1).requires_grad_(False))(torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """

    model: nn.Module
    forward: Forward | None = None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    device: torch.device | None = None
    chunk: int = 256
    memory: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that are none, and settle on a device."""
        check_sizes(self.chunk, self.memory)
        if self.device is None:
            first = next((p.device for p in self.model.parameters()), torch.device("cpu"))
            object.__setattr__(self, "device", first)

    def __call__(self, inputs: Any) -> Any:
        """Run the network on inputs, which are moved to its device.

        A tensor goes in as ``model(x)``, a tuple as ``model(*inputs)``, a dict as ``model(**inputs)``.
        """
        inputs = apply_to_collection(inputs, Tensor, lambda t: t.to(self.device))
        if self.forward is not None:
            return self.forward(self.model, inputs)
        if isinstance(inputs, dict):
            return self.model(**inputs)
        return self.model(*inputs) if isinstance(inputs, (tuple, list)) else self.model(inputs)

    def budget(self) -> int:
        """Bytes that activations and Grams may take."""
        assert self.device is not None
        return free_memory(self.device) // 2 if self.memory is None else self.memory


def check_sizes(chunk: int, memory: int | None) -> None:
    """Raise ValueError where a chunk or a memory budget is not a positive whole number.

    Example:
        >>> check_sizes(256, 4_000_000_000)
    """
    for name, value, unit in (("chunk", chunk, "samples, such as 256"), ("memory", memory, "bytes, such as 4 * 10**9")):
        if value is not None and (not hasattr(value, "__index__") or value < 1):
            raise ValueError(f"{name} must be a positive whole number of {unit}; got {value!r}.")


def unwrapped(model: nn.Module) -> tuple[nn.Module, Callable[[], AbstractContextManager[Any]]]:
    """A network without what DataParallel, DDP, Fabric and ``torch.compile`` wrap around it, and Fabric's autocast.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(net))[0] is net
        True
    """
    inner: Any = model
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    while True:
        if isinstance(inner, _PARALLEL):
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), _PARALLEL):
            inner = inner._orig_mod
        elif type(inner).__name__ == "_FabricModule":
            context, inner = inner._strategy.precision.forward_context, inner._original_module
        else:
            return inner, context
