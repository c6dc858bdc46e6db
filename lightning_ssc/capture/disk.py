"""Room on disk for Gram matrices that no memory holds: files without a name, mapped into memory.

Nothing is left of one when its process ends, however it ends. What of it is in memory is the system's cache of files,
which gives way to whatever else needs the memory.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import psutil
import torch
from torch import Tensor

_FOR_LARGE_FILES = Path("/var/tmp")  # on disk where /tmp may be memory (Filesystem Hierarchy Standard, systemd)
_ZEROS = bytes(1 << 20)


class NoRoomError(OSError):
    """A Gram does not fit on disk; the message says how much it takes, where, and what to do."""


def folder() -> Path:
    """Where files of Grams go: ``TMPDIR`` where it is set, and else a folder for large temporary files.

    Example:
        >>> folder().is_dir()
        True
    """
    if "TMPDIR" not in os.environ and os.access(_FOR_LARGE_FILES, os.W_OK):
        return _FOR_LARGE_FILES
    return Path(tempfile.gettempdir())


def on_disk(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for a Gram of N samples on disk, all of it taken at once: a disk that fills up later cannot harm it.

    Args:
        n: Number of samples.
        dtype: What it is kept in.
        device: The CPU.

    Returns:
        ``(N, N)``; the file is gone when the tensor is.

    Raises:
        NoRoomError: There is not that much room.

    Example:
        >>> on_disk(2, torch.float32, torch.device("cpu")).fill_(3).tolist()
        [[3.0, 3.0], [3.0, 3.0]]
    """
    size, place = n * n * dtype.itemsize, folder()
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            _reserve(file.fileno(), size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        free = psutil.disk_usage(str(place)).free
        raise NoRoomError(
            f"Its Gram matrix of {n} samples takes {size / 1e9:.1f} GB on disk, of which {place} has {free / 1e9:.1f} "
            f"GB free ({error.strerror}). Set TMPDIR to a folder that has more, raise memory= or use a smaller probe."
        ) from error
    return torch.frombuffer(mapped, dtype=dtype).view(n, n)


def _reserve(file: int, size: int) -> None:
    """Take the room: a file that is mapped with holes would end the process where the disk fills up."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    for start in range(0, size, len(_ZEROS)):
        os.write(file, _ZEROS[: size - start])
