"""Advice about an input that is legal but unwise: a warning, or collected by a caller that can say it better."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_collector: ContextVar[list[str] | None] = ContextVar("lightning_ssc_advice", default=None)


def advise(message: str, stacklevel: int) -> None:
    """Warn, as ``warnings.warn`` does, unless somebody :func:`collects <collected>` in this thread."""
    collector = _collector.get()
    if collector is None:
        warnings.warn(message, stacklevel=stacklevel + 1)
    else:
        collector.append(message)


@contextmanager
def collected() -> Iterator[list[str]]:
    """The advice given inside, instead of warnings.

    ``warnings.catch_warnings`` would change the filters of every thread, those of a training loop included.

    Example:
        >>> with collected() as advice:
        ...     advise("tau is small", stacklevel=1)
        >>> advice
        ['tau is small']
    """
    advice: list[str] = []
    token = _collector.set(advice)
    try:
        yield advice
    finally:
        _collector.reset(token)
