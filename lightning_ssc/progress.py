"""What long work is wrapped in, so that people see it go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Progress = Callable[[Sequence[Any]], Iterable[Any]]
"""Wrapped around what takes long, such as ``tqdm.tqdm``; ``iter`` shows nothing."""
