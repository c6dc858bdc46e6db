"""From a network and a probe to one Gram matrix a watched layer, without a trace on the network."""

from lightning_ssc.capture.batches import batch_size, first_loader
from lightning_ssc.capture.isolation import isolated_random_state, without_trace
from lightning_ssc.capture.labels import split_batch
from lightning_ssc.capture.layers import LayerPattern, select_layers
from lightning_ssc.capture.names import Layer
from lightning_ssc.capture.overview import show_layers
from lightning_ssc.capture.passes import capture
from lightning_ssc.capture.pictures import class_names, pictures, rows
from lightning_ssc.capture.plan import plan_passes, plan_shared, share_layers
from lightning_ssc.capture.probe import Probe, ProbeSource, balanced, make_probe
from lightning_ssc.capture.runner import Forward, NotRunError, Runner, check_sizes, unwrapped
from lightning_ssc.capture.sharding import is_sharded
from lightning_ssc.capture.trace import WatchedLayer, in_parts, trace
from lightning_ssc.settings import Pooling

__all__ = [
    "Forward",
    "Layer",
    "LayerPattern",
    "NotRunError",
    "Pooling",
    "Probe",
    "ProbeSource",
    "Runner",
    "WatchedLayer",
    "balanced",
    "batch_size",
    "capture",
    "check_sizes",
    "class_names",
    "first_loader",
    "in_parts",
    "is_sharded",
    "isolated_random_state",
    "make_probe",
    "pictures",
    "plan_passes",
    "plan_shared",
    "rows",
    "select_layers",
    "share_layers",
    "show_layers",
    "split_batch",
    "trace",
    "unwrapped",
    "without_trace",
]
