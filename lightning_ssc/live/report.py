"""One self-contained HTML page from a run, and its figures as files.

The page carries its data, the pictures of the probe and plotly.js, asks nothing of the network, and opens from disk.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_ssc import plots
from lightning_ssc.analysis.comparison import Comparison
from lightning_ssc.analysis.dynamics import Table
from lightning_ssc.analysis.runs import find_store
from lightning_ssc.analysis.summary import Summary, summarise
from lightning_ssc.measures import Measure
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import Moment
from lightning_ssc.version import __version__

_MISSING = -32768
_WRONG = 12  # confidently wrong inputs on the page

_AT_DROPS = " Grey bands are where the learning rate drops; in the paper layers jumped there."


def report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    layer: str | None = None,
    reference: str | Path | None = None,
    figures: bool = False,
    progress: Progress = iter,
) -> Path:
    """Write a run's page, ``index.html``, and table 1 of the paper as ``table1.csv``.

    Args:
        run: A run's folder, see :func:`lightning_ssc.analysis.find_store`.
        out: Where to write; by default ``report`` inside the folder of snapshots.
        layer: The layer from which single inputs are read; by default the last one before the classifier.
        reference: The folder of a run with whose last snapshot layers of the same name are compared.
        figures: Whether to write the figures, too, as PNG and SVG, which takes longer than all the rest.
        progress: Wrapped around what takes long, such as ``tqdm.tqdm``.

    Returns:
        The page.

    Raises:
        SnapshotError: The folder holds no run or several, or a snapshot cannot be read.
        ImportError: Plotly is not installed.
        OSError: The page cannot be written.
    """
    return write_report(read_run(run, layer, reference, progress), out, figures=figures, progress=progress)


def read_run(
    run: str | Path, layer: str | None = None, reference: str | Path | None = None, progress: Progress = iter
) -> Summary:
    """The tables of a run, by the names of folders; arguments and errors as of :func:`report`."""
    other = None if reference is None else find_store(reference)
    return summarise(
        find_store(run),
        layer=layer,
        reference=None if other is None else other.load(step=other.steps[-1]),
        progress=progress,
    )


def write_report(
    summary: Summary, out: str | Path | None = None, *, figures: bool = False, progress: Progress = iter
) -> Path:
    """Write what :func:`report` writes of a run that has been read; returns the page."""
    folder = summary.root / "report" if out is None else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(page(summary), encoding="utf-8")
    if summary.inputs is not None:
        summary.inputs.table1_to_csv(folder / "table1.csv")
    if figures:
        write_figures(summary, folder / "figures", progress)
    return path


def page(summary: Summary) -> str:
    """The page of a run as one HTML document.

    Raises:
        ImportError: Plotly, which draws the page, is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("The page needs plotly: pip install 'lightning-ssc[report]'.") from error

    parts = {
        "title": html.escape(f"Subspaces in training: {run_name(summary.root)}"),
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        "plotly": get_plotlyjs(),
        # "<" would let a name end the script element it stands in.
        "data": json.dumps(_contents(summary), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


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


def pack(values: ArrayLike) -> dict[str, Any]:
    """A table of numbers as 16-bit integers times a scale in base64, exact to 1/65532 of its largest magnitude.

    Example:
        >>> packed = pack([[0.5, np.nan]])
        >>> packed["shape"], np.frombuffer(base64.b64decode(packed["data"]), "<i2").tolist()
        ([1, 2], [32766, -32768])
    """
    table = np.asarray(values, dtype=float)
    largest = float(np.max(np.abs(table), where=np.isfinite(table), initial=0.0))
    scale = largest / 32766 or 1.0
    scaled = np.where(np.isfinite(table), np.round(np.nan_to_num(table) / scale), _MISSING).astype("<i2")
    return {"shape": list(table.shape), "scale": scale, "data": base64.b64encode(scaled.tobytes()).decode()}


def sprite(images: NDArray[np.uint8]) -> dict[str, Any]:
    """All pictures on one sheet, as a JPEG in a data URI with the numbers to find them by.

    Args:
        images: ``(N, H, W, 3)`` uint8.

    Example:
        >>> sheet = sprite(np.zeros((5, 8, 8, 3), dtype=np.uint8))
        >>> sheet["columns"], sheet["rows"], sheet["uri"][:23]
        (3, 2, 'data:image/jpeg;base64,')
    """
    from PIL import Image

    count, height, width, _ = images.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, 3), dtype=np.uint8)
    sheet[:count] = images
    sheet = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "jpeg", quality=85, subsampling=0)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"uri": uri, "columns": columns, "rows": rows, "width": width, "height": height}


def _contents(summary: Summary) -> dict[str, Any]:
    """What page.js draws, as JSON."""
    from matplotlib.colors import to_hex

    curves, table = summary.dynamics, summary.inputs
    names = plots.short_names(curves.layers)
    at_drops = _AT_DROPS if len(curves.drops()) else ""
    classes = np.arange(0) if table is None else table.classes
    columns = (lambda of: None) if table is None else (lambda of: None if of is None else table.columns(of))
    return {
        "overview": _overview(summary),
        "bottom_up": _bottom_up(summary),
        "size": summary.size,
        "layers": names,
        "layer_colours": [to_hex(c) for c in plots.layer_colours(len(names))],
        "times": curves.times.tolist(),
        "unit": curves.unit,
        "drops": curves.drops().tolist(),
        "families": [
            _family(record, curves.curves[record.name], record.meaning + (at_drops if record.over == "final" else ""))
            for record in plots.present(curves)
        ],
        "heatmaps": pack(summary.heatmaps),
        "blocks": [{"starts": b.starts, "text": _block_text(b, names)} for b in summary.blocks],
        "linear": None if np.isnan(summary.similarity.linear).all() else pack(summary.similarity.linear),
        "embeddings": [
            pack(np.stack(list(points.values()))) for points in (summary.embedding, summary.embedding_normalized)
        ],
        "layer": names[curves.layers.index(summary.layer)],
        "nearest": summary.nearest.tolist(),
        "class_names": [plots.class_name(c, summary.class_names) for c in classes.tolist()],
        "class_colours": [to_hex(c) for c in plots.class_colours(classes)] if len(classes) else [],
        "labels": _list(None if table is None else columns(table.labels)),
        "ssc_labels": _list(None if table is None else columns(table.ssc_labels)),
        "predictions": _list(None if table is None else columns(table.predictions)),
        "confidence": None if table is None or table.confidence is None else pack(table.confidence),
        "indices": _list(None if table is None else table.indices),
        "shares": None if table is None else pack(table.shares),
        "wrong": [] if table is None else table.confidently_wrong(_WRONG).tolist(),
        "sprite": None if summary.images is None else sprite(summary.images),
        "layer_table": _layer_rows(summary, names),
        "label_table": _label_rows(summary),
        "label_text": _label_text(summary, names),
        "about": _about_rows(summary),
    }


def _family(record: Measure, values: Table, text: str) -> dict[str, Any]:
    """A chart of one line a layer; of what spans decades the logarithms, which 16 bits hold as finely as eyes see."""
    log = plots.is_logarithmic(record, values)
    with np.errstate(divide="ignore", invalid="ignore"):
        packed = pack(np.log10(values) if log else values)
    from_zero = record.range[0] == 0
    return {
        "title": record.title,
        "axis": record.axis,
        "from_zero": from_zero,
        "log": log,
        "text": text,
        "values": packed,
    }


def file_name(moment: Moment) -> str:
    """What a moment is called in the names of files, so that they sort.

    Example:
        >>> file_name(Moment(391, 1)), file_name(Moment(500, 1.28))
        ('epoch_001', 'step_000000500')
    """
    return f"epoch_{moment.epoch:03d}" if moment.is_whole else f"step_{moment.step:09d}"


def _overview(summary: Summary) -> str:
    moments = summary.dynamics.moments
    return (
        f"{len(summary.dynamics.layers)} layers watched on {summary.size} inputs in {len(moments)} snapshots, "
        f"{moments[0]} to {moments[-1]}."
    )


def _bottom_up(summary: Summary) -> str:
    correlation = summary.dynamics.depth_correlation()
    text = "" if np.isnan(correlation) else (
        f"Rank correlation of settling with depth: {correlation:.2f} (1: strictly from the bottom up). "
    )  # fmt: skip
    curves = summary.dynamics
    for (before, after), gains in zip(curves.drops(), curves.jumps(), strict=True):
        text += f"Across the drop of the learning rate between {curves.unit}s {before:g} and {after:g} SSC-CKA to "
        text += f"final rose by {_number(gains[0])} in the first layer and {_number(gains[-1])} in the last. "
    return text.strip()


def _block_text(blocks: Any, names: Sequence[str]) -> str:
    ends = blocks.ends(len(names))
    runs = [
        names[start] if end - start == 1 else f"{names[start]} to {names[end - 1]} ({end - start} layers, {within:.2f})"
        for start, end, within in zip(blocks.starts, ends, blocks.within, strict=True)
    ]
    text = f"Blocks, with the mean similarity inside: {'; '.join(runs)}."
    if not np.isnan(blocks.contrast):
        text += f" Similarity inside less between blocks: {blocks.contrast:.2f}."
    if not np.isnan(blocks.chessboard):
        text += f" Chess-board score: {blocks.chessboard:.2f} (0: none, 1: perfect)."
    return text


def _layer_rows(summary: Summary, names: Sequence[str]) -> dict[str, Any]:
    table, moments = summary.layers, summary.dynamics.moments
    head = [
        "layer", "features", f"modularity, {moments[0]}", f"{moments[-1]}", "settled", "SSC label",
        "agreement", "neighbours an input", "isolated inputs", "gap",
    ]  # fmt: skip
    rows = [
        [
            name, str(table.features[i]), _number(table.modularity_first[i]), _number(table.modularity_last[i]),
            _number(table.settled[i], "{:.0f}"), _number(table.ssc_accuracy[i], "{:.1%}"),
            _number(table.agreement[i], "{:.1%}"), _number(table.neighbours[i], "{:.1f}"), str(table.isolated[i]),
            _number(table.gap[i], "{:.1e}") + ("" if table.converged[i] else " (not converged)"),
        ]
        for i, name in enumerate(names)
    ]  # fmt: skip
    return {"head": head, "rows": rows}


def _label_rows(summary: Summary) -> dict[str, Any] | None:
    if summary.inputs is None:
        return None
    table = summary.inputs
    head = ["", "share of inputs"]
    rows = [
        ["SSC label is the true class", _number(table.ssc_accuracy, "{:.1%}")],
        ["network's prediction is the true class", _number(table.network_accuracy, "{:.1%}")],
        ["SSC label is the network's prediction", _number(table.agreement, "{:.1%}")],
    ]
    return {"head": head, "rows": rows}


def _label_text(summary: Summary, names: Sequence[str]) -> str:
    if summary.inputs is None:
        return "The probe has no class labels, so inputs have no SSC label; neighbours are shown above."
    name = names[summary.dynamics.layers.index(summary.layer)]
    return (
        f"An input's SSC label is the class that most of its affinity in {name} goes to, without any training on "
        f"labels (table 1 of the paper). Where it agrees with the network, the layer has already parted the classes."
    )


def _about_rows(summary: Summary) -> dict[str, Any]:
    seconds = summary.header.seconds.get("total")
    entries = {
        "run": run_name(summary.root),
        "probe": f"{summary.size} inputs, fingerprint {summary.header.probe}",
        **{f"setting {key}": str(value) for key, value in summary.header.settings.items()},
        **{f"version of {key}": str(value) for key, value in summary.header.versions.items()},
        "last snapshot took": "unknown" if seconds is None else f"{seconds:.1f} s",
        "page made by": f"lightning_ssc {__version__}",
    }
    return {"head": ["", "value"], "rows": [list(entry) for entry in entries.items()]}


def run_name(root: Path) -> str:
    """What to call a run: the last two folders above its snapshots.

    Example:
        >>> run_name(Path("runs/resnet/version_0/ssc"))
        'resnet/version_0'
    """
    return "/".join(_folders(root)[-2:])


def run_names(
    roots: tuple[Path, Path],
    epochs: tuple[int | None, int | None] = (None, None),
    steps: tuple[int | None, int | None] = (None, None),
) -> tuple[str, str]:
    """What to call two runs: as many of their last folders, two or more, as tell them apart, and the moment asked for.

    Example:
        >>> run_names((Path("a/net/version_0/ssc"), Path("b/net/version_0/ssc")), (3, None))
        ('a/net/version_0, epoch 3', 'b/net/version_0')
    """
    one, other = (_folders(root) for root in roots)
    count = next((k for k in range(2, max(len(one), len(other))) if one[-k:] != other[-k:]), 2)
    first, second = (
        "/".join(parts[-count:])
        + ("" if epoch is None else f", epoch {epoch}")
        + ("" if step is None else f", step {step}")
        for parts, epoch, step in zip((one, other), epochs, steps, strict=True)
    )
    return first, second


def _folders(root: Path) -> tuple[str, ...]:
    path = root.resolve()
    return (path.parent if path.name.startswith("ssc") else path).parts


def _number(value: float, form: str = "{:.2f}") -> str:
    return "-" if np.isnan(value) else form.format(value)


def _list(values: NDArray[Any] | None) -> list[Any] | None:
    return None if values is None else values.tolist()


def _asset(name: str) -> str:
    return (files("lightning_ssc.live") / "page" / name).read_text(encoding="utf-8")
