"""The page of one run as a file: it carries its data, asks nothing of the network, and opens from disk."""

from __future__ import annotations

import html
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from lightning_ssc import measures, plots
from lightning_ssc.analysis import find_store, inputs, summarise
from lightning_ssc.analysis.inputs import Inputs
from lightning_ssc.live import pieces
from lightning_ssc.live.bundle import bundle
from lightning_ssc.live.doubted import doubted_labels
from lightning_ssc.live.figures import write_figures
from lightning_ssc.live.folder import LogFolder
from lightning_ssc.live.names import run_name
from lightning_ssc.live.pieces import Piece
from lightning_ssc.live.server import asset, plotly
from lightning_ssc.live.source import Source
from lightning_ssc.progress import Progress
from lightning_ssc.snapshots import Snapshot, SnapshotError, SnapshotStore
from lightning_ssc.threads import at_most

log = logging.getLogger(__name__)

_EMBEDDINGS = 120  # at most, over layers and moments: they take the time
_MOMENTS = 12  # at most, at which the inputs are there

# The scripts are in the file; nothing is loaded from anywhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "form-action 'none'; base-uri 'none'"
)


def report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    layer: str | None = None,
    reference: str | Path | None = None,
    figures: bool = False,
    progress: Progress = iter,
) -> Path:
    """Write a run's page, ``index.html``, table 1 of the paper, ``table1.csv``, and labels in doubt, ``labels.csv``.

    Snapshots that cannot be read are named on the page; the rest is shown.

    Args:
        run: A run's folder, see :func:`lightning_ssc.analysis.find_store`.
        out: Where to write; by default ``report`` inside the folder of snapshots.
        layer: The layer from which single inputs are read first; by default the last one before the classifier.
        reference: The folder of a run with whose last snapshot layers of the same name are compared.
        figures: Whether to write the figures, too, as PNG and SVG, which takes longer than all the rest.
        progress: Wrapped around what takes long, such as ``tqdm.tqdm``.

    Returns:
        The page.

    Raises:
        SnapshotError: The folder holds no run or several, no snapshot can be read, or there is no such layer.
        ImportError: Plotly is not installed.
        OSError: The page cannot be written.
    """
    store, other = find_store(run), read_reference(reference)
    folder = store.root / "report" if out is None else Path(out)
    text = page(store, layer=layer, reference=other, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(text, encoding="utf-8")
    table = single_inputs(store, layer)
    if table is not None:
        table.table1_to_csv(folder / "table1.csv")
    if (found := doubted_labels(store)) is not None:
        found.to_csv(folder / "labels.csv", _class_names(store))
    if figures:
        write_figures(summarise(store, layer=layer, reference=other, progress=progress), folder / "figures", progress)
    return path


def _class_names(store: SnapshotStore) -> tuple[str, ...]:
    """What the classes are called; where that cannot be read, the page has said so."""
    try:
        card = store.load_card()
    except SnapshotError:
        return ()
    return () if card is None else card.class_names


def read_reference(folder: str | Path | None) -> Snapshot | None:
    """The last snapshot of a run that is named as the reference."""
    if folder is None:
        return None
    store = find_store(folder)
    return store.load(step=store.steps[-1])


def single_inputs(store: SnapshotStore, layer: str | None = None) -> Inputs | None:
    """The inputs of the last snapshot that can be read (table 1 of the paper); ``None`` where it has no labels."""
    last = store.load(step=_last(store))
    return None if last.labels is None else inputs(last, layer)


def page(
    store: SnapshotStore, *, layer: str | None = None, reference: Snapshot | None = None, progress: Progress = iter
) -> str:
    """The page of a run as one HTML document; arguments and errors as of :func:`report`."""
    name = run_name(store.root)
    # "<" would let a name end the script element it stands in.
    data = json.dumps(contents(store, name, layer, reference, progress), allow_nan=False, separators=(",", ":"))
    scripts = [
        f'<script type="application/json" id="data">{data.replace("<", chr(92) + "u003c")}</script>',
        f"<script>{plotly()}</script>",
        f'<script type="module">{bundle("main.js")}'
        'const data = JSON.parse(document.getElementById("data").textContent);\n'
        'modules["main.js"].render(new modules["data.js"].Packed(data));</script>',
    ]
    parts = {
        "<title>Subspaces</title>": f"<title>{html.escape(f'Subspaces: {name}')}</title>",
        '<link rel="icon" href="data:,">': f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<link rel="icon" href="data:,">',
        '<link rel="stylesheet" href="./style.css">': f"<style>{asset('style.css')}</style>",
        '<script type="module" src="./start.js"></script>': "",
        "<body></body>": "<body>\n<noscript>This page is drawn by the script it carries; allow JavaScript to see it. "
        "It asks nothing of the network.</noscript>\n" + "\n".join(scripts) + "\n</body>",
    }
    return re.sub("|".join(map(re.escape, parts)), lambda match: parts[match[0]], asset("index.html"))


@at_most(1)
def contents(
    store: SnapshotStore,
    name: str,
    layer: str | None = None,
    reference: Snapshot | None = None,
    progress: Progress = iter,
) -> dict[str, Any]:
    """What the routes would answer, by the JSON of what they are asked; of the inputs at a choice of moments.

    Args:
        store: The run's snapshots.
        name: What the page calls the run.
        layer: The layer from which single inputs are read first.
        reference: What layers of the same name are compared with.
        progress: Wrapped around what takes long.
    """
    source = Source(LogFolder(store.root))
    found = source.runs()
    (listed,) = found["runs"]
    key, listed["name"] = listed["name"], name
    run = dict(source.run(key))
    if not run["moments"]:
        raise SnapshotError(f"No snapshot in {store} can be read: {' '.join(run['troubles'])}")
    for trouble in run["troubles"]:
        log.warning("%s", trouble)
    layers, steps = run["layers"], [moment["step"] for moment in run["moments"]]
    if layer is not None:
        if layer not in layers:
            raise SnapshotError(f"The snapshots in {store} hold no layer {layer!r}, only {', '.join(layers)}.")
        run["hidden"] = layer
    if reference is not None:
        own = [curve for curve in run["measures"] if curve["over"] != "reference"]
        run["measures"] = own + _against(store, steps, layers, run["probe"], reference)
    packed: dict[str, Any] = {json.dumps(["runs"]): found, _key("run", name): run}

    def put(piece: str, *arguments: Any) -> None:
        packed[_key(piece, name, *arguments)] = getattr(source, piece)(key, *arguments)

    packed[_key("computed", name)] = source.completed(key)
    if run["pictures"]:
        put("pictures")
    put("doubts")
    for step in progress(steps):
        put("heatmap", step)
    count = max(3, min(_MOMENTS, _EMBEDDINGS // max(1, len(layers))))
    chosen = [steps[t] for t in plots.evenly(len(steps), count)]
    for at in progress(chosen):
        put("samples", at)
        put("classes", at)
        for of in source.walk(key, at):
            put("embedding", at, of, 0)
            if at == steps[-1] or of == run["hidden"]:
                put("neighbours", at, of)
            if at == steps[-1]:
                put("embedding", at, of, 1)
    return packed


def _against(store: SnapshotStore, steps: list[int], layers: list[str], probe: str, reference: Snapshot) -> list[Piece]:
    """Curves to a reference that is named now."""
    if reference.probe != probe:
        raise SnapshotError(f"The reference and the snapshots in {store} are of different probes.")
    records = [record for record in measures.CURVES if record.over == "reference"]
    names = [name for record in records for name in (record.name, record.spread_name)]
    tables = {name: np.full((len(steps), len(layers)), np.nan) for name in names}
    for t, step in enumerate(steps):
        for name, graph in store.layers(step, [layer for layer in layers if layer in reference.layers]):
            for key, value in measures.between("reference", graph, reference.layers[name]).items():
                tables[key][t, layers.index(name)] = value
    known = [record for record in records if not np.isnan(tables[record.name]).all()]
    return [pieces.curve(record, tables[record.name], tables[record.spread_name]) for record in known]


def _last(store: SnapshotStore) -> int:
    headers, troubles = pieces.readable(store)
    if not headers:
        raise SnapshotError(f"No snapshot in {store} can be read: {' '.join(troubles)}")
    return headers[-1].step


def _key(*asked: Any) -> str:
    """As JSON.stringify writes it."""
    return json.dumps(asked, ensure_ascii=False, separators=(",", ":"))
