"""Claims on folders: a file that says which process writes into one, so that no two runs do."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import uuid
import weakref
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

CLAIM = "run.lock"
_SAME_START = 2.0  # seconds by which the start of one process may read differently, as when the host's clock is set


@dataclass(frozen=True)
class Owner:
    """The process that writes into a folder.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        start: When it began, in seconds since 1970: numbers are given again.
        processes: Which processes its number is one of; containers on one machine count for themselves.
        token: What tells this claim from any other, of the same process too.
    """

    host: str
    pid: int
    start: float
    processes: str = ""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(platform.node(), os.getpid(), psutil.Process().create_time(), _processes())

    def is_gone(self) -> bool:
        """Whether the process has surely ended; of one on another machine nobody here can tell."""
        if (self.host, self.processes) != (platform.node(), _processes()):
            return False
        try:
            start: float = psutil.Process(self.pid).create_time()
            return abs(start - self.start) > _SAME_START
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:  # there is one, which is not ours to look at
            return False

    def is_elsewhere(self) -> bool:
        """Whether nobody here can tell if it has ended."""
        return (self.host, self.processes) != (platform.node(), _processes())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, begun {datetime.fromtimestamp(self.start):%Y-%m-%d %H:%M:%S}"


class TakenError(Exception):
    """Another run writes into the folder.

    Attributes:
        owner: Its process, or ``None`` where the file does not say.
        path: The file that claims the folder.
    """

    def __init__(self, path: Path, owner: Owner | None) -> None:
        super().__init__(f"is in use by {owner or f'a run that {path.name} does not name'}")
        self.path, self.owner = path, owner


class Claim:
    """One run's claim on a folder, given up by :meth:`release`, or when nobody holds it any more.

    Args:
        root: The folder; made where it is missing.
        from_elsewhere: Whether to take over from a process of another machine, which may have ended or not.

    Raises:
        TakenError: Another run writes into it.
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> claim = Claim(root)
        >>> try:
        ...     Claim(root)
        ... except TakenError as error:
        ...     error.owner.pid == os.getpid()
        True
        >>> claim.release()
        >>> Claim(root).release()
    """

    def __init__(self, root: Path, *, from_elsewhere: bool = False) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.absolute()
        path, mine = self.root / CLAIM, Owner.here()
        try:
            _create(path, mine)
        except FileExistsError:
            _take_over(path, mine, from_elsewhere)
        self.release = weakref.finalize(self, _release, path, mine)
        """Let others have the folder; does nothing where it is not claimed any more."""


def owner(root: Path) -> Owner | None:
    """The process that has claimed a folder and not given it up; it may have ended without."""
    return _read(root / CLAIM)


def _create(path: Path, owner: Owner) -> None:
    with path.open("x") as file:
        try:
            json.dump(asdict(owner), file)
            file.flush()
        except OSError:
            path.unlink()
            raise


def _take_over(path: Path, mine: Owner, from_elsewhere: bool) -> None:
    """Put a claim in place of one whose process has ended."""
    theirs = _read(path)
    if theirs is None or not (theirs.is_gone() or (from_elsewhere and theirs.is_elsewhere())):
        raise TakenError(path, theirs)
    # Only one process gets to make this file, and from then on nobody but it may touch the old claim.
    right = path.with_name(f"{path.stem}-{theirs.token}{path.suffix}")
    try:
        _create(right, mine)
    except FileExistsError:
        raise TakenError(path, _read(right)) from None
    if _read(path) != theirs:  # whoever had the right before has used it
        right.unlink()
        raise TakenError(path, _read(path))
    right.replace(path)
    what = "whose end nobody can see from here" if theirs.is_elsewhere() else "which ended without giving it up"
    log.warning("%s was claimed by %s, %s; it is taken over.", path.parent, theirs, what)


def _read(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # being written, or not ours
        return None


def _release(path: Path, mine: Owner) -> None:
    if mine.pid == os.getpid() and _read(path) == mine:  # not a child that has inherited it
        with contextlib.suppress(OSError):
            path.unlink()


def _processes() -> str:
    """The set of processes that this one sees, where the system has several."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
