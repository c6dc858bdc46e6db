"""Snapshots, the state of every watched layer at one epoch, and the folder that keeps them.

A snapshot is one ``.npz`` file: a zip archive of plain arrays with one JSON header. It loads without executing
anything, each array is read only when asked for, and it appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_ssc import __version__
from lightning_ssc.functional import affinity, modularity
from lightning_ssc.functional.gram_sketch import GramSketch

FORMAT = 1
SUPERSEDED = "superseded"  # subfolder of snapshots that a later start of the run has replaced
_CLASSES = 1 << 20  # more classes than this are no classes, and would fill the memory of whoever counts them
_OF_SAMPLES = ("labels", "indices", "predictions", "confidence")
_NAME = re.compile(r"epoch_(\d+)\.npz")


class SnapshotError(RuntimeError):
    """A stored snapshot cannot be read; the message names the file and the remedy.

    Attributes:
        epoch: Epoch of the snapshot that cannot be read, or ``None`` where the trouble is another one.
    """

    def __init__(self, message: str, epoch: int | None = None) -> None:
        super().__init__(message)
        self.epoch = epoch


@dataclass(frozen=True)
class LayerGraph:
    """One layer at one epoch.

    Attributes:
        coef: ``(N, N)`` float32 sparse CSR on the CPU, the self-expression; row i rebuilds sample i.
        gap: ``(N,)`` float32, relative duality gap of every row, measured on the solution in float64. Rounding the
            weights to float32 to keep them moves it by about 1e-6 at tau = 10 and 1e-5 at tau = 100.
        converged: Whether every gap is within the tolerance asked for.
        features: Number of features a sample.
        linear: The layer's centred linear Gram in compact form, or ``None`` where linear CKA was not asked for.
        communities: ``(N,)`` int64 community of every sample that Louvain's method found in the graph, where
            ``labels="communities"`` asked for them.
    """

    coef: Tensor
    gap: Tensor
    converged: bool
    features: int
    linear: GramSketch | None = None
    communities: Tensor | None = None

    @cached_property
    def affinity(self) -> Tensor:
        """``(N, N)`` sparse CSR, |C| + |C|ᵀ."""
        return affinity(self.coef)

    def modularity(self, labels: Tensor | None) -> float:
        """Modularity of the graph (Eq. 5 of the paper) over its communities if it has them, else over the class labels.

        NaN where there are neither, or the graph is empty.
        """
        groups = labels if self.communities is None else self.communities
        return float("nan") if groups is None else modularity(self.affinity, groups)

    @property
    def neighbours(self) -> float:
        """Mean number of samples that rebuild a sample."""
        return self.coef.values().numel() / len(self.gap)


@dataclass(frozen=True)
class Snapshot:
    """The graphs of all watched layers at one epoch.

    Attributes:
        epoch: Finished epochs; 0 is the untrained network.
        step: Step under which the epoch's metrics are logged.
        layers: The layers' graphs by label, in order of execution.
        labels: ``(N,)`` int64 class of every sample, or ``None``.
        indices: ``(N,)`` int64 place of every sample in its data set, or ``None``.
        predictions: ``(N,)`` int64 class that the network gave every sample, or ``None`` where it does not return
            logits.
        confidence: ``(N,)`` float32 softmax score of that class.
        settings: How the graphs were made: tau, normalize, solver, tol, pooling and so on.
        probe: Fingerprint of the probe; graphs can be compared only where it is equal.
        seconds: Time spent by stage: forward, gram, solve.
        learning_rate: Learning rate of the finished epoch, or ``None`` where it is not known.
    """

    epoch: int
    step: int
    layers: dict[str, LayerGraph]
    labels: Tensor | None = None
    indices: Tensor | None = None
    predictions: Tensor | None = None
    confidence: Tensor | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    probe: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float | None = None


@dataclass(frozen=True)
class ProbeCard:
    """What a reader sees of the probe; stored once beside the snapshots.

    Attributes:
        fingerprint: Fingerprint of the probe that it shows.
        images: ``(N, H, W, 3)`` uint8 pictures of the inputs, or ``None`` where they are not images.
        class_names: Name of every class, by its number; may be empty.
    """

    fingerprint: str
    images: NDArray[np.uint8] | None = None
    class_names: tuple[str, ...] = ()


class SnapshotHeader(NamedTuple):
    """What a stored snapshot says of itself; reading it reads no graph."""

    epoch: int
    step: int
    layers: list[str]
    settings: dict[str, Any]
    probe: str
    seconds: dict[str, float]
    versions: dict[str, str]
    learning_rate: float | None


class SnapshotStore:
    """A folder of snapshots, one file an epoch.

    Writing is atomic: a file is whole or not there. Saving an epoch again replaces it.

    Args:
        root: The folder; made when the first snapshot is saved.

    Example:
        >>> import tempfile
        >>> from lightning_ssc import snapshot
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> store = SnapshotStore(tempfile.mkdtemp())
        >>> store.save(snapshot(net, torch.rand(20, 4), torch.arange(20) % 2, layers="Linear", epoch=3))
        >>> store.epochs, list(store.load(3).layers)
        ([3], ['0', '2'])
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def epochs(self) -> list[int]:
        """Epochs of the stored snapshots, ascending."""
        if not self.root.is_dir():
            return []
        return sorted(int(m[1]) for path in self.root.iterdir() if (m := _NAME.fullmatch(path.name)))

    def __len__(self) -> int:
        return len(self.epochs)

    def __contains__(self, epoch: int) -> bool:
        return self.path(epoch).is_file()

    def __iter__(self) -> Iterator[Snapshot]:
        return (self.load(epoch) for epoch in self.epochs)

    def path(self, epoch: int) -> Path:
        """File of an epoch's snapshot."""
        return self.root / f"epoch_{epoch:06d}.npz"

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot, replacing an earlier one of the same epoch.

        Raises:
            OSError: The disk is full or the folder cannot be written; nothing that was stored before is lost.
        """
        _write(self.path(snapshot.epoch), _to_arrays(snapshot))

    def take_over(self, other: SnapshotStore, epochs: Sequence[int]) -> None:
        """Bring in snapshots of another store, as links to its files where the file system can and as copies elsewhere.

        Epochs that this store has, or the other one lacks, are passed over.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob("*.partial"):  # of a process that was killed while it wrote
            leftover.unlink()
        for epoch in epochs:
            if epoch in other and epoch not in self:
                try:
                    os.link(other.path(epoch), self.path(epoch))
                except OSError:
                    shutil.copy2(other.path(epoch), self.path(epoch))

    def set_aside(self, epochs: Sequence[int]) -> None:
        """Move snapshots into the subfolder ``superseded``, where no reader looks."""
        for epoch in epochs:
            aside = self.root / SUPERSEDED / self.path(epoch).name
            aside.parent.mkdir(exist_ok=True)
            self.path(epoch).replace(aside)

    def load(self, epoch: int) -> Snapshot:
        """Read one snapshot.

        Raises:
            SnapshotError: It is not there, damaged, or of a newer format.
        """
        with self._open(epoch) as arrays:
            header = _snapshot_header(arrays, self.path(epoch))
            of_samples = _of_samples(arrays, header)
            return Snapshot(
                layers={name: _layer(arrays, i, header["layers"][i]) for i, name in enumerate(_names(header))},
                **of_samples,
                learning_rate=header.get("learning_rate"),
                **{key: header[key] for key in ("epoch", "step", "settings", "probe", "seconds")},
            )

    def load_layer(self, epoch: int, layer: str) -> LayerGraph:
        """Read one layer of one snapshot, without reading the others.

        Raises:
            SnapshotError: The snapshot cannot be read or does not hold the layer.
        """
        with self._open(epoch) as arrays:
            header = _snapshot_header(arrays, self.path(epoch))
            names = _names(header)
            if layer not in names:
                raise SnapshotError(f"{self.path(epoch)} holds no layer {layer!r}, only {', '.join(names)}.")
            return _layer(arrays, names.index(layer), header["layers"][names.index(layer)])

    def labels(self, epoch: int) -> Tensor | None:
        """Read the labels of one snapshot, or ``None`` where it has none.

        Raises:
            SnapshotError: The snapshot cannot be read.
        """
        with self._open(epoch) as arrays:
            return _of_samples(arrays, _snapshot_header(arrays, self.path(epoch))).get("labels")

    def header(self, epoch: int) -> SnapshotHeader:
        """Read what a snapshot says of itself.

        Raises:
            SnapshotError: The snapshot cannot be read.
        """
        with self._open(epoch) as arrays:
            header = _snapshot_header(arrays, self.path(epoch))
            _size(arrays, header)
            return SnapshotHeader(
                layers=_names(header),
                versions=header.get("versions", {}),
                learning_rate=header.get("learning_rate"),
                **{k: header[k] for k in ("epoch", "step", "settings", "probe", "seconds")},
            )

    def save_card(self, card: ProbeCard) -> None:
        """Write what readers see of the probe.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        header = {"format": FORMAT, "fingerprint": card.fingerprint, "class_names": list(card.class_names)}
        arrays = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
        _write(self.root / "probe.npz", arrays if card.images is None else {**arrays, "images": card.images})

    def load_card(self) -> ProbeCard | None:
        """Read what readers see of the probe, or ``None`` where nothing was stored.

        Raises:
            SnapshotError: The file is damaged or of a newer format.
        """
        path = self.root / "probe.npz"
        if not path.is_file():
            return None
        with _Reading(path) as arrays:
            header = _header(arrays, path)
            images = arrays.get("images")
            _check(isinstance(header["fingerprint"], str), "the fingerprint is no text")
            _check(all(isinstance(name, str) for name in header["class_names"]), "a class name is no text")
            pictures = images is None or (images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3)
            _check(pictures, "the pictures are not (N, H, W, 3) bytes")
            return ProbeCard(header["fingerprint"], images, tuple(header["class_names"]))

    def _open(self, epoch: int) -> _Reading:
        return _Reading(self.path(epoch))


class MemoryStore(SnapshotStore):
    """Snapshots of a run that writes no files."""

    def __init__(self) -> None:
        super().__init__("memory")
        self._snapshots: dict[int, Snapshot] = {}
        self._card: ProbeCard | None = None

    @property
    def epochs(self) -> list[int]:
        """Epochs of the kept snapshots, ascending."""
        return sorted(self._snapshots)

    def __contains__(self, epoch: int) -> bool:
        return epoch in self._snapshots

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, replacing an earlier one of the same epoch."""
        self._snapshots[snapshot.epoch] = snapshot

    def save_card(self, card: ProbeCard) -> None:
        """Keep what readers see of the probe."""
        self._card = card

    def load_card(self) -> ProbeCard | None:
        """What readers see of the probe."""
        return self._card

    def load(self, epoch: int) -> Snapshot:
        """The kept snapshot."""
        return self._snapshots[epoch]

    def load_layer(self, epoch: int, layer: str) -> LayerGraph:
        """One layer of a kept snapshot."""
        return self.load(epoch).layers[layer]

    def labels(self, epoch: int) -> Tensor | None:
        """The labels of a kept snapshot."""
        return self.load(epoch).labels

    def header(self, epoch: int) -> SnapshotHeader:
        """What a kept snapshot says of itself."""
        s = self.load(epoch)
        return SnapshotHeader(
            s.epoch, s.step, list(s.layers), dict(s.settings), s.probe, dict(s.seconds), versions(), s.learning_rate
        )


@cache
def versions() -> dict[str, str]:
    """Versions of what the numbers come from; every stored snapshot carries them."""
    found = {"lightning_ssc": __version__, "python": platform.python_version()}
    for package in ("torch", "lightning", "pytorch-lightning", "numpy", "numba"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # of Lightning's two names one is usually missing
            continue
    return found


def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write an archive, as ``numpy.savez`` does, under its name only when it is whole.

    Indices are compressed, to two thirds of their size; the digits of weights and Grams are as good as random, and to
    compress them too took more than four times as long for 7 % of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    member = zipfile.ZipInfo(f"{name}.npy")
                    member.compress_type = zipfile.ZIP_STORED if array.dtype.kind == "f" else zipfile.ZIP_DEFLATED
                    with archive.open(member, "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Reading:
    """An open snapshot file, in whose scope every kind of damage becomes a :class:`SnapshotError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Mapping[str, NDArray[Any]]:
        try:
            self._file = self.path.open("rb")
        except FileNotFoundError:
            epochs = SnapshotStore(self.path.parent).epochs
            raise SnapshotError(
                f"There is no snapshot {self.path}; the folder holds epochs {epochs}.", self._epoch
            ) from None
        except OSError as error:
            raise self._damaged(error) from error
        try:
            arrays = np.load(self._file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
        except Exception as error:
            self._file.close()
            raise self._damaged(error) from error
        return arrays

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if isinstance(error, Exception) and not isinstance(error, SnapshotError):
            raise self._damaged(error) from error  # whatever reading meets, the file is not what it should be

    @property
    def _epoch(self) -> int | None:
        return _epoch_of(self.path)

    def _damaged(self, why: object) -> SnapshotError:
        return SnapshotError(
            f"{self.path} is not a readable snapshot ({why}). Delete the file; the run's other snapshots are "
            f"not affected.",
            self._epoch,
        )


def _header(arrays: Mapping[str, Any], path: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(bytes(arrays["header"]))
    if header["format"] > FORMAT:
        raise SnapshotError(
            f"{path} has snapshot format {header['format']}; this version of lightning_ssc reads up to {FORMAT}. "
            f"Upgrade lightning-ssc to read it."
        )
    return header


def _check(holds: bool, what: str) -> None:
    """Refuse what an archive holds; :class:`_Reading` adds which file it is."""
    if not holds:
        raise ValueError(what)


def _snapshot_header(arrays: Mapping[str, Any], path: Path) -> dict[str, Any]:
    header = _header(arrays, path)
    names, rate = _names(header), header.get("learning_rate")
    _check(
        all(isinstance(name, str) for name in names) and len(set(names)) == len(names),
        "its names of layers are not texts that differ",
    )
    for layer in header["layers"]:
        _check(
            type(layer["features"]) is int and type(layer["converged"]) is bool, f"layer {layer['name']!r} is damaged"
        )
    _check(header["epoch"] == _epoch_of(path), f"it says that it is of epoch {header['epoch']}")
    _check(type(header["step"]) is int and isinstance(header["probe"], str), "its step or probe is damaged")
    _check(rate is None or type(rate) in (int, float), f"its learning rate is {rate!r}")
    for key in ("settings", "seconds", "versions"):
        _check(isinstance(header.get(key, {}), dict), f"its {key} are damaged")
    _check(all(type(value) in (int, float) for value in header["seconds"].values()), "its seconds are damaged")
    return header


def _size(arrays: Mapping[str, Any], header: Mapping[str, Any]) -> int | None:
    """The number of samples, which all layers must share; ``None`` without layers."""
    sizes = {arrays[f"{i}/gap"].shape for i in range(len(header["layers"]))}
    _check(len(sizes) <= 1, "its layers are of different numbers of samples")
    return next((shape[0] for shape in sizes), None)


def _of_samples(arrays: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, Any]:
    """Labels, predictions and so on, one entry a sample."""
    size = _size(arrays, header)
    found: dict[str, NDArray[Any]] = {key: arrays[key] for key in _OF_SAMPLES if key in arrays}
    for key, values in found.items():
        _check(values.ndim == 1 and size in (None, len(values)), f"its {key} are not one a sample")
        _check(values.dtype.kind == ("f" if key == "confidence" else "i"), f"its {key} are {values.dtype}")
        if key in ("labels", "predictions"):
            in_range = (values >= np.iinfo(np.int32).min) & (values < _CLASSES)
            _check(bool(in_range.all()), f"its {key} are no numbers of classes")
    return {key: torch.from_numpy(values) for key, values in found.items()}


def _epoch_of(path: Path) -> int | None:
    name = _NAME.fullmatch(path.name)
    return None if name is None else int(name[1])


def _names(header: Mapping[str, Any]) -> list[str]:
    return [layer["name"] for layer in header["layers"]]


def _to_arrays(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    layers = []
    for i, (name, layer) in enumerate(snapshot.layers.items()):
        arrays[f"{i}/crow"] = layer.coef.crow_indices().numpy().astype(np.int32)
        small = np.uint16 if len(layer.gap) <= 1 << 16 else np.int32
        arrays[f"{i}/col"] = layer.coef.col_indices().numpy().astype(small)
        arrays[f"{i}/value"] = layer.coef.values().numpy()
        arrays[f"{i}/gap"] = layer.gap.numpy()
        entry: dict[str, Any] = {"name": name, "converged": layer.converged, "features": layer.features}
        if layer.communities is not None:
            arrays[f"{i}/communities"] = layer.communities.numpy()
        if layer.linear is not None:
            arrays[f"{i}/linear/diagonal"] = layer.linear.diagonal.numpy()
            arrays[f"{i}/linear/pairs"] = layer.linear.pairs.numpy()
        layers.append(entry)
    for key in _OF_SAMPLES:
        if (tensor := getattr(snapshot, key)) is not None:
            arrays[key] = tensor.numpy()
    header = {
        "format": FORMAT,
        "layers": layers,
        "settings": dict(snapshot.settings),
        "seconds": dict(snapshot.seconds),
        "versions": versions(),
        **{key: getattr(snapshot, key) for key in ("epoch", "step", "probe", "learning_rate")},
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    return arrays


def _layer(arrays: Mapping[str, Any], i: int, entry: Mapping[str, Any]) -> LayerGraph:
    crow, col, value = (torch.from_numpy(arrays[f"{i}/{part}"]) for part in ("crow", "col", "value"))
    gap, found = torch.from_numpy(arrays[f"{i}/gap"]), arrays.get(f"{i}/communities")
    n = len(crow) - 1
    for values in (gap, found):
        _check(values is None or tuple(values.shape) == (n,), f"layer {entry['name']!r} has a column of another length")
    _check(
        value.is_floating_point() and bool(value.isfinite().all()),
        f"layer {entry['name']!r} has weights that are no numbers",
    )
    try:  # unchecked, indices out of range would be read as memory
        coef = torch.sparse_csr_tensor(crow.long(), col.long(), value, (n, n), check_invariants=True)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    linear = None
    if f"{i}/linear/pairs" in arrays:
        linear = GramSketch(*(torch.from_numpy(arrays[f"{i}/linear/{part}"]) for part in ("diagonal", "pairs")))
    communities = None if found is None else torch.from_numpy(found)
    return LayerGraph(coef, gap, entry["converged"], entry["features"], linear, communities)
