"""Snapshots to loggers: scalars, images and one chart a family.

Works with the loggers of a Trainer (``trainer.loggers``), of Fabric, or of a plain loop: anything with
``log_metrics(metrics, step)``, and for images an ``experiment`` with ``add_image`` (TensorBoard) or ``log_image``.

Tags, where ``<root>`` is the monitor's name, ``ssc`` by default:

* scalars ``<root>/<measure>/<layer>`` and, of linear CKA, ``linear_cka/<measure>/<layer>`` (of a monitor with a name of
  its own ``<name>_linear_cka/``) for every record of :data:`lightning_ssc.measures.MEASURES`: with every snapshot, and
  those to the final state at the end, at the steps of the snapshots; ``<root>/seconds/<stage>``;
* images ``<root>/pairwise_cka``, ``linear_cka/pairwise_cka`` and ``<root>/curves/<measure>`` with every snapshot, on
  request ``<root>/embedding/<layer>`` and, of the last hidden layer, ``<root>/neighbours/<layer>``;
* on request, in TensorBoard's projector tab, ``<root>/<layer>``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lightning_ssc import cards, measures, plots
from lightning_ssc.analysis import Dynamics, last_hidden_layer
from lightning_ssc.analysis import neighbours as nearest_inputs
from lightning_ssc.capture import balanced
from lightning_ssc.functional import spectral_embedding
from lightning_ssc.snapshots import ProbeCard, Snapshot
from lightning_ssc.threads import at_most, worth

Drawn = tuple[str, NDArray[np.uint8]]  # a tag and what stands under it

_PROJECTED = 16  # dimensions that the projector gets
_THUMBNAIL = 32  # pixels a side of a picture in the projector; its sheet of all pictures may have 8192
_EMBEDDED = 24  # layers whose embeddings are drawn: more would take seconds and hundreds of megabytes in a run
_BESIDE = 2  # threads that compute pictures beside the one that draws: each may solve a dense eigenproblem
_ENOUGH = 1e-3  # residual of the eigenvectors in a picture


@dataclass(frozen=True)
class Images:
    """Which images are drawn.

    Attributes:
        heatmap: SSC-CKA and linear CKA between all layers, with every snapshot.
        embedding: The spectral embedding of every layer or, where there are more, of 24 spread over the depth, with
            every snapshot.
        neighbours: For how many inputs, the same throughout and one a class as far as that goes, their nearest inputs
            in the last hidden layer come with every snapshot; 0 for none.
        projector: Every layer's embedding of the final state, with classes and pictures, for TensorBoard's projector
            tab. Each layer takes some megabytes there.
    """

    heatmap: bool = True
    embedding: bool = False
    neighbours: int = 0
    projector: bool = False


def linear_root(root: str) -> str:
    """The tag under which linear CKA stands beside the tags under ``root``.

    Example:
        >>> linear_root("ssc"), linear_root("convs")
        ('linear_cka', 'convs_linear_cka')
    """
    return measures.tag(measures.measure("linear_cka_to_final"), root).partition("/")[0]


def log_layout(loggers: Iterable[Any], roots: Mapping[str, bool]) -> None:
    """Ask TensorBoard for one multi-line chart a family in its custom scalars tab.

    It keeps one layout a run, so this is called once for all monitors.

    Args:
        loggers: Where to.
        roots: First parts of the tags, one a monitor, each with whether there is a reference to draw CKA to.
    """
    for logger in loggers:
        if not hasattr(getattr(logger, "experiment", None), "add_custom_scalars"):
            continue
        prefix = getattr(logger, "_prefix", "")  # Lightning puts it before scalars' tags, but not into a layout
        start = re.escape(f"{prefix}-" if prefix else "")
        layout: dict[str, dict[str, list[Any]]] = {}
        for root, reference in roots.items():
            for record in measures.CURVES:
                if record.over == "reference" and not reference:
                    continue
                category, _, family = measures.tag(record, root).partition("/")
                chart = ["Multiline", [f"{start}{re.escape(category)}/{family}/.*"]]
                layout.setdefault(category, {})[family] = chart
        logger.experiment.add_custom_scalars(layout)


def scalars_of(taken: Snapshot, root: str = "ssc") -> dict[str, float]:
    """What a snapshot says in numbers, by tag.

    Args:
        taken: The snapshot.
        root: First part of the tags.

    Example:
        >>> import torch
        >>> from lightning_ssc import snapshot
        >>> taken = snapshot(torch.nn.Sequential(torch.nn.Linear(4, 3)), torch.rand(20, 4), layers="Linear")
        >>> [tag for tag in scalars_of(taken) if tag.startswith("ssc/gap")]
        ['ssc/gap/0']
    """
    scalars = {f"{root}/seconds/{stage}": seconds for stage, seconds in sorted(taken.seconds.items())}
    for name, layer in taken.layers.items():
        for record in measures.CURVES:
            if record.name in layer.values:
                scalars[f"{measures.tag(record, root)}/{name}"] = layer.values[record.name]
    return scalars


def summary(taken: Snapshot) -> str:
    """A snapshot in a line: how modularity rises from the first layer to the last, how exact and how long.

    Example:
        >>> import torch
        >>> from lightning_ssc import snapshot
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> print(summary(snapshot(net, torch.rand(20, 4), layers="Linear")))  # doctest: +ELLIPSIS
        SSC epoch 0: 2 layers, worst gap ..., ... s
    """
    modularities = {name: layer.values.get("modularity", float("nan")) for name, layer in taken.layers.items()}
    (first, q1), (last, q2) = next(iter(modularities.items())), list(modularities.items())[-1]
    rise = "" if q1 != q1 else f"modularity {q1:.2f} ({first}) to {q2:.2f} ({last}), "
    worst = max(float(layer.gap.max()) for layer in taken.layers.values())
    return (
        f"SSC {taken.moment}: {len(taken.layers)} layers, {rise}{_settled(taken)}worst gap {worst:.0e}, "
        f"{taken.seconds.get('total', 0):.1f} s"
    )


def _settled(taken: Snapshot) -> str:
    """Which layers have been what they are for longest, and how many have been so for some time."""
    since = {name: layer.values.get("settled", float(taken.step)) for name, layer in taken.layers.items()}
    settled = [name for name, step in since.items() if step < taken.step]
    if not settled:
        return ""
    first = min(settled, key=lambda name: since[name])
    return f"{len(settled)} settled ({first} since step {since[first]:.0f}), "


def log_scalars(loggers: Iterable[Any], scalars: Mapping[str, float], step: int) -> None:
    """Write scalars under a step."""
    for logger in loggers:
        logger.log_metrics(dict(scalars), step=step)


def takes_images(logger: Any) -> bool:
    """Whether a logger has a way to log images that :func:`log_image` knows."""
    experiment = getattr(logger, "experiment", None)
    if type(experiment).__name__ in ("DummyExperiment", "_DummyExperiment"):  # of fast_dev_run: answers to every name
        return False
    return hasattr(experiment, "add_image") or hasattr(logger, "log_image") or hasattr(experiment, "log_image")


def drawn_for(loggers: Iterable[Any]) -> list[Any]:
    """The loggers that take images, where there is something to draw with; a warning, once, where there is not."""
    takers = [logger for logger in loggers if takes_images(logger)]
    if takers and find_spec("matplotlib") is None:
        warnings.warn(
            "Pictures for loggers are drawn by matplotlib, which is not installed: numbers are logged without them. "
            "pip install 'lightning-ssc[report]' brings all that draws.",
            stacklevel=1,  # from one place, so that it is said once
        )
        return []
    return takers


def log_image(loggers: Iterable[Any], tag: str, image: NDArray[np.uint8], step: int) -> None:
    """Write ``(H, W, 3)`` pixels to the loggers that take images."""
    for logger in filter(takes_images, loggers):
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_image"):  # TensorBoard
            experiment.add_image(tag, image, global_step=step, dataformats="HWC")
        elif hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(tag, [image], step=step)
        elif hasattr(logger, "run_id"):  # MLflow, which keeps the images of a key apart by step
            experiment.log_image(logger.run_id, image, key=re.sub(r"[^\w.-]", ".", tag), step=step)
        else:  # Comet
            experiment.log_image(image, name=tag, step=step)


def log_snapshot(
    loggers: Iterable[Any],
    taken: Snapshot,
    scalars: Mapping[str, float],
    images: Images,
    card: ProbeCard | None = None,
    root: str = "ssc",
    curves: Callable[[], Dynamics] | None = None,
    elsewhere: Callable[[Callable[[], list[Drawn]]], Future[list[Drawn]]] | None = None,
) -> Future[list[Drawn]] | None:
    """Write a snapshot's scalars and images under its step.

    Args:
        loggers: Where to.
        taken: The snapshot.
        scalars: From :func:`scalars_of`.
        images: Which images to draw.
        card: Pictures of the inputs and names of the classes.
        root: First part of the tags.
        curves: Reads the curves of the run so far.
        elsewhere: Draws in another thread, where it is given; what it draws is left to :func:`log_images`.

    Returns:
        What is drawn elsewhere, if anything is.
    """
    loggers, step = list(loggers), taken.moment.logged
    log_scalars(loggers, scalars, step)
    if not (takers := drawn_for(loggers)):
        return None  # nothing is drawn that nobody takes
    if elsewhere is not None:
        return elsewhere(lambda: list(drawn(taken, images, card, root, curves)))
    with closing(drawn(taken, images, card, root, curves)) as pictures:  # nobody draws the rest after an error
        log_images(takers, pictures, step)
    return None


def log_images(loggers: Iterable[Any], pictures: Iterable[Drawn], step: int) -> None:
    """Write what :func:`drawn` drew."""
    loggers = list(loggers)
    for tag, image in pictures:
        log_image(loggers, tag, image, step)


def drawn(
    taken: Snapshot,
    images: Images,
    card: ProbeCard | None = None,
    root: str = "ssc",
    curves: Callable[[], Dynamics] | None = None,
) -> Generator[Drawn, None, None]:
    """Draw the images of a snapshot; arguments as of :func:`log_snapshot`.

    Yields:
        Tags with ``(H, W, 3)`` pixels.
    """
    names = list(taken.layers)
    beside = ThreadPoolExecutor(_BESIDE)  # computes what later pictures show
    try:
        embeddings = _embeddings(taken, beside) if images.embedding else ()
        if images.neighbours > 0:
            name, card = last_hidden_layer(taken), card or ProbeCard("")
            layer = taken.layers[name]
            figure = plots.neighbours(
                _spread(taken, images.neighbours),
                nearest_inputs(layer)[0],
                card.images,
                taken.labels,
                card.class_names,
                title=f"nearest inputs in {name}, {taken.moment}",
            )
            yield f"{root}/neighbours/{name}", plots.to_image(figure)
        if images.heatmap and len(names) > 1:
            tables = {name: table.numpy() for name, table in taken.pairs.items()}
            for name, image in cards.heatmaps(tables, names, str(taken.moment)):
                yield measures.tag(measures.measure(name), root), image
        for name, image in cards.curves(curves(), few=True) if curves is not None else ():
            yield f"{root}/curves/{name}", image
        for name, image in plots.embedding_images(embeddings, taken.labels, f", {taken.moment}"):
            yield f"{root}/embedding/{name}", image
    finally:
        beside.shutdown(wait=False, cancel_futures=True)


def _embeddings(taken: Snapshot, beside: ThreadPoolExecutor) -> Iterable[tuple[str, Tensor]]:
    """The spectral embeddings that are drawn, each with its layer's name; computed by other threads."""
    names = list(taken.layers)
    graphs = {names[i]: taken.layers[names[i]].affinity for i in plots.evenly(len(names), _EMBEDDED)}
    # An empty graph has no eigenvectors to show.
    graphs = {name: graph for name, graph in graphs.items() if int((graph.crow_indices().diff() > 0).sum()) >= 2}
    return zip(graphs, beside.map(_embedding, graphs.values()), strict=True)


def _embedding(affinity: Tensor) -> Tensor:
    with at_most(worth(len(affinity))):  # in the thread that computes it
        return spectral_embedding(affinity, tol=_ENOUGH)


def log_history(loggers: Iterable[Any], table: Dynamics, root: str = "ssc") -> None:
    """Write values to the last snapshot at the steps of the snapshots, and all curves as images once more."""
    loggers = list(loggers)
    to_final = [record for record in measures.CURVES if record.over == "final"]
    for t, moment in enumerate(table.moments):
        scalars = {
            f"{measures.tag(record, root)}/{name}": float(table.curves[record.name][t, i])
            for record in to_final
            for i, name in enumerate(table.layers)
            if not np.isnan(table.curves[record.name][t, i])  # what was not kept has no value
        }
        log_scalars(loggers, scalars, moment.logged)
    if takers := drawn_for(loggers):
        pictures = ((f"{root}/curves/{name}", image) for name, image in cards.curves(table))
        log_images(takers, pictures, table.moments[-1].logged)


def log_projector(loggers: Iterable[Any], taken: Snapshot, card: ProbeCard | None = None, root: str = "ssc") -> None:
    """Write every layer's inputs as points for TensorBoard's projector tab, with their classes and pictures.

    Points are the leading eigenvectors of the affinity, each times the root of its eigenvalue, so that inner products
    of points come near affinities (adjacency spectral embedding, Sussman et al. 2012). Isolated inputs are at the
    origin. Loggers without ``experiment.add_embedding`` are passed over.

    Args:
        loggers: Where to.
        taken: The snapshot.
        card: Pictures of the inputs and names of the classes.
        root: First part of the tags.
    """
    experiments: list[Any] = [logger.experiment for logger in filter(takes_images, loggers)]
    experiments = [experiment for experiment in experiments if hasattr(experiment, "add_embedding")]
    if not experiments:
        return
    card = card or ProbeCard("")
    columns: dict[str, list[Any]] = {"input": list(range(len(next(iter(taken.layers.values())).gap)))}
    for column, classes in (("class", taken.labels), ("network", taken.predictions)):
        if classes is not None:  # names go into a table whose cells are parted by tabs
            columns[column] = [" ".join(plots.class_name(c, card.class_names).split()) for c in classes.tolist()]
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    described: dict[str, Any] = {} if len(columns) == 1 else {"metadata": rows, "metadata_header": list(columns)}
    if card.images is not None:
        described["label_img"] = _thumbnails(torch.from_numpy(card.images))
    for name, layer in taken.layers.items():
        affinity = layer.affinity.double()
        size = min(_PROJECTED, int((affinity.crow_indices().diff() > 0).sum()))
        if size < 2:
            continue
        vectors = spectral_embedding(affinity, size).nan_to_num()
        points = vectors * (vectors * (affinity @ vectors)).sum(0).clamp_min(0).sqrt()
        for experiment in experiments:
            experiment.add_embedding(points.float(), global_step=taken.moment.logged, tag=f"{root}/{name}", **described)


def _spread(taken: Snapshot, count: int) -> list[int]:
    """Some inputs, the same in every snapshot of a probe: one a class as far as that goes."""
    size = len(next(iter(taken.layers.values())).gap)
    labels = torch.zeros(size, dtype=torch.long) if taken.labels is None else taken.labels
    labelled = (labels >= 0).nonzero().squeeze(1)
    chosen: list[int] = labelled[balanced(labels[labelled], count)].tolist()
    return chosen


def _thumbnails(images: Tensor) -> Tensor:
    """Pictures ``(N, H, W, 3)`` uint8 as small squares ``(N, 3, S, S)`` from 0 to 1; what the projector can show."""
    x = images.permute(0, 3, 1, 2).float() / 255
    height, width = x.shape[2:]
    side = max(height, width)
    x = F.pad(x, (0, side - width, 0, side - height), value=1.0)
    return x if side <= _THUMBNAIL else F.interpolate(x, size=_THUMBNAIL, mode="area")


def flush(loggers: Iterable[Any]) -> None:
    """Make what was written visible now; TensorBoard would hold images back for up to two minutes."""
    for logger in loggers:
        if hasattr(logger, "save"):
            logger.save()
