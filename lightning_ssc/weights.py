"""Checkpoints of networks: reading one without executing anything in it, and putting its weights into a network."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the remedy."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, without executing anything in it.

    Raises:
        CheckpointError: It is damaged, or holds objects that only code could restore, or no weights by name.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged bytes lead the reader to
        if refused := re.search(r"GLOBAL (\w\S*)", str(error)):
            raise CheckpointError(
                f"{path} holds {refused[1]} beside tensors and plain values, which is not loaded because that could "
                f"run any code. If you trust it, let the module of --model allow it with "
                f"torch.serialization.add_safe_globals."
            ) from error
        # Before the colon torch advises to load without its safeguard.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason or type(error).__name__}). Remove it if it is damaged."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a checkpoint or a state dict.")
    state, saved = content.get("state_dict", content), content.get("hyper_parameters", {})
    for part, what in ((state, "weights"), (saved, "hyperparameters")):
        if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
            raise CheckpointError(f"{path} is no checkpoint: it does not hold {what} by name.")
    return content


def load_weights(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load weights by name, seen through ``torch.compile`` and through the attribute that holds the inner network.

    Raises:
        CheckpointError: Names or shapes do not fit.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> state = {"model.weight": torch.ones(1, 2), "model.bias": torch.zeros(1), "metric.total": torch.zeros(1)}
        >>> load_weights(net, state)
        >>> net.weight.tolist()
        [[1.0, 1.0]]
    """
    given = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    wanted = {name.replace("_orig_mod.", ""): name for name in model.state_dict()}
    if not wanted:
        raise CheckpointError("The network has no weights that a checkpoint could fill.")
    first = next(iter(wanted))
    prefixes = ["", *sorted(name.removesuffix(first) for name in given if name.endswith(f".{first}"))]
    prefix = next((p for p in prefixes if all(p + name in given for name in wanted)), None)
    if prefix is None:
        missing = [name for name in wanted if name not in given]
        raise CheckpointError(
            f"The checkpoint does not fit the network: it lacks {len(missing)} weights, first "
            f"{', '.join(missing[:3])}, and holds others, first {', '.join(list(given)[:3])}. Give --model the "
            f"class that was trained, and its arguments with --model-arg."
        )
    try:
        model.load_state_dict({full: given[prefix + name] for name, full in wanted.items()})
    except RuntimeError as error:
        raise CheckpointError(f"The checkpoint does not fit the network: {error}") from error


def fingerprint(model: nn.Module) -> list[float]:
    """The norm of every parameter and buffer: equal as long as nothing changes them.

    Of tensors that are sharded, of this process's part.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> before = fingerprint(net)
        >>> same = fingerprint(net) == before
        >>> _ = nn.init.ones_(net.weight)
        >>> same, fingerprint(net) == before
        (True, False)
    """
    tensors = [getattr(t, "to_local", lambda t=t: t)().detach() for t in (*model.parameters(), *model.buffers())]
    norms = [torch.linalg.vector_norm(t if t.is_complex() else t.float()) for t in tensors if t.numel()]
    return torch.stack([norm.double().cpu() for norm in norms]).nan_to_num().tolist() if norms else []


@contextmanager
def with_weights(model: nn.Module, state: Mapping[str, Any]) -> Iterator[None]:
    """The network with other weights, see :func:`load_weights`, and then with its own again.

    Raises:
        CheckpointError: Names or shapes do not fit.
    """
    own = copy.deepcopy(model.state_dict())
    try:
        load_weights(model, state)
        yield
    finally:
        model.load_state_dict(own)
