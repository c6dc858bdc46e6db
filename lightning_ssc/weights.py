"""Checkpoints of networks: reading one without executing anything in it, and putting its weights into a network."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_ssc.files import obstacle

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the remedy."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, without executing anything in it.

    Raises:
        CheckpointError: It is damaged, or holds objects that only code could restore, or no weights by name; or the
            file, which may be sound, cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged bytes lead the reader to
        if why := obstacle(error):
            raise CheckpointError(f"{path} cannot be read ({why}).") from error
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
    """Load weights by name, seen through ``torch.compile`` and through what stands before the names on either side.

    A network in an attribute of another module, ``model.0.weight``, is found for ``0.weight`` and the other way round.

    Raises:
        CheckpointError: Names or shapes do not fit, or those of several networks do.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> state = {"model.weight": torch.ones(1, 2), "model.bias": torch.zeros(1), "metric.total": torch.zeros(1)}
        >>> load_weights(net, state)
        >>> net.weight.tolist()
        [[1.0, 1.0]]
    """
    given = {_WRAPPERS.sub("", name): value for name, value in state.items()}
    own = model.state_dict()
    wanted = {_WRAPPERS.sub("", name): name for name in own}
    if not wanted:
        raise CheckpointError("The network has no weights that a checkpoint could fill.")
    found = next((found for own in _prefixes(list(wanted)) if (found := _by_prefix(given, wanted, own))), {})
    if not found:
        missing = [name for name in wanted if name not in given]
        raise CheckpointError(
            f"The checkpoint does not fit the network: it lacks {len(missing)} weights, first "
            f"{', '.join(missing[:3])}, and holds others, first {', '.join(list(given)[:3])}."
        )
    of_one_shape = {
        prefix: weights for prefix, weights in found.items() if all(_alike(own[name], weights[name]) for name in own)
    }
    if "" not in found and len(of_one_shape) > 1:
        names = [prefix.removesuffix(".") for prefix in of_one_shape]
        raise CheckpointError(
            f"The checkpoint holds {len(names)} networks that fit: {', '.join(map(repr, names))}. Say which is meant: "
            f"reference='FILE:{names[-1]}', or --network {names[-1]} of lightning-ssc analyze."
        )
    try:
        model.load_state_dict(found[""] if "" in found else next(iter((of_one_shape or found).values())))
    except RuntimeError as error:
        raise CheckpointError(f"The checkpoint does not fit the network: {error}") from error


def network_of(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The weights of one of several networks in a checkpoint.

    Args:
        state: All weights by name.
        name: What stands before the names of its weights.

    Raises:
        CheckpointError: There is no such network.

    Example:
        >>> network_of({"model.bias": 1, "ema.bias": 2}, "ema")
        {'bias': 2}
    """
    given = {_WRAPPERS.sub("", key): value for key, value in state.items()}
    prefix = f"{name.removesuffix('.')}."
    if not (found := {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}):
        others = dict.fromkeys(key.partition(".")[0] for key in given if "." in key)
        known = ", ".join(map(repr, others)) or "one without a name"
        raise CheckpointError(f"The checkpoint holds no network {name!r}, only {known}.")
    return found


def _prefixes(names: list[str]) -> list[str]:
    """Nothing, and whatever all names begin with, up to a dot."""
    begins = [names[0][: dot.end()] for dot in re.finditer(r"\.", names[0])]
    return ["", *(begin for begin in begins if all(name.startswith(begin) for name in names))]


def _by_prefix(given: Mapping[str, Any], wanted: Mapping[str, str], own: str) -> dict[str, dict[str, Any]]:
    """Weights by full name for every prefix with which all are given that are wanted, less the prefix of their own."""
    bare = {name.removeprefix(own): full for name, full in wanted.items()}
    first = next(iter(bare))
    prefixes = sorted(name.removesuffix(first) for name in given if name == first or name.endswith(f".{first}"))
    return {
        prefix: {full: given[prefix + name] for name, full in bare.items()}
        for prefix in prefixes
        if all(prefix + name in given for name in bare)
    }


def _alike(one: Any, other: Any) -> bool:
    """Whether two weights are of one shape; one that is not yet made takes any."""
    return is_lazy(one) or getattr(other, "shape", None) == getattr(one, "shape", None)


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
    norms: dict[torch.device, list[Tensor]] = {}
    for t in filter(Tensor.numel, tensors):
        norms.setdefault(t.device, []).append(torch.linalg.vector_norm(t if t.is_complex() else t.float()))
    # A device is waited for once, however many tensors are on it; only the CPU has float64 for sure.
    stacked = [torch.stack([norm.float() for norm in of]).cpu() for of in norms.values()]
    return torch.cat(stacked).double().nan_to_num().tolist() if stacked else []


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
