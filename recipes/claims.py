"""What the paper claims and what networks trained here say: ``python -m recipes.claims`` writes tables and figures.

It reads the latest version of each run of ``recipes/narrow/*.yaml`` under ``--runs``, a folder a seed, and nothing
else. A line is decided where its networks are at least 90 % right or, of few images and of VGGs a quarter as wide,
where their accuracy stands still. A claim holds where its statistic clears the bar that is written down here, with
every seed. What converged public networks decide is not asked here (recipes.converged).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import auto_cli
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lightning_ssc import Snapshot
from lightning_ssc.analysis import Dynamics, dynamics, inputs, similarity
from lightning_ssc.analysis.dynamics import Table
from lightning_ssc.functional import class_affinity
from recipes.drawing import curves, heatmaps
from recipes.heatmaps import board, cut_into
from recipes.resampling import bootstrap_cka, bootstrap_counts, interval
from recipes.runs import Runs
from recipes.tables import Line, write_table

FOLDER = "narrow"
RESULTS = Path(__file__).parent / "results" / FOLDER
DYNAMICS = ("resnet20", "densenet")
VGGS = ("vgg11", "vgg16", "vgg24")
DATA = ("resnet20_data5", "resnet20_data50", "resnet20")
EPOCHS = "wide_resnet28_k1"

_RIGHT = 0.9  # accuracy from which a network has converged
_AT_SATURATION = {*DATA[:2], *VGGS}  # or that stands still
_STILL = 0.005  # moves by no more over the last tenth of the evaluations
_STRONG = 0.8  # rank correlation from which values go with depth
_NEAR = 0.01  # modularity this close to its last value has saturated
_SETTLED = 0.9  # CKA to the final state from which a layer has settled
_DRAWS = 200
_NO_CONVOLUTION = re.compile(r"layer\d+\.\d+|classifier")  # blocks' outputs


class Finding(NamedTuple):
    """What one seed's runs say of a claim.

    Attributes:
        measured: Numbers by what they are.
        chance: The same by chance, or of the untrained network.
        held: Whether the claim's bar is cleared.
    """

    measured: Mapping[str, float]
    chance: Mapping[str, float]
    held: bool


class Claim(NamedTuple):
    """What the paper says, the networks that decide it, and how.

    Attributes:
        text: What the paper says.
        runs: The recipes.
        look: From one seed's runs to what they say.
    """

    text: str
    runs: tuple[str, ...]
    look: Callable[[Runs], Finding]


# -- Statistics


def rank(values: Sequence[float] | NDArray[Any]) -> float:
    """Spearman's correlation of values with depth; 0 where all are the same."""
    if len(np.unique(values)) < 2:
        return 0.0
    return float(spearmanr(np.arange(len(values)), values).statistic)


def is_strong(correlation: float) -> bool:
    """Whether values go with depth."""
    return correlation > _STRONG - 1e-9


@lru_cache
def rank_by_chance(layers: int) -> float:
    """The rank correlation that values in any order stay below 19 times in 20.

    Example:
        >>> rank_by_chance(4)
        0.8
    """
    generator = np.random.default_rng(0)
    return round(float(np.quantile([rank(generator.permutation(layers)) for _ in range(2000)], 0.95)), 2)


def of_epochs(table: Dynamics) -> Dynamics:
    """Curves at the ends of epochs, of what a figure like the paper's shows: without the convolutions inside blocks."""
    at = [i for i, moment in enumerate(table.moments) if moment.is_whole]
    layers = [i for i, layer in enumerate(table.layers) if not layer.endswith((".conv1", ".conv2", ".downsample.0"))]
    curves = {name: curve[np.ix_(at, layers)] for name, curve in table.curves.items()}
    moments = [table.moments[i] for i in at]
    return Dynamics([table.layers[i] for i in layers], moments, table.learning_rate[at], curves)


def stays_from(table: Dynamics, near: NDArray[np.bool_]) -> NDArray[Any]:
    """``(L,)`` first epoch from which each layer stays near its final state, given ``(T, L)`` when it is."""
    first: NDArray[Any] = table.epochs[np.logical_and.accumulate(near[::-1], axis=0)[::-1].argmax(0)]
    return first


def gains_at_drops(table: Dynamics) -> list[tuple[int, Table]]:
    """Of each drop of the learning rate: its epoch, and what layers gain before, in and after it, (3, L).

    A drop whose next epoch is the last is left out: CKA to the final state is 1 there whatever happens.
    """
    found = []
    gain = np.diff(table.cka_to_final, axis=0)
    for after in table.drops()[:, 1]:
        at = int(np.flatnonzero(table.epochs == after)[0]) - 1
        if 1 <= at <= len(gain) - 3:
            found.append((int(after), gain[at - 1 : at + 2]))
    return found


def in_order(values: Sequence[float], upwards: bool) -> bool:
    """Whether values rise (or fall) strictly."""
    return bool((np.diff(values) > 0).all() if upwards else (np.diff(values) < 0).all())


def stands_out(matrix: Table) -> float:
    """Mean similarity inside the first two thirds of the layers less that to the others."""
    cut = 2 * len(matrix) // 3
    inside = matrix[:cut, :cut][~np.eye(cut, dtype=bool)]
    return float(inside.mean() - matrix[:cut, cut:].mean())


def of_convolutions(taken: Snapshot) -> Snapshot:
    """A snapshot without what was watched beside convolutions, its layers named as in the network."""
    named = {name.removeprefix("network."): layer for name, layer in taken.layers.items()}
    layers = {name: layer for name, layer in named.items() if not _NO_CONVOLUTION.fullmatch(name)}
    return replace(taken, layers=layers, pairs={})


def heatmap(taken: Snapshot) -> Table:
    """``(L, L)`` SSC-CKA between the convolutions of a snapshot."""
    return similarity(of_convolutions(taken), linear=False).ssc


# -- Section 4 of the paper: dynamics


def rises(table: Dynamics) -> Finding:
    """Modularity by depth, at the end."""
    last = table.modularity[-1]
    return _by_depth(last, {"first layer": last[0], "last layer": last[-1]})


def saturates(table: Dynamics) -> Finding:
    """Modularity by depth, over time."""
    at = stays_from(table, abs(table.modularity - table.modularity[-1]) <= _NEAR)
    return _by_depth(at, {"first layer from epoch": at[0], "last layer": at[-1]})


def settles(table: Dynamics) -> Finding:
    """SSC-CKA to the final state by depth."""
    at = stays_from(table, table.cka_to_final >= _SETTLED)
    return _by_depth(at, {"first layer from epoch": at[0], "last layer": at[-1]})


def jumps(table: Dynamics) -> Finding:
    """The layers that gain more in the epoch of a drop than in those before and after it: a third of them by chance."""
    shares, measured = [], dict[str, float]()
    for epoch, gain in gains_at_drops(table):
        shares.append(float((gain[1] > np.maximum(gain[0], gain[2])).mean()))
        measured[f"epoch {epoch}: share of layers"] = shares[-1]
        measured |= {f"gain at {epoch}": gain[1].mean(), f"beside {epoch}": gain[[0, 2]].mean()}
    return Finding(measured, {"share of layers": 1 / 3}, bool(shares) and min(shares) > 0.5)


def grows_with_depth(table: Dynamics) -> Finding:
    """The jump at drops by depth."""
    jump = table.jumps().mean(0)
    return _by_depth(jump, {"first layer": jump[0], "last layer": jump[-1]})


def linear_is_earlier(table: Dynamics) -> Finding:
    """Layers whose linear CKA to the final state settles before SSC-CKA does, and after it."""
    ssc, linear = (stays_from(table, cka >= _SETTLED) for cka in (table.cka_to_final, table.linear_cka_to_final))
    earlier, later = float((linear < ssc).mean()), float((linear > ssc).mean())
    return Finding({"share of layers earlier": earlier, "later": later}, {}, later == 0 < earlier)


def _by_depth(values: Table, measured: Mapping[str, float]) -> Finding:
    correlation = rank(values)
    chance = {"rank correlation": rank_by_chance(len(values))}
    return Finding({**measured, "rank correlation with depth": correlation}, chance, is_strong(correlation))


def _dynamics(name: str, look: Callable[[Dynamics], Finding], runs: Runs) -> Finding:
    return look(of_epochs(dynamics(runs.store(name))))


# -- Section 5: architecture, epochs, data


def blocks(runs: Runs) -> Finding:
    """How far VGGs of three depths fall into few blocks, and did before training."""
    found, before = ([heatmap(runs.snapshot(name, epoch)) for name in VGGS] for epoch in (None, 0))
    contrasts = {parts: [cut_into(matrix, parts).contrast for matrix in found] for parts in (2, 3)}
    measured = {f"{name}, cut in {parts}": value for parts, values in contrasts.items()
                for name, value in zip(VGGS, values, strict=True)}  # fmt: skip
    chance = {f"{name}, cut in 2": cut_into(matrix, 2).contrast for name, matrix in zip(VGGS, before, strict=True)}
    return Finding(measured, chance, all(in_order(values, upwards=True) for values in contrasts.values()))


def starved(runs: Runs) -> Finding:
    """How far the first half of a network falls into two blocks, by its share of the data."""
    first = {}
    for epoch in (None, 0):
        halves = [matrix[: len(matrix) // 2, : len(matrix) // 2]
                  for matrix in (heatmap(runs.snapshot(name, epoch)) for name in DATA)]  # fmt: skip
        first[epoch] = dict(zip(("5 %", "50 %", "100 %"), (cut_into(half, 2).contrast for half in halves), strict=True))
    return Finding(first[None], first[0], in_order(list(first[None].values()), upwards=False))


def early_block(runs: Runs) -> Finding:
    """How far the first two thirds of the layers stand out, by epoch."""
    apart = {epoch: stands_out(heatmap(runs.snapshot(EPOCHS, epoch))) for epoch in runs.store(EPOCHS).epochs}
    untrained = apart.pop(0)
    first, *later = apart.values()
    return Finding({f"epoch {epoch}": value for epoch, value in apart.items()}, {"": untrained}, first > max(later))


def chess_board(runs: Runs) -> Finding:
    """The board of parity classes, with the interval of its draws."""
    boards = []
    for epoch in (None, 0):
        taken = of_convolutions(runs.snapshot(EPOCHS, epoch))
        boards.append(board(heatmap(taken), list(taken.layers)).contrast)
    taken = of_convolutions(runs.snapshot(EPOCHS))
    graphs = [layer.affinity for layer in taken.layers.values()]
    drawn = bootstrap_cka(graphs, bootstrap_counts(len(graphs[0]), _DRAWS))
    low, high = interval(np.array([board(matrix, list(taken.layers)).contrast for matrix in drawn]))
    return Finding({"board": boards[0], "from": low, "to": high}, {"": boards[1]}, low > max(0.0, boards[1]))


# -- Section 6: inputs


def labels_alike(name: str, runs: Runs) -> Finding:
    """What the neighbours in the last convolution's graph say of an input, and what the network says."""
    taken = of_convolutions(runs.snapshot(name))
    layer = list(taken.layers)[-1]
    seen = inputs(taken, layer)
    alike = seen.ssc_labels == seen.predictions
    low, _ = interval(bootstrap_counts(len(alike), _DRAWS) @ alike / len(alike))
    measured = {"SSC labels right": seen.ssc_accuracy, "network": seen.network_accuracy, "alike": seen.agreement}
    labels = torch.from_numpy(seen.labels)[torch.randperm(len(alike), generator=torch.Generator().manual_seed(0))]
    chance = (class_affinity(taken.layers[layer].affinity, labels).argmax(1) == labels).double().mean()
    held = abs(seen.ssc_accuracy - seen.network_accuracy) < 0.05 and low > _RIGHT
    return Finding(measured, {"SSC labels right": float(chance)}, held)


CLAIMS = [
    *(
        Claim(text, (name,), partial(_dynamics, name, look))
        for name in DYNAMICS
        for text, look in (
            ("modularity rises with depth", rises),
            ("modularity of shallow layers saturates first", saturates),
            ("shallow layers settle first", settles),
            ("a jump at each learning-rate drop", jumps),
            ("the jump is smaller in shallow layers", grows_with_depth),
            ("linear CKA settles earlier", linear_is_earlier),
        )
    ),
    Claim("deeper networks fall into few blocks (contrast of the best cuts in two and in three grows)", VGGS, blocks),
    Claim("two blocks in the first half of data-starved networks (contrast falls with data)", DATA, starved),
    Claim("one large block early (the first two thirds stand out most after one epoch)", (EPOCHS,), early_block),
    Claim("a chess board in ResNets (its interval above 0 and above untrained weights)", (EPOCHS,), chess_board),
    *(
        Claim(
            "neighbours label inputs as the network does (within 5 points, more than 90 % alike)",
            (name,),
            partial(labels_alike, name),
        )
        for name in VGGS
    ),
]


# -- From seeds to lines


def over_seeds(numbers: Sequence[Mapping[str, float]]) -> str:
    """Numbers of every seed as their mean and standard deviation.

    Example:
        >>> over_seeds([{"first": 0.1, "last": 0.4}, {"first": 0.1, "last": 0.5}])
        'first 0.1 ± 0, last 0.45 ± 0.071'
    """
    parts = []
    for name in numbers[0]:
        values = [of[name] for of in numbers if name in of]
        spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
        parts.append(f"{name} {np.mean(values):.3g}{spread}".strip())
    return ", ".join(parts)


def is_converged(name: str, runs: Runs) -> bool:
    """Whether a network is right often enough, or where that is allowed no longer gains."""
    found = runs.accuracies(name)
    last = found[-max(2, len(found) // 10) :]
    return found[-1] >= _RIGHT or (name in _AT_SATURATION and max(last) - min(last) <= _STILL)


def line_of(claim: Claim, seeds: Sequence[Runs]) -> Line:
    """What the runs that are there say of a claim."""
    done = [runs for runs in seeds if all(runs.is_done(name) for name in claim.runs)]
    line = {"claim": claim.text, "runs": ", ".join(f"{FOLDER}/{name}" for name in claim.runs), "seeds": str(len(done))}
    if not done:
        return line | {"accuracy": "", "measured": "not run yet", "chance": "", "held": "not shown"}
    accuracy = over_seeds([{name: runs.accuracies(name)[-1] for name in claim.runs} for runs in done])
    found = [claim.look(runs) for runs in done]
    line |= {"accuracy": accuracy, "measured": over_seeds([of.measured for of in found])}
    line["chance"] = over_seeds([of.chance for of in found])
    held = {of.held for of in found}
    decided = len(held) == 1 and all(is_converged(name, runs) for runs in done for name in claim.runs)
    return line | {"held": ("yes" if held.pop() else "no") if decided else "not shown"}


def draw(runs: Runs, folder: Path) -> None:
    """The figures whose runs are complete, as PNG files."""
    for name in filter(runs.is_done, DYNAMICS):
        curves(folder / f"dynamics_{name}.png", of_epochs(dynamics(runs.store(name))))
    panels: Mapping[str, list[tuple[str, str, int | None]]] = {
        "figure3": [(name, name, None) for name in VGGS],
        "figure7": [(name, name, None) for name in DATA],
        "figure6": [(f"epoch {epoch}", EPOCHS, epoch) for epoch in (1, 10, 19, 30)],
    }
    for figure, shown in panels.items():
        if all(runs.is_done(name) for _, name, _ in shown):
            taken = [(title, of_convolutions(runs.snapshot(name, epoch))) for title, name, epoch in shown]
            heatmaps(folder / f"{figure}.png", [(title, heatmap(of), list(of.layers)) for title, of in taken])


def claims(runs: Sequence[Path] = (Path("runs"),), out: Path = RESULTS) -> None:
    """What the paper claims and what networks trained here say.

    Args:
        runs: Folders of runs, one a seed; figures are those of the first.
        out: Where the table and the figures are written.
    """
    seeds = [Runs(folder / FOLDER, f"recipes/{FOLDER}") for folder in runs]
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "claims.csv", [line_of(claim, seeds) for claim in CLAIMS])
    draw(seeds[0], out)
    print(f"Results: {out}")


if __name__ == "__main__":
    auto_cli(claims, as_positional=False)
