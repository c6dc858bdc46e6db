"""A network with the way in which it is run on inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ssc.capture.batches import SampleList, fields, moved
from lightning_ssc.capture.memory import free_memory
from lightning_ssc.capture.outputs import OutputError
from lightning_ssc.capture.samples import Chunk

Forward = Callable[[nn.Module, Any], Any]

_FLAT = ("FullyShardedDataParallel", "DeepSpeedEngine")  # FSDP1, and what Fabric gets of DeepSpeed
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class NotRunError(RuntimeError):
    """The network does not run on the probe; the message says what to write."""


@dataclass(frozen=True)
class Runner:
    """A network with the way in which it is run on the probe.

    Attributes:
        model: The network.
        forward: ``forward(model, inputs)`` runs it, where calling it on the inputs would not do.
        context: Opened around all that is done with a batch.
        device: Where it runs; by default where its first parameter is.
        chunk: Samples a forward pass.
        memory: Bytes that activations and Grams may take; by default half of what the device has free.
        processes: How many processes share the memory of the host.
        transfer: What brings a batch of the probe, as its loader gives it, to the device; by default it is just moved.
        precision: Opened around the forward pass alone (a precision plugin's autocast).

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
    processes: int = 1
    transfer: Callable[[Any], Any] | None = None
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        """Refuse sizes that are none, and settle on a device."""
        check_sizes(self.chunk, self.memory)
        if self.device is None:
            first = next((p.device for p in self.model.parameters()), torch.device("cpu"))
            object.__setattr__(self, "device", first)

    def __call__(self, inputs: Any) -> Any:
        """Run the network on inputs, or on a batch of the probe, which are moved to its device.

        A tensor goes in as ``model(x)``, a tuple as ``model(*inputs)``, a dict as ``model(**inputs)``, but for what
        ``forward`` has no arguments for; another object as it is or, where ``forward`` takes them, by its attributes.

        Raises:
            NotRunError: It does not run on them.
        """
        try:
            if isinstance(inputs, Chunk):
                given = inputs.inputs((self.transfer or self._moved)(inputs.batch))
            else:
                given = self._moved(inputs)
            with self.precision():
                if self.forward is not None:
                    return self.forward(self.model, given)
                args, kwargs = _arguments(self.model, given)
                return self.model(*args, **kwargs)
        except (OutputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise NotRunError(self._advice(inputs, error)) from error

    def _moved(self, batch: Any) -> Any:
        return moved(batch, self.device)

    def _advice(self, inputs: Any, error: Exception) -> str:
        """What went wrong, and the lines that would mend it."""
        given = inputs.inputs(inputs.batch) if isinstance(inputs, Chunk) else inputs
        name, wrong = type(self.model).__name__, f"{type(error).__name__}: {error}"
        if self.forward is not None:
            return f"forward= does not run {name} on the probe, which gives it {shown(given)} ({wrong})."
        names = [f"x{i}" for i in range(1, len(given) + 1)] if isinstance(given, tuple) else []
        unpacked = f"        {', '.join(names)} = inputs\n" if names else ""
        if not isinstance(given, (Tensor, Mapping, tuple, list)):  # an object with tensors for attributes
            targets = inputs.path[:1] if isinstance(inputs, Chunk) and inputs.path else ()
            held = [key for key, value in fields(given).items() if isinstance(value, Tensor) and key not in targets]
            names = [f"inputs.{key}" for key in held[:3]]
        argument = ", ".join(names) or "inputs"
        first = names[0] if names else "inputs"
        return (
            f"{name} does not run on the probe, which gives it {shown(given)} ({wrong}). Say with forward= how "
            f"validation runs it, for instance\n"
            f"    def run(module, inputs):\n{unpacked}"
            f"        return module({argument})  # or module({first}.float() / 255), module.head(module.body({first}))"
            f"\n"
            f"    SSCMonitor(forward=run)"
        )

    @property
    def grams_on_cpu(self) -> bool:
        """Whether Grams are formed on the CPU: where the network runs there, or on what lacks float64."""
        return self.device is None or self.device.type != "cuda"

    def budget(self) -> int:
        """Bytes that activations and Grams may take."""
        assert self.device is not None
        return self._free(self.device) // 2 if self.memory is None else self.memory

    def budget_of_waiting(self) -> int:
        """Bytes that Grams which wait to be solved may take on the host."""
        return self._free(torch.device("cpu")) // 4 if self.memory is None else self.memory

    def _free(self, device: torch.device) -> int:
        """What this process may count as its own of what a device has free."""
        return free_memory(device) // (1 if device.type == "cuda" else self.processes)


def shown(inputs: Any) -> str:
    """Inputs for messages: types and shapes.

    Example:
        >>> shown((torch.zeros(2, 3), {"mask": torch.ones(2, dtype=torch.bool)}))
        '(float32 (2, 3), {mask: bool (2,)})'
    """
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{key}: {shown(value)}" for key, value in inputs.items()) + "}"
    if isinstance(inputs, (tuple, list)):
        return "(" + ", ".join(shown(value) for value in inputs[:4]) + (", ...)" if len(inputs) > 4 else ")")
    return type(inputs).__name__


def argument_names(model: nn.Module) -> list[str] | None:
    """The names of what a network's ``forward`` takes by position, ``None`` where it takes any number.

    Example:
        >>> argument_names(nn.Linear(2, 2)), argument_names(nn.MultiheadAttention(2, 1))[:3]
        (['input'], ['query', 'key', 'value'])
    """
    parameters = _parameters(model)
    if parameters is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _parameters(model: nn.Module) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # a ScriptModule's
        return None


def _arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a network is called on inputs: by position and by name."""
    positional, parameters = argument_names(model), _parameters(model)
    if isinstance(inputs, Tensor | SampleList):
        return (inputs,), {}
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs) if positional is None else tuple(inputs[: len(positional)]), {}
    if parameters is None:
        return ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    accepted = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = [p.name for p in parameters if p.default is p.empty and p.name in accepted]
    given = fields(inputs)
    named = {name: value for name, value in given.items() if name in accepted}
    if isinstance(inputs, Mapping):
        # One argument that no entry is called takes them all.
        whole = not anything and not named and len(accepted) == 1
        return ((inputs,), {}) if whole else ((), dict(inputs) if anything else named)
    by_name = len(required) > 1 and all(name in given for name in required)
    return ((), named) if by_name else ((inputs,), {})


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

    Raises:
        ValueError: Its weights are shared out in a way that leaves no process whole layers.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(net))[0] is net
        True
    """
    for module in model.modules():
        if found := [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _FLAT]:
            raise ValueError(
                f"{found[0]} shares out weights so that no process holds whole layers, which then cannot be watched. "
                f"Use DDP, or FSDP2 (torch.distributed.fsdp.fully_shard; in Fabric and Trainer ModelParallelStrategy), "
                f"or take snapshots of checkpoints with lightning_ssc.snapshot()."
            )
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
