"""From a log folder to the pieces that a page asks for, and what is kept of what was computed for them."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any

import numpy as np
from torch import Tensor

from lightning_ssc.analysis.inputs import Index, classes_of
from lightning_ssc.live import pieces
from lightning_ssc.live.cache import Cache
from lightning_ssc.live.doubted import doubted
from lightning_ssc.live.folder import Found, LogFolder
from lightning_ssc.live.packing import pack_coarsely
from lightning_ssc.live.pieces import Piece
from lightning_ssc.snapshots import LayerGraph, SnapshotError, SnapshotHeader, SnapshotStore
from lightning_ssc.threads import at_most

_CACHE = 128 << 20  # bytes
_SLICE = 0.5  # seconds that one request may compute for, of work that takes long
_SIDE_BY_SIDE = 2  # threads that compare for who waits; more of them wait for Python's lock
_MOMENTS = 24  # at most, of an input's history


class NotFoundError(LookupError):
    """There is no such run, snapshot, layer or input."""


class Source:
    """The pieces of all runs below a log folder.

    Every public method answers one route. Work that takes long is done a slice at a time, while somebody asks: a page
    that is closed costs nothing.

    Args:
        folder: The log folder.

    Example:
        >>> import tempfile, torch
        >>> from lightning_ssc import snapshot
        >>> folder = tempfile.mkdtemp()
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> taken = snapshot(net, torch.rand(20, 4), torch.arange(20) % 2, layers="Linear")
        >>> SnapshotStore(f"{folder}/version_0/ssc").save(taken)
        >>> source = Source(LogFolder(folder))
        >>> source.run("version_0")["layers"]
        ['0', '1']
    """

    def __init__(self, folder: LogFolder) -> None:
        self._folder = folder
        self._stores: dict[str, SnapshotStore] = {}  # they keep the headers that they have read
        self._cache = Cache(_CACHE)
        self._comparisons: dict[str, _Comparison] = {}
        self._comparing = ThreadPoolExecutor(_SIDE_BY_SIDE)  # kept, for the memory of threads is used again and again
        self._turn = Lock()  # of who has something computed
        self._at_hand: tuple[Hashable, LayerGraph] | None = None

    def runs(self) -> Piece:
        """All runs, each with a signature that differs once its files do."""
        now = time.time()
        return {
            "runs": [
                {
                    "name": found.name,
                    "signature": found.signature,
                    "snapshots": found.snapshots,
                    "age": max(0.0, now - found.modified),
                    "bytes": found.bytes,
                    "state": pieces.state(found.root),
                }
                for found in self._folder.runs().values()
            ]
        }

    def run(self, run: str) -> Piece:
        """What the headers of a run say."""
        found = self._folder.runs().get(run)
        if found is not None and found.links:
            names = ", ".join(found.links)
            return {
                "layers": [],
                "moments": [],
                "measures": [],
                "troubles": [f"{names}: a link out of the log folder."],
            }
        store = self._store(run)
        assert found is not None
        return self._cache.get(("run", run, found.signature), lambda: pieces.run(store))

    def read_ahead(self) -> None:
        """Read what a page asks for first: the run that was written to last."""
        runs = self._folder.runs().values()
        with suppress(NotFoundError, SnapshotError):
            if runs:
                self.run(max(runs, key=lambda found: found.modified).name)

    def computed(self, run: str) -> Piece:
        """Curves that no snapshot could know when it was taken, those to the latest one, and of old files the others.

        They come as far as they are computed, with whether that is all.
        """
        return self._computed(run, _SLICE, threads=1)

    def completed(self, run: str) -> Piece:
        """The same curves when all is computed, for who can wait."""
        return self._computed(run, math.inf, threads=_SIDE_BY_SIDE)

    def _computed(self, run: str, seconds: float, threads: int) -> Piece:
        store = self._store(run)
        headers, _ = pieces.readable(store)
        if not headers:
            raise NotFoundError(f"Run {run!r} has no snapshot that can be read.")
        with self._turn:
            return self._go_on(run, store, headers, seconds, threads)

    def _go_on(
        self, run: str, store: SnapshotStore, headers: Sequence[SnapshotHeader], seconds: float, threads: int
    ) -> Piece:
        """So many seconds more of what :meth:`computed` answers; of one run at a time the graphs are held."""
        identities = [self._identity(store, header.step) for header in headers]
        known = self._comparisons.get(run)
        if known is None or known.latest != identities[-1]:
            known = self._comparisons[run] = _Comparison(store, headers[-1].step, identities[-1])
        for other in self._comparisons.values():
            if other is not known:
                other.rest()
        left = iter([t for t in _coarse_to_fine(len(headers)) if identities[t] not in known.values])
        ends = time.monotonic() + seconds

        def compare() -> None:
            with at_most(1):
                for t in left:  # that all threads take from
                    known.add(headers[t], identities[t])
                    if time.monotonic() >= ends:
                        return

        for thread in [self._comparing.submit(compare) for _ in range(threads)]:
            thread.result()
        done = all(identity in known.values for identity in identities)
        if done:
            known.rest()
        curves = pieces.computed_curves(headers, [known.values.get(identity, {}) for identity in identities])
        return {"done": done, "latest": headers[-1].step, "measures": curves, "troubles": known.troubles}

    def heatmap(self, run: str, step: int) -> Piece:
        """Tables between the layers at one moment."""
        store, layers = self._store(run), self.run(run)["layers"]
        return self._cache.get(
            ("heatmap", self._identity(store, step), tuple(layers)), lambda: pieces.heatmap(store, step, layers)
        )

    def classes(self, run: str, step: int) -> Piece:
        """What was measured of every class in every layer at one moment."""
        store, run_of = self._store(run), self.run(run)
        key = "classes", self._identity(store, step), tuple(run_of["layers"])
        return self._cache.get(key, lambda: pieces.classes(store, step, run_of["layers"]))

    def between(self, run: str, step: int, other_run: str, other_step: int) -> Piece:
        """All layers at one moment against all at another moment, of this run or another."""
        one, other = self._store(run), self._store(other_run)
        key = "between", self._identity(one, step), self._identity(other, other_step)

        def compare() -> Piece:
            with at_most(1):
                return pieces.between(one.load(step=step), other.load(step=other_step))

        return self._cache.get(key, compare)

    def samples(self, run: str, step: int) -> Piece:
        """What the network made of every input at one moment."""
        store = self._store(run)
        return self._cache.get(("samples", self._identity(store, step)), lambda: pieces.samples(store, step))

    def embedding(self, run: str, step: int, layer: str, normalized: int = 0) -> Piece:
        """Places of the inputs in one layer at one moment."""
        store = self._store(run)

        def place() -> Any:
            with at_most(1):
                return pieces.points(self._graph(store, step, layer), bool(normalized))

        key = "embedding", self._identity(store, step), layer, bool(normalized)
        return {"points": pack_coarsely(self._cache.get(key, place))}

    def neighbours(self, run: str, step: int, layer: str) -> Piece:
        """Nearest inputs and class shares of all inputs in one layer at one moment."""
        store = self._store(run)

        def find() -> Any:
            with at_most(1):
                return pieces.around(self._graph(store, step, layer), *self._labels(store, step))

        return pieces.pack_around(*self._cache.get(("around", self._identity(store, step), layer), find))

    def input(self, run: str, step: int, index: int) -> Piece:
        """One input in every layer at one moment."""
        store = self._store(run)
        names = self._header_layers(store, step)
        known = self._known(store, step, index)
        rows = [pieces.around_one(graph, index, *known) for _, graph in store.layers(step)]
        return {"layers": names, **pieces.pack_rows(rows)}

    def history(self, run: str, layer: str, index: int) -> Piece:
        """One input in one layer at up to 24 moments, spread evenly."""
        store = self._store(run)
        headers = [header for header in pieces.readable(store)[0] if layer in header.layers]
        if not headers:
            raise NotFoundError(f"No snapshot of {run!r} holds a layer {layer!r}.")
        chosen = sorted({round(t) for t in np.linspace(0, len(headers) - 1, min(_MOMENTS, len(headers)))})
        steps = [headers[t].step for t in chosen]
        rows = [
            pieces.around_one(store.load_layer(layer=layer, step=step), index, *self._known(store, step, index))
            for step in steps
        ]
        return {"steps": steps, **pieces.pack_rows(rows)}

    def doubts(self, run: str) -> Piece:
        """The labels that the run doubts."""
        store = self._store(run)
        key = "doubts", str(store.root), self._folder.runs()[run].signature
        return self._cache.get(key, lambda: doubted(store))

    def pictures(self, run: str) -> Piece:
        """The pictures of the probe on one sheet, or the texts of its inputs; empty where there are neither."""
        store = self._store(run)
        headers, _ = pieces.readable(store)
        if not headers:
            return {}
        key = "pictures", str(store.root), self._folder.runs()[run].signature if run in self._folder.runs() else ""
        return self._cache.get(key, lambda: pieces.pictures(store, headers[-1].probe) or {})

    def walk(self, run: str, step: int) -> Iterator[str]:
        """The layers of one moment, each with its graph at hand for the pieces of it that are asked for meanwhile.

        The file is opened once, not once for every piece.
        """
        store, identity = self._store(run), self._identity(self._store(run), step)
        for name, graph in store.layers(step):
            self._at_hand = (identity, name), graph
            yield name
        self._at_hand = None

    # -- Which

    def _store(self, run: str) -> SnapshotStore:
        """The store of a run that was found, and of no other folder."""
        found: Found | None = self._folder.runs().get(run)
        if found is None or found.links:
            raise NotFoundError(f"There is no run {run!r}.")
        return self._stores.setdefault(str(found.root), SnapshotStore(found.root))

    def _header_layers(self, store: SnapshotStore, step: int) -> list[str]:
        self._identity(store, step)
        return store.header(step=step).layers

    def _identity(self, store: SnapshotStore, step: int) -> Hashable:
        """What tells a snapshot's file from any other."""
        path = store.files().get(step)
        if path is None:
            raise NotFoundError(f"There is no snapshot of step {step}.")
        try:
            stat = path.stat()
        except OSError as error:
            raise SnapshotError(f"{path} cannot be opened ({error.strerror or error}).", step) from error
        return str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _graph(self, store: SnapshotStore, step: int, layer: str) -> LayerGraph:
        if self._at_hand is not None and self._at_hand[0] == (self._identity(store, step), layer):
            return self._at_hand[1]
        if layer not in self._header_layers(store, step):
            raise NotFoundError(f"The snapshot of step {step} holds no layer {layer!r}.")
        return store.load_layer(layer=layer, step=step)

    def _labels(self, store: SnapshotStore, step: int) -> tuple[Tensor | None, Index]:
        """Labels of a snapshot's samples, and the classes there are."""

        def find() -> tuple[Tensor | None, Index]:
            found = store.of_samples(step)
            return found.get("labels"), classes_of(found.get("labels"), found.get("predictions"))

        return self._cache.get(("labels", self._identity(store, step)), find)

    def _known(self, store: SnapshotStore, step: int, index: int) -> tuple[Tensor | None, Index]:
        """:meth:`_labels` of a snapshot that has an input."""
        if not 0 <= index < (store.header(step=step).size or math.inf):
            raise NotFoundError(f"The probe has no input {index}.")
        return self._labels(store, step)


class _Comparison:
    """A run's snapshots against the latest one: what was computed of each so far, and while it goes on the graphs.

    Args:
        store: The run's snapshots.
        step: Step of the latest one.
        latest: What tells its file from any other.
    """

    def __init__(self, store: SnapshotStore, step: int, latest: Hashable) -> None:
        self.latest = latest
        self.values: dict[Hashable, dict[str, dict[str, float]]] = {}
        self.troubles: list[str] = []
        self._store, self._step = store, step
        self._graphs: dict[str, LayerGraph] = {}
        self._loading = Lock()

    def rest(self) -> None:
        """Let the graphs go."""
        self._graphs = {}

    def add(self, header: SnapshotHeader, identity: Hashable) -> None:
        """Compare a snapshot."""
        found = self.values[identity] = dict[str, dict[str, float]]()
        try:
            with self._loading:
                if not self._graphs:
                    self._graphs, self._labels = dict(self._store.layers(self._step)), self._store.labels(self._step)
            for name, layer in self._store.layers(header.step, self._graphs):
                found[name] = pieces.computed(layer, header.values[name], self._graphs[name], self._labels)
        except SnapshotError as error:
            self.troubles += [] if str(error) in self.troubles else [str(error)]


def _coarse_to_fine(count: int) -> Iterator[int]:
    """All of ``range(count)``, the last and the first before the middle, and so on: a curve that gets finer.

    Example:
        >>> list(_coarse_to_fine(6))
        [5, 0, 4, 2, 1, 3]
    """
    seen = {count - 1}
    yield count - 1
    stride = 1 << max(0, math.ceil(math.log2(max(1, count))))
    while stride:
        for place in range(0, count, stride):
            if place not in seen:
                seen.add(place)
                yield place
        stride //= 2
