"""What the paper claims and what the small runs say: ``python -m recipes.claims`` prints a table and draws the figures.

It reads the latest version of each run of ``recipes/small/*.yaml`` under ``--runs`` and nothing else. Correlations are
Spearman's, one-sided, and hold below p = 0.05; where runs are compared, a claim holds if the statistic is in the order
that the paper's would be.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ssc import SnapshotStore
from lightning_ssc.analysis import Dynamics, Inputs, dynamics, find_blocks, find_store, inputs, similarity
from lightning_ssc.analysis.dynamics import Table
from lightning_ssc.plots import dynamics_curves, heatmap

DYNAMICS = ("resnet20", "densenet")
EPOCHS = "wide_resnet28_k1"
DATA = ("resnet20_data5", "resnet20_data50", "resnet20_data100")
VGGS = ("vgg11", "vgg16", "vgg24")
RESNETS = ("resnet14", "resnet20_data100", "resnet32")


class Claim(NamedTuple):
    """One line of the table: what the paper says, what was measured on which run, and whether it held."""

    text: str
    run: str
    measured: str
    held: bool


class Runs:
    """The runs below a folder, by recipe."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str) -> Path:
        """The latest version of a run.

        Raises:
            FileNotFoundError: There is none.
        """
        versions = sorted((self.root / name).glob("version_*"), key=lambda path: int(path.name.rsplit("_", 1)[1]))
        if not versions:
            raise FileNotFoundError(
                f"no run in {self.root / name}: python -m recipes fit --config recipes/small/{name}.yaml"
            )
        return versions[-1]

    def store(self, name: str) -> SnapshotStore:
        """Its snapshots."""
        return find_store(self.folder(name))

    def heatmap(self, name: str, epoch: int | None = None) -> tuple[Table, list[str]]:
        """SSC-CKA between its layers, after an epoch or the last one, and the layers' names."""
        store = self.store(name)
        found = similarity(store.load(store.epochs[-1] if epoch is None else epoch), linear=False)
        return found.ssc, found.rows

    def accuracy(self, name: str) -> tuple[float, float]:
        """Accuracy on all test images after the last epoch, and the minutes from its first to its last event."""
        events = EventAccumulator(str(self.folder(name)), size_guidance={"scalars": 0}).Reload()
        accuracy = events.Scalars("val/accuracy")
        return accuracy[-1].value, (accuracy[-1].wall_time - events.FirstEventTimestamp()) / 60

    def last_convolution(self, name: str) -> Inputs:
        """The probe as the graph of the last convolution sees it."""
        taken = self.store(name).load(self.store(name).epochs[-1])
        return inputs(taken, list(taken.layers)[-1])


def rank(values: Sequence[float] | Table, upwards: bool = True) -> tuple[str, bool]:
    """Spearman's correlation of values with depth, as text, and whether it is significant in that direction.

    Layers without a value (NaN, such as those that never settle) are left out.
    """
    values = np.asarray(values, dtype=float)
    depths = np.flatnonzero(~np.isnan(values))
    if len(np.unique(values[depths])) < 2:
        return "the same in all layers", False
    found = spearmanr(depths, values[depths], alternative="greater" if upwards else "less")
    chance = f"p = {found.pvalue:.1g}" if found.pvalue >= 1e-9 else "p < 1e-9"
    return f"rank correlation with depth {found.statistic:.2f} ({chance})", bool(found.pvalue < 0.05)


def gains(table: Dynamics) -> list[tuple[str, bool]]:
    """Of each drop of the learning rate: the mean gain in CKA to final in its epoch, before and after it."""
    found = []
    gain = np.diff(table.cka_to_final, axis=0).mean(1)
    for after in table.drops()[:, 1]:
        at = int(np.flatnonzero(table.epochs == after)[0]) - 1
        before, here, later = gain[at - 1 : at + 2]
        found.append((f"{before:.3f}, **{here:.3f}**, {later:.3f}", bool(here > max(before, later))))
    return found


def claims_of_dynamics(name: str, table: Dynamics) -> list[Claim]:
    """Section 4: modularity, convergence, drops of the learning rate, linear CKA."""
    text, held = rank(table.modularity[-1])
    first, last = table.modularity[-1, [0, -1]]
    found = [Claim("modularity rises with depth", name, f"{first:.2f} to {last:.2f}; {text}", held)]
    settled = table.settled()
    text, held = rank(settled)
    measured = (
        f"SSC-CKA to final stays above 0.9 from epoch {settled[0]:.0f} (first layer) to {settled[-1]:.0f}; {text}"
    )
    found.append(Claim("shallow layers settle first", name, measured, held))
    steps = gains(table)
    measured = "mean gain in the epochs before, **of** and after: " + "; ".join(text for text, _ in steps)
    found.append(Claim("a jump at each learning-rate drop", name, measured, all(higher for _, higher in steps)))
    jumps = table.jumps()
    text, held = rank(jumps.mean(0))
    measured = f"first layer {jumps[:, 0].mean():.3f}, last {jumps[:, -1].mean():.3f}, mean of drops; {text}"
    found.append(Claim("the jump is smaller in shallow layers", name, measured, held))
    ahead = np.nanmean((table.linear_cka_to_final - table.cka_to_final)[:-1], axis=0)
    measured = f"linear less SSC-CKA to final, mean over epochs: {ahead.min():.2f} to {ahead.max():.2f} by layer"
    found.append(Claim("linear CKA settles earlier", name, measured, bool((ahead > 0).all())))
    return found


def in_order(values: Sequence[float], upwards: bool) -> bool:
    """Whether values rise (or fall) strictly."""
    return bool((np.diff(values) > 0).all() if upwards else (np.diff(values) < 0).all())


def listed(values: Sequence[float], form: str = ".2f") -> str:
    """Values in the order of the runs."""
    return ", ".join(f"{value:{form}}" for value in values)


def largest(matrix: Table) -> float:
    """Share of the layers that the largest block holds."""
    starts = find_blocks(matrix).starts
    return float(np.diff([*starts, len(matrix)]).max() / len(matrix))


def neighbours_alike(matrix: Table) -> float:
    """Mean similarity of a layer to the next."""
    return float(np.diagonal(matrix, 1).mean())


def others_alike(matrix: Table) -> float:
    """Mean similarity of a layer to all others."""
    return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())


def claims_of_architecture(runs: Runs) -> list[Claim]:
    """Section 5: depth, epochs and quantity of data."""
    found = []
    for family in (VGGS, RESNETS):
        matrices = [runs.heatmap(name)[0] for name in family]
        contrast = [find_blocks(matrix).contrast for matrix in matrices]
        alike = [neighbours_alike(matrix) for matrix in matrices]
        measured = f"contrast of the blocks {listed(contrast)}; next layers' similarity {listed(alike)}"
        held = in_order(contrast, upwards=True) and in_order(alike, upwards=True)
        found.append(Claim("blocks show in deeper networks", ", ".join(family), measured, held))
    matrices = [runs.heatmap(name)[0] for name in DATA]
    halves = [matrix[: len(matrix) // 2, : len(matrix) // 2] for matrix in matrices]
    contrast = [find_blocks(half).contrast for half in halves]
    measured = (
        f"first half: contrast of its blocks {listed(contrast)}; mean similarity of its layers "
        f"{listed([others_alike(half) for half in halves])}"
    )
    found.append(
        Claim("blocks show in data-starved networks", ", ".join(DATA), measured, in_order(contrast, upwards=False))
    )
    store = runs.store(EPOCHS)
    matrices = [runs.heatmap(EPOCHS, epoch)[0] for epoch in store.epochs]
    shares = [largest(matrix) for matrix in matrices]
    shallow = [others_alike(matrix[: 2 * len(matrix) // 3, : 2 * len(matrix) // 3]) for matrix in matrices]
    measured = (
        f"largest block after epochs {listed(store.epochs, 'd')}: {listed(shares, '.0%')} of the layers; "
        f"mean similarity in the first two thirds {listed(shallow)}"
    )
    held = shares[0] >= 0.5 and shares[0] > shares[-1]
    found.append(Claim("one large block early, small ones later", EPOCHS, measured, held))
    boards = {}
    for name in (*RESNETS, EPOCHS, *VGGS[1:]):
        matrix, _ = runs.heatmap(name)
        boards[name] = find_blocks(matrix).chessboard
    residual, plain = ([boards[name] for name in names] for names in ((*RESNETS, EPOCHS), VGGS[1:]))
    measured = f"score {listed(residual)} (0 is none, 1 a perfect board); of {', '.join(VGGS[1:])} {listed(plain)}"
    others = [0.02, *(score for score in plain if score == score)]  # NaN: no block of four layers
    held = min(residual) > max(others)
    found.append(Claim("a chess-board in ResNets", ", ".join((*RESNETS, EPOCHS)), measured, held))
    return found


def claims_of_inputs(runs: Runs) -> list[Claim]:
    """Section 6: the graph of the last convolution labels inputs as the network does."""
    found = []
    for name in (*RESNETS, VGGS[0]):
        seen = runs.last_convolution(name)
        agreement = float((seen.ssc_labels == seen.predictions).mean())
        measured = (
            f"SSC labels {seen.ssc_accuracy:.1%} right, network {seen.network_accuracy:.1%}, alike {agreement:.1%}"
        )
        held = abs(seen.ssc_accuracy - seen.network_accuracy) < 0.05 and agreement > 0.9
        found.append(
            Claim("neighbours label inputs as the network does (within 5 points, 90 % alike)", name, measured, held)
        )
    return found


def draw(runs: Runs, folder: Path) -> None:
    """The figures (a) to (d) as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in DYNAMICS:
        table = dynamics(runs.store(name))
        figure = Figure(figsize=(21, 4.2), layout="constrained")
        for axes, family in zip(
            figure.subplots(1, 3), ("modularity", "cka_to_final", "linear_cka_to_final"), strict=True
        ):
            dynamics_curves(table, family, ax=axes)
        figure.savefig(folder / f"small_dynamics_{name}.png", dpi=70)
    epochs = runs.store(EPOCHS).epochs
    row(folder / "small_epochs.png", [(f"epoch {epoch}", *runs.heatmap(EPOCHS, epoch)) for epoch in epochs])
    row(folder / "small_data.png", [(name, *runs.heatmap(name)) for name in DATA])
    row(folder / "small_depth_vgg.png", [(name, *runs.heatmap(name)) for name in VGGS])
    row(folder / "small_depth_resnet.png", [(name, *runs.heatmap(name)) for name in RESNETS])


def row(path: Path, panels: Sequence[tuple[str, Table, list[str]]]) -> None:
    """Heatmaps side by side, their blocks outlined."""
    figure = Figure(figsize=(6.2 * len(panels), 5.4), layout="constrained")
    for axes, (title, matrix, layers) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        heatmap(matrix, layers, title=title, blocks=find_blocks(matrix).starts, ax=axes)
    figure.savefig(path, dpi=60)


def main() -> None:
    """Print the claims and the runs as Markdown tables, and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/small"), help="folder of the runs")
    parser.add_argument("--figures", type=Path, default=Path("runs/small/figures"), help="where to draw")
    options = parser.parse_args()
    runs = Runs(options.runs)
    found = [claim for name in DYNAMICS for claim in claims_of_dynamics(name, dynamics(runs.store(name)))]
    found += [*claims_of_architecture(runs), *claims_of_inputs(runs)]
    print("| the paper says | run | measured | held |\n|---|---|---|---|")
    for claim in found:
        print(f"| {claim.text} | {claim.run} | {claim.measured} | {'yes' if claim.held else '**no**'} |")
    print("\n| run | accuracy, all test images | minutes |\n|---|---:|---:|")
    for name in dict.fromkeys((*DYNAMICS, EPOCHS, *DATA, *VGGS, *RESNETS)):
        accuracy, minutes = runs.accuracy(name)
        print(f"| `small/{name}.yaml` | {accuracy:.1%} | {minutes:.0f} |")
    draw(runs, options.figures)
    print(f"\nFigures: {options.figures}")


if __name__ == "__main__":
    main()
