"""What the user is told while a run goes on, to be kept with its snapshots."""

from __future__ import annotations

import logging
import weakref


class Remarks:
    """The warnings of this package, as long as this object is there; a page shows them beside what they explain.

    Example:
        >>> remarks = Remarks()
        >>> logging.getLogger("lightning_ssc.somewhere").warning("Layer %s is left out.", "fc")
        >>> remarks.take(), remarks.take()
        (('Layer fc is left out.',), ())
    """

    def __init__(self) -> None:
        self._heard: list[str] = []
        self._told: set[str] = set()
        logger, ear = logging.getLogger(__package__), _Ear(self)
        logger.addHandler(ear)
        weakref.finalize(self, logger.removeHandler, ear)

    def add(self, text: str) -> None:
        """Take note of something that was said."""
        if text not in self._told:
            self._told.add(text)
            self._heard.append(text)

    def take(self) -> tuple[str, ...]:
        """What was said since this was asked last, but for what had been said before."""
        heard, self._heard = self._heard, []
        return tuple(heard)


class _Ear(logging.Handler):
    def __init__(self, remarks: Remarks) -> None:
        super().__init__(logging.WARNING)
        self._remarks = weakref.ref(remarks)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a warning on."""
        if (remarks := self._remarks()) is not None:
            remarks.add(record.getMessage())
