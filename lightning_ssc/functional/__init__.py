"""The mathematics of the project as pure functions of tensors: no state, no Lightning, no files."""

from lightning_ssc.functional.graph import (
    affinity,
    class_affinity,
    communities,
    modularity,
    spectral_embedding,
    to_networkx,
)
from lightning_ssc.functional.self_expression import SelfExpression, duality_gap, self_expression
from lightning_ssc.functional.similarity import cka, linear_cka, pairwise_cka

__all__ = [
    "SelfExpression",
    "affinity",
    "cka",
    "class_affinity",
    "communities",
    "duality_gap",
    "linear_cka",
    "modularity",
    "pairwise_cka",
    "self_expression",
    "spectral_embedding",
    "to_networkx",
]
