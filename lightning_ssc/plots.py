"""Tables and matrices to figures. Nothing here computes a statistic, and no global plotting state is touched.

Colours are viridis for layers and similarities and, for up to ten classes, a sequence that colour-blind readers can
tell apart (Petroff, "Accessible Color Sequences for Data Visualization", 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_ssc.measures import CURVES, Measure, measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_ssc.analysis.dynamics import Dynamics
    from lightning_ssc.analysis.inputs import Inputs
    from lightning_ssc.progress import Progress

_TICKS = 40  # tick labels that an axis of a heatmap can hold before they overlap
_MARKERS = "os^DvP*X<>"


def heatmap(
    matrix: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    title: str = "",
    networks: tuple[str, str] = ("", ""),
    label: str = "SSC-CKA (biased HSIC)",
    blocks: Sequence[int] = (),
    ax: Axes | None = None,
) -> Figure:
    """Pairwise similarity of layers, on a colour scale fixed from 0 to 1 (figures 3 to 7 of the paper).

    Args:
        matrix: ``(L, M)`` similarities; NaN is drawn grey.
        rows: Names of the L layers.
        columns: Names of the M layers; the rows' where omitted.
        title: Title of the figure.
        networks: Names of the networks that rows and columns belong to.
        label: Title of the colour bar.
        blocks: First layer of every block to be outlined (``find_blocks(matrix).starts``).
        ax: Where to draw; a new figure by default.

    Returns:
        The figure.

    Example:
        >>> heatmap([[1.0, 0.5], [0.5, 1.0]], ["conv1", "fc"]).axes[0].get_title()
        ''
    """
    from matplotlib.patches import Rectangle

    values = np.asarray(matrix, dtype=float)
    columns = rows if columns is None else columns
    side = 3.0 + 0.16 * min(len(rows), _TICKS)
    axes = _axes(ax, (side + 1.6, side))
    axes.set_facecolor("0.8")
    image = axes.imshow(np.ma.masked_invalid(values), vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    for axis, names, network in ((axes.yaxis, rows, networks[0]), (axes.xaxis, columns, networks[1])):
        places = np.arange(0, len(names), -(-len(names) // _TICKS))
        axis.set_ticks(places, [plain(short_names(names)[i]) for i in places], fontsize=7)
        axis.set_label_text(plain(network), fontsize=9)
    axes.tick_params(axis="x", labelrotation=90)
    for start, end in zip(blocks, [*blocks[1:], len(rows)][: len(blocks)], strict=True):
        square = Rectangle((start - 0.5, start - 0.5), end - start, end - start, fill=False, color="white", lw=1.5)
        axes.add_patch(square)
    axes.set_title(plain(title, 120), fontsize=10)
    axes.figure.colorbar(image, ax=axes, label=label, fraction=0.046)
    return _figure(axes)


def curves(
    values: ArrayLike,
    epochs: ArrayLike,
    layers: Sequence[str],
    *,
    title: str = "",
    ylabel: str = "",
    ylim: tuple[float | None, float | None] = (0, 1),
    log: bool = False,
    unit: str = "epoch",
    ax: Axes | None = None,
) -> Figure:
    """One line a layer over the epochs, dark for shallow and bright for deep layers (figures 1 and 2 of the paper).

    Args:
        values: ``(T, L)`` table; NaN leaves a gap.
        epochs: ``(T,)`` finished epochs.
        layers: Names of the L layers.
        title: Title of the figure.
        ylabel: What is drawn.
        ylim: Range of the vertical axis, ``None`` to leave an end to the data; values below it extend it.
        log: Whether the vertical axis is logarithmic.
        unit: What `epochs` count: ``"epoch"`` or ``"step"``.
        ax: Where to draw; a new figure by default.

    Returns:
        The figure.

    Example:
        >>> figure = curves([[0.1, 0.2], [0.1, 0.6]], [0, 1], ["conv1", "fc"], ylabel="modularity")
        >>> len(figure.axes[0].lines)
        2
    """
    table = np.asarray(values, dtype=float)
    axes = _axes(ax, (8.0, 4.2))
    colours = layer_colours(len(layers))
    names = [plain(name) for name in short_names(layers)]
    lines = []
    for i, name in enumerate(names):
        marker = _MARKERS[i % len(_MARKERS)] if len(layers) <= _TICKS else ""
        style: dict[str, Any] = {
            "marker": marker,
            "ms": 3.5,
            "lw": 1.4,
            "mec": "0.25",
            "mew": 0.4,
            "color": colours[i],
            "label": name,
        }
        lines += axes.plot(np.asarray(epochs), table[:, i], **style)
    if log:
        axes.set_yscale("log", nonpositive="mask")
    low, high = ylim
    if low is not None:
        axes.set_ylim(bottom=min(low, 1.05 * np.nanmin(table, initial=low)))
    if high is not None:
        axes.set_ylim(top=high * 1.02)
    axes.set_xlabel(f"finished {unit}s (0: untrained)")
    axes.set_ylabel(ylabel)
    axes.set_title(plain(title, 120), fontsize=10)
    axes.grid(alpha=0.3)
    if len(layers) <= _TICKS:
        # Lines and names are given, or else names that begin with an underscore are left out.
        axes.legend(lines, names, fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), ncol=1 + len(names) // 20)
    return _figure(axes)


def dynamics_figures(table: Dynamics) -> dict[str, Figure]:
    """The curves of a run, one figure a measure that has values (the panels of figures 1 and 2 of the paper).

    Args:
        table: What :func:`lightning_ssc.analysis.dynamics` returns.

    Returns:
        Figures by the name of the measure, see :data:`lightning_ssc.measures.CURVES`.
    """
    return {record.name: dynamics_curves(table, record.name) for record in present(table)}


def present(table: Dynamics) -> list[Measure]:
    """The measures that a run has values of."""
    return [record for record in CURVES if not np.isnan(table.curves[record.name]).all()]


def is_logarithmic(record: Measure, values: ArrayLike) -> bool:
    """Whether values are drawn on a logarithmic axis, which has no place for a measure that is zero throughout."""
    return record.log and bool((np.asarray(values) > 0).any())


def dynamics_curves(table: Dynamics, name: str, *, ax: Axes | None = None) -> Figure:
    """One measure of a run, a panel of figure 1 or 2 of the paper; grey where the learning rate dropped.

    Args:
        table: What :func:`lightning_ssc.analysis.dynamics` returns.
        name: Which measure.
        ax: Where to draw; a new figure by default.

    Returns:
        The figure.
    """
    record = measure(name)
    axes = _axes(ax, (8.0, 4.2))
    values = table.curves[name]
    style: dict[str, Any] = {"title": record.title, "ylabel": record.axis, "ylim": record.range}
    figure = curves(
        values, table.times, table.layers, unit=table.unit, log=is_logarithmic(record, values), ax=axes, **style
    )
    for before, after in table.drops():
        axes.axvspan(before, after, color="0.92", lw=0, zorder=0)
    if name == "modularity" and table.ceiling <= 1:
        axes.axhline(table.ceiling, color="0.6", lw=0.8, ls="--", zorder=0)
        text = f"most that these classes allow: {table.ceiling:.2f}"
        axes.annotate(
            text, (0, table.ceiling), (2, 2), ("axes fraction", "data"), "offset points", color="0.45", size=7
        )
    return figure


def embedding(
    points: ArrayLike,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] = (),
    *,
    title: str = "",
    legend: bool = False,
    ax: Axes | None = None,
) -> Figure:
    """Inputs in the plane of two eigenvectors of a layer's graph, a colour and shape a class (figure 8 of the paper).

    Args:
        points: ``(N, 2)`` coordinates; NaN (isolated inputs) is left out.
        labels: ``(N,)`` integer classes.
        class_names: Names of the classes, by number.
        title: Title of the figure.
        legend: Whether to name the classes beside the plot.
        ax: Where to draw; a new figure by default.

    Returns:
        The figure.

    Example:
        >>> embedding([[0.0, 0.1], [0.2, 0.3]], [0, 1], title="conv1").axes[0].get_title()
        'conv1'
    """
    xy = np.asarray(points, dtype=float)
    axes = _axes(ax, (4.8 if legend else 3.6, 3.4))
    if labels is None:
        axes.scatter(xy[:, 0], xy[:, 1], s=7, linewidths=0, color="0.3")
    else:
        classes = np.asarray(labels)
        colours = class_colours(classes)
        for c in np.unique(classes):
            of_class = classes == c
            style: dict[str, Any] = {"color": colours[of_class], "marker": _MARKERS[c % len(_MARKERS)]}
            name = plain(class_name(int(c), class_names))
            axes.scatter(xy[of_class, 0], xy[of_class, 1], s=9, linewidths=0.3, edgecolors="0.25", label=name, **style)
    if legend and labels is not None:
        axes.legend(fontsize=7, markerscale=1.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_title(plain(title, 120), fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("first eigenvector", fontsize=7)
    axes.set_ylabel("second eigenvector", fontsize=7)
    return _figure(axes)


def embedding_images(
    points: Iterable[tuple[str, ArrayLike]], labels: ArrayLike | None = None, suffix: str = ""
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Images of many embeddings of the same inputs, as :func:`embedding` draws them.

    One figure is drawn again and again, which takes a fraction of the time of making one for every image.

    Args:
        points: The name of each layer with its ``(N, 2)`` coordinates; NaN (isolated inputs) is left out.
        labels: ``(N,)`` integer classes.
        suffix: What follows the name in the title.

    Yields:
        Names with ``(H, W, 3)`` pixels.

    Example:
        >>> [image.shape for _, image in embedding_images([("conv1", [[0.0, 0.1]]), ("conv2", [[0.2, 0.3]])])]
        [(374, 396, 3), (374, 396, 3)]
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = None
    for name, coordinates in points:
        xy = np.asarray(coordinates, dtype=float)
        if canvas is None:
            canvas = FigureCanvasAgg(embedding(xy, labels, title=f"{name}{suffix}"))
            (axes,) = canvas.figure.axes
            places = np.zeros(len(xy)) if labels is None else np.asarray(labels)
            members = [places == c for c in np.unique(places)]
            for artist in (changing := (*axes.collections, axes.title)):
                artist.set_animated(True)  # drawn by hand, on top of what stays
            canvas.draw()
            still = canvas.copy_from_bbox(canvas.figure.bbox)
        for limit, column in ((axes.set_xlim, xy[:, 0]), (axes.set_ylim, xy[:, 1])):
            low, high = np.nanmin(column), np.nanmax(column)
            margin = 0.05 * (high - low) or 0.05
            limit(low - margin, high + margin)
        axes.title.set_text(plain(f"{name}{suffix}", 120))
        for drawn, chosen in zip(axes.collections, members, strict=True):
            drawn.set_offsets(xy[chosen])
        canvas.restore_region(still)
        for artist in changing:
            axes.draw_artist(artist)
        yield name, np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]


def embeddings(
    points: Mapping[str, ArrayLike],
    labels: ArrayLike | None = None,
    class_names: Sequence[str] = (),
    *,
    most: int = 6,
) -> Figure:
    """The spectral embeddings of several layers side by side (figure 8 of the paper).

    Args:
        points: ``(N, 2)`` coordinates by layer, from :func:`lightning_ssc.analysis.embeddings`.
        labels: ``(N,)`` integer classes.
        class_names: Names of the classes, by number.
        most: How many layers to draw, spread evenly from the first to the last.

    Returns:
        The figure.

    Example:
        >>> len(embeddings({"conv1": [[0.0, 0.1]], "conv2": [[0.2, 0.3]]}, [0]).axes)
        2
    """
    from matplotlib.figure import Figure

    layers = list(points)
    chosen = evenly(len(layers), most)
    rows = -(-len(chosen) // 3)
    columns = -(-len(chosen) // rows)
    figure = Figure(figsize=(3.1 * columns + 1.2, 3.1 * rows), dpi=110, layout="constrained")
    names = short_names(layers)
    for place, i in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, place + 1)
        embedding(points[layers[i]], labels, class_names, title=names[i], ax=axes)
    if labels is not None and len(np.unique(np.asarray(labels))) <= _TICKS:
        handles, shown = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, shown, fontsize=8, markerscale=1.5, loc="outside right center")
    return figure


def neighbours(
    chosen: Sequence[int],
    nearest: ArrayLike,
    images: NDArray[np.uint8] | None = None,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] = (),
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Some inputs, each at the left of a row of the inputs of highest affinity to it (figure 9 of the paper).

    Args:
        chosen: M inputs, by place in the probe.
        nearest: ``(N, k)`` neighbours of all inputs, from :func:`lightning_ssc.analysis.neighbours`; -1 stays empty.
        images: ``(N, H, W, 3)`` uint8 pictures of all inputs; without them inputs are shown as numbers.
        labels: ``(N,)`` integer classes of all inputs, written above the pictures.
        class_names: Names of the classes, by number.
        title: Title of the figure.
        ax: Where to draw; a new figure by default.

    Returns:
        The figure.

    Example:
        >>> pictures = np.zeros((3, 8, 8, 3), dtype=np.uint8)
        >>> figure = neighbours([0], [[2, 1], [0, -1], [0, -1]], pictures, [0, 1, 0], ["cat", "dog"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['cat', 'cat', 'dog']
    """
    table = np.asarray(nearest)
    classes = None if labels is None else np.asarray(labels)
    colours = None if classes is None else class_colours(classes)
    columns = 1 + table.shape[1]
    axes = _axes(ax, (0.85 * columns + 0.4, 1.0 * len(chosen) + 0.4))
    for row, i in enumerate(chosen):
        for column, j in enumerate([i, *table[i]]):
            if j < 0:
                continue
            left = 1.12 * column + (0.25 if column else 0.0)
            top = 1.35 * row
            if images is None:
                axes.text(left + 0.5, top + 0.5, f"#{j}", ha="center", va="center", fontsize=8)
            else:
                axes.imshow(images[j], extent=(left, left + 1, top + 1, top), interpolation="nearest")
            if classes is not None and colours is not None:
                axes.plot([left, left + 1], [top + 1.04] * 2, color=colours[j], lw=2.5, solid_capstyle="butt")
                name = plain(class_name(int(classes[j]), class_names), 14)
                axes.text(left + 0.5, top - 0.04, name, ha="center", va="bottom", fontsize=6.5)
    axes.set_xlim(-0.05, 1.12 * columns + 0.25)
    axes.set_ylim(1.35 * len(chosen) - 0.2, -0.3)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(plain(title, 120), fontsize=9)
    return _figure(axes)


def class_shares(
    shares: ArrayLike,
    class_names: Sequence[str] = (),
    *,
    label: int | None = None,
    prediction: int | None = None,
    most: int = 10,
    ax: Axes | None = None,
) -> Figure:
    """The classes that an input has affinity to, as bars (figure 9b of the paper).

    Args:
        shares: ``(K,)`` share of the input's affinity that goes to each class.
        class_names: Names of the classes, by number.
        label: The input's class, marked in the axis.
        prediction: The class that the network gave, marked in the axis.
        most: With more classes than these, those with the largest shares are drawn.
        ax: Where to draw; a new figure by default.

    Returns:
        The figure.

    Example:
        >>> axes = class_shares([0.2, 0.8], ["cat", "bird"], label=0, prediction=1).axes[0]
        >>> [tick.get_text() for tick in axes.get_yticklabels()]
        ['cat (its class)', 'bird (network)']
    """
    values = np.nan_to_num(np.asarray(shares, dtype=float))
    axes = _axes(ax, (3.6, 2.6))
    drawn = np.sort(np.argsort(-values, kind="stable")[:most])
    marks = {label: " (its class)", prediction: " (network)"}
    if label == prediction:
        marks = {label: " (its class, network)"}
    names = [plain(class_name(int(c), class_names), 20) + marks.get(int(c), "") for c in drawn]
    axes.barh(np.arange(len(drawn)), values[drawn], color=class_colours(np.arange(len(values)))[drawn])
    axes.set_yticks(np.arange(len(drawn)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of affinity", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    return _figure(axes)


def explanation(
    table: Inputs,
    i: int,
    nearest: ArrayLike,
    images: NDArray[np.uint8] | None = None,
    class_names: Sequence[str] = (),
) -> Figure:
    """One input, the classes that it has affinity to, and its neighbours (figure 9 of the paper).

    Args:
        table: What :func:`lightning_ssc.analysis.inputs` returns.
        i: The input, by place in the probe.
        nearest: ``(N, k)`` neighbours of all inputs in the same layer.
        images: ``(N, H, W, 3)`` uint8 pictures of all inputs, if there are any.
        class_names: Names of the classes, by number.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    columns = 1 + np.asarray(nearest).shape[1]
    figure = Figure(figsize=(0.85 * columns + 0.6, 3.9), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(1.25, 2.2))
    label = int(table.labels[i])
    title = f"input {i}: {class_name(label, class_names)}"
    prediction = None
    if table.predictions is not None and table.confidence is not None:
        prediction = int(table.predictions[i])
        title += f", classified as {class_name(prediction, class_names)} with a score of {table.confidence[i]:.2f}"
    neighbours([i], nearest, images, table.labels, class_names, title=title, ax=upper)
    names = [class_name(c, class_names) for c in table.classes.tolist()]
    columns = (None if c is None else int(table.columns(np.asarray(c))) for c in (label, prediction))
    class_shares(table.shares[i], names, **dict(zip(("label", "prediction"), columns, strict=True)), ax=lower)
    return figure


def class_name(number: int, class_names: Sequence[str] = ()) -> str:
    """The name of a class, or its number where it has none; a negative number stands for no class.

    Example:
        >>> class_name(1, ["cat", "dog"]), class_name(7), class_name(-1)
        ('dog', 'class 7', 'no class')
    """
    if number < 0:
        return "no class"
    return class_names[number] if number < len(class_names) else f"class {number}"


def class_colours(labels: ArrayLike) -> NDArray[np.float64]:
    """``(N, 4)`` colour of every sample's class: it depends on the class's number alone; grey for negative numbers.

    Example:
        >>> class_colours([0, 1, 0]).shape
        (3, 4)
    """
    from matplotlib import color_sequences, colormaps
    from matplotlib.colors import to_rgba_array

    classes = np.asarray(labels)
    ten = to_rgba_array(color_sequences["petroff10"])
    # Multiples of the golden ratio stay apart however many there are.
    more = colormaps["turbo"](classes * (np.sqrt(5) - 1) / 2 % 1)
    colours = np.where((classes < len(ten))[:, None], ten[np.clip(classes, 0, len(ten) - 1)], more)
    return np.where((classes < 0)[:, None], to_rgba_array("0.6"), colours)


def layer_colours(count: int) -> NDArray[np.float64]:
    """``(count, 4)`` colours from shallow (dark) to deep (bright, yet visible on white).

    Example:
        >>> layer_colours(3).shape
        (3, 4)
    """
    from matplotlib import colormaps

    return np.asarray(colormaps["viridis"](np.linspace(0, 0.8, count)))


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, spread evenly from the first to the last.

    Example:
        >>> evenly(104, 4), evenly(2, 4)
        ([0, 34, 69, 103], [0, 1])
    """
    return sorted({round(place) for place in np.linspace(0, count - 1, min(most, count))})


def short_names(layers: Sequence[str]) -> list[str]:
    """Names without the dotted prefix that they all share.

    Example:
        >>> short_names(["model.layer1.0", "model.layer1.1", "model.fc"])
        ['layer1.0', 'layer1.1', 'fc']
    """
    paths = [name.split(".")[:-1] for name in layers]
    shared = 0
    while paths and all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return [".".join(name.split(".")[shared:]) for name in layers]


def to_image(figure: Figure) -> NDArray[np.uint8]:
    """A figure as ``(H, W, 3)`` pixels.

    Example:
        >>> to_image(heatmap([[1.0]], ["fc"])).shape[2]
        3
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]


def save(figures: Mapping[str, Figure], folder: Path, progress: Progress = iter) -> list[Path]:
    """Write figures under their names as PNG and SVG; returns the files."""
    paths = []
    for name, figure in progress(list(figures.items())):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what was laid out stays, in place of a new layout before each file
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            figure.savefig(path, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            paths.append(path)
    return paths


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure  # not pyplot, which would hold on to every figure and choose a backend

    return Figure(figsize=size, dpi=110, layout="constrained").add_subplot()


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True) if axes.figure is not None else None
    assert figure is not None
    return figure


def plain(name: str, longest: int = 32) -> str:
    """A name in which Matplotlib sees no formula, with its middle left out where it is too long to leave room.

    What cannot be printed, such as control characters, which no SVG may hold, becomes a question mark.
    """
    name = "".join(c if c.isprintable() else "?" for c in name)
    if len(name) > longest:
        name = f"{name[: longest // 2 - 1]}…{name[-(longest // 2) :]}"
    return name.replace("$", r"\$")
