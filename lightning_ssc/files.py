"""What reading a file may meet beside damage."""

from __future__ import annotations

import errno


def obstacle(error: BaseException) -> str:
    """Why a file could not be read that may be sound, in a few words; empty where what it holds is wrong.

    A disk, a network, permissions or memory that fail say nothing of a file: nobody should delete it for that.

    Args:
        error: What reading it raised, maybe because of another error that a library has hidden.

    Example:
        >>> obstacle(PermissionError(13, "Permission denied")), obstacle(MemoryError()), obstacle(ValueError("no zip"))
        ('Permission denied', 'out of memory', '')
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "can't allocate memory" in str(cause):  # torch says it in words
            return "out of memory"
        if isinstance(cause, OSError) and cause.errno != errno.EINVAL:  # a place that the file does not have
            return cause.strerror or str(cause) or type(cause).__name__
        cause = cause.__cause__ or cause.__context__
    return ""
