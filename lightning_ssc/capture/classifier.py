"""The classifier of a network: which calls put out what it returns, and how many classes it says it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from torch import nn

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
