"""Scopes that leave no trace: in which a network can be run, or data drawn, beside a training run."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Every global random state (torch on CPU and the current devices, NumPy, Python) is the same after as before."""
    python = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002  # the state that a training run may draw from
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _eager() -> AbstractContextManager[None]:
    """Compiled modules run eagerly inside. Without dynamo loaded nothing is compiled, and loading it takes seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Run a network in evaluation mode and leave it, and every global state, as they were.

    Inside, every submodule is in evaluation mode, no gradient is recorded and compiled modules run eagerly (hooks never
    fire through a compiled module). On leaving, also by an exception, the ``training`` flag of every submodule, the
    buffers and the random states are restored. Flags are set directly: ``train()`` may be overridden, and would
    unfreeze what the user froze.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> with without_trace(net):
        ...     net(torch.ones(1, 2)).tolist(), net.training
        ([[0.9999949932098389, 0.9999949932098389]], False)
        >>> net.training
        True
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module, _ in flags
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with isolated_random_state(), torch.no_grad(), _eager():
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer  # a forward may have put another tensor in its place
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
