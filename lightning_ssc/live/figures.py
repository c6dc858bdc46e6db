"""A run, and two runs beside each other, as figures for papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightning_ssc import plots
from lightning_ssc.analysis.comparison import Comparison
from lightning_ssc.analysis.summary import Summary
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import Moment


def write_figures(summary: Summary, folder: Path, progress: Progress = iter) -> list[Path]:
    """Write the figures of a run, each as PNG and SVG; returns the files.

    Curves by family, SSC-CKA between layers at up to four epochs, linear CKA between layers, spectral embeddings of up
    to six layers, and the three most confidently wrong inputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layers, moments = summary.dynamics.layers, summary.dynamics.moments
    labels = None if summary.inputs is None else summary.inputs.labels
    figures = plots.dynamics_figures(summary.dynamics)
    for t in plots.evenly(len(moments), 4):
        moment = summary.dynamics.moments[t]
        title = f"SSC-CKA between layers, {moment}"
        blocks = summary.blocks[t].starts
        figures[f"heatmap_{file_name(moment)}"] = plots.heatmap(summary.heatmaps[t], layers, title=title, blocks=blocks)
    if not np.isnan(summary.similarity.linear).all():
        figures["heatmap_linear"] = plots.heatmap(
            summary.similarity.linear, layers, title="Linear CKA between layers", label="linear CKA (biased HSIC)"
        )
    figures["embeddings"] = plots.embeddings(summary.embedding, labels, summary.class_names)
    if summary.inputs is not None:
        for rank, i in enumerate(summary.inputs.confidently_wrong(3), start=1):
            figures[f"confidently_wrong_{rank}"] = plots.explanation(
                summary.inputs, int(i), summary.nearest, summary.images, summary.class_names
            )
    return plots.save(figures, folder, progress)


def write_comparison(
    comparison: Comparison, names: tuple[str, str], folder: Path, progress: Progress = iter
) -> list[Path]:
    """Write the figures and tables of two runs on one probe; returns the files.

    Args:
        comparison: What :func:`lightning_ssc.analysis.compare` returns.
        names: What to call the two networks.
        folder: Where to write.
        progress: Wrapped around the figures, such as ``tqdm.tqdm``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = comparison.similarity
    figures = {
        "similarity": plots.heatmap(
            table.ssc, table.rows, table.columns, title="SSC-CKA between two networks", networks=names
        )
    }
    if not np.isnan(table.linear).all():
        figures["similarity_linear"] = plots.heatmap(
            table.linear,
            table.rows,
            table.columns,
            title="Linear CKA between two networks",
            networks=names,
            label="linear CKA (biased HSIC)",
        )
    for which, curves in (("a", comparison.one), ("b", comparison.other)):
        figures |= {f"{family}_{which}": figure for family, figure in plots.dynamics_figures(curves).items()}
    tables = [folder / f"{name}.csv" for name in ("similarity", "dynamics_a", "dynamics_b")]
    table.to_csv(tables[0])
    comparison.one.to_csv(tables[1])
    comparison.other.to_csv(tables[2])
    return [*plots.save(figures, folder, progress), *tables]


def file_name(moment: Moment) -> str:
    """What a moment is called in the names of files, so that they sort.

    Example:
        >>> file_name(Moment(391, 1)), file_name(Moment(500, 1.28))
        ('epoch_001', 'step_000000500')
    """
    return f"epoch_{moment.epoch:03d}" if moment.is_whole else f"step_{moment.step:09d}"
