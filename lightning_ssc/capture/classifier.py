"""The classifier of a network: which calls put out what it returns, and how many classes it says it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ssc.capture.calls import Call

_CLASSES = ("num_classes", "num_labels", "n_classes")


def output_calls(root: Call) -> set[tuple[str, int]]:
    """Names and numbers of the calls whose output is the network's, so that what feeds them is its last hidden layer.

    These are the last layer with weights that puts out the very tensor that the network returns or, where it returns
    one row of numbers a sample (the log-probabilities of a classifier, say), one of its shape; and the calls around it
    that put out no more than that. The last block of a network without a head is none of them.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_ssc.capture.calls import observe
        >>> from lightning_ssc.capture.runner import Runner
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(1)))
        >>> sorted(output_calls(observe(Runner(net), torch.rand(7, 2))))
        [('2', 0), ('2.0', 0)]
    """
    numbers: Counter[str] = Counter()
    number: dict[int, int] = {}
    for call in root.below():
        number[id(call)] = numbers[call.name]
        numbers[call.name] += 1
    is_row = any(len(shape) == 2 for shape in root.shapes)

    def path(call: Call, gives: Callable[[Call], bool]) -> list[Call]:
        """The last layer that gives the output, below the calls that it lies in."""
        for child in reversed(call.children):
            if found := path(child, gives):
                return [*found, call]
        return [call] if call.name and len(call.units) == 1 and gives(call) else []

    def gives_the_tensor(call: Call) -> bool:
        return bool(call.given & root.given)

    def gives_its_shape(call: Call) -> bool:
        return is_row and call.shapes[:1] == root.shapes

    found = path(root, gives_the_tensor) or path(root, gives_its_shape)
    found = [*found, *(call for layer in found[:1] for call in layer.below() if call.units)]
    around = [call for call in found if call.name and (gives_the_tensor(call) or gives_its_shape(call))]
    return {(call.name, number[id(call)]) for call in around if is_row or len(call.units) == 1}


def classes_told(model: nn.Module) -> set[int]:
    """The numbers of classes that a network, its hyperparameters, configuration and metrics name.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 100))
        >>> net.num_classes = 100
        >>> classes_told(net)
        {100}
    """
    holders = [holder for m in model.modules() for holder in (m, vars(m).get("config"), vars(m).get("_hparams"))]
    found = [h.get(name) if isinstance(h, Mapping) else getattr(h, name, None) for h in holders for name in _CLASSES]
    return {value for value in found if type(value) is int}


class Head:
    """A linear classifier of a network, and the means of what it is given, class by class.

    Args:
        label: Its label among the watched layers.
        module: The layer; row k of its weights is of class k.
        labels: ``(N,)`` class of every sample.

    Example:
        >>> net = nn.Sequential(nn.ReLU(), nn.Linear(2, 3))
        >>> head = Head("1", net[1], torch.tensor([0, 2, 2]))
        >>> with head.listening(slice(0, 3)):
        ...     out = net(torch.tensor([[1.0, -1.0], [2.0, 4.0], [4.0, 4.0]]))
        >>> weight, means = head.known([head.heard])
        >>> weight.shape, means.tolist()
        (torch.Size([2, 2]), [[1.0, 0.0], [3.0, 4.0]])
    """

    def __init__(self, label: str, module: nn.Linear, labels: Tensor) -> None:
        self.label, self.module, self._labels = label, module, labels
        self._sums = torch.zeros(module.out_features, module.in_features, dtype=torch.float64)
        self._counts = torch.zeros(module.out_features, dtype=torch.int64)

    @contextmanager
    def listening(self, rows: slice) -> Iterator[None]:
        """In it the network runs on some samples; what is not one row each for them is not taken."""
        given: list[Tensor] = []

        def take(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            given.extend(value.detach() for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

        hook = self.module.register_forward_pre_hook(take, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
        labels = self._labels[rows]
        if [features.shape[:-1] for features in given] == [labels.shape]:
            self._sums.index_add_(0, labels, given[0].cpu().double())
            self._counts += labels.bincount(minlength=len(self._counts))

    @property
    def heard(self) -> tuple[Tensor, Tensor]:
        """Sums by class and their numbers so far, of this process."""
        return self._sums, self._counts

    def known(self, heard: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
        """Weights and means ``(K, d)`` of the K classes that there are, from what all processes have heard.

        ``None`` where some samples have not been heard, or there is but one class.
        """
        sums, counts = (torch.stack(parts).sum(0) for parts in zip(*heard, strict=True))
        present = self._labels.unique()
        if int(counts.sum()) < len(self._labels) or len(present) < 2:
            return None
        return self.module.weight.detach().cpu()[present], sums[present] / counts[present, None]
