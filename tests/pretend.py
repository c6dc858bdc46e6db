"""A pretend CUDA device: finds on a machine without a GPU what would fail on one, and what would make it wait.

Tensors stay in the CPU's memory and carry a tag. A mode of torch's answers ``.device`` and ``.is_cuda`` from the tags,
moves them on ``.to``, ``.cpu``, ``.cuda`` and ``device=``, and raises where CUDA would: operands on two devices, arrays
made of tensors on the GPU, tensors of the host indexed by some on the GPU, a generator of the other device. It counts
what the host would have to wait for the GPU with. Code therefore takes the GPU's path, with the numbers of the CPU.

Known limits. Nothing below Python is seen: a kernel that CUDA lacks, float64 that it does at another speed. A tensor of
the host without dimensions goes with everything, as it does in all element-wise functions and not in all others.
Networks' backward passes make tensors below Python; their gradients are taken to be where their parameters are.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MEMORY = 8 << 30  # bytes that the pretend device has free

# What reads a number off the GPU, if only, as decompositions do, to see whether it has succeeded.
_READS = {
    "__bool__", "__contains__", "__float__", "__format__", "__index__", "__int__", "item", "tolist",
    "allclose", "equal", "is_nonzero",
    "argwhere", "bincount", "masked_select", "nonzero", "unique", "unique_consecutive",
    "linalg_cholesky", "linalg_eigh", "linalg_eigvalsh", "linalg_inv", "linalg_solve", "linalg_svd",
}  # fmt: skip
_COUNTS_ENTRIES = {"coalesce", "to_sparse", "to_sparse_coo", "to_sparse_csc", "to_sparse_csr"}
_READS_NOTHING = {"_has_compatible_shallow_copy_type", "result_type"}

_on_gpu: Any = WeakTensorKeyDictionary()  # of all modes: where a tensor is outlives them, as a cache may


class PretendGPU(TorchFunctionMode):
    """The mode, active in the threads that have entered it.

    Attributes:
        waits: How many times the host has waited for the device, by what made it wait: torch's names, ``"mask"`` for
            an index of truth values, ``"upload"`` and ``"download"`` for copies from and to the host.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", str(func)), dict(kwargs or {})
        if not (args and isinstance(args[0], Tensor)):
            return self._call(func, name, args, kwargs)
        first = args[0]
        if name in ("__get__", "__set__"):
            return self._attribute(func, name, first, args, kwargs)
        if name in ("to", "cpu", "cuda") or (name == "as_tensor" and kwargs.get("device") is not None):
            return self._move(name, first, args[1:], kwargs)
        if name in ("__getitem__", "__setitem__"):
            return self._index(func, first, args, kwargs)
        if name == "copy_":
            self._count_copy(args[1], _device_of(first))
            return func(*args, **kwargs)
        if name == "__deepcopy__":  # beside the tensor there is a memo, with tensors of both devices
            return _placed(func(*args, **kwargs), _device_of(first))
        return self._call(func, name, args, kwargs)

    def _call(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Anything that neither moves nor indexes: all operands on one device, and what is made of them there too."""
        given = [*_tensors(args), *_tensors(kwargs)]
        devices = {_device_of(t) for t in given if t.dim() or _device_of(t) == CUDA}
        if len(devices) > 1 and name not in _READS_NOTHING:
            operands = ", ".join(f"{tuple(t.shape)} on {_device_of(t)}" for t in given)
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, got {operands}")
        device = CUDA if CUDA in devices else CPU
        if device == CUDA:
            self._count_reads(name, args, kwargs)
        if kwargs.get("device") is not None:
            device, kwargs["device"] = _named(kwargs["device"]), "cpu"
            if device == CUDA and name in ("tensor", "as_tensor"):
                self.waits["upload"] += 1
        generator = kwargs.get("generator")
        if generator is not None and generator.device != device:
            raise RuntimeError(f"{name}: expected a generator of {device}, got one of {generator.device}")
        return _placed(func(*args, **kwargs), device, given)

    def _count_reads(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count a wait for a function that tells the host something, or raise for one that cannot."""
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert a tensor on cuda:0 to numpy: copy it to the host first, with .cpu()")
        if (
            name in _READS
            or (name in _COUNTS_ENTRIES and not _knows_entries(args[0]))
            or (name == "repeat_interleave" and len(args) < 3 and "output_size" not in kwargs)
        ):
            self.waits[name] += 1

    def _count_copy(self, source: Tensor, to: torch.device) -> None:
        if _device_of(source) != to:
            self.waits["upload" if to == CUDA else "download"] += 1

    def _attribute(self, func: Any, name: str, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        attribute = getattr(func.__self__, "__name__", "")
        if name == "__set__" and attribute == "data":  # how modules move their parameters
            func(*args, **kwargs)
            return _put(tensor, _device_of(args[1]))
        if name == "__get__" and attribute == "device":
            return _device_of(tensor)
        if name == "__get__" and attribute in ("is_cpu", "is_cuda"):
            return _device_of(tensor).type == attribute.removeprefix("is_")
        return self._call(func, name, args, kwargs)

    def _index(self, func: Any, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``tensor[index]``, or ``tensor[index] = value``."""
        index, value, device = args[1], args[2] if len(args) > 2 else None, _device_of(tensor)
        by_tensor = False
        for part in index if isinstance(index, tuple) else (index,):
            bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
            for bound in bounds:
                if isinstance(bound, Tensor) and bound.dim() == 0 and bound.dtype != torch.bool:  # read as a number
                    self.waits["__index__"] += _device_of(bound) == CUDA
            if not isinstance(part, Tensor) or part.dim() == 0:
                continue
            by_tensor = True
            if _device_of(part) == CUDA and device == CPU:
                raise RuntimeError("indices should be on cpu, where the indexed tensor is, got some on cuda:0")
            self._count_copy(part, device)
            if device == CUDA and part.dtype == torch.bool and (value is None or isinstance(value, Tensor)):
                self.waits["mask"] += 1
        if isinstance(value, Tensor):
            if by_tensor and value.dim() and _device_of(value) != device:
                raise RuntimeError(f"__setitem__: expected a value on {device}, got one on {_device_of(value)}")
            self._count_copy(value, device)
        return _placed(func(*args, **kwargs), device, [tensor])

    def _move(self, name: str, source: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """``source.to(...)`` and its like: torch does all of it but the move."""
        target = {"cpu": CPU, "cuda": CUDA}.get(name, _device_of(source))
        flags = [value for value in rest if isinstance(value, bool)]  # non_blocking, copy
        options: dict[str, Any] = {"copy": kwargs.get("copy", flags[1:] == [True])}
        for value in (*rest, *kwargs.values()):
            if isinstance(value, Tensor):
                target, options["dtype"] = _device_of(value), value.dtype
            elif isinstance(value, torch.dtype):
                options["dtype"] = value
            elif isinstance(value, torch.memory_format):
                options["memory_format"] = value
            elif value is not None and not isinstance(value, bool):
                target = _named(value)
        moved = source.to(**options)
        if target != _device_of(source):
            moved = source.clone() if moved is source else moved
            self._count_copy(source, target)
        return moved if moved is source else _placed(moved, target)


def _device_of(tensor: Tensor) -> torch.device:
    return CUDA if tensor in _on_gpu else CPU


def _put(tensor: Tensor, device: torch.device) -> None:
    if device == CUDA:
        _on_gpu[tensor] = True
    else:
        _on_gpu.pop(tensor, None)


def _placed(result: Any, device: torch.device, given: Sequence[Tensor] = ()) -> Any:
    """A function's result, once its tensors are put on a device; those given to it stay where they are."""
    for tensor in _tensors(result):
        if not any(tensor is other for other in given):
            _put(tensor, device)
    return result


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in the arguments or the result of a function."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _named(device: Any) -> torch.device:
    """The device called so: there is only one GPU."""
    return CUDA if isinstance(device, int) or torch.device(device).type == "cuda" else CPU


def _knows_entries(matrix: Tensor) -> bool:
    """Whether a matrix is sparse and in order, so that nobody has to look how many entries it has."""
    return matrix.is_coalesced() if matrix.layout == torch.sparse_coo else matrix.layout != torch.strided


class _Stream:
    """A stream of the pretend device, which does everything at once."""

    def __init__(self, device: Any = None) -> None:
        assert device is None or _named(device) == CUDA

    def synchronize(self) -> None:
        """Nothing is left to wait for."""


def _functions_of_cuda() -> dict[str, Any]:
    """Stand-ins for ``torch.cuda``'s functions, by name."""
    default, current = _Stream(), threading.local()

    def current_stream(device: Any = None) -> _Stream:
        return getattr(current, "stream", default)

    @contextmanager
    def stream(entered: _Stream) -> Iterator[None]:
        before, current.stream = current_stream(), entered
        try:
            yield
        finally:
            current.stream = before

    return {
        "Stream": _Stream,
        "current_device": lambda: 0,
        "current_stream": current_stream,
        "default_stream": lambda device=None: default,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_capability": lambda device=None: (7, 0),
        "get_device_name": lambda device=None: "pretend GPU",
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "max_memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "set_device": lambda device: None,
        "set_rng_state": lambda state, device=None: None,
        "stream": stream,
        "synchronize": lambda device=None: None,
    }


@contextmanager
def pretend_gpu() -> Iterator[PretendGPU]:
    """A machine with one GPU, in this thread and in those that are started inside.

    Example:
        >>> with pretend_gpu() as gpu:
        ...     x = torch.ones(3, device="cuda")
        ...     bool((2 * x).sum() > 5), x.device, gpu.waits["__bool__"]
        (True, device(type='cuda', index=0), 1)
    """
    mode, run = PretendGPU(), threading.Thread.run

    def pretending(thread: threading.Thread) -> None:
        with mode:
            run(thread)

    with patch.multiple(torch.cuda, **_functions_of_cuda()), patch.object(threading.Thread, "run", pretending), mode:
        yield mode
