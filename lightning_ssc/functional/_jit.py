"""Loops that numba compiles: how, for every file of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call, and only then when the result can be kept on disk."""
    # No "nnan" or "ninf": a comparison with them must be an honest one.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return cast(Callable[P, R], numba.njit(function, cache=True, **options))
    except RuntimeError:  # nowhere to write, as in some containers
        return cast(Callable[P, R], numba.njit(function, **options))
