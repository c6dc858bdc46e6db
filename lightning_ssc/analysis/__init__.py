"""Tables from stored snapshots; nothing here needs the training run."""

from lightning_ssc.analysis.architecture import Blocks, Similarity, chessboard, find_blocks, similarity
from lightning_ssc.analysis.classes import ByClass, by_class
from lightning_ssc.analysis.comparison import Comparison, Parting, compare, parting
from lightning_ssc.analysis.dynamics import Dynamics, dynamics, stored
from lightning_ssc.analysis.inputs import Inputs, embeddings, inputs, last_hidden_layer, neighbours
from lightning_ssc.analysis.labels import Doubts, doubts
from lightning_ssc.analysis.runs import find_store
from lightning_ssc.analysis.summary import LayerTable, Summary, summarise

__all__ = [
    "Blocks",
    "ByClass",
    "Comparison",
    "Doubts",
    "Dynamics",
    "Inputs",
    "LayerTable",
    "Parting",
    "Similarity",
    "Summary",
    "by_class",
    "chessboard",
    "compare",
    "doubts",
    "dynamics",
    "embeddings",
    "find_blocks",
    "find_store",
    "inputs",
    "last_hidden_layer",
    "neighbours",
    "parting",
    "similarity",
    "stored",
    "summarise",
]
