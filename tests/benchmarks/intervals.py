"""How many intervals of 95 % hold the truth: ``python tests/benchmarks/intervals.py``.

Inputs near subspaces of their classes are drawn anew, again and again, and what is measured of each draw is compared
with the mean over all draws. What is printed of each quantity: the share of intervals that hold that mean, and the mean
standard error over the true one (the standard deviation over the draws).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dataclasses import dataclass

import torch
from jsonargparse import auto_cli
from torch import Tensor

from lightning_ssc.functional import affinity, self_expression
from lightning_ssc.functional.gram_sketch import gram_sketch, sketch_cka_estimate
from lightning_ssc.functional.graph_cka import CentredGraph, graph_cka_estimate
from lightning_ssc.functional.partition import modularity_error, partition
from lightning_ssc.functional.uncertainty import WIDTH, Estimate

RANK, FEATURES = 3, 40  # of a class's subspace, and of all inputs
HEADINGS = ("inputs", "classes", "noise", "tau", "neighbours", "modularity", "SSC-CKA", "linear CKA")


@dataclass(frozen=True)
class World:
    """Where inputs are drawn from.

    Args:
        inputs: How many are drawn.
        classes: Of how many classes, evenly.
        noise: Its standard deviation, where that of an input's place in its subspace is 1.
        tau: Of the graphs.
    """

    inputs: int
    classes: int
    noise: float
    tau: float = 10.0

    def draw(self, seed: int) -> tuple[list[Estimate], float]:
        """Modularity of a layer and its similarities to the next one, and neighbours an input."""
        fixed, drawn = (torch.Generator().manual_seed(of) for of in (0, 1000 + seed))
        bases = torch.randn(self.classes, RANK, FEATURES, generator=fixed)
        turn = torch.randn(FEATURES, FEATURES, generator=fixed)
        labels = torch.arange(self.inputs) % self.classes
        places = torch.randn(self.inputs, RANK, generator=drawn)
        x = torch.einsum("nr,nrd->nd", places, bases[labels])
        x = x + self.noise * torch.randn(x.shape, generator=drawn)
        layers = [x, (x @ turn).relu()]
        coefs = [self_expression(layer, tau=self.tau).coef for layer in layers]
        modularity = Estimate(partition(affinity(coefs[0]), labels).modularity, modularity_error(coefs[0], labels))
        sketches = [gram_sketch(layer @ layer.T) for layer in map(_centred, layers)]
        ssc, linear = graph_cka_estimate(*map(CentredGraph, coefs)), sketch_cka_estimate(*sketches)
        return [modularity, ssc, linear], coefs[0].values().numel() / self.inputs


WORLDS = (
    World(100, 4, 1.0),
    World(100, 4, 0.3),
    World(200, 4, 1.0),
    World(400, 4, 1.0),
    World(200, 10, 0.3),
    World(400, 10, 1.0),
    World(1000, 10, 1.0),
    World(200, 4, 1.0, tau=50.0),
)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def intervals(draws: int = 300) -> None:
    """Print a line a world.

    Args:
        draws: Draws of the inputs of each.
    """
    torch.set_num_threads(1)
    print(f"| {' | '.join(HEADINGS)} |\n|{'---:|' * len(HEADINGS)}")
    for world in WORLDS:
        found, neighbours = zip(*map(world.draw, range(draws)), strict=True)
        values, errors = torch.tensor(found, dtype=torch.float64).unbind(-1)  # (draws, quantities)
        held = ((values - values.mean(0)).abs() <= WIDTH * errors).double().mean(0)
        ratio = errors.square().mean(0).sqrt() / values.std(0)
        cells = [f"{100 * share:.0f} % ({of:.2f})" for share, of in zip(held.tolist(), ratio.tolist(), strict=True)]
        of_world = [world.inputs, world.classes, world.noise, world.tau, round(sum(neighbours) / draws)]
        print(f"| {' | '.join(map(str, [*of_world, *cells]))} |", flush=True)


if __name__ == "__main__":
    auto_cli(intervals, as_positional=False)
