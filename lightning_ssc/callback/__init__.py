"""The callback for Lightning's Trainer."""

from lightning_ssc.callback.monitor import SSCMonitor

__all__ = ["SSCMonitor"]
