"""What the paper claims and what the small runs say: ``python -m recipes.claims`` prints a table and draws the figures.

It reads the latest version of each run of ``recipes/small/*.yaml`` under ``--runs`` and nothing else. A correlation
with depth (Spearman's) holds from 0.8, a chess-board from a score of 0.1; where runs or epochs are compared, a claim
holds if the statistic is in the order that the paper's would be. One seed each: what holds here is shown, not proved.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lightning_ssc.analysis import Dynamics, dynamics, find_blocks
from lightning_ssc.analysis.dynamics import Table
from recipes.drawing import curves, heatmaps
from recipes.runs import Runs

DYNAMICS = ("resnet20", "densenet")
EPOCHS = "wide_resnet28_k1"
DATA = ("resnet20_data5", "resnet20_data50", "resnet20_data100")
VGGS = ("vgg11", "vgg16", "vgg24")
RESNETS = ("resnet14", "resnet20_data100", "resnet32")

_STRONG = 0.8  # rank correlation from which values go with depth
_NEAR = 0.01  # modularity this close to its last value has saturated
_SAME = 0.5  # similarity from which neighbours make one block at every epoch
_BOARD = 0.1  # score from which a chess-board stands out


class Claim(NamedTuple):
    """One line of the table: what the paper says, what was measured on which run, and whether it held."""

    text: str
    run: str
    measured: str
    held: bool


def claims_table(claims: Sequence[Claim]) -> str:
    """The claims as a Markdown table.

    Example:
        >>> print(claims_table([Claim("modularity rises", "resnet20", "0.1 to 0.5", True)]))
        | the paper says | run | measured | held |
        |---|---|---|---|
        | modularity rises | resnet20 | 0.1 to 0.5 | yes |
    """
    lines = ["| the paper says | run | measured | held |", "|---|---|---|---|"]
    lines += [f"| {of.text} | {of.run} | {of.measured} | {'yes' if of.held else '**no**'} |" for of in claims]
    return "\n".join(lines)


def rank(values: Sequence[float] | NDArray[Any]) -> tuple[str, bool]:
    """Spearman's correlation of values with depth, as text, and whether it is at least 0.8."""
    if len(np.unique(values)) < 2:
        return "the same in all layers", False
    found = float(spearmanr(np.arange(len(values)), values).statistic)
    return f"rank correlation with depth {found:.2f}", found > _STRONG - 1e-9


def settled(table: Dynamics, near: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``(L,)`` first epoch from which each layer stays near its final state, given ``(T, L)`` when it is."""
    first: NDArray[np.int64] = table.epochs[np.logical_and.accumulate(near[::-1], axis=0)[::-1].argmax(0)]
    return first


def jumps_at_drops(table: Dynamics) -> list[tuple[str, bool]]:
    """Of each drop of the learning rate: the layers that gain more in its epoch than in those before and after it.

    A drop whose next epoch is the last is left out: CKA to the final state is 1 there whatever happens.
    """
    found = []
    gain = np.diff(table.cka_to_final, axis=0)
    for after in table.drops()[:, 1]:
        at = int(np.flatnonzero(table.epochs == after)[0]) - 1
        if 1 <= at <= len(gain) - 3:
            higher = (gain[at] > np.maximum(gain[at - 1], gain[at + 1])).sum()
            around = ", ".join(f"{gain[i].mean():.3f}" for i in (at - 1, at, at + 1))
            text = f"epoch {after}: {higher} of {gain.shape[1]} layers, mean gain before, of and after {around}"
            found.append((text, bool(higher > gain.shape[1] / 2)))
    return found


def claims_of_dynamics(name: str, table: Dynamics) -> list[Claim]:
    """Section 4: modularity, convergence, drops of the learning rate, linear CKA."""
    text, held = rank(table.modularity[-1])
    first, last = table.modularity[-1, [0, -1]]
    found = [Claim("modularity rises with depth", name, f"{first:.2f} (first layer) to {last:.2f}; {text}", held)]
    near = abs(table.modularity - table.modularity[-1]) <= _NEAR
    at = settled(table, near)
    text, held = rank(at)
    measured = f"within {_NEAR} of its last value from epoch {at[0]} (first layer) to {at[-1]}; {text}"
    found.append(Claim("modularity of shallow layers saturates first", name, measured, held))
    ssc, linear = (settled(table, cka >= 0.9) for cka in (table.cka_to_final, table.linear_cka_to_final))
    text, held = rank(ssc)
    measured = f"SSC-CKA to final stays above 0.9 from epoch {ssc[0]} (first layer) to {ssc[-1]}; {text}"
    found.append(Claim("shallow layers settle first", name, measured, held))
    steps = jumps_at_drops(table)
    held = bool(steps) and all(higher for _, higher in steps)
    found.append(Claim("a jump at each learning-rate drop", name, "; ".join(text for text, _ in steps), held))
    if len(jumps := table.jumps()):
        text, held = rank(jumps.mean(0))
        measured = f"first layer {jumps[:, 0].mean():.3f}, last {jumps[:, -1].mean():.3f}, mean of drops; {text}"
        found.append(Claim("the jump is smaller in shallow layers", name, measured, held))
    measured = f"above 0.9 from epoch {listed(linear, 'd')} by layer; SSC-CKA from {listed(ssc, 'd')}"
    held = bool((linear <= ssc).all() and (linear < ssc).any())
    found.append(Claim("linear CKA settles earlier", name, measured, held))
    return found


def in_order(values: Sequence[float], upwards: bool) -> bool:
    """Whether values rise (or fall) strictly."""
    return bool((np.diff(values) > 0).all() if upwards else (np.diff(values) < 0).all())


def listed(values: Sequence[float] | NDArray[Any], form: str = ".2f") -> str:
    """Values in the order of the runs."""
    return ", ".join(f"{value:{form}}" for value in values)


def neighbours_alike(matrix: Table) -> float:
    """Mean similarity of a layer to the next."""
    return float(np.diagonal(matrix, 1).mean())


def others_alike(matrix: Table) -> float:
    """Mean similarity of a layer to all others."""
    return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())


def two_blocks(matrix: Table) -> float:
    """How far the best cut in two sets layers apart: mean similarity inside the parts less that between them."""
    cuts = range(2, len(matrix) - 1)
    return max(
        float(np.mean([others_alike(matrix[:cut, :cut]), others_alike(matrix[cut:, cut:])]) - matrix[:cut, cut:].mean())
        for cut in cuts
    )


def stands_out(matrix: Table) -> float:
    """Mean similarity inside the first two thirds of the layers less that to the others."""
    cut = 2 * len(matrix) // 3
    return others_alike(matrix[:cut, :cut]) - float(matrix[:cut, cut:].mean())


def claims_of_architecture(runs: Runs) -> list[Claim]:
    """Section 5: depth, epochs and quantity of data."""
    found = []
    for family in (VGGS, RESNETS):
        matrices = [runs.heatmap(name)[0] for name in family]
        contrast = [find_blocks(matrix).contrast for matrix in matrices]
        alike = [neighbours_alike(matrix) for matrix in matrices]
        right = [runs.accuracy(name)[0] for name in family]
        measured = (
            f"contrast of the blocks {listed(contrast)}; next layers' similarity {listed(alike)}; "
            f"accuracy {listed(right, '.0%')}"
        )
        held = in_order(contrast, upwards=True) and in_order(alike, upwards=True)
        found.append(Claim("blocks show in deeper networks", ", ".join(family), measured, held))
    halves = [matrix[: len(matrix) // 2, : len(matrix) // 2] for matrix in (runs.heatmap(name)[0] for name in DATA)]
    apart = [two_blocks(half) for half in halves]
    measured = (
        f"first half of the layers, best cut in two: inside less between {listed(apart)}; mean similarity "
        f"{listed([others_alike(half) for half in halves])}"
    )
    held = in_order(apart, upwards=False)
    found.append(Claim("two blocks in the first half of data-starved networks", ", ".join(DATA), measured, held))
    epochs = runs.store(EPOCHS).epochs
    matrices = [runs.heatmap(EPOCHS, epoch)[0] for epoch in epochs]
    apart = [stands_out(matrix) for matrix in matrices]
    measured = (
        f"first two thirds after epochs {listed(epochs, 'd')}: inside less outside {listed(apart)}; blocks found "
        f"{listed([len(find_blocks(matrix, _SAME).starts) for matrix in matrices], 'd')}"
    )
    found.append(Claim("one large block early, small ones later", EPOCHS, measured, apart[0] > max(apart[1:])))
    for name in (*RESNETS, EPOCHS):
        matrix, layers = runs.heatmap(name)
        main = [i for i, layer in enumerate(layers) if "shortcut" not in layer and "downsample" not in layer]
        boards = [find_blocks(part).chessboard for part in (matrix, matrix[np.ix_(main, main)])]
        measured = f"score {listed(boards)} with and without the 1 x 1 shortcuts (0 is none, 1 a perfect board)"
        found.append(Claim("a chess-board in ResNets", name, measured, min(boards) >= _BOARD))
    return found


def claims_of_inputs(runs: Runs) -> list[Claim]:
    """Section 6: the graph of the last convolution labels inputs as the network does."""
    found = []
    for name in (*RESNETS, *VGGS):
        seen = runs.last_convolution(name)
        measured = (
            f"SSC labels {seen.ssc_accuracy:.1%} right, network {seen.network_accuracy:.1%}, alike {seen.agreement:.1%}"
        )
        held = abs(seen.ssc_accuracy - seen.network_accuracy) < 0.05 and seen.agreement > 0.9
        text = "neighbours label inputs as the network does (within 5 points, 90 % alike)"
        found.append(Claim(text, name, measured, held))
    return found


def draw(runs: Runs, folder: Path) -> None:
    """The figures (a) to (d) as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in DYNAMICS:
        curves(folder / f"small_dynamics_{name}.png", dynamics(runs.store(name)))
    epochs = runs.store(EPOCHS).epochs
    heatmaps(folder / "small_epochs.png", [(f"epoch {epoch}", *runs.heatmap(EPOCHS, epoch)) for epoch in epochs])
    heatmaps(folder / "small_data.png", [(name, *runs.heatmap(name)) for name in DATA])
    heatmaps(folder / "small_depth_vgg.png", [(name, *runs.heatmap(name)) for name in VGGS])
    heatmaps(folder / "small_depth_resnet.png", [(name, *runs.heatmap(name)) for name in RESNETS])


def main() -> None:
    """Print the claims and the runs as Markdown tables, and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/small"), help="folder of the runs")
    parser.add_argument("--figures", type=Path, default=Path("runs/small/figures"), help="where to draw")
    options = parser.parse_args()
    runs = Runs(options.runs, "recipes/small")
    found = [claim for name in DYNAMICS for claim in claims_of_dynamics(name, dynamics(runs.store(name)))]
    found += [*claims_of_architecture(runs), *claims_of_inputs(runs)]
    print(claims_table(found))
    print("\n| run | accuracy, all test images | seconds |\n|---|---:|---:|")
    for name in dict.fromkeys((*DYNAMICS, EPOCHS, *DATA, *VGGS, *RESNETS)):
        accuracy, seconds = runs.accuracy(name)
        print(f"| `small/{name}.yaml` | {accuracy:.1%} | {seconds:.0f} |")
    draw(runs, options.figures)
    print(f"\nFigures: {options.figures}")


if __name__ == "__main__":
    main()
