"""Which tensors of a forward pass depend on what the samples differ in.

A layer may put out the same for every sample because it does not see them (a table of positions), or because the
network has collapsed, or starts at zero, which training will change. The values do not tell; where they come from does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_ssc.capture.calls import tensors_in


class Dependence(TorchFunctionMode):
    """A scope in which every result is known to depend on some inputs or not.

    Example:
        >>> import torch
        >>> x = torch.rand(3, 2)
        >>> with Dependence(x) as dependence:
        ...     y, positions = x.exp().sum(1), torch.arange(2) + torch.zeros_like(x)
        >>> dependence.of(y), dependence.of(positions)
        (True, False)

    Args:
        inputs: The inputs; those of their tensors that are the same for all samples do not count.
    """

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self._dependent: Any = WeakTensorKeyDictionary()
        for tensor in tensors_in(inputs):
            if not rows_are_equal(tensor):
                self._dependent[tensor] = True
        self.has_inputs = len(self._dependent) > 0

    def of(self, value: Any) -> bool:
        """Whether a tensor, or one of a collection, depends on the inputs."""
        return any(tensor in self._dependent for tensor in tensors_in(value))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch and pass dependence on from its arguments to its results."""
        kwargs = kwargs or {}
        result, name = func(*args, **kwargs), getattr(func, "__name__", "")
        if name.endswith("_like") or name.startswith("new_"):
            return result  # takes no more than a shape
        if self.of(args[:1] if name.endswith("_as") else (args, kwargs)):
            for tensor in tensors_in(args[:1] if result is None else result):  # assignments to elements return None
                if tensor.is_floating_point() or tensor.is_complex() or not rows_are_equal(tensor):
                    self._dependent[tensor] = True
        return result


def rows_are_equal(tensor: Tensor) -> bool:
    """Whether a tensor has the same in all its rows; one whose rows cannot be compared (nested, quantised) has not.

    Example:
        >>> import torch
        >>> rows_are_equal(torch.tensor([[1, 2], [1, 2]])), rows_are_equal(torch.tensor([[1, 2], [1, 3]]))
        (True, False)
    """
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        return False
    return tensor.dim() == 0 or bool((tensor == tensor[:1]).all())
