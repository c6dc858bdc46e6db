"""Tables from stored snapshots; nothing here needs the training run."""

from lightning_ssc.analysis.architecture import Blocks, Similarity, chessboard, find_blocks, similarity
from lightning_ssc.analysis.comparison import Comparison, compare
from lightning_ssc.analysis.dynamics import Dynamics, dynamics, stored
from lightning_ssc.analysis.inputs import Inputs, embeddings, inputs, last_hidden_layer, neighbours
from lightning_ssc.analysis.runs import find_store
from lightning_ssc.analysis.summary import LayerTable, Summary, summarise

__all__ = [
    "Blocks",
    "Comparison",
    "Dynamics",
    "Inputs",
    "LayerTable",
    "Similarity",
    "Summary",
    "chessboard",
    "compare",
    "dynamics",
    "embeddings",
    "find_blocks",
    "find_store",
    "inputs",
    "last_hidden_layer",
    "neighbours",
    "similarity",
    "stored",
    "summarise",
]
