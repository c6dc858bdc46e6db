"""From the tables in recipes/results to recipes/README.md: ``python -m recipes.evidence``.

Every number of these parts of the page is read from a file that a command wrote, and every verdict is taken by a bar
that is written down here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from recipes.claims import RESULTS as TRAINED
from recipes.claims import in_order, is_strong, rank
from recipes.readme import README, with_block
from recipes.tables import Line, markdown, read_table

RESULTS = Path(__file__).parent / "results"
TRAINED_FIGURES = {
    "dynamics_resnet20": "Figure 1 on ResNet-20: modularity, SSC-CKA and linear CKA to the final state",
    "dynamics_densenet": "Figure 1 on a DenseNet of 40 layers: the same",
    "figure3": "Figure 3: VGG-11, 16 and 24, a quarter as wide",
    "figure6": "Figure 6: Wide ResNet-28 x 1 after 1, 10, 19 and 30 epochs",
    "figure7": "Figure 7: ResNet-20 on 5, 50 and 100 % of the images",
}
FIGURE_4 = "Figure 4: SSC-CKA between all convolutions of converged ResNets"


class Folder:
    """The tables that ``python -m recipes.converged`` wrote for a number of inputs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inputs = int(root.name.removeprefix("n").partition("_")[0])
        self.networks = list(dict.fromkeys(line["network"] for line in self.table("table1")))

    @property
    def has_heatmaps(self) -> bool:
        """Whether every convolution was watched."""
        return (self.root / "statistics.csv").exists()

    def table(self, name: str) -> list[Line]:
        """One of its tables."""
        return read_table(self.root / f"{name}.csv")

    def statistic(self, name: str, cka: str = "ssc") -> list[Line]:
        """A statistic of the heatmaps, a line a network."""
        return [line for line in self.table("statistics") if (line["statistic"], line["cka"]) == (name, cka)]


def folders(results: Path) -> list[Folder]:
    """All of them: first, for what is said of heatmaps, that with most networks, and of those most inputs."""
    every = [Folder(path) for path in sorted((results / "converged").glob("n*"))]
    return sorted(every, key=lambda of: (of.has_heatmaps, len(of.networks), of.inputs), reverse=True)


def _percent(value: str) -> str:
    return f"{float(value):.1%}".replace("%", " %")


def _percents(line: Line, name: str) -> str:
    """A share with its interval."""
    low, high = (_percent(line[f"{name}_{end}"]) for end in ("low", "high"))
    return f"{_percent(line[name])} [{low}, {high}]"


def _each(lines: Sequence[Line], form: str = "{value} [{low}, {high}]") -> str:
    """Numbers of a line a network, in two decimals."""
    return ", ".join(
        form.format(**{key: _short(line[key]) for key in ("value", "low", "high", "untrained")}) for line in lines
    )


def _short(value: str) -> str:
    return f"{float(value):.2f}"


def claims(of: Folder) -> list[Line]:
    """What the paper says and the converged networks show, in the terms of :func:`recipes.claims.line_of`."""
    found = []
    right = {line["network"]: _percent(line["network_prediction"]) for line in of.table("table1")}

    def say(text: str, names: Sequence[str], measured: str, chance: str, held: bool) -> None:
        accuracy = ", ".join(right[name] for name in names)
        line = {"claim": text, "runs": f"public {', '.join(names)}", "seeds": "1", "accuracy": accuracy}
        found.append(line | {"measured": measured, "chance": chance, "held": "yes" if held else "no"})

    for lines in _by_network(of.table("modularity")):
        curve = [float(line["modularity"]) for line in lines]
        measured = f"{curve[0]:.2f} to {curve[-1]:.2f}, rank correlation with depth {rank(curve):.2f}"
        chance = f"shuffled classes at most {max(float(line['of_shuffled']) for line in lines):.2f}"
        say("modularity rises with depth", [lines[0]["network"]], measured, chance, is_strong(rank(curve)))

    cuts = {parts: of.statistic(f"cut in {parts}: contrast") for parts in ("two", "three")}
    held = all(in_order([float(line["value"]) for line in lines], upwards=True) for lines in cuts.values())
    measured = "; ".join(f"cut in {parts} {_each(lines)}" for parts, lines in cuts.items())
    chance = f"untrained {'; '.join(_each(lines, '{untrained}') for lines in cuts.values())}"
    text = "deeper networks fall into few blocks (contrast of the best cuts in two and in three grows)"
    say(text, of.networks, measured, chance, held)

    for line in of.statistic("board"):
        held = float(line["low"]) > max(0.0, float(line["untrained"]))
        text = "a chess board in ResNets (its interval above 0 and above untrained weights)"
        say(text, [line["network"]], _each([line]), f"untrained {_short(line['untrained'])}", held)

    for line in of.table("table1"):
        if line["layer"] == "last convolution":
            near = abs(float(line["ssc_label"]) - float(line["network_prediction"])) < 0.05
            names = ("SSC labels right", "ssc_label"), ("network", "network_prediction"), ("alike", "alike")
            measured = ", ".join(f"{name} {_percent(line[key])}" for name, key in names)
            text = "neighbours label inputs as the network does (within 5 points, more than 90 % alike)"
            chance = f"shuffled classes {_percent(line['ssc_label_of_shuffled'])}"
            say(text, [line["network"]], measured, chance, near and float(line["alike_low"]) > 0.9)

    for line in (lines[0] for lines in _by_network(of.table("confidently_wrong"))):
        share = line["of_them_ssc_label_is_prediction"]
        text = "a wrongly classified input has most affinity to the class that the network gives it (most of them)"
        measured = f"{_percent(share)} of {line['wrong_in_all']}"
        say(text, [line["network"]], measured, "", float(share) > 0.5)
    return found


def claims_section(results: Path = RESULTS) -> str:
    """The block ``claims`` of the page: what networks trained here show, and what public ones do."""
    trained = read_table(results / TRAINED.name / "claims.csv")
    lines = [*trained, *claims(folders(results)[0])]
    texts = list(dict.fromkeys(line["claim"] for line in lines))
    lines.sort(key=lambda line: texts.index(line["claim"]))  # one claim after the other
    decided = [line for line in lines if line["held"] in ("yes", "no")]
    held = sum(line["held"] == "yes" for line in decided)
    rows = [
        [
            line["claim"],
            line["runs"] + (f" ({line['seeds']} seeds)" if int(line["seeds"]) > 1 else ""),
            *(line[key] for key in ("accuracy", "measured", "chance")),
            {"yes": "yes", "no": "**no**"}.get(line["held"], "not shown"),
        ]
        for line in lines
    ]
    headings = ["the paper says", "networks", "right", "measured", "by chance or untrained", "held"]
    parts = [
        f"**{sentence(folders(results)[0])}**\n",
        f"![{FIGURE_4}](results/converged/{folders(results)[0].root.name}/heatmaps_ssc.png)\n",
        f"Decided: {len(decided)} of {len(lines)} lines (yes: {held}, no: {len(decided) - held}).\n",
        markdown(headings, rows).replace("---:", "---"),
    ]
    drawn = {name: text for name, text in TRAINED_FIGURES.items() if (results / TRAINED.name / f"{name}.png").exists()}
    parts += ["", *(f"![{text}](results/{TRAINED.name}/{name}.png)" for name, text in drawn.items())] if drawn else []
    return "\n".join(parts)


def sentence(of: Folder) -> str:
    """What the evidence comes to."""
    alike = [float(line["alike"]) for line in of.table("table1") if line["layer"] == "last block"]
    boards = [of.statistic("board")[i] for i in (0, -1)]
    grows, untrained = ([_short(line[key]) for line in boards] for key in ("value", "untrained"))
    return (
        f"In converged public ResNets, with nothing trained, the neighbours of a test image in the last block's graph "
        f"label it as the network does ({min(alike):.0%} to {max(alike):.0%} alike), and a chess board of residual "
        f"blocks grows with depth (from {grows[0]} in {of.networks[0]} to {grows[1]} in {of.networks[-1]}; untrained "
        f"{untrained[0]} and {untrained[1]})."
    ).replace("%", " %")


def _by_network(lines: Sequence[Line]) -> list[list[Line]]:
    return [list(of) for _, of in groupby(lines, key=lambda line: line["network"])]


def converged_section(results: Path = RESULTS) -> str:
    """The block ``converged`` of the page."""
    every = folders(results)
    first = every[0]
    parts = [f"Statistics at N = {first.inputs}; an interval holds 95 % of draws of the inputs."]
    # Of the same inputs a network may stand in two folders.
    lines_of_table1 = {
        (line["network"], line["inputs"], line["layer"]): line for of in every for line in of.table("table1")
    }
    parts.append("\nTable 1 of the paper, with the SSC labels that shuffled classes would give:\n")
    parts.append(
        markdown(
            ["network", "inputs", "layer", "SSC label", "network", "alike", "shuffled"],
            [
                [
                    line["network"],
                    line["inputs"],
                    line["layer"],
                    _percents(line, "ssc_label"),
                    _percent(line["network_prediction"]),
                    _percents(line, "alike"),
                    _percent(line["ssc_label_of_shuffled"]),
                ]
                for line in lines_of_table1.values()
            ],
        )
    )
    parts.append("\nThe heatmaps in numbers, SSC-CKA and linear CKA, each beside untrained weights:\n")
    parts.append(
        markdown(
            ["statistic", "network", "SSC-CKA", "untrained", "linear CKA", "untrained"],
            [
                [
                    ssc["statistic"],
                    ssc["network"],
                    f"{_short(ssc['value'])} [{_short(ssc['low'])}, {_short(ssc['high'])}]",
                    *(_short(value) for value in (ssc["untrained"], linear["value"], linear["untrained"])),
                ]
                for ssc, linear in zip(
                    *([line for line in first.table("statistics") if line["cka"] == cka] for cka in ("ssc", "linear")),
                    strict=True,
                )
            ],
        )
    )
    parts.append(
        "\nMean CKA of two convolutions by the biased and the unbiased estimator of HSIC, as they are and with one's\n"
        "inputs in another order, which should leave 0:\n"
    )
    numbers = ("biased", "unbiased", "largest_difference", "permuted_biased", "permuted_unbiased")
    parts.append(
        markdown(
            ["network", "CKA", "inputs", *(name.replace("_", " ") for name in numbers)],
            [
                [line["network"], line["cka"], line["inputs"], *(f"{float(line[key]):.3f}" for key in numbers)]
                for line in first.table("estimators")
            ],
        )
    )
    parts.append("\nWhat the snapshots took, beside other work on the machine:\n")
    parts.append(
        markdown(
            ["network", "layers", "inputs", "seconds", "of processors", "peak memory, GB"],
            [
                [
                    *(line[key] for key in ("network", "layers", "inputs")),
                    f"{float(line['seconds']):.0f}",
                    f"{float(line['processor_seconds']):.0f}".replace("nan", "not known"),
                    f"{float(line['peak_gb']):.1f}",
                ]
                for of in every
                for line in of.table("costs")
            ],
        )
    )
    folder = f"results/converged/{first.root.name}"
    pictures = {
        "heatmaps_linear": "The same by linear CKA",
        "modularity": "Modularity by depth",
        "embeddings": f"Figure 8: {first.networks[-1]}, correctly classified inputs in six convolutions",
        "confidently_wrong": f"Figure 9: what {first.networks[-1]} is most sure of and wrong about",
    }
    parts += ["", *(f"![{text}]({folder}/{name}.png)" for name, text in pictures.items())]
    return "\n".join(parts)


def sensitivity_section(results: Path = RESULTS) -> str:
    """The block ``sensitivity`` of the page."""
    parts = []
    for name, title in (
        ("settings", "The paper's setting and ours: unit length and the exact solver, each alone and both"),
        ("tau", "By tau, the weight of the fit"),
        ("inputs", "By the number of inputs"),
    ):
        lines = read_table(results / "sensitivity" / f"{name}.csv")
        own = {"settings": ["setting"], "tau": ["tau"], "inputs": []}[name]
        rows = [
            [
                *(line[key] for key in (*own, "network", "layer", "inputs")),
                _with_spread(line, "modularity", 3),
                _with_spread(line, "ssc_label", 3),
                f"{float(line['neighbours']):.0f}",
                f"{float(line['gap']):.1g}",
                f"{float(line['seconds']):.2f}",
            ]
            for line in lines
        ]
        draws = max(int(line["draws"]) for line in lines)
        headings = [*own, "network", "layer", "inputs", "modularity", "SSC label", "neighbours", "gap", "seconds"]
        spread = f"means of {draws} draws of the inputs, ± their standard deviation"
        parts += [f"{title} ({spread}):\n", markdown(headings, rows), ""]
    return "\n".join(parts).rstrip()


def _with_spread(line: Line, name: str, digits: int) -> str:
    value, spread = float(line[name]), float(line[f"{name}_spread"])
    return f"{value:.{digits}f}" if spread != spread else f"{value:.{digits}f} ± {spread:.{digits}f}"


def page(text: str, results: Path = RESULTS) -> str:
    """The page with its blocks filled from the results."""
    text = with_block(text, "claims", claims_section(results))
    text = with_block(text, "converged", converged_section(results))
    return with_block(text, "sensitivity", sensitivity_section(results))


if __name__ == "__main__":
    README.write_text(page(README.read_text()))
