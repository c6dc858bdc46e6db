"""Scopes that leave no trace: in which a network can be run, or data drawn, beside a training run."""

from __future__ import annotations

import logging
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

log = logging.getLogger(__name__)

_CONSTANT = (str, bytes, int, float, complex, type(None), type, FunctionType, BuiltinFunctionType, MethodType)
_ELSEWHERE = {"torch", "numpy", "lightning", "pytorch_lightning", "lightning_fabric", "threading", "logging"}
_LARGE = 10_000  # entries of a collection that is kept but not looked into: a data set's, not a network's


@contextmanager
def isolated_random_state(*holders: Any) -> Iterator[None]:
    """Every global random state (torch on CPU and devices, NumPy, Python) is the same after as before.

    Args:
        *holders: Data sets, loaders and the like; generators that they hold, and their attributes, are so as well.
    """
    python = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002  # the state that a training run may draw from
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []),
        _unchanged(holders, tensors=False),
    ):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            if mps is not None:
                torch.mps.set_rng_state(mps)


def seed_everything(seed: int) -> None:
    """Seed every global random state; inside :func:`isolated_random_state`.

    ``torch.manual_seed`` would leave a seed for a GPU that is not yet in use, to be found there later.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def eager() -> Iterator[None]:
    """Compiled modules run eagerly inside, and attention takes no path that passes the hooks of its parts by.

    Without dynamo loaded nothing is compiled, and loading it takes seconds.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Run a network in evaluation mode and leave it, and every global state, as they were.

    Inside, every submodule is in evaluation mode, no gradient is recorded, compiled modules run eagerly (hooks never
    fire through a compiled module) and ``self.log`` is mute. On leaving, also by an exception, the ``training`` flag of
    every submodule, its buffers and attributes, with what they hold (tensors, collections, generators, objects with
    attributes of their own), and the random states are restored. Flags are set directly: ``train()`` may be overridden,
    and would unfreeze what the user froze.

    Not undone, but said: parameters that a forward pass changes in place. Neither undone nor seen: what a pass does
    outside the network and its attributes, such as to files, loggers or global variables.

    Raises:
        ValueError: A module is lazy: its first forward pass would be one over the probe.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> with without_trace(net):
        ...     net(torch.ones(1, 2)).tolist(), net.training
        ([[0.9999949932098389, 0.9999949932098389]], False)
        >>> net.training
        True
    """
    modules = list(model.modules())
    _refuse_lazy(model)
    flags = [(module, module.training) for module in modules]
    versions = [(name, p, p._version) for name, p in model.named_parameters() if not p.is_inference()]
    with isolated_random_state(), torch.no_grad(), eager(), _unchanged(modules):
        for module in modules:
            if callable(getattr(module, "log_dict", None)) and callable(getattr(module, "log", None)):
                vars(module).update(log=_mute, log_dict=_mute)  # taken back with all other attributes
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training
    if moved := [name for name, parameter, version in versions if parameter._version != version]:
        log.warning(
            "The network changes its parameters in a forward pass in evaluation mode, which cannot be taken back: %s. "
            "Let it do so in training mode only.", ", ".join(moved[:3]),
        )  # fmt: skip


def _mute(*args: Any, **kwargs: Any) -> None:
    """Stands in for a module's ``log``."""


def _refuse_lazy(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise ValueError(
                f"Layer {name!r} is a {type(module).__name__} whose parameters are made by the first forward pass; "
                f"that must not be one over the probe. Run the network on a batch first, for instance in "
                f"configure_model() of the module."
            )


# -- What could change


@contextmanager
def _unchanged(roots: Iterable[Any], tensors: bool = True) -> Iterator[None]:
    """What some objects hold is afterwards what it was: attributes, collections, generators and, if asked, tensors."""
    put_back: list[Callable[[], None]] = []
    copies: list[tuple[Tensor, Tensor]] = []
    seen: dict[int, Any] = {}  # holds on to what it has seen, or another object could get its id
    left = list(roots)
    while left:
        found = left.pop()
        if isinstance(found, (_CONSTANT, ModuleType)) or id(found) in seen:
            continue
        seen[id(found)] = found
        if isinstance(found, Tensor):
            if tensors and not isinstance(found, nn.Parameter) and _is_plain(found):
                copies.append((found, found.detach().clone()))
        elif isinstance(found, np.ndarray):
            if tensors:
                put_back.append(_back_in_array(found))
        elif (back := _back_in_generator(found)) is not None:
            put_back.append(back)
        elif isinstance(found, (dict, list, set, deque)):
            put_back.append(_back_in_collection(found))
            if len(found) <= _LARGE:
                left += found.values() if isinstance(found, dict) else found
        elif isinstance(found, (tuple, frozenset)):
            if len(found) <= _LARGE:
                left += found
        elif isinstance(found, torch.jit.ScriptModule):
            left += found.buffers(recurse=False)
        elif _has_state(found, tensors):
            left.append(vars(found))
    try:
        yield
    finally:
        for back in put_back:
            back()
        _write_back(copies)


def _has_state(found: Any, of_network: bool) -> bool:
    """Whether an object's attributes are looked into: not those of frameworks, and from a network not those of data."""
    if not hasattr(found, "__dict__"):
        return False
    if isinstance(found, nn.Module):
        return True
    if isinstance(found, (Dataset, DataLoader)) or hasattr(found, "train_dataloader"):
        return not of_network
    if type(found).__module__.startswith("torch.utils.data."):
        return not of_network
    return type(found).__module__.partition(".")[0] not in _ELSEWHERE


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's entries can be compared and written."""
    eight_bits = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    special = tensor.is_quantized or tensor.is_meta or tensor.is_nested or eight_bits
    return tensor.layout == torch.strided and not special


def _back_in_generator(found: Any) -> Callable[[], None] | None:
    state: Any
    if isinstance(found, torch.Generator):
        state = found.get_state()
        return partial(_call, found.set_state, state)
    if isinstance(found, np.random.Generator):
        state = found.bit_generator.state
        return lambda: setattr(found.bit_generator, "state", state)
    if isinstance(found, np.random.RandomState):
        state = found.get_state()
        return partial(_call, found.set_state, state)
    if isinstance(found, random.Random):
        state = found.getstate()
        return lambda: found.setstate(state)
    return None


def _call(setter: Callable[[Any], Any], state: Any) -> None:
    setter(state)


def _back_in_array(array: np.ndarray[Any, Any]) -> Callable[[], None]:
    before = array.copy()

    def back() -> None:
        if array.tobytes() != before.tobytes():
            array[...] = before

    return back


def _back_in_collection(found: Any) -> Callable[[], None]:
    before = list(found.items()) if isinstance(found, dict) else list(found)

    def back() -> None:
        now = list(found.items()) if isinstance(found, dict) else list(found)
        if len(now) == len(before) and all(
            (a[0] is b[0] and a[1] is b[1]) if isinstance(found, dict) else a is b
            for a, b in zip(now, before, strict=True)
        ):
            return
        found.clear()
        if isinstance(found, dict):
            found.update(dict(before))  # of pairs a Counter would count them
        else:
            (found.update if isinstance(found, set) else found.extend)(before)

    return back


def _write_back(copies: list[tuple[Tensor, Tensor]]) -> None:
    """Give tensors that were changed in place their values again; a device is waited for once, however many."""
    changed: dict[torch.device, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for tensor, before in copies:
        if (tensor.shape, tensor.dtype, tensor.device) != (before.shape, before.dtype, before.device):
            tensor.data = before  # resized or moved
        elif tensor.numel():
            changed.setdefault(tensor.device, []).append((tensor, before, (tensor.detach() != before).any()))
    for of_device in changed.values():
        for (tensor, before, _), moved in zip(
            of_device, torch.stack([flag for *_, flag in of_device]).tolist(), strict=True
        ):
            if moved:
                tensor.detach().copy_(before)
