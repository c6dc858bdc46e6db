"""Networks whose weights several processes share: FSDP2 (``fully_shard``) and tensor parallel."""

from __future__ import annotations

import sys
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_ssc.capture.batches import tensors


def is_sharded(model: nn.Module) -> bool:
    """Whether several processes hold parts of the network's weights and run it together.

    Example:
        >>> is_sharded(nn.Linear(2, 2))
        False
    """
    return any(map(_is_fsdp, model.modules())) or any(map(_is_part, model.parameters()))


def runs_apart(model: nn.Module) -> bool:
    """Whether processes can run the network at one time on samples of their own, as they do in training.

    Not where weights are shared in other ways than by FSDP2 alone: processes that share a layer's work have to share
    its samples, too.

    Example:
        >>> runs_apart(nn.Linear(2, 2))
        True
    """
    reshard(model)  # only then parameters show over which processes they are spread
    managed = {id(p) for module in model.modules() if _is_fsdp(module) for p in module.parameters()}
    parts: list[Any] = [p for p in model.parameters() if _is_part(p)]
    return all(id(p) in managed and p.device_mesh.ndim == 1 for p in parts)


def whole(output: Any) -> Any:
    """What a layer puts out with tensors that are spread over processes, all of which ask for it, made whole."""
    if not holds_parts(output):
        return output
    return apply_to_collection(output, Tensor, lambda tensor: tensor.full_tensor() if _is_part(tensor) else tensor)


def holds_parts(output: Any) -> bool:
    """Whether a tensor of what a layer puts out is spread over processes.

    Example:
        >>> import torch
        >>> holds_parts((torch.zeros(2), None))
        False
    """
    return any(map(_is_part, tensors(output)))


def reshard(model: nn.Module) -> None:
    """Let go of weights that FSDP2 has gathered: those of the whole network stay after a forward without a backward."""
    for module in model.modules():
        if _is_fsdp(module):
            module.reshard()  # type: ignore[operator]


def _is_fsdp(module: nn.Module) -> bool:
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def _is_part(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which there is none before its module is loaded, which takes a while."""
    dtensors = sys.modules.get("torch.distributed.tensor")
    return dtensors is not None and isinstance(tensor, dtensors.DTensor)
