"""From a network and a probe to one Gram matrix a watched layer, without a trace on the network."""

from lightning_ssc.capture.batches import batch_size, first_loader
from lightning_ssc.capture.classifier import Head, classes_told
from lightning_ssc.capture.disk import NoRoomError
from lightning_ssc.capture.gradients import parameters_through
from lightning_ssc.capture.isolation import isolated_random_state, without_trace
from lightning_ssc.capture.labels import split_batch
from lightning_ssc.capture.layers import LayerPattern, select_layers
from lightning_ssc.capture.names import Layer
from lightning_ssc.capture.outputs import Returned
from lightning_ssc.capture.overview import show_layers
from lightning_ssc.capture.passes import capture, is_spread
from lightning_ssc.capture.pictures import class_names, pictures
from lightning_ssc.capture.plan import goes_to_disk, plan_passes, plan_shared, share_layers
from lightning_ssc.capture.probe import Probe, ProbeSource, balanced, make_probe
from lightning_ssc.capture.runner import Forward, NotRunError, Runner, check_sizes, unwrapped
from lightning_ssc.capture.sharding import is_sharded
from lightning_ssc.capture.trace import WatchedLayer, in_parts, linear_head, trace
from lightning_ssc.settings import Pooling, Rows

__all__ = [
    "Forward",
    "Head",
    "Layer",
    "LayerPattern",
    "NoRoomError",
    "NotRunError",
    "Pooling",
    "Probe",
    "ProbeSource",
    "Returned",
    "Rows",
    "Runner",
    "WatchedLayer",
    "balanced",
    "batch_size",
    "capture",
    "check_sizes",
    "class_names",
    "classes_told",
    "first_loader",
    "goes_to_disk",
    "in_parts",
    "is_sharded",
    "is_spread",
    "isolated_random_state",
    "linear_head",
    "make_probe",
    "parameters_through",
    "pictures",
    "plan_passes",
    "plan_shared",
    "select_layers",
    "share_layers",
    "show_layers",
    "split_batch",
    "trace",
    "unwrapped",
    "without_trace",
]
