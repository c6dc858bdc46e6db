"""The runs below a log folder, found again and again as they grow. Nothing here reads a snapshot, or imports torch."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

_SNAPSHOT = re.compile(r"(step|epoch)_\d+\.npz")
_SUPERSEDED = "superseded"  # as lightning_ssc.snapshots, which takes seconds to import, calls it
_PAUSE = 1.0  # seconds between two walks through the folder
_SHARE = 20  # a walk that takes long is followed by a pause of so many times as long


@dataclass(frozen=True)
class Found:
    """A run's folder as it was seen.

    Attributes:
        name: What people call the run: its folder below the log folder, without the ``ssc`` that holds the snapshots.
        root: The folder of snapshots.
        signature: Differs as soon as a file has come, gone or changed.
        snapshots: Number of snapshot files.
        modified: When the last of them was written, in seconds since 1970.
        bytes: What all files take.
        links: Files that are links out of the log folder, for which the run is not read.
    """

    name: str
    root: Path
    signature: str
    snapshots: int
    modified: float
    bytes: int
    links: tuple[str, ...] = ()


class LogFolder:
    """A folder with runs somewhere below it.

    Links to folders are not followed, so nothing outside is ever read.

    Args:
        root: The folder; it need not be there yet.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "version_0" / "ssc").mkdir(parents=True)
        >>> (root / "version_0" / "ssc" / "step_000000000.npz").touch()
        >>> list(LogFolder(root).runs())
        ['version_0']
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self._folders: list[Path] = []
        self._walk_after = 0.0
        self._lock = Lock()

    def runs(self) -> dict[str, Found]:
        """All runs by name, in order of their names; of a name that two would have, the folder of snapshots stays."""
        roots = [(folder, seen) for folder in self._known() if (seen := self._look(folder)) is not None]
        names = [self._name(folder, short=True) for folder, _ in roots]
        found = {}
        for (folder, seen), name in zip(roots, names, strict=True):
            name = name if names.count(name) == 1 else self._name(folder, short=False)
            found[name] = Found(name, folder, *seen)
        return dict(sorted(found.items(), key=lambda item: _natural(item[0])))

    def holds_runs(self) -> bool:
        """Whether there is a run; cheap where one was found before."""
        return any(folder.is_dir() for folder in self._folders) or bool(self._known())

    def _known(self) -> list[Path]:
        with self._lock:
            if (begun := time.monotonic()) >= self._walk_after:
                self._folders = list(_snapshot_folders(self.root))
                ended = time.monotonic()
                self._walk_after = ended + max(_PAUSE, _SHARE * (ended - begun))
            return self._folders

    def _look(self, folder: Path) -> tuple[str, int, float, int, tuple[str, ...]] | None:
        """Signature, number of snapshots, time of the last one, bytes and bad links of a folder; ``None`` if gone."""
        digest, count, modified, size, links = hashlib.sha1(usedforsecurity=False), 0, 0.0, 0, []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            return None
        for entry in entries:
            try:
                if not entry.is_file():
                    continue
                stat = entry.stat()
            except OSError:  # it went away meanwhile
                continue
            if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.root):
                links.append(entry.name)
                continue
            digest.update(f"{entry.name}/{stat.st_mtime_ns}/{stat.st_size}/{stat.st_ino};".encode("utf-8", "replace"))
            size += stat.st_size
            if _SNAPSHOT.fullmatch(entry.name):
                count, modified = count + 1, max(modified, stat.st_mtime)
        digest.update(repr(links).encode("utf-8", "replace"))
        return digest.hexdigest(), count, modified, size, tuple(links)

    def _name(self, folder: Path, *, short: bool) -> str:
        below = folder.relative_to(self.root)
        if short and below.name == "ssc":
            below = below.parent
        return self.root.name if below == Path() else below.as_posix()


def _snapshot_folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        if any(_SNAPSHOT.fullmatch(name) for name in files):
            below.clear()  # what lies inside belongs to this run
            yield Path(folder)
        else:
            below[:] = sorted(name for name in below if name != _SUPERSEDED)


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A key by which version_10 follows version_9."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name)]
