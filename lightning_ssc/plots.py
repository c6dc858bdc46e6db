"""Tables and matrices to figures. Nothing here computes a statistic, and no global plotting state is touched.

Colours are viridis for layers and similarities and, for up to ten classes, a sequence that colour-blind readers can
tell apart (Petroff, "Accessible Color Sequences for Data Visualization", 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_ssc.analysis.dynamics import Dynamics

_TICKS = 40  # tick labels that an axis of a heatmap can hold before they overlap
_MARKERS = "os^Dv"


def heatmap(
    matrix: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    title: str = "",
    label: str = "SSC-CKA (biased HSIC)",
    ax: Axes | None = None,
) -> Figure:
    """Pairwise similarity of layers, on a colour scale fixed from 0 to 1 (figures 3 to 7 of the paper).

    Args:
        matrix: ``(L, M)`` similarities; NaN is drawn grey.
        rows: Names of the L layers.
        columns: Names of the M layers; the rows' where omitted.
        title: Title of the figure.
        label: Title of the colour bar.
        ax: Where to draw; a new figure by default.

    Returns:
        The figure.

    Example:
        >>> heatmap([[1.0, 0.5], [0.5, 1.0]], ["conv1", "fc"]).axes[0].get_title()
        ''
    """
    values = np.asarray(matrix, dtype=float)
    columns = rows if columns is None else columns
    side = 3.0 + 0.16 * min(len(rows), _TICKS)
    axes = _axes(ax, (side + 1.6, side))
    axes.set_facecolor("0.8")
    image = axes.imshow(np.ma.masked_invalid(values), vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        places = np.arange(0, len(names), -(-len(names) // _TICKS))
        axis.set_ticks(places, [short_names(names)[i] for i in places], fontsize=7)
    axes.tick_params(axis="x", labelrotation=90)
    axes.set_title(title, fontsize=10)
    axes.figure.colorbar(image, ax=axes, label=label, fraction=0.046)
    return _figure(axes)


def curves(
    values: ArrayLike,
    epochs: ArrayLike,
    layers: Sequence[str],
    *,
    title: str = "",
    ylabel: str = "",
    ylim: tuple[float, float] | None = (0, 1),
    ax: Axes | None = None,
) -> Figure:
    """One line a layer over the epochs, dark for shallow and bright for deep layers (figures 1 and 2 of the paper).

    Args:
        values: ``(T, L)`` table; NaN leaves a gap.
        epochs: ``(T,)`` finished epochs.
        layers: Names of the L layers.
        title: Title of the figure.
        ylabel: What is drawn.
        ylim: Range of the vertical axis; values below it extend it.
        ax: Where to draw; a new figure by default.

    Returns:
        The figure.

    Example:
        >>> figure = curves([[0.1, 0.2], [0.1, 0.6]], [0, 1], ["conv1", "fc"], ylabel="modularity")
        >>> len(figure.axes[0].lines)
        2
    """
    from matplotlib import colormaps

    table = np.asarray(values, dtype=float)
    axes = _axes(ax, (8.0, 4.2))
    colours = colormaps["viridis"](np.linspace(0, 0.92, max(len(layers), 2)))
    for i, name in enumerate(short_names(layers)):
        marker = _MARKERS[i % len(_MARKERS)] if len(layers) <= _TICKS else ""
        axes.plot(np.asarray(epochs), table[:, i], marker=marker, ms=3.5, lw=1.4, color=colours[i], label=name)
    if ylim is not None:
        lowest = np.nanmin(table, initial=ylim[0])
        axes.set_ylim(min(ylim[0], 1.05 * lowest), ylim[1] * 1.02)
    axes.set_xlabel("finished epochs (0: untrained)")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if len(layers) <= _TICKS:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), ncol=1 + len(layers) // 20)
    return _figure(axes)


def dynamics_figures(table: Dynamics, epochs_marked: Sequence[float] = ()) -> dict[str, Figure]:
    """The curves of a run, one figure a family that has values (figures 1 and 2 of the paper).

    Args:
        table: What :func:`lightning_ssc.analysis.dynamics` returns.
        epochs_marked: Epochs at which to draw a vertical line, such as drops of the learning rate.

    Returns:
        Figures by family: modularity, cka_to_final, cka_to_previous, linear_cka_to_final.
    """
    families = {
        "modularity": ("Modularity of the affinity graphs", "modularity"),
        "cka_to_final": ("SSC-CKA to the final state", "SSC-CKA (biased HSIC)"),
        "cka_to_previous": ("SSC-CKA to the previous snapshot", "SSC-CKA (biased HSIC)"),
        "linear_cka_to_final": ("Linear CKA to the final state", "linear CKA (biased HSIC)"),
    }
    figures = {}
    for family, (title, ylabel) in families.items():
        values = getattr(table, family)
        if not np.isnan(values).all():
            figures[family] = curves(values, table.epochs, table.layers, title=title, ylabel=ylabel)
            for epoch in epochs_marked:
                figures[family].axes[0].axvline(epoch, color="0.5", ls=":", lw=1)
    return figures


def embedding(points: ArrayLike, labels: ArrayLike | None = None, *, title: str = "", ax: Axes | None = None) -> Figure:
    """Inputs in the plane of two eigenvectors of a layer's graph, coloured by class (figure 8 of the paper).

    Args:
        points: ``(N, 2)`` coordinates; NaN (isolated inputs) is left out.
        labels: ``(N,)`` integer classes.
        title: Title of the figure.
        ax: Where to draw; a new figure by default.

    Returns:
        The figure.

    Example:
        >>> embedding([[0.0, 0.1], [0.2, 0.3]], [0, 1], title="conv1").axes[0].get_title()
        'conv1'
    """
    xy = np.asarray(points, dtype=float)
    axes = _axes(ax, (3.6, 3.4))
    colour: dict[str, Any] = {"color": "0.3"} if labels is None else {"color": class_colours(labels)}
    axes.scatter(xy[:, 0], xy[:, 1], s=7, linewidths=0, **colour)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("first eigenvector", fontsize=7)
    axes.set_ylabel("second eigenvector", fontsize=7)
    return _figure(axes)


def class_colours(labels: ArrayLike) -> NDArray[np.float64]:
    """``(N, 4)`` colour of every sample's class.

    Example:
        >>> class_colours([0, 1, 0]).shape
        (3, 4)
    """
    from matplotlib import color_sequences, colormaps
    from matplotlib.colors import to_rgba_array

    classes, place = np.unique(np.asarray(labels), return_inverse=True)
    ten = color_sequences["petroff10"]
    palette = to_rgba_array(ten) if len(classes) <= len(ten) else colormaps["turbo"](np.linspace(0, 1, len(classes)))
    return np.asarray(palette[place])


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


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure  # not pyplot, which would hold on to every figure and choose a backend

    return Figure(figsize=size, dpi=110, layout="constrained").add_subplot()


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True) if axes.figure is not None else None
    assert figure is not None
    return figure
