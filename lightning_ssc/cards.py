"""Pictures for the cards of a logger's page: small, drawn fast, legible at 360 pixels.

One figure is drawn again and again: to make one takes longer than to draw in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_ssc import plots
from lightning_ssc.analysis.dynamics import Dynamics
from lightning_ssc.measures import Measure, measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg

Image = NDArray[np.uint8]

_INCHES, _DPI = (4.8, 3.6), 100  # 480 pixels, of which a card shows 360
_LETTERS = 10.5  # points: 11 pixels there
_NAMES = 12  # layers that an axis names
_WIDEST = 11  # letters of a name
_TITLE = 50  # letters of a title
_MARKED = 30  # moments up to which each has a marker, which takes as long as its line
_COLOUR_NAMES = 6  # layers that the bar of colours names


def curves(table: Dynamics, *, few: bool = False) -> Iterator[tuple[str, Image]]:
    """A picture a measure: a line a layer, from dark (shallow) to bright (deep), grey where the learning rate dropped.

    Args:
        table: The curves; those without any value are left out.
        few: Only the measures of which every snapshot brings a picture (:attr:`Measure.pictured`).

    Yields:
        Names of measures with ``(H, W, 3)`` pixels.

    Example:
        >>> from lightning_ssc.analysis import stored
        >>> from lightning_ssc.snapshots import MemoryStore, Moment, Snapshot
        >>> store = MemoryStore()
        >>> store.save(Snapshot(Moment(0, 0), {}))
        >>> list(curves(stored([store.header(0)])))
        []
    """
    records = [record for record in plots.present(table) if record.pictured or not few]
    if not records:
        return
    canvas, axes = _figure((0.165, 0.17, 0.575, 0.71))
    names = plots.short_names(table.layers)
    colours = plots.layer_colours(len(names))
    bar = canvas.figure.add_axes((0.77, 0.17, 0.03, 0.71))
    _name_colours(bar, names, colours)
    axes.set_visible(False)
    right = _pixels(canvas)[:, int(0.76 * _INCHES[0] * _DPI) :]  # drawn once
    bar.remove()
    axes.set_visible(True)
    axes.set_prop_cycle(color=colours)
    marked = len(table.moments) <= _MARKED
    lines = axes.plot(
        table.times, np.zeros((len(table.moments), len(names))), marker="o" if marked else "", ms=2.5, lw=1.3
    )
    for before, after in table.drops():
        axes.axvspan(before, after, color="0.9", lw=0, zorder=0)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=_LETTERS)
    axes.set_xlabel(f"{table.unit}s", fontsize=_LETTERS, labelpad=2)
    for record in records:
        values = table.curves[record.name]
        for line, column in zip(lines, values.T, strict=True):
            line.set_ydata(column)
        is_log = plots.is_logarithmic(record, values)
        if is_log != (axes.get_yscale() == "log"):
            axes.set_yscale("log" if is_log else "linear")
        axes.set_ylim(*_span(record, values, is_log))
        axes.set_title(plots.plain(record.title, _TITLE), fontsize=_LETTERS)
        image = _pixels(canvas)
        image[:, -right.shape[1] :] = np.minimum(image[:, -right.shape[1] :], right)  # a title may reach into it
        yield record.name, image


def heatmaps(
    tables: Mapping[str, NDArray[np.float64]], layers: Sequence[str], when: str
) -> Iterator[tuple[str, Image]]:
    """A picture a table between layers, on a scale from 0 to 1.

    Args:
        tables: ``(L, L)`` similarities by the names of their measures; NaN is drawn grey.
        layers: Names of the layers.
        when: The moment, for the title.

    Yields:
        Names of measures with ``(H, W, 3)`` pixels.

    Example:
        >>> [(name, image.shape) for name, image in heatmaps({"pairwise_cka": np.eye(2)}, ["a", "b"], "epoch 0")]
        [('pairwise_cka', (360, 480, 3))]
    """
    if not tables:
        return
    canvas, axes = _figure((0.21, 0.27, 0.56, 0.64))
    names = [plots.plain(name, _WIDEST) for name in plots.short_names(layers)]
    places = range(0, len(names), -(-len(names) // _NAMES))
    axes.set_facecolor("0.8")
    drawn = axes.imshow(
        np.zeros((len(names),) * 2), vmin=0, vmax=1, cmap="viridis", interpolation="nearest", aspect="auto"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(places, [names[i] for i in places], fontsize=_LETTERS - 0.5)
    axes.tick_params(axis="x", labelrotation=90)
    bar = canvas.figure.colorbar(drawn, cax=canvas.figure.add_axes((0.8, 0.27, 0.03, 0.64)))
    bar.ax.tick_params(labelsize=_LETTERS)
    for name, values in tables.items():
        drawn.set_data(np.ma.masked_invalid(values))
        axes.set_title(f"{measure(name).title}, {when}", fontsize=_LETTERS)
        yield name, _pixels(canvas)


def _figure(place: tuple[float, float, float, float]) -> tuple[FigureCanvasAgg, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=_INCHES, dpi=_DPI))
    return canvas, canvas.figure.add_axes(place)


def _span(record: Measure, values: NDArray[np.float64], is_log: bool) -> tuple[float, float]:
    """From where to where an axis goes: as the record says, or to a little beyond what there is."""
    known = values[np.isfinite(values) & ((values > 0) | (not is_log))]
    least, most = float(known.min()), float(known.max())
    if is_log:
        beyond = max((most / least) ** 0.05, 1.1)
        return least / beyond, most * beyond
    beyond = 0.05 * (most - least) or 0.05 * abs(most) or 1.0
    low, high = record.range
    return (
        least - beyond if low is None else min(low, 1.05 * least),
        most + beyond if high is None else 1.02 * high,
    )


def _name_colours(axes: Axes, names: Sequence[str], colours: NDArray[np.float64]) -> None:
    """A bar of the layers' colours with the names of some, the deepest at the top."""
    axes.imshow(colours[:, None, :3], aspect="auto", origin="lower", interpolation="nearest")
    places = plots.evenly(len(names), _COLOUR_NAMES)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks(places, [plots.plain(names[i], _WIDEST) for i in places], fontsize=_LETTERS - 1)


def _pixels(canvas: FigureCanvasAgg) -> Image:
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]
