"""How activations become graphs. Said without PyTorch, so that the command line's help is there at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

Pooling = Literal["flatten", "mean", "cls", "last"] | Callable[[Any], Any]
"""How the activations of a sample become its features; a function takes ``(N, ...)`` and returns ``(N, d)``."""


@dataclass(frozen=True)
class Rows:
    """How what layers put out becomes one row of features a sample; what each means is said of :class:`Settings`."""

    pooling: Pooling = "flatten"
    pad: float | None = None
    batch_dim: int | None = None


FLAT = Rows()

_ROUNDING = 5e-7  # of a unit of tau: what single precision does to the objective


@dataclass(frozen=True)
class Settings:
    """How activations become graphs; stored with every snapshot.

    Attributes:
        tau: Weight of the fit against the sparsity of the self-expression.
        alpha: ``tau`` of each layer in units of the value at which its last input gets its first neighbour (Elhamifar
            and Vidal's alpha); overrides ``tau``.
        normalize: Scale every sample to unit length first.
        solver: ``"active_set"``, exact, or ``"admm"``, Algorithm 1 of the paper.
        tol: Relative duality gap asked for.
        preset: ``"paper"`` runs the published setting whatever the other fields say: raw samples, ADMM,
            tau = mu = 10, adaptive mu, 100 iterations.
        pooling: ``"flatten"`` keeps every activation, ``"mean"`` averages over space or over the tokens that a mask or
            lengths among the inputs say are real, ``"cls"`` takes the class token, ``"last"`` the last real one; or a
            function of the activations ``(N, ...)`` that returns ``(N, d)``. Snapshots keep a function's name.
        linear_cka: Keep what linear CKA needs beside the graph.
        groups: What modularity is measured over: ``"classes"``, the probe's labels, or ``"communities"``, those that
            Louvain's method finds in each graph.
        pad: What sequences of other lengths are filled up with to the longest of the probe, so that every sample has as
            many features; tokens that a mask or lengths among the inputs say are padding are so, too. By default a
            layer whose number of features changes is refused.
        batch_dim: Which dimension of what layers put out is the sample, 1 where time comes first. By default it is
            found by running other numbers of samples, which a network written for one number does not allow. What has
            no samples in that dimension has them in its first.
    """

    tau: float = 10.0
    normalize: bool = True
    solver: Literal["active_set", "admm"] = "active_set"
    tol: float = 1e-5
    preset: Literal["paper"] | None = None
    pooling: Pooling = "flatten"
    linear_cka: bool = True
    groups: Literal["classes", "communities"] = "classes"
    alpha: float | None = None
    pad: float | None = None
    batch_dim: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where a value is not one of those above: found out now, not after the first epoch."""
        for name, kind in get_type_hints(Settings).items():
            value = getattr(self, name)
            allowed = [v for part in (kind, *get_args(kind)) if get_origin(part) is Literal for v in get_args(part)]
            if allowed and value is not None and not callable(value) and value not in allowed:
                either = "a function or " if name == "pooling" else ""
                raise ValueError(f"{name} must be {either}one of {', '.join(map(repr, allowed))}, got {value!r}.")
        for name in ("tau", "tol", "alpha"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}.")
        if self.pad is not None and not math.isfinite(self.pad):
            raise ValueError(f"pad must be a finite number such as 0.0, got {self.pad}.")
        if self.batch_dim is not None and (not hasattr(self.batch_dim, "__index__") or self.batch_dim < 0):
            raise ValueError(f"batch_dim must be the number of a dimension, 0 or more, got {self.batch_dim!r}.")

    @property
    def rows(self) -> Rows:
        """How what layers put out becomes one row of features a sample."""
        return Rows(self.pooling, self.pad, self.batch_dim)

    @property
    def is_exact(self) -> bool:
        """Whether the active-set method solves the graphs."""
        return self.solver == "active_set" and self.preset is None

    @property
    def needs_double(self) -> bool:
        """Whether Grams in single precision would not bear out the gap that is asked for.

        Rounding of inner products is weighed by tau: about 1e-6 of the objective of unit-length samples at tau = 10.
        """
        rounds = not self.normalize or self.alpha is not None or self.tau * _ROUNDING > self.tol
        return self.is_exact and rounds

    def stored(self) -> dict[str, Any]:
        """The fields as they are kept with a snapshot: of a function its name."""
        return {**vars(self), "pooling": _name(self.pooling) if callable(self.pooling) else self.pooling}


def _name(function: Any) -> str:
    """What a function is called, with the arguments that it is bound to.

    Example:
        >>> _name(math.sqrt), _name(partial(math.pow, 2.0, y=3.0))
        ('sqrt', 'pow(2.0, y=3.0)')
    """
    if isinstance(function, partial):
        given = [*map(repr, function.args), *(f"{key}={value!r}" for key, value in function.keywords.items())]
        return f"{_name(function.func)}({', '.join(given)})"
    return str(getattr(function, "__qualname__", type(function).__name__))
