"""Where a run's snapshots are kept: a folder with a file a snapshot, or memory."""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lightning_ssc.files import obstacle
from lightning_ssc.snapshots import codec
from lightning_ssc.snapshots.snapshot import LayerGraph, ProbeCard, Snapshot, SnapshotError, SnapshotHeader

SUPERSEDED = "superseded"  # subfolder of snapshots that a later start of the run has replaced
_NAME = re.compile(r"step_(\d+)\.npz")
_NAME_1 = re.compile(r"epoch_(\d+)\.npz")  # of format 1


class Store(ABC):
    """Snapshots of one run by their steps, ascending; those between two epochs by their epochs, too."""

    @property
    @abstractmethod
    def steps(self) -> list[int]:
        """Steps of the snapshots, ascending."""

    @abstractmethod
    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, replacing an earlier one of the same step."""

    @abstractmethod
    def load(self, epoch: int | None = None, *, step: int | None = None) -> Snapshot:
        """One snapshot."""

    @abstractmethod
    def layers(self, step: int, names: Iterable[str] | None = None) -> Iterator[tuple[str, LayerGraph]]:
        """Layers of one snapshot, one at a time; all or those of the names that it holds."""

    @abstractmethod
    def of_samples(self, step: int) -> Mapping[str, Tensor]:
        """``(N,)`` labels, indices, predictions and confidence of one snapshot, by name; those that it has."""

    def labels(self, step: int) -> Tensor | None:
        """``(N,)`` labels of one snapshot, or ``None`` where it has none."""
        return self.of_samples(step).get("labels")

    @abstractmethod
    def pairs(self, step: int) -> Mapping[str, Tensor]:
        """Tables ``(L, L)`` between the layers of one snapshot, by the names of the measures; may be empty."""

    @abstractmethod
    def of_classes(self, step: int) -> Mapping[str, Mapping[str, Tensor]]:
        """What was measured of classes at one snapshot, ``(K,)`` by the names of layers and measures."""

    @abstractmethod
    def header(self, epoch: int | None = None, *, step: int | None = None) -> SnapshotHeader:
        """What a snapshot says of itself."""

    @abstractmethod
    def headers(self) -> Iterator[SnapshotHeader | SnapshotError]:
        """What all snapshots say of themselves, ascending; of one that cannot be read, why."""

    @abstractmethod
    def save_card(self, card: ProbeCard) -> None:
        """Keep what readers see of the probe."""

    @abstractmethod
    def load_card(self) -> ProbeCard | None:
        """What readers see of the probe, or ``None`` where nothing was kept."""

    def load_layer(self, epoch: int | None = None, layer: str = "", *, step: int | None = None) -> LayerGraph:
        """One layer of one snapshot, without the others.

        Raises:
            SnapshotError: The snapshot cannot be read or does not hold the layer.
        """
        step = self._step_of(epoch, step)
        for _, found in self.layers(step, [layer]):
            return found
        held = ", ".join(self.header(step=step).layers)
        raise SnapshotError(f"The snapshot of step {step} in {self} holds no layer {layer!r}, only {held}.", step)

    @property
    def epochs(self) -> list[int]:
        """Epochs of the snapshots that lie between two epochs, ascending; those that cannot be read are left out."""
        return sorted(self._by_epoch()[0])

    def _by_epoch(self) -> tuple[dict[int, int], list[SnapshotError]]:
        """The last step of every whole epoch, and why snapshots could not be asked for theirs."""
        headers = list(self.headers())
        whole = [h.moment for h in headers if isinstance(h, SnapshotHeader) and h.moment.is_whole]
        unreadable = [header for header in headers if isinstance(header, SnapshotError)]
        return {int(moment.epoch): moment.step for moment in whole}, unreadable

    def _step_of(self, epoch: int | None, step: int | None) -> int:
        """The step that is meant by an epoch or a step."""
        if (epoch is None) == (step is None):
            raise ValueError("Name a snapshot by its epoch, load(3), or by its step, load(step=391).")
        if step is not None:
            if step not in (steps := self.steps):
                raise SnapshotError(f"There is no snapshot of step {step} in {self}; it holds steps {steps}.", step)
            return step
        by_epoch, unreadable = self._by_epoch()
        if epoch not in by_epoch:
            why = "".join(f" {error}" for error in unreadable)
            raise SnapshotError(
                f"There is no snapshot of epoch {epoch} in {self}; it holds epochs {sorted(by_epoch)}.{why}"
            )
        return by_epoch[epoch]

    def __len__(self) -> int:
        return len(self.steps)

    def __contains__(self, epoch: int) -> bool:
        return epoch in self.epochs

    def __iter__(self) -> Iterator[Snapshot]:
        return (self.load(step=step) for step in self.steps)


class SnapshotStore(Store):
    """A folder of snapshots, one file a snapshot.

    Writing is atomic: a file is whole or not there. Saving a step again replaces it.

    Args:
        root: The folder; made when the first snapshot is saved.

    Example:
        >>> import tempfile, torch
        >>> from lightning_ssc import snapshot
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> store = SnapshotStore(tempfile.mkdtemp())
        >>> x, y = torch.rand(20, 4), torch.arange(20) % 2
        >>> store.save(snapshot(net, x, y, layers="Linear", epoch=3, step=1173))
        >>> store.steps, store.epochs, list(store.load(3).layers)
        ([1173], [3], ['0', '2'])
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._headers: dict[tuple[str, int, int, int], SnapshotHeader] = {}  # by what tells one file from another

    def __str__(self) -> str:
        return str(self.root)

    @property
    def steps(self) -> list[int]:
        """Steps of the stored snapshots, ascending; known from the names of files, but for format 1."""
        return sorted(self.files())

    def files(self) -> dict[int, Path]:
        """Files of the snapshots by their steps."""
        try:
            paths = list(self.root.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise SnapshotError(f"The snapshots in {self} cannot be listed ({obstacle(error)}).") from error
        files = {int(name[1]): path for path in paths if (name := _NAME.fullmatch(path.name))}
        # A file of format 1 has its epoch for a name. Its step is in its header, but need not tell it from others.
        last = -1
        for path in sorted(path for path in paths if _NAME_1.fullmatch(path.name)):
            try:
                last = max(last + 1, self._read_header(path, None).step)
            except SnapshotError:
                last += 1
            files.setdefault(last, path)
        return files

    def path(self, step: int) -> Path:
        """File of a step's snapshot: the one that is there, or the one that :meth:`save` would write."""
        return self.files().get(step, self.root / f"step_{step:09d}.npz")

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot, replacing an earlier one of the same step.

        Raises:
            OSError: The disk is full or the folder cannot be written; nothing that was stored before is lost.
        """
        before, path = self.path(snapshot.step), self.root / f"step_{snapshot.step:09d}.npz"
        codec.write(path, codec.encode(snapshot))
        if before != path:
            before.unlink(missing_ok=True)  # of format 1

    def take_over(self, other: SnapshotStore, steps: Sequence[int]) -> None:
        """Bring in snapshots of another store, as links to its files where the file system can and as copies elsewhere.

        Steps that this store has, or the other one lacks, are passed over.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob("*.partial"):  # of a process that was killed while it wrote
            leftover.unlink()
        mine, theirs = self.files(), other.files()
        for step in steps:
            if step in theirs and step not in mine:
                target = self.root / theirs[step].name
                try:
                    os.link(theirs[step], target)
                except OSError:
                    partial = target.with_suffix(f".{os.getpid()}.partial")
                    shutil.copy2(theirs[step], partial)
                    partial.replace(target)

    def set_aside(self, steps: Sequence[int]) -> None:
        """Move snapshots into the subfolder ``superseded``, where no reader looks."""
        files = self.files()
        for step in steps:
            aside = self.root / SUPERSEDED / files[step].name
            aside.parent.mkdir(exist_ok=True)
            files[step].replace(aside)

    def load(self, epoch: int | None = None, *, step: int | None = None) -> Snapshot:
        """Read one snapshot, by a whole epoch or by its step.

        Raises:
            SnapshotError: It is not there, damaged, or of a newer format.
        """
        step = self._step_of(epoch, step)
        path = self.path(step)
        with codec.reading(path, step) as arrays:
            return codec.decode(arrays, path, step)

    def layers(self, step: int, names: Iterable[str] | None = None) -> Iterator[tuple[str, LayerGraph]]:
        """Read layers of one snapshot, one at a time; all or those of the names that it holds.

        Raises:
            SnapshotError: The snapshot cannot be read.
        """
        path = self.path(self._step_of(None, step))
        with codec.reading(path, step) as arrays:
            yield from codec.decode_layers(arrays, path, names)

    def of_samples(self, step: int) -> Mapping[str, Tensor]:
        """Read what one snapshot has of every sample, and no graph.

        Raises:
            SnapshotError: The snapshot cannot be read.
        """
        path = self.path(self._step_of(None, step))
        with codec.reading(path, step) as arrays:
            return codec.decode_of_samples(arrays, None)

    def pairs(self, step: int) -> Mapping[str, Tensor]:
        """Read the tables between the layers of one snapshot, and no graph.

        Raises:
            SnapshotError: The snapshot cannot be read.
        """
        path = self.path(self._step_of(None, step))
        with codec.reading(path, step) as arrays:
            return codec.decode_pairs(arrays, path)

    def of_classes(self, step: int) -> Mapping[str, Mapping[str, Tensor]]:
        """Read what was measured of classes at one snapshot, and no graph.

        Raises:
            SnapshotError: The snapshot cannot be read.
        """
        path = self.path(self._step_of(None, step))
        with codec.reading(path, step) as arrays:
            return codec.decode_of_classes(arrays, path)

    def header(self, epoch: int | None = None, *, step: int | None = None) -> SnapshotHeader:
        """Read what a snapshot says of itself.

        Raises:
            SnapshotError: The snapshot cannot be read.
        """
        step = self._step_of(epoch, step)
        return self._read_header(self.path(step), step)

    def headers(self) -> Iterator[SnapshotHeader | SnapshotError]:
        """Read what all snapshots say of themselves, ascending; of one that cannot be read, why."""
        for step, path in sorted(self.files().items()):
            try:
                yield self._read_header(path, step)
            except SnapshotError as error:
                yield error

    def _read_header(self, path: Path, step: int | None) -> SnapshotHeader:
        try:
            stat = path.stat()
        except OSError as error:
            raise SnapshotError(f"{path} cannot be opened ({obstacle(error)}).", step) from error
        key = (path.name, stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if key not in self._headers:
            with codec.reading(path, step) as arrays:
                self._headers[key] = codec.decode_header(arrays, path, step)
        header = self._headers[key]  # of format 1 it may have been read before its step was settled
        return header if step is None else replace(header, moment=replace(header.moment, step=step))

    def save_card(self, card: ProbeCard) -> None:
        """Write what readers see of the probe.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        codec.write(self.root / "probe.npz", codec.encode_card(card))

    def load_card(self) -> ProbeCard | None:
        """Read what readers see of the probe, or ``None`` where nothing was stored.

        Raises:
            SnapshotError: The file is damaged or of a newer format.
        """
        path = self.root / "probe.npz"
        if not path.is_file():
            return None
        with codec.reading(path) as arrays:
            return codec.decode_card(arrays, path)


class MemoryStore(Store):
    """Snapshots of a run that writes no files.

    Example:
        >>> from lightning_ssc import snapshot
        >>> import torch
        >>> store = MemoryStore()
        >>> store.save(snapshot(torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.rand(20, 4), layers="Linear"))
        >>> store.steps
        [0]
    """

    def __init__(self) -> None:
        self._snapshots: dict[int, Snapshot] = {}
        self._card: ProbeCard | None = None

    def __str__(self) -> str:
        return "memory"

    @property
    def steps(self) -> list[int]:
        """Steps of the kept snapshots, ascending."""
        return sorted(self._snapshots)

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, replacing an earlier one of the same step."""
        layers = {name: replace(layer) for name, layer in snapshot.layers.items()}  # without what was derived of them
        self._snapshots[snapshot.step] = replace(snapshot, layers=layers)

    def load(self, epoch: int | None = None, *, step: int | None = None) -> Snapshot:
        """The kept snapshot.

        Raises:
            SnapshotError: There is none.
        """
        return self._snapshots[self._step_of(epoch, step)]

    def layers(self, step: int, names: Iterable[str] | None = None) -> Iterator[tuple[str, LayerGraph]]:
        """Layers of a kept snapshot."""
        wanted = None if names is None else set(names)
        for name, layer in self.load(step=step).layers.items():
            if wanted is None or name in wanted:
                yield name, layer

    def of_samples(self, step: int) -> Mapping[str, Tensor]:
        """What a kept snapshot has of every sample."""
        taken = self.load(step=step)
        return {name: found for name in codec.OF_SAMPLES if (found := getattr(taken, name)) is not None}

    def pairs(self, step: int) -> Mapping[str, Tensor]:
        """Tables between the layers of a kept snapshot."""
        return self.load(step=step).pairs

    def of_classes(self, step: int) -> Mapping[str, Mapping[str, Tensor]]:
        """What was measured of classes at a kept snapshot."""
        return {name: layer.of_classes for name, layer in self.load(step=step).layers.items()}

    def header(self, epoch: int | None = None, *, step: int | None = None) -> SnapshotHeader:
        """What a kept snapshot says of itself."""
        taken = self.load(step=self._step_of(epoch, step))
        return SnapshotHeader(
            moment=taken.moment,
            layers=list(taken.layers),
            values={name: layer.values for name, layer in taken.layers.items()},
            size=next((len(layer.gap) for layer in taken.layers.values()), None),
            settings=taken.settings,
            probe=taken.probe,
            seconds=taken.seconds,
            versions=codec.versions(),
            learning_rate=taken.learning_rate,
            previous=taken.previous,
            start=taken.start,
            run=taken.run,
            outputs=taken.outputs,
            notes=taken.notes,
            layer_seconds={name: layer.seconds for name, layer in taken.layers.items() if layer.seconds is not None},
        )

    def headers(self) -> Iterator[SnapshotHeader | SnapshotError]:
        """What all kept snapshots say of themselves, ascending."""
        return (self.header(step=step) for step in self.steps)

    def save_card(self, card: ProbeCard) -> None:
        """Keep what readers see of the probe."""
        self._card = card

    def load_card(self) -> ProbeCard | None:
        """What readers see of the probe."""
        return self._card
