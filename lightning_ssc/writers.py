"""Scalars and images to whatever loggers a Trainer has.

Every family of scalars also gets one chart with a line a layer in TensorBoard's custom scalars tab. Tags:

* ``ssc/modularity/<layer>``, ``ssc/cka_to_previous/<layer>``, ``ssc/cka_to_reference/<layer>``, ``ssc/gap/<layer>``,
  ``ssc/nnz_per_input/<layer>`` and ``linear_cka/cka_to_previous/<layer>`` with every snapshot, ``ssc/seconds/<stage>``;
* ``ssc/cka_to_final/<layer>`` and ``linear_cka/cka_to_final/<layer>`` at the end of fit, at the steps of the snapshots;
* images ``ssc/pairwise_cka`` and ``ssc/embedding/<layer>`` with every snapshot, ``ssc/curves/<family>`` at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lightning_ssc.plots import to_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHARTS = {
    "ssc": ("modularity", "cka_to_final", "cka_to_previous", "cka_to_reference", "gap", "nnz_per_input"),
    "linear_cka": ("cka_to_final", "cka_to_previous"),
}


def log_layout(loggers: Iterable[Any]) -> None:
    """Ask TensorBoard for one multi-line chart a family. It keeps one layout a run: call this once."""
    layout = {
        category: {family: ["Multiline", [f"{category}/{family}/.*"]] for family in families}
        for category, families in _CHARTS.items()
    }
    for logger in loggers:
        if hasattr(logger.experiment, "add_custom_scalars"):
            logger.experiment.add_custom_scalars(layout)


def log_scalars(loggers: Iterable[Any], scalars: Mapping[str, float], step: int) -> None:
    """Write scalars under a step."""
    for logger in loggers:
        logger.log_metrics(dict(scalars), step=step)


def log_figure(loggers: Iterable[Any], tag: str, figure: Figure, step: int) -> None:
    """Write a figure as an image to the loggers that take images: TensorBoard's ``add_image`` or a ``log_image``."""
    image = None
    for logger in loggers:
        add, log = getattr(logger.experiment, "add_image", None), getattr(logger, "log_image", None)
        if add is None and log is None:
            continue
        image = to_image(figure) if image is None else image
        if add is not None:
            add(tag, image, global_step=step, dataformats="HWC")
        elif log is not None:
            log(tag, [image], step=step)


def flush(loggers: Iterable[Any]) -> None:
    """Make what was written visible now; TensorBoard would hold images back for up to two minutes."""
    for logger in loggers:
        logger.save()
